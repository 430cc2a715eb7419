"""Structural redundancy: the formula, its bounds, and the report."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_nets import chain, deep, residual
from torch import Tensor

from srr_ext.allocators import decide
from srr_ext.cost import Target
from srr_ext.graph import group_graphs, group_matrices
from srr_ext.ops import FilterGraphs
from srr_ext.redundancy import analyze, measure, redundancy


def graph_of(n: int, edges: list[tuple[int, int]]) -> Tensor:
    dense = torch.zeros(n, n, dtype=torch.bool)
    for i, j in edges:
        dense[i, j] = dense[j, i] = i != j
    return dense


@pytest.mark.parametrize(
    ("edges", "k", "upper", "lower"),
    [
        ([], 6, 6, 6),
        ([(i, j) for i in range(6) for j in range(i)], 1, 1, 1),
        ([(0, i) for i in range(1, 6)], 1, 1, 1),  # a star
        ([(i, i + 1) for i in range(5)], 1, 3, 2),  # a path: centres 1, 3, 5, or 1 and 4 with radius 2
        ([(0, 1), (1, 2), (3, 4)], 3, 3, 3),  # pieces
    ],
)
def test_known_graphs(edges: list[tuple[int, int]], k: int, upper: int, lower: int) -> None:
    net = deep((6,))
    (got,) = measure(net.groups, group_matrices(net.groups, net.model), FilterGraphs.from_dense([graph_of(6, edges)]))
    assert (got.n_filters, got.components, got.cover_upper, got.cover_lower) == (6, k, upper, lower)
    assert got.redundancy == pytest.approx(6 / (0.35 * k + 0.65 * (upper + lower) / 2))
    assert got.edge_density == pytest.approx(len(edges) / 15)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_bounds(case: tuple[int, list[tuple[int, int]]]) -> None:
    n, edges = case
    net = deep((n,))
    graphs = FilterGraphs.from_dense([graph_of(n, edges)])
    (got,) = measure(net.groups, group_matrices(net.groups, net.model), graphs)
    assert 1 <= got.components <= got.cover_lower <= got.cover_upper <= n
    assert 1 - 1e-12 <= got.redundancy <= n + 1e-12
    assert (got.redundancy > 1 + 1e-9) == (got.edge_density > 0)


def test_formula() -> None:
    assert redundancy(10, 2, 4, 3) == pytest.approx(10 / (0.35 * 2 + 0.65 * 3.5))
    assert redundancy(7, 1, 1, 1) == 7
    assert redundancy(10, 2, 4, 3, component_weight=1) == 5


def test_zero_filters_are_counted_and_joined_to_nothing() -> None:
    net = chain()
    net.model[0].weight.data[[1, 4]] = 0
    matrices = group_matrices(net.groups, net.model)
    first, second = measure(net.groups, matrices, group_graphs(net.groups, matrices, 1.0))
    assert (first.zero_filters, second.zero_filters) == (2, 0)
    assert (first.components, first.fan_in, second.fan_in) == (3, 27, 54)
    assert first.edge_density == pytest.approx(math.comb(4, 2) / math.comb(6, 2))


def test_report_of_a_model() -> None:
    net = residual()
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    report = analyze(net.model, net.inputs, gamma=0.1, streams="prune", analysis=net.analysis)
    assert [(g.name, g.n_filters, g.stream) for g in report.groups] == [("stem", 8, True), ("inner", 12, False)]
    assert [g.fan_in for g in report.groups] == [27 + 108, 8]
    assert report.gamma == 0.1
    content = json.loads(report.to_json())
    assert content["groups"][1]["redundancy"] == report.groups[1].redundancy
    assert content["gamma"] == 0.1
    assert content["pins"] == []
    assert [g.name for g in analyze(net.model, net.inputs, gamma=0.1, analysis=net.analysis).groups] == ["inner"]
    assert all(torch.equal(v, before[k]) for k, v in net.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.model.parameters())


def test_analysis_is_made_where_none_is_given() -> None:
    net = residual()
    found = analyze(net.model, net.inputs, gamma=0.2, streams="prune")
    by_hand = analyze(net.model, net.inputs, gamma=0.2, streams="prune", analysis=net.analysis)
    assert found.groups == by_hand.groups
    assert {pin.module for pin in found.pins} == {"head"}


@pytest.mark.parametrize("distance", ["rms", "euclidean"])
@pytest.mark.parametrize("target", [{}, {"keep_macs": 0.5}, {"keep_params": 0.7}])
def test_automatic_gamma_is_that_of_srr(target: dict[str, float], distance: str) -> None:
    net = deep((24, 40, 16))
    report = analyze(net.model, net.inputs, analysis=net.analysis, distance=distance, **target)
    assert report.distance == distance
    ((option, keep),) = (target or {"keep_macs": 0.5}).items()
    goal = Target(option.removeprefix("keep_"), keep)
    _, allocation = decide(net.analysis, net.groups, net.model, net.inputs, "srr", "l1", goal, distance=distance)
    assert report.gamma == allocation.info["gamma"]
    for group in report.groups:
        assert allocation.info["groups"][group.name]["redundancy"][0] == group.redundancy


def test_a_model_without_prunable_channels_has_an_empty_report() -> None:
    model, inputs = torch.nn.Linear(3, 4), torch.randn(1, 3)
    report = analyze(model, inputs, gamma=0.1)
    assert report.groups == ()
    assert report.pins
    with pytest.raises(ValueError, match="no channels of the model may go"):
        analyze(model, inputs)


def test_wrong_options_are_refused() -> None:
    net = residual()
    with pytest.raises(ValueError, match="streams"):
        analyze(net.model, net.inputs, streams="all", analysis=net.analysis)
    with pytest.raises(ValueError, match="distance must be 'rms' or 'euclidean'"):
        analyze(net.model, net.inputs, distance="cosine", analysis=net.analysis)
    with pytest.raises(ValueError, match="exactly one"):
        analyze(net.model, net.inputs, keep_macs=0.5, keep_params=0.5, analysis=net.analysis)
    with pytest.raises(TypeError, match="gamma"):
        analyze(net.model, net.inputs, gamma="large", analysis=net.analysis)
