"""Plans for Torch-Pruning: its pruners remove the very same channels, and what they see otherwise is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import zoo
from torch import nn

import srr_ext
from srr_ext import models

tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
from srr_ext.adapters.torch_pruning import SRRImportance, pruning_ratio_dict  # noqa: E402

ZOO = zoo.load()
IMAGES = {"digits_cnn": (1, 8), "lenet5": (1, 28), "densenet121": (3, 64), "googlenet": (3, 64)}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    channels, size = IMAGES.get(name, (3, 32))
    model = models.create(name, 10, in_channels=channels, image_size=size)
    if name == "vgg11_bn":  # its own classifier has 120 million weights behind the same flattening
        model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    with torch.no_grad():
        zoo.randomise(model)
    return model.eval(), torch.randn(2, channels, size, size)


def prune(model: nn.Module, example: torch.Tensor, plan: srr_ext.PruningPlan, **options: Any) -> nn.Module:
    """Return a copy that Torch-Pruning has pruned by the plan."""
    selector = options.pop("selector", "l1")
    twin = copy.deepcopy(model)
    importance = SRRImportance(twin, plan, example, selector=selector)
    options.setdefault("pruning_ratio_dict", pruning_ratio_dict(twin, plan))
    tp.pruner.BasePruner(twin, example, importance, **options).step()
    return twin


def assert_same(found: nn.Module, wanted: nn.Module, example: torch.Tensor) -> None:
    state = wanted.state_dict()
    assert found.state_dict().keys() == state.keys()
    for name, value in found.state_dict().items():
        assert value.shape == state[name].shape, name
        assert torch.equal(value, state[name]), name
    torch.testing.assert_close(found(example), wanted(example), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits_cnn", {"allocator": "srr"}),
        ("lenet5", {"allocator": "global", "selector": "fpgm"}),
        ("resnet20b", {"allocator": "uniform", "streams": "prune"}),
        pytest.param("resnet18", {"allocator": "srr"}, marks=pytest.mark.slow),
        pytest.param("resnet18", {"allocator": "uniform", "streams": "prune"}, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", {"allocator": "uniform"}, marks=pytest.mark.slow),
        pytest.param("cifar_vgg13_bn", {"allocator": "uniform", "round_to": 8}, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", {"allocator": "uniform", "streams": "prune"}, marks=pytest.mark.slow),
        pytest.param("densenet121", {"allocator": "uniform"}, marks=pytest.mark.slow),
        pytest.param("googlenet", {"allocator": "uniform"}, marks=pytest.mark.slow),
    ],
)
def test_the_very_same_channels_go(name: str, options: dict[str, Any]) -> None:
    """Tensors equal those of `apply_plan` bit for bit, and the outputs to 1e-6."""
    model, example = build(name)
    plan = srr_ext.make_plan(model, example, keep_macs=0.6, **options)
    assert any(layer.out is not None for layer in plan.layers.values())
    small = srr_ext.apply_plan(model, plan, example)
    assert_same(prune(model, example, plan, selector=options.get("selector", "l1")), small, example)


def test_ratios_give_the_counts_of_the_plan() -> None:
    """Every layer with weights has one, and Torch-Pruning's own rounding of it leaves the plan's channels."""
    model, example = build("digits_cnn")
    for keep in (0.3, 0.5, 0.77, 1.0):
        plan = srr_ext.make_plan(model, example, keep_macs=keep)
        ratios = pruning_ratio_dict(model, plan)
        layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        assert ratios.keys() == set(layers.values())
        for name, module in layers.items():
            width = plan.widths[name][0]
            kept = (plan.layers[name].out if name in plan.layers else None) or range(width or 0)
            assert width is not None and int(width * (1 - ratios[module])) == len(kept)
    from srr_ext.adapters.torch_pruning import _ratio

    for width in range(1, 300):
        for kept in range(1, width + 1):
            assert int(width * (1 - _ratio(width, kept))) == kept and abs(_ratio(width, kept) - 1 + kept / width) < 1e-9


def test_the_order_is_the_selectors() -> None:
    """Within a layer that makes its channels alone: what the plan takes first, and each part by its L1 norm."""
    model, example = build("digits_cnn")
    plan = srr_ext.make_plan(model, example, keep_macs=0.5)
    importance = SRRImportance(model, plan, example)
    graph = tp.DependencyGraph().build_dependency(model, example)
    checked = 0
    for name, layer in plan.layers.items():
        module = model.get_submodule(name)
        if not isinstance(module, nn.Conv2d) or layer.out is None:
            continue
        group = graph.get_pruning_group(module, tp.prune_conv_out_channels, list(range(module.out_channels)))
        scores = importance(group)
        assert scores is not None and scores.shape == (module.out_channels,) and len(scores.unique()) == len(scores)
        norms = module.weight.detach().double().abs().flatten(1).sum(1)
        stays = torch.zeros(len(norms), dtype=torch.bool)
        stays[list(layer.out)] = True
        assert bool((scores[stays] > 1).all()) and bool((scores[~stays] < 1).all())
        wanted = sorted(range(len(norms)), key=lambda i, s=stays, n=norms: (bool(s[i]), float(n[i])))
        assert scores.argsort().tolist() == wanted
        checked += 1
    assert checked >= 2


def test_global_pruning_by_the_plans_share_is_the_plan() -> None:
    model, example = build("digits_cnn")
    plan = srr_ext.make_plan(model, example, keep_macs=0.5)
    cut = [group for group in plan.groups.values() if group["kept"] < group["size"]]
    share = 1 - (sum(group["kept"] for group in cut) + 0.5) / sum(group["size"] for group in cut)
    found = prune(model, example, plan, pruning_ratio_dict=None, global_pruning=True, pruning_ratio=share)
    assert_same(found, srr_ext.apply_plan(model, plan, example), example)


@pytest.mark.parametrize("name", ["flatten_nhwc", "shuffle_dynamic", "split_literal", "pixel_shuffle"])
def test_what_torch_pruning_ties_otherwise_is_refused(name: str) -> None:
    """Channels that it would take from the wrong places, or could not find at all."""
    model, example = ZOO[name].build()
    plan = srr_ext.make_plan(model, example, keep_macs=0.6, allocator="uniform")
    with pytest.raises(ValueError, match="Torch-Pruning ties channels of these together"):
        prune(model.eval(), example, plan)


def test_grouped_convolutions_other_models_and_second_steps_are_refused() -> None:
    example = torch.randn(1, 3, 8, 8)
    grouped = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3, groups=32), nn.Conv2d(64, 4, 1), nn.Flatten())
    plan = srr_ext.make_plan(grouped, example, keep_macs=0.6, allocator="uniform")
    for make in (lambda: SRRImportance(grouped, plan, example), lambda: pruning_ratio_dict(grouped, plan)):
        with pytest.raises(ValueError, match="layer '1' is a grouped convolution"):
            make()
    model, digits = build("digits_cnn")
    with pytest.raises(ValueError, match="plan: does not fit this model: layer"):
        SRRImportance(model, plan, digits)
    plan = srr_ext.make_plan(model, digits, keep_macs=0.7)
    importance = SRRImportance(model, plan, digits)
    pruner = tp.pruner.BasePruner(
        model, digits, importance, pruning_ratio_dict=pruning_ratio_dict(model, plan), iterative_steps=2
    )
    pruner.step()
    with pytest.raises(ValueError, match="anew for every step of iterative pruning"):
        pruner.step()
