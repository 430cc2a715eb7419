"""``--resume`` in a folder from anywhere: one line where it cannot go on, and nothing outside the folder is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import take_no_time
from hostile import LIARS, pickles
from safetensors.torch import load_file, save_file

from srr_ext import checkpoints
from srr_ext.__main__ import main
from srr_ext.checkpoints import Checkpoint
from srr_ext.files import read_json

COMMAND = ["prune", "--dense.epochs", "1", "--epochs", "2", "--rounds", "2", "--keep-macs", "0.5", "--device", "cpu"]


class PowerCut(BaseException):
    """Nothing that the program could see coming."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was stopped after the first of two rounds."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    commit = Checkpoint.commit

    def stop(self: Checkpoint, stage: str, *arguments: Any) -> None:
        commit(self, stage, *arguments)
        if stage == "round":
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        take_no_time(patch)
        patch.setattr(checkpoints.Checkpoint, "commit", stop)
        with pytest.raises(PowerCut):
            main([*COMMAND, "--output", str(folder)])
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy that may be spoilt, in the current folder."""
    take_no_time(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(stopped, "run"))


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """Go on with the run, which must refuse in one line; return it."""
    capsys.readouterr()
    try:
        code = main(["prune", "--resume", "run"])
    except SystemExit as left:
        code = left.code  # type: ignore[assignment]
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said, said
    return said.splitlines()[-1].partition(": error: ")[2]


def test_the_run_goes_on_where_nothing_is_wrong(run: Path) -> None:
    assert main(["prune", "--resume", "run"]) == 0 and (run / "report.json").is_file()


@pytest.mark.parametrize("name", ["checkpoint", "events", "log.jsonl"])
def test_nothing_is_written_through_links(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither into a folder elsewhere nor into a file."""
    Path("mine").mkdir()
    if (run / name).is_dir():
        shutil.copytree(run / name, "mine/kept")
        shutil.rmtree(run / name)
    else:
        shutil.move(run / name, "mine/kept")
    (run / name).symlink_to(Path("mine/kept").resolve())
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    assert refused(capsys).startswith(f"--resume: run/{name} is a link, and what a run writes stays in its folder")
    assert before == {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}


def test_the_lock_empties_no_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").write_text("precious")
    (run / "checkpoint/lock").unlink()
    (run / "checkpoint/lock").symlink_to(Path("mine").resolve())
    assert "--resume: " in f"{refused(capsys)}" and Path("mine").read_text() == "precious"
    (run / "checkpoint/lock").unlink()
    (run / "checkpoint/lock").hardlink_to("mine")
    with Checkpoint(run).held():
        assert Path("mine").read_text() == "precious"


def test_the_names_of_files_stay_in_the_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record may name `../../x`; what is read is `checkpoint/x`."""
    shutil.copy(run / "checkpoint/round-1.safetensors", "outside.safetensors")
    for name in ("../../outside.safetensors", str(Path("outside.safetensors").resolve()), "..", "/"):
        record = read_json(run / "checkpoint/reached.json") | {"tensors": name}
        (run / "checkpoint/reached.json").write_text(json.dumps(record))
        assert refused(capsys).startswith("--resume: run/checkpoint")


def change_record(**values: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        record = read_json(run / "checkpoint/reached.json") | values
        (run / "checkpoint/reached.json").write_text(json.dumps(record))

    return change


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        state = load_file(run / "checkpoint/round-1.safetensors")
        change(state)
        save_file(state, run / "checkpoint/round-1.safetensors")

    return write


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


SPOILT: dict[str, Callable[[Path], object]] = {
    "number below 0": change_record(number=-(10**9)),
    "number no number": change_record(number="1"),
    "stage no text": change_record(stage=["round"]),
    "state no text": change_record(state=5),
    "log below 0": change_record(log=-5),
    "another field": change_record(evil=1),
    "no record": write("checkpoint/reached.json", "[]"),
    "deep record": write("checkpoint/reached.json", "[" * 10**5),
    "command no list": write("checkpoint/command.json", "5"),
    "command deep": write("checkpoint/command.json", "[" * 10**5),
    "config no settings": write("config.json", "[]"),
    "config torn": write("config.json", '{"model":'),
    "config of another command": write("config.json", '{"compression": 4}'),
    "config null": write("config.json", '{"model": null, "keep_macs": 0.5}'),
    "log no records": lambda run: ((run / "log.jsonl").write_text("[]\n"), change_record(log=3)(run)),
    "log torn": lambda run: ((run / "log.jsonl").write_text("{\n"), change_record(log=2)(run)),
    "log deep": lambda run: ((run / "log.jsonl").write_text("[" * 10**5), change_record(log=10**5)(run)),
    "no plan": change_tensors(lambda state: state.pop("plan")),
    "plan no text": change_tensors(lambda state: state.update(plan=torch.full((9,), 255, dtype=torch.uint8))),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_spoilt_is_one_line(run: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    SPOILT[kind](run)
    assert refused(capsys)


@pytest.mark.parametrize("name", ["checkpoint/round-1.safetensors", "dense.safetensors"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "text"])
def test_pickles_are_refused(run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    marker = Path("it-ran").resolve()
    pickles(marker)[kind](run / name)
    assert name in refused(capsys) and not marker.exists()


def test_headers_that_lie_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in list(LIARS.values())[:2]:
        (run / "checkpoint/round-1.safetensors").write_bytes(content)
        assert "run/checkpoint/round-1.safetensors" in refused(capsys)
