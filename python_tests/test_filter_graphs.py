"""filter_graphs: equal to the reference on every pair, for any shape, type, layout, threshold and number of threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from graph_cases import SIZES, gamma_of_cosine, graphs, median_gamma, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_ext import ops, reference
from srr_ext.ops import FilterGraphs


def assert_same(weights: list[torch.Tensor], gamma: float) -> FilterGraphs:
    got, expected = ops.filter_graphs(weights, gamma), reference.filter_graphs(weights, gamma)
    assert got.n_filters == expected.n_filters == tuple(len(w) for w in weights)
    assert got.zero_filters == expected.zero_filters
    assert torch.equal(got.words, expected.words)
    return got


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", [(1,), (3, 3, 3), (31,), (300,)], ids=str)
def test_equals_the_reference(n, shape):
    weight = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))
    for factor in (0.0, 0.5, 1.0, 1.02, 100.0):
        assert_same([weight], factor * median_gamma(weight))


def test_equals_the_reference_where_partial_sums_are_added_up():
    weight = torch.randn(40, 1, 700, generator=torch.Generator().manual_seed(0))
    assert_same([weight], median_gamma(weight))


def test_equals_the_definition():
    weight = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gamma = median_gamma(weight)
    v = weight.flatten(1) / weight.flatten(1).norm(dim=1, keepdim=True)
    expected = torch.cdist(v, v, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(36) <= gamma
    expected.fill_diagonal_(False)
    assert torch.equal(ops.filter_graphs([weight], gamma).to_dense(0), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype):
    weights = [torch.randn(n, 5, 3, 3, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (33, 64, 130)]
    assert_same(weights, median_gamma(weights[0]))


def test_layers_of_different_types_in_one_call():
    types = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    weights = [torch.randn(10 + i, 7).to(t) for i, t in enumerate(types)]
    together = assert_same(weights, 0.4)
    for i, weight in enumerate(weights):
        assert torch.equal(together.to_dense(i), ops.filter_graphs([weight], 0.4).to_dense(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
        lambda w: w.contiguous(memory_format=torch.channels_last),
        lambda w: torch.stack([w, w], dim=-1)[..., 0],
        lambda w: torch.cat([w, w])[: len(w)],
        lambda w: torch.nn.Parameter(w),
    ],
    ids=["transposed", "channels_last", "strided", "view", "parameter"],
)
def test_layouts(change):
    weight = torch.randn(40, 6, 3, 3, generator=torch.Generator().manual_seed(2))
    gamma = median_gamma(weight)
    assert torch.equal(ops.filter_graphs([change(weight)], gamma).words, ops.filter_graphs([weight], gamma).words)


def test_weights_are_left_alone():
    weight = torch.randn(20, 9)
    copy = weight.clone()
    ops.filter_graphs([weight], 0.1)
    assert torch.equal(weight, copy)


def test_empty_lists_and_empty_layers():
    assert len(ops.filter_graphs([], 0.1)) == 0
    graph = assert_same([torch.randn(0, 3), torch.randn(2, 3), torch.randn(0, 3, 3), torch.randn(3, 0)], 10.0)
    assert graph.n_filters == (0, 2, 0, 3)
    assert graph.offsets == (0, 0, 2, 2, 5)
    assert graph.zero_filters[3] == (0, 1, 2)


def test_one_filter_has_no_edge():
    assert not assert_same([torch.randn(1, 9)], 10.0).to_dense(0).any()


def test_one_dimensional_weights_are_filters_of_one_element():
    graph = assert_same([torch.tensor([1.0, -2.0, 3.0, 0.0])], 0.5)
    assert graph.to_dense(0).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert graph.zero_filters == ((3,),)


def test_zero_filters_have_no_edge_at_any_threshold():
    weight = torch.randn(70, 8)
    weight[[0, 5, 69]] = 0
    graph = assert_same([weight], 1e6)
    assert graph.zero_filters == ((0, 5, 69),)
    dense = graph.to_dense(0)
    assert not dense[[0, 5, 69]].any() and not dense[:, [0, 5, 69]].any()
    assert int(dense.sum()) == 67 * 66


def test_duplicates_are_joined_at_threshold_zero_and_power_of_two_multiples_too():
    weight = torch.randn(66, 100, generator=torch.Generator().manual_seed(3))
    weight[65] = weight[1]
    weight[40] = 4 * weight[2]
    weight[41] = -weight[3]
    dense = assert_same([weight], 0.0).to_dense(0)
    assert dense.nonzero().tolist() == [[1, 65], [2, 40], [40, 2], [65, 1]]


def test_pairs_on_the_threshold_itself():
    """Distances that gamma meets exactly, or misses by one unit in the last place."""
    angles = torch.linspace(0, 1.5, 40, dtype=torch.float64)
    weight = torch.stack([angles.cos(), angles.sin()], 1)
    v = weight / weight.norm(dim=1, keepdim=True)
    for j in range(1, 40):
        gamma = float((v[0] - v[j]).norm()) / math.sqrt(2)
        for threshold in (np.nextafter(gamma, 0), gamma, np.nextafter(gamma, 1)):
            assert_same([weight], float(threshold))


@pytest.mark.parametrize("fan_in", [9, 576, 2304])
def test_pairs_closer_to_the_threshold_than_single_precision_can_tell(fan_in):
    """Every pair (0, j) has nearly the same cosine; the threshold runs through the middle of them."""
    generator = torch.Generator().manual_seed(fan_in)
    base = torch.randn(fan_in, generator=generator, dtype=torch.float64)
    base /= base.norm()
    side = torch.randn(90, fan_in, generator=generator, dtype=torch.float64)
    side -= (side @ base)[:, None] * base
    side /= side.norm(dim=1, keepdim=True)
    cosine = 0.5 + 1e-9 * torch.randn(90, 1, generator=generator, dtype=torch.float64)
    weight = torch.cat([base[None], cosine * base + (1 - cosine**2).sqrt() * side])
    dense = assert_same([weight], gamma_of_cosine(0.5, fan_in)).to_dense(0)
    assert 20 < int(dense[0].sum()) < 70


def test_no_weight_overflows_or_vanishes():
    rows = torch.randn(20, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = ops.filter_graphs([rows], 0.25)
    for exponent in (-900, -500, 500, 900):
        assert torch.equal(assert_same([rows * 2.0**exponent], 0.25).words, expected.words)
    tiny = torch.tensor([[5e-324, 0.0], [1.0, 0.0], [1e308, 1e308], [0.0, 0.0]], dtype=torch.float64)
    assert assert_same([tiny], 0.0).to_dense(0).nonzero().tolist() == [[0, 1], [1, 0]]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        info = torch.finfo(dtype)
        extreme = torch.tensor([[info.max, info.max], [info.smallest_normal] * 2, [info.max, 0]]).to(dtype)
        assert assert_same([extreme], 1e-9).to_dense(0).nonzero().tolist() == [[0, 1], [1, 0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 40), st.integers(0, 1000), st.floats(0, 2))
def test_symmetric_without_self_loops_monotone_and_invariant(n, fan_in, seed, factor):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, fan_in, generator=generator)
    gamma = factor * median_gamma(weight)
    graph = assert_same([weight], gamma)
    dense = graph.to_dense(0)
    assert torch.equal(dense, dense.T) and not dense.diagonal().any()
    assert not (dense & ~ops.filter_graphs([weight], gamma * 1.1).to_dense(0)).any()
    order = torch.randperm(n, generator=generator)
    assert torch.equal(ops.filter_graphs([weight[order]], gamma).to_dense(0), dense[order][:, order])
    scale = 2.0 ** torch.randint(-8, 9, (n, 1), generator=generator)
    assert torch.equal(ops.filter_graphs([weight * scale], gamma).words, graph.words)


def test_scaled_filters_keep_their_graph_away_from_the_threshold():
    weight = torch.randn(64, 27, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    distances = torch.pdist(weight / weight.norm(dim=1, keepdim=True)).sort().values
    gap = int((distances[1:] - distances[:-1])[500:1500].argmax()) + 500
    gamma = float(distances[gap : gap + 2].mean()) / math.sqrt(27)
    scale = torch.rand(64, 1, dtype=torch.float64) + 0.1
    assert torch.equal(ops.filter_graphs([weight * scale], gamma).words, ops.filter_graphs([weight], gamma).words)


def test_threads_and_repeats_give_the_same_words():
    weights = [torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (300, 16, 129, 64)]
    gamma, before = median_gamma(weights[0]), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(ops.filter_graphs(weights, gamma).words)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_layers_that_do_not_fit_the_scratch_together():
    weights = [torch.randn(128, 20_000, generator=torch.Generator().manual_seed(i)) for i in range(8)]  # 80 MB packed
    gamma = median_gamma(weights[0])
    together = ops.filter_graphs(weights, gamma)
    for i in (0, 6, 7):
        assert torch.equal(together.to_dense(i), ops.filter_graphs([weights[i]], gamma).to_dense(0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weights_that_are_not_finite_are_named(implementation, bad, dtype):
    weights = [torch.randn(0, 4), torch.randn(3, 4), torch.randn(40, 13).to(dtype)]
    weights[2][37, 11] = bad
    with pytest.raises(ValueError, match=r"weights\[2\] must be finite, got NaN or infinity in filter 37"):
        implementation.filter_graphs(weights, 0.1)


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("weights", "gamma", "error", "message"),
    [
        (torch.randn(3, 3), 0.1, TypeError, "weights must be a sequence"),
        ([[1.0]], 0.1, TypeError, r"weights\[0\] must be a tensor, got list"),
        ([torch.ones(2, 2, dtype=torch.int64)], 0.1, TypeError, r"weights\[0\] must be float16"),
        ([torch.randn(2, 2), torch.tensor(1.0)], 0.1, ValueError, r"weights\[1\] must have shape"),
        ([torch.randn(2, 2), torch.empty(2, 2, device="meta")], 0.1, ValueError, r"weights\[1\] must be on cpu"),
        ([torch.randn(2, 2)], -0.1, ValueError, "gamma must be finite and at least 0, got -0.1"),
        ([torch.randn(2, 2)], math.nan, ValueError, "gamma must be finite"),
        ([torch.randn(2, 2)], math.inf, ValueError, "gamma must be finite"),
        ([torch.randn(2, 2)], "auto", TypeError, "gamma must be a number, got str"),
    ],
)
def test_arguments_are_checked(implementation, weights, gamma, error, message):
    with pytest.raises(error, match=message):
        implementation.filter_graphs(weights, gamma)


def test_gamma_may_be_any_number():
    weight = torch.randn(5, 3)
    expected = ops.filter_graphs([weight], 1.0).words
    for gamma in (1, np.float32(1), np.float64(1), torch.tensor(1.0)):
        assert torch.equal(ops.filter_graphs([weight], gamma).words, expected)


def test_an_enormous_threshold_joins_all():
    assert ops.filter_graphs([torch.randn(65, 3)], 1e200).edge_density().tolist() == [1.0]


@pytest.mark.parametrize("n", [0, *SIZES])
def test_dense_and_packed_are_the_same_graph(n):
    dense = [random_graph(n, density, n) for density in (0.0, 0.3, 1.0)]
    packed = FilterGraphs.from_dense(dense)
    assert packed.n_filters == (n, n, n)
    for i, matrix in enumerate(dense):
        assert torch.equal(packed.to_dense(i), matrix)
        assert torch.equal(packed.to_dense(i - 3), matrix)
    expected = [float(m.sum()) / max(n * (n - 1), 1) for m in dense]
    assert packed.edge_density().tolist() == pytest.approx(expected, abs=0)
    tail = packed.words.view(3, n, -1)[..., -1] if n else packed.words
    assert n % 64 == 0 or not (tail >> (n % 64) & ~(-1 << (64 - n % 64))).any()


@settings(max_examples=20, deadline=None)
@given(graphs())
def test_packing_round_trips(packed):
    again = FilterGraphs.from_dense([packed.to_dense(i) for i in range(len(packed))])
    assert torch.equal(again.words, packed.words) and again.n_filters == packed.n_filters


def test_a_diagonal_is_ignored():
    assert not FilterGraphs.from_dense([torch.eye(70, dtype=torch.bool)]).words.any()


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.ones(2, 2), TypeError, r"matrices\[0\] must be a tensor of bool, got torch.float32"),
        ([[True]], TypeError, r"matrices\[0\] must be a tensor of bool, got list"),
        (torch.ones(2, 3, dtype=torch.bool), ValueError, r"matrices\[0\] must have shape \[n, n\]"),
        (torch.ones(2, 2, dtype=torch.bool).triu(), ValueError, r"matrices\[0\] must be symmetric"),
    ],
)
def test_dense_matrices_are_checked(matrix, error, message):
    with pytest.raises(error, match=message):
        FilterGraphs.from_dense([matrix])


def test_sizes_of_packed_graphs_are_checked():
    with pytest.raises(ValueError, match="words must have 65"):
        FilterGraphs(torch.zeros(3, dtype=torch.int64), (1, 32, 32))
    with pytest.raises(ValueError, match="words must be a flat int64 tensor"):
        FilterGraphs(torch.zeros(3), (3,))
    with pytest.raises(ValueError, match="zero_filters must have one entry per layer"):
        FilterGraphs(torch.zeros(3, dtype=torch.int64), (3,), ((), ()))
    with pytest.raises(IndexError, match=r"layer must lie in 0 .. 0, got 1"):
        FilterGraphs(torch.zeros(3, dtype=torch.int64), (3,)).to_dense(1)
