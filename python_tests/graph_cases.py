"""Graphs and weights that the op tests share."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import strategies as st

from srr_ext.ops import FilterGraphs

SIZES = (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200)  # both sides of words, panels and blocks


def random_graph(n: int, density: float, seed: int = 0) -> torch.Tensor:
    """Symmetric bool [n, n] with an empty diagonal."""
    generator = torch.Generator().manual_seed(seed)
    upper = (torch.rand(n, n, generator=generator) < density).triu(1)
    return upper | upper.T


@st.composite
def graphs(draw: st.DrawFn, max_layers: int = 4, max_n: int = 70) -> FilterGraphs:
    """Zero or more random graphs of any density."""
    matrices = []
    for _ in range(draw(st.integers(0, max_layers))):
        n = draw(st.integers(0, max_n))
        density = draw(st.sampled_from([0.0, 1 / max(n, 1), 3 / max(n, 1), 0.3, 1.0]))
        matrices.append(random_graph(n, density, draw(st.integers(0, 10_000))))
    return FilterGraphs.from_dense(matrices)


def covering_number(adjacency: torch.Tensor) -> int:
    """Fewest closed neighbourhoods that cover the graph, by trying every set of vertices."""
    n = len(adjacency)
    balls = [sum(1 << u for u in range(n) if u == v or bool(adjacency[v, u])) for v in range(n)]
    for size in range(n + 1):
        for chosen in itertools.combinations(balls, size):
            covered = 0
            for ball in chosen:
                covered |= ball
            if covered == (1 << n) - 1:
                return size
    raise AssertionError("the set of all vertices covers every graph")


def gamma_of_cosine(cosine: float, fan_in: int) -> float:
    """Threshold at which filters with this cosine are joined."""
    return math.sqrt(2 * (1 - cosine) / fan_in)


def median_gamma(weight: torch.Tensor) -> float:
    """Threshold that joins about half of the pairs."""
    units = torch.nn.functional.normalize(weight.double().flatten(1), dim=1)
    if len(units) < 2:
        return 0.1
    return float(torch.pdist(units).median()) / math.sqrt(units.shape[1])
