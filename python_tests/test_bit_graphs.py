"""FilterGraphs: packing, counting and cutting bit rows, against NumPy on dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_cases import SIZES, graphs, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_ext import bit_graphs
from srr_ext.bit_graphs import FilterGraphs, bit_counts, pack_rows, unpack_rows


def test_bits_are_where_the_layout_says():
    dense = random_graph(130, 0.3)
    words = FilterGraphs.from_dense([dense]).words.view(130, 3).tolist()
    for v in range(130):
        for u in range(130):
            assert words[v][u // 64] >> u % 64 & 1 == dense[v, u]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(0, 200), st.integers(0, 100))
def test_rows_pack_as_numpy_packs_them(n_rows, n, seed):
    dense = np.random.default_rng(seed).random((n_rows, n)) < 0.5
    octets = np.zeros((n_rows, -(-n // 64) * 8), dtype=np.uint8)
    octets[:, : -(-n // 8)] = np.packbits(dense, axis=1, bitorder="little")
    rows = pack_rows(torch.from_numpy(dense))
    assert np.array_equal(rows.numpy().view(np.uint8).reshape(octets.shape), octets)
    assert np.array_equal(unpack_rows(rows, n), dense)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_bits_are_counted(words):
    words += [0, -1, 1, -(2**63), 2**63 - 1]
    assert bit_counts(torch.tensor(words)).tolist() == [(word % 2**64).bit_count() for word in words]


@settings(max_examples=40, deadline=None)
@given(graphs(max_n=140))
def test_degrees_and_densities_are_those_of_dense_matrices(packed):
    dense = [packed.to_dense(i).numpy() for i in range(len(packed))]
    assert packed.degrees().tolist() == [int(d) for matrix in dense for d in matrix.sum(1)]
    density = packed.edge_density()
    assert density.dtype == torch.float64
    assert density.tolist() == [int(m.sum()) / max(len(m) * (len(m) - 1), 1) for m in dense]


@settings(max_examples=40, deadline=None)
@given(graphs(max_n=140), st.integers(0, 1000), st.sampled_from([1, 500, bit_graphs.UNPACKED_AT_ONCE]))
def test_subgraphs_are_those_of_dense_matrices(packed, seed, at_once):
    random = np.random.default_rng(seed)
    kept = [random.permutation(n)[: random.integers(0, n + 1)] for n in packed.n_filters]
    kinds = torch.from_numpy(random.integers(0, 3, sum(packed.n_filters)).astype(np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bit_graphs, "UNPACKED_AT_ONCE", at_once)
        cut = FilterGraphs(packed.words, packed.n_filters, kinds).subgraphs(kept)
    assert cut.n_filters == tuple(len(vertices) for vertices in kept)
    for i, vertices in enumerate(kept):
        assert np.array_equal(cut.to_dense(i), packed.to_dense(i).numpy()[np.ix_(vertices, vertices)])
    of_layers = [kind.numpy() for kind in kinds.split(list(packed.n_filters))]
    assert cut.kinds.tolist() == [int(k) for kind, v in zip(of_layers, kept, strict=True) for k in kind[v]]
    if packed.n_filters:
        assert packed.subgraphs(kept).kinds is None


def test_zero_filters_are_read_from_kinds():
    kinds = torch.tensor([0, 1, 2, 1, 1], dtype=torch.uint8)
    words = torch.zeros(5, dtype=torch.int64)
    assert FilterGraphs(words, (3, 0, 2), kinds).zero_filters == ((1,), (), (0, 1))
    assert FilterGraphs(words, (3, 0, 2)).zero_filters == ((), (), ())


def test_dense_matrices_are_on_one_device():
    matrices = [torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool, device="meta")]
    with pytest.raises(ValueError, match=r"matrices\[1\] must be on cpu like matrices\[0\], got meta"):
        FilterGraphs.from_dense(matrices)


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
    for kinds in (torch.zeros(2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="kinds must be a uint8 tensor of 3 elements, one per filter"):
            FilterGraphs(torch.zeros(3, dtype=torch.int64), (3,), kinds)
    with pytest.raises(IndexError, match=r"layer must lie in 0 .. 0, got 1"):
        FilterGraphs(torch.zeros(3, dtype=torch.int64), (3,)).to_dense(1)
