"""The page of a run that removed single weights: ``report.html``, one file without scripts and without requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srr_ext.artifacts import CONFIG, LOG, PAGE, REPORT
from srr_ext.files import existing, write_text
from srr_ext.report import sections
from srr_ext.report.axes import beside, legend, rows_chart
from srr_ext.report.page import command_line, flat_settings, read_log, read_mapping
from srr_ext.report.sections import Missing, Picture, Table, has_numbers, ms, name_batch, percent, plural, points
from srr_ext.report.svg import INK, PALETTE, style, to_svg
from srr_ext.report.templates import HERE, template

ZEROS = (
    "Zeros do not make dense kernels faster: the network with its zeros in place does all the multiplications of the "
    "dense one. Only a sparse format leaves them out, and only a measurement tells whether that is faster."
)
_FORMATS = {  # key in report["formats"]: what it is compared with, its name, what it is
    "pruned": ("dense", "zeros in place", "zeros in place"),
    "csr": ("dense", "CSR", "sparse CSR weights"),
    "semi_structured": ("dense_half", "semi-structured", "both in half precision, semi-structured weights"),
}
_WHEN = {"one-shot": "at once", "gradual": "on the way of a training"}
_THEN = {
    "finetune": "fine-tuned",
    "lr-rewind": "trained with the learning rate rewound",
    "weight-rewind": "trained from rewound weights",
    "reinit": "trained from new weights",
}


@dataclass(frozen=True)
class Form:
    """A form in which the pruned network was timed.

    Attributes
    ----------
    what : str
        The form.
    dense, pruned : float
        Milliseconds of a batch through the dense network it is compared with, and in this form.
    """

    what: str
    dense: float
    pruned: float


def forms(report: Mapping[str, Any]) -> list[Form]:
    """List the forms that were timed: with the zeros in place first, then the sparse formats.

    Parameters
    ----------
    report : mapping
        Content of ``report.json``.

    Returns
    -------
    list of Form
    """
    plain, formats = report.get("latency_ms") or {}, report.get("formats") or {}
    found = []
    for key, (reference, _, what) in _FORMATS.items():
        times = plain if key == "pruned" else formats
        if has_numbers(times, reference, key):
            layers = (formats.get("layers") or {}).get(key)
            named = what if layers is None else f"{what} in {plural(layers, 'layer')}"
            found.append(Form(named, times[reference], times[key]))
    return found


def untimed(report: Mapping[str, Any]) -> list[str]:
    """Say of every sparse format that was not timed why: its name, a colon, the reason."""
    reasons = (report.get("formats") or {}).get("why_not") or {}
    return [f"{_FORMATS[key][1]}: {reason}" for key, reason in reasons.items() if key in _FORMATS]


def removed(report: Mapping[str, Any]) -> str:
    """Name the moment for which the accuracy before training is reported."""
    if report.get("schedule") == "gradual":  # the weights never went in one cut
        return "with the same weights gone at once"
    rounds = report.get("rounds", 1)
    return "right after pruning" if rounds == 1 else f"right after the last of {rounds} prunings"


def counts(report: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how many weights might go, and how many of them are left; None where the report does not say."""
    layers = (report.get("layers") or {}).values()
    return (sum(layer["dense"] for layer in layers), sum(layer["kept"] for layer in layers)) if layers else None


def write(folder: str | Path) -> Path:
    """Write ``report.html`` from what else is in the folder of a run of ``srr sparsify``.

    Parameters
    ----------
    folder : str or Path
        Holds ``report.json`` and, each optional, ``config.json`` and ``log.jsonl``. The page says what is missing.

    Returns
    -------
    Path
        The page. The same files give the same bytes.

    Raises
    ------
    ValueError
        If ``report.json`` is missing or one of the files is damaged; the message names it.
    """
    folder = Path(folder)
    report = read_mapping(existing(folder / REPORT))
    config = read_mapping(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    log = read_log(folder / LOG)
    try:
        content = {
            "title": sections.title(report),
            "story": story(report),
            "summary": summary(report),
            "zeros": ZEROS if forms(report) else "",
            "untimed": untimed(report),
            "test_size": sections.test_size(report),
            "command": command_line(report, {}),
            "density": density(report),
            "training": sections.training(log, report),
            "settings": list(flat_settings(config)),
            "environment": list(flat_settings(report.get("environment") or {})),
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{folder}: its JSON files are not those of a run ({type(error).__name__}: {error})"
        ) from error
    css = (HERE / "page.css").read_text(encoding="utf-8")
    html = template("sparse_page.html.j2").render(css=css, **content)
    write_text(folder / PAGE, html.encode("utf-8", "replace").decode("utf-8"))
    return folder / PAGE


def story(report: Mapping[str, Any]) -> str:
    """Say in two sentences what happened."""
    left = [
        f"{counted['pruned']:,} of {counted['dense']:,} {what} ({percent(100 * counted['pruned'] / counted['dense'])})"
        for key, what in (("params", "parameters"), ("macs", "multiply-accumulates per image"))
        if (counted := report.get(key))
    ]
    done = f"{report.get('model', 'The network')} lost {_how(report)}"
    first = f"{done}, which leaves {' and '.join(left)} that are not zero." if left else f"{done}."
    facts = []
    top1 = report.get("top1") or {}
    if has_numbers(top1, "dense", "final"):
        change = f"{percent(top1['dense'], 2)} to {percent(top1['final'], 2)} ({points(top1['final'] - top1['dense'])})"
        facts.append(f"test accuracy went from {change}{_epochs(report)}")
    if timed := forms(report):
        plain = timed[0]
        facts.append(
            f"with its zeros in place it takes {ms(plain.pruned)} for a forward pass of "
            f"{name_batch(report.get('latency_ms') or {})}, the dense network {ms(plain.dense)}"
        )
    second = ", and ".join(facts)
    return f"{first} {second[:1].upper()}{second[1:]}." if second else first


def summary(report: Mapping[str, Any]) -> Table:
    """Lay out the main figures, dense beside pruned."""
    rows = []
    for key, what in (("params", "parameters"), ("macs", "MACs per image, of weights that are not zero")):
        if counted := report.get(key):
            ratio = f"{counted['dense'] / counted['pruned']:.2f} \N{MULTIPLICATION SIGN} fewer"
            rows.append((what, f"{counted['dense']:,}", f"{counted['pruned']:,}", ratio))
    if weights := counts(report):
        share = f"density {percent(100 * weights[1] / weights[0], 2)}"
        rows.append(("weights that may go", f"{weights[0]:,}", f"{weights[1]:,}", share))
    for form in forms(report):
        ratio = f"{form.dense / form.pruned:.2f} \N{MULTIPLICATION SIGN} as fast"
        rows.append((f"latency, {form.what}", ms(form.dense), ms(form.pruned), ratio))
    top1 = report.get("top1") or {}
    for key, when in (("after_surgery", removed(report)), ("final", "final")):
        if has_numbers(top1, "dense", key):
            change = points(top1[key] - top1["dense"])
            rows.append((f"test accuracy, {when}", percent(top1["dense"], 2), percent(top1[key], 2), change))
    return Table(("", "dense", "pruned", "change"), rows)


def density(report: Mapping[str, Any]) -> Picture | Missing:
    """Share of each tensor's weights that is left."""
    layers: Mapping[str, Mapping[str, Any]] = report.get("layers") or {}
    weights = counts(report)
    if weights is None:
        return Missing("The report does not say which tensors lost weights.")
    total, kept = weights
    caption = (
        "Each row is a tensor that may lose weights, in the order of the network. "
        f"Of all {total:,}, {kept:,} are left: a density of {percent(100 * kept / total, 2)}, the dashed line."
    )
    empty = [name for name, layer in layers.items() if not layer["kept"]]
    if empty:
        caption += f" Nothing is left of {', '.join(empty)}."
    rows = [
        (
            name,
            " \N{MULTIPLICATION SIGN} ".join(map(str, layer["shape"])),
            f"{layer['dense']:,}",
            f"{layer['kept']:,}",
            percent(100 * layer["kept"] / layer["dense"], 2),
        )
        for name, layer in layers.items()
    ]
    table = Table(("tensor", "shape", "weights", "left", "density"), rows)
    return Picture(density_figure(layers), "Density of every tensor", caption, table)


def density_figure(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Density of every tensor: an outline for all of its weights, filled as far as they are left.

    Parameters
    ----------
    layers : mapping of str to mapping
        By name of the tensor, ``kept`` and ``dense``: the numbers of its weights that are left and that it had.

    Returns
    -------
    str
        An SVG element.
    """
    kept: Sequence[int] = [layer["kept"] for layer in layers.values()]
    dense: Sequence[int] = [layer["dense"] for layer in layers.values()]
    overall = 100 * sum(kept) / sum(dense)
    with style("density"):
        figure, axes = rows_chart(list(layers), 0.88, right=0.71)
        rows = range(len(kept))
        axes.barh(rows, [100 * now / was for now, was in zip(kept, dense, strict=True)], 0.62, color=PALETTE[0])
        axes.barh(rows, [100.0] * len(kept), 0.62, facecolor="none", edgecolor=INK, linewidth=0.8)
        axes.axvline(overall, color=INK, linewidth=1.2, dashes=(4, 2))
        axes.set_xlim(0, 102)
        axes.set_xlabel("weights that are left, %")
        for row, (now, was) in enumerate(zip(kept, dense, strict=True)):
            beside(axes, row, 0.885, f"{now:,} of {was:,}")
            beside(axes, row, 0.985, f"{100 * now / was:.3g}\N{NO-BREAK SPACE}%")
        box = {"marker": "s", "markersize": 8, "linestyle": "none"}
        legend(
            figure,
            [
                ("dense", {**box, "color": INK, "markerfacecolor": "none", "markeredgewidth": 0.8}),
                ("left", {**box, "color": PALETTE[0]}),
                (f"of all together: {overall:.3g} %", {"color": INK, "linestyle": (0, (4, 2))}),
            ],
        )
        said = f"{len(layers)} tensors; {sum(kept):,} of {sum(dense):,} weights are left, {overall:.3g} %."
        return to_svg(figure, "density", "Share of the weights of every tensor that is left", said)


def _how(report: Mapping[str, Any]) -> str:
    """Say which weights the network lost, when, and how it was trained then."""
    schedule, retrain = report.get("schedule"), report.get("retrain", "")
    then = _THEN.get(retrain, f"trained by {retrain}" if retrain else "")
    if schedule == "given":
        lost = "the weights that given masks name"
        return f"{lost} and was then {then}" if then else lost
    lost = f"single weights by {report.get('selector', 'an unknown score')} ({report.get('scope', 'unknown scope')})"
    rounds = report.get("rounds", 1)
    if rounds > 1:
        return f"{lost} in {rounds} rounds and was {then} after each" if then else f"{lost} in {rounds} rounds"
    when = f" {_WHEN[schedule]}" if schedule in _WHEN else ""
    if schedule == "gradual":
        return f"{lost}{when}, {then}" if then else f"{lost}{when}"
    return f"{lost}{when} and was then {then}" if then else f"{lost}{when}"


def _epochs(report: Mapping[str, Any]) -> str:
    """Say how many epochs of training lie between the dense network and the result."""
    epochs = report.get("epochs_after_dense")
    if not isinstance(epochs, (int, float)):
        return ""
    return f" after {epochs:,.4g} epoch{'' if epochs == 1 else 's'} more than the dense network's"
