"""The drawing of one filter graph: every cover is a disc of filters around its centre."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from srr_ext.report.svg import INK, PALETTE, PAPER, clean, style, to_svg

_GOLDEN = math.pi * (3 - math.sqrt(5))
_SHAPES = ("o", "s", "^", "D", "v", "p", "h")
_HEAD = 0.32  # inches above the drawing, for the legend
_LABELLED = 4  # filters in a cover from which on its number is written beside it


def graph_figure(graph: Mapping[str, Any], name: str) -> str:
    """Draw a filter graph.

    Parameters
    ----------
    graph : mapping
        An entry of ``graphs`` in ``structure.json``.
    name : str
        Prefix of the ids in the picture.

    Returns
    -------
    str
        An SVG element.

    Notes
    -----
    Each cover of more than one filter is a disc: its centre in the middle, ringed, the others around it. Discs are put
    as near to the middle as there is room, largest first, and covers of a single filter stand in rows below; so
    nothing overlaps, and distances in the picture mean nothing.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    cover, centres = graph["cover"], graph["centres"]
    members: dict[int, list[int]] = {}
    for node, number in enumerate(cover):
        members.setdefault(number, []).append(node)
    for number, nodes in members.items():
        nodes.sort(key=lambda node: (node != centres[number], node))
    discs = sorted((n for n in members if len(members[n]) > 1), key=lambda n: (-len(members[n]), n))
    points = _place(members, discs)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    width = max(xs) - min(xs) + 3
    height = max(ys) - min(ys) + 3
    with style(name):
        scale = min(0.17, 7.4 / width, 6.0 / height)  # inches per unit
        figure = Figure((max(4.6, width * scale), height * scale + _HEAD))
        used = width * scale / figure.get_figwidth()
        top = 1 - _HEAD / figure.get_figheight()
        axes = figure.add_axes(((1 - used) / 2, 0, used, top))
        axes.set_axis_off()
        axes.set_xlim(min(xs) - 1.5, max(xs) + 1.5)
        axes.set_ylim(min(ys) - 1.5, max(ys) + 1.5)
        size = 72 * scale * 0.72  # points across
        spokes = {(a, b) for a, b in graph["edges"] if cover[a] == cover[b] and centres[cover[a]] in (a, b)}
        others = [(a, b) for a, b in graph["edges"] if (a, b) not in spokes]
        faint, clear = (0.3 if len(others) < 300 else 0.06), (0.5 if len(spokes) < 150 else 0.25)
        for edges, alpha, line in ((others, faint, 0.5), (sorted(spokes), clear, 0.7)):
            if edges:  # all in one path, so that the page stays small and lines do not add up to black where they meet
                ends = [points[node] for edge in edges for node in edge]
                lines = Path(ends, [Path.MOVETO, Path.LINETO] * len(edges))
                axes.add_patch(PathPatch(lines, facecolor="none", edgecolor=INK, alpha=alpha, linewidth=line))
        for number in sorted(members):
            alone = len(members[number]) == 1
            colour = INK if alone else PALETTE[discs.index(number) % len(PALETTE)]
            shape = "o" if alone else _SHAPES[discs.index(number) % len(_SHAPES)]
            for stays in (False, True):
                nodes = [node for node in members[number] if graph["kept"][node] == stays]
                axes.plot(
                    [points[n][0] for n in nodes], [points[n][1] for n in nodes], shape, markersize=size, color=colour,
                    markerfacecolor=colour if stays else PAPER, markeredgewidth=1.1, linestyle="none",
                )  # fmt: skip
        rings = [points[centres[number]] for number in discs if centres[number] is not None]
        axes.plot(
            [x for x, _ in rings], [y for _, y in rings], "o", markersize=size + 5, color=INK, markerfacecolor="none",
            markeredgewidth=1.2, linestyle="none",
        )  # fmt: skip
        for position, number in enumerate(discs, 1):
            if len(members[number]) >= _LABELLED:
                x = points[centres[number]][0] if centres[number] is not None else points[members[number][0]][0]
                y = max(points[node][1] for node in members[number]) + 0.75
                axes.annotate(str(position), (x, y), ha="center", va="bottom", fontsize=8)
        _legend(figure, size)
        stay = sum(graph["kept"])
        return to_svg(
            figure,
            name,
            f"Filter graph of {clean(graph['name'], 200)}",
            f"{graph['n_filters']} filters, {graph['n_edges']} edges, {graph['n_covers']} covers; "
            f"{stay} of the {len(cover)} filters drawn stay.",
            shrinks=True,
        )


def _legend(figure: Any, size: float) -> None:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"linestyle": "none", "marker": "o", "color": INK}
    size = min(size, 7)
    handles = [
        Line2D([], [], **look, markersize=size, label="kept"),
        Line2D([], [], **look, markersize=size, markerfacecolor=PAPER, label="removed"),
        Line2D([], [], **look, markersize=size + 4, markerfacecolor="none", label="ring: centre of a cover"),
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.5, handletextpad=0.4,
        borderaxespad=0.2,
    )  # fmt: skip


def _place(members: Mapping[int, Sequence[int]], discs: Sequence[int]) -> list[tuple[float, float]]:
    """Place every node: units are the distance of neighbours within a disc."""
    placed: list[tuple[float, float, float]] = []  # x, y, radius of each disc
    points: dict[int, tuple[float, float]] = {}
    for number in discs:
        radius = 0.62 * math.sqrt(len(members[number])) + 0.9
        x, y = _room(placed, radius)
        placed.append((x, y, radius))
        for k, node in enumerate(members[number]):
            distance = 0.62 * math.sqrt(k) + (0.38 if k else 0)
            points[node] = (x + distance * math.cos(k * _GOLDEN), y + distance * math.sin(k * _GOLDEN))
    alone = sorted(nodes[0] for number, nodes in members.items() if len(nodes) == 1)
    left = min((x - r for x, _, r in placed), default=0.0)
    right = max((x + r for x, _, r in placed), default=0.0)
    floor = min((y - r for _, y, r in placed), default=0.0)
    columns = max(math.ceil(right - left), math.ceil(math.sqrt(3 * len(alone))), 1)
    start = (left + right) / 2 - (min(columns, len(alone)) - 1) / 2
    for k, node in enumerate(alone):
        points[node] = (start + k % columns, floor - 1.2 - k // columns)
    return [points[node] for node in range(len(points))]


def _room(placed: Sequence[tuple[float, float, float]], radius: float) -> tuple[float, float]:
    """Find the free place that is nearest to the middle, on an ellipse that is wider than high."""
    if not placed:
        return 0.0, 0.0
    for step in range(1, 20000):
        distance, angle = 0.35 * math.sqrt(step), step * _GOLDEN
        x, y = 1.7 * distance * math.cos(angle), distance * math.sin(angle)
        if all(math.hypot(x - a, y - b) >= radius + r for a, b, r in placed):
            return x, y
    return max(x + r for x, _, r in placed) + radius, 0.0
