"""Measure training in one process and in two on this machine, and compute from a model what more would do.

    python benchmarks/scaling.py --output benchmarks/results

writes scaling-cpu.json, in some minutes on two cores. What is measured: images per second of one process with one
thread and with two, and of two processes with a thread each, in turns, each by the shortest step of some repetitions,
since other work on the machine only ever takes time away; the images that a process with one thread computes per second
of processor time, which other work takes little from; and the seconds that exchanging words and gradients takes, in two
processes. What is computed says so: see `step_seconds`. The times of GPUs are assumptions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import environment
import torch
from torch import nn

from srr_ext import models
from srr_ext.data import Split, TensorData
from srr_ext.processes import Processes, together
from srr_ext.training import TrainConfig, train

BATCH = 64
NETWORKS = {"resnet20": (32, 12), "resnet18": (64, 6)}  # pixels, steps that are timed
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread": (2, 1)}
BUCKET = 25 << 20  # bytes of gradients that torch exchanges at once


@dataclass(frozen=True)
class Work:
    """What a step has to do.

    Attributes
    ----------
    batch : int
        Images, in all processes together.
    rate : float
        Images per second of one process that has nobody to wait for.
    bytes : int
        Of gradients.
    norms : tuple of int
        Channels of every batch normalisation.
    """

    batch: int
    rate: float
    bytes: int
    norms: tuple[int, ...]


@dataclass(frozen=True)
class Wire:
    """What processes are joined by.

    Attributes
    ----------
    bandwidth : float
        Bytes per second that a process can send.
    latency : float
        Seconds until a message of no length has arrived.
    """

    bandwidth: float
    latency: float


def step_seconds(work: Work, n: int, wire: Wire) -> float:
    """Compute how long a step takes in n processes.

    The images are divided, and computing is taken to be as fast per image as in one process. Gradients take a ring:
    each bucket 2 (n - 1) messages of an n-th of it. Every batch normalisation takes two more, of n - 1 messages
    each: of the counts, means and variances forward, of two sums backward, in float64. Nothing is taken to overlap with
    computing, though gradients do; and all processes are taken to be equally fast, though each waits for the slowest.
    """
    seconds = work.batch / (n * work.rate)
    if n == 1:
        return seconds
    buckets = math.ceil(work.bytes / BUCKET)
    seconds += 2 * (n - 1) / n * work.bytes / wire.bandwidth + buckets * 2 * (n - 1) * wire.latency
    words = sum(8 * (4 * channels + 1) for channels in work.norms)
    return seconds + (n - 1) * (words / wire.bandwidth + 2 * len(work.norms) * wire.latency)


def efficiency(work: Work, n: int, wire: Wire) -> float:
    """Compute which share of n times the images per second is left."""
    return step_seconds(work, 1, wire) / (n * step_seconds(work, n, wire))


def norms_of(model: nn.Module) -> tuple[int, ...]:
    """Return the channels of every batch normalisation."""
    return tuple(m.num_features for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def bytes_of(model: nn.Module) -> int:
    """Count the bytes of all gradients."""
    return sum(4 * p.numel() for p in model.parameters())


# A GPU that is assumed to compute 100e12 multiplications and additions per second in training, forward and backward
# together three times the 4.1e9 multiply-accumulates of an image; wires as data sheets have them, not measured.
ASSUMED_RATE = 100e12 / (2 * 3 * 4.1e9)
WIRES = {
    "8 GPUs of a node, NVLink": (Wire(200e9, 10e-6), (2, 4, 8)),
    "nodes, 200 Gbit/s": (Wire(25e9, 20e-6), (2, 8, 16, 64)),
    "nodes, 10 Gbit/s": (Wire(1.25e9, 50e-6), (2, 8, 16, 64)),
}


def projections() -> list[dict[str, Any]]:
    """Compute the efficiency of training a ResNet-50 on assumed GPUs, 64 images on each."""
    model = models.create("resnet50", 1000)
    rows = []
    for name, (wire, counts) in WIRES.items():
        for n in counts:
            work = Work(BATCH * n, ASSUMED_RATE, bytes_of(model), norms_of(model))
            rows.append({"wire": name, **asdict(wire), "processes": n, "efficiency": efficiency(work, n, wire)})
    return rows


def noise(side: int, n: int) -> TensorData:
    """Random images."""
    every = Split(torch.randint(256, (n, 3, side, side), dtype=torch.uint8), torch.randint(10, (n,)))
    nothing = every.take(torch.arange(0))
    names = tuple(str(i) for i in range(10))
    return TensorData("noise", every, nothing, nothing, names, (0.5,) * 3, (0.25,) * 3, crop=4, flip=True)


def seconds_of(call: Callable[[], object], n: int) -> float:
    """Return the shortest of n calls."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_here(network: str, here: Processes) -> dict[str, float]:
    """Measure in this process, and those that it works with."""
    side, steps = NETWORKS[network]
    torch.manual_seed(0)
    model, config = models.create(network, 10, image_size=side), TrainConfig(epochs=1, batch_size=BATCH)
    images = noise(side, steps * BATCH)
    ends: list[tuple[float, float]] = []

    def look(lr: float) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    train(model, images, config, device="cpu", after_step=look)
    steps_taken = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(ends)]
    wall, cpu = (min(step[which] for step in steps_taken) for which in (0, 1))
    wall, cpu = (total / here.count for total in here.sum(wall, cpu))
    found = {"images_per_s": BATCH / wall, "images_per_cpu_s": BATCH / here.count / cpu}
    if here.count > 1:
        gradients, word = torch.zeros(bytes_of(model) // 4), torch.zeros(1, dtype=torch.float64)
        found["gradients_s"] = seconds_of(lambda: here.gather(gradients).sum(0), 5)
        found["word_s"] = seconds_of(lambda: here.gather(word), 50)
    return found


def measure(count: int, threads: int) -> dict[str, dict[str, float]]:
    """Measure all networks in processes of their own."""
    command = [sys.executable]
    if count > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    result = subprocess.run(
        [*command, __file__, "--here"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def tables(record: dict[str, Any]) -> tuple[str, str]:
    """Return what a record has measured and computed, as the documentation shows it."""
    lines = [
        "| network, pixels | alone | 2 threads | 2 processes | per processor second: alone | in 2 processes |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["measured"]:
        shown = [f"{row['images_per_s'][name]:.0f}" for name in WAYS]
        shown += [f"{rate:.0f}" for rate in row["images_per_cpu_s"].values()]
        lines.append(f"| {row['network']}, {row['pixels']} | {' | '.join(shown)} |")
    computed = ["| joined by | processes | efficiency |", "|---|---|---|"]
    for row in record["computed"]["rows"]:
        wire = f"{row['wire']} ({row['bandwidth'] / 1e9:g} GB/s, {row['latency'] * 1e6:g} µs)"
        computed.append(f"| {wire} | {row['processes']} | {100 * row['efficiency']:.0f} % |")
    return "\n".join(lines), "\n".join(computed)


def main() -> None:
    """Measure, or do what a process of a measurement does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder of the record")
    arguments = parser.parse_args()
    if arguments.here:
        with together() as here:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
            found = {network: measure_here(network, here) for network in NETWORKS}
            if here.first:
                print(json.dumps(found))
        return
    every: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in WAYS}
    for _ in range(arguments.repetitions):
        for name, way in WAYS.items():  # in turns, so that all meet the same other work
            every[name].append(measure(*way))
    rows = []
    for network in NETWORKS:
        best = {name: max(found[network]["images_per_s"] for found in every[name]) for name in WAYS}
        # Threads that wait for each other count as busy, so that two of them say nothing here.
        single = [name for name in WAYS if "1 thread" in name and "2 threads" not in name]
        busy = {name: max(found[network]["images_per_cpu_s"] for found in every[name]) for name in single}
        shared = [found[network] for found in every["2 processes, 1 thread"]]
        said = {key: min(found[key] for found in shared) for key in ("gradients_s", "word_s")}
        model = models.create(network, 10, image_size=NETWORKS[network][0])
        work = Work(BATCH, busy["1 process, 1 thread"], bytes_of(model), norms_of(model))
        # Of two processes each sends the other all of its gradients, in this package's order of sums on CPUs.
        talk = said["gradients_s"] + 2 * len(work.norms) * said["word_s"]
        computed = BATCH / (BATCH / (2 * work.rate) + talk)
        rows.append(
            {"network": network, "pixels": NETWORKS[network][0], "gradient_bytes": work.bytes, "norms": len(work.norms)}
            | {"images_per_s": best, "images_per_cpu_s": busy, **said, "computed_images_per_s_of_2": computed}
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    record = {
        "machine_info": environment.describe(torch.device("cpu")) | {"cores": "two, shared with other work"},
        "command": "python benchmarks/scaling.py --output benchmarks/results",
        "batch_size": BATCH,
        "repetitions": arguments.repetitions,
        "measured": rows,
        "computed": {"assumed_images_per_s": ASSUMED_RATE, "network": "resnet50", "rows": projections()},
    }
    text = json.dumps(record, indent=1) + "\n"
    if arguments.output:
        (arguments.output / "scaling-cpu.json").write_text(text, encoding="utf-8")
    print("\n\n".join(tables(record)))


if __name__ == "__main__":
    main()
