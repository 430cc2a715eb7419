"""The published ResNet-56 of Li et al. (2016): channel counts by hand, MACs from the paper, and what is refused."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import srr_ext
from srr_ext import models
from srr_ext.allocators import Li2016, get_allocator
from srr_ext.channels import ChannelAnalysis, analyze_channels

EXAMPLE = torch.zeros(1, 3, 32, 32)

# First convolutions of the blocks, by stage: (published, spared blocks). Convolution 2 b + 2 is that of block b of all
# 27: 16 is that of the eighth block of stage 1, 18 of its ninth; 20 and 38 of the first of stages 2 and 3; 34 of the
# eighth of stage 2; 54 of the last.
KEPT = {"a": [(14, {7}), (28, {0}), (57, {0, 8})], "b": [(6, {7, 8}), (22, {0, 7}), (57, {0, 8})]}
DENSE = (16, 32, 64)
PUBLISHED_MACS = {"a": 1.12e8, "b": 9.09e7}


def published(variant: str) -> dict[str, int]:
    return {
        f"layer{stage + 1}.{block}.conv1": DENSE[stage] if block in spared else kept
        for stage, (kept, spared) in enumerate(KEPT[variant])
        for block in range(9)
    }


@functools.cache
def resnet56(option: str = "A") -> tuple[torch.nn.Module, ChannelAnalysis]:
    model = models.cifar_resnet.CifarResNet(56, option=option).eval()
    return model, analyze_channels(model, EXAMPLE)


def macs_of(counts: dict[str, int]) -> int:
    """Multiply-accumulates, counted from the architecture alone: 3 x 3 convolutions on 32, 16 and 8 pixels squared."""
    total = 3 * 16 * 9 * 32**2 + 64 * 10
    for stage, width in enumerate(DENSE):
        pixels = (32 // 2**stage) ** 2
        for block in range(9):
            before = DENSE[stage - 1] if block == 0 and stage else width
            total += 9 * pixels * counts[f"layer{stage + 1}.{block}.conv1"] * (before + width)
    return total


@pytest.mark.parametrize("variant", ["a", "b"])
def test_at_the_published_cost_the_counts_are_the_published_ones(variant: str) -> None:
    model, analysis = resnet56()
    counts = published(variant)
    macs = macs_of(counts)
    assert macs == pytest.approx(PUBLISHED_MACS[variant], rel=0.005)
    keep = (macs + 0.5) / macs_of(dict(published("a"), **{name: DENSE[int(name[5]) - 1] for name in counts}))
    plan = srr_ext.make_plan(model, EXAMPLE, allocator=f"li2016_{variant}", keep_macs=keep, analysis=analysis)
    assert plan.cost["macs"]["pruned"] == macs
    assert {name: plan.groups[name]["kept"] for name in counts} == counts
    assert plan.groups["conv1"] == {"size": 16, "kept": 16}
    assert plan.info["factor"] == 1
    assert plan.info["variant"] == variant
    spared = {name for name, kept in counts.items() if kept == DENSE[int(name[5]) - 1]}
    assert plan.info["published"] == {name: kept for name, kept in counts.items() if name not in spared}


@pytest.mark.parametrize(("keep", "factor"), [(0.95, (0.3, 0.6)), (0.8, (1.8, 2.2)), (0.65, (3, 4.2))])
def test_other_targets_scale_all_rates_alike(keep: float, factor: tuple[float, float]) -> None:
    model, analysis = resnet56("B")
    plan = srr_ext.make_plan(model, EXAMPLE, allocator="li2016_a", keep_macs=keep, analysis=analysis)
    assert 0.99 * keep < plan.cost["macs"]["pruned"] / plan.cost["macs"]["dense"] <= keep
    assert factor[0] < plan.info["factor"] < factor[1]
    for name, kept in published("a").items():
        dense = DENSE[int(name[5]) - 1]
        lost, wanted = dense - plan.groups[name]["kept"], plan.info["factor"] * (dense - kept)
        assert lost == 0 if kept == dense else wanted - 2 - 1e-9 <= lost <= wanted + 1e-9


def test_streams_stay_whole_even_if_they_may_be_pruned() -> None:
    model, analysis = resnet56()
    plan = srr_ext.make_plan(model, EXAMPLE, allocator="li2016_b", keep_macs=0.75, analysis=analysis, streams="prune")
    streams = [group for group in analysis.groups if group.stream]
    assert streams
    assert all(plan.groups[group.name] == {"size": group.size, "kept": group.size} for group in streams)


def test_what_the_rates_cannot_give_is_refused() -> None:
    model, analysis = resnet56()
    with pytest.raises(ValueError, match=r"out of reach: with all gone that this allocator lets go"):
        srr_ext.make_plan(model, EXAMPLE, allocator="li2016_a", keep_macs=0.2, analysis=analysis)


@pytest.mark.parametrize("name", ["resnet20", "digits_cnn"])
def test_other_networks_are_refused(name: str) -> None:
    example = torch.zeros(1, 1, 8, 8) if name == "digits_cnn" else EXAMPLE
    with pytest.raises(ValueError, match="published for the ResNet-56 of CIFAR alone"):
        srr_ext.make_plan(models.create(name).eval(), example, allocator="li2016_a", keep_macs=0.9)


@pytest.mark.parametrize("parts", [{"conv1", "conv2", "conv3"}, {"conv1"}])
def test_nine_blocks_of_another_kind_are_refused(parts: set[str]) -> None:
    def block() -> nn.Module:
        return nn.ModuleDict({name: nn.Identity() for name in sorted(parts)})

    stages = {f"layer{stage}": nn.ModuleList([block() for _ in range(9)]) for stage in (1, 2, 3)}
    model = nn.ModuleDict(stages)
    context: Any = SimpleNamespace(model=model)
    with pytest.raises(ValueError, match=r"stages of 9, 9, 9 blocks, not all of them with conv1 and conv2 alone"):
        Li2016()((), [], None, None, context)  # type: ignore[arg-type]


def test_options() -> None:
    assert get_allocator("li2016_a:variant=b") == get_allocator("li2016_b") == Li2016("b")
    with pytest.raises(ValueError, match="variant must be one of a, b, got 'c'"):
        Li2016("c")  # type: ignore[arg-type]
