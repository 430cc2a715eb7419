r"""The ops in plain Python and NumPy, in double precision: obvious, slow on purpose, the definition of the answers.

Same names and signatures as :mod:`srr_ext.ops`; the native ops must agree with these functions on every pair of
filters and on every graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._op_arguments import (
    check_finite_filters,
    check_gammas,
    check_graphs,
    check_levels,
    check_limits,
    check_orders,
    check_radius,
    check_redundancy_weights,
    check_weights,
)
from .bit_graphs import NOT_FINITE, ZERO, FilterGraphs

__all__ = ["FilterGraphs", "components", "covering", "filter_graph_levels", "filter_graphs", "trajectories"]

SUM_LANES = 8


def filter_graphs(
    weights: Sequence[Tensor], gamma: float | Sequence[float], *, check_finite: bool = True
) -> FilterGraphs:
    """Filter graph of every layer; see :func:`srr_ext.ops.filter_graphs`.

    Parameters
    ----------
    weights : sequence of Tensor, shape [n_filters, ...] each
        One per layer, float16, bfloat16, float32 or float64.
    gamma : float or sequence of float
        Distance threshold, finite and at least 0, for all layers or one per layer.
    check_finite : bool, default True
        Whether to refuse weights that are NaN or infinite.

    Returns
    -------
    FilterGraphs
        One graph per layer.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or a weight is not finite.
    """
    tensors = check_weights(weights)
    dense, kinds = [], []
    for weight, threshold in zip(tensors, check_gammas(gamma, len(tensors)), strict=False):
        n = weight.shape[0]
        matrix = weight.double().cpu().numpy().reshape(n, -1 if n else 0)  # [n, fan_in]
        finite = np.isfinite(matrix).all(axis=1)
        units, lengths = unit_filters(np.where(finite[:, None], matrix, 0.0))
        adjacency = np.zeros((n, n), dtype=bool)
        for i in range(n):
            squared = lane_sum((units[i] - units) ** 2)  # [n]
            adjacency[i] = (squared <= threshold * threshold * matrix.shape[1]) & (lengths > 0) & (lengths[i] > 0)
            adjacency[i, i] = False
        dense.append(torch.from_numpy(adjacency))
        kinds.append(np.where(finite, np.where(lengths > 0, 0, ZERO), NOT_FINITE))
    kind = torch.from_numpy(np.concatenate([*kinds, np.empty(0)]).astype(np.uint8))
    if check_finite:
        check_finite_filters(kind, [len(d) for d in dense])
    return FilterGraphs(FilterGraphs.from_dense(dense).words, tuple(len(d) for d in dense), kind)


def filter_graph_levels(
    weights: Sequence[Tensor], gammas: Sequence[float | Sequence[float]], *, check_finite: bool = True
) -> list[FilterGraphs]:
    """Filter graphs at several thresholds; see :func:`srr_ext.ops.filter_graph_levels`.

    Parameters
    ----------
    weights : sequence of Tensor, shape [n_filters, ...] each
        One per layer, float16, bfloat16, float32 or float64.
    gammas : sequence of float, or of sequences of float
        For each level its distance threshold, or its thresholds, one per layer.
    check_finite : bool, default True
        Whether to refuse weights that are NaN or infinite.

    Returns
    -------
    list of FilterGraphs
        For each level, what `filter_graphs` returns for its threshold.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or a weight is not finite.
    """
    tensors = check_weights(weights)
    levels = check_levels(gammas, len(tensors))
    return [filter_graphs(tensors, level if tensors else 0.0, check_finite=check_finite) for level in levels]


def unit_filters(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide filters by their length.

    Each filter is first scaled by a power of two, which is exact, so that its squares neither overflow nor vanish.

    Parameters
    ----------
    matrix : ndarray of float64, shape [n_filters, fan_in]
        One filter per row, all finite.

    Returns
    -------
    units : ndarray of float64, shape [n_filters, fan_in]
        Rows of length 1; a zero filter stays zero.
    lengths : ndarray of float64, shape [n_filters]
        Length of each scaled filter; 0 for a zero filter.
    """
    _, exponent = np.frexp(np.abs(matrix).max(axis=1, initial=0.0))
    scaled = matrix * np.ldexp(1.0, -np.clip(exponent, -1000, 1000))[:, None]
    lengths = np.sqrt(lane_sum(scaled**2))
    return scaled / np.where(lengths > 0, lengths, 1.0)[:, None], lengths


def lane_sum(terms: np.ndarray) -> np.ndarray:
    """Row sums, float64 [rows, columns] to [rows], with a stated order of additions.

    Column k goes to partial sum k % 8, in order; then the partial sums are added from the first to the last. The order
    is part of the definition: it decides which pairs lie on which side of a threshold that they meet to the last bit.
    """
    rows, columns = terms.shape
    lanes = np.zeros((rows, SUM_LANES))
    for first in range(0, columns, SUM_LANES):
        block = terms[:, first : first + SUM_LANES]
        lanes[:, : block.shape[1]] += block
    total = np.zeros(rows)
    for lane in range(SUM_LANES):
        total += lanes[:, lane]
    return total


def components(graphs: FilterGraphs) -> Tensor:
    """Count the connected components of every layer's graph; see :func:`srr_ext.ops.components`.

    Parameters
    ----------
    graphs : FilterGraphs
        The graphs.

    Returns
    -------
    Tensor of int64, shape [n_layers]
        Number of components; 0 for an empty layer.
    """
    check_graphs(graphs)
    return torch.tensor(
        [_count_components(_neighbours(graphs, i), set(range(n))) for i, n in enumerate(graphs.n_filters)],
        dtype=torch.int64,
    )


def covering(graphs: FilterGraphs, radius: int = 1) -> Tensor:
    """Size of the greedy cover of every layer's graph; see :func:`srr_ext.ops.covering`.

    Parameters
    ----------
    graphs : FilterGraphs
        The graphs.
    radius : {1, 2}, default 1
        Radius of the covering balls.

    Returns
    -------
    Tensor of int64, shape [n_layers]
        Number of centres; 0 for an empty layer.

    Raises
    ------
    ValueError
        If the radius is neither 1 nor 2.
    """
    check_graphs(graphs)
    radius = check_radius(radius)
    return torch.tensor(
        [_greedy_cover(_neighbours(graphs, i), set(range(n)), radius) for i, n in enumerate(graphs.n_filters)],
        dtype=torch.int64,
    )


def trajectories(
    graphs: FilterGraphs,
    orders: Sequence[Tensor],
    *,
    component_weight: float = 0.35,
    cover_weight: float = 0.65,
    limits: Sequence[int] | None = None,
) -> list[Tensor]:
    """Redundancy of every layer after each removal; see :func:`srr_ext.ops.trajectories`.

    Parameters
    ----------
    graphs : FilterGraphs
        The graphs.
    orders : sequence of Tensor of int64, shape [n_filters] each
        For each layer, a permutation of its filters: the order in which they go.
    component_weight, cover_weight : float, default 0.35 and 0.65
        Weights of the two terms of the denominator.
    limits : sequence of int, optional
        For each layer, how many entries to compute; default all.

    Returns
    -------
    list of Tensor of float64, shape [limits[i]] each
        Entry k of layer i is its redundancy once the first k filters of ``orders[i]`` are gone.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    check_graphs(graphs)
    component_weight, cover_weight = check_redundancy_weights(component_weight, cover_weight)
    permutations = check_orders(graphs, orders)
    result = []
    for i, limit in enumerate(check_limits(graphs, limits)):
        neighbours, order = _neighbours(graphs, i), permutations[i].tolist()
        values = []
        for k in range(limit):
            alive = set(order[k:])
            upper = _greedy_cover(neighbours, alive, radius=1)
            lower = _greedy_cover(neighbours, alive, radius=2)
            covering_number = (upper + lower) / 2
            n_components = _count_components(neighbours, alive)
            values.append(len(alive) / (component_weight * n_components + cover_weight * covering_number))
        result.append(torch.tensor(values, dtype=torch.float64))
    return result


def _neighbours(graphs: FilterGraphs, layer: int) -> list[set[int]]:
    return [set(np.flatnonzero(row).tolist()) for row in graphs.to_dense(layer).cpu().numpy()]


def _count_components(neighbours: list[set[int]], alive: set[int]) -> int:
    unseen, count = set(alive), 0
    while unseen:
        count += 1
        frontier = [unseen.pop()]
        while frontier:
            reached = neighbours[frontier.pop()] & unseen
            unseen -= reached
            frontier += reached
    return count


def _greedy_cover(neighbours: list[set[int]], alive: set[int], radius: int) -> int:
    covered: set[int] = set()
    centres = 0
    for vertex in sorted(alive, key=lambda v: (-len(neighbours[v] & alive), v)):
        if vertex in covered:
            continue
        centres += 1
        ball = {vertex} | (neighbours[vertex] & alive)
        if radius == 2:
            ball |= set().union(*(neighbours[v] & alive for v in ball))
        covered |= ball
    return centres
