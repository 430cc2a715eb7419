"""The options of ``srr prune`` between the plan and the report: sparse training, updates, retraining, the split."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused
from torch import nn

import srr_ext
from srr_ext import data, models
from srr_ext.__main__ import main
from srr_ext.allocators.zero_groups import zero_groups
from srr_ext.cli import steps
from srr_ext.cli.running import on_screen
from srr_ext.config import PruneConfig
from srr_ext.criteria.bn_scale import bn_scale
from srr_ext.criteria.group_norm import group_norm
from srr_ext.training import TrainConfig, reinitialise, train
from srr_ext.updates import register_update

COMMON = ("--device", "cpu", "--keep-macs", "0.6")
NAMES = ("plan.json", "model.safetensors", "log.jsonl", "config.json")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a dense network for a few epochs, once."""
    torch.manual_seed(0)
    model = models.create("digits_cnn")
    train(model, data.load("digits"), TrainConfig(epochs=3), device="cpu")
    path = tmp_path_factory.mktemp("dense") / "net.pt"
    torch.save(model.state_dict(), path)
    return str(path)


def prune(output: str, *arguments: str, page: bool = False) -> dict[str, Any]:
    """Run the command, as a rule without latency and the page, which take most of the time; return the report."""
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr("srr_ext.prune.report.write", lambda *_: None)
            patch.setattr("srr_ext.prune.observe", lambda *_: {})
            patch.setattr("srr_ext.cli.measuring.measure_latency", lambda networks, *_, **__: [1.0 for _ in networks])
        assert main(["prune", *COMMON, *arguments, "--output", output]) == 0
    return read(output, "report.json")


def read(folder: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, name).read_text())
    return found


def stages(folder: str) -> list[str]:
    """Names of the trainings, in order."""
    records = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(record["stage"] for record in records if "stage" in record))


def tensors(folder: str) -> dict[str, torch.Tensor]:
    return srr_ext.load(folder).state_dict()


@pytest.mark.slow
def test_group_lasso_then_its_zeros_first(weights: str) -> None:
    """Two runs of the same flags, and one of the saved configuration, give the same bytes."""
    flags = [
        "--weights",
        weights,
        "--sparse.penalty",
        "group_lasso",
        "--sparse.epochs",
        "1",
        "--sparse.strength",
        "0.2",
    ]
    flags += ["--allocator", "global:normalise=none", "--selector", "group_norm", "--epochs", "1"]
    report = prune("a", *flags)
    assert (report["penalty"], report["allocator"], report["selector"]) == (
        "group_lasso", "global:normalise=none", "group_norm",
    )  # fmt: skip
    assert report["macs"]["pruned"] <= 0.6 * report["macs"]["dense"] and report["surgery_error"] < 1e-9
    config = read("a", "config.json")
    assert config["sparse"]["penalty"] == "group_lasso" and config["sparse"]["strength"] == 0.2
    assert config["allocator"] == "global:normalise=none" and config["update"] == "none"
    assert stages("a") == ["train sparse", "fine-tune"]
    prune("b", *flags)
    prune("c", "--config", "a/config.json")
    for name in NAMES:
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes() == Path("c", name).read_bytes(), name


@pytest.mark.slow
def test_the_zeros_of_a_strong_penalty_are_the_plan(weights: str) -> None:
    """With the page of the report, which shows any plan."""
    penalty = ["--sparse.penalty", "group_lasso", "--sparse.epochs", "2", "--sparse.strength", "2"]
    method = ["--allocator", "zero_groups", "--selector", "group_norm", "--epochs", "0"]
    report = prune("run", "--weights", weights, *penalty, *method, "--keep-macs", "1", page=True)
    assert read("run", "plan.json")["info"]["zero"] > 0
    assert report["macs"]["pruned"] < report["macs"]["dense"]
    assert "zero_groups" in Path("run/report.html").read_text(encoding="utf-8")


def test_slimming(weights: str) -> None:
    flags = ["--weights", weights, "--sparse.penalty", "bn_l1", "--sparse.epochs", "1", "--sparse.strength", "0.2"]
    report = prune("run", *flags, "--allocator", "global:normalise=none", "--selector", "bn_scale", "--epochs", "0")
    assert report["penalty"] == "bn_l1" and report["selector"] == "bn_scale"
    assert stages("run") == ["train sparse"]


def test_sparse_training_changes_the_plan_and_not_the_dense_network(weights: str) -> None:
    flags = ["--weights", weights, "--selector", "l2", "--allocator", "uniform", "--epochs", "0"]
    plain = prune("plain", *flags)
    sparse = prune(
        "sparse", *flags, "--sparse.penalty", "group_lasso", "--sparse.epochs", "1", "--sparse.strength", "1"
    )
    assert plain["penalty"] == "none" and plain["top1"]["dense"] == sparse["top1"]["dense"]
    assert read("plain", "plan.json")["layers"] != read("sparse", "plan.json")["layers"]
    assert plain["macs"] == sparse["macs"]


@pytest.mark.slow
def test_scratch_trains_the_same_architecture_from_new_weights(weights: str) -> None:
    """For as many epochs as the dense and the fine-tuning take together, by the recipe of the dense network."""
    flags = ["--weights", weights, "--dense.epochs", "2", "--dense.lr", "0.03", "--epochs", "1", "--selector", "l2"]
    tuned, scratch = prune("tuned", *flags), prune("scratch", *flags, "--retrain", "scratch")
    assert (tuned["retrain"], scratch["retrain"]) == ("finetune", "scratch")
    assert read("scratch", "config.json")["retrain"] == "scratch"
    assert read("tuned", "plan.json") == read("scratch", "plan.json")
    assert stages("tuned") == ["fine-tune"] and stages("scratch") == ["train from scratch"]
    epochs = [
        json.loads(line)["epoch"] for line in Path("scratch/log.jsonl").read_text().splitlines() if "epoch" in line
    ]
    assert epochs == [1, 2, 3]
    assert tuned["top1"]["after_surgery"] == scratch["top1"]["after_surgery"]
    none = [*flags[:2], "--dense.epochs", "0", "--epochs", "0", "--selector", "l2", "--retrain", "scratch"]
    prune("untrained", *none, "--seed", "3")
    fresh, small = tensors("untrained"), srr_ext.load("tuned")
    assert {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in small.state_dict().items()}
    assert all(torch.equal(value, fresh[key]) for key, value in reinitialise(small, 3).state_dict().items())


def test_the_split_has_a_seed_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of several seeds with one split hold out the same images; by default the seed splits."""

    def held_out(**seeds: int) -> torch.Tensor:
        images = steps.load_data(PruneConfig(**seeds), on_screen())  # type: ignore[arg-type]  # only integers are given
        return torch.cat([batch for batch, _ in images.batches("validation", 64)])

    assert torch.equal(held_out(seed=1), held_out(seed=2, split_seed=1))
    assert torch.equal(held_out(seed=2), held_out(seed=5, split_seed=2))
    assert not torch.equal(held_out(seed=1), held_out(seed=2))
    assert torch.equal(held_out(seed=0), held_out(seed=3, split_seed=0))
    with pytest.raises(SystemExit):
        main(["prune", "--split-seed", "1", "--print_config"])
    assert "split_seed: 1\n" in capsys.readouterr().out


def test_an_update_changes_the_weights_before_they_are_trained(weights: str) -> None:
    """It gets the network before surgery, its plan and images, and its weights are what is trained on."""
    seen: dict[str, Any] = {}

    @register_update("scaled_up")
    def scaled_up(pruned: nn.Module, plan: srr_ext.PruningPlan, context: Any) -> nn.Module:
        images, labels = next(context.batches())
        seen.update(images=images.shape, labels=labels.shape, layers=plan.layers, seed=context.seed)
        seen["held_out"] = sum(len(labels) for _, labels in context.validation_batches())
        seen["wider"] = sum(p.numel() for p in context.model.parameters()) > sum(p.numel() for p in pruned.parameters())
        better = copy.deepcopy(pruned)
        list(better.parameters())[-1].data += torch.arange(10.0) * 100  # of the classifier: the last class always wins
        return better

    flags = [
        "--weights",
        weights,
        "--selector",
        "l2",
        "--allocator",
        "uniform",
        "--epochs",
        "0",
        "--calibration",
        "100",
    ]
    report = prune("run", *flags, "--update", "scaled_up")
    assert report["update"] == "scaled_up" and read("run", "config.json")["update"] == "scaled_up"
    assert seen["images"] == (64, 1, 8, 8) and seen["labels"] == (64,) and seen["wider"] and seen["seed"] == 0
    assert seen["held_out"] > 0 and seen["layers"]
    plain = prune("plain", *flags)
    assert read("plain", "plan.json") == read("run", "plan.json") and plain["update"] == "none"
    before, after = tensors("plain"), tensors("run")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"classifier.bias"}, moved
    torch.testing.assert_close(after["classifier.bias"] - before["classifier.bias"], torch.arange(10.0) * 100)
    assert report["top1"]["final"] < 15 < plain["top1"]["final"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--retrain", "scratch", "--rounds", "2"], "--retrain: scratch goes without --rounds"),
        (["--retrain", "again"], "--retrain: "),
        (["--update", "reconstuct"], "--update: no update is called 'reconstuct'"),
        (["--sparse.penalty", "lasso"], "--sparse.penalty: "),
        (["--sparse.penalty", "group_lasso", "--sparse.strength", "-1"], "--sparse.strength: must be at least 0"),
        (["--sparse.strength", ".nan"], "--sparse.strength: must be at least 0"),
        (["--sparse.strength", "much"], "--sparse.strength: 'much' is not valid"),
        (["--sparse.epochs", "-1"], "--sparse.epochs: must be at least 0"),
        (["--calibration", "0"], "--calibration: must be at least 1"),
        (["--allocator", "global:normalise=other"], "--allocator: normalise must be"),
        (["--allocator", "global:normalize=none"], "--allocator: 'global' has no option 'normalize=none'"),
        (["--selector", "l1:x=1"], "--selector: 'l1' has no option 'x=1'; its options: none"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "prune", *arguments)
    assert line.startswith(expected), line


def test_what_only_sparse_training_finds_out_is_refused(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An average of weights, a plan that the zeros do not reach, a network without normalisation."""
    common = ["--weights", weights, *COMMON, "--epochs", "0"]
    penalty = ["--sparse.penalty", "group_lasso", "--sparse.epochs", "0"]
    line = refused(capsys, "prune", *common, *penalty, "--sparse.ema", "0.9")
    assert "ema" in line and "must be 0 with penalty group_lasso" in line
    zeros = ["--allocator", "zero_groups", "--selector", "group_norm", "--output", "run"]
    assert main(["prune", *common, *penalty, *zeros]) == 2
    line = capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]
    assert line.startswith("--keep-macs: ") and "0 of 288 vertices have importance 0" in line and "strength" in line
    assert "srr prune --resume run goes on" in line  # the sparse training is finished, and stays


def test_own_names() -> None:
    """The methods that go with the penalties are those that the flags name."""
    assert srr_ext.criteria.get_selector("bn_scale") is bn_scale
    assert srr_ext.allocators.get_allocator("zero_groups") is zero_groups
    assert srr_ext.criteria.get_selector("group_norm") is group_norm
