"""Print the table of a set of runs: ``python docs/results/table_of_runs.py docs/results/lenet5-mnist``.

The folder holds one folder per run, called METHOD-SEED, each with the ``report.json`` that the run wrote.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HEAD = ("method", "seeds", "MACs kept", "parameters kept", "top-1 after surgery", "top-1 final", "against dense")


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the reports of every method, in the order of their names."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report["top1"], dict):  # else it is the training of the dense network
            found.setdefault(path.parent.name.rpartition("-")[0], []).append(report)
    return found


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Show the mean and, for several values, their standard deviation."""
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def row(method: str, reports: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the cells of one method."""
    share = {key: [100 * r[key]["pruned"] / r[key]["dense"] for r in reports] for key in ("macs", "params")}
    final = [r["top1"]["final"] for r in reports]
    return (
        method,
        str(len(reports)),
        f"{statistics.mean(share['macs']):.1f} %",
        f"{statistics.mean(share['params']):.1f} %",
        spread([r["top1"]["after_surgery"] for r in reports]),
        spread(final),
        spread([r["top1"]["final"] - r["top1"]["dense"] for r in reports], "{:+.2f}").replace("-", "\N{MINUS SIGN}"),
    )


def table(folder: Path) -> str:
    """Return the Markdown table of a folder of runs."""
    runs = read(folder)
    dense = {r["seed"]: r["top1"]["dense"] for reports in runs.values() for r in reports}
    best_first = sorted(runs, key=lambda method: -statistics.mean(r["top1"]["final"] for r in runs[method]))
    rows = [("dense", str(len(dense)), "100 %", "100 %", "", spread(list(dense.values())), "")]
    rows += [row(method, runs[method]) for method in best_first]
    lines = [" | ".join(cells) for cells in (HEAD, ("---", *["--:"] * (len(HEAD) - 1)), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
