"""One run of a command that leaves a folder: make the folder, keep the log, and leave nothing half-written."""

from __future__ import annotations

import platform
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from srr_ext import artifacts
from srr_ext.artifacts import RunFolder
from srr_ext.checkpoints import Checkpoint, Finished, Reached, check_resumable
from srr_ext.cli.parsing import UsageError, as_dict, blame, blame_images, parse
from srr_ext.cli.tables import make_console
from srr_ext.files import read_json, remove_temporary
from srr_ext.processes import ALONE, Disagreement, Processes, is_lost, processes
from srr_ext.progress import Progress, on, silent
from srr_ext.report import EventLog
from srr_ext.training import Keeper, Log

SECONDS_BETWEEN_STATES = 60.0  # what a stop may cost, beside the epoch that it falls in

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

    @property
    def resume(self) -> Path | None:
        """Which folder to go on in instead."""


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
    seconds : float, default 2.0
        What every measurement of latency may take. A comparison, which measures again when all is quiet, takes less.
    processes : Processes, default this one alone
        Who does the same job together with this one.
    """

    progress: Progress
    say: Callable[[str], None]
    log: Log | None = None
    shared: dict[Hashable, Any] | None = None
    seconds: float = 2.0
    processes: Processes = ALONE

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what another run of this process has made under that key, or make it."""
        if self.shared is None:
            return make()
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def keep_dense(self, model: nn.Module, snapshots: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Save a dense network that has just been trained, and snapshots of it; here there is no place for them."""

    def kept_dense(self) -> Path | None:
        """Return the file of the dense network that this run trained before it was stopped, if it did."""
        return None

    def keeper(self, training: str) -> Keeper | None:
        """Return where a training leaves what it needs to go on after a stop; here there is no place for it."""
        return None


@dataclass(frozen=True, kw_only=True)
class Run(Session):
    """What the steps of a command write to, for one that leaves a folder.

    Attributes
    ----------
    folder : RunFolder
        Receives the results; the log goes to its ``log.jsonl`` and, for TensorBoard, its ``events``.
    origin : dict
        ``command`` and ``environment``, for ``report.json``.
    checkpoint : Checkpoint, optional
        Where a run that can go on after a stop records what it has finished.
    """

    folder: RunFolder
    origin: dict[str, Any]
    checkpoint: Checkpoint | None = None

    def keep_dense(self, model: nn.Module, snapshots: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Save a dense network that has just been trained, before anything else can go wrong."""
        self.write(lambda folder: artifacts.save_dense(folder, model, snapshots))
        self.commit("dense")

    def kept_dense(self) -> Path | None:
        """Return the file of the dense network that this run trained before it was stopped, if it did."""
        reached = self.reached.stage
        path = self.folder.path / artifacts.DENSE
        if reached and not path.is_file():
            raise UsageError("--resume", f"{path} is missing; put it back, or begin the run anew")
        return path if reached else None

    def keeper(self, training: str) -> Keeper | None:
        """Return where a training leaves what it needs to go on after a stop, if this run can go on."""
        return None if self.checkpoint is None else _EveryMinute(self, self.checkpoint, training)

    def finished(self, stage: str) -> Finished | None:
        """Return what a stage has made that this run finished before it was stopped; None if it was not the last."""
        if self.checkpoint is None:
            return None
        with blame("--resume"):
            return self.checkpoint.finished(stage, self.reached)

    def commit(self, stage: str, number: int = 0, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Record that a stage is finished, if this run can go on after a stop."""
        if (checkpoint := self.checkpoint) is not None:
            self.write(lambda _: checkpoint.commit(stage, number, tensors))

    def write(self, put: Callable[[Path], object]) -> None:
        """Let ``put`` write into the folder, in the first of several processes, for which the others wait."""
        if self.processes.first:
            with blame_disk(self.folder.path):
                put(self.folder.path)
        self.processes.wait()

    @property
    def reached(self) -> Reached:
        """What is finished, for all processes what the first finds, which may go on to write."""
        if self.checkpoint is None:
            return Reached()
        checkpoint = self.checkpoint
        with blame("--resume"):
            return Reached(**self.processes.from_first(lambda: vars(checkpoint.reached)))


class _EveryMinute:
    """Keeps the state of a training, but not of every epoch where these are short."""

    def __init__(self, run: Run, checkpoint: Checkpoint, training: str) -> None:
        self._run, self._checkpoint, self._training = run, checkpoint, training
        self._saved = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        with blame("--resume"):
            return self._checkpoint.kept(self._training, self._run.reached)

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        if self._run.processes.first and time.monotonic() - self._saved >= SECONDS_BETWEEN_STATES:
            with blame_disk(self._run.folder.path):
                self._checkpoint.keep(self._training, tensors)
            self._saved = time.monotonic()


def on_screen() -> Session:
    """Return the session of a command that leaves nothing behind: all it shows goes to the error stream.

    Returns
    -------
    Session
    """
    console = make_console(stderr=True)
    return Session(on(console), lambda line: console.print(line, markup=False), processes=processes())


def run_or_resume(
    config: C,
    arguments: list[str],
    prog: str,
    check: Callable[[C], None],
    job: Callable[[C, Run], dict[str, Any]],
) -> Run:
    """Do a job in a new folder, or go on with one that was stopped, as ``--resume`` says.

    Parameters
    ----------
    config : RunConfig
        Everything the user decides.
    arguments : list of str
        Of the command.
    prog : str
        Name of the command.
    check : callable
        Refuses settings that cannot be, before any work.
    job : callable
        Does the work and returns the report.

    Returns
    -------
    Run
        Its folder holds the results.

    Raises
    ------
    UsageError, KeyboardInterrupt
        See `run_in_folder` and `resume_in_folder`.
    """
    if config.resume is None:
        check(config)
        return run_in_folder(config, arguments, prog, job) if processes().first else follow(config, prog, job)
    default = type(config)()
    if replace(config, resume=None, model=default.model) != default:  # type: ignore[type-var]  # a dataclass
        raise UsageError("--resume", "goes alone: the settings are those of the run")
    if not processes().first:
        return follow(config, prog, job)
    return resume_in_folder(type(config), config.resume, prog, job, config.model)


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
    words = [*shlex.split(prog), *arguments]
    checkpoint = Checkpoint(folder.path)
    try:
        with blame_disk(folder.path):
            folder.write(artifacts.CONFIG, recorded(config))  # first, as nothing can go on without it
        with blame_disk(folder.path), checkpoint.held(words, given_files(config)), terminable():
            return do_in_folder(folder, config, words, on_screen(), job, checkpoint)
    except UsageError as error:
        if worth_keeping(folder.path):
            raise UsageError("", f"{error}; {what_is_left(folder.path, prog, failed=True)}") from error
        folder.discard()
        raise
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*stop.args, what_is_left(folder.path, prog)) from stop


def follow(config: C, prog: str, job: Callable[[C, Run], dict[str, Any]]) -> Run:
    """Do the job of the first of several processes together with it; that one alone writes and speaks.

    Parameters
    ----------
    config : RunConfig
        Everything the user decides; of a run that goes on, where it is.
    prog : str
        Name of the command.
    job : callable
        Does the work.

    Returns
    -------
    Run
    """
    here = processes()
    with terminable(), blame_images(), blame_others(here):
        path = Path(here.from_first(str))  # when the first has made the folder, or looked into it
        if config.resume is not None:
            with blame("--resume"):
                config = parse(type(config), ["--config", str(path / artifacts.CONFIG)], prog)
        folder, checkpoint = RunFolder(path, "", resume=True), Checkpoint(path)
        run = Run(silent(), lambda line: None, processes=here, folder=folder, origin={}, checkpoint=checkpoint)
        job(config, run)
    return run


def recorded(config: Any) -> dict[str, Any]:
    """Return the settings as ``config.json`` has them, without the folder: to repeat a run needs a new one."""
    return as_dict(config) | {"output": None}


def given_files(config: Any) -> list[Path]:
    """Return the files that settings name: weights, a plan, masks."""
    names = ("weights", "rewind_weights", "plan", "masks")
    return [Path(value) for name in names if (value := getattr(config, name, None)) is not None]


def worth_keeping(folder: Path) -> bool:
    """Whether a run has trained something before an error ended it."""
    if any((folder / network).exists() for network in (artifacts.DENSE, artifacts.WEIGHTS)):
        return True
    try:
        reached = Checkpoint(folder).reached
    except ValueError:
        return True  # there is something, if damaged
    return bool(reached.stage or reached.training)


def check_code(model: str, code: str) -> None:
    """Refuse settings of a folder by which a module would be imported that the command line does not name.

    Raises
    ------
    UsageError
        It says what to add.
    """
    if artifacts.is_code(model) and model != code:
        raise UsageError(
            "--resume",
            f"code makes the network of this run, {model!r}; if you trust it, add --model {shlex.quote(model)}",
        )


def code_flag(folder: Path) -> str:
    """Return the flag that names the code which makes the network of a folder; empty where none does."""
    try:
        model = str(read_json(folder / artifacts.CONFIG)["model"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f" --model {shlex.quote(model)}" if artifacts.is_code(model) else ""


def resume_in_folder(
    config: type[C], path: Path, prog: str, job: Callable[[C, Run], dict[str, Any]], code: str = ""
) -> Run:
    """Go on with a job of `run_in_folder` that was stopped, at whatever moment, from the last stage that it finished.

    Parameters
    ----------
    config : type
        The dataclass of its flags; their values are read from the folder.
    path : Path
        The run folder.
    prog : str
        Name of the command.
    job : callable
        Does the work and returns the report. It finds what is finished in ``run.checkpoint``.
    code : str, default ""
        The ``package.module:function`` that makes its network, where one does; no folder chooses what is imported.

    Returns
    -------
    Run
        Its folder holds the results.

    Raises
    ------
    UsageError
        No such run, it is finished, another process is at work in it, or something the user can put right.
    KeyboardInterrupt
        With a line that says what the folder holds.
    """
    checkpoint = Checkpoint(path)
    with blame("--resume"):
        check_resumable(path)
    try:
        with ExitStack() as stack:
            with blame("--resume"):
                stack.enter_context(checkpoint.held())
                checkpoint.check_files()
                settings = parse(config, ["--config", str(path / artifacts.CONFIG)], prog)
                check_code(settings.model, code)
                records, words = checkpoint.rewind_log(), checkpoint.command
                for place in (path, checkpoint.path):
                    remove_temporary(place)
                shutil.rmtree(path / artifacts.EVENTS, ignore_errors=True)  # written anew from the log
            stack.enter_context(terminable())
            folder = RunFolder(path, "", resume=True)
            return do_in_folder(folder, settings, words, on_screen(), job, checkpoint, records)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*stop.args, what_is_left(path, prog)) from stop


@contextmanager
def blame_others(here: Processes) -> Iterator[None]:
    """Turn what the other processes have done to this one into a stop, or a line for the user."""
    try:
        yield
    except Disagreement as error:
        raise UsageError("", str(error)) from error
    except RuntimeError as error:
        if here.count > 1 and is_lost(error):
            raise KeyboardInterrupt("another process of the run has gone") from error
        raise


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, end the work as Ctrl-C does."""
    stops = [signal.SIGTERM]
    if together := processes().count > 1:
        stops.append(signal.SIGINT)  # torchrun passes on each, and the terminal, too: one of them counts

    def stop(*_: object) -> None:
        for kind in stops if together else ():
            signal.signal(kind, signal.SIG_IGN)
        raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()  # others may not set handlers
    before = {kind: signal.signal(kind, stop) for kind in stops} if mine else {}
    try:
        yield
    finally:
        for kind, handler in before.items():
            if signal.getsignal(kind) is stop:
                signal.signal(kind, handler)


def do_in_folder(
    folder: RunFolder,
    config: C,
    words: list[str],
    session: Session,
    job: Callable[[C, Run], dict[str, Any]],
    checkpoint: Checkpoint | None = None,
    records: Iterable[dict[str, Any]] = (),
) -> Run:
    """Do a job in a folder that is there, without a word about what a failure leaves in it.

    Parameters
    ----------
    folder : RunFolder
        New, or that of a run which goes on.
    config : RunConfig
        Everything the user decides; saved as ``config.json``.
    words : list of str
        The command, for the record.
    session : Session
        Shows how far the work is.
    job : callable
        Does the work and returns the report.
    checkpoint : Checkpoint, optional
        Where what is finished is recorded; removed in the end.
    records : iterable of dict, default ()
        What the log holds already.

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

        for record in records:
            events.log(record)
        folder.write(artifacts.CONFIG, recorded(config))
        here = {"folder": folder, "origin": origin, "checkpoint": checkpoint}
        run = Run(**vars(session) | {"log": log} | here)
        with blame_others(run.processes):
            run.processes.from_first(lambda: str(folder.path))  # to those that follow
            events.summary(job(config, run))
    if checkpoint is not None:
        checkpoint.remove()
    return run


@contextmanager
def blame_disk(folder: Path) -> Iterator[None]:
    """Turn a file that cannot be written, on a full disk say, into a :class:`UsageError` of ``--output``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UsageError("--output", f"{folder} cannot be written ({error})") from error


def what_is_left(folder: Path, prog: str, *, failed: bool = False) -> str:
    """Say what a run that did not come to its end leaves behind, and what to do with it.

    Parameters
    ----------
    folder : Path
        Of the run.
    prog : str
        Name of the command.
    failed : bool, default False
        Whether an error ended it, which may come again, and not somebody who wanted it to end.

    Returns
    -------
    str
    """
    names = sorted(path.name for path in folder.iterdir())
    code = code_flag(folder)
    count = processes().count
    again = f"{prog} --resume {shlex.quote(str(folder))}{code} goes on"
    again += f", started as {count} processes again" if count > 1 else ""
    advice = [again] if {artifacts.CHECKPOINT, artifacts.CONFIG} <= {*names} else ["delete it to use the name again"]
    if failed and artifacts.WEIGHTS in names:
        advice.insert(0, f"the network is whole, srr evaluate --run {shlex.quote(str(folder))}{code} measures it")
    elif failed and artifacts.DENSE in names:
        dense = shlex.quote(str(folder / artifacts.DENSE))
        advice.insert(0, f"--weights {dense} with a new --output skips the training")
    return f"{folder} holds {', '.join(names)}; {'; '.join(advice)}"


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
        "processes": processes().count,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
