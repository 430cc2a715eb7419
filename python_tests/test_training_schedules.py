"""The learning rate of every step."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_data import after_steps, random_data

from srr_ext.training import TrainConfig, learning_rate_factor, train

WARMUP = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.9])


@given(WARMUP, st.integers(1, 12), st.integers(1, 40))
def test_cosine_and_constant_follow_their_formulas(warmup: float, epochs: int, per_epoch: int) -> None:
    """Straight up to the highest rate, then half a cosine down to 0, or straight on."""
    steps = epochs * per_epoch
    warm = round(warmup * steps)
    for schedule in ("cosine", "constant"):
        config = TrainConfig(schedule=schedule, warmup=warmup, epochs=epochs)
        found = [learning_rate_factor(config, step, steps) for step in range(steps + 1)]
        assert found[:warm] == pytest.approx([k / (warm + 1) for k in range(1, warm + 1)])
        rest = steps - warm
        angles = [math.pi * k / (2 * max(1, rest)) for k in range(rest + 1)]  # cos^2(a / 2) = (1 + cos a) / 2
        wanted = [math.cos(angle) ** 2 if schedule == "cosine" else 1.0 for angle in angles]
        assert found[warm:] == pytest.approx(wanted, abs=1e-12)


@given(
    WARMUP,
    st.integers(1, 12),
    st.integers(1, 40),
    st.sets(st.integers(1, 60), min_size=1, max_size=4),
    st.sampled_from([0.1, 0.5, 1.0]),
)
def test_step_drops_after_its_epochs(
    warmup: float, epochs: int, per_epoch: int, quarters: set[int], decay: float
) -> None:
    """The first step that begins at or after the end of epoch m is the first with one more factor."""
    milestones = [Fraction(quarter, 4) for quarter in sorted(quarters)]  # exact as floats
    config = TrainConfig(
        schedule="step", milestones=tuple(map(float, milestones)), decay=decay, warmup=warmup, epochs=epochs
    )
    steps = epochs * per_epoch
    for step in range(round(warmup * steps), steps + 1):
        passed = sum(Fraction(step, per_epoch) >= milestone for milestone in milestones)
        assert learning_rate_factor(config, step, steps) == pytest.approx(decay**passed)


def test_whole_epochs_are_milestones_to_the_step() -> None:
    """Two epochs of 3 steps after milestone 1: the fourth step is the first at the lower rate."""
    config = TrainConfig(schedule="step", milestones=(1, 2), epochs=3, warmup=0.0)
    found = [learning_rate_factor(config, step, 9) for step in range(9)]
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_learning_rate_rises_then_falls() -> None:
    """Strictly, and through one half half-way down."""
    config = TrainConfig(warmup=0.2)
    rates = [learning_rate_factor(config, step, 100) for step in range(101)]
    assert all(a < b for a, b in itertools.pairwise(rates[:21])) and rates[20] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[20:])) and abs(rates[100]) < 1e-12
    assert rates[60] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimiser_steps_with_these_rates(schedule: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the training, and the rate in the record is the one that would come next."""
    rates: list[float] = []
    after_steps(monkeypatch, lambda optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    config = TrainConfig(
        optimizer=optimizer,
        schedule=schedule,
        milestones=(1.0, 2.0) if schedule == "step" else (),
        epochs=3,
        batch_size=8,
        lr=0.02,
    )
    torch.manual_seed(0)
    history = train(nn.Sequential(nn.Flatten(), nn.Linear(32, 7)), random_data(), config, device="cpu")
    wanted = [0.02 * learning_rate_factor(config, step, 9) for step in range(10)]
    assert rates == wanted[:9]
    assert [record["lr"] for record in history] == [wanted[3], wanted[6], wanted[9]]
