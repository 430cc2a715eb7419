"""trajectories: after every removal the redundancy of the graph that is left."""

from __future__ import annotations

import math

import pytest
import torch
from graph_cases import graphs, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


def random_orders(packed: FilterGraphs, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) for n in packed.n_filters]


@settings(max_examples=40, deadline=None)
@given(graphs(max_n=40), st.integers(0, 1000))
def test_equals_the_reference(packed, seed):
    orders = random_orders(packed, seed)
    got, expected = ops.trajectories(packed, orders), reference.trajectories(packed, orders)
    assert len(got) == len(expected) == len(packed)
    for values, exact, n in zip(got, expected, packed.n_filters, strict=True):
        assert values.dtype == torch.float64 and values.shape == (n,)
        assert torch.equal(values, exact)


@pytest.mark.parametrize("n", [63, 64, 65, 129, 150])
@pytest.mark.parametrize("density", [0.02, 0.4])
def test_each_entry_is_that_of_the_induced_subgraph(n, density):
    """129 and 150 cross the stretches that the CPU kernel computes apart."""
    adjacency = random_graph(n, density, n)
    packed = FilterGraphs.from_dense([adjacency])
    (order,) = random_orders(packed, n)
    (values,) = ops.trajectories(packed, [order])
    for k in {0, 1, 62, 63, 64, n // 2, n - 2, n - 1} & set(range(n)):
        left = order[k:].sort().values
        graph = FilterGraphs.from_dense([adjacency[left][:, left]])
        cover = (int(ops.covering(graph, 1)) + int(ops.covering(graph, 2))) / 2
        assert values[k] == (n - k) / (0.35 * int(ops.components(graph)) + 0.65 * cover)


@settings(max_examples=30, deadline=None)
@given(graphs(max_n=140), st.integers(0, 1000))
def test_redundancy_lies_between_one_and_the_filters_left(packed, seed):
    for values, n in zip(ops.trajectories(packed, random_orders(packed, seed)), packed.n_filters, strict=True):
        left = torch.arange(n, 0, -1, dtype=torch.float64)
        assert bool((values >= 1 - 1e-12).all() and (values <= left * (1 + 1e-12)).all())
        assert n == 0 or values[-1] == 1


def test_known_graphs():
    packed = FilterGraphs.from_dense([torch.ones(70, 70).bool(), torch.zeros(70, 70).bool(), torch.ones(1, 1).bool()])
    complete, edgeless, single = ops.trajectories(packed, random_orders(packed))
    assert torch.allclose(complete, torch.arange(70, 0, -1, dtype=torch.float64), rtol=1e-15)
    assert torch.allclose(edgeless, torch.ones(70, dtype=torch.float64), rtol=1e-15)
    assert single.tolist() == [1.0]


def test_a_bridge_that_goes_leaves_two_components():
    path = torch.diag(torch.ones(4, dtype=torch.bool), 1)
    packed = FilterGraphs.from_dense([path | path.T])
    values = ops.trajectories(packed, [torch.tensor([2, 0, 1, 3, 4])], component_weight=1.0, cover_weight=0.0)[0]
    assert values.tolist() == [5 / 1, 4 / 2, 3 / 2, 2 / 1, 1 / 1]


def test_weights():
    packed = FilterGraphs.from_dense([random_graph(20, 0.1, 1)])
    orders = random_orders(packed)
    for weights in ({"component_weight": 0.5, "cover_weight": 0.5}, {"component_weight": 0.0, "cover_weight": 2.0}):
        got, expected = ops.trajectories(packed, orders, **weights), reference.trajectories(packed, orders, **weights)
        assert torch.equal(got[0], expected[0])
    default = ops.trajectories(packed, orders)
    assert torch.equal(default[0], ops.trajectories(packed, orders, component_weight=0.35, cover_weight=0.65)[0])


def test_limits_cut_the_trajectory_short():
    packed = FilterGraphs.from_dense([random_graph(n, 0.1, n) for n in (150, 5, 66, 0)])
    orders = random_orders(packed)
    full = ops.trajectories(packed, orders)
    for limits in ([100, 5, 0, 0], [0, 0, 0, 0], [1, 4, 65, 0]):
        for values, whole, limit in zip(ops.trajectories(packed, orders, limits=limits), full, limits, strict=True):
            assert torch.equal(values, whole[:limit])
    short = reference.trajectories(packed, orders, limits=[3, 2, 1, 0])
    assert [torch.equal(a, b[: len(a)]) for a, b in zip(short, full, strict=True)] == [True] * 4


def test_relabelling_the_filters_changes_nothing_but_ties():
    """On graphs whose covers have no ties: complete ones."""
    packed = FilterGraphs.from_dense([torch.ones(33, 33).bool()])
    first, second = (ops.trajectories(packed, random_orders(packed, seed))[0] for seed in (1, 2))
    assert torch.equal(first, second)


def test_threads_give_the_same_answer():
    packed = FilterGraphs.from_dense([random_graph(n, 4 / n, n) for n in (300, 3, 129, 64, 65)])
    orders, before, answers = random_orders(packed), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            answers.append(torch.cat(ops.trajectories(packed, orders)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_empty_list():
    assert ops.trajectories(FilterGraphs.from_dense([]), []) == []


def test_orders_may_be_lists_or_any_integer_type():
    packed = FilterGraphs.from_dense([random_graph(4, 0.5, 0)])
    expected = ops.trajectories(packed, [torch.tensor([3, 1, 0, 2])])[0]
    for order in ([3, 1, 0, 2], torch.tensor([3, 1, 0, 2], dtype=torch.int32), torch.tensor([3, 1, 0, 2]).numpy()):
        assert torch.equal(ops.trajectories(packed, [order])[0], expected)


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("orders", "options", "error", "message"),
    [
        ([], {}, ValueError, r"orders must have one entry per layer \(1\), got 0"),
        ([[0, 1]], {}, ValueError, r"orders\[0\] must be a permutation of 0 .. 2"),
        ([[0, 1, 1]], {}, ValueError, r"orders\[0\] must be a permutation"),
        ([[0, 1, 3]], {}, ValueError, r"orders\[0\] must be a permutation"),
        ([[0.0, 1.0, 2.0]], {}, TypeError, r"orders\[0\] must be integers"),
        ([None], {}, TypeError, r"orders\[0\] must be a tensor of integers, got NoneType"),
        ([["a"]], {}, TypeError, r"orders\[0\] must be a tensor of integers, got list"),
        (None, {}, TypeError, "orders must be a sequence of permutations, one per layer, got NoneType"),
        ([[0, 1, 2]], {"limits": [4]}, ValueError, r"limits\[0\] must lie in 0 .. 3"),
        ([[0, 1, 2]], {"limits": []}, ValueError, "limits must have one entry per layer"),
        ([[0, 1, 2]], {"component_weight": -1.0}, ValueError, "component_weight must be finite and at least 0"),
        ([[0, 1, 2]], {"cover_weight": math.nan}, ValueError, "cover_weight must be finite"),
        ([[0, 1, 2]], {"component_weight": 0.0, "cover_weight": 0.0}, ValueError, "must not both be 0"),
    ],
)
def test_arguments_are_checked(implementation, orders, options, error, message):
    packed = FilterGraphs.from_dense([torch.ones(3, 3, dtype=torch.bool)])
    with pytest.raises(error, match=message):
        implementation.trajectories(packed, orders, **options)
