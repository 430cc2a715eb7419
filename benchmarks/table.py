"""Show records of measurements as Markdown: ``python benchmarks/table.py benchmarks/results/cpu.json``.

Takes what ``pytest benchmarks --benchmark-json=FILE`` and ``python benchmarks/growth.py`` write. ``--page PAGE`` puts
the tables into a page instead, between ``<!-- table: FILE -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(?<=<!-- table: )(?P<file>\S+)(?P<open> -->\n).*?(?=<!-- end -->)", re.S)
STAGE_HEAD = ("network", "path", "time", "times ours", "floor", "times floor", "")
GROWTH_HEAD = (
    "stage",
    "against",
    "from",
    "to",
    "exponent of time",
    "steepest step",
    "exponent of memory",
    "time at the end",
    "memory at the end",
    "over its bit graph",
)


def duration(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def lines(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Markdown table whose first columns are text and whose others are numbers."""
    ruler = ["---" if column < text_columns else "--:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows))


def environment_line(info: dict[str, Any]) -> str:
    """Say what was measured with."""
    device = "" if info["device"] == "cpu" else f"{info['device']} (CUDA {info['cuda']}), "
    cpu = f"{info['cpu']}, {info['threads']} threads, {info['cpu_kernel']} kernel"
    return f"Measured on {device}{cpu}; torch {info['torch']}, Python {info['python']}, build {info['build']}."


def rates_line(rows: Sequence[dict[str, Any]]) -> str:
    """Say what the floors were computed from."""
    found = {unit: sorted(row["rate"] / 1e9 for row in rows if row["unit"] == unit) for unit in ("FLOP/s", "B/s")}
    names = {"FLOP/s": "single-precision matrix product", "B/s": "copy in memory"}
    shown = (
        f"{names[unit]} {digits(rates[len(rates) // 2])} G{unit} (from {digits(rates[0])} to {digits(rates[-1])})"
        for unit, rates in found.items()
        if rates
    )
    return f"Rates beside the rows, in the middle: {'; '.join(shown)}."


def stage_row(row: dict[str, Any], device: str) -> tuple[str, ...]:
    """Return the cells of one path; ``device``: what the run was for."""
    notes = []
    if row["extrapolated"]:
        notes.append(f"extrapolated {row['extrapolated']}")
    if row["rounds"] == 1:
        notes.append("one round")
    if row["device"] == "cpu" and device != "cpu":
        notes.append(f"on the host, {row['threads']} threads")
    if "tracing_s" in row:
        notes.append(f"tracing, timed apart: {duration(row['tracing_s'])}")
    if "back_to_back_s" in row:
        notes.append(f"{duration(row['back_to_back_s'])} each in a row of calls")
    return (
        row["network"],
        row["path"].replace("_", " "),
        duration(row["seconds"]),
        digits(row["ratio"]),
        duration(row["floor_s"]),
        digits(row["seconds"] / row["floor_s"]),
        "; ".join(notes),
    )


def stages(record: dict[str, Any]) -> str:
    """Tables of a run of the benchmarks, one for each stage."""
    rows = [entry["extra_info"] for entry in record["benchmarks"] if "stage" in entry["extra_info"]]
    device = record["machine_info"]["device"]
    parts = [f"{environment_line(record['machine_info'])} {rates_line(rows)}"]
    if record["quick"]:
        parts.append("With `--quick`: few rounds.")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        parts.append(f"### {stage[0].upper()}{stage[1:]}")
        parts.append(lines(STAGE_HEAD, [stage_row(row, device) for row in rows if row["stage"] == stage], 2))
    return "\n\n".join(parts)


def growth(record: dict[str, Any]) -> str:
    """Table of growth."""
    rows = []
    for line in record["series"]:
        first, last, against = line["points"][0], line["points"][-1], line["against"]
        rows.append(
            (
                line["stage"],
                against.replace("_", "-"),
                f"{first[against]:,}",
                f"{last[against]:,}",
                f"{line['seconds']['fitted']:.2f}",
                f"{line['seconds']['steepest']:.2f}",
                f"{line['peak_bytes']['fitted']:.2f}",
                duration(last["seconds"]),
                f"{digits(last['peak_bytes'] / 2**20)} MiB",
                f"{last['peak_bytes'] / last['graph_bytes']:.2f}",
            )
        )
    notes = [f"{line['stage'].capitalize()}: {line['note']}." for line in record["series"] if line["note"]]
    return "\n\n".join([environment_line(record["machine_info"]), lines(GROWTH_HEAD, rows, 2), *notes])


def table(path: Path) -> str:
    """Return a record as Markdown."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return growth(record) if "series" in record else stages(record)


def fill(page: str) -> str:
    """Return a page with its tables made anew from the records it names, relative to the repository."""
    return TABLE.sub(lambda found: f"{found['file']}{found['open']}{table(ROOT / found['file'])}\n", page)


def main() -> None:
    """Print a table, or renew those of a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="?", help="a record to print")
    parser.add_argument("--page", type=Path, help="a page whose tables are renewed")
    options = parser.parse_args()
    if (options.record is None) == (options.page is None):
        parser.error("give a record, or --page")
    if options.page is None:
        print(table(options.record))
    else:
        options.page.write_text(fill(options.page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
