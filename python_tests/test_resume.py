"""Going on with ``srr prune`` and ``srr train`` after a stop at any moment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import take_no_time
from torch import Tensor

from srr_ext import checkpoints
from srr_ext.__main__ import main
from srr_ext.cli import running

COMMON = ("--dense.epochs", "3", "--epochs", "3", "--device", "cpu")
COMMANDS = {
    "prune": [*COMMON, "--rounds", "2", "--keep-macs", "0.4", "--sparse.penalty", "bn_l1", "--sparse.epochs", "2"],
    "rewind": [*COMMON, "--rounds", "2", "--retrain", "weight-rewind", "--rewind-to", "1ep", "--fine-tune.ema", "0.9"],
    "train": ["--epochs", "4", "--dense.ema", "0.9", "--snapshots", "0ep", "2ep", "--device", "cpu"],
}


def words(name: str) -> list[str]:
    return ["train" if name == "train" else "prune", *COMMANDS[name]]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take no time over times, keep the state of every epoch, work in an empty folder."""
    take_no_time(monkeypatch)
    monkeypatch.setattr(running, "SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return runs that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    for name in COMMANDS:
        assert main([*words(name), "--output", str(folder / name)]) == 0
    return {name: folder / name for name in COMMANDS}


def same(one: Path, other: Path) -> None:
    """Compare two runs byte for byte, measured times aside."""
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names - {"report.json", "report.html", "structure.json", "events"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    timed = ("latency_ms", "speed_up", "command")
    first, second = (json.loads((run / "report.json").read_text()) for run in (one, other))
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


class PowerCut(BaseException):
    """Nothing that the program could see coming."""


def cut_power(patch: pytest.MonkeyPatch, write: int, *, before: bool) -> None:
    """Let the power go off at the n-th time that a record is written: before its name is there, or after."""
    written = 0
    replace_file = checkpoints.replace_file
    write_json = checkpoints.write_json

    def count(do: Any, *arguments: Any) -> None:
        nonlocal written
        written += 1
        if written == write and before:
            raise PowerCut
        do(*arguments)
        if written == write:
            raise PowerCut

    patch.setattr(checkpoints, "replace_file", partial(count, replace_file))
    patch.setattr(checkpoints, "write_json", partial(count, write_json))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("before", [True, False])
def test_a_stop_at_any_record_changes_nothing(whole: dict[str, Path], name: str, before: bool) -> None:
    """Every file of the checkpoint in turn is the last one written: the next attempt comes one record further."""
    begun = False
    for attempt in range(60):
        with pytest.MonkeyPatch.context() as patch:
            cut_power(patch, 4 if begun else 3, before=before)  # the next record, after the log and a file
            try:
                code = main([words(name)[0], "--resume", "run"] if begun else [*words(name), "--output", "run"])
            except PowerCut:
                begun = True
                continue
        assert code == 0 and attempt >= 3
        break
    same(Path("run"), whole[name])


def test_states_are_not_kept_more_often_than_they_are_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where epochs take less than a second, none is."""
    kept: list[str] = []

    def keep(self: checkpoints.Checkpoint, training: str, tensors: Mapping[str, Tensor]) -> None:
        kept.append(training)

    monkeypatch.setattr(checkpoints.Checkpoint, "keep", keep)
    monkeypatch.setattr(running, "SECONDS_BETWEEN_STATES", 60.0)
    assert main([*words("train"), "--output", "run"]) == 0 and not kept
    monkeypatch.setattr(running, "SECONDS_BETWEEN_STATES", 0.0)
    assert main([*words("train"), "--output", "again"]) == 0 and kept == ["train dense"] * 3


def test_what_cannot_go_on_is_refused(whole: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Each in one line; nothing is changed."""
    Path("empty").mkdir()
    for flags, line in (
        (["--resume", str(whole["prune"])], "holds a run that is finished; open its report"),
        (["--resume", "empty"], "holds no run to go on with"),
        (["--resume", "empty", "--seed", "1"], "--resume: goes alone: the settings are those of the run"),
    ):
        capsys.readouterr()
        assert main(["prune", *flags]) == 2 and line in capsys.readouterr().err
    assert not list(Path("empty").iterdir())


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(whole: dict[str, Path], tmp_path: Path) -> None:
    """At ten random moments, by SIGKILL and by SIGTERM, which ends with a line that says how to go on."""
    script = (
        "import sys; from srr_ext.cli import running; running.SECONDS_BETWEEN_STATES = 0.0; "
        "from srr_ext.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    folder = tmp_path / "run"
    generator = torch.Generator().manual_seed(1)
    for attempt in range(40):
        begun = (folder / "checkpoint" / "command.json").exists() and (folder / "config.json").exists()
        if not begun and folder.exists():
            folder = tmp_path / f"run-{attempt}"  # killed before there was anything
        flags = ["prune", "--resume", str(folder)] if begun else [*words("prune"), "--output", str(folder)]
        process = subprocess.Popen([sys.executable, "-c", script, *flags], stderr=subprocess.PIPE, text=True)
        try:
            wait = None if attempt >= 10 else 4 + 6 * float(torch.rand(1, generator=generator))
            _, said = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if attempt % 3 == 2 else signal.SIGKILL)
            _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM, 130), said
        assert process.returncode != 130 or "--resume" in said.splitlines()[-1]
    same(folder, whole["prune"])


def test_what_a_killed_write_has_left_goes(whole: dict[str, Path]) -> None:
    """Halves of files under temporary names; what somebody else has put there stays."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_power(patch, 4, before=True)
        main([*words("prune"), "--output", "run"])
    halves = [Path("run/.dense.safetensors.3_mgidqq"), Path("run/checkpoint/.reached.json.abcdefgh")]
    foreign = Path("run/.notes.json")
    for path in (*halves, foreign):
        path.write_text("half")
    assert main([words("prune")[0], "--resume", "run"]) == 0
    assert not any(path.exists() for path in halves) and foreign.read_text() == "half"
    foreign.unlink()
    same(Path("run"), whole["prune"])
