"""Published tables: each is what its recorded runs say, and those differ in nothing but the method."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from build_script import load

from srr_ext.cli.parsing import as_dict, parse
from srr_ext.comparison import results, sections
from srr_ext.comparison.grid import make_cells
from srr_ext.config import CompareConfig, PruneConfig, TrainRunConfig
from srr_ext.plan import PruningPlan

RESULTS = Path(__file__).parents[1] / "docs" / "results"
# Pages of single runs, of comparisons made by `srr compare`, and of the study of SRR's claim.
PAGES = sorted(page for page in RESULTS.glob("*.md") if any((RESULTS / page.stem).glob("*/report.json")))
COMPARISONS = sorted(folder for folder in RESULTS.glob("*/*") if (folder / "cells").is_dir())
CLAIM = RESULTS / "claim-order"
METHOD = {"allocator", "selector", "gamma", "distance", "plan"}
# Settings that the older runs did not have yet, and what they did.
NEW = (
    "distance split_seed skip_corrupt calibration update retrain sparse rewind_to rewind_weights resume snapshots "
    "keep_latency latency_batch shard"
).split()
LATER = {name: value for name, value in as_dict(PruneConfig()).items() if name in NEW}
LATER_DENSE = {
    name: as_dict(TrainRunConfig())[name] for name in ("split_seed", "skip_corrupt", "shard", "snapshots", "resume")
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_results() -> None:
    assert {page.stem for page in PAGES} >= {"lenet5-mnist", "resnet20-cifar10-jpeg"}
    assert COMPARISONS
    pages = {folder.parent.name for folder in COMPARISONS} | {page.stem for page in PAGES}
    pages |= {CLAIM.name}
    assert pages == {page.stem for page in RESULTS.glob("*.md")}


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_comparison_says_what_its_cells_recorded(folder: Path) -> None:
    """Tables and claims follow from the cells; each cell's settings are still understood and are the recipe's."""
    comparison = results.load(folder)
    text = (RESULTS / f"{folder.parent.name}.md").read_text(encoding="utf-8")
    for block in sections.markdown(comparison).split("\n\n"):
        assert not block.startswith("| ") or block in text
    assert all(claim in text for claim in sections.claims(comparison)["made"])
    parsed = parse(CompareConfig, ["--config", str(folder / "config.json")], "x")
    cells = {cell.name: cell for cell in make_cells(parsed, parsed.weights)}
    assert not comparison.failures and cells.keys() == {path.name for path in (folder / "cells").iterdir()}
    for name, cell in cells.items():
        config, recorded = as_dict(cell.config), read(folder / "cells" / name / "config.json")
        recorded = {key: value for key, value in LATER.items() if key in config} | recorded
        if config.get("schedule", "gradual") != "gradual":  # whose settings say nothing then
            recorded["gradual"] = config["gradual"]
        assert config | {key: recorded[key] for key in ("weights", "rewind_weights")} == recorded
        share = read(folder / "cells" / name / "report.json")[parsed.quantity]
        assert 0.96 * cell.keep <= share["pruned"] / share["dense"] <= cell.keep


def test_the_readme_shows_what_a_comparison_recorded() -> None:
    """Every method's share of parameters and both of its accuracies, best first."""
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| .*? \| +([\d.]+) % \| +([\d.]+) \| +([\d.]+) ± ([\d.]+) \|$", readme, re.M)
    entries = results.load(RESULTS / "srr-against-others" / "resnet20").at(0.5)
    ranked = sorted(entries, key=lambda entry: -entry.top1_final.mean)
    figures = [(100 / e.compression_ratio.mean, e.top1_after_surgery.mean, e.top1_final) for e in ranked]
    wanted = [(f"{size:.1f}", f"{cut:.2f}", f"{end.mean:.2f}", f"{end.std:.2f}") for size, cut, end in figures]
    assert len(wanted) == 12 and shown == wanted


def test_the_table_of_the_claim_is_what_was_measured() -> None:
    study = load("docs/results/claim_order.py")
    assert study.table(CLAIM) in (RESULTS / f"{CLAIM.name}.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_claim_can_be_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny study: filters that go are those that are said to go, and the table is that of its record."""
    study = load("docs/results/claim_order.py")
    flags = ["--images", "50", "--draws", "2", "--removed", "1", "--output", str(tmp_path / "digits.json")]
    study.main(flags)
    record = read(tmp_path / "digits.json")
    assert record["by_count"].keys() == {"1"} and len(record["redundancy"]) == 6
    assert all(len(drawn) == 2 for drawn in record["by_count"]["1"]["random of every layer"].values())
    printed = capsys.readouterr().out
    study.main(["--table", str(tmp_path)])
    assert printed.splitlines()[-1] in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_table_is_what_the_runs_recorded(page: Path) -> None:
    """Cell by cell: the page holds the script's output."""
    assert load("docs/results/table_of_runs.py").table(RESULTS / page.stem) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_runs_of_a_seed_differ_in_the_method_alone(page: Path) -> None:
    """Same settings, same dense network, same test images; every setting is still understood, every plan is read."""
    seen: dict[int, dict[str, Any]] = {}
    for folder in sorted(path.parent for path in (RESULTS / page.stem).glob("*/report.json")):
        report, config = read(folder / "report.json"), read(folder / "config.json")
        if folder.name.startswith("dense"):
            assert (
                as_dict(parse(TrainRunConfig, ["--config", str(folder / "config.json")], "x")) == LATER_DENSE | config
            )
            continue
        assert as_dict(parse(PruneConfig, ["--config", str(folder / "config.json")], "x")) == LATER | config
        plan = PruningPlan.load(folder / "plan.json")
        assert plan.cost["macs"] == report["macs"] and report["macs"]["pruned"] <= 0.5 * report["macs"]["dense"]
        common = {key: value for key, value in config.items() if key not in METHOD}
        common |= {"dense accuracy": report["top1"]["dense"], "images": report["n_test_images"]}
        assert seen.setdefault(config["seed"], common) == common, folder
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [record["epoch"] for record in log] == list(range(1, config["fine_tune"]["epochs"] + 1))
