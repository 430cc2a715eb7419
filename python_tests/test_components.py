"""components: the number of connected pieces, by the reference and by linear algebra."""

from __future__ import annotations

import pytest
import torch
from graph_cases import SIZES, graphs, random_graph
from hypothesis import given, settings

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_equals_the_reference(packed):
    got = ops.components(packed)
    assert got.dtype == torch.int64 and got.shape == (len(packed),)
    assert torch.equal(got, reference.components(packed))


@pytest.mark.parametrize("n", SIZES)
def test_counts_the_zero_eigenvalues_of_the_laplacian(n):
    for density in (0.0, 1 / n, 3 / n, 0.3, 1.0):
        adjacency = random_graph(n, density, seed=n).double()
        laplacian = adjacency.sum(1).diag() - adjacency
        expected = int((torch.linalg.eigvalsh(laplacian) < 1e-8).sum())
        assert ops.components(FilterGraphs.from_dense([adjacency.bool()])).tolist() == [expected]


def test_extremes():
    path = torch.diag(torch.ones(299, dtype=torch.bool), 1)
    layers = [torch.zeros(0, 0), torch.zeros(1, 1), torch.zeros(130, 130), torch.ones(130, 130), path | path.T]
    assert ops.components(FilterGraphs.from_dense([m.bool() for m in layers])).tolist() == [0, 1, 130, 1, 1]
    assert ops.components(FilterGraphs.from_dense([])).tolist() == []


def test_zero_filters_are_components_of_their_own():
    weight = torch.ones(6, 4)
    weight[[1, 4]] = 0
    assert ops.components(ops.filter_graphs([weight], 0.1)).tolist() == [3]


def test_threads_give_the_same_answer():
    packed = FilterGraphs.from_dense([random_graph(n, 2 / n, n) for n in (200, 3, 129, 64, 65)])
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            answers.append(ops.components(packed).tolist())
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1] == answers[2] == reference.components(packed).tolist()


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
def test_arguments_are_checked(implementation):
    with pytest.raises(TypeError, match="graphs must be a FilterGraphs"):
        implementation.components(torch.zeros(3, 3, dtype=torch.bool))
