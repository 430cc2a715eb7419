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
    degrees,
    group_graphs,
    group_matrices,
    select_groups,
    subgraphs,
)
from srr_ext.ops import FilterGraphs


def random_graphs(sizes: tuple[int, ...], seed: int = 0) -> tuple[FilterGraphs, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    dense = [torch.rand(n, n, generator=generator).triu(1) > 0.6 for n in sizes]
    dense = [upper | upper.T for upper in dense]
    return FilterGraphs.from_dense(dense), dense


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


def test_degrees() -> None:
    graphs, dense = random_graphs((1, 2, 31, 65))
    for degree, adjacency in zip(degrees(graphs), dense, strict=True):
        assert degree.tolist() == adjacency.sum(1).tolist()


def test_subgraphs_keep_the_edges_among_what_is_kept() -> None:
    graphs, dense = random_graphs((4, 33, 70))
    kept = [np.array([2]), np.array([0, 5, 32]), np.arange(70)]
    rest = subgraphs(graphs, kept)
    assert len(rest) == 3
    for i, vertices in enumerate(kept):
        assert torch.equal(rest.to_dense(i).cpu(), dense[i][vertices][:, vertices])


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
