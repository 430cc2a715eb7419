"""Allocators: the merge against the sequential algorithm it replaces, and what every plan must satisfy."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_nets import NETS, chain, context_of, deep, grouped, member, plan, residual
from torch import Tensor

from srr_ext.allocators import (
    Allocation,
    AllocatorContext,
    GlobalRanking,
    available_allocators,
    decide,
    get_allocator,
    merge,
    register_allocator,
)
from srr_ext.allocators.schedule import make_schedules
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target
from srr_ext.criteria import SelectorContext, get_selector

ALLOCATORS = ("global", "srr", "uniform", "widest")
WIDTHS = (12, 20, 9, 16)


def kept_lists(kept: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: vertices.tolist() for name, vertices in kept.items()}


# --- what holds for every allocator -----------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["macs", "params", "channels"])
@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("net", NETS)
def test_target_is_met_above_the_floor_and_by_the_least_important(net: str, allocator: str, quantity: str) -> None:
    made, keep = NETS[net](), 0.7
    kept, allocation = plan(made, allocator, "l2", keep, quantity)
    cost = CostModel(made.analysis, quantity)
    assert cost.of(kept) <= keep * cost.dense
    importance = get_selector("l2")(made.groups, SelectorContext(made.model, made.inputs))
    assert len(allocation.counts) == len(made.groups)
    for group, scores, count in zip(made.groups, importance, allocation.counts, strict=True):
        vertices = kept[group.name]
        assert vertices.dtype == np.int64
        assert len(vertices) == count >= max(1, math.ceil(0.1 * group.size))
        assert np.array_equal(vertices, np.sort(np.argsort(scores.numpy(), kind="stable")[group.size - count :]))


def walked(
    values: Sequence[np.ndarray], cost: CostModel, target: Target, groups: Sequence[ChannelGroup], context: Any
) -> list[int]:
    """Counts when the first removal that meets the target ends the loop: the merge without what it gives back."""
    removed, schedules = [0] * len(groups), context.schedules

    def kept(gone: Sequence[int]) -> dict[str, np.ndarray]:
        return {g.name: s.kept(g.size - int(s.settled[k])) for g, s, k in zip(groups, schedules, gone, strict=True)}

    while cost.of(kept(removed)) > target.limit(cost.dense):
        able = [i for i, schedule in enumerate(schedules) if removed[i] < schedule.limit]
        removed[max(able, key=lambda i: (values[i][removed[i]], groups[i].size - removed[i], -i))] += 1
    return [len(vertices) for vertices in kept(removed).values()]


UNEVEN = {"deep": lambda: deep(WIDTHS), "two narrow": lambda: deep((4, 50, 3, 40)), **NETS}


@pytest.mark.parametrize("round_to", [1, 2, 3])
@pytest.mark.parametrize("keep", [0.8, 0.65, 0.55])
@pytest.mark.parametrize("net", UNEVEN)
def test_the_cost_is_as_near_the_target_as_removals_undone_bring_it(net: str, keep: float, round_to: int) -> None:
    """Never above the limit, nowhere below what the plain loop leaves, and nothing more could come back."""
    made, rng = UNEVEN[net](), np.random.default_rng([round_to, int(100 * keep)])
    cost, target = CostModel(made.analysis, "macs"), Target("macs", keep)
    context = context_of(made, round_to=round_to, floor=0.0)
    values = [rng.integers(0, 5, group.size).astype(float) for group in made.groups]
    plain = walked(values, cost, target, made.groups, context)
    counts = merge(made.groups, values, cost, target, context)
    assert all(count >= least for count, least in zip(counts, plain, strict=True))
    kept = {g.name: s.kept(n) for g, s, n in zip(made.groups, context.schedules, counts, strict=True)}
    assert cost.of(kept) <= target.limit(cost.dense)
    for group, schedule, count in zip(made.groups, context.schedules, counts, strict=True):
        gone = range(group.size - count - 1, -1, -1)
        more = [group.size - k for k in gone if schedule.settled[k] == k]
        assert not more or cost.of({**kept, group.name: schedule.kept(more[0])}) > target.limit(cost.dense)
    assert merge(made.groups, values, cost, target, context) == counts


def test_the_latest_removals_come_back_first() -> None:
    """By hand: 3a + ab + bc + 4c weights, 150 for (10, 4, 10), of which 125 may stay.

    One of a goes (143 left), one of c (135), one of b (117). 8 are free then; a vertex of c costs 7, one of a 6.
    """
    net = deep((10, 4, 10))
    cost, context, target = CostModel(net.analysis, "macs"), context_of(net, floor=0.0), Target("macs", 0.835)
    first, second, third = (np.r_[float(place), np.zeros(9)] for place in (3, 1, 2))
    assert walked([first, second, third], cost, target, net.groups, context) == [9, 3, 9]
    assert merge(net.groups, [first, second, third], cost, target, context) == [9, 3, 10]


def test_vertices_of_priority_minus_infinity_stay() -> None:
    net = deep((6, 6))
    cost, context = CostModel(net.analysis, "channels"), context_of(net, floor=0.0)
    values = [np.array([9.0, 9.0, -np.inf, 9.0, 9.0]), np.zeros(6)]
    assert merge(net.groups, values, cost, Target("channels", 0.5), context) == [4, 2]
    with pytest.raises(ValueError, match=r"keep_channels=0.4 is out of reach: with all gone .* lets go, 5 of 12"):
        merge(net.groups, values, cost, Target("channels", 0.4), context)


@pytest.mark.parametrize("selector", ["l1", "random", "fpgm"])
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_same_seed_same_plan(allocator: str, selector: str) -> None:
    plans = []
    for _ in range(2):
        kept, allocation = plan(deep(WIDTHS), allocator, selector, seed=5, node_order="random")
        plans.append(json.dumps([kept_lists(kept), allocation.counts, allocation.info]))
    assert plans[0] == plans[1]


def test_another_seed_another_random_plan() -> None:
    first, second = (kept_lists(plan(deep(WIDTHS), "uniform", "random", seed=seed)[0]) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_keeping_everything_keeps_everything(allocator: str) -> None:
    net = deep(WIDTHS)
    kept, allocation = plan(net, allocator, keep=1.0)
    assert allocation.counts == WIDTHS
    assert CostModel(net.analysis, "macs").of(kept) == CostModel(net.analysis, "macs").dense


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_targets_out_of_reach_say_what_is_within(allocator: str) -> None:
    net = deep(WIDTHS)
    floors = {g.name: np.arange(math.ceil(g.size / 4)) for g in net.groups}
    cost = CostModel(net.analysis, "macs")
    reach = cost.of(floors) / cost.dense
    with pytest.raises(ValueError, match=rf"keep_macs=0.01 is out of reach.*\({reach:.4f}\).*lower floor"):
        plan(net, allocator, keep=0.01, floor=0.25)
    kept, _ = plan(net, allocator, keep=math.ceil(reach * 1e4) / 1e4, floor=0.25)
    assert cost.of(kept) <= math.ceil(reach * 1e4) / 1e4 * cost.dense


def test_floor_is_the_decimal_as_written_and_at_least_one() -> None:
    net = deep((30, 5))
    _, allocation = plan(net, "widest", keep=0.2, quantity="channels", floor=0.1)
    assert allocation.counts[0] >= 3
    schedules = context_of(net, floor=0.1).schedules
    assert [s.size - s.limit for s in schedules] == [3, 1]
    assert [s.size - s.limit for s in context_of(net, floor=0).schedules] == [1, 1]


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("m", [2, 4, 8])
def test_round_to_gives_multiples_and_still_meets_the_target(allocator: str, m: int) -> None:
    net = deep((24, 32, 6, 30))
    kept, allocation = plan(net, allocator, keep=0.6, round_to=m)
    assert CostModel(net.analysis, "macs").of(kept) <= 0.6 * CostModel(net.analysis, "macs").dense
    assert all(
        count % m == 0 or count == group.size for count, group in zip(allocation.counts, net.groups, strict=True)
    )
    assert allocation.counts != (24, 32, 6, 30)


def test_round_to_counts_channels_of_producers_not_vertices() -> None:
    net = grouped()  # vertices of two channels each; producer "1" has two pinned channels besides
    kept, _ = plan(net, "uniform", keep=0.6, quantity="channels", round_to=4, floor=0)
    channels = [2 * len(kept["0"]), 2 + 2 * len(kept["1"])]
    assert all(c % 4 == 0 or c == full for c, full in zip(channels, (8, 10), strict=True))
    assert channels == [4, 4] or channels == [4, 8] or channels == [8, 4]


def test_layers_with_part_of_a_stream_are_never_emptied() -> None:
    net = residual()
    stem, _, *rest = net.groups[0].members
    partial = member("outer", "out", "producer", [0, 1, -1, -1, -1, -1, -1, -1])
    group = replace(net.groups[0], members=(stem, partial, *rest))
    scores = np.arange(8.0)  # vertices 0 and 1, the only ones in "outer", are the least important
    (schedule,) = make_schedules([group], [scores], floor=0.0, round_to=1)
    assert schedule.limit == 6
    assert schedule.order.tolist() == [0, 2, 3, 4, 5, 6, 1, 7]
    assert schedule.kept(2).tolist() == [1, 7]


# --- each allocator ---------------------------------------------------------------------------------------------------


def test_uniform_keeps_equal_shares() -> None:
    _, allocation = plan(deep((40, 20, 60)), "uniform", keep=0.5, quantity="channels")
    assert allocation.counts == (20, 10, 30)


def test_widest_levels_the_widths() -> None:
    _, allocation = plan(deep((40, 20, 60)), "widest", keep=0.5, quantity="channels")
    assert allocation.counts == (20, 20, 20)


def given_scores(*scores: Sequence[float]):
    return lambda groups, context: [torch.tensor(s, dtype=torch.float64) for s in scores]


def test_global_ranking_compares_across_groups() -> None:
    net = deep((4, 4))
    selector = given_scores([1, 2, 3, 4], [100, 400, 150, 350])
    kept, _ = plan(net, GlobalRanking("none"), selector, keep=0.75, quantity="channels")
    assert kept_lists(kept) == {"0": [2, 3], "1": [0, 1, 2, 3]}
    kept, allocation = plan(
        net, "global", selector, keep=0.5, quantity="channels"
    )  # by means: .4 .8 1.2 1.6, .4 1.6 .6 1.4
    assert kept_lists(kept) == {"0": [2, 3], "1": [1, 3]}
    assert allocation.info == {"normalise": "mean"}
    kept, _ = plan(net, "global", given_scores([0] * 4, [0] * 4), keep=0.75, quantity="channels")
    assert kept_lists(kept) == {"0": [1, 2, 3], "1": [1, 2, 3]}
    with pytest.raises(ValueError, match="normalise"):
        GlobalRanking("median")


@pytest.mark.parametrize(
    ("normalise", "first", "second"),
    [  # of 1 2 3 6 and -4 0 4 8, by hand
        ("none", [1, 2, 3, 6], [-4, 0, 4, 8]),
        ("mean", [1 / 3, 2 / 3, 1, 2], [-1, 0, 1, 2]),
        ("sum", [1 / 12, 2 / 12, 3 / 12, 6 / 12], [-0.25, 0, 0.25, 0.5]),
        ("l2", [v / math.sqrt(50) for v in (1, 2, 3, 6)], [v / math.sqrt(96) for v in (-4, 0, 4, 8)]),
        ("max", [1 / 6, 2 / 6, 3 / 6, 1], [-0.5, 0, 0.5, 1]),
        ("gaussian", [v / math.sqrt(3.5) for v in (-2, -1, 0, 3)], [v / math.sqrt(20) for v in (-6, -2, 2, 6)]),
    ],
)
def test_global_normalisations_by_hand(
    normalise: str, first: list[float], second: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to the merge, in the order in which vertices go, and the vertices that stay at every target."""
    seen: list[np.ndarray] = []

    def spying(groups: Any, priorities: list[np.ndarray], *rest: Any) -> list[int]:
        seen.extend(priorities)
        return merge(groups, priorities, *rest)

    monkeypatch.setitem(GlobalRanking.__call__.__globals__, "merge", spying)
    net, selector = deep((4, 4)), given_scores([1, 2, 3, 6], [-4, 0, 4, 8])
    kept, allocation = plan(net, f"global:normalise={normalise}", selector, keep=0.5, quantity="channels")
    assert seen[0] == pytest.approx([-v for v in first])
    assert seen[1] == pytest.approx([-v for v in second])
    ranked = sorted([(v, 0, i) for i, v in enumerate(first)] + [(v, 1, i) for i, v in enumerate(second)])
    least = {(group, i) for _, group, i in ranked[:4]}
    assert kept_lists(kept) == {str(g): [i for i in range(4) if (g, i) not in least] for g in (0, 1)}
    assert allocation.info == {"normalise": normalise}


@pytest.mark.parametrize("normalise", ["mean", "sum", "l2", "max", "gaussian"])
def test_global_normalisations_of_constant_scores(normalise: str) -> None:
    """No group is divided by zero: all-equal importances tie, and widths decide."""
    selector = given_scores([0.0] * 4, [0.1] * 3 if normalise == "gaussian" else [0.0] * 3)
    kept, _ = plan(deep((4, 3)), f"global:normalise={normalise}", selector, keep=0.86, quantity="channels")
    assert kept_lists(kept) == {"0": [1, 2, 3], "1": [0, 1, 2]}


def test_equal_importance_goes_by_index() -> None:
    kept, _ = plan(deep((6, 6)), "uniform", given_scores([1.0] * 6, [2.0] * 6), keep=0.5, quantity="channels")
    assert kept_lists(kept) == {"0": [3, 4, 5], "1": [3, 4, 5]}


# --- the merge --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=7), min_size=1, max_size=4), st.floats(0.3, 1.0))
def test_merge_is_the_loop_it_replaces(values: list[list[int]], keep: float) -> None:
    net = deep([len(v) for v in values])
    target, cost = Target("channels", keep), CostModel(net.analysis, "channels")
    removed = [0] * len(values)
    while cost.dense - sum(removed) > target.limit(cost.dense) and any(
        k < len(v) - 1 for k, v in zip(removed, values, strict=True)
    ):
        open_groups = [i for i, v in enumerate(values) if removed[i] < len(v) - 1]
        best = max(open_groups, key=lambda i: (values[i][removed[i]], len(values[i]) - removed[i], -i))
        removed[best] += 1
    context = context_of(net, floor=0.0)
    priorities = [np.array(v, dtype=np.float64) for v in values]
    if cost.dense - sum(removed) > target.limit(cost.dense):
        with pytest.raises(ValueError, match="out of reach"):
            merge(net.groups, priorities, cost, target, context)
    else:
        counts = merge(net.groups, priorities, cost, target, context)
        assert counts == [len(v) - k for v, k in zip(values, removed, strict=True)]


def test_priorities_must_be_numbers_and_enough() -> None:
    net = deep((4, 4))
    cost, target, context = CostModel(net.analysis, "macs"), Target("macs", 0.5), context_of(net)
    for wrong in (np.ones(2), np.full(4, math.nan), np.ones((4, 1))):
        with pytest.raises(ValueError, match="priorities of group '1' must be 3 numbers"):
            merge(net.groups, [np.ones(4), wrong], cost, target, context)


# --- users' own allocators and selectors ------------------------------------------------------------------------------


def test_bare_counts_are_accepted_rounded_up_and_checked() -> None:
    net = deep((16, 16))
    kept, allocation = plan(net, lambda *_: [5, np.int64(9)], keep=0.9, round_to=4)
    assert allocation == Allocation((8, 12))
    assert [len(v) for v in kept.values()] == [8, 12]
    with pytest.raises(ValueError, match=r"with the counts of allocator .*keep_macs|keep_macs=0.1 is out of reach"):
        plan(net, lambda *_: [16, 16], keep=0.1)
    for wrong in ([1, 16], [17, 16]):
        with pytest.raises(ValueError, match=r"must keep 2 \(the floor\) to 16 vertices of '0'"):
            plan(net, lambda *_, wrong=wrong: wrong)
    with pytest.raises(ValueError, match="must return 2 counts, got 1"):
        plan(net, lambda *_: [8])
    with pytest.raises(TypeError, match=r"must return integers, got 8\.0"):
        plan(net, lambda *_: [8.0, 8.0])


def test_allocators_get_what_they_are_promised() -> None:
    net, seen = deep((8, 8)), []

    def own(
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
    ) -> Allocation:
        seen.extend([groups, importance, context])
        assert cost.quantity == target.quantity == "params"
        assert context.model is net.model
        assert context.example_inputs is net.inputs
        return Allocation((4, 4), {"why": "half"})

    _, allocation = plan(net, own, keep=0.9, quantity="params", gamma=0.3, seed=7)
    assert seen[0] == net.groups
    assert [s.dtype for s in seen[1]] == [torch.float64] * 2
    assert (seen[2].seed, seen[2].gamma, seen[2].node_order) == (7, 0.3, "selector")
    assert allocation.info == {"why": "half"}


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([torch.ones(8)], ValueError, "must score 2 groups, got 1"),
        ([torch.ones(8), torch.ones(7)], ValueError, r"group '1' with shape \[8\], got \[7\]"),
        ([torch.ones(8), torch.full((8,), math.nan)], ValueError, "group '1' with infinity or NaN"),
        ([[1.0] * 8, [1.0] * 8], TypeError, "must return tensors, got list"),
    ],
)
def test_selectors_are_checked(scores: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(deep((8, 8)), "uniform", lambda groups, context: scores)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"floor": 1.0}, ValueError, r"floor.*\[0, 1\)"),
        ({"floor": "a"}, TypeError, "floor"),
        ({"round_to": 0}, ValueError, "round_to must be at least 1"),
        ({"round_to": 2.0}, TypeError, "round_to must be an integer"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"node_order": "best"}, ValueError, "selector, random, degree"),
        ({"allocator": "srr", "gamma": -1.0}, ValueError, "gamma"),
        ({"allocator": "srr", "gamma": "automatic"}, TypeError, "gamma"),
        ({"allocator": "unifrom"}, ValueError, "nearest: uniform"),
        ({"selector": "l3"}, ValueError, "no selector is called 'l3'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(deep((8, 8)), **options)


def test_nothing_to_prune_is_refused_with_the_reasons() -> None:
    net = residual()
    with pytest.raises(ValueError, match=r"no channels of the model may go: 1 residual streams \(streams='prune'"):
        decide(net.analysis, (), net.model, net.inputs, "uniform", "l1", Target("macs", 0.5))


def test_names() -> None:
    assert set(ALLOCATORS) <= set(available_allocators())
    own = get_allocator("widest")
    assert get_allocator(own) is own
    with pytest.raises(ValueError, match="'srr' is taken"):
        register_allocator("srr")(own)


def test_planning_leaves_the_model_as_it_is() -> None:
    net = chain()
    net.model.train()
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    for allocator in ALLOCATORS:
        plan(net, allocator, keep=0.7)
    assert net.model.training
    assert all(torch.equal(v, before[k]) for k, v in net.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.model.parameters())
