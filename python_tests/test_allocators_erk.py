"""ERK: densities by hand, shares in proportion to them, and the target met."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planning_nets import NETS, deep, grouped, plan, residual

import srr_ext
from srr_ext import models
from srr_ext.cost import CostModel


def test_densities_by_hand() -> None:
    net = residual()  # stem 3 -> 8 and outer 12 -> 8 with 3 x 3, inner 8 -> 12 with 1 x 1
    densities = plan(net, "erk", keep=0.6)[1].info["densities"]
    assert densities == pytest.approx({
        "stem": ((3 + 8 + 3 + 3) + (12 + 8 + 3 + 3)) / (3 * 8 * 9 + 12 * 8 * 9),
        "inner": (8 + 12 + 1 + 1) / (8 * 12),
    })  # fmt: skip
    densities = plan(grouped(), "erk", keep=0.6)[1].info["densities"]
    assert densities == pytest.approx({"0": (2 + 8 + 1 + 1) / (2 * 8), "1": (4 + 10 + 3 + 3) / (4 * 10 * 9)})


def test_linear_layers_have_no_kernel() -> None:
    model, example = models.create("lenet5").eval(), torch.zeros(1, 1, 28, 28)
    densities = srr_ext.make_plan(model, example, allocator="erk", keep_macs=0.5).info["densities"]
    assert densities["fc2"] == pytest.approx((120 + 84) / (120 * 84))
    assert densities["conv1"] == pytest.approx((1 + 6 + 5 + 5) / (1 * 6 * 25))


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.3])
def test_shares_are_in_proportion_to_densities(keep: float) -> None:
    """The factor is found by bisection here: the largest with which rounded shares meet the target."""
    widths = np.array([40, 90, 60, 120])
    net = deep(widths.tolist())
    cost = CostModel(net.analysis, "channels")
    fan_in = np.array([3, 40, 90, 60])
    densities = (fan_in + widths + 2) / (fan_in * widths)
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        total = np.minimum(1.0, middle * densities) @ widths + (cost.dense - widths.sum())
        low, high = (middle, high) if total <= keep * cost.dense else (low, middle)
    _, allocation = plan(net, "erk", keep=keep, quantity="channels", floor=0.0)
    assert np.abs(np.array(allocation.counts) - np.minimum(1, low * densities) * widths).max() <= 1


@pytest.mark.parametrize("net", [*NETS.values()])
def test_plans_are_the_same_again(net) -> None:
    made = net()
    assert plan(made, "erk", keep=0.7)[1] == plan(made, "erk", keep=0.7)[1]
