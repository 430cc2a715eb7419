"""covering: ours, the obvious PyTorch, NetworkX (radius 1 alone) and the reference.

python -m pytest benchmarks/bench_covering.py --benchmark-only
"""

from __future__ import annotations

import functools

import floors
import layers
import peers
import pytest
import torch
from race import Race

from srr_ext import ops, reference

MOST = {"reference": 2048, "networkx": 2048, "pytorch": 8192}  # filters of a layer that a slow path is given
BOTH = ("ours", "ours_cpu", "pytorch", "reference")
PATHS = [*((1, path) for path in (*BOTH, "networkx")), *((2, path) for path in BOTH)]  # a dominating set has radius 1


@pytest.mark.parametrize(("radius", "path"), PATHS)
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_covering(network: str, radius: int, path: str, race: Race, device: torch.device) -> None:
    graphs = layers.graphs(network, device=device.type)
    most = MOST.get(path, MOST["pytorch"]) // (4 if race.quick and path == "reference" else 1)
    part = layers.graphs(network, device=device.type, most=most)
    ours = functools.partial(ops.covering, graphs, radius)
    race.enter(f"covering, radius {radius}", network, floors.of_rows(graphs), layers.sizes(layers.weights(network)))
    if path == "ours":
        assert ops.covering(part, radius).tolist() == peers.pytorch_covering(layers.dense(part), radius)
        race.run(ours)
    elif path == "ours_cpu":
        on_cpu = layers.graphs(network)
        assert torch.equal(ops.covering(on_cpu, radius), ours().cpu())
        race.run(functools.partial(ops.covering, on_cpu, radius), ours)
    elif path == "pytorch":
        dense = layers.dense(part)
        peer = functools.partial(peers.pytorch_covering, dense, radius)
        assert race.answer(peer) == ops.covering(part, radius).tolist()
        power = 2 if radius == 1 else 3  # which is a product of matrices
        race.run(peer, ours, layers.extrapolation(network, most, power))
    elif path == "networkx":
        arrays = layers.arrays(part)
        sets = functools.partial(peers.networkx_dominating_sets, arrays)
        peers.assert_dominating(part, arrays, race.answer(sets))
        race.run(sets, ours, layers.extrapolation(network, most, power=2))
    else:
        slow = functools.partial(reference.covering, part, radius)
        assert torch.equal(race.answer(slow), ops.covering(part, radius).cpu())
        race.run(slow, ours, layers.extrapolation(network, most, power=2))
