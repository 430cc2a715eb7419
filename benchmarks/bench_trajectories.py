"""trajectories: native, and by the reference where that can finish.

python -m pytest benchmarks/bench_trajectories.py --benchmark-only
"""

from __future__ import annotations

import layers
import pytest
import torch
from torch import Tensor

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


def orders_of(graphs: FilterGraphs) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(n, generator=generator) for n in graphs.n_filters]


def step_by_step(graphs: FilterGraphs, orders: list[Tensor]) -> list[list[float]]:
    """Compute it the obvious way on top of the other ops: after every removal, those of the graph that is left."""
    result = []
    for i, order in enumerate(orders):
        dense, values = graphs.to_dense(i), []
        for k in range(len(order)):
            left = order[k:].sort().values
            graph = FilterGraphs.from_dense([dense[left][:, left]])
            cover = (int(ops.covering(graph, 1)) + int(ops.covering(graph, 2))) / 2
            values.append(len(left) / (0.35 * int(ops.components(graph)) + 0.65 * cover))
        result.append(values)
    return result


@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_trajectories_native(benchmark, network, graphs_of):
    graphs, orders = graphs_of[network], orders_of(graphs_of[network])
    first = ops.trajectories(graphs, orders, limits=[1] * len(graphs))
    cover = (ops.covering(graphs, 1) + ops.covering(graphs, 2)) / 2
    expected = torch.tensor(graphs.n_filters) / (0.35 * ops.components(graphs).double() + 0.65 * cover.double())
    assert torch.allclose(torch.cat(first), expected, rtol=1e-12)
    benchmark(ops.trajectories, graphs, orders)


@pytest.mark.parametrize("network", ["resnet20", "resnet56"])  # cubic in Python calls: the others take it minutes
def bench_trajectories_step_by_step(benchmark, network, graphs_of):
    graphs, orders = graphs_of[network], orders_of(graphs_of[network])
    expected = benchmark.pedantic(step_by_step, (graphs, orders), rounds=1)
    assert [values.tolist() for values in ops.trajectories(graphs, orders)] == expected


@pytest.mark.parametrize("network", ["resnet20"])
def bench_trajectories_reference(benchmark, network, graphs_of):
    graphs, orders = graphs_of[network], orders_of(graphs_of[network])
    expected = benchmark.pedantic(reference.trajectories, (graphs, orders), rounds=1)
    assert all(torch.equal(a, b) for a, b in zip(ops.trajectories(graphs, orders), expected, strict=True))
