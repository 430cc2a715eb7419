"""Filter graphs of groups: who may be pruned, who is joined to whom."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planning_nets import NETS, Net, chain, deep, member, residual

from srr_ext.channels.records import ChannelGroup
from srr_ext.graph import (
    check_gamma,
    complete_gamma,
    group_graph_levels,
    group_graphs,
    group_matrices,
    select_groups,
)


def graph_of(net: Net, group: int, gamma: float) -> torch.Tensor:
    return group_graphs(net.groups, group_matrices(net.groups, net.model), gamma).to_dense(group).cpu()


def test_streams_are_kept_or_pruned() -> None:
    analysis = residual().analysis
    assert [g.name for g in select_groups(analysis)] == ["inner"]
    assert [g.name for g in select_groups(analysis, "prune")] == ["stem", "inner"]
    with pytest.raises(ValueError, match="streams must be 'keep' or 'prune', got 'both'"):
        select_groups(analysis, "both")


@pytest.mark.parametrize("name", NETS)
def test_edges_are_pairs_nearer_than_gamma(name: str) -> None:
    net = NETS[name]()
    gamma = 0.2
    matrices = group_matrices(net.groups, net.model)
    graphs = group_graphs(net.groups, matrices, gamma)
    assert len(graphs) == len(net.groups)
    for i, (group, matrix) in enumerate(zip(net.groups, matrices, strict=True)):
        simple = len(group.producers) == 1 and group.size == len(group.producers[0].vertex)
        unit = torch.nn.functional.normalize(matrix.double(), dim=1) if simple else matrix.double()
        want = torch.cdist(unit, unit) / math.sqrt(matrix.shape[1]) <= gamma
        assert torch.equal(graphs.to_dense(i).cpu(), want.fill_diagonal_(False))


def test_scale_of_filters_does_not_matter() -> None:
    net = chain()
    before = graph_of(net, 1, 0.185)
    net.model[3].weight.data *= torch.logspace(-3, 3, 8)[:, None, None, None]
    assert 0 < before.sum() < 56
    assert torch.equal(graph_of(net, 1, 0.185), before)


def test_weights_that_are_not_finite_are_refused() -> None:
    net = chain()
    net.model[3].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"group '3' must be finite"):
        group_matrices(net.groups, net.model)
    net.model[3].weight.data[0, 0, 0, 0] = -math.inf
    with pytest.raises(ValueError, match=r"group '3' must be finite"):
        group_matrices(net.groups, net.model)


@pytest.mark.parametrize("name", NETS)
def test_levels_are_the_graphs_of_each_gamma(name: str) -> None:
    net = NETS[name]()
    matrices, gammas = group_matrices(net.groups, net.model), [0.5, 0.01, 0.2, 0.2]
    levels = group_graph_levels(net.groups, matrices, gammas)
    assert len({tuple(graphs.words.tolist()) for graphs in levels}) >= 2
    for gamma, graphs in zip(gammas, levels, strict=True):
        assert torch.equal(graphs.words, group_graphs(net.groups, matrices, gamma).words)


def test_no_groups_have_no_graphs() -> None:
    net = chain()
    assert group_matrices([], net.model) == []
    assert len(group_graphs([], [], 0.1)) == 0


@pytest.mark.parametrize("name", NETS)
def test_complete_gamma_joins_even_opposite_filters(name: str) -> None:
    net = NETS[name]()
    matrices = [torch.cat([m[:2], -m[:2], m[4:]]) for m in group_matrices(net.groups, net.model)]
    graphs = group_graphs(net.groups, matrices, complete_gamma(net.groups, matrices))
    assert graphs.edge_density().tolist() == [1.0] * len(net.groups)


def test_a_stream_of_alike_layers_is_as_redundant_as_one_of_them() -> None:
    """Length alone makes nothing redundant: filters as far apart in every producer are joined at the same gamma."""
    vertex = np.arange(8)
    model = torch.nn.ModuleDict({str(i): torch.nn.Conv2d(4, 8, 3) for i in range(6)})
    for conv in model.values():
        conv.weight.data = model["0"].weight.data.clone()
    one = ChannelGroup("0", 8, (member("0", "out", "producer", vertex),))
    six = ChannelGroup("s", 8, tuple(member(str(i), "out", "producer", vertex) for i in range(6)), stream=True)
    for gamma in (0.15, 0.2, 0.22, 0.25):
        graphs = group_graphs([one, six], group_matrices([one, six], model), gamma)
        assert torch.equal(graphs.to_dense(0), graphs.to_dense(1))


def test_zero_filters_are_listed_where_they_are() -> None:
    net = residual()
    net.model.inner.weight.data[[2, 5]] = 0
    net.model.stem.weight.data[3] = 0
    graphs = group_graphs(net.groups, group_matrices(net.groups, net.model), 1.0)
    assert graphs.zero_filters == ((), (2, 5))
    net.model.outer.weight.data[3] = 0
    assert group_graphs(net.groups, group_matrices(net.groups, net.model), 1.0).zero_filters == ((3,), (2, 5))


def test_gamma_is_a_number_above_zero() -> None:
    assert check_gamma(np.float32(0.5)) == 0.5
    for wrong in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="gamma"):
            check_gamma(wrong)
    for wrong in ("0.1", None, True):
        with pytest.raises(TypeError, match="'auto'"):
            check_gamma(wrong)


def test_noisy_copies_are_joined() -> None:
    net = deep((40,), duplicates=0.5)
    net.model[0].weight.data[7] = net.model[0].weight.data[21] * 2
    assert bool(graph_of(net, 0, 1e-3)[7, 21])


@pytest.mark.parametrize("name", NETS)
def test_euclidean_distances_are_not_divided(name: str) -> None:
    net = NETS[name]()
    matrices = group_matrices(net.groups, net.model)
    rows = [matrix.double() / matrix.double().norm(dim=1, keepdim=True) for matrix in matrices]
    apart = [torch.cdist(row, row, compute_mode="donot_use_mm_for_euclid_dist") for row in rows]
    for gamma in (0.9, 1.2, 1.4):
        graphs = group_graphs(net.groups, matrices, gamma, "euclidean")
        for i, distances in enumerate(apart):
            expected = distances <= gamma
            assert torch.equal(graphs.to_dense(i), expected.fill_diagonal_(False))


@pytest.mark.parametrize("name", NETS)
def test_complete_euclidean_gamma_joins_even_opposite_filters(name: str) -> None:
    net = NETS[name]()
    matrices = [torch.cat([m[:2], -m[:2], m[4:]]) for m in group_matrices(net.groups, net.model)]
    graphs = group_graphs(net.groups, matrices, complete_gamma(net.groups, matrices, "euclidean"), "euclidean")
    assert graphs.edge_density().tolist() == [1.0] * len(net.groups)


def test_an_unknown_distance_is_refused() -> None:
    net = chain()
    with pytest.raises(ValueError, match="distance must be 'rms' or 'euclidean', got 'cosine'"):
        group_graphs(net.groups, group_matrices(net.groups, net.model), 0.1, "cosine")
