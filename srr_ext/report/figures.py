"""The figures of a run's page, as SVG text, each from the plain numbers in its run folder.

Every quantity is told by position, shape or words as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from srr_ext.report.axes import WIDTH, beside, legend, plain_log_ticks, prepare_rows, rows_chart
from srr_ext.report.svg import INK, PALETTE, PAPER, clean, style, to_svg

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN = PALETTE[:3]
_EDGE = "#010101"  # black in any theme, on top of a coloured cell


def redundancy_figure(structure: Mapping[str, Any]) -> str:
    """Redundancy R of every group before and after, on a logarithmic scale: a ring, a line, a filled diamond.

    Parameters
    ----------
    structure : mapping
        Content of ``structure.json``; groups without figures are left out.

    Returns
    -------
    str
        An SVG element.
    """
    groups = [group for group in structure["groups"] if group["before"] and group["after"]]
    names = [group["name"] for group in groups]
    with style("redundancy"):
        figure, axes = rows_chart(names, 0.98, right=0.74)
        before = [group["before"]["redundancy"] for group in groups]
        after = [group["after"]["redundancy"] for group in groups]
        rows = range(len(groups))
        axes.hlines(rows, before, after, color=INK, linewidth=1, alpha=0.55)
        axes.plot(before, rows, "o", color=_BLUE, markerfacecolor=PAPER, markersize=6.5, markeredgewidth=1.5)
        axes.plot(after, rows, "D", color=_ORANGE, markersize=4.5)
        axes.set_xscale("log")
        axes.set_xlim(0.93, max([1.5, *before, *after]) * 1.12)
        plain_log_ticks(axes)
        axes.set_xlabel(f"redundancy R at \N{GREEK SMALL LETTER GAMMA} = {structure['gamma']:.4g} (1: none)")
        for row, group in enumerate(groups):
            beside(axes, row, 0.86, f"{_short(before[row])} \N{RIGHTWARDS ARROW} {_short(after[row])}")
            beside(axes, row, 0.985, f"{group['kept']:,} of {group['size']:,}")
        beside(axes, -1, 0.86, "R")
        beside(axes, -1, 0.985, "channels kept")
        legend(
            figure,
            [
                ("before pruning", {"marker": "o", "color": _BLUE, "markerfacecolor": PAPER, "markeredgewidth": 1.5}),
                ("after, on the filters that stayed", {"marker": "D", "color": _ORANGE, "markersize": 4.5}),
            ],
        )
        return to_svg(
            figure,
            "redundancy",
            "Structural redundancy of every group before and after pruning",
            f"{len(groups)} groups; the largest redundancy falls from {max(before):.3g} to {max(after):.3g}.",
        )


def curves_figure(structure: Mapping[str, Any]) -> str:
    """Redundancy of every group at every threshold: one row of cells per group, one column per gamma.

    Parameters
    ----------
    structure : mapping
        Content of ``structure.json``, with at least one entry in ``curve_gammas``.

    Returns
    -------
    str
        An SVG element.
    """
    import matplotlib as mpl
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    groups, gammas = structure["groups"], np.array(structure["curve_gammas"])
    values = np.array([group["curve"] for group in groups])  # [groups, gammas]
    with style("curves"):
        figure, axes = rows_chart([group["name"] for group in groups], 1.2, right=0.86, grid=False)
        ratio = (gammas[-1] / gammas[0]) ** (0.5 / (len(gammas) - 1))
        borders = np.append(gammas / ratio, gammas[-1] * ratio)
        norm = LogNorm(1, max(2.0, float(values.max())))
        # The darkest quarter would be lost on a dark page; groups that are not redundant have no cell at all.
        colours = ListedColormap(mpl.colormaps["cividis"](np.linspace(0.25, 1, 256)))
        _redundant_cells(axes, values, borders, [group["turning_gamma"] for group in groups], colours, norm)
        axes.set_xscale("log")
        axes.set_xlim(borders[0], borders[-1])
        plain_log_ticks(axes)
        marks: dict[str, Any] = {"color": "#ffffff", "markeredgecolor": _EDGE, "markersize": 5.5, "linestyle": "none"}
        for key, marker in (("turning_gamma", ">"), ("complete_gamma", "s")):
            points = [(group[key], row) for row, group in enumerate(groups) if group[key]]
            points = [(gamma, row) for gamma, row in points if borders[0] <= gamma <= borders[-1]]
            axes.plot([x for x, _ in points], [row for _, row in points], marker=marker, markeredgewidth=0.8, **marks)
        if structure["gamma"]:
            axes.axvline(structure["gamma"], color=PAPER, linewidth=3, zorder=1.9)
            axes.axvline(structure["gamma"], color=INK, linewidth=1.3, dashes=(4, 2), zorder=1.95)
            axes.annotate(
                f"\N{GREEK SMALL LETTER GAMMA} = {structure['gamma']:.4g}", (structure["gamma"], 1), (0, 3),
                xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", va="bottom",
            )  # fmt: skip
        axes.set_xlabel("threshold \N{GREEK SMALL LETTER GAMMA}")
        height = figure.get_figheight()
        bar_height = min(2.2 / height, axes.get_position().height)
        place = figure.add_axes((0.9, axes.get_position().y1 - bar_height, 0.018, bar_height))
        bar = figure.colorbar(ScalarMappable(norm, colours), cax=place)
        if bar.solids is not None:
            bar.solids.set_edgecolor("face")
        bar.outline.set_visible(False)
        place.set_title("R", loc="left", pad=8)
        plain_log_ticks(place, "y")
        legend(
            figure,
            [
                ("first edge: R > 1 from here", {"marker": ">", **marks}),
                ("all filters joined", {"marker": "s", **marks}),
                ("empty: not redundant", {"color": "none"}),
            ],
        )
        return to_svg(
            figure,
            "curves",
            "Redundancy of every group at every threshold",
            "Each row is a group, from the threshold of its first edge to the one at which all its filters are joined.",
        )


def widths_figure(structure: Mapping[str, Any]) -> str:
    """Output channels of every convolution and linear layer: an outline as wide as before, filled as far as now.

    Parameters
    ----------
    structure : mapping
        Content of ``structure.json``.

    Returns
    -------
    str
        An SVG element.
    """
    layers = weight_layers(structure)
    with style("widths"):
        figure, axes = rows_chart([layer["name"] for layer in layers], 0.88, right=0.76)
        _before_after_bars(axes, [layer["out"][0] for layer in layers], [layer["out"][1] for layer in layers])
        axes.set_xlabel("output channels")
        for row, (was, now) in enumerate(layer["out"] for layer in layers):
            beside(axes, row, 0.9, f"{now:,} of {was:,}")
            beside(axes, row, 0.985, f"{now / was:.0%}".replace("%", "\N{NO-BREAK SPACE}%"))
        _bar_legend(figure)
        cut = sum(layer["out"][1] < layer["out"][0] for layer in layers)
        return to_svg(
            figure,
            "widths",
            "Output channels of every layer, dense and pruned",
            f"{cut} of {len(layers)} layers lost output channels.",
        )


def cost_figure(structure: Mapping[str, Any]) -> str:
    """MACs of every layer, and beside it the time it takes where that was measured.

    Parameters
    ----------
    structure : mapping
        Content of ``structure.json``; ``latency``, if there, is what `layer_latency` returned.

    Returns
    -------
    str
        An SVG element.
    """
    layers = weight_layers(structure)
    times = {row["name"]: row for row in structure.get("latency") or []}
    names = [layer["name"] for layer in layers]
    rest = [row for name, row in times.items() if name not in set(names)]
    macs = [[float(layer["macs"][side]) for layer in layers] for side in (0, 1)]
    spent = [[(times.get(name) or {}).get(key) or 0.0 for name in names] for key in ("dense_ms", "pruned_ms")]
    if rest:
        names = [*names, "all other modules"]
        for side, key in enumerate(("dense_ms", "pruned_ms")):
            spent[side].append(sum(row[key] or 0.0 for row in rest))
            macs[side].append(0.0)
    from matplotlib.ticker import MaxNLocator

    scale, unit = _unit(max(macs[0], default=0))
    with style("cost"):
        figure, axes = rows_chart(names, 0.88, right=0.56 if times else 0.97)
        _before_after_bars(axes, [x / scale for x in macs[0]], [x / scale for x in macs[1]])
        axes.set_xlabel(f"{unit}MACs for the example input")
        if times:
            box = axes.get_position()
            second = figure.add_axes((0.6, box.y0, 0.37, box.height), sharey=axes)
            prepare_rows(second, len(names))
            second.tick_params(labelleft=False)
            _before_after_bars(second, spent[0], spent[1])
            second.set_xlabel("milliseconds per batch")
            second.xaxis.set_major_locator(MaxNLocator(nbins=4))  # short times have long labels
        _bar_legend(figure)
        return to_svg(
            figure,
            "cost",
            "Cost of every layer, dense and pruned",
            f"MACs{' and time' if times else ''} of {len(layers)} layers with weights.",
        )


def training_figure(records: Sequence[Mapping[str, Any]], dense_top1: float | None) -> str:
    """Accuracy and loss over the epochs of all stages of training, one after the other.

    Parameters
    ----------
    records : sequence of mapping
        Lines of ``log.jsonl``, at least one.
    dense_top1 : float or None
        Validation accuracy of the dense network in percent, drawn as a line.

    Returns
    -------
    str
        An SVG element.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stages: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        stages.setdefault(str(record["stage"]), []).append(record)
    total = sum(len(part) for part in stages.values())
    with style("training"):
        figure = Figure((WIDTH, 4.6))
        top = figure.add_axes((0.085, 0.42, 0.895, 0.43))
        bottom = figure.add_axes((0.085, 0.105, 0.895, 0.25), sharex=top)
        start, lowest = 0, 100.0
        curves: list[tuple[Axes, str, dict[str, Any]]] = [
            (top, "train_top1", {"color": _ORANGE, "dashes": (3, 1.5)}),
            (top, "validation_top1", {"color": _BLUE, "marker": "o", "markersize": 3.5}),
            (bottom, "loss", {"color": _ORANGE, "dashes": (3, 1.5)}),
        ]
        for number, (stage, part) in enumerate(stages.items()):
            epochs = [start + i + 1 for i in range(len(part))]
            for axes, key, look in curves:
                points = [(x, record[key]) for x, record in zip(epochs, part, strict=True) if _number(record.get(key))]
                alone: dict[str, Any] = (
                    {"marker": "s", "markersize": 4} if len(points) == 1 and "marker" not in look else {}
                )
                axes.plot([x for x, _ in points], [y for _, y in points], linewidth=1.4, **look, **alone)
                if axes is top:
                    lowest = min([lowest, *(y for _, y in points)])
            if number:
                for axes in (top, bottom):
                    axes.axvline(start + 0.5, color=INK, linewidth=0.8, alpha=0.6)
            if len(part) / total > 0.11 or len(stages) == 1:
                top.annotate(
                    clean(stage, max(6, int(85 * len(part) / total))), (start + 0.5, 1), (4, 4), ha="left",
                    xycoords=("data", "axes fraction"), textcoords="offset points",
                )  # fmt: skip
            start += len(part)
        if dense_top1 is not None:
            top.axhline(dense_top1, color=INK, linewidth=1, dashes=(1, 1.5))
            lowest = min(lowest, dense_top1)
        top.set_ylim(max(0, lowest - 4) if lowest > 50 else 0, 101.5)
        top.set_xlim(0.5, total + 0.5)
        top.set_ylabel("top-1 accuracy, %")
        bottom.set_ylabel("training loss")
        bottom.set_ylim(bottom=0)
        bottom.set_xlabel("epoch, counted through the run")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
        top.tick_params(labelbottom=False)
        for axes in (top, bottom):
            axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
            axes.set_axisbelow(True)
        entries: list[tuple[str, dict[str, Any]]] = [
            ("validation", {"color": _BLUE, "marker": "o", "linestyle": "-", "markersize": 3.5}),
            ("training", {"color": _ORANGE, "linestyle": (0, (3, 1.5))}),
        ]
        if dense_top1 is not None:
            entries.append(
                (f"dense network, validation: {dense_top1:.2f} %", {"color": INK, "linestyle": (0, (1, 1.5))}),
            )
        legend(figure, entries)
        said = ", ".join(f"{stage}: {len(part)} epochs" for stage, part in stages.items())
        return to_svg(figure, "training", "Accuracy and loss during training", said)


def weight_layers(structure: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the layers that have multiply-accumulates: convolutions and linear layers."""
    return [layer for layer in structure["layers"] if layer["kind"] not in ("norm", "prelu")]


def _before_after_bars(axes: Axes, before: Sequence[float], after: Sequence[float]) -> None:
    rows = range(len(before))
    axes.barh(rows, after, 0.62, color=_BLUE)
    axes.barh(rows, before, 0.62, facecolor="none", edgecolor=INK, linewidth=0.8)
    axes.set_xlim(0, max([*before, *after, 1e-12]) * 1.02)


def _bar_legend(figure: Figure) -> None:
    box = {"marker": "s", "markersize": 8, "linestyle": "none"}
    outline = {**box, "color": INK, "markerfacecolor": "none", "markeredgewidth": 0.8}
    legend(figure, [("dense", outline), ("pruned", {**box, "color": _BLUE})])


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _redundant_cells(
    axes: Axes,
    values: np.ndarray,
    borders: np.ndarray,
    turning: Sequence[float | None],
    colours: Colormap,
    norm: Normalize,
) -> None:
    """Draw a cell for every group and threshold with R > 1; each row begins where its group turns redundant."""
    from matplotlib.collections import PolyCollection

    corners, shown = [], []
    for row, start in enumerate(turning):
        redundant = [column for column, value in enumerate(values[row]) if value > 1 + 1e-9]
        for column in redundant:
            left, right = borders[column], borders[column + 1]
            if column == redundant[0] and start:
                left = min(max(start, borders[0]), right)
            corners.append([(left, row - 0.42), (right, row - 0.42), (right, row + 0.42), (left, row + 0.42)])
            shown.append(values[row, column])
    cells = PolyCollection(corners, array=shown, cmap=colours, norm=norm, edgecolors="face", linewidths=0.4)
    axes.add_collection(cells, autolim=False)


def _unit(largest: float) -> tuple[float, str]:
    power = min(3, max(0, int(math.log10(largest)) // 3)) if largest >= 1 else 0
    return 1000.0**power, ("", "thousand ", "million ", "billion ")[power]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
