"""Automatic choice of the distance threshold of filter graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from srr_ext.allocators.base import AllocatorContext
from srr_ext.allocators.merge import unreachable
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target
from srr_ext.graph import complete_gamma, degrees, group_graphs
from srr_ext.ops import FilterGraphs, trajectories
from srr_ext.redundancy import COMPONENT_WEIGHT

# Any edge lowers all three sizes in R by one or more, so R >= N / (N - 1); without edges R is 1 up to rounding. What
# lies between tells them apart for every N below a hundred million.
JUST_ABOVE_ONE = 1 + 1e-9
HALVINGS = 20  # at a millionth of the threshold that joins all, only equal filters are joined
BISECTIONS = 10  # from a factor of two down to a thousandth


def redundancy_trajectories(
    groups: Sequence[ChannelGroup],
    graphs: FilterGraphs,
    context: AllocatorContext,
    component_weight: float = COMPONENT_WEIGHT,
) -> list[np.ndarray]:
    """Redundancy of every group after each number of removals.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    graphs : FilterGraphs
        One graph per group.
    context : AllocatorContext
        Says in which order vertices are removed (``node_order``), and how many may go.
    component_weight : float, default 0.35
        Weight of the number of components in R.

    Returns
    -------
    list of ndarray of float64, shape [most removals of the group]
        R after the first k removals, k = 0, 1, ... Rounded to 12 digits, so that equal redundancies tie although they
        were added up from different terms.
    """
    if context.node_order == "selector":
        orders = [schedule.order for schedule in context.schedules]
    elif context.node_order == "random":
        orders = [context.generator("node order", group.name).permutation(group.size) for group in groups]
    else:
        orders = [np.argsort(-degree, kind="stable") for degree in degrees(graphs)]
    values = trajectories(
        graphs,
        [torch.from_numpy(order) for order in orders],
        component_weight=component_weight,
        cover_weight=1 - component_weight,
        limits=[schedule.limit for schedule in context.schedules],
    )
    return [np.round(value.cpu().numpy(), 12) for value in values]


def smallest_gamma(
    groups: Sequence[ChannelGroup],
    matrices: Sequence[Tensor],
    cost: CostModel,
    target: Target,
    context: AllocatorContext,
    component_weight: float = COMPONENT_WEIGHT,
) -> float:
    """Find the smallest threshold with which the target is met by removals from redundant groups (R > 1) alone.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    matrices : sequence of Tensor, shape [group.size, fan_in]
        Their filter matrices.
    cost : CostModel
        What the target is about.
    target : Target
        Where removals stop.
    context : AllocatorContext
        Gives the orders of removal.
    component_weight : float, default 0.35
        Weight of the number of components in R.

    Returns
    -------
    float
        At most a thousandth above the smallest.

    Raises
    ------
    ValueError
        If the target is out of reach although all filters are joined.

    Notes
    -----
    The most redundant group goes first, so removals stay above R = 1 until every group is at its floor or without an
    edge. Hence no loop is needed to test a threshold: take from each group all it gives at R > 1 and look at the cost.
    For an order that does not depend on the threshold, a larger one only adds edges and so only adds such removals, and
    bisection is exact; for ``node_order="degree"`` it finds one threshold at which the answer changes.
    """
    limit = target.limit(cost.dense)

    def lowest_cost(gamma: float) -> int:
        kept = {}
        values = redundancy_trajectories(groups, group_graphs(groups, matrices, gamma), context, component_weight)
        for group, schedule, redundancy in zip(groups, context.schedules, values, strict=True):
            spent = np.flatnonzero(redundancy <= JUST_ABOVE_ONE)
            removed = schedule.settled[spent[0] if len(spent) else schedule.limit]
            kept[group.name] = schedule.kept(group.size - int(removed))
        return cost.of(kept)

    high = complete_gamma(groups, matrices)
    reached = lowest_cost(high)
    if reached > limit:
        raise ValueError(unreachable(target, reached, cost, f"even with all filters joined (gamma={high:.4g})"))
    with context.progress.stage("gamma", HALVINGS + BISECTIONS) as step:
        for halving in range(1, HALVINGS + 1):
            step(note=f"{high:.4g}")
            if lowest_cost(high / 2) > limit:
                step(HALVINGS - halving)  # the others are not needed
                break
            high /= 2
        else:
            step(BISECTIONS)
            return high
        low = high / 2
        for _ in range(BISECTIONS):
            step(note=f"{high:.4g}")
            middle = (low + high) / 2
            low, high = (low, middle) if lowest_cost(middle) <= limit else (middle, high)
    return high
