"""Cut the widest layer: redundancy taken to be the number of filters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target


@register_allocator("widest")
def widest(
    groups: Sequence[ChannelGroup], importance: list[Tensor], cost: CostModel, target: Target, context: AllocatorContext
) -> Allocation:
    r"""Take every vertex from the group that has most left.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    importance : list of Tensor
        Not used: only sizes count.
    cost : CostModel
        What the target is about.
    target : Target
        Where to stop.
    context : AllocatorContext
        Gives the order of removal within each group.

    Returns
    -------
    Allocation
        Vertices kept per group.

    Raises
    ------
    ValueError
        If the target is out of reach.

    Notes
    -----
    Priority :math:`N - k`, which is what `srr` becomes when its graphs are complete, because :math:`R = N` there.

    References
    ----------
    Predecessor of SRR: arXiv 1905.06498.
    """
    return Allocation(tuple(merge(groups, [np.arange(g.size, 0, -1.0) for g in groups], cost, target, context)))
