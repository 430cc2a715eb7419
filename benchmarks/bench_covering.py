"""covering: native, by torch's own operations, and by the reference.

python -m pytest benchmarks/bench_covering.py --benchmark-only
"""

from __future__ import annotations

import layers
import pytest
import torch

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


def torch_covering(graphs: FilterGraphs, radius: int) -> list[int]:
    """Compute it the obvious way: dense balls, vertices in a stable order by degree, one row operation per centre."""
    counts = []
    for i, n in enumerate(graphs.n_filters):
        adjacency = graphs.to_dense(i)
        ball = (adjacency | torch.eye(n, dtype=torch.bool)).float()
        ball = (torch.linalg.matrix_power(ball, radius) > 0) if n else ball.bool()
        covered, centres = torch.zeros(n, dtype=torch.bool), 0
        for v in adjacency.sum(1).argsort(descending=True, stable=True).tolist():
            if not covered[v]:
                centres += 1
                covered |= ball[v]
        counts.append(centres)
    return counts


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_covering_native(benchmark, network, radius, graphs_of):
    assert ops.covering(graphs_of[network], radius).tolist() == torch_covering(graphs_of[network], radius)
    benchmark(ops.covering, graphs_of[network], radius)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_covering_torch(benchmark, network, radius, graphs_of):
    assert torch_covering(graphs_of[network], radius) == ops.covering(graphs_of[network], radius).tolist()
    benchmark.pedantic(torch_covering, (graphs_of[network], radius), rounds=3)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_covering_reference(benchmark, network, radius, graphs_of):
    assert torch.equal(ops.covering(graphs_of[network], radius), reference.covering(graphs_of[network], radius))
    benchmark.pedantic(reference.covering, (graphs_of[network], radius), rounds=1)
