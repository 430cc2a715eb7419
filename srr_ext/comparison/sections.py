"""What the page, the Markdown file and the terminal say of a comparison: words and tables, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srr_ext.comparison.checklist import warnings
from srr_ext.comparison.figures import COSTS, QUANTITIES, curve_figure, seeds_figure, written
from srr_ext.comparison.grid import DENSE_LONGER
from srr_ext.comparison.records import Comparison, Summary
from srr_ext.comparison.results import EQUAL
from srr_ext.comparison.statistics import LEAST_SEEDS, LEVEL, Spread, Verdict, number
from srr_ext.comparison.words import MINUS, epochs_more, extra_epochs, plural
from srr_ext.report.sections import Missing, Picture, Table

# What the costs of networks mean that have lost single weights.
SPARSE = {
    "compression_ratio": " Of networks that have lost single weights, zeros are not counted as parameters.",
    "speed_up": (
        " Of networks that have lost single weights, multiply-accumulates with a zero are not counted, although dense "
        "layers compute them."
    ),
    "measured": (
        " Networks that have lost single weights run here as dense ones with zeros, which take as long as other "
        "numbers; what formats that leave zeros out bring is in the report of each cell."
    ),
}
SPARSE_NOTE = (
    " Of networks that have lost single weights, zeros count neither as parameters nor as multiply-accumulates, but "
    "take as long as other numbers in dense layers, which are what is measured here."
)
_TIMES = "\N{MULTIPLICATION SIGN}"


def title(comparison: Comparison) -> str:
    """Name the comparison."""
    methods = sum(role == "method" for role in _roles(comparison).values())
    facts = comparison.facts
    where = f"{facts['model']} on {facts['data']}" if comparison.rows else "nothing finished yet"
    return f"{plural(methods, 'method')} compared: {where}"


def story(comparison: Comparison) -> str:
    """Say in a few sentences what was compared and what came out."""
    if not comparison.rows:
        return "No cell of this comparison is finished, so there is nothing to compare yet."
    roles = list(_roles(comparison).values())
    seeds = sorted({row.seed for row in comparison.rows})
    shares = _listed([f"{keep:g}" for keep in comparison.keeps])
    controls = roles.count("control")
    who = f"{plural(roles.count('method'), 'method')} and {plural(controls, 'control') if controls else 'no control'}"
    what = (
        f"{who} had to keep {shares} of {QUANTITIES[comparison.rows[0].quantity]} of the same dense network "
        f"({written(comparison.dense())} % top-1), with {plural(len(seeds), 'seed')} each."
    )
    if not comparison.verdicts:
        return what
    claims = sum(bool(verdict.claim) for verdict in comparison.verdicts)
    backed = f"{claims} {'is' if claims == 1 else 'are'} backed by a test over seeds"
    return f"{what} Of {plural(len(comparison.verdicts), 'possible claim')}, {backed}."


def compared(comparison: Comparison) -> list[tuple[str, str]]:
    """Return names and values: what all methods share."""
    rows, facts, roles = comparison.rows, comparison.facts, _roles(comparison)
    images = facts["n_test_images"]
    one = f" of {images:,} test images; one image is {100 / images:.2g} points" if images else ""
    found = [
        ("network", str(facts["model"])),
        ("images", str(facts["data"])),
        ("dense network", f"{written(comparison.dense())} % top-1{one}"),
        ("its cost", f"{rows[0].macs_dense:,} MACs per image, {rows[0].params_dense:,} parameters"),
        ("methods", ", ".join(label for label, role in roles.items() if role == "method") or "none"),
        ("controls", ", ".join(label for label, role in roles.items() if role == "control") or "none"),
        ("shares kept", f"{', '.join(f'{keep:g}' for keep in comparison.keeps)} of {QUANTITIES[rows[0].quantity]}"),
        ("seeds", ", ".join(map(str, sorted({row.seed for row in rows})))),
    ]
    given = comparison.config.get("weights")  # its recipe is not known here
    for key, name in (("dense", "training from scratch" if given else "dense training"), ("fine_tune", "fine-tuning")):
        if isinstance(recipe := comparison.config.get(key), Mapping):
            found.append((name, _recipe(recipe)))
    return found


def methods(comparison: Comparison) -> Table:
    """Lay out what every label stands for."""
    roles, extra = _roles(comparison), extra_epochs(comparison)
    rows = [
        (label, roles[label], str(comparison.methods[label]["text"]), epochs_more(extra[label]) or "same as all")
        for label in comparison.labels
    ]
    return Table(("label", "role", "what it is", "training beyond the others"), rows)


def claims(comparison: Comparison) -> dict[str, Any]:
    """Return what is claimed, what is withheld, and what the tests were."""
    verdicts = comparison.verdicts
    rows = [_test_row(verdict) for verdict in verdicts]
    heads = ("keep", "against", "seeds", "difference, points", "t", "p", "p, Holm", "outcome")
    family = sum(verdict.n >= LEAST_SEEDS for verdict in verdicts)
    rule = (
        f"Final top-1 accuracy of the first method, {verdicts[0].method}, against every other, paired by seed. A claim "
        f"needs {LEAST_SEEDS} seeds and a p below {LEVEL:g} after Holm's correction for "
        f"{plural(family, 'test')}; the winner must not cost over {100 * EQUAL:g} % more, nor have been trained for "
        "longer. Seeds vary the training after one dense network, and what goes where that is a matter of chance."
        if verdicts
        else "There is no other method to test the first one against."
    )
    return {
        "rule": rule,
        "made": [verdict.claim for verdict in verdicts if verdict.claim],
        "withheld": [f"{_versus(verdict)}: {verdict.withheld}" for verdict in verdicts if verdict.withheld],
        "table": Table(heads, rows),
    }


def results(comparison: Comparison, keep: float) -> Table:
    """Lay out what all methods reached at one share, best first.

    Parameters
    ----------
    comparison : Comparison
        With at least one row at this share.
    keep : float
        The share.

    Returns
    -------
    Table
        Accuracies in percent: mean and standard deviation over seeds.
    """
    entries = comparison.ranked(keep)
    five = any(entry.top5_final for entry in entries)
    heads = [
        "method",
        "seeds",
        "top-1, %",
        "difference, points",
        "after surgery, %" if comparison.what_goes == "channels" else "after pruning, %",
        "compression",
        "speed-up",
        "measured",
    ]
    if five:
        heads.insert(4, "top-5, %")
    rows = []
    for entry in entries:
        n, final, difference, *costs = cells(comparison, entry)
        row = [_name(entry), n, final, difference, written(entry.top1_after_surgery), *costs]
        if five:
            row.insert(4, written(entry.top5_final) if entry.top5_final else "")
        rows.append(tuple(row))
    return Table(tuple(heads), rows)


def cells(comparison: Comparison, entry: Summary) -> list[str]:
    """Write what one method reached: seeds, top-1, difference from dense, compression, speed-up, measured speed-up."""
    measured = comparison.measured(entry)
    epochs = epochs_more(entry.extra_epochs)
    return [
        str(len(entry.seeds)),
        written(entry.top1_final) + (f" ({epochs})" if epochs else ""),
        _signed(entry.top1_difference),
        f"{entry.compression_ratio.mean:.2f} {_TIMES}",
        f"{entry.speed_up.mean:.2f} {_TIMES}",
        "" if measured is None else f"{measured:.2f} {_TIMES}",
    ]


def failures(comparison: Comparison) -> Table:
    """Lay out the cells that failed."""
    rows = [(f.method, f"{f.keep:g}", str(f.seed), f.message) for f in comparison.failures]
    return Table(("method", "keep", "seed", "message"), rows)


def curves(comparison: Comparison) -> dict[str, tuple[Picture | Missing, bytes]]:
    """Draw accuracy against every cost; by the name of the file, with its PNG (empty where it is missing)."""
    found: dict[str, tuple[Picture | Missing, bytes]] = {}
    for cost, (name, label) in COSTS.items():
        drawing = curve_figure(comparison, cost) if comparison.rows else None
        file = f"top1-{name.replace(' ', '-')}"
        if drawing is None:
            found[file] = (Missing("No latency was measured, so this cannot be shown."), b"")
            continue
        caption = (
            "Mean over seeds; bars and bands are standard deviations, none where there is one seed. Higher and further "
            "to the right is better. Methods that cost the same are drawn a little beside each other. Controls are "
            "thin and grey."
        )
        if "weights" in comparison.what_goes:
            caption += SPARSE[cost]
        if cost == "measured":
            caption += f" Time of {_conditions(comparison)}, of the first seed of every method."
        rows = [
            (entry.method, f"{entry.keep:g}", f"{place:.3f}", written(entry.top1_final), str(entry.top1_final.n))
            for entry in comparison.summaries
            if (place := _place(comparison, entry, cost)) is not None
        ]
        table = Table(("method", "keep", label, "top-1, %", "seeds"), rows)
        found[file] = (Picture(drawing.svg, f"Top-1 accuracy against {name}", caption, table), drawing.png)
    return found


def seeds(comparison: Comparison, keep: float, name: str) -> tuple[Picture, bytes]:
    """Draw every seed at one share."""
    drawing = seeds_figure(comparison, keep, name)
    caption = (
        "Rings are single seeds, the lowest at the top; the mark is their mean, the bar their standard deviation. An "
        "arrow means further to the left."
    )
    entries = {entry.method for entry in comparison.ranked(keep)}
    rows = [
        (
            row.method,
            str(row.seed),
            f"{row.top1_final:.2f}",
            _sign(row.top1_difference),
            f"{row.macs:,}",
            f"{row.params:,}",
        )
        for row in comparison.rows
        if row.method in entries and row.keep in (keep, 1.0 if row.method == DENSE_LONGER else keep)
    ]
    heads = ("method", "seed", "top-1, %", "difference, points", "MACs", "parameters")
    return Picture(drawing.svg, f"Every seed at keep {keep:g}", caption, Table(heads, rows)), drawing.png


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown: warnings, one table per share, claims and failures."""
    parts = [f"# {_escaped(title(comparison))}", _escaped(story(comparison))]
    if missing := warnings(comparison):
        parts += ["## What this comparison lacks", _bullets(missing)]
    for keep in comparison.keeps:
        parts += [
            f"## Keep {keep:g} of {QUANTITIES[comparison.rows[0].quantity]}",
            _markdown(results(comparison, keep)),
        ]
    if comparison.rows:
        said = claims(comparison)
        parts += ["## Claims", _escaped(said["rule"])]
        parts += [_bullets(said["made"]) if said["made"] else "No claim is backed."]
        if said["withheld"]:
            parts += ["Withheld:", _bullets(said["withheld"])]
        parts += ["## Methods", _markdown(methods(comparison), numbers=False)]
    if comparison.failures:
        parts += ["## Failures", _markdown(failures(comparison), numbers=False)]
    return "\n\n".join(parts) + "\n"


def _place(comparison: Comparison, entry: Summary, cost: str) -> float | None:
    if entry.method == DENSE_LONGER:
        return None
    return comparison.measured(entry) if cost == "measured" else getattr(entry, cost).mean


def _conditions(comparison: Comparison) -> str:
    found = next(iter(comparison.latency.values()))
    images, device, threads = found.get("batch_size"), found.get("device"), found.get("threads")
    where = {"cpu": "the CPU", "cuda": "the GPU", None: "an unnamed device"}.get(device, str(device))
    threaded = f" ({plural(threads, 'thread')})" if threads and device == "cpu" else ""
    return f"{plural(images, 'image') if images else 'a batch'} on {where}{threaded}"


def _test_row(verdict: Verdict) -> tuple[str, ...]:
    found = verdict.difference
    difference = "" if found is None else _signed(found)
    t = "" if verdict.t is None else f"{verdict.t:.2f}".replace("-", MINUS)
    p, adjusted = ("" if p is None else number(p) for p in (verdict.p, verdict.p_adjusted))
    outcome = "claimed" if verdict.claim else verdict.withheld.partition(":")[0]
    return (f"{verdict.keep:g}", verdict.other, str(verdict.n), difference, t, p, adjusted, outcome)


def _versus(verdict: Verdict) -> str:
    return f"{verdict.method} against {verdict.other} at keep {verdict.keep:g}"


def _roles(comparison: Comparison) -> dict[str, str]:
    return {entry.method: entry.role for entry in comparison.summaries}


def _name(entry: Summary) -> str:
    return entry.method if entry.role == "method" else f"{entry.method} (control)"


def _recipe(recipe: Mapping[str, Any]) -> str:
    shown = [f"{plural(recipe['epochs'], 'epoch')}"] if "epochs" in recipe else []
    for name in ("optimizer", "lr", "schedule", "batch_size", "weight_decay", "precision"):
        if name in recipe:
            shown.append(f"{name.replace('_', ' ')} {recipe[name]}")
    if milestones := recipe.get("milestones"):
        shown.append(f"milestones {', '.join(f'{epoch:g}' for epoch in milestones)}")
    return ", ".join(shown)


def _signed(spread: Spread) -> str:
    deviation = "" if spread.std is None else f" \N{PLUS-MINUS SIGN} {spread.std:.2f}"
    return _sign(spread.mean) + deviation


def _sign(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _markdown(table: Table, numbers: bool = True) -> str:
    rule = ["---", *(["--:" if numbers else "---"] * (len(table.heads) - 1))]
    lines = [table.heads, tuple(rule), *([tuple(_escaped(cell) for cell in row) for row in table.rows])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    """Keep names from being read as Markdown or HTML."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#$" else c for c in line)
