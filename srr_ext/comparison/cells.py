"""One cell of a comparison, run to its end or not at all: what a process or a task of an executor does."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srr_ext import artifacts
from srr_ext.artifacts import RunFolder
from srr_ext.cli.parsing import UsageError, as_dict
from srr_ext.cli.running import Session, do_in_folder
from srr_ext.comparison.sparse_cells import SPARSIFY
from srr_ext.config import PruneConfig, SparsifyConfig
from srr_ext.files import write_json
from srr_ext.progress import silent

CELLS, FAILED = "cells", "failed"
CELL = "cell.json"
COMMANDS = ("prune", SPARSIFY)  # the kinds of methods that are commands, of the same name
OUTPUT = "output.txt"  # what a cell has printed, warnings mostly; absent if nothing

_LATENCY_SECONDS = 0.2  # while other cells compute, times say little; those of the results are taken in the end
_TAIL = 10_000  # characters of the output that are worth keeping of a failure


@dataclass(frozen=True)
class Job:
    """What an executor runs.

    Attributes
    ----------
    name : str
        Of the cell.
    folder : Path
        Of the comparison.
    config : PruneConfig or SparsifyConfig
        Of the cell.
    record : dict
        The content of ``cell.json``.
    kind : str
        Of the method, a key of `srr_ext.comparison.kinds.KINDS`.
    threads : int
        How many torch uses.
    launcher : str
        What starts the cell as a command of its own, for kinds that are one; empty to run it in this process.
    """

    name: str
    folder: Path
    config: PruneConfig | SparsifyConfig
    record: dict[str, Any]
    kind: str
    threads: int
    launcher: str = ""

    @property
    def final(self) -> Path:
        """Where the finished cell is."""
        return self.folder / CELLS / self.name

    def partial(self, process: int) -> Path:
        """Where it is made, by one process."""
        return self.folder / CELLS / f".{self.name}.{process}.partial"


@dataclass(frozen=True)
class Failure:
    """Why a cell has not come to its end.

    Attributes
    ----------
    message : str
        One line.
    output : str
        The end of what it has printed.
    """

    message: str
    output: str = ""


def run_cell(job: Job) -> Failure | None:
    """Run a cell; its folder gets its name when all of it is there.

    Parameters
    ----------
    job : Job

    Returns
    -------
    Failure or None
        None if the cell is finished.
    """
    partial = job.partial(os.getpid())
    printed = output_of(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _printing_to(printed):
            message = _attempt(job, partial)
        if message is not None:
            return Failure(message, _tail(printed))
        if printed.stat().st_size:
            printed.replace(partial / OUTPUT)
        write_json(partial / CELL, job.record)
        partial.rename(job.final)
        return None
    except OSError as error:
        return Failure(f"--output: {job.folder} cannot be written ({error})")
    finally:
        discard(partial)


def gone(job: Job, message: str) -> Failure:
    """Clean up after a process that died in the middle of a cell."""
    output = ""
    for path in job.final.parent.glob(f".{job.name}.*.partial"):
        output = _tail(output_of(path))
        discard(path)
    return Failure(message, output)


def discard(partial: Path) -> None:
    """Remove what there is of a cell that is not finished."""
    shutil.rmtree(partial, ignore_errors=True)
    for path in (output_of(partial), _settings_of(partial)):
        path.unlink(missing_ok=True)


def discard_all(folder: Path) -> None:
    """Remove what an earlier process has left of cells that it has not finished."""
    for path in (folder / CELLS).glob(".*.partial*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def output_of(partial: Path) -> Path:
    """Where the output of a cell goes while it runs, as its folder has to be empty at first."""
    return partial.with_name(f"{partial.name}.txt")


def _tail(printed: Path) -> str:
    return printed.read_text(encoding="utf-8", errors="replace")[-_TAIL:] if printed.is_file() else ""


def _settings_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _attempt(job: Job, partial: Path) -> str | None:
    """Do the work; return what went wrong."""
    _settle(job)
    try:
        if job.launcher:
            return _launch(job, partial)
        from srr_ext.comparison.kinds import KINDS  # here, as reading a comparison needs no pipeline

        session = Session(silent(), lambda line: None, shared=_shared, seconds=_LATENCY_SECONDS)
        do_in_folder(RunFolder(partial, job.name), job.config, _command(job), session, KINDS[job.kind].run)
    except UsageError as error:
        return str(error)
    except Exception as error:  # a method of the user's own may raise anything; the other cells go on
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _command(job: Job) -> list[str]:
    """Return the command that does the same, for the record."""
    if job.kind in COMMANDS:
        return ["srr", job.kind, "--config", str(job.final / artifacts.CONFIG)]
    return ["srr", "compare", "--config", str(job.folder / artifacts.CONFIG), "--output", str(job.folder)]


def _settle(job: Job) -> None:
    """Make the process the same for every cell, whatever ran in it before."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.config.seed)
    random.seed(job.config.seed)
    np.random.seed(job.config.seed % (1 << 32))  # code of the user's own may draw from any of them


def _launch(job: Job, partial: Path) -> str | None:
    """Run the cell as a command of its own."""
    settings = _settings_of(partial)
    write_json(settings, as_dict(replace(job.config, output=None)))
    here = str(Path(sys.executable).parent)  # where torchrun is, even if the environment is not activated
    paths = os.pathsep.join([here, os.environ.get("PATH", os.defpath)])
    environment = os.environ | {"PATH": paths, "OMP_NUM_THREADS": str(job.threads)}
    module = f"srr_ext.{job.kind}"
    words = [*shlex.split(job.launcher), "-m", module, "--config", str(settings), "--output", str(partial)]
    program = shutil.which(words[0], path=paths)
    if program is None:
        return f"--launcher: there is no program {words[0]}; install it or give its path"
    process = subprocess.Popen([program, *words[1:]], env=environment, stdin=subprocess.DEVNULL)
    _launched.append(process)
    try:
        code = process.wait()
    finally:
        stop_launched()
    if not code:
        return None
    lines = output_of(partial).read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition(": error: ")[2] for line in lines if ": error: " in line]
    return errors[0] if errors else f"{words[0]} ended with exit code {code}"


_shared: dict[Hashable, Any] = {}  # images and the accuracy of the dense network, for all cells of this process
_launched: list[subprocess.Popen[bytes]] = []  # at most one


def stop_launched() -> None:
    """End the command that this process has started for its cell, if it runs."""
    while _launched:
        process = _launched.pop()
        if process.poll() is None:
            process.terminate()  # torchrun passes it on
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send all output of this process to a file, that of native code and of commands included."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        with path.open("w", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            for stream, _ in before:
                os.dup2(file.fileno(), stream)
            yield
    finally:
        for stream, saved in before:
            os.dup2(saved, stream)
            os.close(saved)
