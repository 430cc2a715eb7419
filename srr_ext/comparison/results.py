"""What the cells of a comparison found: one row each, their means over seeds, and the files that hold both."""

from __future__ import annotations

import csv
import io
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srr_ext.artifacts import CONFIG, REPORT
from srr_ext.comparison.cells import CELL, CELLS, FAILED
from srr_ext.comparison.grid import DENSE_LONGER, as_count, parse_method
from srr_ext.comparison.records import Comparison, Failure, Row, Summary
from srr_ext.comparison.running import LATENCY
from srr_ext.comparison.statistics import Pair, Spread, Verdict, judge
from srr_ext.files import DamagedFile, read_json

if TYPE_CHECKING:
    from rich.table import Table

CSV, JSON = "comparison.csv", "comparison.json"
CONTROLS = ("random", "uniform", "scratch", DENSE_LONGER)  # in the order of tables
EQUAL = 0.01  # costs that differ by a smaller share count as equal


def read(folder: str | Path) -> list[Row]:
    """Read the finished cells of a comparison.

    Parameters
    ----------
    folder : str or Path
        Holds ``config.json`` and ``cells/``. Names that begin with a dot are unfinished and left out.

    Returns
    -------
    list of Row
        Methods in the order of the configuration, then controls; of each the largest share first, then by seed.

    Raises
    ------
    ValueError
        A file is missing or damaged; the message names it.
    """
    return load(folder).rows


def load(folder: str | Path) -> Comparison:
    """Read a comparison.

    Parameters
    ----------
    folder : str or Path
        Holds ``config.json``, ``cells/`` and, each optional, ``failed/`` and ``latency.json``.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        A file is missing or damaged; the message names it.
    """
    folder = Path(folder)
    try:
        return _load(folder)
    except DamagedFile:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{folder} holds a comparison that is damaged ({type(error).__name__}: {error})") from error


def _load(folder: Path) -> Comparison:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise DamagedFile(f"{folder / CONFIG} holds no settings of a comparison")
    cells = [path for path in _finished(folder / CELLS) if path.is_dir()]
    found = [_read_cell(path) for path in cells]
    methods: dict[str, dict[str, Any]] = {}
    for row, cell, _ in found:
        methods.setdefault(row.method, {"text": cell.get("text", ""), "settings": cell.get("settings") or {}})
    order = _order(config, {row.method: row.role for row, _, _ in found})
    rows = sorted((row for row, _, _ in found), key=lambda row: (order[row.method], -row.keep, row.seed))
    reports = [report for _, _, report in found]
    failures = [_read_failure(path) for path in _finished(folder / FAILED) if path.stem not in {c.name for c in cells}]
    latency = _read_latency(folder / LATENCY)
    facts = {name: reports[0].get(name) if reports else None for name in ("model", "data", "n_test_images")}
    facts["surgery_error"] = max((report.get("surgery_error") or 0.0 for report in reports), default=0.0)
    summaries = summary(rows)
    given = config.get("weights")  # how long they were trained is not known, so that nothing can be trained as long
    scratch = {label for label, method in methods.items() if trained_anew(method["settings"])}
    return Comparison(
        rows, summaries, verdicts(rows, scratch if given else ()), failures, latency, config, methods, facts
    )


def trained_anew(settings: Mapping[str, str]) -> bool:
    """Whether a method has settings by which nothing is left of the trained weights."""
    return settings.get("retrain") in ("scratch", "reinit")


def summary(rows: Sequence[Row]) -> list[Summary]:
    """Summarise rows over seeds.

    Parameters
    ----------
    rows : sequence of Row
        From :func:`read`.

    Returns
    -------
    list of Summary
        One for every method and share, in the order in which they first appear.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.keep), []).append(row)
    found = []
    for part in groups.values():
        values = {name: [getattr(row, name) for row in part] for name in _SPREADS}
        spreads: dict[str, Any] = {n: None if None in seen else Spread.of(seen) for n, seen in values.items()}
        same = {name: getattr(part[0], name) for name in ("method", "role", "quantity", "keep")}
        seeds = tuple(row.seed for row in part)
        found.append(Summary(**same, seeds=seeds, **spreads, extra_epochs=max(row.extra_epochs for row in part)))
    return found


def verdicts(rows: Sequence[Row], unequal: Collection[str] = ()) -> list[Verdict]:
    """Test the first method against every other, at every share.

    Parameters
    ----------
    rows : sequence of Row
        From :func:`read`.
    unequal : collection of str, optional
        Labels of controls that cannot be trained for as long as the dense network was, so that it proves nothing to
        beat them.

    Returns
    -------
    list of Verdict
        None if there is no method. The tests are of final top-1 accuracy, paired by seed, and one family.
    """
    by_label: dict[tuple[str, float], dict[int, Row]] = {}
    for row in rows:
        by_label.setdefault((row.method, row.keep), {})[row.seed] = row
    first = next((row.method for row in rows if row.role == "method"), None)
    labels = [label for label in dict.fromkeys(row.method for row in rows) if label not in (first, DENSE_LONGER)]
    longer = {keep: found for (label, keep), found in by_label.items() if label == DENSE_LONGER}
    pairs = []
    for keep in sorted({keep for label, keep in by_label if label == first}, reverse=True):
        ours = by_label[first, keep] if first else {}
        for label in labels:
            if others := by_label.get((label, keep)):
                pair = _pair(ours, others)
                if label in unequal:
                    reason = f"how long the dense network was trained, from which {first} comes, is not known"
                    pair = replace(pair, larger={**pair.larger, pair.method: reason})
                pairs.append(pair)
        pairs += [_pair(ours, others) for others in longer.values()]
    return judge(pairs)


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as comma-separated values with a head: the same bytes for the same rows, without measured times."""
    buffer = io.StringIO()
    names = [entry.name for entry in fields(Row) if entry.name != "cell"]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.figures() for row in rows)
    return buffer.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the content of ``comparison.json``: rows, means, tests, failures, measured times and configuration."""
    return {
        "rows": [row.figures() for row in comparison.rows],
        "summary": [asdict(entry) for entry in comparison.summaries],
        "tests": [asdict(verdict) for verdict in comparison.verdicts],
        "failures": [asdict(failure) for failure in comparison.failures],
        "latency": comparison.latency,
        "config": comparison.config,
    }


def result_table(folder: str | Path) -> Table:
    """Lay out a comparison for the terminal: one row for every share and method.

    Parameters
    ----------
    folder : str or Path
        Folder of the comparison.

    Returns
    -------
    rich.table.Table
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from srr_ext.comparison import sections

    comparison = load(folder)
    table = Table(title=sections.title(comparison), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.caption, table.caption_justify = "parameters, MACs and time: dense over pruned", "left"
    table.add_column("keep")
    table.add_column("method", overflow="fold")
    for heading in ("seeds", "top-1, %", "difference", "params", "MACs", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    shares = [(f"{keep:g}", comparison.at(keep)) for keep in comparison.keeps]
    if longer := comparison.longer():
        shares.append(("1", [longer]))
    for keep, entries in shares:
        for place, entry in enumerate(entries):
            name = Text(entry.method, style="" if entry.role == "method" else "dim")
            first, last = place == 0, place + 1 == len(entries)
            table.add_row(keep if first else "", name, *sections.cells(comparison, entry), end_section=last)
    return table


_SPREADS = [entry.name for entry in fields(Summary) if "Spread" in str(entry.type)]
_NEEDED = {
    "method": str, "role": str, "quantity": str, "keep": (int, float), "seed": int,
}  # fmt: skip


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _read_cell(path: Path) -> tuple[Row, dict[str, Any], dict[str, Any]]:
    """Return its row, what it was to do, and its report."""
    cell, report = read_json(path / CELL), read_json(path / REPORT)
    try:
        for name, kind in _NEEDED.items():
            if not isinstance(cell[name], kind):  # type: ignore[arg-type]
                raise TypeError(f"{name} is {reprlib.repr(cell[name])}")
        for key, value in {"text": cell.get("text", ""), **(cell.get("settings") or {})}.items():
            _check_kind(key, value, "str")
        row = _row(path.name, cell, report)
        for entry in fields(Row):
            _check_kind(entry.name, getattr(row, entry.name), str(entry.type))
        return row, cell, report
    except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{path} is not a finished cell of a comparison ({type(error).__name__}: {error}); "
            "remove the folder and run the comparison again"
        ) from error


def _check_kind(name: str, value: Any, kind: str) -> None:
    """Refuse what a field of a row, by its annotation, does not hold; numbers are finite."""
    if "int" in kind or "float" in kind:
        whole = isinstance(value, int) or "float" in kind
        right = (value is None and "None" in kind) or (_is_number(value) and whole)
    else:
        right = isinstance(value, str)
    if not right:
        raise TypeError(f"{name} is {reprlib.repr(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _read_latency(path: Path) -> dict[str, dict[str, Any]]:
    """Read the measured times, by the name of the cell."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict) or not all(_is_times(times) for times in found.values()):
        raise DamagedFile(f"{path} holds no measured times; remove it, and run the comparison again")
    return found


def _is_times(value: Any) -> bool:
    times: list[Any] = [value.get(name) for name in ("dense_ms", "pruned_ms")] if isinstance(value, dict) else [0]
    return all(_is_number(time) and time > 0 for time in times)


def _row(name: str, cell: Mapping[str, Any], report: Mapping[str, Any]) -> Row:
    macs, params = report["macs"], report["params"]
    top1, top5 = report["top1"], report.get("top5") or {}
    return Row(
        method=cell["method"],
        role=cell["role"],
        allocator=report["allocator"],
        selector=report["selector"],
        update=report.get("update", "none"),
        quantity=cell["quantity"],
        keep=float(cell["keep"]),
        seed=cell["seed"],
        macs_dense=macs["dense"],
        macs=macs["pruned"],
        params_dense=params["dense"],
        params=params["pruned"],
        compression_ratio=round(params["dense"] / params["pruned"], 6),
        speed_up=round(macs["dense"] / macs["pruned"], 6),
        top1_dense=_percent(top1, "dense"),
        top1_after_surgery=_percent(top1, "after_surgery"),
        top1_final=_percent(top1, "final"),
        top1_difference=round(top1["final"] - top1["dense"], 6),
        top5_dense=top5.get("dense"),
        top5_after_surgery=top5.get("after_surgery"),
        top5_final=top5.get("final"),
        top5_difference=round(top5["final"] - top5["dense"], 6) if top5 else None,
        validation_top1_final=(report.get("validation_top1") or {}).get("final"),
        extra_epochs=_extra_epochs(cell, report),
        cell=name,
    )


def _extra_epochs(cell: Mapping[str, Any], report: Mapping[str, Any]) -> float:
    """Return how many more epochs a cell took than is usual; cells of old comparisons say it themselves."""
    if "usual_epochs" not in cell:
        extra: float = cell["extra_epochs"]
        return extra
    return as_count(report["epochs_after_dense"] - cell["usual_epochs"])


def _percent(accuracies: Mapping[str, Any], name: str) -> float:
    value = accuracies[name]
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{name} is {value!r}")
    return value


def _read_failure(path: Path) -> Failure:
    content = read_json(path)
    try:
        return Failure(content["method"], float(content["keep"]), int(content["seed"]), str(content["message"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{path} does not say what failed ({type(error).__name__}: {error}); remove it") from error


def _order(config: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, tuple[bool, int, str]]:
    """Return what labels are sorted by: methods as the configuration has them, then controls, others by name."""
    wanted, order = [parse_method(text).label for text in config.get("methods") or ()], {}
    for label, role in roles.items():
        known = wanted if role == "method" else list(CONTROLS)
        order[label] = (role != "method", known.index(label) if label in known else len(known), label)
    return order


def _pair(ours: Mapping[int, Row], others: Mapping[int, Row]) -> Pair:
    first, second = next(iter(ours.values())), next(iter(others.values()))
    values, other_values = ({seed: row.top1_final for seed, row in part.items()} for part in (ours, others))
    seeds = sorted(ours.keys() & others.keys())
    larger = {}
    if seeds:
        counted = first.quantity if first.quantity in _NOUNS else "macs"
        costs = [Spread.of([getattr(part[seed], counted) for seed in seeds]).mean for part in (ours, others)]
        if max(costs) > (1 + EQUAL) * min(costs):
            label = first.method if costs[0] > costs[1] else second.method
            larger[label] = f"{label} has {100 * (max(costs) / min(costs) - 1):.1f} % more {_NOUNS[counted]}"
        epochs = [max(part[seed].extra_epochs for seed in seeds) for part in (ours, others)]
        if epochs[0] != epochs[1]:
            label = first.method if epochs[0] > epochs[1] else second.method
            larger.setdefault(label, f"{label} was trained for {abs(epochs[0] - epochs[1]):.6g} epochs more")
    return Pair(first.method, second.method, first.keep, second.keep, values, other_values, larger)


_NOUNS = {"macs": "MACs", "params": "parameters"}
