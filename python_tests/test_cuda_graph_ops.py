"""components, covering and trajectories on every device: the answers of the reference, exactly."""

from __future__ import annotations

import pytest
import torch
from graph_cases import SIZES, random_graph
from torch import Tensor

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


def on(device: torch.device, graphs: FilterGraphs) -> FilterGraphs:
    return FilterGraphs(graphs.words.to(device), graphs.n_filters)


def shuffled(n_filters: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(n_filters))
    return [torch.randperm(n, generator=generator) for n in n_filters]


def path(n: int) -> Tensor:
    """0 - 1 - ... - (n - 1), the graph whose components take longest to spread."""
    line = torch.diag(torch.ones(max(n - 1, 0), dtype=torch.bool), 1)[:n, :n]
    return line | line.T


def ladder(n: int, step: int) -> Tensor:
    """Join filters that are ``step`` apart."""
    far = torch.diag(torch.ones(n - step, dtype=torch.bool), step)
    return far | far.T


def star(n: int, centre: int) -> Tensor:
    rays = torch.zeros(n, n, dtype=torch.bool)
    rays[centre] = rays[:, centre] = True
    return rays.fill_diagonal_(False)


LAYERS: dict[str, list[Tensor]] = {
    "random": [random_graph(n, density, n) for n in SIZES for density in (1 / n, 4 / n, 0.3)],
    "shapes": [path(200), ladder(130, 65), star(129, 128), torch.ones(190, 190).bool(), torch.zeros(70, 70).bool()],
    "empty and single": [torch.zeros(n, n).bool() for n in (0, 1, 0, 2, 0)],
    "many": [random_graph(1 + (i * 37) % 60, 0.1, i) for i in range(200)],
    "none": [],
}


@pytest.mark.parametrize("name", LAYERS)
def test_components_and_covers_equal_the_reference(name, device):
    graphs = FilterGraphs.from_dense(LAYERS[name])
    there = on(device, graphs)
    assert torch.equal(ops.components(there).cpu(), reference.components(graphs))
    for radius in (1, 2):
        got = ops.covering(there, radius)
        assert got.device.type == device.type and torch.equal(got.cpu(), reference.covering(graphs, radius))


@pytest.mark.parametrize("name", LAYERS)
def test_trajectories_equal_the_reference(name, device):
    graphs = FilterGraphs.from_dense(LAYERS[name])
    orders = shuffled(graphs.n_filters)
    limits = [min(n, 40) for n in graphs.n_filters]
    for options in ({}, {"component_weight": 0.5, "cover_weight": 0.25}):
        got = ops.trajectories(on(device, graphs), [order.to(device) for order in orders], limits=limits, **options)
        expected = reference.trajectories(graphs, orders, limits=limits, **options)
        assert [values.tolist() for values in got] == [values.tolist() for values in expected]


def test_whole_trajectories_equal_those_of_the_cpu(device):
    graphs = FilterGraphs.from_dense([random_graph(n, 5 / n, n) for n in (700, 64, 257, 1)])
    orders = shuffled(graphs.n_filters)
    got, expected = ops.trajectories(on(device, graphs), orders), ops.trajectories(graphs, orders)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))
    assert [float(values[-1]) for values in got] == [1.0] * 4


def blocks_of_paths(n: int, length: int, device: torch.device) -> FilterGraphs:
    """n filters as paths of ``length`` each, far apart in the words: v is joined to v + n / length."""
    step, per_row = n // length, -(-n // 64)
    words = torch.zeros(n * per_row, dtype=torch.int64, device=device)
    low = torch.arange(n - step, device=device)
    for v, u in ((low, low + step), (low + step, low)):  # every word gets at most one bit of each kind
        bit = torch.ones_like(u) << (u % 64)
        words.scatter_add_(0, v * per_row + u // 64, bit)
    return FilterGraphs(words, (n,))


@pytest.mark.parametrize(
    "n", [2048, 4096 + 64, pytest.param(16384, marks=pytest.mark.cuda), pytest.param(65536, marks=pytest.mark.cuda)]
)
def test_wide_layers_of_known_structure(n, device):
    """The blocks do not touch, so the answers are those of one block times their number; 65,536 filters on a GPU."""
    if n > 5000 and device.type == "cpu":
        pytest.skip("the CPU is tested with the smaller ones")
    length = 16
    graphs = blocks_of_paths(n, length, device)
    one = FilterGraphs.from_dense([path(length)])
    count = n // length
    assert ops.components(graphs).tolist() == [count]
    for radius in (1, 2):
        assert ops.covering(graphs, radius).tolist() == [count * int(reference.covering(one, radius))]

    def sizes(k: int) -> tuple[int, int, int]:
        """Components and both covers of a path after its first k filters are gone; none if no filter is."""
        left = FilterGraphs.from_dense([one.to_dense(0)[k % length :, k % length :]] if k else [])
        found = (reference.components(left), reference.covering(left, 1), reference.covering(left, 2))
        return tuple(int(value.sum()) for value in found)

    # One path after another goes, from its first filter on.
    order = torch.arange(n).view(length, count).T.reshape(-1)
    limit = 2 * length + 1
    (values,) = ops.trajectories(graphs, [order], limits=[limit])
    for k in range(limit):
        gone, shorter_by = divmod(k, length)
        full = count - gone - (shorter_by > 0)
        q, upper, lower = (full * whole + rest for whole, rest in zip(sizes(length), sizes(shorter_by), strict=True))
        assert float(values[k]) == (n - k) / (0.35 * q + 0.65 * ((upper + lower) / 2)), k


@pytest.mark.cuda
@pytest.mark.parametrize("op", ["components", "covering", "trajectories"])
def test_a_wider_layer_is_refused(op, cuda):
    n = 65537
    words = torch.empty(n * -(-n // 64), dtype=torch.int64, device=cuda)
    arguments = {
        "components": (words, [n]),
        "covering": (words, [n], 1),
        "trajectories": (words, [n], torch.arange(n, device=cuda), [1], 0.35, 0.65),
    }
    with pytest.raises(RuntimeError, match=r"at most 65536 .*on CUDA, got 65537"):
        getattr(torch.ops.srr_ext, op)(*arguments[op])


@pytest.mark.cuda
def test_tensors_of_one_call_are_on_one_device(cuda):
    graphs = FilterGraphs.from_dense([random_graph(70, 0.1, 0)])
    with pytest.raises(RuntimeError):
        torch.ops.srr_ext.trajectories(graphs.words.to(cuda), [70], torch.arange(70), [70], 0.35, 0.65)
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.srr_ext.filter_graphs([torch.ones(3, 3, device=cuda), torch.ones(3, 3)], [0.1, 0.1])
