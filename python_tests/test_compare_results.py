"""Reading a comparison: rows, means, order, what is left out, what is refused, files that are the same every time."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from build_script import load as load_script
from comparison_data import add_cell, add_comparison, add_config

from srr_ext.cli.tables import make_console
from srr_ext.comparison.checklist import warnings
from srr_ext.comparison.results import CONTROLS, as_csv, as_json, load, read, result_table, summary

ROOT = Path(__file__).parents[1]
HEAD = (
    "method role allocator selector update quantity keep seed macs_dense macs params_dense params compression_ratio "
    "speed_up top1_dense top1_after_surgery top1_final top1_difference top5_dense top5_after_surgery top5_final "
    "top5_difference validation_top1_final extra_epochs"
).split()


def table_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_holds_what_the_cell_found(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1 as=mine",))
    cell = {"extra_epochs": 40, "text": "srr+l1"}
    add_cell(tmp_path, "mine", 0.5, 3, 88.5, macs=400_000, params=5_000, cell=cell, report={"update": "reconstruct"})
    [row] = table_of(as_csv(read(tmp_path)))
    assert list(row) == HEAD
    assert row == {
        "method": "mine", "role": "method", "allocator": "srr", "selector": "l1", "update": "reconstruct",
        "quantity": "macs", "keep": "0.5", "seed": "3", "macs_dense": "1000000", "macs": "400000",
        "params_dense": "20000", "params": "5000", "compression_ratio": "4.0", "speed_up": "2.5", "top1_dense": "90.0",
        "top1_after_surgery": "43.0", "top1_final": "88.5", "top1_difference": "-1.5", "top5_dense": "99.0",
        "top5_after_surgery": "80.0", "top5_final": "98.3", "top5_difference": "-0.7", "validation_top1_final": "89.0",
        "extra_epochs": "40",
    }  # fmt: skip


def test_rows_are_in_the_order_of_the_configuration(tmp_path: Path) -> None:
    add_config(tmp_path, ("widest+l2 as=zebra", "global+l1", "afie+l1 distance=euclidean"))
    labels = ["dense-longer", "scratch", "afie+l1 distance=euclidean", "uniform", "zebra", "random", "global+l1"]
    for label in labels:
        for keep in (1.0,) if label == "dense-longer" else (0.25, 0.5):
            for seed in (10, 2):
                add_cell(tmp_path, label, keep, seed, 80.0, role="control" if label in CONTROLS else "method")
    found = [(row.method, row.keep, row.seed) for row in read(tmp_path)]
    order = ["zebra", "global+l1", "afie+l1 distance=euclidean", "random", "uniform", "scratch"]
    wanted = [(label, keep, seed) for label in order for keep in (0.5, 0.25) for seed in (2, 10)]
    assert found == [*wanted, ("dense-longer", 1.0, 2), ("dense-longer", 1.0, 10)]


def test_means_and_deviations_by_hand(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1",))
    for seed, final in enumerate((88.0, 89.0, 91.0)):
        add_cell(tmp_path, "srr+l1", 0.5, seed, final, params=8_000 + 1_000 * seed)
    add_cell(tmp_path, "srr+l1", 0.3, 0, 70.0)
    half, third = summary(read(tmp_path))
    assert half.seeds == (0, 1, 2) and (half.keep, half.method, half.role) == (0.5, "srr+l1", "method")
    assert half.top1_final.mean == pytest.approx(268 / 3)
    assert half.top1_final.std == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2))
    assert half.top1_difference.mean == pytest.approx(268 / 3 - 90) and half.params.mean == 9_000
    assert half.compression_ratio.mean == pytest.approx((20 / 8 + 20 / 9 + 20 / 10) / 3, abs=1e-6)
    assert (third.top1_final.mean, third.top1_final.std, third.top1_final.n) == (70.0, None, 1)


def test_the_csv_knows_nothing_of_time_or_of_the_way_there(tmp_path: Path) -> None:
    """An interrupted comparison: cells in another order, leftovers, other times, a failure that was made up for."""
    straight, resumed = add_comparison(tmp_path / "a"), tmp_path / "b"
    resumed.mkdir()
    shutil.copy(straight / "config.json", resumed)
    for cell in sorted((straight / "cells").iterdir(), reverse=True):
        copied = shutil.copytree(cell, resumed / "cells" / cell.name)
        report = json.loads((copied / "report.json").read_text())
        (copied / "report.json").write_text(json.dumps(report | {"latency_ms": {"dense": 7.0, "pruned": 6.0}}))
        os.utime(copied, (1, 1))
    partial = resumed / "cells" / ".half_made.123.partial"
    partial.mkdir()
    (partial / "report.json").write_text("{")
    (resumed / "cells" / ".half_made.123.partial.txt").write_text("killed")
    (resumed / "failed").mkdir()
    failure = {"method": "srr+l1", "keep": 0.5, "seed": 0, "message": "killed"}
    (resumed / "failed" / f"{cell.name}.json").write_text(json.dumps(failure))
    (resumed / "failed" / ".some.txt").write_text("output")
    text = as_csv(read(straight))
    assert as_csv(read(resumed)) == text and "\r" not in text
    assert load(resumed).failures == []


def test_the_json_file_holds_all(tmp_path: Path) -> None:
    folder = add_comparison(tmp_path)
    comparison = load(folder)
    found = json.loads(json.dumps(as_json(comparison), allow_nan=False))
    rows, by_text = found["rows"], table_of(as_csv(comparison.rows))
    assert len(rows) == 2 * 2 * 3 + 3 * 2 * 3 + 3 and set(found) == {
        "rows", "summary", "tests", "failures", "latency", "config"
    }  # fmt: skip
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == by_text
    assert len(found["summary"]) == 2 * 2 + 3 * 2 + 1
    assert found["summary"][0]["top1_final"].keys() == {"mean", "std", "n"}
    # The first method against one other and three controls at two shares, and against the longer training at both.
    assert [(t["other"], t["keep"], t["other_keep"]) for t in found["tests"]] == [
        (other, keep, 1.0 if other == "dense-longer" else keep)
        for keep in (0.7, 0.5)
        for other in ("global+l1", "random", "uniform", "scratch", "dense-longer")
    ]
    assert found["config"] == json.loads((folder / "config.json").read_text())
    assert found["latency"] == json.loads((folder / "latency.json").read_text())


def test_verdicts_pair_the_right_cells(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1", "global+l1"))
    for seed, (ours, theirs) in enumerate(((89.0, 87.1), (89.2, 87.2), (88.9, 86.8), (88.0, None))):
        add_cell(tmp_path, "srr+l1", 0.5, seed, ours)
        add_cell(tmp_path, "srr+l1", 0.25, seed, 10.0 + seed)
        if theirs:
            add_cell(tmp_path, "global+l1", 0.5, seed, theirs)
    [verdict] = load(tmp_path).verdicts
    assert (verdict.method, verdict.other, verdict.keep, verdict.n) == ("srr+l1", "global+l1", 0.5, 3)
    differences = [89.0 - 87.1, 89.2 - 87.2, 88.9 - 86.8]
    assert verdict.difference.mean == pytest.approx(sum(differences) / 3)
    assert verdict.claim.startswith("srr+l1 beats global+l1 at keep 0.5 by 2.00 \N{PLUS-MINUS SIGN} 0.10 points (")


@pytest.mark.parametrize(("macs", "wins"), [(505_000, True), (530_000, False)])
def test_no_claim_for_a_winner_that_costs_more(tmp_path: Path, macs: int, wins: bool) -> None:
    add_config(tmp_path, ("srr+l1", "global+l1"))
    for seed in range(3):
        add_cell(tmp_path, "srr+l1", 0.5, seed, 89 + seed / 100, macs=macs)
        add_cell(tmp_path, "global+l1", 0.5, seed, 87 + (seed % 2) / 100, macs=500_000)
    [verdict] = load(tmp_path).verdicts
    assert bool(verdict.claim) == wins
    assert verdict.withheld == ("" if wins else "not at equal cost: srr+l1 has 6.0 % more MACs")
    # The other way round the loser is the one that costs more, which only makes the claim stronger.
    other = tmp_path / "other"
    add_config(other, ("global+l1", "srr+l1"))
    for seed in range(3):
        add_cell(other, "srr+l1", 0.5, seed, 85 + seed / 100, macs=macs)
        add_cell(other, "global+l1", 0.5, seed, 87 + (seed % 2) / 100, macs=500_000)
    assert load(other).verdicts[0].claim


def test_few_classes_and_no_validation_images(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1",))
    add_cell(tmp_path, "srr+l1", 0.5, 0, 88.0, report={"top5": None, "validation_top1": {}})
    [row] = read(tmp_path)
    assert row.top5_final is row.top5_difference is row.validation_top1_final is None
    [entry] = summary([row])
    assert entry.top5_final is None and entry.validation_top1_final is None
    assert as_csv([row]).splitlines()[1].endswith(",,,,,,0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda cell: (cell / "report.json").unlink(), r"there is no file .*report\.json"),
        (lambda cell: (cell / "report.json").write_text("{"), r"report\.json is damaged"),
        (
            lambda cell: (cell / "report.json").write_text('{"top1": {}}'),
            "is not a finished cell .* run the comparison",
        ),
        (lambda cell: (cell / "cell.json").write_text('{"method": 3}'), "is not a finished cell .*method is 3"),
        (lambda cell: (cell / "cell.json").write_text("[]"), "is not a finished cell"),
    ],
)
def test_damaged_cells_are_named(tmp_path: Path, damage: Any, message: str) -> None:
    add_config(tmp_path, ("srr+l1",))
    add_cell(tmp_path, "srr+l1", 0.5, 0, 88.0)
    [cell] = (tmp_path / "cells").iterdir()
    damage(cell)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path)
    assert cell.name in str(caught.value)


def test_a_folder_without_configuration_or_with_a_damaged_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*config\.json"):
        read(tmp_path)
    add_config(tmp_path, ("srr+l1",))
    assert read(tmp_path) == []
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "x.json").write_text('{"method": "srr"}')
    with pytest.raises(ValueError, match=r"x\.json does not say what failed"):
        read(tmp_path)


def test_the_table_of_the_terminal(tmp_path: Path) -> None:
    folder = add_comparison(tmp_path)
    console = make_console()
    with console.capture() as captured:
        console.print(result_table(folder))
    text = captured.get()
    assert text.startswith("2 methods compared: resnet20 on digits")
    line = next(line for line in text.splitlines() if "srr+l1" in line)
    first = load(folder).summaries[0]
    accuracy = f"{first.top1_final.mean:.2f} \N{PLUS-MINUS SIGN} {first.top1_final.std:.2f}"
    assert line.split()[:6] == ["0.7", "srr+l1", "3", *accuracy.split()]
    assert line.split()[-6:] == [
        "1.71",
        "\N{MULTIPLICATION SIGN}",
        "1.43",
        "\N{MULTIPLICATION SIGN}",
        "1.36",
        "\N{MULTIPLICATION SIGN}",
    ]
    assert sum("dense-longer" in line for line in text.splitlines()) == 1
    with console.capture() as captured:
        console.print(result_table(add_comparison(tmp_path / "none", methods=(), controls=False)))
    assert "nothing finished yet" in captured.get()


def test_published_runs_give_the_published_table(tmp_path: Path) -> None:
    """Real reports, summarised by code that shares nothing with this."""
    tabulate = load_script("docs/results/table_of_runs.py")
    runs = tabulate.read(ROOT / "docs" / "results" / "resnet20-cifar10-jpeg")
    methods = tuple(f"{reports[0]['allocator']}+l1 as={label}" for label, reports in runs.items())
    add_config(tmp_path, methods)
    for label, reports in runs.items():
        for report in reports:
            add_cell(tmp_path, label, 0.5, report["seed"], 0.0, report=report)
    found = summary(read(tmp_path))
    assert len(found) == len(runs) >= 4
    for entry in found:
        final, difference = entry.top1_final, entry.top1_difference
        row = tabulate.row(entry.method, runs[entry.method])
        assert row[1] == str(final.n)
        assert row[5] == f"{final.mean:.2f}" + (
            f" \N{PLUS-MINUS SIGN} {final.std:.2f}" if final.std is not None else ""
        )
        assert row[6].replace("\N{MINUS SIGN}", "-").startswith(f"{difference.mean:+.2f}")


def test_the_dense_network_does_not_win_by_what_it_costs(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1",))
    for seed in range(3):
        add_cell(tmp_path, "srr+l1", 0.5, seed, 85 + seed / 100)
        add_cell(tmp_path, "dense-longer", 1.0, seed, 92 + (seed % 2) / 100, macs=1_000_000, role="control")
    [verdict] = load(tmp_path).verdicts
    assert not verdict.claim and verdict.withheld.startswith("not at equal cost: dense-longer has ")


def test_no_claim_for_a_winner_that_was_trained_for_longer(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1",))
    for seed in range(3):
        add_cell(tmp_path, "srr+l1", 0.5, seed, 92 + seed / 100, cell={"extra_epochs": 5})
        add_cell(tmp_path, "global+l1", 0.5, seed, 85 + (seed % 2) / 100)
    [verdict] = load(tmp_path).verdicts
    assert verdict.withheld == "not at equal cost: srr+l1 was trained for 5 epochs more"


@pytest.mark.parametrize("weights", [None, "dense.safetensors"])
def test_a_control_from_scratch_counts_only_beside_a_dense_network_that_was_trained_here(
    tmp_path: Path, weights: str | None
) -> None:
    add_config(tmp_path, ("srr+l1",), weights=weights)
    for seed in range(3):
        add_cell(tmp_path, "srr+l1", 0.5, seed, 92 + seed / 100)
        cell = {"settings": {"retrain": "scratch"}}
        add_cell(tmp_path, "scratch", 0.5, seed, 85 + (seed % 2) / 100, role="control", cell=cell)
    comparison = load(tmp_path)
    [verdict] = comparison.verdicts
    assert bool(verdict.claim) == (weights is None)
    assert ("is not known" in verdict.withheld) == (weights is not None)
    assert any("came with its weights" in text for text in warnings(comparison)) == (weights is not None)
