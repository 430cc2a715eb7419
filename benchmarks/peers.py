"""What ours is compared with: the obvious PyTorch, torch.cdist, SciPy with NetworkX; and how answers are checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import networkx as nx
import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from srr_ext import ops
from srr_ext.ops import FilterGraphs

CLOSE = 1e-5  # relative to the threshold: nearer than this, single precision need not tell a pair's side
CHUNK = 4096  # rows of distances at a time


def pytorch_graphs(weights: Sequence[Tensor], gammas: Sequence[float]) -> list[Tensor]:
    """Compute the graphs the obvious way: normalise, multiply, compare; bool [n, n] each."""
    dense = []
    for weight, gamma in zip(weights, gammas, strict=True):
        v = normalize(weight.flatten(1), dim=1)
        dense.append((v @ v.T >= 1 - gamma**2 * v.shape[1] / 2).fill_diagonal_(False))
    return dense


def cdist_graphs(weights: Sequence[Tensor], gammas: Sequence[float]) -> list[Tensor]:
    """Compute the graphs from `torch.cdist`, some rows at a time, so that the distances take memory for those alone."""
    dense = []
    for weight, gamma in zip(weights, gammas, strict=True):
        v = normalize(weight.flatten(1), dim=1)
        threshold = gamma * math.sqrt(v.shape[1])
        joined = torch.cat([torch.cdist(rows, v) <= threshold for rows in v.split(CHUNK)])
        dense.append(joined.fill_diagonal_(False))
    return dense


def assert_same_graphs(
    ours: FilterGraphs, dense: Sequence[Tensor], weights: Sequence[Tensor], gammas: Sequence[float]
) -> None:
    """Check that every pair they disagree on lies within 1e-5 of the threshold, in double precision."""
    for i, (matrix, weight, gamma) in enumerate(zip(dense, weights, gammas, strict=True)):
        v = normalize(weight.flatten(1).double(), dim=1)
        for pairs in (ours.to_dense(i) != matrix).nonzero().split(CHUNK):
            distance = (v[pairs[:, 0]] - v[pairs[:, 1]]).norm(dim=1) / math.sqrt(v.shape[1])
            assert bool(((distance / gamma - 1).abs() < CLOSE).all()), f"layer {i}: the graphs differ"


def pytorch_components(dense: Sequence[Tensor]) -> list[int]:
    """Count the components the obvious way: every vertex takes the lowest label around it until nothing changes."""
    counts = []
    for adjacency in dense:
        n = len(adjacency)
        label = torch.arange(n, dtype=torch.int32, device=adjacency.device)
        while True:
            lower = torch.minimum(label, torch.where(adjacency, label, n).amin(1))
            if torch.equal(lower, label):
                break
            label = lower
        counts.append(len(label.unique()))
    return counts


def pytorch_covering(dense: Sequence[Tensor], radius: int) -> list[int]:
    """Cover the obvious way: dense balls, vertices in a stable order by degree, one row operation per centre."""
    counts = []
    for adjacency in dense:
        ball = adjacency | torch.eye(len(adjacency), dtype=torch.bool, device=adjacency.device)
        if radius == 2:
            ball = ball.float() @ ball.float() > 0
        covered, centres = torch.zeros_like(ball[0]), 0
        for v in adjacency.sum(1).argsort(descending=True, stable=True).tolist():
            if not covered[v]:
                centres += 1
                covered |= ball[v]
        counts.append(centres)
    return counts


def scipy_components(dense: Iterable[np.ndarray]) -> list[int]:
    """Count the components with SciPy; bool [n, n] each."""
    return [int(connected_components(csr_array(matrix), directed=False)[0]) for matrix in dense]


def networkx_dominating_sets(dense: Iterable[np.ndarray]) -> list[set[int]]:
    """Find a dominating set of every graph with NetworkX, by its own greedy algorithm: one cover, of radius 1."""
    return [nx.dominating_set(nx.from_scipy_sparse_array(csr_array(matrix))) for matrix in dense]


def assert_dominating(graphs: FilterGraphs, dense: Sequence[np.ndarray], sets: Sequence[set[int]]) -> None:
    """Check that the sets cover the graphs, and so are no smaller than our lower bound says a cover can be."""
    for matrix, centres, lower in zip(dense, sets, ops.covering(graphs, 2).tolist(), strict=True):
        chosen = sorted(centres)
        assert bool((matrix[chosen].any(0) | np.isin(np.arange(len(matrix)), chosen)).all())
        assert lower <= len(chosen)


def every_removal(graphs: FilterGraphs, orders: Sequence[Tensor], limits: Sequence[int]) -> list[Tensor]:
    """Compute trajectories from the other ops: cut the graph after every removal, and measure what is left."""
    values = []
    for i, (order, limit) in enumerate(zip(orders, limits, strict=True)):
        dense = graphs.to_dense(i)
        values.append(torch.tensor([redundancy_left(dense, order, k) for k in range(limit)], dtype=torch.float64))
    return values


def redundancy_left(dense: Tensor, order: Tensor, k: int) -> float:
    """Compute entry k of a trajectory from the graph that is left, by the other ops."""
    left = order[k:].sort().values.to(dense.device)
    graph = FilterGraphs.from_dense([dense[left][:, left]])
    upper, lower = (int(ops.covering(graph, radius)) for radius in (1, 2))
    return len(left) / (0.35 * int(ops.components(graph)) + 0.65 * (upper + lower) / 2)
