"""What the README shows works: every command and the Python lines are taken from it and run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srr_ext import models
from srr_ext.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.strip().splitlines()]


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """Return a folder like that of the README's reader: images in class folders, and a checkpoint for ten classes."""
    root = tmp_path
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(10):
            (root / "images" / split / f"class{label}").mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / f"class{label}" / f"{i}.jpg")
    torch.manual_seed(0)
    torch.save({"state_dict": models.create("resnet20").state_dict()}, root / "resnet20.th")
    return root


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh"} and len(COMMANDS) >= 5


def test_readme_opens_with_two_commands() -> None:
    """They are make targets (running them from within ``make test`` would never end)."""
    targets = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert targets == ["prune", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("install", "prune", "test", "lint", "bench"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_python_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = next(text for language, text in BLOCKS if language == "python")
    assert 5 <= sum(bool(line.strip()) for line in lines.splitlines()) <= 10
    exec(compile(lines, "README.md", "exec"), {})
    assert Path("runs/small/plan.json").is_file()


def test_the_commands_run_in_order(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some need what an earlier one has written."""
    monkeypatch.chdir(user_folder)
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "srr" and main(arguments) == 0, command
