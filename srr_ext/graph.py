"""Filter graphs of channel groups: which filters of a group are near each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.channels.records import ChannelAnalysis, ChannelGroup
from srr_ext.filters import filter_matrix, filter_parts, planning_device
from srr_ext.ops import FilterGraphs, filter_graph_levels
from srr_ext.transfers import to_host

Distance = Literal["rms", "euclidean"]


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
    """Filter matrix of every group, float32 [group.size, fan_in] each, on the device where the model is planned for.

    Raises
    ------
    ValueError
        If a weight is not finite; the message names the group.
    """
    if not groups:
        return []
    device = planning_device(model)
    matrices = [filter_matrix(group, model, device) for group in groups]
    (finite,) = to_host(torch.stack([_extremes(matrix).isfinite().all() for matrix in matrices]))
    for group, is_finite in zip(groups, finite.tolist(), strict=True):
        if not is_finite:
            raise ValueError(f"weights of group {group.name!r} must be finite, got infinity or NaN: check the weights")
    return matrices


def _extremes(matrix: Tensor) -> Tensor:
    """Least and most weight, which are finite iff all are; an order of magnitude faster than to ask each."""
    return torch.stack(matrix.aminmax()) if matrix.numel() else matrix.new_zeros(2)


def group_graphs(
    groups: Sequence[ChannelGroup], matrices: Sequence[Tensor], gamma: float, distance: Distance = "rms"
) -> FilterGraphs:
    r"""Filter graph of every group.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups.
    matrices : sequence of Tensor, shape [group.size, fan_in]
        Their filter matrices, see `group_matrices`, all finite.
    gamma : float
        Distance threshold.
    distance : {"rms", "euclidean"}, default "rms"
        What is compared with it, see below.

    Returns
    -------
    FilterGraphs
        One graph per group, in order, on the device of the matrices.

    Raises
    ------
    ValueError
        If ``distance`` is anything else.

    Notes
    -----
    Filters :math:`i, j` of a group with fan-in :math:`n` are joined if

    .. math:: \lVert v_i - v_j \rVert / \sqrt n \le \gamma \text{ (rms)} \quad\text{or}\quad
        \lVert v_i - v_j \rVert \le \gamma \text{ (euclidean)}, \quad v = W / \lVert W \rVert.

    The first is what a public reproduction of the method does: the root mean square over the weights, in which the
    filters of a layer with many weights are near each other whatever they hold. With the second, which is ours, one
    threshold is the same angle in every group, :math:`\cos \ge 1 - \gamma^2 / 2`.

    In a coupled group, :math:`v` is the concatenation of :math:`p` unit filters and :math:`n` the sum of their fan-ins,
    so the left side is a mean over them and one threshold suits all groups; the euclidean distance is taken of rows
    scaled to length 1. Such a row has length :math:`\sqrt p`, which `filter_graphs` divides by; the threshold is
    divided with it. Otherwise streams of many layers would look redundant only because they are long.
    """
    return group_graph_levels(groups, matrices, [gamma], distance)[0]


def group_graph_levels(
    groups: Sequence[ChannelGroup],
    matrices: Sequence[Tensor],
    gammas: Sequence[float],
    distance: Distance = "rms",
) -> list[FilterGraphs]:
    """Filter graphs of every group at several thresholds; the distances are computed once.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups.
    matrices : sequence of Tensor, shape [group.size, fan_in]
        Their filter matrices, see `group_matrices`, all finite.
    gammas : sequence of float
        Distance thresholds.
    distance : {"rms", "euclidean"}, default "rms"
        What is compared with them, see `group_graphs`.

    Returns
    -------
    list of FilterGraphs
        For each threshold, what `group_graphs` returns.

    Raises
    ------
    ValueError
        If ``distance`` is anything else.
    """
    check_distance(distance)
    divisors = [
        math.sqrt(filter_parts(group) if distance == "rms" else max(matrix.shape[1], 1))
        for group, matrix in zip(groups, matrices, strict=True)
    ]
    levels = [[gamma / divisor for divisor in divisors] for gamma in gammas]
    return filter_graph_levels(matrices, levels, check_finite=False)  # group_matrices has seen to it


def check_distance(distance: object) -> None:
    """Refuse an unknown distance.

    Raises
    ------
    ValueError
        If it is neither "rms" nor "euclidean".
    """
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be 'rms' or 'euclidean', got {distance!r}")


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


def complete_gamma(groups: Sequence[ChannelGroup], matrices: Sequence[Tensor], distance: Distance = "rms") -> float:
    """Return a threshold at which every pair of non-zero filters is joined, in every group.

    Unit vectors are at most 2 apart, so ``2 / sqrt(fan_in)`` joins all, or 2 if the distance is not divided; half a
    percent more keeps opposite filters from being lost to rounding.
    """
    if distance == "euclidean":
        return 2.01
    return 2.01 / math.sqrt(min(m.shape[1] / filter_parts(g) for g, m in zip(groups, matrices, strict=True)))
