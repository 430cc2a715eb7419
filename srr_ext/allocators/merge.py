"""The one loop behind every allocator here: take the group with the highest priority, remove a vertex, repeat."""

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
    """Merge the groups' sequences of removals into one, until the target is met.

    A group's priority after k removals depends on that group alone, so that all of them can be known beforehand and
    the loop needs no more than a heap. Removals that would leave a channel count which is no multiple of ``round_to``
    wait, without effect on the cost, for those that complete it.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    priorities : sequence of ndarray of float64, shape [group.size]
        ``priorities[i][k]``: priority of removing the (k + 1)-th vertex of group i. The highest goes first; ties go to
        the group with more vertices left, then to the one that appears first. Only as many are needed as may go.
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

    def entry(i: int) -> tuple[float, int, int]:
        return -float(priorities[i][removed[i]]), removed[i] - groups[i].size, i

    heap = [entry(i) for i, schedule in enumerate(context.schedules) if schedule.limit > 0]
    heapq.heapify(heap)
    while walker.current > limit:
        if not heap:
            raise ValueError(unreachable(target, walker.current, cost))
        i = heap[0][2]
        schedule, before = context.schedules[i], removed[i]
        removed[i] += 1
        for vertex in schedule.order[schedule.settled[before] : schedule.settled[removed[i]]].tolist():
            walker.remove(i, vertex)
        if removed[i] < schedule.limit:
            heapq.heapreplace(heap, entry(i))
        else:
            heapq.heappop(heap)
    return [group.size - int(s.settled[k]) for group, s, k in zip(groups, context.schedules, removed, strict=True)]


def unreachable(target: Target, reached: int, cost: CostModel, reason: str = "with every group at its floor") -> str:
    """Say that a target is out of reach, what is within reach, and which options change that."""
    return (
        f"{target.option}={target.keep} is out of reach: {reason}, {reached} of {cost.dense} {target.quantity} "
        f"({reached / cost.dense:.4f}) are left. Ask for more than that, or widen what may go: a lower floor, "
        "streams='prune', fewer ignored modules, a smaller round_to"
    )
