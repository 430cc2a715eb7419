"""The figures of a comparison: accuracy against each cost with all methods in one, and every seed at each share.

Methods differ in marker, dashes and colour, so that any two can be told apart in grey; controls are thin and hollow.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from srr_ext.comparison.grid import DENSE_LONGER
from srr_ext.comparison.records import Comparison
from srr_ext.comparison.statistics import Spread
from srr_ext.report.axes import WIDTH, beside, legend, rows_chart
from srr_ext.report.svg import INK, PALETTE, PAPER, clean, style, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

COSTS = {
    "compression_ratio": ("compression ratio", "compression ratio: parameters, dense / pruned"),
    "speed_up": ("theoretical speed-up", "theoretical speed-up: multiply-accumulates, dense / pruned"),
    "measured": ("measured speed-up", "measured speed-up: time per batch, dense / pruned"),
}
QUANTITIES = {"macs": "the MACs", "params": "the parameters", "channels": "the channels"}
_MARKERS = "osD^vPX*<>phd8"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1.2, 1, 1.2, 1, 1.2)))
_CONTROLS = {"random": "x", "uniform": "s", "scratch": "+", DENSE_LONGER: "1"}
_CONTROL_DASHES: tuple[Any, ...] = ((0, (7, 3)), (0, (3, 3)), (0, (1, 3)), (0, (7, 2, 1, 2)))
_GREY = 0.7  # opacity of controls
_STEP = 0.03  # inches between methods that cost the same, so that their error bars can be told apart
_CLUSTER = 0.36  # inches that they take at most
_ALIKE = 1.02  # costs within this factor are the same
_LEGEND_ROW = 0.2  # inches
_LOG_FROM = 4.0  # costs that span this factor are drawn on a logarithmic axis
_LOWEST = 0.25  # share of points that may be left out of the upper part; no more are than need be
_ZOOM_FROM = 0.4  # the upper part is enlarged where it is a smaller share of the whole than this
_SEEDS_APART = 0.5  # rows, from the first seed to the last
_DPI = 150


@dataclass(frozen=True)
class Drawing:
    """A figure, for the page and as a file.

    Attributes
    ----------
    svg : str
        An SVG element.
    png : bytes
        The same on white.
    """

    svg: str
    png: bytes


class _Point(NamedTuple):
    """One method at one share."""

    keep: float
    cost: float
    accuracy: Spread


class _Level(NamedTuple):
    """An accuracy that belongs to no share, drawn as a line across."""

    label: str
    accuracy: Spread
    look: Mapping[str, Any]


def curve_figure(comparison: Comparison, cost: str) -> Drawing | None:
    """Draw the final top-1 accuracy of all methods against one cost, with standard deviations over seeds.

    Parameters
    ----------
    comparison : Comparison
        With at least one row.
    cost : {"compression_ratio", "speed_up", "measured"}
        What is on the horizontal axis.

    Returns
    -------
    Drawing or None
        None where this cost was not measured.

    Notes
    -----
    If few points lie so low that the rest cannot be told apart, a first panel shows the upper part enlarged. Where all
    methods cost the same at a share they are drawn a little beside each other.
    """
    from matplotlib.figure import Figure

    curves = {label: _points(comparison, label, cost) for label in comparison.labels if label != DENSE_LONGER}
    curves = {label: points for label, points in curves.items() if points}
    if not curves:
        return None
    name, levels, looks = cost.replace("_", "-"), _levels(comparison), looks_of(comparison)
    limits, zoom = _limits([point.accuracy for points in curves.values() for point in points], levels)
    entries = [(clean(label, 30), looks[label]) for label in curves]
    entries += [(clean(f"{level.label}: {level.accuracy.mean:.2f} %", 34), dict(level.look)) for level in levels]
    with style(name):
        height = max(4.4 if zoom is None else 6.8, 0.9 + _LEGEND_ROW * len(entries))
        figure = Figure((WIDTH, height))
        left, right = 0.075, 0.9 - 0.0078 * max(len(label) for label, _ in entries)
        low, high = 0.55 / height, 1 - 0.3 / height
        panels = [(limits, low, high)]
        if zoom is not None:
            middle = low + 0.34 * (high - low)
            panels = [(zoom, middle + 0.4 / height, high), (limits, low, middle)]
        for place, (span, bottom, top) in enumerate(panels):
            axes = figure.add_axes((left, bottom, right - left, top - bottom))
            _prepare_costs(axes, [point.cost for points in curves.values() for point in points])
            axes.set_ylim(*span)
            axes.set_ylabel("top-1 accuracy, %")
            axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
            axes.set_axisbelow(True)
            _draw_levels(axes, levels)
            _draw_curves(axes, curves, looks)
            if zoom is not None:
                axes.annotate(
                    "everything" if place else "the upper part, enlarged", (0, 1), (2, 4),
                    xycoords="axes fraction", textcoords="offset points",
                )  # fmt: skip
        axes.set_xlabel(COSTS[cost][1])
        legend(
            figure, entries, ncols=1, bbox_to_anchor=(right + 0.012, high), handlelength=3.4, labelspacing=0.6
        )  # fmt: skip
        shares = f"{len(comparison.keeps)} shares of {QUANTITIES[comparison.rows[0].quantity]}"
        title, said = f"Top-1 accuracy against {COSTS[cost][0]}", f"{len(curves)} methods and controls at {shares}."
        return _drawing(figure, name, title, said)


def seeds_figure(comparison: Comparison, keep: float, name: str) -> Drawing:
    """Draw every seed's final top-1 accuracy at one share, methods sorted by their means, best first.

    Parameters
    ----------
    comparison : Comparison
        With at least one row at this share.
    keep : float
        The share.
    name : str
        Prefix of all ids in the SVG.

    Returns
    -------
    Drawing

    Notes
    -----
    If few methods lie far below the others, the axis ends above them: an arrow points to where they are.
    """
    entries = comparison.ranked(keep)
    looks, dense = looks_of(comparison), _levels(comparison)[0]
    limits, zoom = _limits([entry.top1_final for entry in entries], [dense])
    low, high = zoom or limits
    seed_look: dict[str, Any] = {
        "marker": "o", "color": INK, "markersize": 3.4, "markerfacecolor": PAPER, "markeredgewidth": 0.9,
    }  # fmt: skip
    mean_look = {"color": PALETTE[0], "linestyle": "-", "linewidth": 2.2, "marker": "o", "markersize": 7}
    with style(name):
        figure, axes = rows_chart([entry.method for entry in entries], 0.98, right=0.84)
        axes.axvline(dense.accuracy.mean, **dense.look, zorder=1)
        for row, entry in enumerate(entries):
            final, look = entry.top1_final, looks[entry.method]
            mean = {name: look[name] for name in look.keys() - {"linestyle", "linewidth", "marker"}}
            mean["markersize"] += 2
            if final.std is not None:
                ends = (final.mean - final.std, final.mean + final.std)
                axes.plot(ends, (row, row), color=look["color"], linewidth=2.2, alpha=0.75, zorder=2)
            axes.plot(final.mean, row, look["marker"], **mean, zorder=3)
            values = [r.top1_final for r in comparison.rows if (r.method, r.keep) == (entry.method, entry.keep)]
            if len(values) > 1:
                beside_row = [row + _SEEDS_APART * (place / (len(values) - 1) - 0.5) for place in range(len(values))]
                axes.plot(values, beside_row, linestyle="none", **seed_look, zorder=4)
            beside(axes, row, 0.985, written(final))
            if final.mean < low:
                axes.annotate(
                    "\N{LEFTWARDS ARROW}", (0, row), (2, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", va="center", fontsize=10,
                )  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_xlabel("top-1 accuracy, %")
        legend(
            figure,
            [
                ("one seed", seed_look),
                ("mean \N{PLUS-MINUS SIGN} standard deviation", mean_look),
                (f"dense: {dense.accuracy.mean:.2f} %", dict(dense.look)),
            ],
            handlelength=2.4,
        )  # fmt: skip
        title = f"Top-1 accuracy of every seed at keep {keep:g}"
        return _drawing(figure, name, title, f"{len(entries)} methods and controls, best first.")


def looks_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return the look of every method's line: no two share both marker and dashes, whatever their colours.

    Parameters
    ----------
    comparison : Comparison
        Its first method stands out.

    Returns
    -------
    dict
        Keywords for lines of matplotlib, by label.
    """
    found: dict[str, dict[str, Any]] = {}
    roles = {entry.method: entry.role for entry in comparison.summaries}
    methods = [label for label in comparison.labels if roles[label] == "method"]
    for number, label in enumerate(methods):
        found[label] = {
            "marker": _MARKERS[number % len(_MARKERS)],
            "color": PALETTE[number % len(PALETTE)],
            "linestyle": _DASHES[(number + 2 * (number // len(_MARKERS))) % len(_DASHES)],
            "linewidth": 1.3 if number else 2.2,
            "markersize": 5.5 if number else 7,
            "markeredgewidth": 0.0,
        }
    for number, label in enumerate(label for label in comparison.labels if roles[label] == "control"):
        found[label] = {
            "marker": _CONTROLS.get(label, "1"),
            "color": INK,
            "linestyle": _CONTROL_DASHES[number % len(_CONTROL_DASHES)],
            "linewidth": 0.8,
            "markersize": 5.5,
            "markeredgewidth": 1.1,
            "markerfacecolor": PAPER,
            "alpha": _GREY,
        }
    return found


def written(spread: Spread) -> str:
    """Write a mean with its standard deviation, two digits each; the mean alone for a single seed."""
    return f"{spread.mean:.2f}" + ("" if spread.std is None else f" \N{PLUS-MINUS SIGN} {spread.std:.2f}")


def _drawing(figure: Figure, name: str, title: str, description: str) -> Drawing:
    svg = to_svg(figure, name, title, description)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return Drawing(svg, buffer.getvalue())


def _points(comparison: Comparison, label: str, cost: str) -> list[_Point]:
    """Return what a method reached, by its cost."""
    found = []
    for entry in comparison.summaries:
        if entry.method == label:
            place = comparison.measured(entry) if cost == "measured" else getattr(entry, cost).mean
            if place is not None:
                found.append(_Point(entry.keep, place, entry.top1_final))
    return sorted(found, key=lambda point: -point.keep)


def _levels(comparison: Comparison) -> list[_Level]:
    """Return the dense network, and the one that was trained for longer if there is one."""
    found = [_Level("dense", comparison.dense(), {"color": INK, "linewidth": 1.2, "linestyle": "-"})]
    if longer := comparison.longer():
        found.append(
            _Level(DENSE_LONGER, longer.top1_final, {"color": INK, "linewidth": 1.4, "linestyle": (0, (1, 2))})
        )
    return found


def _limits(
    accuracies: Sequence[Spread], levels: Sequence[_Level]
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Return the range of an axis of accuracy, and that of its upper part where the whole would be too coarse."""
    everything = [*accuracies, *(level.accuracy for level in levels)]
    upper = max(a.mean + (a.std or 0.0) for a in everything)
    lower = min(a.mean - (a.std or 0.0) for a in everything)
    pad = max(0.05 * (upper - lower), 0.05)
    whole = (max(lower - pad, -0.5), min(upper + pad, 100.5))
    ordered = sorted(a.mean - (a.std or 0.0) for a in accuracies)
    few = range(1, int(_LOWEST * len(ordered)) + 1)
    cut = next((ordered[k] for k in few if upper - ordered[k] < _ZOOM_FROM * (upper - lower)), None)
    if cut is None:
        return whole, None
    pad = max(0.08 * (upper - cut), 0.05)
    return whole, (cut - pad, min(upper + pad, 100.5))


def _prepare_costs(axes: Axes, costs: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(costs), max(costs)
    if high / low > _LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(low * (low / high) ** 0.09, high * (high / low) ** 0.09)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        pad = max(0.09 * (high - low), 0.05)
        axes.set_xlim(low - pad, high + pad)


def _draw_levels(axes: Axes, levels: Sequence[_Level]) -> None:
    for level in levels:
        mean, std = level.accuracy.mean, level.accuracy.std
        axes.axhline(mean, **level.look, zorder=1)
        if std:
            axes.axhspan(mean - std, mean + std, color=INK, alpha=0.1, linewidth=0, zorder=0.5)


def _draw_curves(axes: Axes, curves: Mapping[str, Sequence[_Point]], looks: Mapping[str, Mapping[str, Any]]) -> None:
    shifts = _shifts(axes, curves)
    for order, (label, points) in enumerate(curves.items()):
        look = looks[label]
        place: dict[str, Any] = {
            "transform": axes.transData + shifts[label],
            "zorder": 3 - order / 100,
        }  # the first on top
        costs, means = [p.cost for p in points], [p.accuracy.mean for p in points]
        axes.plot(costs, means, **look, **place)
        bars = [p for p in points if p.accuracy.std]
        if bars:
            axes.errorbar(
                [p.cost for p in bars], [p.accuracy.mean for p in bars], [p.accuracy.std or 0.0 for p in bars],
                fmt="none", ecolor=look["color"], elinewidth=0.8, capsize=1.8, capthick=0.8, alpha=look.get("alpha"),
                **place,
            )  # fmt: skip


def _shifts(axes: Axes, curves: Mapping[str, Sequence[_Point]]) -> dict[str, Transform]:
    """Return how far aside every method is drawn: not at all, unless methods cost the same at some share."""
    from matplotlib.transforms import ScaledTranslation

    by_keep: dict[float, list[float]] = {}
    for points in curves.values():
        for point in points:
            by_keep.setdefault(point.keep, []).append(point.cost)
    same = any(len(costs) > 1 and max(costs) / min(costs) < _ALIKE for costs in by_keep.values())
    scale = axes.figure.dpi_scale_trans  # of inches
    to_inches = axes.transData - scale
    middles = sorted(float(to_inches.transform((sum(c) / len(c), 50))[0]) for c in by_keep.values())
    gap = min((b - a for a, b in itertools.pairwise(middles)), default=1.0)
    step = min(_STEP, min(_CLUSTER, 0.5 * gap) / max(len(curves) - 1, 1)) if same else 0.0
    first = -step * (len(curves) - 1) / 2
    return {label: ScaledTranslation(first + step * place, 0, scale) for place, label in enumerate(curves)}
