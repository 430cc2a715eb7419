"""What stands in each section of a run's page: words, tables and figures, computed from the run folder's numbers.

A section whose numbers are missing is a `Missing` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srr_ext.report import figures
from srr_ext.report.graph_figure import graph_figure

_BOUNDED = {
    "rms": "the distance of two filters of length 1, divided by the square root of their number of weights",
    "euclidean": "the distance of two filters of length 1",
}
_NO_STRUCTURE = "The run folder has no structure.json, so this cannot be shown."


@dataclass(frozen=True)
class Missing:
    """Why a section is left out."""

    missing: str


@dataclass(frozen=True)
class Table:
    """Numbers as a table.

    Attributes
    ----------
    heads : tuple of str
        Column headings; the first column names the row.
    rows : sequence of tuple of str
        Cells, as they are printed.
    """

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Picture:
    """One figure with what belongs to it.

    Attributes
    ----------
    svg : str
        The picture, as safe markup.
    label : str
        What it is, for those who do not see it.
    caption : str
        How to read it, and its main fact in words.
    table : Table
        Its numbers.
    """

    svg: str
    label: str
    caption: str
    table: Table
    missing: str = ""


def title(report: Mapping[str, Any]) -> str:
    """Name the run."""
    return f"{report.get('model', 'a network')} on {report.get('data', 'unknown images')}, pruned"


def story(report: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """Say in two sentences what happened."""
    method = f"{report.get('allocator', 'a plan')} with the selector {report.get('selector', 'unknown')}"
    left = [
        f"{counts['pruned']:,} of {counts['dense']:,} {what} ({percent(100 * counts['pruned'] / counts['dense'])})"
        for key, what in (("macs", "multiply-accumulates per image"), ("params", "parameters"))
        if (counts := report.get(key))
    ]
    network = f"{report.get('model', 'The network')} was pruned by {method}"
    first = f"{network}, which leaves {' and '.join(left)}." if left else f"{network}."
    epochs = [record for record in log if not str(record["stage"]).startswith("train dense")]
    training = "fine-tuning" if report.get("retrain", "finetune") == "finetune" else "training after it"
    tuned = f"after {plural(len(epochs), 'epoch')} of {training}" if epochs else f"without {training}"
    facts = []
    top1 = report.get("top1") or {}
    if has_numbers(top1, "dense", "final"):
        change = top1["final"] - top1["dense"]
        facts.append(
            f"test accuracy went from {percent(top1['dense'], 2)} to {percent(top1['final'], 2)} "
            f"({points(change)}) {tuned}"
        )
    latency = report.get("latency_ms") or {}
    if has_numbers(latency, "dense", "pruned"):
        facts.append(
            f"a forward pass of {name_batch(latency)} takes {ms(latency['pruned'])} instead of {ms(latency['dense'])}, "
            f"{latency['dense'] / latency['pruned']:.2f} times as fast"
        )
    second = ", and ".join(facts)
    return f"{first} {second[:1].upper()}{second[1:]}." if second else first


def summary(report: Mapping[str, Any]) -> Table:
    """Lay out the main figures, dense beside pruned."""
    rows = []
    for key, what in (("params", "parameters"), ("macs", "MACs per image")):
        if counts := report.get(key):
            ratio = counts["dense"] / counts["pruned"]
            rows.append(
                (what, f"{counts['dense']:,}", f"{counts['pruned']:,}", f"{ratio:.2f} \N{MULTIPLICATION SIGN} smaller")
            )
    latency = report.get("latency_ms") or {}
    if has_numbers(latency, "dense", "pruned"):
        ratio = latency["dense"] / latency["pruned"]
        faster = f"{ratio:.2f} \N{MULTIPLICATION SIGN} faster"
        rows.append((f"latency, {name_batch(latency)}", ms(latency["dense"]), ms(latency["pruned"]), faster))
    top1 = report.get("top1") or {}
    cut = "right after surgery" if report.get("rounds", 1) == 1 else f"right after the last of {report['rounds']} cuts"
    for key, when in (("after_surgery", cut), ("final", "final")):
        if has_numbers(top1, "dense", key):
            change = points(top1[key] - top1["dense"])
            rows.append((f"test accuracy, {when}", percent(top1["dense"], 2), percent(top1[key], 2), change))
    return Table(("", "dense", "pruned", "change"), rows)


def test_size(report: Mapping[str, Any]) -> str:
    """Say how much one test image weighs, and what was left out; empty where their number is unknown."""
    images = report.get("n_test_images")
    if not images:
        return ""
    size = f"Accuracy is measured on {plural(images, 'test image')}, so one image is {100 / images:.2g} points."
    left = report.get("skipped_images") or {}
    if not any(left.values()):
        return size
    return f"{size} Left out, as they cannot be read: {left['train']} training and {left['test']} test images."


def redundancy(structure: Mapping[str, Any]) -> Picture | Missing:
    """Redundancy before and after."""
    if not structure:
        return Missing(_NO_STRUCTURE)
    groups = [group for group in structure["groups"] if group["before"] and group["after"]]
    if not groups:
        return Missing(f"No redundancy was measured: {structure['gamma_note'] or 'there is no group of channels'}.")
    bounded = _BOUNDED[structure.get("distance", "rms")]
    redundant = [sum(round(g[when]["redundancy"], 9) > 1 for g in groups) for when in ("before", "after")]
    caption = (
        f"Each row is a group of channels that go together, named after the layer that makes them. Redundancy R is how "
        f"many times more filters there are than are needed to describe them; at 1 no filter is near another. "
        f"{redundant[0]} of {len(groups)} groups were redundant before pruning, {redundant[1]} are afterwards. "
        f"Gamma {structure['gamma']:.4g} is {structure['gamma_note']}; it bounds {bounded}."
    )
    heads = ("group", "channels", "kept", "R before", "R after", "edges before", "edges after", "components before",
             "components after", "covers before", "covers after", "zero filters")  # fmt: skip
    rows = []
    for group in groups:
        before, after = group["before"], group["after"]
        cells = [str(group["size"]), str(group["kept"])]
        cells += [f"{part['redundancy']:.2f}" for part in (before, after)]
        cells += [percent(100 * part["edge_density"]) for part in (before, after)]
        cells += [str(part["components"]) for part in (before, after)]
        cells += [f"{part['cover_lower']} to {part['cover_upper']}" for part in (before, after)]
        rows.append((group["name"], *cells, str(group["zero_filters"])))
    return Picture(figures.redundancy_figure(structure), "Redundancy before and after", caption, Table(heads, rows))


def curves(structure: Mapping[str, Any]) -> Picture | Missing:
    """Redundancy against gamma."""
    if not structure:
        return Missing(_NO_STRUCTURE)
    if not structure["curve_gammas"]:
        return Missing("No group has two filters that could be compared.")
    caption = (
        "Each row shows one group. Two filters are joined when they lie within gamma of each other, so further to the "
        "right more are. A triangle marks where the first two are joined and the group turns redundant, a square where "
        "all are. The dashed line is the gamma of this run."
    )
    heads = (
        "group",
        "redundant from gamma",
        "complete from gamma",
        *(f"R at {g:.3g}" for g in structure["curve_gammas"]),
    )
    rows = [
        (
            group["name"],
            _gamma(group["turning_gamma"]),
            _gamma(group["complete_gamma"]),
            *(f"{r:.2f}" for r in group["curve"]),
        )
        for group in structure["groups"]
    ]
    return Picture(figures.curves_figure(structure), "Redundancy against gamma", caption, Table(heads, rows))


def widths(structure: Mapping[str, Any]) -> Picture | Missing:
    """Kept widths."""
    layers = figures.weight_layers(structure) if structure else []
    if not layers:
        return Missing(_NO_STRUCTURE if not structure else "The network has no convolution and no linear layer.")
    cut = [layer for layer in layers if layer["out"][1] < layer["out"][0]]
    caption = f"{len(cut)} of {len(layers)} layers lost output channels"
    if cut:
        most = min(cut, key=lambda layer: layer["out"][1] / layer["out"][0])
        caption += f", {most['name']} the largest share: {most['out'][1]:,} of {most['out'][0]:,} are left"
    rows = [
        (layer["name"], layer["kind"].replace("_", " "), *(f"{n:,}" for n in (*layer["in"], *layer["out"])))
        for layer in structure["layers"]
    ]
    heads = ("layer", "kind", "inputs, dense", "inputs, pruned", "outputs, dense", "outputs, pruned")
    return Picture(figures.widths_figure(structure), "Kept widths", f"{caption}.", Table(heads, rows))


def training(log: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Picture | Missing:
    """Training curves."""
    if not log:
        return Missing("Nothing was trained in this run, or its log.jsonl is missing.")
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for record in log:
        stages.setdefault(str(record["stage"]), []).append(record)
    said = []
    for stage, part in stages.items():
        last = part[-1].get("validation_top1")
        ends = f", validation {percent(last, 2)} at its end" if isinstance(last, (int, float)) else ""
        said.append(f"{stage}: {plural(len(part), 'epoch')}{ends}")
    names = ("lr", "loss", "train_top1", "validation_top1")
    forms = ("{:.4g}", "{:.4f}", "{:.2f}", "{:.2f}")
    rows = [
        (str(r["stage"]), str(r["epoch"]), *(_form(f, r.get(n)) for n, f in zip(names, forms, strict=True)))
        for r in log
    ]
    heads = ("stage", "epoch", "learning rate", "training loss", "training top-1, %", "validation top-1, %")
    picture = figures.training_figure(log, (report.get("validation_top1") or {}).get("dense"))
    return Picture(picture, "Training", "; ".join(said) + ".", Table(heads, rows))


def cost(structure: Mapping[str, Any]) -> Picture | Missing:
    """Latency and MACs per layer."""
    layers = figures.weight_layers(structure) if structure else []
    if not layers:
        return Missing(_NO_STRUCTURE if not structure else "The network has no convolution and no linear layer.")
    times = {row["name"]: row for row in structure.get("latency") or []}
    caption = "Multiply-accumulates (MACs) of every convolution and linear layer"
    if times:
        caption += (
            " and, on the right, its time in the fastest of several passes; all other modules (normalisation, "
            "activations, pooling) are one row. With a clock between them, layers add up to a little more than the "
            "whole network."
        )
    else:
        caption += ". The time of single layers was not measured."
    heads = (
        "layer",
        "kind",
        "MACs, dense",
        "MACs, pruned",
        "parameters, dense",
        "parameters, pruned",
        "ms, dense",
        "ms, pruned",
    )
    rows = []
    for layer in structure["layers"]:
        row = times.pop(layer["name"], {})
        counts = (f"{n:,}" for n in (*layer["macs"], *layer["params"]))
        rows.append((layer["name"], layer["kind"].replace("_", " "), *counts, *_times(row)))
    rows += [(row["name"], row["kind"], "", "", "", "", *_times(row)) for row in times.values()]
    return Picture(figures.cost_figure(structure), "Cost of every layer", caption, Table(heads, rows))


def graphs(structure: Mapping[str, Any]) -> list[Picture] | Missing:
    """Filter graphs."""
    if not structure:
        return Missing(_NO_STRUCTURE)
    if not structure["graphs"]:
        return Missing("At this gamma no group has two filters that are joined, so there is no graph to draw.")
    return [_graph(graph, f"graph{number}") for number, graph in enumerate(structure["graphs"], 1)]


def pins(structure: Mapping[str, Any]) -> dict[str, Any] | Missing:
    """Channels that no plan removes, by reason, and modules that the example inputs did not reach."""
    if not structure:
        return Missing(_NO_STRUCTURE)
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for pin in structure["pins"]:
        reasons.setdefault(pin["reason"], []).append(pin)
    by_reason = [
        {
            "reason": reason,
            "channels": sum(pin["channels"] for pin in found),
            "modules": [(pin["module"], pin["channels"]) for pin in found],
        }
        for reason, found in reasons.items()
    ]
    return {"reasons": by_reason, "unreached": list(structure["unreached"]), "missing": ""}


def _graph(graph: Mapping[str, Any], name: str) -> Picture:
    stay = [
        sum(k for k, c in zip(graph["kept"], graph["cover"], strict=True) if c == n) for n in range(graph["n_covers"])
    ]
    drawn = [graph["cover"].count(n) for n in range(graph["n_covers"])]
    order = sorted((n for n in range(graph["n_covers"]) if drawn[n]), key=lambda n: (-drawn[n], n))
    rows = []
    for position, n in enumerate(order, 1):
        centre = graph["centres"][n]
        shown = "not drawn" if centre is None else str(graph["nodes"][centre])
        rows.append((str(position), shown, str(drawn[n]), str(stay[n])))
    note = f" {graph['note']}." if graph["note"] else ""
    counts = ", ".join(plural(graph[f"n_{noun}s"], noun) for noun in ("filter", "edge", "cover"))
    drawn_stay = f"{sum(graph['kept'])} of the {len(graph['kept'])} filters drawn stay"
    caption = f"{graph['name']}: {counts}; {drawn_stay}.{note}"
    table = Table(("cover", "centre (filter)", "filters", "of these kept"), rows)
    return Picture(graph_figure(graph, name), f"Filter graph of {graph['name']}", caption, table)


def has_numbers(values: Mapping[str, Any], *names: str) -> bool:
    """Whether these entries are there and numbers."""
    return all(isinstance(values.get(name), (int, float)) for name in names)


def name_batch(latency: Mapping[str, Any]) -> str:
    """Name the batch, and what it ran on."""
    images = plural(latency["batch_size"], "image") if latency.get("batch_size") else "one batch"
    device = latency.get("device")
    where = {"cpu": " on the CPU", "cuda": " on the GPU", None: ""}.get(device, f" on {device}")
    threads = latency.get("threads") if device == "cpu" else None
    return f"{images}{where}" + (f" ({plural(threads, 'thread')})" if threads else "")


def _times(row: Mapping[str, Any]) -> tuple[str, str]:
    return _form("{:.3f}", row.get("dense_ms")), _form("{:.3f}", row.get("pruned_ms"))


def _form(form: str, value: Any) -> str:
    return form.format(value) if isinstance(value, (int, float)) else ""


def _gamma(value: float | None) -> str:
    return "never" if value is None else f"{value:.4g}"


def ms(value: float) -> str:
    """Write a time."""
    return f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"


def percent(value: float, digits: int = 1) -> str:
    """Write a percentage."""
    return f"{value:.{digits}f} %"


def plural(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def points(change: float) -> str:
    """Write a difference of percentages."""
    return f"{change:+.2f} points".replace("-", "\N{MINUS SIGN}")
