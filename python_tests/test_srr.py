"""Structural redundancy reduction: the loop of the paper, and the automatic threshold."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from graph_cases import graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_nets import Net, context_of, deep, plan, residual
from shared_data import SHARED

from srr_ext import models, reference
from srr_ext.allocators import AllocatorContext, StructuralRedundancy, decide, smallest_gamma
from srr_ext.allocators import gamma as gamma_module
from srr_ext.allocators.gamma import Removals, redundancy_trajectories
from srr_ext.channels import analyze_channels
from srr_ext.cost import CostModel, Target
from srr_ext.criteria import SelectorContext, get_selector
from srr_ext.graph import complete_gamma, group_graph_levels, group_graphs, group_matrices, select_groups
from srr_ext.ops import FilterGraphs, trajectories
from srr_ext.redundancy import measure

WIDTHS = (12, 20, 9, 16)


def naive_srr(
    net: Net, gamma: float, target: Target, orders: Sequence[Sequence[int]], least: Sequence[int], distance: str
) -> list[int]:
    """Take the most redundant group, remove one vertex, measure again: the loop of the paper, word for word.

    Then put back, the latest first, what the last vertex took too much.
    """
    matrices = group_matrices(net.groups, net.model)
    cost = CostModel(net.analysis, target.quantity)
    left = [list(order) for order in orders]

    def redundancy(i: int) -> float:
        matrix = matrices[i][sorted(left[i])]
        graph = reference.filter_graphs([matrix], gamma if distance == "rms" else gamma / math.sqrt(matrix.shape[1]))
        cover = (reference.covering(graph, 1).item() + reference.covering(graph, 2).item()) / 2
        return round(len(left[i]) / (0.35 * reference.components(graph).item() + 0.65 * cover), 12)

    def too_much() -> bool:
        return cost.of({g.name: np.array(v) for g, v in zip(net.groups, left, strict=True)}) > target.limit(cost.dense)

    gone: list[tuple[int, int]] = []
    while too_much():
        candidates = [i for i in range(len(left)) if len(left[i]) > least[i]]
        best = max(candidates, key=lambda i: (redundancy(i), len(left[i]), -i))
        gone.append((best, left[best].pop(0)))
    needed = set()
    for i, vertex in reversed(gone):
        left[i].insert(0, vertex)
        if i in needed or too_much():
            left[i].pop(0)
            needed.add(i)
    return [len(v) for v in left]


@pytest.mark.parametrize(
    ("distance", "gamma"), [("rms", 0.15), ("rms", 0.3), ("rms", 0.5), ("euclidean", 0.9), ("euclidean", 1.3)]
)
@pytest.mark.parametrize("seed", range(3))
def test_srr_is_the_sequential_algorithm(seed: int, distance: str, gamma: float) -> None:
    net = deep((8, 12, 6), seed=seed)
    target = Target("macs", 0.4)
    importance = get_selector("l1")(net.groups, SelectorContext(net.model, net.inputs))
    orders = [np.argsort(s.numpy(), kind="stable").tolist() for s in importance]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _, allocation = plan(net, "srr", keep=target.keep, gamma=gamma, distance=distance)
    least = [math.ceil(0.1 * g.size) for g in net.groups]
    assert list(allocation.counts) == naive_srr(net, gamma, target, orders, least, distance)


@pytest.mark.parametrize("order", ["selector", "random", "degree"])
def test_automatic_gamma_makes_every_removal_at_r_above_one(order: str) -> None:
    net = deep(WIDTHS, duplicates=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, allocation = plan(net, "srr", keep=0.5, node_order=order)
    assert allocation.info["removals_at_r_le_1"] == 0
    assert allocation.info["removals"] == sum(WIDTHS) - sum(allocation.counts)
    assert allocation.info["gamma_chosen"] == "auto"


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_automatic_gamma_is_the_smallest_to_a_thousandth(seed: int, round_to: int) -> None:
    net = deep((16, 24, 8), seed=seed)
    _, allocation = plan(net, "srr", keep=0.5, round_to=round_to)
    gamma = allocation.info["gamma"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan(net, "srr", keep=0.5, round_to=round_to, gamma=gamma)[1].counts == allocation.counts
    with pytest.warns(UserWarning, match=r"removals were made where no filter is near another \(R = 1\)"):
        _, tighter = plan(net, "srr", keep=0.5, round_to=round_to, gamma=gamma * (1 - 1.1e-3))
    assert tighter.info["removals_at_r_le_1"] > 0
    assert tighter.info["gamma_chosen"] == "given"


def test_smallest_gamma_by_hand() -> None:
    """Four unit filters in a plane: removals above R = 1 end with the nearest pair that is still whole."""
    net = deep((4,))
    angles = torch.tensor([0.0, 0.3, 0.5, 2.0])  # nearest pairs of what is left: 0.2, 0.2, then 1.5
    net.model[0].weight.data = torch.zeros(4, 3, 1, 1)
    net.model[0].weight.data[:, 0, 0, 0] = angles.cos() * torch.tensor([1.0, 2.0, 3.0, 4.0])  # so that they go in order
    net.model[0].weight.data[:, 1, 0, 0] = angles.sin() * torch.tensor([1.0, 2.0, 3.0, 4.0])
    cost, matrices = CostModel(net.analysis, "channels"), group_matrices(net.groups, net.model)
    for distance, divisor in (("rms", math.sqrt(3)), ("euclidean", 1.0)):
        context = context_of(net, floor=0.0, distance=distance)
        for keep, nearest in ((0.75, 0.2), (0.5, 0.2), (0.25, 1.5)):
            gamma = smallest_gamma(net.groups, matrices, cost, Target("channels", keep), context)
            assert gamma == pytest.approx(2 * math.sin(nearest / 2) / divisor, rel=1e-3)


def bisected_gamma(net: Net, cost: CostModel, target: Target, context: AllocatorContext) -> float:
    """Halve the threshold that joins all as long as the target is met at R > 1, then bisect: each time from scratch."""
    matrices = group_matrices(net.groups, net.model)

    def is_met(gamma: float) -> bool:
        kept = {}
        values = redundancy_trajectories(net.groups, group_graphs(net.groups, matrices, gamma), context)
        for group, schedule, redundancy in zip(net.groups, context.schedules, values, strict=True):
            above_one = [*(redundancy > 1 + 1e-9), False].index(False)
            kept[group.name] = schedule.kept(group.size - int(schedule.settled[above_one]))
        return cost.of(kept) <= target.limit(cost.dense)

    high = complete_gamma(net.groups, matrices)
    halvings = 0
    while is_met(high / 2) and halvings < 20:
        high, halvings = high / 2, halvings + 1
    if halvings == 20:
        return high
    low = high / 2
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if is_met(middle) else (middle, high)
    return high


@pytest.mark.parametrize("ahead", [1, 5000, gamma_module.BYTES_AHEAD])
@pytest.mark.parametrize("order", ["selector", "random", "degree"])
@pytest.mark.parametrize("seed", range(4))
def test_smallest_gamma_is_that_of_plain_bisection(
    seed: int, order: str, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many thresholds a pass over the distances tries, which is as many as fit."""
    levels: list[list[FilterGraphs]] = []
    monkeypatch.setattr(gamma_module, "BYTES_AHEAD", ahead)
    monkeypatch.setattr(
        gamma_module, "group_graph_levels", lambda *args: levels.append(group_graph_levels(*args)) or levels[-1]
    )
    net = deep(((16, 24, 70), (9, 130), (40,), (12, 12, 12))[seed], seed=seed, duplicates=0.2 * seed)
    options = {"node_order": order, "round_to": (1, 4)[seed % 2], "floor": (0.1, 0.3)[seed // 2]}
    context, cost = context_of(net, **options), CostModel(net.analysis, "macs")
    for keep in (0.9, 0.5, 0.4):
        target = Target("macs", keep)
        got = smallest_gamma(net.groups, group_matrices(net.groups, net.model), cost, target, context)
        assert got == bisected_gamma(net, cost, target, context)
    for tried in levels:
        assert len(tried) == 1 or sum(graphs.words.nbytes for graphs in tried) <= ahead
    assert max(len(tried) for tried in levels) == (1 if ahead == 1 else 15 if ahead > 5000 else ANY)


@pytest.mark.parametrize("order", ["selector", "degree"])
def test_smallest_gamma_of_equal_filters_is_that_of_plain_bisection(order: str) -> None:
    net = deep((8, 8))
    for conv in net.model[:2]:
        conv.weight.data[:] = conv.weight.data[:1]
    context, cost, target = context_of(net, node_order=order), CostModel(net.analysis, "macs"), Target("macs", 0.5)
    got = smallest_gamma(net.groups, group_matrices(net.groups, net.model), cost, target, context)
    assert got == bisected_gamma(net, cost, target, context) < 1e-5


@settings(max_examples=40, deadline=None)
@given(graphs(max_n=140), st.integers(0, 1000))
def test_removals_until_no_edge_is_left(packed: FilterGraphs, seed: int) -> None:
    """Trajectories leave 1 for good with the last edge, and bit rows say when that is."""
    if not packed.n_filters or 0 in packed.n_filters:
        return
    random = np.random.default_rng(seed)
    orders = [random.permutation(n) for n in packed.n_filters]
    empty = FilterGraphs(torch.zeros_like(packed.words), packed.n_filters)
    counts = Removals.of(orders, packed.words.device).until_edgeless([packed, empty])
    values = trajectories(packed, [torch.from_numpy(order) for order in orders])
    assert counts.tolist() == [[int((v > gamma_module.JUST_ABOVE_ONE).sum()) for v in values], [0] * len(orders)]
    for count, value in zip(counts[0].tolist(), values, strict=True):
        assert bool((value[:count] > gamma_module.JUST_ABOVE_ONE).all())


def test_equal_filters_need_next_to_no_gamma() -> None:
    net = deep((8, 8))
    for conv in net.model[:2]:
        conv.weight.data[:] = conv.weight.data[:1]
    _, allocation = plan(net, "srr", keep=0.5)
    assert 0 < allocation.info["gamma"] < 1e-5


def test_zero_filters_cannot_be_joined_and_the_refusal_says_how_far_it_goes() -> None:
    net = deep((8, 8))
    for conv in net.model[:2]:
        conv.weight.data[2:] = 0  # they go first, while the two others are still joined
    assert plan(net, "srr", keep=0.5)[1].info["groups"]["0"]["zero_filters"] == 6
    for conv in net.model[:2]:
        conv.weight.data[:] = 0
    with pytest.raises(ValueError, match=r"even with all filters joined \(gamma=.*\(1.0000\) are left"):
        plan(net, "srr", keep=0.5)


def test_complete_graphs_make_srr_cut_the_widest() -> None:
    net = deep(WIDTHS)
    _, srr = plan(net, "srr", keep=0.4, gamma=2.0)
    assert srr.counts == plan(net, "widest", keep=0.4)[1].counts
    assert all(g["redundancy"][0] == pytest.approx(g["n_filters"]) for g in srr.info["groups"].values())


def test_info_describes_before_and_after() -> None:
    net = residual()
    kept, allocation = plan(net, "srr", keep=0.6)
    info = allocation.info
    assert json.loads(json.dumps(info)) == info
    matrices = group_matrices(net.groups, net.model)
    after = reference.filter_graphs([matrices[1][kept["inner"]]], info["gamma"])
    n, k = len(kept["inner"]), reference.components(after).item()
    cover = (reference.covering(after, 1).item() + reference.covering(after, 2).item()) / 2
    assert info["groups"]["inner"]["redundancy"][1] == pytest.approx(n / (0.35 * k + 0.65 * cover))
    assert info["groups"]["inner"]["edge_density"][1] == pytest.approx(after.edge_density().item())
    assert info["groups"]["stem"]["fan_in"] == 27 + 108


def test_weight_of_components_is_an_option() -> None:
    net = deep(WIDTHS, duplicates=0.6)
    for weight in (0.0, 1.0):
        _, allocation = plan(net, StructuralRedundancy(component_weight=weight), keep=0.5)
        assert allocation.info["removals_at_r_le_1"] == 0
    with pytest.raises(ValueError, match="component_weight"):
        StructuralRedundancy(1.5)


@pytest.mark.parametrize("order", ["selector", "random", "degree"])
def test_trajectories_begin_with_the_whole_graph_whatever_the_order(order: str) -> None:
    net = deep(WIDTHS, duplicates=0.5)
    matrices = group_matrices(net.groups, net.model)
    graphs = group_graphs(net.groups, matrices, 0.25)
    trajectories = redundancy_trajectories(net.groups, graphs, context_of(net, node_order=order, seed=3))
    whole = measure(net.groups, matrices, graphs)
    assert [t[0] for t in trajectories] == pytest.approx([group.redundancy for group in whole])
    assert [len(t) for t in trajectories] == [schedule.limit for schedule in context_of(net).schedules]


def test_trajectories_in_the_selectors_order_are_those_of_the_filters_that_stay() -> None:
    net = deep(WIDTHS, duplicates=0.5)
    context, matrices = context_of(net), group_matrices(net.groups, net.model)
    graphs = group_graphs(net.groups, matrices, 0.25)
    trajectories = redundancy_trajectories(net.groups, graphs, context)
    for removed in range(min(WIDTHS) - 1):
        kept = [schedule.kept(schedule.size - removed) for schedule in context.schedules]
        left = measure(net.groups, matrices, graphs.subgraphs(kept))
        assert [t[removed] for t in trajectories] == pytest.approx([group.redundancy for group in left])


def test_trained_resnet56_at_half_the_macs() -> None:
    """Trained layers differ in redundancy, and streams are not taken for redundant because they are long."""
    found = sorted((SHARED / "weights").glob("resnet56-*.th"))
    if not found:
        pytest.skip(f"no checkpoints in {SHARED / 'weights'}")
    model, inputs, target = (
        models.create("resnet56", weights=str(found[0])),
        torch.zeros(1, 3, 32, 32),
        Target("macs", 0.5),
    )
    analysis = analyze_channels(model, inputs)
    counts = {}
    for streams in ("keep", "prune"):
        groups = select_groups(analysis, streams)
        kept, allocation = decide(analysis, groups, model, inputs, "srr", "l1", target)
        assert 0.06 < allocation.info["gamma"] < 0.08
        assert allocation.info["removals_at_r_le_1"] == 0
        counts[streams] = {name: len(vertices) for name, vertices in kept.items()}
    assert len(set(counts["keep"].values())) > 8
    assert counts["prune"]["conv1"] == 16
    assert counts["keep"].items() <= counts["prune"].items()
