"""The one loop behind every allocator here: take the group with the highest priority, remove a vertex, repeat.

Then give back what the last removal took too much.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from srr_ext.allocators.base import AllocatorContext
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target


def merge(
    groups: Sequence[ChannelGroup],
    priorities: Sequence[np.ndarray],
    cost: CostModel,
    target: Target,
    context: AllocatorContext,
) -> list[int]:
    """Merge the groups' sequences of removals into one, until the target is met, and no further than need be.

    A group's priority after k removals depends on that group alone, so that all of them can be known beforehand and
    the loop needs no more than a heap. Removals that would leave a channel count which is no multiple of ``round_to``
    wait, without effect on the cost, for those that complete it.

    The removal that meets the target may be worth several percent of the model and so take it far below. Methods are
    to be compared at equal cost, so at the end removals are undone, the latest first, wherever the target is still met
    without them. What is left misses the target by less than the cheapest removal that was made: no group could take
    one vertex (with ``round_to``, one multiple) back. Each group still loses its first removals, and no others.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    priorities : sequence of ndarray of float64, shape [group.size]
        ``priorities[i][k]``: priority of removing the (k + 1)-th vertex of group i. The highest goes first; ties go to
        the group with more vertices left, then to the one that appears first. Only as many are needed as may go.
        Minus infinity: this vertex and those after it stay whatever the target.
    cost : CostModel
        What the target is about.
    target : Target
        Where to stop.
    context : AllocatorContext
        Gives the order of removal within each group.

    Returns
    -------
    list of int
        Vertices kept, per group.

    Raises
    ------
    ValueError
        If the target is out of reach (the message says what can be reached and how to reach more), or if a priority is
        missing or not a number.
    """
    for group, priority, schedule in zip(groups, priorities, context.schedules, strict=True):
        if priority.ndim != 1 or len(priority) < schedule.limit or np.isnan(priority).any():
            raise ValueError(f"priorities of group {group.name!r} must be {schedule.limit} numbers, got {priority}")
    walker, limit = cost.walker(groups), target.limit(cost.dense)
    removed = [0] * len(groups)
    sequence: list[tuple[int, int]] = []  # of every removal, first to last: group, and which of the group's it is

    def offers(i: int) -> bool:
        return removed[i] < context.schedules[i].limit and priorities[i][removed[i]] > -np.inf

    def entry(i: int) -> tuple[float, int, int]:
        return -float(priorities[i][removed[i]]), removed[i] - groups[i].size, i

    heap = [entry(i) for i in range(len(groups)) if offers(i)]
    heapq.heapify(heap)
    while walker.current > limit:
        if not heap:
            stays = any(removed[i] < schedule.limit for i, schedule in enumerate(context.schedules))
            reason = "with all gone that this allocator lets go" if stays else "with every group at its floor"
            raise ValueError(unreachable(target, walker.current, cost, reason))
        i = heap[0][2]
        schedule, before = context.schedules[i], removed[i]
        removed[i] += 1
        sequence.append((i, removed[i]))
        for vertex in schedule.order[schedule.settled[before] : schedule.settled[removed[i]]].tolist():
            walker.remove(i, vertex)
        if offers(i):
            heapq.heapreplace(heap, entry(i))
        else:
            heapq.heappop(heap)
    settled = [int(schedule.settled[k]) for schedule, k in zip(context.schedules, removed, strict=True)]
    return _given_back(groups, settled, sequence, cost, limit, context)


def _given_back(
    groups: Sequence[ChannelGroup],
    removed: Sequence[int],
    sequence: Sequence[tuple[int, int]],
    cost: CostModel,
    limit: int,
    context: AllocatorContext,
) -> list[int]:
    """Undo removals, the latest first, where the limit holds without them; return how many vertices each group keeps.

    A removal saves the more, the more is left of the layers around it. So a group whose latest removal is needed now
    is needed whatever else comes back, and one pass finds all there is.
    """
    gone = list(removed)
    kept = {g.name: s.kept(g.size - k) for g, s, k in zip(groups, context.schedules, gone, strict=True)}
    needed: set[int] = set()
    for i, number in reversed(sequence):
        if i in needed or number != gone[i]:  # others had no effect of their own: they waited for a multiple
            continue
        group, schedule = groups[i], context.schedules[i]
        fewer = int(schedule.settled[number - 1])
        back = {**kept, group.name: schedule.kept(group.size - fewer)}
        if cost.of(back) <= limit:
            kept, gone[i] = back, fewer
        else:
            needed.add(i)
    return [group.size - k for group, k in zip(groups, gone, strict=True)]


def unreachable(target: Target, reached: int, cost: CostModel, reason: str = "with every group at its floor") -> str:
    """Say that a target is out of reach, what is within reach, and which options change that."""
    unit = "nanoseconds" if target.quantity == "latency" else target.quantity
    return (
        f"{target.option}={target.keep} is out of reach: {reason}, {reached} of {cost.dense} {unit} "
        f"({reached / cost.dense:.4f}) are left. Ask for more than that, or widen what may go: a lower floor, "
        "streams='prune', fewer ignored modules, a smaller round_to"
    )
