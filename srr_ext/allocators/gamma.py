"""Automatic choice of the distance threshold of filter graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from srr_ext.allocators.base import AllocatorContext
from srr_ext.allocators.merge import unreachable
from srr_ext.bit_graphs import WORD_BITS, words_per_row
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target
from srr_ext.graph import complete_gamma, group_graph_levels
from srr_ext.ops import FilterGraphs, trajectories
from srr_ext.redundancy import COMPONENT_WEIGHT
from srr_ext.transfers import to_device, to_host

# Any edge lowers all three sizes in R by one or more, so R >= N / (N - 1); without edges R is 1 up to rounding. What
# lies between tells them apart for every N below a hundred million.
JUST_ABOVE_ONE = 1 + 1e-9
HALVINGS = 20  # at a millionth of the threshold that joins all, only equal filters are joined
BISECTIONS = 10  # from a factor of two down to a thousandth

# Another threshold costs a fraction of the distances, so a pass over these tries those that may be next as well.
HALVINGS_AHEAD = 7
BISECTIONS_AHEAD = 4  # 15 thresholds: what the first, second, third and fourth middle may be
BYTES_AHEAD = 256 << 20  # of graphs at a time


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
    (orders,) = removal_orders(groups, [graphs], context)
    values = trajectories(
        graphs,
        [torch.from_numpy(order) for order in orders],
        component_weight=component_weight,
        cover_weight=1 - component_weight,
        limits=[schedule.limit for schedule in context.schedules],
    )
    return [np.round(value.numpy(), 12) for value in to_host(*values)]


def removal_orders(
    groups: Sequence[ChannelGroup], levels: Sequence[FilterGraphs], context: AllocatorContext
) -> list[list[np.ndarray]]:
    """Orders in which ``node_order`` removes vertices.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    levels : sequence of FilterGraphs
        Graphs of the groups at several thresholds; only the order by degree depends on them.
    context : AllocatorContext
        Says which order is wanted.

    Returns
    -------
    list of list of ndarray of int64, shape [group.size]
        For each level and group, all vertices, first to last.
    """
    if context.node_order == "degree":
        sizes = [group.size for group in groups]
        degrees = to_host(*(graphs.degrees() for graphs in levels))
        return [[np.argsort(-d.numpy(), kind="stable") for d in of_level.split(sizes)] for of_level in degrees]
    if context.node_order == "random":
        orders = [context.generator("node order", group.name).permutation(group.size) for group in groups]
    else:
        orders = [schedule.order for schedule in context.schedules]
    return [orders] * len(levels)


@dataclass(frozen=True, eq=False)
class Removals:
    """Orders of removal in the form in which bit graphs are asked about them; made by `Removals.of`.

    Attributes
    ----------
    place : list of Tensor of int64, shape [n] each
        For each group, the place of each vertex in the order, from 1 on.
    later : list of Tensor of int64, shape [n, ceil(n / 64)] each
        For each group and vertex, the bits of the vertices that go later.
    """

    place: list[Tensor]
    later: list[Tensor]

    @classmethod
    def of(cls, orders: Sequence[np.ndarray], device: torch.device) -> Removals:
        """Take one order per group to a device."""
        sizes = [len(order) for order in orders]
        uploaded = to_device(torch.from_numpy(np.concatenate(orders)), device).split(sizes)
        place, later = [], []
        for n, order in zip(sizes, uploaded, strict=True):
            row = torch.arange(n, device=device)
            bit = order.new_zeros(n, words_per_row(n))
            bit[row, order // WORD_BITS] = torch.ones_like(order) << order % WORD_BITS
            rest = bit.flip(0).cumsum(0).flip(0) - bit  # bits that are all different: their sum is their union
            later.append(torch.empty_like(rest).index_copy_(0, order, rest))
            place.append(torch.empty_like(order).index_copy_(0, order, row + 1))
        return cls(place, later)

    def until_edgeless(self, levels: Sequence[FilterGraphs]) -> Tensor:
        """Count the removals that break a group's last edge, which are those made at R > 1.

        Parameters
        ----------
        levels : sequence of FilterGraphs
            Graphs of the groups at several thresholds, on the device of the orders.

        Returns
        -------
        Tensor of int64, shape [n_levels, n_groups]
            The last place in the order of a vertex joined to one that goes later; 0 without an edge.
        """
        rows = [graphs.rows() for graphs in levels]
        counts = []
        for group, (place, later) in enumerate(zip(self.place, self.later, strict=True)):
            of_group = torch.stack([of_level[group] for of_level in rows])  # [n_levels, n, words]
            counts.append((((of_group & later) != 0).any(2) * place).amax(1))
        return torch.stack(counts, 1)


def smallest_gamma(
    groups: Sequence[ChannelGroup],
    matrices: Sequence[Tensor],
    cost: CostModel,
    target: Target,
    context: AllocatorContext,
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
        Gives the orders of removal, and says which distance the threshold is for.

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

    R is above 1 as long as an edge is left, whatever the weights of its terms, so no trajectory is needed either, and
    the host waits for the device once per pass over the distances, of which there are about four.
    """
    limit = target.limit(cost.dense)
    words = sum(group.size * words_per_row(group.size) for group in groups)
    at_once = max(1, BYTES_AHEAD // (8 * words))
    removals: Removals | None = None
    known: dict[float, list[int]] = {}  # threshold -> removals at R > 1, per group

    def try_out(gammas: Sequence[float]) -> None:
        nonlocal removals
        levels = group_graph_levels(groups, matrices, gammas, context.distance)
        device = levels[0].words.device
        if context.node_order == "degree":
            orders = removal_orders(groups, levels, context)
            counts = [Removals.of(o, device).until_edgeless([g])[0] for o, g in zip(orders, levels, strict=True)]
        else:
            removals = removals or Removals.of(removal_orders(groups, levels[:1], context)[0], device)
            counts = list(removals.until_edgeless(levels))
        known.update(zip(gammas, (count.tolist() for count in to_host(*counts)), strict=True))

    def lowest_cost(gamma: float, others: Sequence[float]) -> int:
        """Cost when all that goes at R > 1 is gone; others may be asked for next and are tried out with it."""
        if gamma not in known:
            try_out([gamma, *others][:at_once])
        kept = {}
        for group, schedule, count in zip(groups, context.schedules, known[gamma], strict=True):
            removed = schedule.settled[min(count, schedule.limit)]
            kept[group.name] = schedule.kept(group.size - int(removed))
        return cost.of(kept)

    high = complete_gamma(groups, matrices, context.distance)
    reached = lowest_cost(high, _halvings(high))
    if reached > limit:
        raise ValueError(unreachable(target, reached, cost, f"even with all filters joined (gamma={high:.4g})"))
    with context.progress.stage("gamma", HALVINGS + BISECTIONS) as step:
        for halving in range(1, HALVINGS + 1):
            step(note=f"{high:.4g}")
            if lowest_cost(high / 2, _halvings(high / 2)) > limit:
                step(HALVINGS - halving)  # the others are not needed
                break
            high /= 2
        else:
            step(BISECTIONS)
            return high
        low = high / 2
        for bisection in range(BISECTIONS):
            step(note=f"{high:.4g}")
            middle, *others = _middles(low, high, min(BISECTIONS_AHEAD, BISECTIONS - bisection))
            low, high = (low, middle) if lowest_cost(middle, others) <= limit else (middle, high)
    return high


def _halvings(gamma: float) -> list[float]:
    return [gamma / 2**k for k in range(1, HALVINGS_AHEAD + 1)]


def _middles(low: float, high: float, bisections: int) -> list[float]:
    """All thresholds that bisection may try from here on, the nearest first."""
    middles, ranges = [], [(low, high)]
    for _ in range(bisections):
        middles += [(a + b) / 2 for a, b in ranges]
        ranges = [part for a, b in ranges for part in ((a, (a + b) / 2), ((a + b) / 2, b))]
    return middles
