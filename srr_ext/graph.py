"""Filter graphs of channel groups: which filters of a group are near each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.channels.records import ChannelAnalysis, ChannelGroup
from srr_ext.filters import filter_matrix, filter_parts
from srr_ext.ops import FilterGraphs, filter_graphs


def select_groups(analysis: ChannelAnalysis, streams: str = "keep") -> tuple[ChannelGroup, ...]:
    """Choose the groups that a plan may touch.

    Parameters
    ----------
    analysis : ChannelAnalysis
        The model's channels.
    streams : {"keep", "prune"}, default "keep"
        Whether residual streams, whose channels several layers share, are left whole or pruned like other groups.

    Returns
    -------
    tuple of ChannelGroup
        In order of execution.

    Raises
    ------
    ValueError
        If ``streams`` is anything else.
    """
    if streams not in ("keep", "prune"):
        raise ValueError(f"streams must be 'keep' or 'prune', got {streams!r}")
    return tuple(group for group in analysis.groups if streams == "prune" or not group.stream)


def group_matrices(groups: Sequence[ChannelGroup], model: nn.Module) -> list[Tensor]:
    """Filter matrix of every group, float32 [group.size, fan_in] each, on the CPU, where the native ops run.

    Raises
    ------
    ValueError
        If a weight is not finite; the message names the group.
    """
    matrices = []
    for group in groups:
        matrix = filter_matrix(group, model).cpu()
        if not bool(matrix.isfinite().all()):
            raise ValueError(f"weights of group {group.name!r} must be finite, got infinity or NaN: check the weights")
        matrices.append(matrix)
    return matrices


def group_graphs(groups: Sequence[ChannelGroup], matrices: Sequence[Tensor], gamma: float) -> FilterGraphs:
    r"""Filter graph of every group.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups.
    matrices : sequence of Tensor, shape [group.size, fan_in]
        Their filter matrices, see `group_matrices`.
    gamma : float
        Distance threshold.

    Returns
    -------
    FilterGraphs
        One graph per group, in order.

    Notes
    -----
    Filters :math:`i, j` of a group with fan-in :math:`n` are joined if

    .. math:: \lVert v_i - v_j \rVert / \sqrt n \le \gamma, \quad v = W / \lVert W \rVert.

    In a coupled group, :math:`v` is the concatenation of :math:`p` unit filters and :math:`n` the sum of their fan-ins,
    so the left side is a mean over them and one threshold suits all groups. Such a row has length :math:`\sqrt p`,
    which `filter_graphs` divides by; the threshold is divided with it. Otherwise streams of many layers would look
    redundant only because they are long.
    """
    if not groups:
        return filter_graphs([], gamma)
    parts = [filter_parts(group) for group in groups]
    words: dict[int, Tensor] = {}
    zeros: dict[int, tuple[int, ...]] = {}
    for count in sorted(set(parts)):
        places = [i for i, part in enumerate(parts) if part == count]
        graphs = filter_graphs([matrices[i] for i in places], gamma / math.sqrt(count))
        for k, i in enumerate(places):
            words[i], zeros[i] = graphs.words[graphs.offsets[k] : graphs.offsets[k + 1]], graphs.zero_filters[k]
    order = range(len(groups))
    return FilterGraphs(
        torch.cat([words[i] for i in order]), tuple(group.size for group in groups), tuple(zeros[i] for i in order)
    )


def check_gamma(gamma: object) -> float:
    """Return the threshold as a float.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not finite, or not above zero.
    """
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float, np.integer, np.floating)):
        raise TypeError(f"gamma must be a number above 0 or 'auto', got {gamma!r}")
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma must be finite and above 0, got {gamma}: try 'auto', which fits it to the model")
    return float(gamma)


def complete_gamma(groups: Sequence[ChannelGroup], matrices: Sequence[Tensor]) -> float:
    """Return a threshold at which every pair of non-zero filters is joined, in every group.

    Unit vectors are at most 2 apart, so ``2 / sqrt(fan_in)`` joins all; half a percent more keeps opposite filters from
    being lost to rounding.
    """
    return 2.01 / math.sqrt(min(m.shape[1] / filter_parts(g) for g, m in zip(groups, matrices, strict=True)))


def degrees(graphs: FilterGraphs) -> list[np.ndarray]:
    """Return the number of neighbours of every vertex, int64 [n_filters] per graph."""
    return [graphs.to_dense(i).sum(1).cpu().numpy() for i in range(len(graphs))]


def subgraphs(graphs: FilterGraphs, kept: Sequence[np.ndarray]) -> FilterGraphs:
    """Graphs of the kept vertices alone.

    Parameters
    ----------
    graphs : FilterGraphs
        The graphs.
    kept : sequence of ndarray of int64
        For each graph, the vertices that stay.

    Returns
    -------
    FilterGraphs
        Graph i has ``len(kept[i])`` vertices, in the order given.
    """
    dense = (graphs.to_dense(i).cpu() for i in range(len(graphs)))
    return FilterGraphs.from_dense([d[v][:, v] for d, v in zip(dense, map(torch.from_numpy, kept), strict=True)])
