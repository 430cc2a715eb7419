"""trajectories: ours, the other ops after every removal, and the reference; and the memory that ours takes.

python -m pytest benchmarks/bench_trajectories.py --benchmark-only
"""

from __future__ import annotations

import functools

import floors
import layers
import peers
import pytest
import torch
from race import Part, Race
from torch import Tensor

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs

IN_SECONDS = 64  # filters of a layer that the peers take all of; of wider layers, so many first filters and entries:
PARTS = {"every_removal": (2048, 4), "reference": (512, 4)}


def assert_right_along_the_way(graphs: FilterGraphs, orders: list[Tensor], trajectories: list[Tensor]) -> None:
    """Check entries from the beginning to the end of every layer's trajectory."""
    for i, (order, values) in enumerate(zip(orders, trajectories, strict=True)):
        dense, n = graphs.to_dense(i), len(order)
        assert values.shape == (n,)
        for k in {0, 1, n // 4, n // 2, 3 * n // 4, n - 1}:
            assert float(values[k]) == peers.redundancy_left(dense, order, k)


def removals(n_filters: tuple[int, ...], limits: list[int]) -> int:
    """Work of trajectories: entry k looks at the pairs of the n - k vertices that are left."""
    return sum((n - k) ** 2 for n, limit in zip(n_filters, limits, strict=True) for k in range(limit))


@pytest.mark.parametrize("path", ["ours", "ours_cpu", "every_removal", "reference"])
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_trajectories(network: str, path: str, race: Race, device: torch.device) -> None:
    graphs = layers.graphs(network, device=device.type)
    orders = layers.orders(graphs.n_filters)
    ours = functools.partial(ops.trajectories, graphs, orders)
    race.enter("trajectories", network, floors.of_rows(graphs), layers.sizes(layers.weights(network)))
    on_cpu = layers.graphs(network)
    if path == "ours":
        assert_right_along_the_way(on_cpu, orders, ours())
        race.run(ours)
    elif path == "ours_cpu":
        for a, b in zip(ops.trajectories(on_cpu, orders), ours(), strict=True):
            assert torch.equal(a, b.cpu())
        race.run(functools.partial(ops.trajectories, on_cpu, orders), ours)
    else:
        whole = max(graphs.n_filters) <= IN_SECONDS
        most, entries = (IN_SECONDS, IN_SECONDS) if whole else PARTS[path]
        most //= 2 if race.quick and not whole else 1
        part = layers.graphs(network, most=most)
        going = layers.orders(part.n_filters)
        limits = [min(entries, n) for n in part.n_filters]

        def peer() -> list[Tensor]:
            if path == "reference":
                return reference.trajectories(part, going, limits=limits)
            return peers.every_removal(part, going, limits)

        for a, b in zip(ops.trajectories(part, going, limits=limits), race.answer(peer), strict=True):
            assert torch.equal(a, b)
        factor = removals(graphs.n_filters, list(graphs.n_filters)) / removals(part.n_filters, limits)
        rule = f"from the first {entries} entries for the first {most} filters of each layer, by the pairs left"
        race.run(peer, ours, None if whole else Part(factor, rule))
