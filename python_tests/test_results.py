"""Published tables: each is what its recorded runs say, and those differ in nothing but the method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from build_script import load

from srr_ext.cli.parsing import as_dict, parse
from srr_ext.config import PruneConfig, TrainRunConfig
from srr_ext.plan import PruningPlan

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGES = sorted(RESULTS.glob("*.md"))
METHOD = {"allocator", "selector", "gamma", "distance", "plan"}
LATER = {"distance": "rms"}  # settings that the older runs did not have yet, and what they did


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_results() -> None:
    assert {page.stem for page in PAGES} >= {"lenet5-mnist", "resnet20-cifar10-jpeg"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_table_is_what_the_runs_recorded(page: Path) -> None:
    """Cell by cell: the page holds the script's output."""
    assert load("docs/results/tabulate.py").table(RESULTS / page.stem) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_runs_of_a_seed_differ_in_the_method_alone(page: Path) -> None:
    """Same settings, same dense network, same test images; every setting is still understood, every plan is read."""
    seen: dict[int, dict[str, Any]] = {}
    for folder in sorted(path.parent for path in (RESULTS / page.stem).glob("*/report.json")):
        report, config = read(folder / "report.json"), read(folder / "config.json")
        if folder.name.startswith("dense"):
            assert as_dict(parse(TrainRunConfig, ["--config", str(folder / "config.json")], "x")) == config
            continue
        assert as_dict(parse(PruneConfig, ["--config", str(folder / "config.json")], "x")) == LATER | config
        plan = PruningPlan.load(folder / "plan.json")
        assert plan.cost["macs"] == report["macs"] and report["macs"]["pruned"] <= 0.5 * report["macs"]["dense"]
        common = {key: value for key, value in config.items() if key not in METHOD}
        common |= {"dense accuracy": report["top1"]["dense"], "images": report["n_test_images"]}
        assert seen.setdefault(config["seed"], common) == common, folder
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [record["epoch"] for record in log] == list(range(1, config["fine_tune"]["epochs"] + 1))
