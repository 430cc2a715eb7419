"""One run of a command that leaves a folder: make the folder, keep the log, and leave nothing half-written."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from srr_ext import artifacts
from srr_ext.artifacts import RunFolder
from srr_ext.cli.parsing import UsageError, as_dict, blame, blame_images
from srr_ext.cli.tables import make_console
from srr_ext.progress import Progress, on
from srr_ext.report import EventLog
from srr_ext.training import Log

_RECORDED = ("srr_ext", "torchvision", "accelerate", "numpy")


class RunConfig(Protocol):
    """What the configuration of such a command has."""

    @property
    def model(self) -> str:
        """Name of the network."""

    @property
    def data(self) -> str:
        """Name of the images."""

    @property
    def output(self) -> Path | None:
        """Where the folder shall be."""


C = TypeVar("C", bound=RunConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """What the steps of a command write to, for one that leaves nothing behind.

    Attributes
    ----------
    progress : Progress
        Shows how far the work is.
    say : callable
        Shows a line about what was decided for the user.
    log : callable, optional
        Receives the record of every epoch.
    shared : dict, optional
        Where runs that follow each other in one process leave what they would all make alike.
    """

    progress: Progress
    say: Callable[[str], None]
    log: Log | None = None
    shared: dict[Hashable, Any] | None = None

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what another run of this process has made under that key, or make it."""
        if self.shared is None:
            return make()
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def keep_dense(self, model: nn.Module) -> None:
        """Save a dense network that has just been trained; here there is no place for it."""


@dataclass(frozen=True, kw_only=True)
class Run(Session):
    """What the steps of a command write to, for one that leaves a folder.

    Attributes
    ----------
    folder : RunFolder
        Receives the results; the log goes to its ``log.jsonl`` and, for TensorBoard, its ``events``.
    origin : dict
        ``command`` and ``environment``, for ``report.json``.
    """

    folder: RunFolder
    origin: dict[str, Any]

    def keep_dense(self, model: nn.Module) -> None:
        """Save a dense network that has just been trained, before anything else can go wrong."""
        artifacts.save_dense(self.folder.path, model)


def on_screen() -> Session:
    """Return the session of a command that leaves nothing behind: all it shows goes to the error stream.

    Returns
    -------
    Session
    """
    console = make_console(stderr=True)
    return Session(on(console), lambda line: console.print(line, markup=False))


def run_in_folder(config: C, arguments: list[str], prog: str, job: Callable[[C, Run], dict[str, Any]]) -> Run:
    """Do a job in a new folder.

    Parameters
    ----------
    config : RunConfig
        Everything the user decides; saved as ``config.json``.
    arguments : list of str
        Of the command.
    prog : str
        Name of the command.
    job : callable
        Does the work and returns the report.

    Returns
    -------
    Run
        Its folder holds the results.

    Raises
    ------
    UsageError
        Something the user can put right. The folder is then gone, unless it holds a trained network.
    KeyboardInterrupt
        With a line that says what the folder holds.
    """
    with blame("--output"):
        folder = RunFolder(config.output, f"{config.model}-{config.data}")
    try:
        run = do_in_folder(folder, config, [*shlex.split(prog), *arguments], on_screen(), job)
    except UsageError as error:
        if any((folder.path / network).exists() for network in (artifacts.DENSE, artifacts.WEIGHTS)):
            raise UsageError("", f"{error}; {what_is_left(folder.path)}") from error
        folder.discard()
        raise
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(what_is_left(folder.path)) from stop
    return run


def do_in_folder(
    folder: RunFolder, config: C, words: list[str], session: Session, job: Callable[[C, Run], dict[str, Any]]
) -> Run:
    """Do a job in a folder that is there, without a word about what a failure leaves in it.

    Parameters
    ----------
    folder : RunFolder
        New.
    config : RunConfig
        Everything the user decides; saved as ``config.json``.
    words : list of str
        The command, for the record.
    session : Session
        Shows how far the work is.
    job : callable
        Does the work and returns the report.

    Returns
    -------
    Run

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    origin = {"command": words, "environment": environment()}
    with blame_images(), blame_disk(folder.path), EventLog(folder.path) as events:

        def log(record: dict[str, Any]) -> None:
            with blame_disk(folder.path):  # here, as training blames its own flags for what it meets
                folder.log(record)
                events.log(record)

        folder.write(artifacts.CONFIG, as_dict(config) | {"output": None})  # repeating a run needs a new folder
        run = Run(session.progress, session.say, log, session.shared, folder=folder, origin=origin)
        events.summary(job(config, run))
    return run


@contextmanager
def blame_disk(folder: Path) -> Iterator[None]:
    """Turn a file that cannot be written, on a full disk say, into a :class:`UsageError` of ``--output``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UsageError("--output", f"{folder} cannot be written ({error})") from error


def what_is_left(folder: Path) -> str:
    """Say what a run that was stopped leaves behind, and what to do with it.

    Parameters
    ----------
    folder : Path
        Of the run.

    Returns
    -------
    str
    """
    names = sorted(path.name for path in folder.iterdir())
    advice = "delete it to use the name again"
    if artifacts.WEIGHTS in names:
        advice = f"the pruned network is whole, srr evaluate --run {shlex.quote(str(folder))} measures it"
    elif artifacts.DENSE in names:
        advice = f"--weights {shlex.quote(str(folder / artifacts.DENSE))} with a new --output skips the training"
    return f"{folder} holds {', '.join(names)}; {advice}"


def environment() -> dict[str, Any]:
    """Return what a result may depend on besides its configuration.

    Returns
    -------
    dict
        Versions, the processor's architecture, the number of threads, and the GPU's name (None without one).
    """
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # which, unlike the package's own version, names the CUDA release
        **{name: version(name) for name in _RECORDED},
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
