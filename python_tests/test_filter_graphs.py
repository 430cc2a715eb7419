"""filter_graphs: equal to the reference on every pair, for any shape, type, layout, threshold and number of threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from graph_cases import SIZES, gamma_of_cosine, median_gamma
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_levels_are_the_graphs_of_single_calls(dtype):
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, 5, 3, generator=generator).to(dtype) for n in (1, 130, 0, 64, 200)]
    median = median_gamma(weights[1])
    whole = [0.0, 1.1 * median, 0.9 * median, 100.0, median, median, 1e-3]
    per_layer = [
        [factor * median for factor in factors] for factors in ((0.9, 1.0, 1.0, 1.1, 0.8), (9.0, 1.05, 1, 0, 1))
    ]
    levels = [*whole, *per_layer]
    for implementation in (ops, reference):
        for gamma, got in zip(levels, implementation.filter_graph_levels(weights, levels), strict=True):
            expected = reference.filter_graphs(weights, gamma)
            assert torch.equal(got.words, expected.words) and torch.equal(got.kinds, expected.kinds)
    for got in ops.filter_graph_levels(weights, per_layer):
        assert 0 < got.edge_density()[1] < 1


def test_each_layer_has_its_own_gamma():
    weights = [torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (70, 40, 20)]
    gammas = [0.2, 0.5, 0.3]
    together = assert_same(weights, gammas)
    for i, (weight, gamma) in enumerate(zip(weights, gammas, strict=True)):
        assert torch.equal(together.to_dense(i), ops.filter_graphs([weight], gamma).to_dense(0))


def test_levels_where_whole_tiles_are_joined_or_apart():
    """Clusters of filters that fill tiles, alike within and opposite or perpendicular between; some are zero."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 8)[[0, 1, 0, 2]] * torch.tensor([1.0, 1.0, -1.0, 1.0])[:, None]
    weight = centres.repeat_interleave(64, 0) + 0.02 * torch.randn(256, 8, generator=generator)
    weight[[5, 70, 255]] = 0
    weight[6], weight[71] = weight[4], 2 * weight[4]  # as near as can be, within a tile and between two
    gammas = [gamma_of_cosine(cosine, 8) for cosine in (1, 0.9999, 0.99, 0.9, 0.5, 0.0, -0.5, -0.99, -1.01)]
    densities = []
    for gamma, got in zip(gammas, ops.filter_graph_levels([weight], gammas), strict=True):
        assert torch.equal(got.words, reference.filter_graphs([weight], gamma).words)
        densities.append(got.edge_density().item())
    assert densities == sorted(densities) and densities[0] > 0 and len(set(densities)) >= 6
    assert got.degrees().tolist() == [0 if v in (5, 70, 255) else 252 for v in range(256)]


def test_levels_at_the_farthest_and_the_nearest_pair_of_a_tile():
    """The range of a tile's cosines settles nothing where its end is too close to the threshold."""
    weight = 1 + 0.1 * torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
    units = torch.nn.functional.normalize(weight.double(), dim=1)
    between = torch.cdist(units[:64], units[64:], compute_mode="donot_use_mm_for_euclid_dist") / 2
    ends = [between.min().item(), between.max().item()]
    gammas = [gamma * factor for gamma in ends for factor in (1 - 1e-12, 1 + 1e-12)]
    counts = []
    for gamma, got in zip(gammas, ops.filter_graph_levels([weight], gammas), strict=True):
        assert torch.equal(got.words, reference.filter_graphs([weight], gamma).words)
        counts.append(int(got.to_dense(0)[:64, 64:].sum()))
    assert counts == [0, 1, 64 * 64 - 1, 64 * 64]


def test_levels_with_pairs_at_every_threshold():
    """The thresholds are distances of pairs, where single precision cannot tell on which side a pair is."""
    weight = torch.randn(90, 7, generator=torch.Generator().manual_seed(5))
    units = torch.nn.functional.normalize(weight.double(), dim=1)
    distances = (torch.pdist(units) / math.sqrt(7)).sort().values[::400].tolist()
    gammas = [gamma * factor for gamma in distances for factor in (1 - 1e-15, 1, 1 + 1e-15)]
    for gamma, got in zip(gammas, ops.filter_graph_levels([weight], gammas), strict=True):
        assert torch.equal(got.words, reference.filter_graphs([weight], gamma).words)


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
def test_no_levels_and_levels_of_nothing(implementation):
    assert implementation.filter_graph_levels([torch.randn(3, 3)], []) == []
    assert [len(graphs) for graphs in implementation.filter_graph_levels([], [0.1, 0.2])] == [0, 0]
    assert [graphs.n_filters for graphs in implementation.filter_graph_levels([torch.randn(0, 3)], [0.1] * 2)] == [
        (0,),
        (0,),
    ]


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
def test_the_check_for_finite_weights_may_wait(implementation):
    weights = [torch.randn(3, 4), torch.randn(70, 13)]
    weights[1][[2, 65], 11] = math.nan
    weights[1][4] = 0
    graphs = implementation.filter_graphs(weights, 10.0, check_finite=False)
    assert graphs.kinds.tolist() == [0] * 3 + [{2: 2, 4: 1, 65: 2}.get(v, 0) for v in range(70)]
    assert graphs.zero_filters == ((), (4,))
    assert graphs.degrees().tolist() == [2] * 3 + [0 if v in (2, 4, 65) else 66 for v in range(70)]


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
        ([torch.randn(2, 2)], [0.1, 0.2], ValueError, r"gamma must be one number or one per layer \(1\), got 2"),
        ([torch.randn(2, 2)] * 2, [0.1, -1.0], ValueError, r"gamma\[1\] must be finite and at least 0, got -1.0"),
        ([torch.randn(2, 2)] * 2, [0.1, "1"], TypeError, r"gamma\[1\] must be a number, got str"),
    ],
)
def test_arguments_are_checked(implementation, weights, gamma, error, message):
    with pytest.raises(error, match=message):
        implementation.filter_graphs(weights, gamma)


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("gammas", "error", "message"),
    [
        (0.1, TypeError, "gammas must be a sequence with an entry for each level, got float"),
        (torch.tensor(0.1), TypeError, "gammas must be a sequence with an entry for each level, got Tensor"),
        ([0.1, -1.0], ValueError, r"gammas\[1\] must be finite and at least 0, got -1.0"),
        ([[0.1, 0.2], [0.1]], ValueError, r"gammas\[1\] must be one number or one per layer \(2\), got 1"),
        ([[0.1, [0.2, 0.3]]], TypeError, r"gammas\[0\]\[1\] must be a number, got list"),
    ],
)
def test_levels_are_checked(implementation, gammas, error, message):
    with pytest.raises(error, match=message):
        implementation.filter_graph_levels([torch.randn(2, 2)] * 2, gammas)


def test_gamma_may_be_any_number():
    weight = torch.randn(5, 3)
    expected = ops.filter_graphs([weight], 1.0).words
    for gamma in (1, np.float32(1), np.float64(1), torch.tensor(1.0)):
        assert torch.equal(ops.filter_graphs([weight], gamma).words, expected)


def test_an_enormous_threshold_joins_all():
    assert ops.filter_graphs([torch.randn(65, 3)], 1e200).edge_density().tolist() == [1.0]
