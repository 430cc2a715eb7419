"""Filters near the middle of the others say nothing of their own: filter pruning via geometric median."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext, register_selector


@register_selector("fpgm")
def fpgm(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Sum of distances to all other filters of the group.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the weights.

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size], in the unit of the weights; higher = keep. A group of one vertex has 0.

    Notes
    -----
    .. math:: g_j = \sum_i \lVert F_j - F_i \rVert_2

    with the raw filters :math:`F` (signs and norms included). In a coupled group, :math:`F_j` is the concatenation of
    all filters that vertex :math:`j` stands for.

    References
    ----------
    He, Liu, Wang, Hu, Yang. Filter pruning via geometric median for deep convolutional neural networks acceleration.
    CVPR 2019, arXiv 1811.00250.
    """
    return [_distance_sums(context.filters(group)) for group in groups]


def _distance_sums(filters: Tensor) -> Tensor:
    """Sum the rows of the distance matrix; norms of true differences, so that duplicates are 0 apart and tie."""
    n = len(filters)
    rows, columns = torch.triu_indices(n, n, offset=1, device=filters.device)
    distances = filters.new_zeros(n, n)
    distances[rows, columns] = torch.pdist(filters)
    return (distances + distances.T).sum(1)
