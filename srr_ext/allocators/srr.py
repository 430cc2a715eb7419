"""Structural redundancy reduction: every vertex goes from the group that is most redundant at that time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.gamma import JUST_ABOVE_ONE, redundancy_trajectories, smallest_gamma
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target
from srr_ext.graph import check_gamma, group_graphs, group_matrices
from srr_ext.redundancy import COMPONENT_WEIGHT, GroupRedundancy, measure


@dataclass(frozen=True)
class StructuralRedundancy:
    r"""Remove vertices from the most redundant group, one at a time, until the target is met.

    Parameters
    ----------
    component_weight : float, default 0.35
        Weight of the number of components in R, in [0, 1]; the covering number has the rest.

    Raises
    ------
    ValueError
        If the weight is out of range; when called, if gamma is not above 0, a weight of the model is not finite, or the
        target is out of reach.
    TypeError
        When called, if gamma is neither "auto" nor a number.

    Warns
    -----
    UserWarning
        If, with a given gamma, some removals are made at R = 1, i.e. decided by width and not by redundancy.

    Notes
    -----
    Priority :math:`R = N / (0.35 k + 0.65 N_1)` of what is left of the group; see `srr_ext.redundancy.redundancy`. As R
    after k removals depends on the group alone, it is computed for all k at once.

    ``info`` of the allocation has ``gamma``, ``gamma_chosen`` ("auto" or "given"), ``removals``, ``removals_at_r_le_1``
    and ``groups``: for each name, ``n_filters``, ``fan_in``, ``zero_filters`` and the pairs [before, after] of
    ``redundancy`` and ``edge_density``, where "after" is measured on the vertices that stay.

    References
    ----------
    Wang, Li, Wang. Convolutional neural network pruning with structural redundancy reduction. CVPR 2021,
    arXiv 2104.03438.
    """

    component_weight: float = COMPONENT_WEIGHT

    def __post_init__(self) -> None:
        """Check the option."""
        if not 0 <= self.component_weight <= 1:
            raise ValueError(f"component_weight must be in [0, 1], got {self.component_weight}")

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
    ) -> Allocation:
        """Return the vertices kept per group, and how redundant the groups were and are; see `Allocator`."""
        weight = self.component_weight
        matrices = group_matrices(groups, context.model)
        auto = context.gamma == "auto"
        gamma = smallest_gamma(groups, matrices, cost, target, context) if auto else check_gamma(context.gamma)
        graphs = group_graphs(groups, matrices, gamma, context.distance)
        values = redundancy_trajectories(groups, graphs, context, weight)
        counts = merge(groups, values, cost, target, context)
        removed = [group.size - count for group, count in zip(groups, counts, strict=True)]
        tied = sum(int((r[:k] <= JUST_ABOVE_ONE).sum()) for r, k in zip(values, removed, strict=True))
        if tied:
            warnings.warn(
                f"gamma={gamma:.4g}: {tied} of {sum(removed)} removals were made where no filter is near another "
                "(R = 1), by width alone; gamma='auto' takes the smallest threshold that avoids this",
                stacklevel=4,  # this function, decide, make_plan, whoever called it
            )
        kept = [schedule.kept(count) for schedule, count in zip(context.schedules, counts, strict=True)]
        before = measure(groups, matrices, graphs, weight)
        after = measure(groups, matrices, graphs.subgraphs(kept), weight)
        info = {
            "gamma": gamma,
            "gamma_chosen": "auto" if auto else "given",
            "removals": sum(removed),
            "removals_at_r_le_1": tied,
            "groups": {b.name: _change(b, a) for b, a in zip(before, after, strict=True)},
        }
        return Allocation(tuple(counts), info)


def _change(before: GroupRedundancy, after: GroupRedundancy) -> dict[str, Any]:
    return {
        "n_filters": before.n_filters,
        "fan_in": before.fan_in,
        "zero_filters": before.zero_filters,
        "redundancy": [before.redundancy, after.redundancy],
        "edge_density": [before.edge_density, after.edge_density],
    }


srr = register_allocator("srr")(StructuralRedundancy())
