"""covering: the greedy covers, equal to the reference, and bounds of the covering number found by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from graph_cases import SIZES, covering_number, graphs, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sampled_from([1, 2]))
def test_equals_the_reference(packed, radius):
    got = ops.covering(packed, radius)
    assert got.dtype == torch.int64 and got.shape == (len(packed),)
    assert torch.equal(got, reference.covering(packed, radius))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("radius", [1, 2])
def test_equals_the_reference_at_awkward_sizes(n, radius):
    packed = FilterGraphs.from_dense([random_graph(n, density, n) for density in (0.0, 1 / n, 4 / n, 0.3, 1.0)])
    assert torch.equal(ops.covering(packed, radius), reference.covering(packed, radius))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.floats(0, 1), st.integers(0, 10_000))
def test_bounds_the_covering_number(n, density, seed):
    adjacency = random_graph(n, density, seed)
    packed = FilterGraphs.from_dense([adjacency])
    k, lower, upper = (int(x) for x in (ops.components(packed), ops.covering(packed, 2), ops.covering(packed, 1)))
    assert k <= lower <= covering_number(adjacency) <= upper <= n


@settings(max_examples=30, deadline=None)
@given(graphs(max_n=140))
def test_bounds_are_in_order_at_any_size(packed):
    n = torch.tensor(packed.n_filters, dtype=torch.int64)
    k, lower, upper = ops.components(packed), ops.covering(packed, 2), ops.covering(packed, 1)
    assert bool(((k <= lower) & (lower <= upper) & (upper <= n)).all())


def test_known_graphs():
    star = torch.zeros(70, 70, dtype=torch.bool)
    star[66, :66] = star[:66, 66] = True  # and three vertices apart
    path = torch.diag(torch.ones(4, dtype=torch.bool), 1)
    layers = [torch.zeros(0, 0).bool(), torch.ones(65, 65).bool(), torch.zeros(65, 65).bool(), star, path | path.T]
    packed = FilterGraphs.from_dense(layers)
    assert ops.covering(packed).tolist() == [0, 1, 65, 4, 2]  # the star: its hub and three vertices apart
    assert ops.covering(packed, radius=2).tolist() == [0, 1, 65, 4, 2]


def test_radius_two_keeps_direct_neighbours():
    """In a triangle-free pair the other vertex is at distance 1 and on no walk of length 2."""
    pair = torch.tensor([[False, True], [True, False]])
    assert ops.covering(FilterGraphs.from_dense([pair]), radius=2).tolist() == [1]


@pytest.mark.parametrize(("path", "expected"), [([3, 1, 0, 2, 4], 3), ([3, 0, 1, 2, 4], 2), ([4, 2, 1, 0, 3], 2)])
def test_ties_go_to_the_lowest_index(path, expected):
    """A path of five: starting in the middle takes three centres, starting beside an end takes two."""
    adjacency = torch.zeros(5, 5, dtype=torch.bool)
    for a, b in itertools.pairwise(path):
        adjacency[a, b] = adjacency[b, a] = True
    packed = FilterGraphs.from_dense([adjacency])
    assert ops.covering(packed).tolist() == reference.covering(packed).tolist() == [expected]


def test_empty_list():
    assert ops.covering(FilterGraphs.from_dense([])).tolist() == []


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
def test_arguments_are_checked(implementation):
    packed = FilterGraphs.from_dense([torch.zeros(3, 3, dtype=torch.bool)])
    for radius in (0, 3, "1", True, None, torch.tensor([1, 2]), np.array([1, 2])):
        with pytest.raises(ValueError, match="radius must be 1 or 2"):
            implementation.covering(packed, radius)
    assert implementation.covering(packed, np.int64(2)).tolist() == [3]
    with pytest.raises(TypeError, match="graphs must be a FilterGraphs"):
        implementation.covering([torch.zeros(3, 3)])
