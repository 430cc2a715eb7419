"""Bad input to the commands: one line that names the flag, exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from torch import nn

import srr_ext
from srr_ext import models
from srr_ext.__main__ import main

QUICK = ("--dense.epochs", "2", "--epochs", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "resnet65"], "--model: 'resnet65' is not known; did you mean resnet56"),
        (["--model", "vit_b_16"], "--image-size: vit_b_16 cannot be made for 8 x 8 pixels"),
        (["--model", "timm/resnet18x"], "--model: 'timm/resnet18x' is not known; did you mean timm/resnet18"),
        (["--model", "nowhere:net"], "--model: 'nowhere:net': No module named 'nowhere'"),
        (["--data", "digit"], "--data: 'digit' is not known; did you mean digits?"),
        (["--data", "folder:/no/such"], "--data: there is no folder /no/such"),
        (["--data", "mnist:nowhere"], "--data: 'mnist' was not found below nowhere; add --download"),
        (
            ["--image-size", "32"],
            "--image-size: applies to folder:PATH and imagenet:PATH; data 'digits' has a size of its own",
        ),
        (["--weights", "no.th"], "--weights: there is no file no.th"),
        (["--selector", "l3"], "--selector: no selector is called 'l3'; nearest: "),
        (["--allocator", "ssr"], "--allocator: no allocator is called 'ssr'; nearest: srr"),
        (["--keep-macs", "0"], "--keep-macs: is the share to keep and must be in (0, 1], got 0"),
        (["--keep-macs", "1.5"], "--keep-macs: is the share"),
        (["--keep-macs", ".nan"], "--keep-macs: is the share"),
        (["--keep-params", "half"], "--keep-params: 'half' is not valid; expected float"),
        (["--keep-macs", "0.5", "--keep-params", "0.5"], "--keep-params: goes alone, without --keep-macs"),
        (["--gamma", "-1"], "--gamma: must be 'auto' or above 0"),
        (["--distance", "cosine"], "--distance: "),
        (["--rounds", "0"], "--rounds: must be at least 1"),
        (["--validation", "1"], "--validation: must be in [0, 1)"),
        (["--workers", "-1"], "--workers: must be at least 0"),
        (["--augment.cutout", "-1"], "--augment.cutout: must be at least 0"),
        (["--augment.min-scale", "0.5"], "--augment.min-scale: "),
        (["--dense.distill", "0.5"], "--dense.distill: the dense network has no teacher"),
        (["--dense.precision", "fp16", "--device", "cpu"], "--dense.precision: fp16 needs a GPU"),
        (["--dense.milestones", "3", "2"], "--dense.milestones: must be"),
        (["--floor", "1"], "--floor: must be in [0, 1)"),
        (["--round-to", "0"], "--round-to: must be at least 1"),
        (["--seed", "-1"], "--seed: must be at least 0"),
        (["--epochs", "-1"], "--fine-tune.epochs: must be at least 0"),
        (["--dense.lr", "0"], "--dense.lr: must be above 0"),
        (["--dense.lr", "1e30", "--dense.epochs", "1"], "--dense.lr: train dense: the loss is"),
        (["--device", "tpu"], "--device: 'tpu' is not valid"),
        (["--config", "no.yaml"], "--config: File does not exist"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--output", "/proc/srr"], "--output: /proc/srr cannot be written"),
        (["--keep-macs", "0.0001", *QUICK], "--keep-macs: "),
        (["--ignored", "conv9", *QUICK], "--ignored: no module of the model is called 'conv9'"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag, what was wrong, exit code 2, and nothing written."""
    line = refused(capsys, "prune", *arguments)
    assert line.startswith(expected), line


def test_output_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before any work, and what is there stays."""
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    assert refused(capsys, "prune", "--output", "used").startswith("--output: used is in use")
    assert refused(capsys, "analyze", "--output", "used/notes.txt").startswith("--output: used/notes.txt is there")
    assert Path("used/notes.txt").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """No silent change to the CPU."""
    for command in ("prune", "analyze", "evaluate"):
        line = refused(capsys, command, "--device", "cuda")
        assert line.startswith("--device: is 'cuda', but torch finds no GPU")


def save_weights(path: str, name: str = "digits_cnn") -> dict[str, torch.Tensor]:
    """Write a checkpoint and return its tensors."""
    state = models.create(name).state_dict()
    torch.save({"state_dict": state}, path)
    return state


def test_weights_that_are_not_finite_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The tensor is named."""
    state = save_weights("net.th")
    state["stage2.0.weight"][3, 1] = float("nan")
    torch.save(state, "net.th")
    for command in ("prune", "analyze", "evaluate", "train"):
        line = refused(capsys, command, "--weights", "net.th")
        assert line.startswith("--weights: net.th: stage2.0.weight has values that are not finite"), line


def test_a_checkpoint_of_another_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The first tensor that does not fit is named."""
    save_weights("net.th", "lenet5")
    line = refused(capsys, "prune", "--weights", "net.th")
    assert line.startswith("--weights: net.th lacks stage1.0.weight; it belongs to another architecture"), line


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
def test_a_truncated_checkpoint_is_refused(share: float, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named, whatever is left of it."""
    save_weights("net.th")
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(models.create("digits_cnn").state_dict(), "net.safetensors")
    content = Path("net" + suffix).read_bytes()
    Path("cut" + suffix).write_bytes(content[: int(share * len(content))])
    line = refused(capsys, "prune", "--weights", "cut" + suffix)
    assert line.startswith(f"--weights: cut{suffix} cannot be read as a checkpoint"), line


def test_a_plan_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One for another network names the layer; one that is cut short, missing or beside a target says so."""
    save_weights("net.th")
    model, example = models.create("lenet5"), torch.randn(1, 1, 28, 28)
    srr_ext.make_plan(model, example, keep_macs=0.5).save("plan.json")
    line = refused(capsys, "prune", "--weights", "net.th", "--plan", "plan.json")
    assert line.startswith("--plan: ") and "conv1" in line, line
    Path("half.json").write_text(Path("plan.json").read_text()[:200])
    line = refused(capsys, "prune", "--weights", "net.th", "--plan", "half.json")
    assert line.startswith("--plan: half.json: not a complete JSON file"), line
    assert "No such file" in refused(capsys, "prune", "--weights", "net.th", "--plan", "no.json")
    line = refused(capsys, "prune", "--weights", "net.th", "--plan", "plan.json", "--keep-macs", "0.3")
    assert re.match(r"--plan: plan.json keeps 0\.4\d+ of the macs, more than the 0.3 of --keep-macs", line), line
    assert refused(capsys, "prune", "--plan", "plan.json", "--rounds", "2").startswith("--plan: goes without --rounds")


def make_folder(root: str, splits: tuple[str, ...] = ("train", "test"), classes: tuple[str, ...] = ("a", "b")) -> None:
    """Make class folders with one image each."""
    for split in splits:
        for name in classes:
            Path(root, split, name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(Path(root, split, name, "0.png"))


def test_folders_without_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder that is empty or missing is named."""
    make_folder("set")
    Path("set/train/c").mkdir()
    assert "set/train/c holds no images" in refused(capsys, "prune", "--data", "folder:set")
    make_folder("half", splits=("train",))
    assert refused(capsys, "prune", "--data", "folder:half").startswith("--data: half needs folders train/ and test/")


def colour_net(num_classes: int = 10) -> nn.Module:
    """Return a network of the user's own, for three channels only."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def test_images_that_do_not_fit_the_network_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Gray images for a network that reads colours."""
    line = refused(capsys, "prune", "--model", f"{__name__}:colour_net")
    assert line.startswith(f"--model: {__name__}:colour_net cannot read images [1, 8, 8]: "), line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before any work."""
    Path("locked").mkdir(mode=0o500)
    assert refused(capsys, "prune", "--output", "locked/run").startswith("--output: locked/run cannot be written")


def test_targets_out_of_reach_say_what_is_in_reach(capsys: pytest.CaptureFixture[str]) -> None:
    """The least share, the gamma tried, the options that lower it; asking for just that works, for less does not."""
    save_weights("net.th")
    common = ["--weights", "net.th", "--floor", "0.4", "--epochs", "0"]
    line = refused(capsys, "prune", *common, "--keep-macs", "0.1")
    assert (
        line.startswith("--keep-macs: ") and "a lower floor" in line and "streams='prune'" in line and "(gamma=" in line
    ), line
    least = float(re.findall(r"\((0\.\d+)\)", line)[0])
    assert main(["prune", *common, "--keep-macs", str(least + 1e-4), "--output", "run"]) == 0
    assert "is out of reach" in refused(capsys, "prune", *common, "--keep-macs", str(least - 1e-4))


def test_a_refusal_after_the_training_keeps_the_trained_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What took the time stays, and the line says how to go on."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr("srr_ext.prune.make_plan", refuse)
    assert main(["prune", *QUICK, "--output", "run"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no such luck; run holds" in line and "--weights run/dense.safetensors with a new --output" in line
    assert Path("run/dense.safetensors").is_file()
