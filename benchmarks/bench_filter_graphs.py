"""filter_graphs: native, by torch's own operations, and by the reference.

The reference gets ResNet-50's layers of up to 256 filters, and so do the others once more, for the same work.

python -m pytest benchmarks/bench_filter_graphs.py --benchmark-only
"""

from __future__ import annotations

import math

import layers
import pytest
import torch
from torch import Tensor

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


def torch_graphs(weights: list[Tensor], gamma: float) -> list[Tensor]:
    """Compute the graphs the obvious way: normalise, multiply, compare; close calls are left to rounding."""
    dense = []
    for weight in weights:
        v = torch.nn.functional.normalize(weight.flatten(1), dim=1)
        joined = v @ v.T >= 1 - gamma**2 * v.shape[1] / 2
        dense.append(joined.fill_diagonal_(False))
    return dense


def assert_agree(packed: FilterGraphs, dense: list[Tensor], weights: list[Tensor], gamma: float) -> None:
    """Check that graphs agree on every pair that single precision can tell from the threshold."""
    for i, (matrix, weight) in enumerate(zip(dense, weights, strict=True)):
        different = packed.to_dense(i) != matrix
        if different.any():
            v = torch.nn.functional.normalize(weight.flatten(1).double(), dim=1)
            distance = (v @ v.T - (1 - gamma**2 * v.shape[1] / 2))[different].abs()
            assert float(distance.max()) < 1e-5 * math.sqrt(v.shape[1])


@pytest.mark.parametrize("network", layers.SHAPES)
def bench_filter_graphs_native(benchmark, network, sgemm_rate):
    weights, gamma = layers.weights(network), layers.typical_gamma(network)
    assert_agree(ops.filter_graphs(weights, gamma), torch_graphs(weights, gamma), weights, gamma)
    benchmark(ops.filter_graphs, weights, gamma)
    flop = layers.triangle_flop(network)
    floor = flop / sgemm_rate
    benchmark.extra_info.update(
        gflop=flop / 1e9, sgemm_gflops=sgemm_rate / 1e9, floor_s=floor, times_floor=benchmark.stats.stats.min / floor
    )


@pytest.mark.parametrize("network", layers.SHAPES)
def bench_filter_graphs_torch(benchmark, network):
    weights, gamma = layers.weights(network), layers.typical_gamma(network)
    assert_agree(ops.filter_graphs(weights, gamma), torch_graphs(weights, gamma), weights, gamma)
    benchmark(torch_graphs, weights, gamma)


@pytest.mark.parametrize("network", layers.IN_PYTHON)
def bench_filter_graphs_reference(benchmark, network):
    weights, gamma = layers.weights(network), layers.typical_gamma(network)
    assert torch.equal(ops.filter_graphs(weights, gamma).words, reference.filter_graphs(weights, gamma).words)
    benchmark.pedantic(reference.filter_graphs, (weights, gamma), rounds=1)
