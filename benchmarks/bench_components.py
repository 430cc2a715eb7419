"""components: ours, the obvious PyTorch, SciPy and the reference.

python -m pytest benchmarks/bench_components.py --benchmark-only
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

MOST = 2048  # filters of a layer that the reference is given, and a quarter of those that SciPy is


@pytest.mark.parametrize("path", ["ours", "ours_cpu", "pytorch", "scipy", "reference"])
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_components(network: str, path: str, race: Race, device: torch.device) -> None:
    graphs = layers.graphs(network, device=device.type)
    ours = functools.partial(ops.components, graphs)
    race.enter("components", network, floors.of_rows(graphs), layers.sizes(layers.weights(network)))
    if path == "ours":
        assert ours().tolist() == peers.pytorch_components(layers.dense(graphs))
        race.run(ours)
    elif path == "ours_cpu":
        on_cpu = layers.graphs(network)
        assert torch.equal(ops.components(on_cpu), ours().cpu())
        race.run(functools.partial(ops.components, on_cpu), ours)
    elif path == "pytorch":
        dense = layers.dense(graphs)
        peer = functools.partial(peers.pytorch_components, dense)
        assert race.answer(peer) == ours().tolist()
        race.run(peer, ours)
    elif path == "scipy":
        most = 4 * MOST
        part = layers.graphs(network, most=most)
        peer = functools.partial(peers.scipy_components, layers.arrays(part))
        assert race.answer(peer) == ops.components(part).tolist()
        race.run(peer, ours, layers.extrapolation(network, most, power=2))
    else:
        part = layers.graphs(network, most=MOST)
        slow = functools.partial(reference.components, part)
        assert torch.equal(race.answer(slow), ops.components(part))
        race.run(slow, ours, layers.extrapolation(network, MOST, power=2))
