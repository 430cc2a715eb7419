"""Measure how time and memory grow with the filters of a layer, and with the weights of a filter.

    python benchmarks/growth.py --device cpu --output benchmarks/results

writes growth-DEVICE.json and growth-DEVICE.svg, in some minutes on two cores. Every point is measured in a fresh
process. An exponent is that of a power law fitted to the upper half of the sizes; the largest between two neighbouring
sizes shows whether there is a cliff somewhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import environment
import layers
import numpy as np
import torch
from floors import seconds
from memory import peak_bytes

from srr_ext import ops

FAN_IN, FILTERS = 256, 2048  # while the other one grows
STAGES = ("graphs", "components", "covering", "trajectories")
SIZES = {
    "filters": tuple(2**i for i in range(9, 17)),
    "fan_in": tuple(2**i for i in range(6, 15)),
}
ROUNDS, ENOUGH = 7, 2.0  # calls, and seconds of them
CUBIC = 8.0  # the most that doubling the filters of a trajectory should cost
UNTIL = 60.0  # seconds that one call of trajectories may be expected to take

Point = dict[str, Any]


def call_of(stage: str, n_filters: int, fan_in: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """Prepare a stage: what to time, and the bytes of the layer's bit graph."""
    weight = torch.randn(n_filters, fan_in, generator=torch.Generator().manual_seed(0)).to(device)
    gamma = layers.gamma_at(fan_in)
    n_bytes = 8 * n_filters * -(-n_filters // 64)
    if stage == "graphs":
        return lambda: ops.filter_graphs([weight], gamma), n_bytes
    graphs = ops.filter_graphs([weight], gamma)
    order = [o.to(device) for o in layers.orders([n_filters])]
    calls: dict[str, Callable[[], object]] = {
        "components": lambda: ops.components(graphs),
        "covering": lambda: (ops.covering(graphs, 1), ops.covering(graphs, 2)),
        "trajectories": lambda: ops.trajectories(graphs, order),
    }
    return calls[stage], n_bytes


def measure(stage: str, n_filters: int, fan_in: int, device: torch.device) -> Point:
    """Measure one point, in this process: memory in the first call, then the median time of more, if they are short."""
    call_of(stage, 256, 64, device)[0]()  # loads what every call needs
    call, n_bytes = call_of(stage, n_filters, fan_in, device)
    start = time.perf_counter()
    peak = peak_bytes(call, device)
    times = [time.perf_counter() - start]
    if times[0] < 10:
        times = [seconds(call, device)]
        while len(times) < ROUNDS and sum(times) < ENOUGH:
            times.append(seconds(call, device))
    return {
        "filters": n_filters,
        "fan_in": fan_in,
        "seconds": statistics.median(times),
        "calls": len(times),
        "peak_bytes": peak,
        "graph_bytes": n_bytes,
    }


def in_fresh_process(stage: str, n_filters: int, fan_in: int, device: str) -> Point:
    """Measure one point in a process of its own."""
    options = [stage, str(n_filters), str(fan_in), "--device", device]
    command = [sys.executable, __file__, "--point", *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def exponents(sizes: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Fit a power law to the upper half, in logarithms; and find the steepest step within it."""
    half = len(sizes) // 2
    x, y = np.log(sizes[half:]), np.log(np.maximum(values[half:], 1e-12))
    steps = np.diff(y) / np.diff(x)
    return {"fitted": float(np.polyfit(x, y, 1)[0]), "steepest": float(steps.max())}


def series(stage: str, against: str, device: str, largest: int) -> dict[str, Any]:
    """Measure a stage at all sizes, trajectories as long as the next is not expected to take too long."""
    points: list[Point] = []
    note = ""
    for size in (size for size in SIZES[against] if size <= largest):
        if stage == "trajectories" and points and CUBIC * points[-1]["seconds"] > UNTIL:
            note = f"not beyond {points[-1][against]:,}: the next may take more than {UNTIL:.0f} s"
            break
        n_filters, fan_in = (size, FAN_IN) if against == "filters" else (FILTERS, size)
        points.append(in_fresh_process(stage, n_filters, fan_in, device))
        shown = f"{points[-1]['seconds']:.3g} s, {points[-1]['peak_bytes'] / 2**20:.3g} MiB"
        print(f"{stage}, {against} {size:,}: {shown}", file=sys.stderr, flush=True)
    sizes = [point[against] for point in points]
    return {
        "stage": stage,
        "against": against,
        "points": points,
        "note": note,
        "seconds": exponents(sizes, [point["seconds"] for point in points]),
        "peak_bytes": exponents(sizes, [point["peak_bytes"] for point in points]),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot all series, time above memory, as SVG; the same record gives the same file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    quantities = (("seconds", "time, s", 1.0), ("peak_bytes", "memory beyond the input, MiB", 2.0**-20))
    for (row, (key, label, scale)), (column, against) in itertools.product(enumerate(quantities), enumerate(SIZES)):
        axis = axes[row, column]
        for line in (line for line in record["series"] if line["against"] == against):
            x = [point[against] for point in line["points"]]
            y = [max(point[key], 1e-12) * scale for point in line["points"]]
            axis.loglog(x, y, "o-", markersize=3, label=f"{line['stage']}: {line[key]['fitted']:.2f}")
        fixed = f"fan-in {FAN_IN}" if against == "filters" else f"{FILTERS:,} filters"
        axis.set(xlabel=f"{against.replace('_', '-')}, at {fixed}", ylabel=label)
        ticks = sorted(
            {point[against] for line in record["series"] for point in line["points"] if line["against"] == against}
        )
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45, fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(title="exponent, upper half", fontsize=8, title_fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure everything, or one point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the record and the plot")
    parser.add_argument("--largest", type=int, default=65536, help="no sizes beyond this")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("RECORD", "FIGURE"), help="draw a record, and leave")
    parser.add_argument("--point", nargs=3, metavar=("STAGE", "FILTERS", "FAN_IN"), help="print one point and leave")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    device = torch.device(options.device)
    if options.draw:
        record, figure = options.draw
        draw(json.loads(record.read_text(encoding="utf-8")), figure)
        return
    if options.point:
        stage, n_filters, fan_in = options.point
        print(json.dumps(measure(stage, int(n_filters), int(fan_in), device)))
        return
    if options.output is None:
        parser.error("--output FOLDER is required")
    plan = [(stage, "filters") for stage in STAGES] + [("graphs", "fan_in")]  # a bit graph has no fan-in
    record = {
        "machine_info": environment.describe(device),
        "series": [series(stage, against, options.device, options.largest) for stage, against in plan],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"growth-{options.device}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, stem.with_suffix(".svg"))


if __name__ == "__main__":
    main()
