"""Plans for a time: what was wanted, predicted and measured, and what rounding of channel counts does to times.

    python benchmarks/latency_target.py --output docs/results/latency/cpu.json
    python benchmarks/latency_target.py --table docs/results/latency/cpu.json

Networks with random weights, whose times are those of trained ones. Every plan is made by the allocator ``uniform``,
with residual streams open, so that what differs is the target and the rounding alone; times are of one thread, on
`srr_ext.latency.undisturbed_clock`. What a plan leaves is measured again afterwards, beside the dense network.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import srr_ext
from srr_ext.files import read_json, write_json
from srr_ext.latency import measure_latency, undisturbed_clock
from srr_ext.latency_table import LatencyTable, with_batch

NETWORKS = {"resnet56": (32, 32), "resnet18": (64, 16), "mobilenet_v2": (64, 16)}  # pixels, images
SHARES = (0.75, 0.5)
MULTIPLES = (1, 8, 16)
METHOD: dict[str, Any] = {"allocator": "uniform", "streams": "prune"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write a record, or print the tables of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="record to write")
    parser.add_argument("--table", type=Path, help="record to print the tables of, instead")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=3.0, help="for every measurement afterwards")
    given = parser.parse_args(arguments)
    if given.table is not None:
        sys.stdout.write(tables(read_json(given.table)))
        return
    if given.output is None:
        parser.error("--output or --table")
    torch.set_num_threads(1)
    record: dict[str, Any] = {"torch": torch.__version__, "threads": 1, **METHOD, "plans": []}
    with tempfile.TemporaryDirectory() as folder:  # an empty table, so that measuring is part of the seconds
        for name in given.networks:
            record["plans"] += plans_of(name, Path(folder), given.seconds)
            write_json(given.output, record)
    sys.stdout.write(tables(record))


def plans_of(name: str, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Make every plan of a network, for a time and for MACs, and measure what it leaves."""
    torch.manual_seed(0)
    size, images = NETWORKS[name]
    model, example = srr_ext.models.create(name, 10).eval(), torch.randn(1, 3, size, size)
    analysis = srr_ext.analyze_channels(model, example)
    found = []
    for target, keep in [*(("latency", share) for share in SHARES), ("macs", SHARES[-1])]:
        for multiple in MULTIPLES:
            options: dict[str, Any] = {"round_to": multiple, "analysis": analysis, f"keep_{target}": keep, **METHOD}
            if target == "latency":
                options |= {"latency_batch": images, "latency_table": LatencyTable("cpu", cache=folder)}
            entry = {"network": name, "pixels": size, "images": images, "target": target, "wanted": keep}
            entry |= {"round_to": multiple}
            start = time.perf_counter()
            try:
                plan = srr_ext.make_plan(model, example, **options)
            except ValueError as error:  # with multiples of 16, a layer of 16 channels stays whole
                entry["refused"] = str(error)
            else:
                entry["plan_seconds"] = round(time.perf_counter() - start, 1)
                entry |= {key: shares(plan, key) for key in ("macs", "params", "channels")}
                small = srr_ext.apply_plan(model, plan, example)
                entry |= afterwards(model, small, with_batch(example, images), seconds)
                if target == "latency":
                    entry["attempts"] = plan.info["latency"]["attempts"]
                    entry["when_planned"] = shares(plan, "latency")
            found.append(entry)
            sys.stderr.write(json.dumps(entry) + "\n")
    return found


def shares(plan: srr_ext.PruningPlan, quantity: str) -> float:
    """Return the share of a quantity that a plan keeps."""
    return round(plan.cost[quantity]["pruned"] / plan.cost[quantity]["dense"], 4)


def afterwards(model: nn.Module, small: nn.Module, batch: torch.Tensor, seconds: float) -> dict[str, float]:
    """Measure a pruned network beside the dense one."""
    clock = undisturbed_clock(batch.device)
    dense, pruned = measure_latency([model, small], batch, seconds=seconds, rounds=20, clock=clock)
    return {"dense_ms": round(dense, 2), "pruned_ms": round(pruned, 2), "measured": round(pruned / dense, 4)}


def tables(record: dict[str, Any]) -> str:
    """Lay out both tables in Markdown."""
    lines = [
        "| network, images | wanted | round to | operations alone | measured when planned | measured afterwards "
        "| off by | MACs kept | channels kept | to plan |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in (e for e in record["plans"] if e["target"] == "latency"):
        start = f"| `{entry['network']}`, {entry['images']} of {entry['pixels']} px | {entry['wanted']} "
        start += f"| {entry['round_to']} "
        if "refused" in entry:
            least = re.search(r"\((0\.\d+)\) are left", entry["refused"])
            lines.append(f"{start}| out of reach: {least[1] if least else 'refused'} | | | | | | |")
            continue
        first, off = entry["attempts"][0], 100 * (entry["measured"] / entry["wanted"] - 1)
        lines.append(
            f"{start}| {first['operations']:.3f} ({first['measured']:.3f}) | {entry['when_planned']:.3f} "
            f"| {entry['measured']:.3f} | {off:+.1f} % | {100 * entry['macs']:.1f} % "
            f"| {100 * entry['channels']:.1f} % | {entry['plan_seconds']:.0f} s |"
        )
    lines += ["", "| network | MACs wanted | round to | MACs kept | time left | channels kept |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for entry in (e for e in record["plans"] if e["target"] == "macs"):
        start = f"| `{entry['network']}` | {100 * entry['wanted']:.0f} % | {entry['round_to']} "
        if "refused" in entry:
            lines.append(f"{start}| out of reach | | |")
            continue
        left = " | ".join(f"{100 * entry[key]:.1f} %" for key in ("macs", "measured", "channels"))
        lines.append(f"{start}| {left} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
