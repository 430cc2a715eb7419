"""How far a run has come, in its folder while it runs: what it needs to go on after it was stopped at any moment."""

from __future__ import annotations

import hashlib
import os
import reprlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from srr_ext.artifacts import CHECKPOINT, CONFIG, EVENTS, LOG, REPORT
from srr_ext.files import DamagedFile, parse_json, read_bytes, read_json, replace_file, write_json
from srr_ext.processes import processes

_REACHED, _COMMAND, _GIVEN, _LOCK = "reached.json", "command.json", "given.json", "lock"


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

    def __post_init__(self) -> None:
        """Check the kinds of the values, which come from a file."""
        for name, value in vars(self).items():
            right = type(value) is int and value >= 0 if name in ("number", "log") else type(value) is str
            if not right:
                raise TypeError(f"{name} is {reprlib.repr(value)}")


class Stored(dict[str, Tensor]):
    """The tensors of a file, which says so itself where one is missing.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(load_file(path))
        except (OSError, SafetensorError) as error:
            raise DamagedFile(f"{path} cannot be read ({error}); begin the run anew") from error
        self.path = path

    def __missing__(self, name: str) -> Tensor:
        """Refuse a file that lacks a tensor."""
        raise DamagedFile(f"{self.path} lacks {name}; begin the run anew")


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
    def held(self, command: list[str] | None = None, files: Iterable[Path] = ()) -> Iterator[None]:
        """Keep other processes out of the run for a while.

        Parameters
        ----------
        command : list of str, optional
            How the run was begun, for the record; None for one that goes on.
        files : iterable of Path, default ()
            What it was given to read, beside images; see `check_files`.

        Raises
        ------
        ValueError
            Another process is at work in it.
        """
        import fcntl

        self.path.mkdir(exist_ok=True)
        with open(self.path / _LOCK, "rb", opener=lock_file) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"another process is at work in {self.run}; wait for it, or stop it") from error
            if command is not None:
                digests = {str(path): _digest(path) for path in files if path.is_file()}
                given = {"folder": str(Path.cwd()), "files": digests, "processes": processes().count}
                write_json(self.path / _GIVEN, given)
                write_json(self.path / _COMMAND, command)
            yield

    def check_files(self) -> None:
        """Refuse to go on if a file that the run was given, weights say, is no longer what it was.

        Raises
        ------
        ValueError
            It is missing here or holds something else; or the record is damaged.
        """
        given = read_json(self.path / _GIVEN)
        try:
            folder, files = str(given["folder"]), {str(path): str(digest) for path, digest in given["files"].items()}
            count = int(given.get("processes", 1))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"{self.path / _GIVEN} is damaged; begin the run anew") from error
        if count != (here := processes().count):
            raise ValueError(
                f"the run was begun with {count} processes, but these are {here}; start {count}, with which it ends "
                "as if it had not been stopped"
            )
        for path, digest in files.items():
            if not Path(path).is_file():
                raise ValueError(f"{path}, which the run was given in {folder}, is not there; go on in that folder")
            if _digest(Path(path)) != digest:
                raise ValueError(f"{path} has changed since the run was begun; put it back, or begin the run anew")

    @property
    def command(self) -> list[str]:
        """How the run was begun."""
        words = read_json(self.path / _COMMAND)
        if not isinstance(words, list):
            raise DamagedFile(f"{self.path / _COMMAND} is damaged; begin the run anew")
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
            raise DamagedFile(f"{path} is damaged ({error}); begin the run anew") from error

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

    def kept(self, training: str, reached: Reached | None = None) -> dict[str, Tensor] | None:
        """Return the state of the training that was under way; None if that is not this one.

        Parameters
        ----------
        training : str
            What it is called.
        reached : Reached, optional
            What is finished, where that is known.

        Raises
        ------
        ValueError
            The file is missing or damaged.
        """
        reached = reached or self.reached
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
        return Stored(self.path / Path(name).name)

    def finished(self, stage: str, reached: Reached | None = None) -> Finished | None:
        """Return what a stage has made, if it is the last that was finished.

        Parameters
        ----------
        stage : str
            Its name.
        reached : Reached, optional
            What is finished, where that is known.

        Raises
        ------
        ValueError
            The file is missing or damaged.
        """
        reached = reached or self.reached
        if reached.stage != stage:
            return None
        return Finished(reached.number, self._read(reached.tensors) if reached.tensors else {})

    def rewind_log(self) -> list[dict[str, Any]]:
        """Take from ``log.jsonl`` what belongs to stages that are not finished; return the records that stay."""
        log, reached = self.run / LOG, self.reached
        kept = read_bytes(log)[: reached.log] if log.exists() else b""
        try:
            records = [parse_json(line) for line in kept.decode("utf-8").splitlines()]
            if not all(_is_record(record) for record in records):
                raise ValueError("a line is no record of an epoch")
        except ValueError as error:
            raise DamagedFile(f"{log} is damaged ({error}); begin the run anew") from error
        replace_file(log, lambda path: path.write_bytes(kept))
        return records

    def remove(self) -> None:
        """Remove the folder, of a run that is finished."""
        shutil.rmtree(self.path, ignore_errors=True)


def lock_file(path: str, flags: int) -> int:
    """Open a file without emptying it, or following a link to one elsewhere."""
    return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("stage"), str) and isinstance(value.get("epoch"), int)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    for name in (CHECKPOINT, EVENTS, LOG):
        if (run / name).is_symlink():
            raise ValueError(f"{run / name} is a link, and what a run writes stays in its folder; put the files there")
