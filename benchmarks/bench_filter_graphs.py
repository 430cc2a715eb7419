"""filter_graphs: ours, the obvious PyTorch, torch.cdist and the reference; and many thresholds in one pass.

python -m pytest benchmarks/bench_filter_graphs.py --benchmark-only
"""

from __future__ import annotations

import functools

import floors
import layers
import peers
import pytest
import torch
from race import Part, Race

from srr_ext import ops, reference

PEERS = {"pytorch": peers.pytorch_graphs, "cdist": peers.cdist_graphs}
LEVELS = 21  # thresholds, about as many as a bisection tries
IN_SECONDS = 2_000_000  # weights that the reference compares in seconds


@functools.cache
def check(network: str, peer: str, device: torch.device) -> None:
    """Check that ours gives the graphs of a peer."""
    weights = layers.weights(network, device)
    gammas = layers.gammas(weights)
    peers.assert_same_graphs(ops.filter_graphs(weights, gammas), PEERS[peer](weights, gammas), weights, gammas)


@pytest.mark.parametrize("path", ["ours", "ours_cpu", "pytorch", "cdist", "reference"])
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_filter_graphs(network: str, path: str, race: Race, device: torch.device) -> None:
    weights = layers.weights(network, device)
    gammas, floor = layers.gammas(weights), floors.of_graphs(weights)
    ours = functools.partial(ops.filter_graphs, weights, gammas)
    race.enter("graphs", network, floor, layers.sizes(weights))
    if path == "ours":
        check(network, "pytorch", device)
        race.run(ours)
    elif path == "ours_cpu":
        on_cpu = layers.weights(network)
        assert torch.equal(ops.filter_graphs(on_cpu, gammas).words, ours().words.cpu())
        race.run(functools.partial(ops.filter_graphs, on_cpu, gammas), ours)
    elif path == "reference":
        few = sum(weight.numel() for weight in weights) <= IN_SECONDS
        most, weights_each = (None, None) if few else (2048, 16 if race.quick else 64)
        part = layers.first(layers.weights(network), most, weights_each)
        at = layers.gammas(part)
        slow = functools.partial(reference.filter_graphs, part, at)
        assert torch.equal(ops.filter_graphs(part, at).words, race.answer(slow).words)
        rule = f"from the first {weights_each} weights of the first {most} filters of each layer, by n^2 fan-in"
        share = None if few else Part(floor.work / floors.of_graphs(part).work, rule)
        race.run(slow, ours, share)
    else:
        check(network, path, device)
        race.run(functools.partial(PEERS[path], weights, gammas), ours)


@pytest.mark.parametrize("path", ["ours", "one_by_one"])
@pytest.mark.parametrize("network", ["resnet56", "resnet50"])
def bench_filter_graph_levels(network: str, path: str, race: Race, device: torch.device) -> None:
    weights = layers.weights(network, device)
    levels = [[gamma * (0.9 + 0.01 * level) for gamma in layers.gammas(weights)] for level in range(LEVELS)]
    ours = functools.partial(ops.filter_graph_levels, weights, levels)

    def one_by_one() -> list[ops.FilterGraphs]:
        return [ops.filter_graphs(weights, gammas) for gammas in levels]

    first, second = (ours, one_by_one) if path == "ours" else (one_by_one, ours)
    assert all(torch.equal(a.words, b.words) for a, b in zip(race.answer(first), second(), strict=True))
    race.enter(f"graphs at {LEVELS} gammas", network, floors.of_graphs(weights), layers.sizes(weights))
    if path == "ours":
        race.run(ours)
    else:
        race.run(one_by_one, ours)
