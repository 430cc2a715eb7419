"""trajectories: native, by the other ops after every removal, and by the reference.

Those two are cubic in Python calls: of ResNet-50 they get the layers of up to 256 filters, and so does the native op
once more, so that the same work is compared.

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


def redundancy_left(dense: Tensor, order: Tensor, k: int) -> float:
    """Compute entry k the obvious way on top of the other ops: those of the graph that is left."""
    left = order[k:].sort().values
    graph = FilterGraphs.from_dense([dense[left][:, left]])
    cover = (int(ops.covering(graph, 1)) + int(ops.covering(graph, 2))) / 2
    return len(left) / (0.35 * int(ops.components(graph)) + 0.65 * cover)


def step_by_step(graphs: FilterGraphs, orders: list[Tensor]) -> list[list[float]]:
    dense = [graphs.to_dense(i) for i in range(len(graphs))]
    return [[redundancy_left(d, order, k) for k in range(len(order))] for d, order in zip(dense, orders, strict=True)]


def assert_right_along_the_way(graphs: FilterGraphs, orders: list[Tensor]) -> None:
    """Check entries from the beginning to the end of every layer's trajectory."""
    for i, (order, values) in enumerate(zip(orders, ops.trajectories(graphs, orders), strict=True)):
        dense, n = graphs.to_dense(i), len(order)
        assert values.shape == (n,)
        for k in {0, 1, n // 4, n // 2, 3 * n // 4, n - 1}:
            assert float(values[k]) == redundancy_left(dense, order, k)


@pytest.mark.parametrize("network", layers.SHAPES)
def bench_trajectories_native(benchmark, network, graphs_of):
    graphs, orders = graphs_of[network], orders_of(graphs_of[network])
    assert_right_along_the_way(graphs, orders)
    benchmark(ops.trajectories, graphs, orders)


@pytest.mark.parametrize("network", layers.IN_PYTHON)
def bench_trajectories_step_by_step(benchmark, network, graphs_of):
    graphs, orders = graphs_of[network], orders_of(graphs_of[network])
    assert [values.tolist() for values in ops.trajectories(graphs, orders)] == step_by_step(graphs, orders)
    benchmark.pedantic(step_by_step, (graphs, orders), rounds=1)


@pytest.mark.parametrize("network", layers.IN_PYTHON)
def bench_trajectories_reference(benchmark, network, graphs_of):
    graphs, orders = graphs_of[network], orders_of(graphs_of[network])
    pairs = zip(ops.trajectories(graphs, orders), reference.trajectories(graphs, orders), strict=True)
    assert all(torch.equal(native, exact) for native, exact in pairs)
    benchmark.pedantic(reference.trajectories, (graphs, orders), rounds=1)
