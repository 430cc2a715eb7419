"""A disk that fills up, or is taken away, in the middle of a run: one line, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import take_no_time
from safetensors import safe_open
from torch import Tensor

from srr_ext import files
from srr_ext.__main__ import main
from srr_ext.checkpoints import Checkpoint
from srr_ext.cli import running

COMMANDS = {
    "train": ["train", "--epochs", "3", "--device", "cpu"],
    "prune": ["prune", "--dense.epochs", "1", "--epochs", "2", "--keep-macs", "0.5", "--device", "cpu"],
}
RESULT = {"train": "dense.safetensors", "prune": "model.safetensors"}
LIMIT = 20_000  # bytes of a file: less than the weights of any network here, more than a log


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take no time over times, keep the state of every epoch, work in an empty folder."""
    take_no_time(monkeypatch)
    monkeypatch.setattr(running, "SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what runs come to that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        take_no_time(patch)
        for name, command in COMMANDS.items():
            assert main([*command, "--output", str(folder / name)]) == 0
    return {name: (folder / name / RESULT[name]).read_bytes() for name in COMMANDS}


def after(patch: pytest.MonkeyPatch, method: str, times: int, happen: Callable[[], object]) -> None:
    """Let something happen when a checkpoint has been written so often."""
    original, count = getattr(Checkpoint, method), 0

    def call(self: Checkpoint, name: str, *arguments: Any, **keywords: Mapping[str, Tensor]) -> None:
        nonlocal count
        original(self, name, *arguments, **keywords)
        count += 1
        if count == times:
            happen()

    patch.setattr(Checkpoint, method, call)


def fill_up() -> None:
    """Let no file grow any more, as on a full disk; unlike there, it can be undone."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def make_read_only(patch: pytest.MonkeyPatch) -> None:
    """Let no file be made, as on a file system that was mounted anew after an error; root may write all others."""

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    patch.setattr(files.tempfile, "mkstemp", refuse)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
@pytest.mark.parametrize(("name", "method"), [("train", "keep"), ("prune", "commit"), ("prune", "keep")])
def test_the_last_good_checkpoint_stays(
    whole: dict[str, bytes], name: str, method: str, trouble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the first state or stage nothing can be written; when there is room again, the run ends as any other."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        after(patch, method, 1, fill_up if trouble == "full" else lambda: make_read_only(patch))
        try:
            code = main([*COMMANDS[name], "--output", "run"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said
    assert "error: --output: run cannot be written (" in said.splitlines()[-1]
    left = {path.name for path in Path("run/checkpoint").iterdir()}
    assert not any(name.startswith(".") for name in left), "half a file is left"
    for path in Path("run").rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.keys()
    assert "reached.json" in left and "--resume" in said.splitlines()[-1]
    assert main([COMMANDS[name][0], "--resume", "run"]) == 0
    assert (Path("run") / RESULT[name]).read_bytes() == whole[name]
