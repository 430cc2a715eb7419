"""From an allocator, a selector and a target to the vertices that every group keeps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from srr_ext.allocators.base import Allocation, Allocator, AllocatorContext, NodeOrder, get_allocator
from srr_ext.allocators.merge import unreachable
from srr_ext.allocators.schedule import Floor, Schedule, make_schedules
from srr_ext.calibration import Calibration
from srr_ext.channels.records import ChannelAnalysis, ChannelGroup
from srr_ext.cost import CostModel, Counted, Quantity, Target
from srr_ext.criteria import CountedSelector, Selector, SelectorContext, get_selector
from srr_ext.graph import Distance, check_distance
from srr_ext.progress import Progress
from srr_ext.transfers import to_host

DEFAULT_FLOOR = 0.1
NEAR_ENOUGH = 0.1  # what a measured target may be missed by: the tenth that keep_latency promises


def decide(
    analysis: ChannelAnalysis,
    groups: Sequence[ChannelGroup],
    model: nn.Module,
    example_inputs: Any,
    allocator: str | Allocator,
    selector: str | Selector,
    target: Target,
    *,
    gamma: float | Literal["auto"] = "auto",
    distance: Distance = "rms",
    floor: Floor = DEFAULT_FLOOR,
    round_to: int = 1,
    node_order: NodeOrder = "selector",
    seed: int = 0,
    data: Calibration | None = None,
    progress: Progress | None = None,
    cost: CostModel | None = None,
) -> tuple[dict[str, np.ndarray], Allocation]:
    """Decide which vertices of each group stay.

    Parameters
    ----------
    analysis : ChannelAnalysis
        The model's channels.
    groups : sequence of ChannelGroup
        Those of its groups that may be pruned, see `srr_ext.graph.select_groups`.
    model : nn.Module
        The dense model; it is left as it is.
    example_inputs : Tensor, tuple or dict
        Arguments of one forward pass.
    allocator : str or Allocator
        How many vertices each group loses: a name or a callable.
    selector : str or Selector
        Which vertices go first: a name or a callable.
    target : Target
        What has to be reached.
    gamma : float or "auto", default "auto"
        Distance threshold of filter graphs, for allocators that use them.
    distance : {"rms", "euclidean"}, default "rms"
        What is compared with it, see `srr_ext.graph.group_graphs`.
    floor : float, default 0.1
        Share of every group that stays whatever the target, in [0, 1); one vertex always stays.
    round_to : int, default 1
        Producers keep a multiple of this many channels, or all of them.
    node_order : {"selector", "random", "degree"}, default "selector"
        Order in which redundancy trajectories remove vertices: the selector's, so that they describe what really
        happens; at random; or by number of neighbours in the full graph, most first. The vertices that go are the
        selector's least important ones in any case.
    seed : int, default 0
        Seed of everything random. Same inputs, same seed, same answer.
    data : Calibration, optional
        For methods that look at images.
    progress : Progress, optional
        Where long stages report; silent by default.
    cost : CostModel, optional
        Counts what the target is about; needed for latency, see `srr_ext.latency_table.LatencyCost`. If a plan misses
        the target although the model says that it meets it, it is made again with what the model has learned from that,
        at most ``cost.attempts`` times in all, and the one that misses it least is returned.

    Returns
    -------
    kept : dict of str to ndarray of int64
        For each group, by name, the vertices that stay, ascending.
    allocation : Allocation
        Their numbers, in order of ``groups``, and what the allocator says about them.

    Raises
    ------
    TypeError
        If an option is of the wrong type, or a selector or allocator returns something else than agreed.
    ValueError
        If an option is out of range, a name is unknown, no group may be pruned, the target is out of reach, or a
        selector or allocator returns values out of range.

    Warns
    -----
    UserWarning
        If a target that is measured is missed by more than a tenth.
    """
    require_groups(analysis, groups)
    allocate = get_allocator(allocator)
    importance, context = prepare(
        groups,
        model,
        example_inputs,
        selector,
        gamma=gamma,
        distance=distance,
        floor=floor,
        round_to=round_to,
        node_order=node_order,
        seed=seed,
        data=data,
        progress=progress,
    )
    cost = cost or CostModel(analysis, _counted(target.quantity))
    found: list[tuple[float, dict[str, np.ndarray], Allocation]] = []
    while len(found) < cost.attempts:
        try:
            answer = allocate(groups, importance, cost, target, context)
            kept, allocation = _settle(answer, groups, allocator, selector, cost, target, context, floor, round_to)
        except ValueError:
            if not found or min(miss for miss, _, _ in found) > NEAR_ENOUGH:
                raise
            break  # a little lower is out of reach
        if any(all(np.array_equal(before[name], kept[name]) for name in kept) for _, before, _ in found):
            break  # no channel's worth between what is too much and what is too little
        found.append((cost.miss(kept, target), kept, allocation))
        if found[-1][0] == 0:
            break
    miss, kept, allocation = min(found, key=lambda attempt: attempt[0])
    if miss > NEAR_ENOUGH:
        warnings.warn(
            f"{target.option}={target.keep} is missed by {100 * miss:.0f} %, as measured; {len(found)} plans came no "
            "nearer. Is the machine busy with other work? Are channels rounded to few numbers?",
            stacklevel=3,  # this function, make_plan, whoever called it
        )
    return kept, allocation


def _counted(quantity: Quantity) -> Counted:
    """Refuse to count what has to be measured."""
    if quantity == "latency":
        raise ValueError("cost: a latency target needs a LatencyCost, which measures; make_plan makes one")
    return quantity


def _settle(
    answer: Allocation | list[int],
    groups: Sequence[ChannelGroup],
    allocator: str | Allocator,
    selector: str | Selector,
    cost: CostModel,
    target: Target,
    context: AllocatorContext,
    floor: Floor,
    round_to: int,
) -> tuple[dict[str, np.ndarray], Allocation]:
    """Let the selector say which vertices stay of those that an allocator leaves; check that this meets the target."""
    allocation = answer if isinstance(answer, Allocation) else Allocation(tuple(answer))
    counts: Sequence[int] = _settled_counts(groups, context.schedules, allocation.counts, allocator)
    schedules: Sequence[Schedule] = context.schedules
    select = get_selector(selector)
    if isinstance(select, CountedSelector):
        scores = _check_importance(groups, select.given_counts(groups, counts, context), selector)
        schedules = make_schedules(groups, [score.numpy() for score in scores], floor, round_to)
        # What the floor protects of a layer that has only part of the vertices depends on their order.
        counts = [max(count, g.size - s.limit) for count, g, s in zip(counts, groups, schedules, strict=True)]
        counts = _settled_counts(groups, schedules, counts, allocator)
    kept = {g.name: s.kept(c) for g, s, c in zip(groups, schedules, counts, strict=True)}
    reached = cost.of(kept)
    if reached > target.limit(cost.dense):
        raise ValueError(unreachable(target, reached, cost, f"with the counts of allocator {allocator!r}"))
    return kept, replace(allocation, counts=tuple(counts))


def prepare(
    groups: Sequence[ChannelGroup],
    model: nn.Module,
    example_inputs: Any,
    selector: str | Selector,
    *,
    gamma: float | Literal["auto"] = "auto",
    distance: Distance = "rms",
    floor: Floor = DEFAULT_FLOOR,
    round_to: int = 1,
    node_order: NodeOrder = "selector",
    seed: int = 0,
    data: Calibration | None = None,
    progress: Progress | None = None,
) -> tuple[list[Tensor], AllocatorContext]:
    """Score all groups and make the context of their allocation; parameters and errors are those of `decide`."""
    _check_options(floor, round_to, node_order, seed)
    check_distance(distance)
    scores = get_selector(selector)(groups, SelectorContext(model, example_inputs, seed, data=data, progress=progress))
    importance = _check_importance(groups, scores, selector)
    schedules = make_schedules(groups, [score.numpy() for score in importance], floor, round_to)
    context = AllocatorContext(
        model,
        example_inputs,
        seed,
        schedules=schedules,
        gamma=gamma,
        distance=distance,
        node_order=node_order,
        data=data,
        progress=progress,
    )
    return importance, context


def require_groups(analysis: ChannelAnalysis, groups: Sequence[ChannelGroup]) -> None:
    """Refuse to plan for a model that offers nothing to prune.

    Raises
    ------
    ValueError
        If there are no groups; the message says which channels are pinned, and why.
    """
    if not groups:
        streams = sum(group.stream for group in analysis.groups)
        pins = "; ".join(f"{pin.module}: {pin.reason}" for pin in analysis.pins) or "none"
        raise ValueError(
            f"no channels of the model may go: {streams} residual streams (streams='prune' opens them), pins: {pins}"
        )


def _check_options(floor: Floor, round_to: int, node_order: str, seed: int) -> None:
    for share in floor.values() if isinstance(floor, Mapping) else [floor]:
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise TypeError(f"floor must be a number in [0, 1), got {share!r}")
        if not 0 <= share < 1 and not (isinstance(floor, Mapping) and share == 1):
            raise ValueError(f"floor is a share of each group and must be in [0, 1), got {share}")
    for name, value, least in (("round_to", round_to, 1), ("seed", seed, None)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if least is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if node_order not in get_args(NodeOrder):
        raise ValueError(f"node_order must be one of {', '.join(get_args(NodeOrder))}, got {node_order!r}")


def _check_importance(
    groups: Sequence[ChannelGroup], scores: Sequence[Tensor], selector: str | Selector
) -> list[Tensor]:
    """Return the scores as float64 on the CPU, where the order of removal is made."""
    if len(scores) != len(groups):
        raise ValueError(f"selector {selector!r} must score {len(groups)} groups, got {len(scores)} tensors")
    for group, score in zip(groups, scores, strict=True):
        if not isinstance(score, Tensor):
            got = type(score).__name__
            raise TypeError(f"selector {selector!r} must return tensors, got {got} for group {group.name!r}")
        if score.shape != (group.size,):
            want, shape = [group.size], list(score.shape)
            raise ValueError(f"selector {selector!r} must score group {group.name!r} with shape {want}, got {shape}")
    importance = [score.double() for score in to_host(*(score.detach() for score in scores))]
    for group, score in zip(groups, importance, strict=True):
        if not bool(score.isfinite().all()):
            raise ValueError(
                f"selector {selector!r} scores group {group.name!r} with infinity or NaN: check the weights"
            )
    return importance


def _settled_counts(
    groups: Sequence[ChannelGroup], schedules: Sequence[Schedule], counts: Sequence[int], allocator: str | Allocator
) -> tuple[int, ...]:
    """Check an allocator's counts, and raise them to the next ones that ``round_to`` allows."""
    if len(counts) != len(groups):
        raise ValueError(f"allocator {allocator!r} must return {len(groups)} counts, got {len(counts)}")
    settled = []
    for group, schedule, given in zip(groups, schedules, counts, strict=True):
        least = group.size - schedule.limit
        if not isinstance(given, (int, np.integer)):
            raise TypeError(f"allocator {allocator!r} must return integers, got {given!r} for group {group.name!r}")
        if not least <= given <= group.size:
            bounds = f"{least} (the floor) to {group.size}"
            raise ValueError(f"allocator {allocator!r} must keep {bounds} vertices of {group.name!r}, got {given}")
        settled.append(group.size - int(schedule.settled[group.size - int(given)]))
    return tuple(settled)
