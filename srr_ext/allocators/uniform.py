"""Every group loses the same share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target


@register_allocator("uniform")
def uniform(
    groups: Sequence[ChannelGroup], importance: list[Tensor], cost: CostModel, target: Target, context: AllocatorContext
) -> Allocation:
    r"""Keep the same share of every group, as nearly as whole vertices allow.

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
    The next vertex goes from the group with the largest share left, :math:`(N - k) / N`.

    References
    ----------
    Blalock, Gonzalez Ortiz, Frankle, Guttag. What is the state of neural network pruning? MLSys 2020, arXiv 2003.03033
    (uniform widths as a control).
    """
    shares = [np.arange(group.size, 0, -1) / group.size for group in groups]
    return Allocation(tuple(merge(groups, shares, cost, target, context)))
