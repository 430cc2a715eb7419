"""What runs the cells of a comparison: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch

from srr_ext.comparison.cells import Failure, Job, gone, run_cell, stop_launched
from srr_ext.config import CompareConfig

Done = Callable[[Job, Failure | None], None]

_PATIENCE = 5.0  # seconds that a process has to end


class Executor(Protocol):
    """Runs cells, several at a time."""

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Run all jobs; call ``done(job, failure)`` in this process as each ends. Whatever ends it early ends them."""


def make_executor(config: CompareConfig) -> Executor:
    """Return what the settings ask for.

    Raises
    ------
    ModuleNotFoundError
        ``executor`` is ray, which is not installed.
    """
    if config.executor == "ray":
        from srr_ext.comparison.ray_executor import RayExecutor

        return RayExecutor(config.jobs, config.threads, gpu=config.device == "cuda" or bool(gpus(config)))
    found = gpus(config)
    jobs = config.jobs or len(found) or max(1, cores() // config.threads)
    if config.launcher and jobs < len(found):  # a cell may be several processes, with a GPU each
        return LocalExecutor([",".join(found[place::jobs]) for place in range(jobs)])
    return LocalExecutor([found[place % len(found)] if found else None for place in range(jobs)])


def gpus(config: CompareConfig) -> list[str]:
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES names them; none if they are not to be used."""
    n = 0 if config.device == "cpu" else torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(number) for number in range(n)])[:n]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """A pool of processes that last, so that each imports torch once.

    Parameters
    ----------
    devices : sequence of str or None
        One process for each: the GPUs it sees, as CUDA_VISIBLE_DEVICES names them; None leaves the process as it is.
    """

    def __init__(self, devices: Sequence[str | None]) -> None:
        self._devices = list(devices)

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """See `Executor`. A process that dies fails its job alone; another one takes its place."""
        waiting = deque(jobs)
        workers = [_Worker(device) for device in self._devices[: len(jobs)]]
        try:
            for worker in workers:
                worker.give(waiting.popleft())
            while busy := {worker.connection: worker for worker in workers if worker.job}:
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]  # there are only connections
                    done(*worker.take())
                    if waiting and not worker.alive:
                        workers.append(worker := _Worker(worker.device))
                    if waiting:
                        worker.give(waiting.popleft())
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A process of the pool, seen from outside."""

    def __init__(self, device: str | None) -> None:
        # Forked processes could not use CUDA, and would inherit torch's threads in an unknown state.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.device, self.alive = device, True
        self.job: Job | None = None
        # No daemon: those may not have processes of their own, which decode images.
        self._process = context.Process(target=_work, args=(theirs, device), daemon=False)
        self._process.start()
        theirs.close()  # the process has the only one, which closes when it dies

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # if it has died, take() will say so
            self.connection.send(job)

    def take(self) -> tuple[Job, Failure | None]:
        """Return the job and how it ended."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return job, self.connection.recv()
        except (EOFError, OSError):
            self._process.join(_PATIENCE)
            self.stop()
            code = self._process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            hint = ", out of memory perhaps" if code == -signal.SIGKILL else ""
            return job, gone(job, f"the process died ({how}{hint})")

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.alive = False
        self.connection.close()
        for end in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                end()
                self._process.join(_PATIENCE)


def _work(connection: Connection, device: str | None) -> None:
    """Do jobs as they come; this is the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # read when CUDA is first used
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(run_cell(job))


def _leave(*_: object) -> None:
    stop_launched()
    os._exit(128 + signal.SIGTERM)


def _leave_with_parent() -> None:
    """End when the parent does, even if it is killed; else its cells would meet those of the next one."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        _leave()
