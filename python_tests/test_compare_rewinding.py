"""Single weights and rewinding in ``srr compare``: what is made of results, and what cells leave."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import QUICK, at_work, findings, finished, save_weights, start, wait_for
from comparison_data import add_cell, add_config
from safetensors.torch import load_file

from srr_ext import models
from srr_ext.__main__ import main
from srr_ext.artifacts import load as load_run
from srr_ext.comparison import page, results, sections
from srr_ext.comparison.cells import Failure
from srr_ext.comparison.checklist import warnings
from srr_ext.comparison.executors import LocalExecutor
from srr_ext.comparison.grid import make_cells
from srr_ext.comparison.running import _job
from srr_ext.config import CompareConfig
from srr_ext.cost import Target
from srr_ext.sparsity import Masks
from srr_ext.training import TrainConfig


def add_rows(folder: Path, label: str, epochs: float, final: float = 90.0, usual: float = 10, **cell: Any) -> None:
    """Add the cells of three seeds, of a method that removes single weights."""
    for seed in range(3):
        report = {"allocator": "sparsify", "selector": "magnitude", "epochs_after_dense": epochs}
        what = {"usual_epochs": usual, "quantity": "params"} | cell
        add_cell(
            folder, label, 0.5, seed, final + (seed % 2) * (final - 80) / 1000, params=10_000, cell=what, report=report
        )


def test_epochs_are_counted_from_what_was_trained(tmp_path: Path) -> None:
    """In rows, in the CSV file and on the page; whole numbers are integers; old cells say it themselves."""
    add_config(tmp_path, ("a", "b", "c", "old"))
    add_rows(tmp_path, "a", 30.0)
    add_rows(tmp_path, "b", 10 + 1 / 3)
    add_rows(tmp_path, "c", 10.0)
    add_cell(tmp_path, "old", 0.5, 0, 89.0, cell={"extra_epochs": 7, "quantity": "params"}, params=10_000)
    rows = {row.method: row for row in results.read(tmp_path)}
    assert {label: row.extra_epochs for label, row in rows.items()} == {"a": 20, "b": 0.333333, "c": 0, "old": 7}
    ends = [line.rpartition(",")[2] for line in results.as_csv(results.read(tmp_path)).splitlines()[1:]]
    assert ends == ["20"] * 3 + ["0.333333"] * 3 + ["0"] * 3 + ["7"]
    page.write(tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "(+20 epochs)" in text and "(+0.3333 epochs)" in text and "(+7 epochs)" in text


@pytest.mark.parametrize(("epochs", "claimed"), [(10.0, True), (10.5, False), (9.0, True)])
def test_no_claim_for_a_winner_that_was_trained_for_longer(tmp_path: Path, epochs: float, claimed: bool) -> None:
    add_config(tmp_path, ("a", "b"))
    add_rows(tmp_path, "a", epochs, 95.0)
    for seed in range(3):
        report = {"allocator": "sparsify", "epochs_after_dense": 10.0}
        cell = {"usual_epochs": 10, "quantity": "params"}
        add_cell(tmp_path, "b", 0.5, seed, 80 + seed / 10, params=10_000, cell=cell, report=report)
    [verdict] = results.load(tmp_path).verdicts
    assert bool(verdict.claim) == claimed
    assert verdict.withheld == ("" if claimed else "not at equal cost: a was trained for 0.5 epochs more")


def test_a_cell_that_does_not_say_its_epochs_is_damaged(tmp_path: Path) -> None:
    add_config(tmp_path, ("a",))
    add_cell(tmp_path, "a", 0.5, 0, 80.0, cell={"usual_epochs": 10})
    with pytest.raises(ValueError, match=r"is not a finished cell .*epochs_after_dense"):
        results.read(tmp_path)


def test_new_weights_under_either_name_prove_nothing_beside_given_ones(tmp_path: Path) -> None:
    add_config(tmp_path, ("a", "new"), weights="net.th")
    add_rows(tmp_path, "a", 10.0, 95.0)
    add_rows(tmp_path, "new", 10.0, 80.0, settings={"retrain": "reinit"})
    comparison = results.load(tmp_path)
    assert "is not known" in comparison.verdicts[0].withheld
    assert any("came with its weights, and how long" in line for line in warnings(comparison))
    assert not any("trained from scratch (" in line for line in warnings(comparison))


def test_the_masks_of_rounds_have_no_control_with_new_weights(tmp_path: Path) -> None:
    """New weights are trained under those of one shot, and the page says so."""
    add_config(tmp_path, ("ticket", "new"))
    add_rows(tmp_path, "ticket", 10.0, 95.0, settings={"schedule": "iterative"})
    assert not any("masks of one shot" in line for line in warnings(results.load(tmp_path)))
    add_rows(tmp_path, "new", 10.0, 80.0, settings={"retrain": "reinit"})
    assert any("what those of ticket are worth" in line for line in warnings(results.load(tmp_path)))


def test_the_page_speaks_of_what_was_removed(tmp_path: Path) -> None:
    """Channels, weights or both; that zeros are no faster is said where there are weights."""
    faster = "take as long as other numbers"
    for name, kinds in {"channels": (False,), "weights": (True,), "channels or weights": (False, True)}.items():
        folder = tmp_path / name
        add_config(folder, tuple("ab"[: len(kinds)]))
        for label, sparse in zip("ab", kinds, strict=False):
            if sparse:
                add_rows(folder, label, 10.0)
            else:
                add_cell(folder, label, 0.5, 0, 89.0, cell={"quantity": "params"})
        comparison = results.load(folder)
        assert comparison.what_goes == name
        page.write(folder)
        html = (folder / "report.html").read_text()
        assert (faster in html) == ("weights" in name)
        for kind in name.split(" or "):  # a control of the one says nothing of the other
            suffix = f", of {kind}" if len(kinds) == 2 else ""
            assert f"random selection (does the choice of {kind} matter?){suffix}" in html
        assert sections.results(comparison, 0.5).heads[4:6].count("after surgery, %") == (name == "channels")


def test_controls_are_known_by_what_they_do(tmp_path: Path) -> None:
    """Random scores, the same share of every layer and new weights, under any name."""
    add_config(tmp_path, ("a", "chance", "even", "new"))
    add_rows(tmp_path, "a", 10.0)
    [said] = [line for line in warnings(results.load(tmp_path)) if "control" in line]
    assert said.count("?") == 4 and "does it matter in which layers weights go?" in said
    for seed in range(3):
        report = {"allocator": "sparsify", "selector": "random", "epochs_after_dense": 10.0}
        cell = {"usual_epochs": 10, "quantity": "params"}
        add_cell(tmp_path, "chance", 0.5, seed, 80.0, cell=cell, report=report)
    add_rows(tmp_path, "even", 10.0, settings={"scope": "layerwise"})
    add_rows(tmp_path, "new", 10.0, settings={"retrain": "reinit"})
    [said] = [line for line in warnings(results.load(tmp_path)) if "control" in line]
    assert said.count("?") == 1 and "trained for as much longer" in said


def test_rewinding_with_a_network_from_elsewhere_is_told(tmp_path: Path) -> None:
    for name, weights, own, shared, told in (
        ("a", "net.th", {"retrain": "lr-rewind"}, "finetune", True),
        ("b", "net.th", {}, "weight-rewind", True),
        ("c", "net.th", {}, "finetune", False),
        ("d", None, {"retrain": "lr-rewind"}, "finetune", False),
    ):
        add_config(tmp_path / name, ("a",), weights=weights, retrain=shared)
        add_rows(tmp_path / name, "a", 10.0, settings=own)
        assert any("by which recipe" in line for line in warnings(results.load(tmp_path / name))) == told


# --- cells that are run

GRID = ("--quantity", "params", "--keep", "0.3", "--seeds", "0", "--no-controls", "--dense.epochs", "2")
METHODS = (
    "sparsify retrain=lr-rewind as=lrr",
    "sparsify retrain=weight-rewind as=wr",
    "sparsify retrain=weight-rewind rewind_to=2ep as=end",
    "sparsify schedule=iterative rate=0.5 retrain=weight-rewind rewind_to=0ep as=ticket",
    "sparsify retrain=reinit as=new",
    "uniform retrain=weight-rewind as=channels",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a comparison of all that is new, its dense network trained in it."""
    folder = tmp_path_factory.mktemp("whole") / "grid"
    command = ["compare", *QUICK, *GRID, "--methods", *METHODS, "--output", str(folder), "--jobs", "1"]
    assert main(command) == 0
    return folder


@pytest.mark.slow
def test_cells_are_what_they_are_called(whole: Path) -> None:
    """Costs exact to one weight, zeros where the masks say, one dense network, epochs as they were trained."""
    rows = {row.method: row for row in results.read(whole)}
    assert list(rows) == ["lrr", "wr", "end", "ticket", "new", "channels"]
    dense = models.create("digits_cnn")
    total = sum(parameter.numel() for parameter in dense.parameters())
    assert len({(row.top1_dense, row.macs_dense) for row in rows.values()}) == 1
    assert {label: row.extra_epochs for label, row in rows.items()} == {
        "lrr": 0, "wr": 0, "end": -1, "ticket": 2 * 2 - 1, "new": 0, "channels": 0
    }  # fmt: skip
    files = {path.name for path in (whole / "dense").iterdir()}
    assert {"dense.safetensors", "dense-0ep.safetensors", "dense-1ep.safetensors", "dense-2ep.safetensors"} <= files
    for label in ("lrr", "wr", "end", "ticket", "new"):
        row, folder = rows[label], whole / "cells" / rows[label].cell
        assert row.params == Target("params", 0.3).limit(total) and row.params_dense == total
        assert (row.allocator, row.selector, row.update) == ("sparsify", "magnitude", "none")
        masks, network = Masks.load(folder / "masks.safetensors"), load_run(folder)
        assert masks.zeros_in(network) and sum(int((~mask).sum()) for mask in masks.values()) == total - row.params
        assert main(["evaluate", "--run", str(folder)]) == 0
        assert json.loads((folder / "report.json").read_text())["command"][:2] == ["srr", "sparsify"]
    latency = json.loads((whole / results.LATENCY).read_text())
    assert sorted(latency) == finished(whole) and all(entry["pruned_ms"] > 0 for entry in latency.values())
    assert "sparsify" in (whole / "comparison.csv").read_text() and (whole / "report.html").is_file()


@pytest.mark.slow
def test_weights_are_rewound_to_those_of_the_dense_training(whole: Path) -> None:
    """Where nothing is trained after it, bit for bit; a plan of channels keeps no weight of the end."""
    cells = {row.method: whole / "cells" / row.cell for row in results.read(whole)}
    state, masks = load_file(cells["end"] / "model.safetensors"), load_file(cells["end"] / "masks.safetensors")
    rewound = load_file(whole / "dense" / "dense-2ep.safetensors")
    assert state.keys() == rewound.keys()
    for name, tensor in rewound.items():
        assert torch.equal(state[name], tensor.masked_fill(~masks[name], 0) if name in masks else tensor), name
    for label, moment in (("wr", "1ep"), ("ticket", "0ep"), ("channels", "1ep")):
        config = json.loads((cells[label] / "config.json").read_text())
        assert config["rewind_weights"] == str(whole / "dense" / f"dense-{moment}.safetensors")


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_to_the_same_result(whole: Path, tmp_path: Path) -> None:
    """Killed in the middle of a cell of single weights; what is found is what an undisturbed run finds."""
    folder, command = tmp_path / "killed", (*QUICK, *GRID, "--methods", *METHODS, "--jobs", "1")
    process = start(folder, *command)
    wait_for(lambda: finished(folder) and at_work(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 1 <= len(finished(folder)) < len(METHODS) and list((folder / "cells").glob(".*.partial"))
    assert main(["compare", *command, "--output", str(folder)]) == 0
    elsewhere = json.loads(json.dumps(findings(whole)).replace(str(whole), str(folder)))
    times = ("formats",)
    for name, report in findings(folder).items():
        for key, value in report.items():
            assert key in times or value == elsewhere[name][key], (name, key)
        for file in ("masks.safetensors", "model.safetensors", "cell.json"):
            paths = [place / "cells" / name / file for place in (folder, whole)]
            assert not paths[1].exists() or paths[0].read_bytes() == paths[1].read_bytes(), paths
    assert (folder / "comparison.csv").read_bytes() == (whole / "comparison.csv").read_bytes()


@pytest.mark.slow
def test_a_cell_may_be_a_command_of_its_own(tmp_path: Path) -> None:
    """As one of channels may."""
    config = CompareConfig(
        methods=("sparsify",), keep=(0.3,), quantity="params", seeds=(0,), controls=False, device="cpu",
        fine_tune=TrainConfig(epochs=0),
    )  # fmt: skip
    (cell,) = make_cells(config, save_weights(tmp_path / "net.th"))
    job = _job(replace(config, launcher="env python"), tmp_path / "apart", cell)
    inside = _job(config, tmp_path / "inside", cell)
    ended: list[Failure | None] = []
    LocalExecutor([None]).run([job, inside], lambda _, failure: ended.append(failure))
    assert ended == [None, None]
    for name in ("masks.safetensors", "model.safetensors", "cell.json"):
        assert (job.final / name).read_bytes() == (inside.final / name).read_bytes(), name
