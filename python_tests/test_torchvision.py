"""Every torchvision architecture the package names is pruned exactly, by an oracle of its own and at random places.

Inputs are as small as each architecture allows: exactness does not depend on the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, nn
from zoo import randomise

from srr_ext.channels import analyze_channels

torchvision = pytest.importorskip("torchvision")

CLASSIFIERS = {  # name -> height and width of the input
    "alexnet": 63,
    "vgg11": 32,
    "vgg13": 32,
    "vgg16": 32,
    "vgg19": 32,
    "vgg11_bn": 32,
    "vgg13_bn": 32,
    "vgg16_bn": 32,
    "vgg19_bn": 32,
    "resnet18": 32,
    "resnet34": 32,
    "resnet50": 32,
    "resnet101": 32,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "squeezenet1_1": 32,
    "shufflenet_v2_x1_0": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "mnasnet1_0": 32,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "vit_b_16": 32,
    "swin_t": 64,  # the smallest size at which windows are shifted
    "maxvit_t": 224,
}
# Modules whose output channels must be removable, so that "exact" is never won by pinning everything.
MUST_PRUNE = {
    "alexnet": ("features.0", "features.10", "classifier.1", "classifier.4"),
    "vgg16_bn": ("features.0", "features.40", "classifier.0", "classifier.3"),
    "resnet18": ("conv1", "layer1.0.conv1", "layer4.1.conv1", "layer4.1.conv2"),
    "resnet50": ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer4.2.conv3"),
    "resnext50_32x4d": ("layer1.0.conv1", "layer1.0.conv2"),
    "densenet121": (
        "features.conv0",
        "features.denseblock1.denselayer1.conv1",
        "features.denseblock1.denselayer1.conv2",
    ),
    "googlenet": ("conv1.conv", "inception3a.branch2.0.conv", "inception5b.branch4.1.conv"),
    "inception_v3": ("Conv2d_1a_3x3.conv", "Mixed_5b.branch1x1.conv", "Mixed_7c.branch_pool.conv"),
    "squeezenet1_1": ("features.0", "features.3.squeeze", "features.3.expand1x1"),
    "shufflenet_v2_x1_0": ("conv1.0", "stage2.1.branch2.0", "conv5.0"),
    "mobilenet_v2": ("features.0.0", "features.2.conv.0.0", "features.18.0"),
    "mobilenet_v3_small": ("features.0.0", "features.2.block.0.0", "features.1.block.1.fc1", "classifier.0"),
    "efficientnet_b0": ("features.0.0", "features.2.0.block.0.0", "features.1.0.block.1.fc1"),
    "mnasnet1_0": ("layers.0", "layers.8.0.layers.0"),
    "regnet_y_400mf": ("stem.0", "trunk_output.block1.block1-0.f.a.0"),
    "convnext_tiny": ("features.1.0.block.3",),
    "vit_b_16": ("encoder.layers.encoder_layer_0.mlp.0",),
    "swin_t": ("features.1.0.mlp.0",),
    "maxvit_t": ("stem.0.0", "blocks.0.layers.0.layers.MBconv.layers.conv_a.0"),
}


def small_lraspp() -> nn.Module:
    """MobileNetV3 with a segmentation head that multiplies features with a pooled gate."""
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)


def deeplab() -> nn.Module:
    """Dilated MobileNetV3 and atrous pyramid pooling, with an auxiliary head."""
    build = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    return build(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)


def fcn() -> nn.Module:
    """Dilated ResNet-50 with a fully convolutional head and an auxiliary one."""
    return torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )


def fpn() -> nn.Module:
    """ResNet-18 with a feature pyramid, whose levels are the outputs."""
    return torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )


def ssdlite() -> nn.Module:
    """The feature extractor of SSDlite: MobileNetV3 with extra levels."""
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    return build(weights=None, weights_backbone=None, num_classes=5).backbone


def retinanet() -> nn.Module:
    """RetinaNet's backbone: frozen BatchNorm, feature pyramid with two extra levels."""
    return torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5
    ).backbone


DENSE_PREDICTORS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "lraspp_mobilenet_v3_large": (small_lraspp, 64),
    "deeplabv3_mobilenet_v3_large": (deeplab, 64),
    "fcn_resnet50": (fcn, 32),
    "resnet18_fpn_backbone": (fpn, 64),
    "ssdlite_backbone": (ssdlite, 64),
    "retinanet_backbone": (retinanet, 64),
}


def classifier(name: str) -> nn.Module:
    """Return a torchvision classifier with five classes, without downloading anything."""
    options: dict[str, Any] = {"weights": None, "num_classes": 5}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": True}
    if name == "vit_b_16":
        options["image_size"] = CLASSIFIERS[name]
    if name == "alexnet" or name.startswith("vgg"):
        return narrow_head(name, options)
    with _cheap_initialisation():
        return torchvision.models.get_model(name, **options)


def narrow_head(name: str, options: dict[str, Any]) -> nn.Module:
    """Return AlexNet or VGG with 64 instead of 4096 hidden units, whose 100 million weights would only cost time."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
        for layer, linear in model.classifier.named_children():
            if isinstance(linear, nn.Linear):
                n_in, n_out = (min(n, 64) if n == 4096 else n for n in (linear.in_features, linear.out_features))
                model.classifier.set_submodule(layer, nn.Linear(n_in, n_out))
    return model.to_empty(device="cpu")


class _cheap_initialisation:
    """Skips the costly truncated-normal initialisation: every parameter is overwritten anyway."""

    def __enter__(self) -> None:
        self._saved = nn.init.trunc_normal_
        nn.init.trunc_normal_ = lambda tensor, *args, **kwargs: tensor

    def __exit__(self, *error: object) -> None:
        nn.init.trunc_normal_ = self._saved


def fixed_aux_heads(model: nn.Module, name: str) -> None:
    """Drop auxiliary heads that cannot run at the small input size, where they need a larger feature map."""
    if name == "inception_v3":
        model.AuxLogits = None


def check(model: nn.Module, example: Tensor, seed: int, fraction: float, must: tuple[str, ...] = ()) -> None:
    """Randomise, analyse, prune at random places and compare with the masked model, each group included."""
    randomise(model, seed)
    model.eval()
    analysis = analyze_channels(model, example)
    assert analysis.groups, f"nothing can be pruned: {analysis.pins}"
    modules = dict(model.named_modules())
    prunable = {m.module for g in analysis.groups for m in g.members if m.side == "out" and (m.vertex >= 0).any()}
    for module in must:
        assert module in modules, f"{module} is no module of this model"
        reasons = [pin.reason for pin in analysis.pins if pin.module == module]
        assert module in prunable, f"{module} must be prunable, but is pinned: {reasons}"
    plan = oracle.plan_for(analysis, oracle.random_kept(analysis, seed, fraction))
    assert plan.layers
    error = oracle.exactness(model, plan, example)
    assert error < oracle.CONTRACT, f"relative error {error:.1e}"


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_classifier_is_pruned_exactly(name: str) -> None:
    """30 to 50 % of every group, at random places, streams included."""
    seed = list(CLASSIFIERS).index(name)
    model = classifier(name)
    fixed_aux_heads(model, name)
    size = CLASSIFIERS[name]
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn(1, 3, size, size, generator=generator)
    check(model, example, seed, (0.3, 0.4, 0.5)[seed % 3], MUST_PRUNE.get(name, ()))


@pytest.mark.parametrize("name", list(DENSE_PREDICTORS))
def test_dense_predictor_is_pruned_exactly(name: str) -> None:
    """Segmentation networks and detection backbones, with dictionaries of outputs and heads used only in training."""
    build, size = DENSE_PREDICTORS[name]
    with _cheap_initialisation():
        model = build()
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    check(model, example, 1, 0.4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0"])
def test_other_image_sizes_and_batches(name: str) -> None:
    """What was analysed at one size and batch is exact at others."""
    model = classifier(name)
    randomise(model, 3)
    model.eval()
    example = torch.randn(1, 3, 32, 32)
    plan = oracle.random_plan(model, example, 3, 0.4)
    import srr_ext

    pruned = srr_ext.apply_plan(oracle.double_copy(model), plan, oracle.to_double(example))
    masked = oracle.masked_copy(model, plan)
    other = torch.randn(3, 3, 57, 40)
    assert oracle.relative_error(oracle.run(pruned, other), oracle.run(masked, other)) < oracle.CONTRACT


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_streams_can_be_kept(name: str) -> None:
    """Keeping every residual stream whole leaves exact plans of the rest."""
    model = classifier(name)
    randomise(model, 4)
    example = torch.randn(1, 3, 32, 32)
    analysis = analyze_channels(model.eval(), example)
    if name != "densenet121":
        assert any(group.stream for group in analysis.groups)
    plan = oracle.plan_for(analysis, oracle.random_kept(analysis, 4, 0.5, "keep"))
    streams = {m.module for g in analysis.groups if g.stream for m in g.members if m.side == "out"}
    assert not [name for name, layer in plan.layers.items() if layer.out is not None and name in streams]
    assert oracle.exactness(model, plan, example) < oracle.CONTRACT
