"""make_plan: weights to kept indices, tracing included. Ours with gamma "auto" and given, and in plain Python.

Half of the MACs are kept. The given threshold is the one that "auto" finds, so both give the same plan.

python -m pytest benchmarks/bench_plan.py --benchmark-only
"""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
from typing import Literal

import floors
import layers
import pytest
import torch
from race import Race
from torch import Tensor, nn

import srr_ext
from srr_ext import _native
from srr_ext.channels import analyze_channels
from srr_ext.plan import PruningPlan

KEEP = 0.5
ROWS = [
    *itertools.product(layers.NETWORKS, ("auto", "given"), ("ours", "ours_cpu")),
    ("resnet56", "given", "reference"),  # in seconds; everything else in minutes to hours
]


@functools.cache
def found(network: str) -> PruningPlan:
    """Make the plan with gamma "auto", on the CPU, and check that it meets the target."""
    made = srr_ext.make_plan(layers.model(network), layers.example(network), keep_macs=KEEP)
    assert made.cost["macs"]["pruned"] <= KEEP * made.cost["macs"]["dense"]
    return made


def gamma_of(network: str) -> float:
    """Threshold that "auto" finds."""
    gamma = found(network).gamma
    assert gamma is not None
    return gamma


@functools.cache
def floor(network: str) -> floors.Floor:
    """Products of one triangle of every group that the plan may touch."""
    report = srr_ext.analyze(layers.model(network), layers.example(network), gamma=gamma_of(network))
    return floors.Floor(floors.triangle_flop([(g.n_filters, g.fan_in) for g in report.groups]), "FLOP/s")


def in_plain_python(model: nn.Module, example: Tensor, gamma: float) -> PruningPlan:
    """Plan as a build without native code does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "AVAILABLE", False)
        return srr_ext.make_plan(model, example, keep_macs=KEEP, gamma=gamma)


@pytest.mark.parametrize(("network", "gamma", "path"), ROWS)
def bench_plan(network: str, gamma: str, path: str, race: Race, device: torch.device) -> None:
    on_cpu, example = layers.model(network), layers.example(network)
    model = copy.deepcopy(on_cpu).to(device)
    threshold: float | Literal["auto"] = "auto" if gamma == "auto" else gamma_of(network)
    ours = functools.partial(srr_ext.make_plan, model, example.to(device), keep_macs=KEEP, gamma=threshold)
    race.enter(f"plan, gamma {gamma}", network, floor(network), sizes(network))
    if path == "reference":
        peer = functools.partial(in_plain_python, on_cpu, example, gamma_of(network))
    else:
        peer = functools.partial(srr_ext.make_plan, on_cpu, example, keep_macs=KEEP, gamma=threshold)
    if path == "ours":
        trace = functools.partial(analyze_channels, model, example.to(device))
        assert race.answer(ours).layers == found(network).layers
        if race.benchmark.enabled:
            race.record["tracing_s"] = statistics.median(
                floors.seconds(trace, device) for _ in range(1 if race.quick else 3)
            )
        race.run(ours)
    else:
        assert race.answer(peer).layers == found(network).layers
        race.run(peer, ours)


def sizes(network: str) -> dict[str, int]:
    """What the plan was made of."""
    groups = found(network).groups
    return {"groups": len(groups), "filters": sum(group["size"] for group in groups.values())}
