"""Networks and images at the edge: weights that are not finite, zero, or all alike; one filter, one image, no image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import srr_ext
from srr_ext.allocators import available_allocators

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
ALLOCATORS = sorted({*available_allocators()} - {"dict", "sensitivity"})  # which want numbers, and images


def network() -> nn.Sequential:
    """Return three convolutions, the middle one of a single filter."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 1, 3, padding=1), nn.ReLU(),
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    ).eval()  # fmt: skip


def conv(model: nn.Sequential, place: int) -> Tensor:
    weight = model[place].weight
    assert isinstance(weight, Tensor)
    return weight.data


def zero_filters(model: nn.Sequential) -> None:
    conv(model, 0)[::2] = 0


def zero_layer(model: nn.Sequential) -> None:
    conv(model, 5).zero_()


def constant_layer(model: nn.Sequential) -> None:
    conv(model, 0).fill_(0.5)
    conv(model, 5).fill_(-1e-30)


def huge_and_tiny(model: nn.Sequential) -> None:
    conv(model, 0)[0] *= 1e30
    conv(model, 0)[1] *= 1e-40


@pytest.mark.filterwarnings("ignore")  # of allocators that say what they cannot do with such weights
@pytest.mark.parametrize("spoil", [zero_filters, zero_layer, constant_layer, huge_and_tiny])
@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("selector", ["l1", "fpgm"])
def test_degenerate_weights_give_an_exact_plan_or_a_refusal(
    allocator: str, selector: str, spoil: Callable[[nn.Sequential], None]
) -> None:
    """Never a traceback of another kind, and never a plan above the target; the same plan twice."""
    model = network()
    spoil(model)
    try:
        plan = srr_ext.make_plan(model, EXAMPLE, allocator=allocator, selector=selector, keep_params=0.6)
    except ValueError as error:
        assert len(str(error)) > 20 and allocator not in ("uniform", "widest", "global"), str(error)
        return
    assert plan.cost["params"]["pruned"] <= 0.6 * plan.cost["params"]["dense"]
    assert srr_ext.verify(model, plan, EXAMPLE) <= 1e-9
    again = srr_ext.make_plan(model, EXAMPLE, allocator=allocator, selector=selector, keep_params=0.6)
    assert again.to_json() == plan.to_json()


@pytest.mark.parametrize("spoil", [zero_filters, zero_layer, constant_layer])
def test_degenerate_weights_are_analyzed(spoil: Callable[[nn.Sequential], None]) -> None:
    """Redundancy stays in [1, N]; a layer of copies of one filter is one filter N times."""
    model = network()
    spoil(model)
    for group in srr_ext.analyze(model, EXAMPLE, gamma=0.1).groups:
        assert 1 <= group.redundancy <= group.n_filters
        if spoil is constant_layer and group.n_filters > 1:
            assert group.components == 1 and group.redundancy == pytest.approx(group.n_filters)
        if spoil is zero_layer and group.n_filters == 16:
            assert group.components == 16 and group.redundancy == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("allocator", ["srr", "uniform", "global", "afie", "li2016_a"])
def test_weights_that_are_not_finite_are_refused(allocator: str, value: float) -> None:
    """Whichever method looks at them; no plan is made of comparisons with NaN."""
    model = network()
    conv(model, 0)[3, 0, 1, 1] = value
    with pytest.raises(ValueError, match="group '0' with infinity or NaN: check the weights"):
        srr_ext.make_plan(model, EXAMPLE, allocator=allocator, keep_params=0.6)
    with pytest.raises(ValueError, match="group '0' must be finite"):
        srr_ext.analyze(model, EXAMPLE, gamma=0.1)


def test_a_single_filter_always_stays() -> None:
    plan = srr_ext.make_plan(network(), EXAMPLE, allocator="uniform", keep_params=0.2, floor=0.0)
    small = srr_ext.apply_plan(network(), plan, EXAMPLE)
    assert small[3].out_channels == 1 and small[0].out_channels >= 1 and small[5].out_channels >= 1


@pytest.mark.parametrize("selector", ["taylor2019", "taylor2016"])
def test_batches_of_one_image_and_of_none(selector: str) -> None:
    """One image is enough to score by; none is refused."""
    image, label = EXAMPLE[:1], torch.tensor([2])
    options = {"allocator": "uniform", "selector": selector, "keep_params": 0.6}
    plan = srr_ext.make_plan(network(), EXAMPLE, data=[(image, label)], **options)
    assert srr_ext.verify(network(), plan, EXAMPLE) <= 1e-9
    with pytest.raises(ValueError, match="data"):
        srr_ext.make_plan(network(), EXAMPLE, data=[], **options)
