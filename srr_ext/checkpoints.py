"""How far a run has come, in its folder while it runs: what it needs to go on after it was stopped at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from srr_ext.artifacts import CHECKPOINT, CONFIG, LOG, REPORT
from srr_ext.files import read_json, replace_file, write_json

_REACHED, _COMMAND, _LOCK = "reached.json", "command.json", "lock"


@dataclass(frozen=True)
class Reached:
    """What a run has finished.

    Attributes
    ----------
    stage : str
        The last stage; empty if none is finished.
    number : int
        Of its round, where there are several.
    tensors : str
        Name of the file with what the stage has made; empty for none.
    training : str
        What the training after it is called that is under way; empty if its first epoch is not finished.
    state : str
        Name of the file with the state of that training.
    log : int
        Bytes that ``log.jsonl`` had when all this was written.
    """

    stage: str = ""
    number: int = 0
    tensors: str = ""
    training: str = ""
    state: str = ""
    log: int = 0


@dataclass(frozen=True, eq=False)
class Finished:
    """What a finished stage has left.

    Attributes
    ----------
    number : int
        Of its round.
    tensors : dict of str to Tensor
        What it has made.
    """

    number: int
    tensors: dict[str, Tensor]


class Checkpoint:
    """The folder ``checkpoint`` in a run folder.

    Parameters
    ----------
    run : Path
        The run folder. Nothing is made before something is written.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / CHECKPOINT

    @contextmanager
    def held(self, command: list[str] | None = None) -> Iterator[None]:
        """Keep other processes out of the run for a while.

        Parameters
        ----------
        command : list of str, optional
            How the run was begun, for the record; None for one that goes on.

        Raises
        ------
        ValueError
            Another process is at work in it.
        """
        import fcntl

        self.path.mkdir(exist_ok=True)
        with (self.path / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"another process is at work in {self.run}; wait for it, or stop it") from error
            if command is not None:
                write_json(self.path / _COMMAND, command)
            yield

    @property
    def command(self) -> list[str]:
        """How the run was begun."""
        words = read_json(self.path / _COMMAND)
        if not isinstance(words, list):
            raise ValueError(f"{self.path / _COMMAND} is damaged; begin the run anew")
        return [str(word) for word in words]

    @property
    def reached(self) -> Reached:
        """What is finished.

        Raises
        ------
        ValueError
            The record is damaged.
        """
        path = self.path / _REACHED
        if not path.is_file():
            return Reached()
        try:
            return Reached(**read_json(path))
        except TypeError as error:
            raise ValueError(f"{path} is damaged ({error}); begin the run anew") from error

    def commit(self, stage: str, number: int = 0, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Record that a stage is finished: all of it, or, if this is stopped on the way, nothing.

        Parameters
        ----------
        stage : str
            Its name, which is also that of a file.
        number : int, default 0
            Of its round.
        tensors : mapping of str to Tensor, optional
            What it has made.
        """
        file = "" if tensors is None else self._write(f"{stage}-{number}", tensors)
        self._record(Reached(stage, number, file))

    def keep(self, training: str, tensors: Mapping[str, Tensor]) -> None:
        """Record the state of a training that is under way.

        Parameters
        ----------
        training : str
            What it is called.
        tensors : mapping of str to Tensor
            Its state.
        """
        before = self.reached
        other = "b" if before.state.startswith("training-a") else "a"  # what is recorded stays until the new one is
        state = self._write(f"training-{other}", tensors)
        self._record(replace(before, training=training, state=state))

    def kept(self, training: str) -> dict[str, Tensor] | None:
        """Return the state of the training that was under way; None if that is not this one.

        Raises
        ------
        ValueError
            The file is missing or damaged.
        """
        reached = self.reached
        return self._read(reached.state) if reached.training == training else None

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        file = f"{name}.safetensors"
        self.path.mkdir(exist_ok=True)
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        replace_file(self.path / file, lambda path: save_file(whole, path))
        return file

    def _record(self, reached: Reached) -> None:
        """Write what is finished, at once, and remove what is no longer needed."""
        self.path.mkdir(exist_ok=True)
        log = self.run / LOG
        reached = replace(reached, log=log.stat().st_size if log.exists() else 0)
        write_json(self.path / _REACHED, vars(reached))
        for path in self.path.glob("*.safetensors"):
            if path.name not in (reached.tensors, reached.state):
                path.unlink()

    def _read(self, name: str) -> dict[str, Tensor]:
        path = self.path / Path(name).name
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}); begin the run anew") from error

    def finished(self, stage: str) -> Finished | None:
        """Return what a stage has made, if it is the last that was finished.

        Raises
        ------
        ValueError
            The file is missing or damaged.
        """
        reached = self.reached
        if reached.stage != stage:
            return None
        return Finished(reached.number, self._read(reached.tensors) if reached.tensors else {})

    def rewind_log(self) -> list[dict[str, Any]]:
        """Take from ``log.jsonl`` what belongs to stages that are not finished; return the records that stay."""
        log, reached = self.run / LOG, self.reached
        kept = log.read_bytes()[: reached.log] if log.exists() else b""
        replace_file(log, lambda path: path.write_bytes(kept))
        return [json.loads(line) for line in kept.decode("utf-8").splitlines()]

    def remove(self) -> None:
        """Remove the folder, of a run that is finished."""
        shutil.rmtree(self.path, ignore_errors=True)


def check_resumable(run: Path) -> None:
    """Refuse a folder that holds no run, or one that is finished.

    Raises
    ------
    ValueError
        It says which.
    """
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run} holds no run to go on with; name the folder of one that was stopped")
    if (run / REPORT).is_file() and not (run / CHECKPOINT).is_dir():
        raise ValueError(f"{run} holds a run that is finished; open its report")
    if not (run / CHECKPOINT / _COMMAND).is_file():
        raise ValueError(f"{run} was stopped before there was anything to go on with; begin the run anew")
