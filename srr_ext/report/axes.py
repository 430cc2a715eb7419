"""Parts that the figures of all pages share: charts with a row per name, legends, plain numbers on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srr_ext.report.svg import INK, clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.6  # inches, at 96 CSS pixels each
ROW = 0.205  # inches per row of a chart with one row per name


def rows_chart(names: Sequence[str], margin: float, right: float, grid: bool = True) -> tuple[Figure, Axes]:
    """Make a figure with one row per name, first at the top, as high as they need; margin in inches, for the rest."""
    from matplotlib.figure import Figure

    labels = [clean(name) for name in names]
    height = margin + ROW * len(names)
    figure = Figure((WIDTH, height))
    left = min(0.36, 0.025 + 0.0092 * max(map(len, labels), default=0))
    axes = figure.add_axes((left, 0.52 / height, right - left, 1 - margin / height))
    prepare_rows(axes, len(names), grid)
    axes.set_yticks(range(len(names)), labels)
    return figure, axes


def prepare_rows(axes: Axes, count: int, grid: bool = True) -> None:
    """Set up an axis of rows, first at the top."""
    axes.set_ylim(count - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if grid:
        axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
        axes.set_axisbelow(True)


def beside(axes: Axes, row: float, place: float, text: str) -> None:
    """Write beside a row, up to ``place`` as a share of the width of the figure."""
    axes.annotate(text, (place, row), xycoords=("figure fraction", "data"), ha="right", va="center", fontsize=8)


def legend(figure: Figure, entries: Sequence[tuple[str, dict[str, Any]]], **settings: Any) -> None:
    """Put a legend on one line above everything, or where ``settings`` say; entries are labels with looks of lines."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **{"linestyle": "none", "label": label} | look) for label, look in entries]
    usual: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, 1), "ncols": len(entries)}
    spacing: dict[str, Any] = {"handletextpad": 0.5, "columnspacing": 1.8, "borderaxespad": 0.2}
    figure.legend(handles=handles, **usual | spacing | settings)


def plain_log_ticks(axes: Axes, which: str = "x") -> None:
    """Ticks at 1, 2, 5, 10, ..., in plain digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
