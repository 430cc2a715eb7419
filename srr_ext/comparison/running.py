"""The steps of a comparison: check all of it, train the dense network, run the cells, take the times."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from srr_ext import artifacts
from srr_ext.artifacts import RunFolder
from srr_ext.checkpoints import lock_file
from srr_ext.cli import steps
from srr_ext.cli.parsing import UsageError, as_dict, blame, flag_of, parse
from srr_ext.cli.running import Session, blame_disk, check_code, do_in_folder, terminable
from srr_ext.comparison import rewinding
from srr_ext.comparison.cells import CELLS, COMMANDS, FAILED, Failure, Job, discard_all
from srr_ext.comparison.executors import make_executor
from srr_ext.comparison.grid import Cell, make_cells
from srr_ext.comparison.kinds import KINDS
from srr_ext.config import CompareConfig, Training, TrainRunConfig
from srr_ext.files import read_json, write_json
from srr_ext.latency import measure_latency
from srr_ext.train import train

LATENCY = "latency.json"
_DENSE = "dense"
_LOCK = ".lock"
_ASIDE = ".aside"
_LATENCY_BATCH = 64
_SEEDS = 1 << 63  # what torch's generators take
_LATENCY_SECONDS = 1.0  # for a network beside the dense one

# Settings that do not change what a cell finds, and those that may grow.
_FREE = ("output", "resume", "executor", "jobs", "download", "workers")
_GROWING = ("methods", "keep", "seeds", "controls")


def default_folder(config: CompareConfig) -> Path:
    """Return where a comparison is made if nothing else is said."""
    name = f"compare-{config.model}-{config.data}"
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def resumed(config: CompareConfig, prog: str) -> CompareConfig:
    """Return the settings of the comparison that ``--resume`` names.

    Raises
    ------
    UsageError
        There is none, or the flag does not go alone.
    """
    assert config.resume is not None
    if replace(config, resume=None, model=CompareConfig.model) != CompareConfig():
        raise UsageError("--resume", "goes alone: the settings are those of the comparison")
    settings = config.resume / artifacts.CONFIG
    if not settings.is_file():
        raise UsageError("--resume", f"{config.resume} holds no comparison to go on with")
    with blame("--resume"):
        found = parse(CompareConfig, ["--config", str(settings)], prog)
    check_code(found.model, config.model)
    return replace(found, output=config.resume)


def check(config: CompareConfig, folder: Path, session: Session) -> None:
    """Refuse all that can be refused before any work: settings, methods, another comparison's folder, targets.

    Raises
    ------
    UsageError
        It names the flag.
    """
    steps.check(config)
    limits = {
        "methods": (bool(config.methods), "at least one"),
        "keep": (bool(config.keep) and all(0 < keep <= 1 for keep in config.keep), "shares in (0, 1]"),
        "seeds": (bool(config.seeds) and all(0 <= seed < _SEEDS for seed in config.seeds), "at least 0"),
        "jobs": (config.jobs is None or config.jobs >= 1, "at least 1"),
        "threads": (config.threads >= 1, "at least 1"),
    }
    for name, (holds, wanted) in limits.items():
        value = getattr(config, name)
        if not holds:
            raise UsageError(flag_of(name), f"must be {wanted}, but is {_words(value) or 'empty'}")
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise UsageError(flag_of(name), f"names something twice: {_words(value)}")
    with blame("--executor"):
        try:
            make_executor(config)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
    with blame("--methods", CompareConfig):
        cells = make_cells(config, config.weights)
        for cell in cells:
            _check_cell(cell)
    other = next((cell.method.text for cell in cells if cell.method.kind not in COMMANDS), None)
    if config.launcher and other is not None:
        raise UsageError("--launcher", f"starts srr prune, which does not know {other!r}; leave one of the two out")
    check_folder(config, folder)
    rewinding.check(config, cells, folder / _DENSE)
    if any(not (folder / CELLS / cell.name).exists() for cell in cells):
        rehearse(config, cells, session)


def rehearse(config: CompareConfig, cells: list[Cell], session: Session) -> None:
    """Refuse images and networks that do not fit each other, and targets out of reach for any method."""
    images = steps.load_data(config, session)
    network = steps.make_model(config, images, session).eval()
    rewinding.rehearse(config, cells, network, images)
    seen = set()
    for cell in cells:
        if (options := _what_bounds(cell)) in seen:
            continue
        seen.add(options)
        try:
            KINDS[cell.method.kind].rehearse(cell.config, network, images)
        except UsageError as error:
            text = str(error).replace(f"--keep-{config.quantity}: ", "").replace("--compression: ", "compression ")
            raise UsageError("--keep", f"{cell.method.text!r} at {cell.keep}: {text}") from error


def _what_bounds(cell: Cell) -> tuple[Any, ...]:
    """Return what it depends on whether a target is within reach."""
    return cell.keep, cell.method.kind, KINDS[cell.method.kind].reach(cell.config)


def _check_cell(cell: Cell) -> None:
    try:
        KINDS[cell.method.kind].check(cell.config)
    except UsageError as error:
        raise ValueError(f"{cell.method.text!r}: {error}") from error


def check_folder(config: CompareConfig, folder: Path) -> None:
    """Refuse a folder that holds something else, or a comparison whose cells would not be those of these settings.

    Raises
    ------
    UsageError
        The first setting that differs is named.
    """
    known = folder / artifacts.CONFIG
    if not known.is_file():
        if folder.exists() and (not folder.is_dir() or any(path.name != _LOCK for path in folder.iterdir())):
            raise UsageError("--output", f"{folder} is in use and holds no comparison; name a new or empty folder")
        return
    with blame("--output"):
        before = read_json(known)
    if not isinstance(before, dict) or "methods" not in before:
        raise UsageError("--output", f"{folder} is in use and holds no comparison; name a new or empty folder")
    now, default = as_dict(config), as_dict(CompareConfig())
    if any(type(before.get(name, default[name])) is not type(default[name]) for name in _GROWING):
        raise UsageError("--output", f"{folder} is in use and holds no comparison; name a new or empty folder")
    for name in _GROWING:
        old, new = before.get(name, default[name]), now[name]
        if name == "controls":
            lost = ["controls"] if old and not new else []
        else:
            lost = [value for value in old if value not in new]
        if name == "methods" and not lost and old[0] != new[0]:
            lost = [f"{old[0]} in the first place"]
        if lost:
            raise UsageError(flag_of(name), f"lacks {_words(lost)}, with which {folder} was begun; {_ADVICE}")
    for name, (old, new) in _differences(before, now, default):
        raise UsageError(flag_of(name), f"is {new}, but {folder} was begun with {old}; {_ADVICE}")


_ADVICE = "methods, shares and seeds may be added, nothing else changed; else name a new folder"


def _differences(before: Any, now: Any, default: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the settings that differ and may not, by their dotted names."""
    for name, new in now.items():
        if prefix or name not in (*_FREE, *_GROWING):
            old = before.get(name, default[name])
            if isinstance(new, dict) and isinstance(old, dict):
                yield from _differences(old, new, default[name], f"{prefix}{name}.")
            elif old != new:
                yield f"{prefix}{name}", (old, new)


@contextmanager
def opened(folder: Path, config: CompareConfig) -> Iterator[None]:
    """Hold the folder for this process alone; the settings are in it.

    Raises
    ------
    UsageError
        Another process holds it, or it cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / _LOCK, "rb", opener=lock_file)  # noqa: SIM115  # closed below
    except OSError as error:
        raise UsageError("--output", f"{folder} cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError("--output", f"another process is at work in {folder}; wait for it, or stop it") from error
        check_folder(config, folder)  # which may have been begun since
        write_json(folder / artifacts.CONFIG, as_dict(config) | {"output": None})
        (folder / CELLS).mkdir(exist_ok=True)
        discard_all(folder)
        yield


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the work with a line that says how to go on."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt as error:
        n = sum(not path.name.startswith(".") for path in (folder / CELLS).iterdir())
        raise KeyboardInterrupt(f"{folder} holds {n} finished cells; the same command goes on") from error


def dense_network(config: CompareConfig, folder: Path, session: Session) -> str:
    """Return the checkpoint of the dense network, trained in the folder unless one was given."""
    if config.weights is not None:
        return config.weights
    final, partial = folder / _DENSE, folder / f".{_DENSE}.partial"
    if not final.exists():
        shutil.rmtree(partial, ignore_errors=True)
        shared = {entry.name: getattr(config, entry.name) for entry in fields(Training)}
        shared["snapshots"] = rewinding.moments(make_cells(config, None))
        words = ["srr", "train", "--config", str(final / artifacts.CONFIG)]
        before = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            do_in_folder(RunFolder(partial, _DENSE), TrainRunConfig(**shared), words, _mute(session), train)
        finally:
            torch.set_num_threads(before)
        partial.rename(final)
    return str(final / artifacts.DENSE)


def run_cells(config: CompareConfig, folder: Path, weights: str, session: Session) -> int:
    """Run the cells that are not finished; return how many failed."""
    cells = make_cells(config, weights)
    _set_aside(folder, {cell.name for cell in cells})
    jobs = [_job(config, folder, cell) for cell in cells if not (folder / CELLS / cell.name).exists()]
    if len(jobs) < len(cells):
        session.say(f"{len(cells) - len(jobs)} of {len(cells)} cells are finished already")
    failed = 0
    if not jobs:
        return failed
    with session.progress.stage("cells", len(jobs)) as step:

        def done(job: Job, failure: Failure | None) -> None:
            nonlocal failed
            note = folder / FAILED / f"{job.name}.json"
            if failure is None:
                note.unlink(missing_ok=True)
            else:
                failed += 1
                with blame_disk(folder):
                    note.parent.mkdir(exist_ok=True)
                    write_json(note, job.record | {"message": failure.message, "output": failure.output})
            step(1, f"{failed} failed" if failed else job.name)

        with blame("--executor", CompareConfig):
            make_executor(config).run(jobs, done)
    return failed


def _set_aside(folder: Path, wanted: set[str]) -> None:
    """Hide finished cells that the grid no longer has, a control that is now a method, and show those it has again."""
    for path in list((folder / CELLS).iterdir()):
        if path.name.endswith(_ASIDE) and (name := path.name[1 : -len(_ASIDE)]) in wanted:
            path.rename(path.with_name(name))
        elif not path.name.startswith(".") and path.name not in wanted:
            path.rename(path.with_name(f".{path.name}{_ASIDE}"))


def _job(config: CompareConfig, folder: Path, cell: Cell) -> Job:
    record = cell.record(config.quantity)
    return Job(cell.name, folder, cell.config, record, cell.method.kind, config.threads, config.launcher)


def measure_latencies(config: CompareConfig, folder: Path, weights: str, session: Session) -> None:
    """Measure each method and share once, beside the dense network, while nothing else of this comparison runs."""
    path = folder / LATENCY
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    cells = [cell for cell in make_cells(config, weights) if cell.seed == config.seeds[0] and cell.name not in known]
    cells = [cell for cell in cells if (folder / CELLS / cell.name).is_dir()]
    if not cells:
        return
    images = steps.load_data(cells[0].config, session)
    dense = steps.make_model(cells[0].config, images, _mute(session)).eval()
    device = steps.check_device(config)
    batch = next(iter(images.batches("test", _LATENCY_BATCH)))[0].to(device)
    with steps.threads_for(dense, images), session.progress.stage("latency", len(cells)) as step:
        for cell in cells:
            with blame("--output"):
                small = KINDS[cell.method.kind].load(folder / CELLS / cell.name, dense.cpu())
            times = measure_latency([dense.to(device), small.to(device)], batch, seconds=_LATENCY_SECONDS)
            known[cell.name] = {
                "dense_ms": times[0],
                "pruned_ms": times[1],
                "batch_size": len(batch),
                "device": device.type,
                "threads": torch.get_num_threads(),
            }
            write_json(path, known)
            step(1, cell.name)


def _mute(session: Session) -> Session:
    """Return the session without remarks, which the first look at the network has made."""
    return replace(session, say=lambda line: None)


def _words(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, (tuple, list)) else str(values)
