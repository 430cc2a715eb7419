"""Progress where there is no terminal."""

from __future__ import annotations

import io
import re

from rich.console import Console

from srr_ext.progress import Bars, Lines


def test_a_long_stage_says_how_far_it_is_and_how_long_it_will_take() -> None:
    """Lines come while the stage lasts, and one at its end."""
    text = io.StringIO()
    with Lines(Console(file=text, width=200), every=0.0).stage("train", 3) as step:
        for loss in (3, 2, 1):
            step(note=f"loss {loss}")
    lines = text.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["train: 1 of 3", "train: 2 of 3"]
    assert "s left loss 2" in lines[1]
    assert lines[2].startswith("train: 3 steps in ")
    assert len(lines) == 3


def test_a_short_stage_is_one_line() -> None:
    """Nothing is said before the end of a stage that is over soon."""
    text = io.StringIO()
    with Lines(Console(file=text, width=200)).stage("decode", 100) as step:
        for _ in range(100):
            step()
    assert text.getvalue().count("\n") == 1


def test_a_bar_is_readable_on_80_columns() -> None:
    """Stage, count, rate and time stay whole; a long note takes a second line."""
    text = io.StringIO()
    note = "epoch 2/4, validation 98.77 %"
    with Bars(Console(file=text, width=80, force_terminal=True, color_system=None)).stage("train dense", 400) as step:
        for _ in range(400):
            step(note=note)
    last = re.sub(r"\x1b\[[0-9;?]*\w", "", text.getvalue().replace("\r", "\n")).strip().splitlines()[-1]
    assert last.startswith("train dense") and "400/400" in last and last.rstrip().endswith(note) and "…" not in last
