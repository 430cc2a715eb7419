"""Filters near the middle of the others say nothing of their own: filter pruning via geometric median."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext, register_selector
from srr_ext.transfers import to_device, to_host

WIDE = 1 << 30  # n * n * fan_in, from which on pair by pair takes seconds
BLOCK = 512  # rows at a time: half of the products of a large group are not computed twice
CLOSE = 1e-2  # share of |a|^2 + |b|^2


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
    """Sum the rows of the distance matrix."""
    n, fan_in = filters.shape
    distances = wide_distances(filters) if n * n * fan_in > WIDE else _distances(filters)
    distances = distances + distances.T
    # Duplicates are 0 apart: each gets the sum of the first of them, so that they tie whatever the rounding.
    return distances.sum(1)[(distances == 0).int().argmax(1)]


def _distances(filters: Tensor) -> Tensor:
    """Upper triangle of the distance matrix: norms of differences, pair by pair."""
    n = len(filters)
    rows, columns = torch.triu_indices(n, n, offset=1, device=filters.device)
    distances = filters.new_zeros(n, n)
    distances[rows, columns] = torch.pdist(filters)
    return distances


def wide_distances(filters: Tensor) -> Tensor:
    r"""Upper triangle of the distance matrix, by matrix products wherever they are exact enough.

    Parameters
    ----------
    filters : Tensor of float64, shape [n, fan_in]

    Returns
    -------
    Tensor of float64, shape [n, n]
        Zeros on the diagonal and below.

    Notes
    -----
    :math:`|a - b|^2 = |a|^2 + |b|^2 - 2 a \cdot b` loses what cancels. Pairs of which less than ``CLOSE`` of
    :math:`|a|^2 + |b|^2` is left are therefore subtracted first, as `torch.pdist` does with all; the others keep 12
    digits.
    """
    n = len(filters)
    squares = filters.square().sum(1)
    distances, close = filters.new_zeros(n, n), []
    for start in range(0, n, BLOCK):
        rows = filters[start : start + BLOCK]
        scale = squares[start : start + BLOCK, None] + squares[start:]
        apart = scale - 2 * (rows @ filters[start:].T)
        distances[start : start + BLOCK, start:] = apart.clamp_min(0).sqrt()
        close.append(torch.nn.functional.pad(apart <= CLOSE * scale, (start, 0)))
    distances.triu_(1)
    pairs = to_host(torch.cat(close).triu_(1))[0].nonzero()  # [pairs, 2], by row
    for row, others in zip(*_by_row(pairs), strict=True):
        columns = to_device(others, filters.device)
        distances[row, columns] = (filters[columns] - filters[row]).norm(dim=1)
    return distances


def _by_row(pairs: Tensor) -> tuple[list[int], tuple[Tensor, ...]]:
    """Rows that pairs begin with, and for each the columns."""
    rows, counts = pairs[:, 0].unique_consecutive(return_counts=True)
    return rows.tolist(), pairs[:, 1].split(counts.tolist())
