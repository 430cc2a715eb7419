"""Do random jobs for a long time, and see that none fails and that the memory does not grow.

    make soak MINUTES=30       # or: python python_tests/soak.py --minutes 30 --output benchmarks/results/soak-cpu.json
    make soak SEED=12345       # repeat one job, with its traceback

A job is a random network under a random pruning method, cut and compared with an oracle; arbitrary channels of a module
of the zoo; ops beside their reference; a network saved and loaded, trained on, or written as TorchScript
(`soak_jobs.py`). Its seed says all about it. Lines tell how far the soak is; a summary is written in the end, or when
it is stopped. The command fails if a job fails, if memory grows, or if nothing was done.
"""

from __future__ import annotations

import os

# PyTorch's convolutions keep a thousand compiled kernels, one for each shape that they have met; they would fill the
# memory for the whole soak. It is read once, when the first of them is compiled.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import argparse
import ctypes
import gc
import platform
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import soak_jobs
import torch

import srr_ext
from srr_ext.files import write_json

EVERY = 25  # jobs between samples of the memory
FEWEST = 40  # samples that a slope needs: a thousand jobs
# Share of the samples that is left out: whichever module, shape and method is met for the first time leaves something
# that stays, a compiled kernel, an imported module, room in the allocator; the same jobs again leave nothing.
WARM_UP = 1 / 2
# Most that memory may grow, in percent of itself per thousand jobs. A network that every job keeps gives 10 % and more,
# a tensor of 1000 floats 1 %. Less cannot be told from the tail of the warm-up in half an hour.
LIMIT = 1.0
MOST_REFUSED = 1 / 2  # share of the jobs that may be refused; more would show nothing
SAMPLES_KEPT = 200  # in the summary


@dataclass
class Soak:
    """What has been done so far.

    Attributes
    ----------
    first : int
        Seed of the first job; the others count on from it.
    done, refused : Counter
        Jobs that ended well, by name, and refusals, by message.
    failures : list of dict
        Seed, name, error and traceback of each job that failed.
    memory : list of (int, int)
        Number of jobs, and bytes that the process had written to then.
    """

    first: int
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)

    @property
    def jobs(self) -> int:
        """Count the jobs."""
        return self.done.total() + self.refused.total() + len(self.failures)

    def step(self, seed: int) -> None:
        """Do one job and record how it ended."""
        try:
            self.done[soak_jobs.run_case(seed)] += 1
        except soak_jobs.Refused as refused:
            self.refused[str(refused)] += 1
        except Exception as error:  # whatever it is, it is what a soak looks for
            found = {"seed": seed, "job": soak_jobs.case(seed)[0], "error": f"{type(error).__name__}: {error}"}
            self.failures.append(found | {"traceback": traceback.format_exc().splitlines()[-12:]})
            say(f"FAILED: {found['job']}: {found['error']}; again with make soak SEED={seed}")

    def sample(self) -> None:
        """Record the memory, after all that can be freed was freed."""
        if not self.memory or self.memory[-1][0] != self.jobs:
            self.memory.append((self.jobs, owned_bytes()))


def say(line: str) -> None:
    """Print a line at once, into a pipe too."""
    print(line, flush=True)


def owned_bytes() -> int:
    """Return the memory that this process alone has written, without garbage and what the allocator holds back.

    Pages of libraries are not in it: they come when code is first used, and go when another process needs the room.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    facts = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return sum(1024 * int(facts[name][0]) for name in ("RssAnon", "VmSwap"))


def settled(memory: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the samples behind the warm-up."""
    return list(memory[int(len(memory) * WARM_UP) :])


def growth(memory: Sequence[tuple[int, int]]) -> float | None:
    """Return how much memory grows, in percent of its median per thousand jobs; None where there are too few samples.

    Parameters
    ----------
    memory : sequence of (int, int)
        Number of jobs and bytes; the first ones, of the warm-up, are left out.

    Notes
    -----
    The median of the slopes between all pairs of samples (Theil and Sen): up to 29 % of the samples may be anything.
    """
    samples = settled(memory)
    if len(samples) < FEWEST:
        return None
    jobs, sizes = (np.array(column, dtype=float) for column in zip(*samples, strict=True))
    first, second = np.triu_indices(len(samples), 1)
    slope = np.median((sizes[second] - sizes[first]) / (jobs[second] - jobs[first]))
    return float(100 * 1000 * slope / np.median(sizes))


def problems(soak: Soak) -> list[str]:
    """Say what makes the soak a failure; nothing if it was a success."""
    found = []
    if soak.failures:
        seeds = ", ".join(str(failure["seed"]) for failure in soak.failures[:10])
        found.append(f"{len(soak.failures)} jobs failed: again with make soak SEED={seeds}")
    if not soak.done:
        found.append("no job was done")
    elif soak.refused.total() > MOST_REFUSED * soak.jobs:
        found.append(f"{soak.refused.total()} of {soak.jobs} jobs were refused, so that little was tried")
    slope = growth(soak.memory)
    if slope is not None and not slope <= LIMIT:
        found.append(f"memory grows by {slope:.2f} % per 1000 jobs, more than {LIMIT} %")
    return found


def summary(soak: Soak, seconds: float, command: Sequence[str]) -> dict[str, Any]:
    """Return the record of a soak: what was done, what failed, and how the memory went."""
    sizes = [size for _, size in soak.memory]
    quarters = [sizes[round(share * (len(sizes) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)] if sizes else []
    thinned = soak.memory[:: max(1, -(-len(soak.memory) // SAMPLES_KEPT))]
    slope = growth(soak.memory)
    return {
        "command": list(command),
        "first_seed": soak.first,
        "jobs": soak.jobs,
        "seconds": round(seconds, 1),
        "done": dict(sorted(soak.done.items())),
        "refused": dict(sorted(soak.refused.items())),
        "failures": soak.failures,
        "memory": {
            "mib_at_quarters": [round(size / 2**20, 1) for size in quarters],
            "growth_percent_per_1000_jobs": None if slope is None else round(slope, 4),
            "limit_percent_per_1000_jobs": LIMIT,
            "warm_up_share": WARM_UP,
            "samples": [[jobs, size] for jobs, size in thinned],
        },
        "problems": problems(soak),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """Return what the soak was made with, without names of machines or users."""
    info = srr_ext.build_info()
    return {
        "srr_ext": srr_ext.__version__,
        "build": info["build"],
        "cpu_kernel": info["cpu_kernel"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def run(first: int, over: Callable[[int, float], bool], every: float = 60.0) -> tuple[Soak, float]:
    """Do jobs until it is over, or until Ctrl-C, and sample the memory between them.

    Parameters
    ----------
    first : int
        Seed of the first job.
    over : callable
        Takes the number of jobs and the seconds so far.
    every : float, default 60
        Seconds between lines.
    """
    soak, start = Soak(first), time.monotonic()
    spoken = start
    try:
        for seed in count(first):
            now = time.monotonic()
            if over(soak.jobs, now - start):
                break
            soak.step(seed)
            if soak.jobs % EVERY == 0:
                soak.sample()
            if now - spoken >= every:
                spoken = now
                size = soak.memory[-1][1] / 2**20 if soak.memory else float("nan")
                say(
                    f"{(now - start) / 60:.1f} min: {soak.jobs} jobs, {soak.refused.total()} refused, "
                    f"{len(soak.failures)} failed, {size:.0f} MiB"
                )
    except KeyboardInterrupt:
        say("stopped: this is what it has come to")
    soak.sample()
    return soak, time.monotonic() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, write the summary, and return the exit code: 0 if all is well, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default 30)")
    parser.add_argument("--jobs", type=int, help="how many jobs, instead of minutes")
    parser.add_argument("--first", type=int, help="seed of the first job; default another one each time")
    parser.add_argument("--repeat", type=int, metavar="SEED", help="do this job alone, and show its traceback")
    parser.add_argument("--output", type=Path, help="file for the summary, JSON")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the networks are tiny
    if given.repeat is not None:
        name, _, _ = soak_jobs.case(given.repeat)
        say(f"job {given.repeat}: {name}")
        try:
            soak_jobs.run_case(given.repeat)
        except soak_jobs.Refused as refused:
            say(f"refused, as it should be: {refused}")
        return 0
    first = int(time.time()) * 1000 if given.first is None else given.first
    limit = given.minutes * 60
    say(f"soak: first seed {first}, {f'{given.jobs} jobs' if given.jobs else f'{given.minutes:g} minutes'}")
    soak, seconds = run(first, lambda jobs, past: jobs >= given.jobs if given.jobs else past >= limit)
    words = ["python_tests/soak.py", *(sys.argv[1:] if arguments is None else arguments)]
    record = summary(soak, seconds, ["python", *words])
    if given.output:
        write_json(given.output, record)
        say(f"summary: {given.output}")
    memory = record["memory"]
    slope = memory["growth_percent_per_1000_jobs"]
    grows = "too few samples for a slope" if slope is None else f"{slope:+.3f} % per 1000 jobs"
    say(f"{soak.jobs} jobs in {seconds:.0f} s: {dict(soak.done)}, refused {dict(soak.refused)}")
    say(f"memory at quarters: {memory['mib_at_quarters']} MiB, {grows}")
    for problem in record["problems"]:
        say(f"FAILED: {problem}")
    return 1 if record["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
