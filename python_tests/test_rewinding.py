"""Rewinding for channel plans: weights and schedules of an earlier epoch, cut by the same plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, take_no_time

import srr_ext
from srr_ext.__main__ import main
from srr_ext.cli import training
from srr_ext.plan import PruningPlan
from srr_ext.training import train

RECIPE = ("--dense.epochs", "4", "--dense.schedule", "step", "--dense.milestones", "2", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take no time over times; work in an empty folder."""
    take_no_time(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a short training that keeps what rewinding needs."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *RECIPE, "--snapshots", "0ep", "2ep", "3ep", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record what trainings begin with."""
    seen: list[dict[str, Any]] = []

    def look(model: torch.nn.Module, data: Any, recipe: Any, **options: Any) -> Any:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        seen.append({"state": state, "recipe": recipe, **options})
        return train(model, data, recipe, **options)

    monkeypatch.setattr(training, "train", look)
    return seen


def read(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("flags", "moment", "begin"), [([], "2ep", 36), (["--rewind-to", "0ep"], "0ep", 0)])
def test_the_plan_cuts_the_weights_of_an_earlier_epoch(
    trained: Path, flags: list[str], moment: str, begin: int, starts: list[dict[str, Any]]
) -> None:
    """Bit for bit, running statistics too; what follows is the rest of the dense recipe."""
    earlier = str(trained / f"dense-{moment}.safetensors")
    given = ["--weights", str(trained / "dense.safetensors"), "--rewind-weights", earlier, "--epochs", "2"]
    assert main(["prune", *RECIPE, *given, *flags, "--retrain", "weight-rewind", "--output", "run"]) == 0
    plan, (start,) = PruningPlan.load("run/plan.json"), starts
    cut = srr_ext.cut(srr_ext.models.create("digits_cnn", 10, earlier), plan).state_dict()
    assert all(torch.equal(start["state"][name], tensor) for name, tensor in cut.items())
    assert start["begin"] == begin and start["recipe"].epochs == 4 and start["stage"] == "retrain"
    report = read("run/report.json")
    assert report["retrain"] == "weight-rewind" and report["epochs_after_dense"] == 4 - begin / 18
    assert report["top1"]["final"] > 40 and report["surgery_error"] < 1e-9


def test_all_ways_to_train_again_cut_by_the_same_plan(trained: Path, starts: list[dict[str, Any]]) -> None:
    """They differ in weights and recipe alone; the one from scratch is as long as both trainings."""
    given = ["--weights", str(trained / "dense.safetensors"), "--epochs", "1", "--fine-tune.lr", "0.001"]
    more = {"weight-rewind": ["--rewind-weights", str(trained / "dense-3ep.safetensors")]}
    for name in ("finetune", "lr-rewind", "weight-rewind", "scratch"):
        flags = ["--retrain", name, "--output", name, *more.get(name, ())]
        assert main(["prune", *RECIPE, *given, *flags]) == 0
    plans = {Path(name, "plan.json").read_bytes() for name in ("finetune", "lr-rewind", "weight-rewind", "scratch")}
    assert len(plans) == 1
    assert [(s["begin"], s["recipe"].epochs, s["recipe"].lr) for s in starts] == [
        (0, 1, 0.001), (54, 4, 0.05), (54, 4, 0.05), (0, 5, 0.05),
    ]  # fmt: skip
    weights = [start["state"]["stage1.0.weight"] for start in starts]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[2], weights[3])


def test_rounds_cut_the_rewound_weights_by_the_plan_of_all(starts: list[dict[str, Any]]) -> None:
    """A network that is trained here keeps what it rewinds to; in every round it begins with those weights."""
    flags = ["--retrain", "weight-rewind", "--rewind-to", "3ep", "--rounds", "2", "--keep-macs", "0.4"]
    assert main(["prune", *RECIPE, *flags, "--output", "run"]) == 0
    dense = srr_ext.models.create("digits_cnn", 10, "run/dense-3ep.safetensors")
    cut = srr_ext.cut(dense, PruningPlan.load("run/plan.json")).state_dict()
    assert [start["stage"] for start in starts] == ["train dense", "retrain 1 of 2", "retrain 2 of 2"]
    assert all(torch.equal(starts[2]["state"][name], tensor) for name, tensor in cut.items())
    assert starts[1]["state"]["stage3.0.weight"].shape != cut["stage3.0.weight"].shape
    assert read("run/report.json")["epochs_after_dense"] == 2


REFUSED = {
    "--retrain weight-rewind --update reconstruct": "--retrain: weight-rewind goes without --update",
    "--retrain weight-rewind --weights x": "--rewind-weights: is needed beside --weights",
    "--retrain weight-rewind --rewind-weights x": "--rewind-weights: goes with --weights",
    "--retrain lr-rewind --epochs 30": "--rewind-to: must be given: 30 epochs after pruning are more than the 20",
    "--rewind-to 1ep": "--rewind-to: goes with --retrain lr-rewind or weight-rewind, but that is finetune",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_rewinding_to_nowhere_is_refused(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line that names the flag."""
    assert refused(capsys, "prune", *flags.split()).startswith(REFUSED[flags])


def test_moments_have_to_be_in_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Of ``srr train``, too."""
    assert "there is no moment 5ep in a training of 72 steps" in refused(capsys, "train", *RECIPE, "--snapshots", "5ep")
    assert refused(capsys, "train", *RECIPE, "--snapshots", "5").startswith("--snapshots: ")
