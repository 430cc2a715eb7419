"""Folders of comparisons that no network was trained for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_cell(
    folder: Path, label: str, keep: float, seed: int, final: float, *, role: str = "method", dense: float = 90.0,
    macs: int | None = None, params: int | None = None, cell: Mapping[str, Any] = {}, report: Mapping[str, Any] = {},
) -> str:  # fmt: skip
    """Write a finished cell and return its name; ``cell`` and ``report`` replace entries of its files."""
    name = f"{len(list((folder / 'cells').glob('*')))}_{keep!r}_{seed}"
    path = folder / "cells" / name
    path.mkdir(parents=True)
    random = label == "random"
    found = {
        "model": "resnet20", "data": "digits", "allocator": "uniform" if role == "control" else "srr",
        "selector": "random" if random else "l1", "update": "none", "seed": seed,
        "macs": {"dense": 1_000_000, "pruned": int(1_000_000 * keep) if macs is None else macs},
        "params": {"dense": 20_000, "pruned": int(20_000 * keep**1.5) if params is None else params},
        "top1": {"dense": dense, "after_surgery": 40.0 + seed, "final": final},
        "top5": {"dense": 99.0, "after_surgery": 80.0, "final": 98.0 + seed / 10},
        "validation_top1": {"dense": dense, "after_surgery": 41.0, "final": final + 0.5},
        "n_test_images": 400, "surgery_error": 2e-16, "latency_ms": {"dense": 3.0, "pruned": 2.5},
    }  # fmt: skip
    settings = {"retrain": "scratch"} if label == "scratch" else {}
    record = {
        "method": label, "text": label, "role": role, "quantity": "macs", "keep": keep, "seed": seed,
        "settings": settings, "extra_epochs": 0,
    }  # fmt: skip
    (path / "report.json").write_text(json.dumps(found | dict(report)))
    (path / "cell.json").write_text(json.dumps(record | dict(cell)))
    return name


def add_config(folder: Path, methods: tuple[str, ...], **others: Any) -> None:
    """Write the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"epochs": 20, "optimizer": "sgd", "lr": 0.05}
    config = {"model": "resnet20", "data": "digits", "methods": list(methods), "dense": recipe, "fine_tune": recipe}
    (folder / "config.json").write_text(json.dumps(config | others))


def add_comparison(
    folder: Path, methods: tuple[str, ...] = ("srr+l1", "global+l1"), keeps: tuple[float, ...] = (0.7, 0.5),
    seeds: tuple[int, ...] = (0, 1, 2), controls: bool = True, latency: bool = True,
) -> Path:  # fmt: skip
    """Write a whole comparison in which every method has its level, and every seed its share of luck."""
    add_config(folder, methods, keep=list(keeps), seeds=list(seeds), output=None)
    labels = [(label, "method") for label in methods]
    labels += [(label, "control") for label in ("random", "uniform", "scratch") if controls]
    times = {}
    for place, (label, role) in enumerate(labels):
        for keep in keeps:
            for seed in seeds:
                luck = 0.03 * ((7 * place + 3 * seed + round(10 * keep)) % 5)
                name = add_cell(folder, label, keep, seed, round(90 - 4 * (1 - keep) - place + luck, 2), role=role)
                if seed == seeds[0]:
                    times[name] = {
                        "dense_ms": 30.0, "pruned_ms": 15.0 + 10 * keep, "batch_size": 64, "device": "cpu", "threads": 1
                    }  # fmt: skip
    if controls:
        for seed in seeds:
            add_cell(folder, "dense-longer", 1.0, seed, 90.2 + seed / 10, role="control")
    if latency:
        (folder / "latency.json").write_text(json.dumps(times))
    return folder
