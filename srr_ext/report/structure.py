"""What pruning did to the structure of a network: redundancy before and after, graphs, layers, what had to stay.

`observe` looks at both networks and the plan and returns plain numbers; the page and its figures are made from those
alone, so that a run folder can be shown again without any network.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from srr_ext.channels import ChannelAnalysis, ChannelGroup, analyze_channels
from srr_ext.cost import CostModel
from srr_ext.graph import check_distance, group_graphs, group_matrices, select_groups
from srr_ext.layers import widths_of
from srr_ext.ops import FilterGraphs
from srr_ext.plan import PruningPlan
from srr_ext.progress import Progress, silent
from srr_ext.redundancy import GroupRedundancy, analyze, measure
from srr_ext.report.distances import Distances, curve_gammas

SCHEMA_VERSION = 1
DRAWN_GRAPHS = 4
MOST_NODES, MOST_EDGES = 256, 4000


def observe(
    dense: nn.Module,
    final: nn.Module,
    plan: PruningPlan,
    example: Any,
    *,
    analysis: ChannelAnalysis | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Describe what a plan did to a network, in numbers that JSON can hold.

    Parameters
    ----------
    dense : nn.Module
        The network the plan was made for. It is not touched.
    final : nn.Module
        The pruned network.
    plan : PruningPlan
        What was removed, by whatever allocator, in one round or several.
    example : Tensor, tuple or dict
        Inputs for one forward pass, on any device; MACs are counted for them.
    analysis : ChannelAnalysis, optional
        Result of `analyze_channels` for ``dense``, to save its time.
    progress : Progress, optional
        Where the stage "structure" reports; silent by default.

    Returns
    -------
    dict
        ``gamma``, ``gamma_source`` ("plan": the plan's own; "auto": what `srr_ext.analyze` takes for the plan's target;
        "median": no threshold reaches that target, so the one at which half of the groups have an edge; None) and
        ``gamma_note``, the same in words; ``distance``, what gamma bounds; ``curve_gammas``; ``groups``, per group its
        sizes, its redundancy ``before`` and ``after`` (on the dense network's filters that stayed), its
        ``turning_gamma`` (the smallest with R > 1), ``complete_gamma`` and ``curve`` (R at each of ``curve_gammas``);
        ``graphs``, the most redundant groups' graphs to draw; ``layers``, per layer ``out``, ``in``, ``macs`` and
        ``params`` as [dense, pruned]; ``fixed_macs``; ``pins`` and ``unreached``. All numbers are finite; without any
        threshold ``before`` and ``after`` are None.

    Raises
    ------
    ValueError
        If plan, dense and pruned network do not belong together, or a weight is not finite.
    """
    progress = progress or silent()
    device = next((p.device for p in dense.parameters()), torch.device("cpu"))
    example = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)
    options = plan.options
    analysis = analysis or analyze_channels(dense, example, ignored=options.get("ignored", ()))
    if plan.widths and {name: list(sides) for name, sides in analysis.widths.items()} != plan.widths:
        raise ValueError("plan: was made for a network of other widths than dense; give the network it was made for")
    kept_of = {group.name: kept_vertices(plan, group) for group in analysis.groups}
    streams, distance = options.get("streams", "keep"), options.get("distance", "rms")
    try:
        check_distance(distance)
    except ValueError as error:
        raise ValueError(f"plan: options: {error}") from None
    offered = {group.name for group in select_groups(analysis, streams)}
    groups = [g for g in analysis.groups if g.name in offered or len(kept_of[g.name]) < g.size]
    kept = [kept_of[group.name] for group in groups]
    matrices = [matrix.cpu() for matrix in group_matrices(groups, dense)]

    with progress.stage("structure", 2 * len(groups)) as step:
        distances = []
        for group, matrix in zip(groups, matrices, strict=True):
            distances.append(Distances.of(group, matrix, distance))
            step(note=group.name)
        turning = [d.turning_gamma for d in distances if d.turning_gamma is not None]
        complete = [d.complete_gamma for d in distances if d.complete_gamma is not None]
        gammas = curve_gammas(turning, complete)
        curves = []
        for group, between in zip(groups, distances, strict=True):
            curves.append(between.redundancy_at(gammas))
            step(note=group.name)

    gamma, source, note = _choose_gamma(plan, dense, example, analysis, turning)
    before: Sequence[GroupRedundancy | None] = [None] * len(groups)
    after, graphs = before, []
    if gamma is not None:
        all_graphs = group_graphs(groups, matrices, gamma, distance)
        before = measure(groups, matrices, all_graphs)
        after = measure(groups, matrices, all_graphs.subgraphs(kept))
        graphs = _graphs_to_draw(before, all_graphs, kept)
    return {
        "schema_version": SCHEMA_VERSION,
        "gamma": gamma,
        "gamma_source": source,
        "gamma_note": note,
        "distance": distance,
        "curve_gammas": gammas,
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "kept": len(vertices),
                "stream": group.stream,
                "fan_in": matrix.shape[1],
                "zero_filters": int((matrix == 0).all(1).sum()),
                "before": _figures(b),
                "after": _figures(a),
                "turning_gamma": between.turning_gamma,
                "complete_gamma": between.complete_gamma,
                "curve": curve,
            }
            for group, matrix, vertices, b, a, between, curve in zip(
                groups, matrices, kept, before, after, distances, curves, strict=True
            )
        ],
        "graphs": graphs,
        "layers": _layers(analysis, final),
        "fixed_macs": analysis.fixed_macs,
        "pins": [asdict(pin) for pin in analysis.pins],
        "unreached": list(analysis.unreached),
    }


def kept_vertices(plan: PruningPlan, group: ChannelGroup) -> np.ndarray:
    """Vertices of a group that a plan keeps.

    Parameters
    ----------
    plan : PruningPlan
        The plan.
    group : ChannelGroup
        A group of the dense network.

    Returns
    -------
    ndarray of int64
        Ascending.

    Raises
    ------
    ValueError
        If the plan keeps channels that the group's producers do not have.
    """
    gone = np.zeros(group.size, dtype=bool)
    for member in group.producers:
        layer = plan.layers.get(member.module)
        if layer is None or layer.out is None:
            continue
        if layer.out[-1] >= len(member.vertex):
            raise ValueError(
                f"plan: keeps channel {layer.out[-1]} of {member.module!r}, which has {len(member.vertex)}"
            )
        lost = np.ones(len(member.vertex), dtype=bool)
        lost[list(layer.out)] = False
        gone[member.vertex[lost & (member.vertex >= 0)]] = True
    return np.flatnonzero(~gone)


def cover_of(adjacency: np.ndarray) -> tuple[list[int], list[int]]:
    """Greedy cover of a graph by closed neighbourhoods, the one that `srr_ext.ops.covering` counts.

    Parameters
    ----------
    adjacency : ndarray of bool, shape [n, n]
        The graph: symmetric, without self loops.

    Returns
    -------
    centres : list of int
        Vertices by degree, highest first, ties to the lowest index, that no earlier centre covers.
    cover : list of int
        For each vertex, the position in ``centres`` of the first that covers it.
    """
    cover = np.full(len(adjacency), -1)
    centres: list[int] = []
    for vertex in np.argsort(-adjacency.sum(1), kind="stable").tolist():
        if cover[vertex] < 0:
            ball = adjacency[vertex].copy()
            ball[vertex] = True
            cover[ball & (cover < 0)] = len(centres)
            centres.append(vertex)
    return centres, cover.tolist()


def _choose_gamma(
    plan: PruningPlan, dense: nn.Module, example: Any, analysis: ChannelAnalysis, turning: Sequence[float]
) -> tuple[float | None, str | None, str]:
    if plan.gamma is not None:
        rounds = plan.options.get("rounds", 1)
        made = "the threshold with which the plan was made"
        return plan.gamma, "plan", made if rounds == 1 else f"the threshold of the last of {rounds} rounds"
    why = "the plan has no target"
    if "latency" in plan.target:
        why = "it is a time, for which everything would have to be measured again"
    elif len(plan.target) == 1:
        targets: dict[str, Any] = {f"keep_{quantity}": keep for quantity, keep in plan.target.items()}
        try:
            options = {name: plan.options[name] for name in ("streams", "distance") if name in plan.options}
            report = analyze(dense, example, analysis=analysis, **options, **targets)
        except ValueError as error:
            why = str(error)
        else:
            note = f"the smallest threshold with which srr would reach this target; {plan.allocator} uses none"
            return report.gamma, "auto", note
    positive = [gamma for gamma in turning if gamma > 0]
    if positive:
        note = f"the threshold at which half of the groups have an edge, because none follows from the target: {why}"
        just_above = 1 + 1e-6  # so that the edge which decides is there, whatever the rounding
        return float(f"{statistics.median_high(positive) * just_above:.9g}"), "median", note
    return None, None, "no two filters of a group can be compared, so there is no threshold"


def _figures(measured: GroupRedundancy | None) -> dict[str, Any] | None:
    names = ("redundancy", "edge_density", "components", "cover_upper", "cover_lower")
    return None if measured is None else {name: getattr(measured, name) for name in names}


def _layers(analysis: ChannelAnalysis, final: nn.Module) -> list[dict[str, Any]]:
    widths = widths_of(final)
    macs, params = CostModel(analysis, "macs"), CostModel(analysis, "params")
    result = []
    for name, layer in analysis.layers.items():
        if name in analysis.widths and name not in widths:
            raise ValueError(f"final: has no layer {name!r}, so it was not made from dense")
        n_out, n_in = widths.get(name, (None, None))
        n_out = layer.n_out if n_out is None else n_out
        n_in = (n_out if layer.kind in ("norm", "prelu") else layer.n_in) if n_in is None else n_in
        if n_out > layer.n_out or n_in > layer.n_in:
            raise ValueError(f"final: layer {name!r} is wider than in dense; give the pruned network")
        before, after = (layer.n_in, layer.n_out), (n_in, n_out)
        result.append(
            {
                "name": name,
                "kind": layer.kind,
                "out": [layer.n_out, n_out],
                "in": [layer.n_in, n_in],
                "macs": [macs.layer_cost(layer, *before), macs.layer_cost(layer, *after)],
                "params": [params.layer_cost(layer, *before), params.layer_cost(layer, *after)],
            }
        )
    return result


def _graphs_to_draw(
    before: Sequence[GroupRedundancy], graphs: FilterGraphs, kept: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Choose the most redundant groups; half of the places go to graphs of several covers, which show more."""
    redundant = [i for i, group in enumerate(before) if round(group.redundancy, 9) > 1]
    redundant.sort(key=lambda i: (-before[i].redundancy, -before[i].n_filters, i))
    first, others = redundant[: DRAWN_GRAPHS // 2], redundant[DRAWN_GRAPHS // 2 :]
    others.sort(key=lambda i: before[i].cover_upper == 1)
    chosen = first + others[: DRAWN_GRAPHS - len(first)]
    return [_drawing(before[i].name, graphs.to_dense(i).cpu().numpy(), kept[i]) for i in chosen]


def _drawing(name: str, adjacency: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Describe one graph for drawing; a large one by its largest covers and evenly chosen edges, with a note."""
    centres, cover = cover_of(adjacency)
    nodes = np.arange(len(adjacency))
    notes = []
    if len(nodes) > MOST_NODES:  # whole covers, largest first; within a cover its centre, then by index
        sizes = np.bincount(cover, minlength=len(centres))
        is_centre = np.isin(nodes, centres)
        order = np.lexsort((nodes, ~is_centre, np.array(cover), -sizes[cover]))
        nodes = np.sort(order[:MOST_NODES])
        notes.append(f"{len(nodes):,} of {len(adjacency):,} filters are drawn, those of the largest covers")
    edges = np.argwhere(np.triu(adjacency[np.ix_(nodes, nodes)]))
    n_edges = int(adjacency.sum()) // 2
    if len(edges) > MOST_EDGES:
        ends = nodes[edges]
        of_cover = np.array(cover)[ends]
        spokes = (of_cover[:, 0] == of_cover[:, 1]) & np.isin(ends, centres).any(1)
        others = edges[~spokes]
        room = max(MOST_EDGES - int(spokes.sum()), 0)
        evenly = np.arange(room) * len(others) // max(room, 1)
        edges = np.concatenate([edges[spokes][:MOST_EDGES], others[evenly]])
        edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
    if len(edges) < n_edges:
        notes.append(f"{len(edges):,} of {n_edges:,} edges are drawn, those from a centre to its cover first")
    place = {int(node): position for position, node in enumerate(nodes)}
    stays = np.isin(nodes, kept)
    return {
        "name": name,
        "n_filters": len(adjacency),
        "n_edges": n_edges,
        "n_covers": len(centres),
        "nodes": nodes.tolist(),
        "cover": [cover[node] for node in nodes],
        "centres": [place.get(centre) for centre in centres],
        "kept": stays.tolist(),
        "edges": edges.tolist(),
        "note": "; ".join(notes),
    }
