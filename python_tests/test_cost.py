"""Costs are exact: against torch's own counter, against sizes of real layers, and step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planning_nets import NETS, Net, chain, grouped, residual
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from srr_ext.cost import CostModel, Target

QUANTITIES = ("macs", "params", "channels")


def flops(model: nn.Module, inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NETS)
def test_dense_cost_is_what_torch_counts(name: str) -> None:
    net = NETS[name]()
    assert 2 * CostModel(net.analysis, "macs").dense == flops(net.model, net.inputs)
    assert CostModel(net.analysis, "params").dense == sum(p.numel() for p in net.model.parameters())


def test_channels_count_each_producer_once_pinned_channels_included() -> None:
    assert CostModel(chain().analysis, "channels").dense == 6 + 8
    assert CostModel(residual().analysis, "channels").dense == 8 + 8 + 12
    cost = CostModel(grouped().analysis, "channels")
    assert cost.dense == 8 + 10
    assert cost.of({"1": np.array([2])}) == 8 + 4


@pytest.mark.parametrize(("a", "b"), [(6, 8), (3, 8), (1, 1), (5, 2)])
def test_pruned_chain_costs_what_a_chain_of_that_width_costs(a: int, b: int) -> None:
    wide, narrow = chain(), chain((a, b))
    kept = {"0": np.arange(a), "3": np.arange(b)}
    for quantity in QUANTITIES:
        assert CostModel(wide.analysis, quantity).of(kept) == CostModel(narrow.analysis, quantity).dense


def test_grouped_and_depthwise_layers_shrink_like_real_ones() -> None:
    net = grouped()
    kept = {"0": np.array([1, 3]), "1": np.array([0])}  # 4 channels in two groups; 4 of 10, pinned ones included
    small = nn.Sequential(
        nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    assert 2 * CostModel(net.analysis, "macs").of(kept) == flops(small, net.inputs)
    assert CostModel(net.analysis, "params").of(kept) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", NETS)
def test_walker_equals_recomputation_after_every_step(name: str, quantity: str) -> None:
    net: Net = NETS[name]()
    cost = CostModel(net.analysis, quantity)
    for seed in range(3):
        walker = cost.walker(net.groups)
        kept = {group.name: np.arange(group.size) for group in net.groups}
        steps = [(i, v) for i, group in enumerate(net.groups) for v in range(group.size)]
        assert walker.current == cost.dense == cost.of({}) == cost.of(kept)
        for i, v in np.random.default_rng(seed).permutation(steps).tolist():
            kept[net.groups[i].name] = np.setdiff1d(kept[net.groups[i].name], [v])
            before = walker.current
            assert walker.remove(i, v) == walker.current == cost.of(kept) <= before


def test_fixed_macs_stay() -> None:
    net = chain()
    moved = type(net.analysis)(net.groups, net.analysis.layers, fixed_macs=1000, total_params=net.analysis.total_params)
    plain, fixed = CostModel(net.analysis, "macs"), CostModel(moved, "macs")
    kept = {"0": np.array([0])}
    assert fixed.dense - plain.dense == fixed.of(kept) - plain.of(kept) == 1000


def test_wrong_vertices_are_refused() -> None:
    cost = CostModel(chain().analysis, "macs")
    with pytest.raises(ValueError, match="'nope'"):
        cost.of({"nope": np.array([0])})
    with pytest.raises(ValueError, match=r"\[0, 6\)"):
        cost.of({"0": np.array([6])})
    with pytest.raises(ValueError, match="repeated"):
        cost.of({"0": np.array([1, 1])})
    walker = cost.walker(chain().groups)
    walker.remove(0, 2)
    with pytest.raises(ValueError, match="removed already"):
        walker.remove(0, 2)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_target_out_of_range_names_its_option(quantity: str, keep: float) -> None:
    with pytest.raises(ValueError, match=f"keep_{quantity}"):
        Target(quantity, keep)


def test_target_of_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"keep_macs.*str"):
        Target("macs", "0.5")
    with pytest.raises(TypeError, match="bool"):
        Target("params", True)
    with pytest.raises(ValueError, match="macs, params, channels"):
        Target("flops", 0.5)


def test_limit_reads_the_share_as_the_decimal_it_is_written_as() -> None:
    assert [Target("macs", k / 10).limit(10) for k in range(1, 11)] == list(range(1, 11))
    assert Target("macs", np.float64(0.7)).limit(10) == 7
    assert Target("macs", 0.5).limit(7) == 3
    assert Target("macs", 1).limit(10**18 + 1) == 10**18 + 1


def test_exactly_one_target_is_chosen() -> None:
    assert Target.choose(keep_params=0.3) == Target("params", 0.3)
    with pytest.raises(ValueError, match="got none"):
        Target.choose()
    with pytest.raises(ValueError, match=r"keep_macs=0.5, keep_channels=0.2"):
        Target.choose(keep_macs=0.5, keep_channels=0.2)
