"""One evaluation of R: components and both covers. Ours, SciPy with NetworkX (one cover, not two) and the reference.

Two densities: half of all pairs joined, on which the peers, which go from edge to edge, take longest; and one in forty.

python -m pytest benchmarks/bench_redundancy.py --benchmark-only
"""

from __future__ import annotations

import functools
from types import ModuleType

import floors
import layers
import numpy as np
import peers
import pytest
import torch
from race import Race
from torch import Tensor

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs

MOST = 2048  # filters of a layer that the peers are given


def evaluate(module: ModuleType, graphs: FilterGraphs) -> list[Tensor]:
    """Components, and covers of both radii, by the ops or by the reference."""
    return [module.components(graphs), module.covering(graphs, 1), module.covering(graphs, 2)]


def scipy_networkx(arrays: list[np.ndarray]) -> tuple[list[int], list[set[int]]]:
    """Components, and a dominating set."""
    return peers.scipy_components(arrays), peers.networkx_dominating_sets(arrays)


@pytest.mark.parametrize("path", ["ours", "ours_cpu", "scipy_networkx", "reference"])
@pytest.mark.parametrize("density", layers.DENSITIES)
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_redundancy(network: str, density: str, path: str, race: Race, device: torch.device) -> None:
    graphs = layers.graphs(network, density, device.type)
    part = layers.graphs(network, density, most=MOST)
    ours = functools.partial(evaluate, ops, graphs)
    sizes = layers.sizes(layers.weights(network))
    race.enter(f"components and covers, {density}", network, floors.of_rows(graphs), sizes)
    if path == "ours":
        for a, b in zip(evaluate(ops, part), evaluate(reference, part), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(ours(), evaluate(ops, layers.graphs(network, density)), strict=True):
            assert torch.equal(a.cpu(), b)
        race.run(ours)
    elif path == "ours_cpu":
        on_cpu = layers.graphs(network, density)
        for a, b in zip(evaluate(ops, on_cpu), ours(), strict=True):
            assert torch.equal(a, b.cpu())
        race.run(functools.partial(evaluate, ops, on_cpu), ours)
    elif path == "scipy_networkx":
        arrays = layers.arrays(part)
        peer = functools.partial(scipy_networkx, arrays)
        components, sets = race.answer(peer)
        assert components == ops.components(part).tolist()
        peers.assert_dominating(part, arrays, sets)
        race.run(peer, ours, layers.extrapolation(network, MOST, power=2))
    else:
        slow = functools.partial(evaluate, reference, part)
        for a, b in zip(race.answer(slow), evaluate(ops, part), strict=True):
            assert torch.equal(a, b)
        race.run(slow, ours, layers.extrapolation(network, MOST, power=2))
