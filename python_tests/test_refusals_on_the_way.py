"""What goes wrong in the middle of a run: the right flag is named, and what was trained is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from torch import Tensor, nn

import srr_ext
from srr_ext import artifacts, models
from srr_ext.__main__ import main
from srr_ext.cli.running import blame_disk

QUICK = ("--dense.epochs", "1", "--epochs", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def colour_net(num_classes: int = 10) -> nn.Module:
    """Return a network for colour images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    )


class Odd(nn.Module):
    """A network for the digits that does something else than score, now or in training."""

    def __init__(self, result: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result(self, self.body(x))


def pair_in_training() -> nn.Module:
    """Return a network that gives more than scores in training, as those with auxiliary heads do."""
    return Odd(lambda self, scores: (scores, scores) if self.training else scores)


def not_finite() -> nn.Module:
    """Return a network whose scores are not numbers."""
    return Odd(lambda self, scores: scores * float("nan"))


def with_a_mistake() -> nn.Module:
    """Return a network whose code fails."""
    return Odd(lambda self, scores: scores.no_such_attribute)


def frozen() -> nn.Module:
    """Return a network without anything to train."""
    return Odd(lambda self, scores: scores).requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("pair_in_training", "must give scores [b, n_classes], in training mode as well, but gives a tuple"),
        ("not_finite", f"{__name__}:not_finite gives scores that are not finite"),
        ("with_a_mistake", f"{__name__}:with_a_mistake cannot read images [1, 8, 8]: 'Tensor' object has no attribute"),
        ("frozen", "has no parameter that requires a gradient"),
    ],
)
def test_an_unusable_network_is_blamed_on_the_model(
    model: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the training, or in its first step."""
    for command in ("prune", "train"):
        flags = QUICK if command == "prune" else ("--epochs", "1")
        line = refused(capsys, command, "--model", f"{__name__}:{model}", *flags)
        assert line.startswith(f"--model: {expected}"), line


def make_folder(root: str, side: int = 100) -> None:
    """Make two classes of six images too large to be held in memory."""
    pixels = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            Path(root, split, name).mkdir(parents=True)
            for number in range(6):
                image = Image.fromarray(pixels.integers(0, 256, (side, side, 3), dtype=np.uint8))
                image.save(Path(root, split, name, f"{number}.png"))


STREAMED = ("--model", f"{__name__}:colour_net", "--image-size", "100", "--workers", "0", "--data", "folder:set")


@pytest.mark.parametrize("command", ["prune", "train"])
def test_an_unreadable_training_image_is_blamed_on_the_data(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And not on the training that met it; nothing is left."""
    make_folder("set")
    Path("set/train/b/2.png").write_bytes(b"")
    line = refused(capsys, command, *STREAMED, "--validation", "0", "--epochs", "1")
    assert line.startswith("--data: set/train/b/2.png cannot be read as an image"), line


def test_an_unreadable_test_image_is_met_last_and_the_networks_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the dense network came with weights, so that the pruned one is all that was trained."""
    make_folder("set")
    assert main(["train", *STREAMED, "--epochs", "1", "--output", "dense"]) == 0
    Path("set/test/b/2.png").write_bytes(b"")
    capsys.readouterr()
    weights = ["--weights", "dense/dense.safetensors"]
    assert main(["prune", *STREAMED, *weights, "--epochs", "1", "--output", "run"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: --data: set/test/b/2.png cannot be read as an image" in line and "the network is whole" in line
    assert (Path("run") / artifacts.WEIGHTS).is_file()
    line = refused(capsys, "evaluate", *STREAMED, *weights)
    assert line.startswith("--data: set/test/b/2.png cannot be read as an image"), line


def test_a_plan_is_tried_before_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    """One that is missing or does not fit; and no target stands in the way of one that fits."""
    save = srr_ext.make_plan(models.create("lenet5"), torch.randn(1, 1, 28, 28), keep_macs=0.5).save
    save("other.json")
    for plan in ("no.json", "other.json"):
        assert main(["prune", *QUICK, "--plan", plan, "--output", "run"]) == 2
        error = capsys.readouterr().err
        assert "error: --plan: " in error and "train dense" not in error and not Path("run").exists()
    model, example = models.create("digits_cnn"), torch.randn(1, 1, 8, 8)
    srr_ext.make_plan(model, example, keep_macs=0.9, allocator="uniform").save("plan.json")
    flags = ["--plan", "plan.json", "--floor", "0.9", "--output", "run"]  # with this floor, half is out of reach
    assert main(["prune", *QUICK, *flags]) == 0


def test_a_config_that_is_no_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint, say."""
    Path("net.th").write_bytes(b"\xff\xfe\x00")
    line = refused(capsys, "prune", "--config", "net.th")
    assert line.startswith("--config: the file is not text in UTF-8 ("), line


def test_no_images_for_training_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where nothing would be trained: batch normalisation is measured anew on them."""
    torch.save(models.create("digits_cnn").state_dict(), "net.th")
    line = refused(capsys, "prune", "--weights", "net.th", "--epochs", "0", "--validation", "0.9999")
    assert line.startswith("--validation: is 0.9999, which leaves no images for training"), line


def test_large_seeds_are_seeds() -> None:
    """A time in microseconds is one; what torch does not take is refused by its flag."""
    times = [1_700_000_000_000_000, 2**63 - 1]
    for number, seed in enumerate(times):
        assert main(["train", "--epochs", "1", "--seed", str(seed), "--output", str(number)]) == 0
    assert Path("0/dense.safetensors").read_bytes() != Path("1/dense.safetensors").read_bytes()


@pytest.mark.parametrize("command", ["prune", "train", "analyze", "evaluate"])
def test_seeds_out_of_range_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By every command."""
    line = refused(capsys, command, "--seed", str(2**63))
    assert line.startswith("--seed: must be at least 0 and below 2^63"), line


def test_a_full_disk_is_blamed_on_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the log is written, which training would take for its own, and later."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.RunFolder, "log", full)
        line = refused(capsys, "train", "--epochs", "1", "--output", "run")
        assert line.startswith("--output: run cannot be written ([Errno 28] No space left on device)"), line
    monkeypatch.setattr("srr_ext.report.write", full)
    assert main(["prune", *QUICK, "--output", "run"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--output: run cannot be written" in line and "the network is whole" in line
    assert main(["evaluate", "--run", "run"]) == 0


def test_safetensors_errors_are_those_of_the_disk(tmp_path: Path) -> None:
    """Its errors are no OSError."""
    from safetensors.torch import save_file

    with pytest.raises(Exception, match="--output: run cannot be written"), blame_disk(Path("run")):
        save_file({"a": torch.zeros(1)}, tmp_path / "no folder" / "file")


def test_the_advice_after_training_gives_the_same_images(capsys: pytest.CaptureFixture[str]) -> None:
    """Size, seed and validation split are in it, quoted for a shell where they need to be."""
    make_folder("set")
    Path("set").rename("my set")
    flags = [*STREAMED[:-1], "folder:my set", "--seed", "3", "--validation", "0.25"]
    assert main(["train", *flags, "--epochs", "1", "--output", "my run"]) == 0
    advice = capsys.readouterr().out.splitlines()[-1]
    assert "--data 'folder:my set' --image-size 100 --seed 3 --validation 0.25 --weights 'my run/" in advice
    assert json.loads(Path("my run/report.json").read_text())["seed"] == 3
