"""What the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srr_ext.channels import Pin
from srr_ext.redundancy import RedundancyReport
from srr_ext.report.sparse_page import counts, forms, removed, untimed

_NARROW = 100  # columns of a table when the output is no terminal and has no width of its own


def make_console(stderr: bool = False) -> Console:
    """Return a console: results go to the standard output, progress to the error stream, out of the way of pipes.

    In a pipe or file its width does not depend on the machine.
    """
    console = Console(highlight=False, soft_wrap=False, stderr=stderr)
    return console if console.is_terminal else Console(highlight=False, width=_NARROW, stderr=stderr)


def result_table(report: dict[str, Any]) -> Table:
    """Lay out a run's report: one row per quantity, dense beside pruned.

    Parameters
    ----------
    report : dict
        The content of ``report.json``.

    Returns
    -------
    rich.table.Table
    """
    title = f"{report['model']} on {report['data']}: {report['allocator']} x {report['selector']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", "dense", "pruned", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, key in (("parameters", "params"), ("MACs per image", "macs")):
        dense, pruned = report[key]["dense"], report[key]["pruned"]
        table.add_row(label, f"{dense:,}", f"{pruned:,}", f"{dense / pruned:.2f} x smaller")
    latency = report["latency_ms"]
    speed_up = f"{report['speed_up']['measured']:.2f} x faster"
    table.add_row(f"latency, {_batch(latency)}", f"{latency['dense']:.2f} ms", f"{latency['pruned']:.2f} ms", speed_up)
    top1 = report["top1"]
    cut = "surgery" if report["rounds"] == 1 else f"the last of {report['rounds']} cuts"
    table.add_row(f"test accuracy, after {cut}", _percent(top1["dense"]), _percent(top1["after_surgery"]), "")
    change = top1["final"] - top1["dense"]
    table.add_row("test accuracy, final", _percent(top1["dense"]), _percent(top1["final"]), f"{change:+.2f} points")
    return table


def sparse_table(report: dict[str, Any]) -> Table:
    """Lay out the report of a run that removed single weights: one row per quantity, dense beside pruned.

    Parameters
    ----------
    report : dict
        The content of ``report.json``.

    Returns
    -------
    rich.table.Table
        With times of every form that was measured; the caption says what of, and why not of others.
    """
    method = [report[key] for key in ("selector", "scope", "schedule", "retrain")]
    if report["schedule"] == "given":
        method[:3] = ["given masks"]
    title = f"{report['model']} on {report['data']}: {', '.join(method)}"
    notes = [f"latency: of {_batch(report['latency_ms'])}", *(f"no latency of {reason}" for reason in untimed(report))]
    caption = Text("\n".join(notes))  # no markup: reasons may have brackets
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", caption=caption, caption_justify="left")
    for heading in ("", "dense", "pruned", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, key in (("parameters", "params"), ("MACs per image, of weights not zero", "macs")):
        dense, pruned = report[key]["dense"], report[key]["pruned"]
        table.add_row(label, f"{dense:,}", f"{pruned:,}", f"{dense / pruned:.2f} x fewer")
    if weights := counts(report):
        share = f"density {_percent(100 * weights[1] / weights[0])}"
        table.add_row("weights that may go", f"{weights[0]:,}", f"{weights[1]:,}", share)
    for form in forms(report):
        speed = f"{form.dense / form.pruned:.2f} x as fast"
        table.add_row(f"latency, {form.what}", f"{form.dense:.2f} ms", f"{form.pruned:.2f} ms", speed)
    top1 = report["top1"]
    table.add_row(f"test accuracy, {removed(report)}", _percent(top1["dense"]), _percent(top1["after_surgery"]), "")
    change = top1["final"] - top1["dense"]
    table.add_row("test accuracy, final", _percent(top1["dense"]), _percent(top1["final"]), f"{change:+.2f} points")
    return table


def training_table(report: dict[str, Any]) -> Table:
    """Lay out the report of a training.

    Parameters
    ----------
    report : dict
        The content of ``report.json``.

    Returns
    -------
    rich.table.Table
    """
    table = Table(title=f"{report['model']} on {report['data']}", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_row("parameters", f"{report['params']:,}")
    table.add_row("MACs per image", f"{report['macs']:,}")
    table.add_row("test accuracy", _percent(report["top1"]))
    if "top5" in report:
        table.add_row("test accuracy, top 5", _percent(report["top5"]))
    return table


def redundancy_table(report: RedundancyReport) -> Table:
    """Lay out the structural redundancy of every group.

    Parameters
    ----------
    report : RedundancyReport
        From ``srr_ext.analyze``.

    Returns
    -------
    rich.table.Table
    """
    title = f"structural redundancy at gamma {report.gamma:.4g}, {report.distance} distance"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("group")
    for heading in ("N", "fan-in", "density", "components", "covers", "R"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in report.groups:
        table.add_row(
            group.name,
            str(group.n_filters),
            str(group.fan_in),
            f"{group.edge_density:.4f}",
            str(group.components),
            f"{group.cover_lower} - {group.cover_upper}",
            f"{group.redundancy:.2f}",
        )
    return table


def pin_table(pins: Sequence[Pin]) -> Table:
    """Lay out the channels that stay, with the reasons.

    Parameters
    ----------
    pins : sequence of Pin
        From the same report.

    Returns
    -------
    rich.table.Table
    """
    table = Table(box=box.SIMPLE_HEAD, title="channels that stay", title_justify="left")
    table.add_column("layer")
    table.add_column("channels", justify="right")
    table.add_column("reason")
    for pin in pins:
        table.add_row(pin.module, str(pin.channels), pin.reason)
    return table


def _batch(latency: dict[str, Any]) -> str:
    """Name the images that times were taken of, and what computed them."""
    where = f"{latency['batch_size']} images, {latency['device']}"
    if latency["device"] == "cpu":
        where += f" ({latency['threads']} thread{'s' if latency['threads'] > 1 else ''})"
    return where


def _percent(value: float) -> str:
    return f"{value:.2f} %"
