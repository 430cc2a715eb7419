"""Folders whose network is made by code: the command line has to name it again, and nothing else imports it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import take_no_time
from safetensors.torch import load_file, save_file

from srr_ext import checkpoints
from srr_ext.__main__ import main
from srr_ext.bottleneck import load_bottlenecks
from srr_ext.checkpoints import Checkpoint
from srr_ext.cli import running

CODE = "made_by_a_stranger:net"
MODULE = """
from pathlib import Path
Path(__file__).with_name("it-ran").touch()
import srr_ext
def net(num_classes=10):
    return srr_ext.models.create("digits_cnn", num_classes)
"""
QUICK = ["--epochs", "1", "--device", "cpu"]


class PowerCut(BaseException):
    """Nothing that the program could see coming."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder with such a module, and forget it again."""
    take_no_time(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("made_by_a_stranger.py").write_text(MODULE)
    yield
    sys.modules.pop("made_by_a_stranger", None)


def stop_after(patch: pytest.MonkeyPatch, stage: str) -> None:
    commit = Checkpoint.commit

    def stop(self: Checkpoint, name: str, *arguments: object, **keywords: object) -> None:
        commit(self, name, *arguments, **keywords)  # type: ignore[arg-type]
        if name == stage:
            raise PowerCut

    patch.setattr(checkpoints.Checkpoint, "commit", stop)


def forget() -> None:
    """Let the next import of the module be seen."""
    sys.modules.pop("made_by_a_stranger", None)
    Path("it-ran").unlink(missing_ok=True)


def test_commands_import_what_the_command_line_names(capsys: pytest.CaptureFixture[str]) -> None:
    """`--resume` and `evaluate --run`: with the name they work, without it they say what to add."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        stop_after(patch, "dense")
        main(["prune", "--model", CODE, "--dense.epochs", "1", *QUICK, "--output", "run"])
    forget()
    assert main(["prune", "--resume", "run"]) == 2
    assert f"add --model {CODE}" in capsys.readouterr().err
    assert main(["prune", "--resume", "run", "--model", "digits_cnn"]) == 2
    assert not Path("it-ran").exists()
    assert main(["prune", "--resume", "run", "--model", CODE]) == 0
    assert f"evaluate --run run --model {CODE}; srr_ext.load(" in capsys.readouterr().out
    forget()
    assert main(["evaluate", "--run", "run"]) == 2 and main(["evaluate", "--run", "run", "--model", "a:b"]) == 2
    assert not Path("it-ran").exists()
    assert main(["evaluate", "--run", "run", "--model", CODE]) == 0
    assert "of 539 test images" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["small:stage1.0.weight", "final:classifier.bias"])
@pytest.mark.parametrize("how", ["gone", "other shape"])
def test_checkpoints_of_other_networks_are_one_line(change: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prune", "--dense.epochs", "1", "--rounds", "2", *QUICK, "--output", "run"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        stop_after(patch, "round")
        main(command)
    state = load_file("run/checkpoint/round-1.safetensors")
    state[change] = torch.zeros(3)
    if how == "gone":
        del state[change]
    save_file(state, "run/checkpoint/round-1.safetensors")
    capsys.readouterr()
    assert main(["prune", "--resume", "run"]) == 2
    assert "the checkpoint is of another network" in capsys.readouterr().err.splitlines()[-1]


def test_states_of_other_trainings_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A momentum of another shape would end the first step with a traceback."""
    monkeypatch.setattr(running, "SECONDS_BETWEEN_STATES", 0.0)
    keep = Checkpoint.keep

    def stop(self: Checkpoint, *arguments: object) -> None:
        keep(self, *arguments)  # type: ignore[arg-type]
        raise PowerCut

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Checkpoint, "keep", stop)
        main(["train", "--epochs", "2", "--device", "cpu", "--output", "run"])
    path = next(Path("run/checkpoint").glob("training-*.safetensors"))
    state = load_file(path)
    name = next(name for name in state if name.startswith("optimizer:") and state[name].ndim > 1)
    save_file(state | {name: torch.zeros(7, 7)}, path)
    assert main(["train", "--resume", "run"]) == 2
    assert "the saved state is of another training" in capsys.readouterr().err.splitlines()[-1]


def test_ranks_above_the_directions_are_refused(tmp_path: Path) -> None:
    """Of patches, whose number only the network knows; nothing is allocated for them."""
    plan = {
        "schema_version": 1, "basis": "patches", "layers": {"stage1.0": {"in": 10**9, "out": 2}},
        "widths": {"stage1.0": [24, 1]}
    }  # fmt: skip
    Path("bottlenecks.json").write_text(json.dumps(plan))
    Path("architecture.json").write_text(json.dumps({"name": "digits_cnn", "options": {}}))
    save_file({"a": torch.zeros(1)}, "model.safetensors")
    with pytest.raises(ValueError, match=r"ranks 1000000000 and 2 are more than its 9 directions of inputs and 24"):
        load_bottlenecks(tmp_path)
