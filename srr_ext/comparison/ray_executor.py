"""Cells as tasks of a Ray cluster, on one machine or many that share a file system."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from srr_ext.comparison.cells import Failure, Job, gone, run_cell
from srr_ext.comparison.executors import Done


class RayExecutor:
    """Tasks of Ray: of the cluster that RAY_ADDRESS names, of one that runs on this machine, or of a new one here.

    The machines of a cluster need the same installation and must see the folder of the comparison, the checkpoint and
    the images under the same paths.

    Parameters
    ----------
    jobs : int or None
        Tasks at the same time; None for as many as the cluster takes.
    threads : int
        Cores of a task.
    gpu : bool
        Whether a task needs a GPU.

    Raises
    ------
    ModuleNotFoundError
        Ray is not installed.
    """

    def __init__(self, jobs: int | None, threads: int, *, gpu: bool) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("ray is not installed; pip install 'srr_ext[ray]', or use local") from error
        self._ray: Any = ray
        self._jobs, self._threads, self._gpu = jobs, threads, gpu

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """See `Executor`."""
        ray = self._ray
        ours = not ray.is_initialized()
        if ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # the user has not asked to report to anybody
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
        if (most := ray.cluster_resources().get("CPU", 0)) < self._threads:
            raise ValueError(f"threads must be at most {most:g}, the cores of the cluster, but is {self._threads}")
        options = {"num_cpus": self._threads, "num_gpus": int(self._gpu), "max_retries": 0}
        task = ray.remote(**options)(_do)
        waiting = deque(jobs)
        busy: dict[Any, Job] = {}
        try:
            while waiting or busy:
                while waiting and (self._jobs is None or len(busy) < self._jobs):
                    job = waiting.popleft()
                    busy[task.remote(job, os.getcwd(), sys.path)] = job
                ready, _ = ray.wait(list(busy), num_returns=1)
                for reference in ready:
                    job = busy.pop(reference)
                    done(job, self._result(reference, job))
        finally:
            for reference in busy:
                ray.cancel(reference, force=True)
            if ours:
                ray.shutdown()

    def _result(self, reference: Any, job: Job) -> Failure | None:
        """Return how a task ended."""
        try:
            found: Failure | None = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return gone(job, f"the task died ({' '.join(str(error).split())})")
        return found


def _do(job: Job, folder: str, path: list[str]) -> Failure | None:
    """Run a cell where the comparison was started, with the modules that were there; this is the task."""
    os.chdir(folder)
    sys.path[:] = path + [entry for entry in sys.path if entry not in path]
    return run_cell(job)
