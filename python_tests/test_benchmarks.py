"""Benchmarks: every one still runs, and the published tables are what was recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from build_script import load

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"


def run(*arguments: str) -> str:
    """Run a Python command in the repository, and return what it prints."""
    command = [sys.executable, *arguments]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    result = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pytest_benchmarks(*arguments: str) -> str:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    pytest.importorskip("networkx", reason="networkx, a peer, is not installed")
    pytest.importorskip("scipy", reason="scipy, a peer, is not installed")
    return run("-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "--quick", *arguments)


@pytest.mark.slow
def test_every_benchmark_runs_on_the_smallest_network(tmp_path: Path) -> None:
    """And checks its answers, and none is skipped; a file for each stage has part in it."""
    report = tmp_path / "report.xml"
    pytest_benchmarks("-k", "resnet56", "--benchmark-disable", f"--junitxml={report}")
    text = report.read_text(encoding="utf-8")
    assert 'errors="0" failures="0" skipped="0"' in text
    stages = [path.stem for path in BENCHMARKS.glob("bench_*.py") if path.stem != "bench_training"]
    assert len(stages) == 7 and all(f"benchmarks.{stage}" in text for stage in stages)


@pytest.mark.slow
def test_a_record_holds_what_its_table_shows(tmp_path: Path) -> None:
    """Ours beside a peer: the ratio, the floor and what they came from; and no name of a host."""
    record = tmp_path / "record.json"
    pytest_benchmarks("-k", "bench_components and resnet56", f"--benchmark-json={record}")
    written = json.loads(record.read_text(encoding="utf-8"))
    rows = {entry["extra_info"]["path"]: entry["extra_info"] for entry in written["benchmarks"]}
    assert rows.keys() == {"ours", "pytorch", "scipy", "reference"}
    assert rows["ours"]["ratio"] == 1
    for row in rows.values():
        assert row["stage"] == "components" and row["filters"] == 2032 and row["rounds"] >= 3
        assert row["seconds"] > 0 and row["ours_s"] > 0
        assert row["floor_s"] == pytest.approx(row["work"] / row["rate"]) and row["work"] == 8 * 2032
    assert written["machine_info"].keys() >= {"cpu", "threads", "torch"} and "node" not in written["machine_info"]
    table = load("benchmarks/table.py").table(record)
    assert table.count("\n| resnet56 |") == 4 and "| resnet56 | scipy |" in table


def test_an_extrapolation_is_labelled() -> None:
    row = {"network": "n", "path": "p", "seconds": 2.0, "ratio": 1.5, "floor_s": 0.5, "extrapolated": "from half: x 4"}
    row |= {"rounds": 3, "device": "cpu", "threads": 2}
    cells = ("n", "p", "2.00 s", "1.50", "500 ms", "4.00")
    stage_row = load("benchmarks/table.py").stage_row
    assert stage_row(row, "cpu") == (*cells, "extrapolated from half: x 4")
    assert stage_row(row | {"rounds": 1, "extrapolated": ""}, "a GPU") == (*cells, "one round; on the host, 2 threads")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1234.5, "1,234 s"), (1.0, "1.00 s"), (0.05678, "56.8 ms"), (3.21e-6, "3.21 µs"), (5e-10, "0.50 ns")],
)
def test_durations_have_three_digits(seconds: float, shown: str) -> None:
    assert load("benchmarks/table.py").duration(seconds) == shown


def test_the_page_shows_what_was_recorded() -> None:
    """Cell by cell; what was measured on a CPU is there."""
    text = PAGE.read_text(encoding="utf-8")
    table = load("benchmarks/table.py")
    assert table.fill(text) == text
    named = {found["file"] for found in table.TABLE.finditer(text)}
    assert named >= {f"benchmarks/results/{name}.json" for name in ("cpu", "growth-cpu")}


@pytest.mark.slow
def test_trajectories_take_less_than_twice_the_memory_of_the_graph() -> None:
    """Beyond the graph itself, and whatever torch and its threads take once."""
    graph, trajectory = (
        json.loads(run("benchmarks/growth.py", "--point", stage, "4096", "64")) for stage in ("graphs", "trajectories")
    )
    assert graph["graph_bytes"] == trajectory["graph_bytes"] == 4096 * 4096 // 8
    assert graph["peak_bytes"] > graph["graph_bytes"]  # its result: what is allocated is seen
    assert trajectory["peak_bytes"] < 2 * trajectory["graph_bytes"]
