"""What every benchmark of the ops starts from: layers, graphs, and the matrix-product rate of this very run."""

from __future__ import annotations

import time

import layers
import pytest
import torch

from srr_ext import _native, ops
from srr_ext.ops import FilterGraphs


@pytest.fixture(scope="session")
def sgemm_rate() -> float:
    """Best rate of torch's single-precision matrix product on this machine, now, in FLOP/s: the unit of the floor."""
    a, b = torch.randn(1024, 2048), torch.randn(2048, 1024)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 1024 * 1024 * 2048 / (time.perf_counter() - start))
    return best


@pytest.fixture(scope="session")
def graphs_of() -> dict[str, FilterGraphs]:
    """Filter graphs of every network, and of the parts, at its typical threshold."""
    return {name: ops.filter_graphs(layers.weights(name), layers.typical_gamma(name)) for name in layers.SHAPES}


@pytest.fixture(autouse=True)
def sizes(request: pytest.FixtureRequest) -> None:
    """Record beside every timing what was computed, and with what."""
    if "benchmark" not in request.fixturenames:
        return
    network = request.node.callspec.params["network"]
    shapes = layers.SHAPES[network]
    request.getfixturevalue("benchmark").extra_info.update(
        network=network,
        layers=len(shapes),
        filters=sum(shape[0] for shape in shapes),
        widest=max(shape[0] for shape in shapes),
        threads=torch.get_num_threads(),
        cpu_kernel=_native.build_info()["cpu_kernel"],
    )
