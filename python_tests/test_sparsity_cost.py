"""Costs of masked networks: multiplications counted in running layers, and torch's own count of dense ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from srr_ext import models
from srr_ext.sparsity.cost import sparse_cost
from srr_ext.sparsity.masks import Masks


def random_masks(tensors: Mapping[str, Tensor], density: float = 0.3) -> Masks:
    return Masks({name: torch.rand(tensor.shape) < density for name, tensor in tensors.items()})


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{name}.weight".lstrip("."): m.weight for name, m in model.named_modules() if isinstance(m, LAYERS)}


LAYERS = (nn.Linear, nn.modules.conv._ConvNd)

# With ones for weights that stay, in and around the input, each multiplication adds one to the sum of the outputs.
ONE_LAYER: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (1, 6)),
    "linear on one vector": (nn.Linear(6, 5), (6,)),
    "linear on leading dimensions": (nn.Linear(6, 5, bias=False), (2, 3, 4, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2), (2, 4, 11)),
    "conv2d": (nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1)), (2, 3, 11, 8)),
    "same": (nn.Conv2d(3, 4, (2, 3), dilation=2, padding="same"), (1, 3, 5, 6)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3, padding=1), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, stride=2), (1, 6, 7, 7)),
    "conv3d": (nn.Conv3d(2, 3, 2, dilation=2), (1, 2, 5, 4, 6)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, (3, 2), stride=3, dilation=2), (2, 4, 5, 3)),
    "transposed and grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 3)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 2, 2)),
}


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ONE_LAYER)
def test_every_multiplication_of_a_layer_is_counted(name: str, density: float) -> None:
    layer, shape = ONE_LAYER[name]
    weight = next(iter(layer.parameters()))
    masks = Masks({"weight": torch.rand(weight.shape) < density})
    counts = sparse_cost(layer, masks, torch.randn(shape))
    assert counts["macs"] == {
        "dense": multiplications(layer, torch.ones(weight.shape), shape),
        "pruned": multiplications(layer, masks["weight"].double(), shape),
    }
    total = sum(p.numel() for p in layer.parameters())
    assert counts["params"] == {"dense": total, "pruned": total - weight.numel() + int(masks["weight"].sum())}


def multiplications(layer: nn.Module, ones: Tensor, shape: tuple[int, ...]) -> int:
    """Sum of a layer's outputs, without bias, on ones: those in its padding are inputs like all others."""
    ones, inputs = ones.double(), torch.ones(shape, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return int((inputs @ ones.T).sum())
    assert isinstance(layer, nn.modules.conv._ConvNd)
    options: dict[str, Any] = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if layer.transposed:
        function = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][inputs.ndim - 3]
        return int(function(inputs, ones, **options).sum())
    inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, value=1.0)
    function = [F.conv1d, F.conv2d, F.conv3d][inputs.ndim - 3]
    return int(function(inputs, ones, **options).sum())


class Twice(nn.Module):
    """One layer called twice, on different sizes, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.max_pool2d(self.conv(x), 2))
        return self.second(self.first(x.mean((2, 3))))


def test_a_layer_counts_each_time_it_is_called_and_a_shared_weight_wherever_it_is_used() -> None:
    model, x = Twice(), torch.randn(1, 4, 8, 8)
    masks = random_masks({"conv.weight": model.conv.weight, "first.weight": model.first.weight})
    conv, linear = masks.counts["conv.weight"], masks.counts["first.weight"]
    counts = sparse_cost(model, masks, x)
    assert counts["macs"] == {"dense": 144 * (64 + 16) + 2 * 16, "pruned": conv * (64 + 16) + 2 * linear}
    assert counts["params"] == {"dense": 144 + 16 + 4, "pruned": conv + linear + 4}
    by_the_other_name = Masks({"conv.weight": masks["conv.weight"], "second.weight": masks["first.weight"]})
    assert sparse_cost(model, by_the_other_name, x) == counts


def kept_by_hooks(model: nn.Module, masks: Masks, x: Tensor) -> int:
    """MACs of what is left, from the outputs of the layers as their modules put them out."""
    total = 0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        name = f"{names[module]}.weight"
        channels = out.shape[-1] if isinstance(module, nn.Linear) else out.shape[1]
        kept = int(masks[name].sum()) if name in masks else module.weight.numel()
        total += kept * (out.numel() // channels)

    names = {module: name for name, module in model.named_modules()}
    handles = [module.register_forward_hook(count) for module in names if isinstance(module, LAYERS)]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return total


def torchvision_net(name: str) -> nn.Module:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    return torchvision.models.get_model(name, weights=None, num_classes=10)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits_cnn": (lambda: models.create("digits_cnn", 10), (1, 1, 8, 8)),
    "lenet5": (lambda: models.create("lenet5", 10), (1, 1, 28, 28)),
    "resnet20": (lambda: models.create("resnet20", 10), (1, 3, 32, 32)),
    "cifar_vgg16_bn": (lambda: models.create("cifar_vgg16_bn", 10), (1, 3, 32, 32)),
    "mobilenet_v2": (lambda: torchvision_net("mobilenet_v2"), (1, 3, 64, 64)),
    "convnext_tiny": (lambda: torchvision_net("convnext_tiny"), (1, 3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_cost_what_torch_counts_and_what_their_layers_put_out(name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    masks = random_masks(weights_of(model))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    counts = sparse_cost(model, masks, x)
    assert counts["macs"] == {"dense": counter.get_total_flops() // 2, "pruned": kept_by_hooks(model, masks, x)}
    total = sum(p.numel() for p in model.parameters())
    assert counts["params"] == {"dense": total, "pruned": total - masks.total + masks.kept}
    assert sparse_cost(model.to(memory_format=torch.channels_last), masks, x) == counts


class Attention(nn.Module):
    """Queries, keys and values from one matrix, and products of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.mT).softmax(-1) @ v)


def test_products_of_activations_stay() -> None:
    model, x = Attention().eval(), torch.randn(1, 5, 8)
    masks = random_masks(weights_of(model))
    counts = sparse_cost(model, masks, x)["macs"]
    assert counts == {"dense": 5 * (192 + 64) + 2 * 5 * 5 * 8, "pruned": 5 * masks.kept + 2 * 5 * 5 * 8}
    nothing = Masks({name: torch.zeros_like(mask) for name, mask in masks.items()})
    assert sparse_cost(model, nothing, x)["macs"]["pruned"] == 2 * 5 * 5 * 8


@pytest.mark.parametrize("grad", [False, True])
def test_attention_layers_of_torch_count_with_the_matrix_they_cut_in_three(grad: bool) -> None:
    """Also in evaluation mode, where torch would run them as one operation that its counter does not know."""
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)
    model.requires_grad_(grad)
    names = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    masks = random_masks({name: model.get_parameter(name) for name in names})
    every = sum(model.get_parameter(name).numel() for name in names)
    macs = sparse_cost(model, masks, x)["macs"]
    attention = macs["dense"] - 2 * 5 * every
    assert attention in (0, 2 * 2 * 5 * 5 * 8)  # counted where torch has a formula for the kernel it takes
    assert macs["pruned"] == attention + 2 * 5 * masks.kept
    assert torch.backends.mha.get_fastpath_enabled()


class Part(nn.Module):
    """Some filters, and of those some channels, of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight[3:, 1:4])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_part_of_a_weight_counts_with_its_part_of_the_mask(memory_format: torch.memory_format) -> None:
    model, x = Part().to(memory_format=memory_format), torch.randn(1, 3, 7, 7)
    mask = torch.rand(model.conv.weight.shape) < 0.3
    mask[:3] = True
    masks, kept = Masks({"conv.weight": mask}), int(mask[3:, 1:4].sum())
    assert sparse_cost(model, masks, x)["macs"] == {"dense": 25 * 5 * 3 * 9, "pruned": 25 * kept}


class Computed(nn.Module):
    """A weight that is standardised before it is used: its zeros do not stay zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        return F.conv2d(x, (weight - weight.mean()) / weight.std(), self.conv.bias)


def test_what_is_computed_from_a_weight_counts_in_full() -> None:
    model, x = Computed(), torch.randn(1, 3, 8, 8)
    counts = sparse_cost(model, random_masks({"conv.weight": model.conv.weight}), x)
    assert counts["macs"]["pruned"] == counts["macs"]["dense"] == 36 * 108
    assert counts["params"]["pruned"] < counts["params"]["dense"]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks, x = random_masks({"0.weight": model[0].weight}), torch.randn(2, 3, 8, 8)
    state = torch.get_rng_state()
    sparse_cost(model, masks, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_masks_of_another_model_are_refused() -> None:
    masks = Masks({"weight": torch.ones(3, 5, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"'weight'"):
        sparse_cost(nn.Linear(5, 4), masks, torch.randn(1, 5))
    with pytest.raises(ValueError, match=r"'weight'"):
        sparse_cost(nn.Sequential(nn.Linear(5, 3)), masks, torch.randn(1, 5))
