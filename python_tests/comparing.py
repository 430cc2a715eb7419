"""For the tests of comparisons: a dense network, networks that witness or kill their process, and commands to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import srr_ext
from srr_ext import models

HERE = Path(__file__).parent
QUICK = ("--device", "cpu", "--epochs", "1", "--threads", "1")
# What measures time, or says which command was given.
TIMES = ("latency_ms", "speed_up", "command", "environment")


def save_weights(path: Path) -> str:
    """Write a digits_cnn with new weights; return the value of --weights."""
    torch.manual_seed(0)
    torch.save({"state_dict": models.create("digits_cnn").state_dict()}, path)
    return str(path)


def witness(num_classes: int = 10) -> nn.Module:
    """Make the digits network; note what the process sees in the file that WITNESS names."""
    seen = {"pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": torch.get_num_threads()}
    if "WITNESS" in os.environ:
        with open(os.environ["WITNESS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")
    return srr_ext.models.create("digits_cnn", num_classes)


def deadly(num_classes: int = 10) -> nn.Module:
    """Say something and kill the process."""
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return witness(num_classes)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a comparison as a process group of its own, as a terminal does."""
    command = [sys.executable, "-m", "srr_ext.compare", *arguments, "--output", str(folder)]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command,
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & ignores it
    )


def finished(folder: Path) -> list[str]:
    """Return the names of the finished cells."""
    cells = folder / "cells"
    return sorted(path.name for path in cells.iterdir() if path.name[0] != ".") if cells.is_dir() else []


def at_work(folder: Path) -> list[int]:
    """Return the processes that are in the middle of a cell."""
    return [int(path.name.split(".")[-2]) for path in (folder / "cells").glob(".*.partial")]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    """Wait until something holds; fail if the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def findings(folder: Path) -> dict[str, Any]:
    """Return what all cells have found, without times."""
    reports = {name: json.loads((folder / "cells" / name / "report.json").read_text()) for name in finished(folder)}
    return {name: {k: v for k, v in report.items() if k not in TIMES} for name, report in reports.items()}
