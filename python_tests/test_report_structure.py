"""What `observe` and `layer_latency` say about a pruned network, against the plain reference and brute force."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import srr_ext
from srr_ext import PruningPlan, reference
from srr_ext.bit_graphs import FilterGraphs
from srr_ext.channels import analyze_channels
from srr_ext.graph import group_graphs, group_matrices, select_groups
from srr_ext.plan import plan_from_vertices
from srr_ext.report import layer_latency, observe
from srr_ext.report.structure import MOST_EDGES, MOST_NODES, _drawing, cover_of, kept_vertices


def redundant_net(width: int = 12) -> nn.Sequential:
    """Three convolutions whose filters are copies of a few directions, more or less disturbed."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5),
    )  # fmt: skip
    with torch.no_grad():
        for index, noise in ((0, 0.3), (3, 0.1), (5, 0.6)):
            weight = model[index].weight
            few = weight[torch.randint(4, (len(weight),))]
            weight.copy_(few + noise * weight.std() * torch.randn_like(weight))
    return model.eval()


class Residual(nn.Module):
    """A stream that two convolutions make and that a plan may prune."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))


EXAMPLE = torch.zeros(1, 3, 6, 6)


def observed(model: nn.Module, **options: Any) -> tuple[dict[str, Any], PruningPlan, nn.Module]:
    plan = srr_ext.make_plan(model, EXAMPLE, **{"keep_macs": 0.5} | options)
    small = srr_ext.apply_plan(model, plan, EXAMPLE)
    return observe(model, small, plan, EXAMPLE), plan, small


def reference_figures(graphs: FilterGraphs, i: int) -> dict[str, float]:
    adjacency = graphs.to_dense(i)
    alone = FilterGraphs.from_dense([adjacency])
    k, upper, lower = (int(x) for x in (reference.components(alone), reference.covering(alone, 1),
                                        reference.covering(alone, 2)))  # fmt: skip
    n = len(adjacency)
    return {
        "redundancy": n / (0.35 * k + 0.65 * (upper + lower) / 2),
        "edge_density": int(adjacency.sum()) / max(n * (n - 1), 1),
        "components": k,
        "cover_upper": upper,
        "cover_lower": lower,
    }


@pytest.mark.parametrize("distance", ["rms", "euclidean"])
@pytest.mark.parametrize("allocator", ["srr", "uniform", "widest", "global"])
def test_before_and_after_are_those_of_the_reference(allocator: str, distance: str) -> None:
    model = redundant_net()
    structure, plan, _ = observed(model, allocator=allocator, distance=distance)
    analysis = analyze_channels(model, EXAMPLE)
    groups = select_groups(analysis)
    assert [group["name"] for group in structure["groups"]] == [group.name for group in groups]
    assert structure["gamma_source"] == ("plan" if allocator == "srr" else "auto")
    if allocator == "srr":
        assert structure["gamma"] == plan.gamma
    else:
        assert structure["gamma"] == srr_ext.analyze(model, EXAMPLE, keep_macs=0.5, distance=distance).gamma
    some = 0
    for group, matrix, seen in zip(groups, group_matrices(groups, model), structure["groups"], strict=True):
        layer = plan.layers.get(group.name)
        kept = list(range(group.size)) if layer is None or layer.out is None else list(layer.out)
        assert (seen["size"], seen["kept"], seen["fan_in"]) == (group.size, len(kept), matrix.shape[1])
        threshold = structure["gamma"] / (1 if distance == "rms" else math.sqrt(matrix.shape[1]))
        before = reference_figures(reference.filter_graphs([matrix], threshold), 0)
        after = reference_figures(reference.filter_graphs([matrix[kept]], threshold), 0)
        assert seen["before"] == pytest.approx(before, rel=1e-12)
        assert seen["after"] == pytest.approx(after, rel=1e-12)
        some += seen["kept"] < seen["size"] and (seen["before"]["redundancy"] > 1 or allocator != "srr")
    assert some, "the example must have a group that was cut, by srr a redundant one"


def test_an_unknown_distance_in_a_plan_is_refused() -> None:
    model = redundant_net()
    plan = srr_ext.make_plan(model, EXAMPLE, keep_macs=0.5)
    plan.options["distance"] = "cosine"
    with pytest.raises(ValueError, match="plan: options: distance must be 'rms' or 'euclidean', got 'cosine'"):
        observe(model, srr_ext.apply_plan(model, plan, EXAMPLE), plan, EXAMPLE)


def test_figures_agree_with_those_of_the_allocator() -> None:
    structure, plan, _ = observed(redundant_net())
    for group in structure["groups"]:
        said = plan.info["groups"][group["name"]]
        assert [group["before"]["redundancy"], group["after"]["redundancy"]] == said["redundancy"]
        assert [group["before"]["edge_density"], group["after"]["edge_density"]] == said["edge_density"]


@pytest.mark.parametrize("distance", ["rms", "euclidean"])
@pytest.mark.parametrize("net", [redundant_net, Residual])
def test_curve_and_turning_points(net: Any, distance: str) -> None:
    model = net()
    plan = srr_ext.make_plan(model, EXAMPLE, keep_macs=0.6, streams="prune", distance=distance)
    structure = observe(model, srr_ext.apply_plan(model, plan, EXAMPLE), plan, EXAMPLE)
    groups = select_groups(analyze_channels(model, EXAMPLE), "prune")
    matrices = group_matrices(groups, model)
    assert any(group["stream"] for group in structure["groups"]) == (net is Residual)

    def figures_at(gamma: float) -> list[dict[str, float]]:
        graphs = group_graphs(groups, matrices, gamma, distance)
        return [reference_figures(graphs, i) for i in range(len(groups))]

    gammas = structure["curve_gammas"]
    assert gammas == sorted(gammas) and len(set(gammas)) == 24
    for column, gamma in enumerate(gammas):
        expected = [figure["redundancy"] for figure in figures_at(gamma)]
        assert [group["curve"][column] for group in structure["groups"]] == pytest.approx(expected, rel=1e-8)
    assert all(group["curve"][0] == 1 and group["curve"][-1] == group["size"] for group in structure["groups"])
    for i, group in enumerate(structure["groups"]):
        for key, joined in (("turning_gamma", lambda f: f["redundancy"] > 1 + 1e-9),
                            ("complete_gamma", lambda f: f["edge_density"] == 1)):  # fmt: skip
            low, high = gammas[0] / 2, gammas[-1] * 2
            for _ in range(45):
                middle = (low * high) ** 0.5
                low, high = (low, middle) if joined(figures_at(middle)[i]) else (middle, high)
            assert group[key] == pytest.approx(high, rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_cover_is_the_one_that_is_counted(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 40))
    adjacency = np.triu(generator.random((n, n)) < generator.choice([0.02, 0.1, 0.3]), 1)
    adjacency |= adjacency.T
    centres, cover = cover_of(adjacency)
    assert len(centres) == int(reference.covering(FilterGraphs.from_dense([torch.from_numpy(adjacency)]), 1))
    near = adjacency | np.eye(n, dtype=bool)
    for vertex, number in enumerate(cover):
        assert number == min(k for k, centre in enumerate(centres) if near[centre, vertex])
    degrees = adjacency.sum(1)
    keys = [(-degrees[centre], centre) for centre in centres]
    assert keys == sorted(keys)


def test_drawn_graphs_are_subgraphs() -> None:
    structure, plan, _ = observed(redundant_net())
    groups = {group.name: group for group in analyze_channels(redundant_net(), EXAMPLE).groups}
    assert structure["graphs"]
    for graph in structure["graphs"]:
        group = groups[graph["name"]]
        matrix = group_matrices([group], redundant_net())
        adjacency = reference.filter_graphs(matrix, structure["gamma"]).to_dense(0).numpy()
        assert graph["nodes"] == list(range(group.size)) and graph["note"] == ""
        assert graph["edges"] == np.argwhere(np.triu(adjacency)).tolist()
        assert np.flatnonzero(graph["kept"]).tolist() == kept_vertices(plan, group).tolist()
    ranks = {group["name"]: group["before"]["redundancy"] for group in structure["groups"]}
    assert ranks[structure["graphs"][0]["name"]] == max(ranks.values())


def test_large_graphs_are_thinned_out_and_say_so() -> None:
    n = 400
    labels = np.where(np.arange(n) < 390, np.arange(n) % 3, np.arange(n))
    adjacency = (labels[:, None] == labels) & ~np.eye(n, dtype=bool)
    for leaf, hub in zip(range(390, 396), (387, 388, 389) * 2, strict=True):  # so that centres have high numbers
        adjacency[leaf, hub] = adjacency[hub, leaf] = True
    graph = _drawing("big", adjacency, np.arange(0, n, 2))
    assert len(graph["nodes"]) == MOST_NODES and len(graph["edges"]) == MOST_EDGES
    assert (graph["n_filters"], graph["n_edges"], graph["n_covers"]) == (n, int(adjacency.sum()) // 2, 7)
    assert (
        f"{MOST_NODES} of {n} filters" in graph["note"]
        and f"{MOST_EDGES:,} of {graph['n_edges']:,} edges" in graph["note"]
    )
    nodes = graph["nodes"]
    assert all(adjacency[nodes[a], nodes[b]] for a, b in graph["edges"])
    assert len({tuple(edge) for edge in graph["edges"]}) == MOST_EDGES
    edges = {tuple(edge) for edge in graph["edges"]}
    for place, number in enumerate(graph["cover"]):  # every filter that is drawn hangs on its centre
        centre = graph["centres"][number]
        assert place == centre or (min(place, centre), max(place, centre)) in edges
    assert graph["kept"] == [node % 2 == 0 for node in nodes]


def test_layers_add_up_and_are_what_torch_counts() -> None:
    structure, plan, small = observed(redundant_net())
    with FlopCounterMode(display=False) as counter:
        small(EXAMPLE)
    macs = [sum(layer["macs"][side] for layer in structure["layers"]) + structure["fixed_macs"] for side in (0, 1)]
    assert macs == [plan.cost["macs"]["dense"], plan.cost["macs"]["pruned"]]
    assert macs[1] == counter.get_total_flops() // 2
    for layer in structure["layers"]:
        module = small.get_submodule(layer["name"])
        assert layer["params"][1] == sum(p.numel() for p in module.parameters())
        assert layer["out"][1] == len(module.weight)
    assert any(layer["in"][1] < layer["in"][0] for layer in structure["layers"])


def test_vertices_of_a_stream_are_read_off_the_plan() -> None:
    model = Residual()
    analysis = analyze_channels(model, EXAMPLE)
    kept = {group.name: np.array([0, 2, group.size - 1]) for group in analysis.groups}
    plan = plan_from_vertices(analysis, kept)
    for group in analysis.groups:
        assert kept_vertices(plan, group).tolist() == kept[group.name].tolist()
    structure = observe(model, srr_ext.cut(model, plan), plan, EXAMPLE)
    assert all(group["kept"] == 3 for group in structure["groups"])  # also the stream, which was not to be offered


def test_without_a_target_half_of_the_groups_have_an_edge() -> None:
    model = redundant_net()
    analysis = analyze_channels(model, EXAMPLE)
    plan = plan_from_vertices(analysis, {})
    structure = observe(model, model, plan, EXAMPLE)
    assert structure["gamma_source"] == "median"
    redundant = [group["before"]["redundancy"] > 1 for group in structure["groups"]]
    assert sum(redundant) == 2 and len(redundant) == 3
    assert all(group["before"] == group["after"] for group in structure["groups"])


def test_without_any_weight_there_is_no_threshold() -> None:
    model = redundant_net()
    for parameter in model.parameters():
        parameter.data.zero_()
    plan = plan_from_vertices(analyze_channels(model, EXAMPLE), {})
    structure = observe(model, model, plan, EXAMPLE)
    assert structure["gamma"] is None and structure["graphs"] == [] and structure["curve_gammas"] == []
    assert all(group["before"] is None and group["turning_gamma"] is None for group in structure["groups"])
    assert structure["groups"][0]["zero_filters"] == 12


def test_equal_filters_are_redundant_from_zero_on() -> None:
    model = redundant_net()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].expand_as(model[0].weight))
    structure, _, _ = observed(model)
    first = structure["groups"][0]
    assert first["turning_gamma"] == 0 and first["curve"][0] == first["size"]


def test_same_text_twice_and_nothing_touched() -> None:
    model = redundant_net().train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    texts = {json.dumps(observed(model)[0], allow_nan=False) for _ in range(2)}
    assert len(texts) == 1
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.training


def test_networks_that_do_not_belong_together_are_refused() -> None:
    model = redundant_net()
    plan = srr_ext.make_plan(model, EXAMPLE, keep_macs=0.5)
    small = srr_ext.apply_plan(model, plan, EXAMPLE)
    with pytest.raises(ValueError, match="plan: was made for a network of other widths"):
        observe(small, small, plan, EXAMPLE)
    with pytest.raises(ValueError, match="final: layer '0' is wider"):
        observe(model, redundant_net(16), plan, EXAMPLE)
    with pytest.raises(ValueError, match="final: has no layer"):
        observe(model, nn.Sequential(nn.Conv2d(3, 12, 3)), plan, EXAMPLE)


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


class Sleepy(nn.Module):
    """Calls one module twice, and one that only the dense network has."""

    def __init__(self, seconds: float, extra: bool) -> None:
        super().__init__()
        self.twice = Sleeper(seconds)
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.extra = Sleeper(0) if extra else None
        self.never = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.twice(self.twice(x)))
        return x if self.extra is None else self.extra(x)


def test_layer_latency() -> None:
    dense, final = Sleepy(0.01, True).train(), Sleepy(0.002, False).eval()
    dense.block.eval()
    running = dense.block[1].running_mean.clone()
    rows = {row["name"]: row for row in layer_latency(dense, final, EXAMPLE, rounds=3)}
    assert list(rows) == ["twice", "block.0", "block.1", "extra"]
    assert rows["block.0"]["kind"] == "Conv2d" and rows["block.1"]["kind"] == "BatchNorm2d"
    assert rows["twice"]["dense_ms"] >= 20 > rows["twice"]["pruned_ms"] >= 4
    assert rows["extra"]["dense_ms"] >= 0 and rows["extra"]["pruned_ms"] is None
    assert all(not m._forward_hooks and not m._forward_pre_hooks for net in (dense, final) for m in net.modules())
    assert dense.training and dense.twice.training and not dense.block.training and not final.training
    assert torch.equal(running, dense.block[1].running_mean)
    json.dumps(rows, allow_nan=False)


def test_layer_latency_leaves_no_hook_after_an_error() -> None:
    dense = Sleepy(0, False).train()
    with pytest.raises(RuntimeError):
        layer_latency(dense, dense, torch.zeros(1, 5, 6, 6))
    assert dense.training and all(not m._forward_hooks and not m._forward_pre_hooks for m in dense.modules())
    with pytest.raises(ValueError, match="rounds"):
        layer_latency(dense, dense, EXAMPLE, rounds=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    model = redundant_net()
    structure, plan, small = observed(model)
    again = observe(model.cuda(), small.cuda(), plan, EXAMPLE)
    assert again == structure
    rows = layer_latency(model, small, torch.randn(64, 3, 6, 6, device="cuda"))
    assert [row["name"] for row in rows] == [name for name, _ in model.named_children()]
    assert all(row["dense_ms"] > 0 and row["pruned_ms"] > 0 for row in rows)
