"""Running a command that must refuse."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from srr_ext.__main__ import main
from srr_ext.cli import running


def take_no_time(patch: pytest.MonkeyPatch) -> None:
    """Let commands measure latency in next to no time."""
    on_screen = running.on_screen
    patch.setattr(running, "on_screen", lambda: replace(on_screen(), seconds=0.01))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must refuse: exit code 2, one line, nothing written. Return the line."""
    before = sorted(Path().rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert code == 2, captured
    *progress, line = captured.err.splitlines()
    assert line.startswith(f"srr {arguments[0]}: error: "), captured.err
    assert all(re.search(r": \d+ steps in | of \d+ channels ", step) for step in progress), captured.err
    assert sorted(Path().rglob("*")) == before
    return line.partition("error: ")[2]
