"""Training against the bare forward, backward and step of the same network: what the machinery around them costs."""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from srr_ext import data, models
from srr_ext.data import Split, TensorData
from srr_ext.training import TrainConfig, make_optimizer, train

CONFIG = TrainConfig(epochs=1)
GOAL = 0.9  # of the rate of the bare loop


def noise(n: int) -> TensorData:
    """Random images of CIFAR's size, with its augmentation."""
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
    every = Split(images, torch.randint(10, (n,)))
    nothing = every.take(torch.arange(0))
    names = tuple(str(i) for i in range(10))
    return TensorData("noise", every, nothing, nothing, names, (0.5,) * 3, (0.25,) * 3, crop=4, flip=True)


def bare_seconds(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """Time as many steps on one batch that is there already."""
    if CONFIG.channels_last:
        model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))
    optimizer = make_optimizer(CONFIG, model.train().parameters())
    start = time.perf_counter()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    float(loss.detach())
    return time.perf_counter() - start


@pytest.mark.parametrize(
    ("network", "pictures", "rounds"), [("digits_cnn", "digits", 15), ("resnet20", "noise", 2)], ids=["digits", "noise"]
)
def bench_training_against_the_bare_loop(
    network: str, pictures: str, rounds: int, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One epoch, all set-up included, with a run of the bare loop before each: both meet the same other work.

    Full batches only, so that both take the same number of steps over the same number of images; no validation images,
    which the bare loop has no part in.
    """
    torch.manual_seed(0)
    whole = data.load("digits", validation=0.0) if pictures == "digits" else noise(2048)
    steps = whole.size("train") // CONFIG.batch_size
    n = steps * CONFIG.batch_size
    images = replace(whole, train=whole.train.take(torch.arange(n)))
    batch = next(iter(images.batches("train", CONFIG.batch_size, train=True)))
    fresh = models.create(network, 10)
    few = replace(images, train=images.train.take(torch.arange(2 * CONFIG.batch_size)))
    train(copy.deepcopy(fresh), few, CONFIG, device="cpu")  # loads the libraries
    bare: list[float] = []
    counted: list[int] = []

    def setup() -> tuple[tuple[nn.Module], dict[str, Any]]:
        bare.append(bare_seconds(copy.deepcopy(fresh), *batch, steps))
        model = copy.deepcopy(fresh)
        model.register_forward_hook(lambda *_: counted.append(1))
        return (model,), {}

    def epoch(model: nn.Module) -> None:
        history = train(model, images, CONFIG, device="cpu")
        assert len(history) == 1 and math.isfinite(history[0]["loss"])

    benchmark.pedantic(epoch, setup=setup, rounds=rounds)
    assert len(counted) == rounds * steps and len(bare) == rounds
    full = benchmark.stats.stats.data
    ratio = statistics.median(b / a for a, b in zip(full, bare, strict=True))
    rates = {name: round(n / statistics.median(times)) for name, times in (("train", full), ("bare", bare))}
    benchmark.extra_info.update(
        network=network, images=n, images_per_s=rates, ratio=ratio, goal=GOAL, threads=torch.get_num_threads()
    )
    with capsys.disabled():
        print(
            f"\n{network}, {n} images: {rates['train']:,}/s, bare loop {rates['bare']:,}/s, ratio {ratio:.3f}", end=" "
        )
