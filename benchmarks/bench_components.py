"""components: native, by torch's own operations, and by the reference.

python -m pytest benchmarks/bench_components.py --benchmark-only
"""

from __future__ import annotations

import layers
import pytest
import torch

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


def torch_components(graphs: FilterGraphs) -> list[int]:
    """Compute them the obvious way: every vertex takes the lowest label around it until nothing changes."""
    counts = []
    for i, n in enumerate(graphs.n_filters):
        adjacency = graphs.to_dense(i) | torch.eye(n, dtype=torch.bool)
        label = torch.arange(n)
        while True:
            lower = torch.where(adjacency, label, n).amin(1)
            if torch.equal(lower, label):
                break
            label = lower
        counts.append(len(label.unique()))
    return counts


@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_components_native(benchmark, network, graphs_of):
    assert ops.components(graphs_of[network]).tolist() == torch_components(graphs_of[network])
    benchmark(ops.components, graphs_of[network])


@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_components_torch(benchmark, network, graphs_of):
    assert torch_components(graphs_of[network]) == ops.components(graphs_of[network]).tolist()
    benchmark.pedantic(torch_components, (graphs_of[network],), rounds=3)


@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_components_reference(benchmark, network, graphs_of):
    assert torch.equal(ops.components(graphs_of[network]), reference.components(graphs_of[network]))
    benchmark.pedantic(reference.components, (graphs_of[network],), rounds=1)
