"""The published rates of Li et al. (2016) for the ResNet-56 of CIFAR, scaled to the target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor, nn

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target

Variant = Literal["a", "b"]

BLOCKS = 9  # per stage, in ResNet-56
# Percent of filters that go from the first convolution of each block, by stage; and convolutions that stay whole,
# numbered in order of execution, shortcuts not counted: the stem is 1, the first convolution of the first block 2.
RATES: dict[str, tuple[int, int, int]] = {"a": (10, 10, 10), "b": (60, 30, 10)}
SKIPPED: dict[str, frozenset[int]] = {"a": frozenset({16, 20, 38, 54}), "b": frozenset({16, 18, 20, 34, 38, 54})}
_FIRST_OF_BLOCK = re.compile(r"layer([123])\.(\d+)\.conv1")


@dataclass(frozen=True)
class Li2016:
    r"""Prune the first convolution of each block at the published rates, all scaled by one factor to meet the target.

    Parameters
    ----------
    variant : {"a", "b"}, default "a"
        A: 10 % of every stage; B: 60, 30 and 10 % of the first, second and third stage. Each spares some blocks.

    Raises
    ------
    ValueError
        If ``variant`` is anything else; when called, if the model is not a ResNet-56 for CIFAR by the names and number
        of its blocks, the sensitive blocks being published for that one alone, or the target is out of reach.

    Notes
    -----
    With rate :math:`r` a convolution of :math:`N` filters keeps :math:`\lfloor N (1 - r) \rfloor`, and so loses
    :math:`n`: of the ways to round, this one gives the published 1.12e8 MACs of A (89.6 %) and 9.09e7 of B (72.4 %).
    Other targets are met by a common factor :math:`c` (ours): :math:`c \, n` vertices go from
    each, so that the next one goes from the group with the least :math:`(k + 1) / n`. At the cost of the published
    network the factor is 1 and the counts are the published ones.

    ``info`` has ``variant``, ``factor`` (the largest :math:`k / n`) and ``published`` (channels kept at factor 1, by
    name, of the groups that are pruned at all).

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf. Pruning filters for efficient ConvNets. ICLR 2017, arXiv 1608.08710.
    """

    variant: Variant = "a"

    def __post_init__(self) -> None:
        """Check the option."""
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {self.variant!r}")

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
    ) -> Allocation:
        """Return the vertices kept per group, and how the rates were scaled; see `Allocator`."""
        _require_resnet56(context.model)
        lost = [self._published(group) for group in groups]
        priorities = [
            -np.arange(1, group.size + 1) / n if n else np.full(group.size, -np.inf)
            for group, n in zip(groups, lost, strict=True)
        ]
        counts = merge(groups, priorities, cost, target, context)
        pruned = [(group, n, count) for group, n, count in zip(groups, lost, counts, strict=True) if n]
        info = {
            "variant": self.variant,
            "factor": max(((group.size - count) / n for group, n, count in pruned), default=0.0),
            "published": {group.name: group.size - n for group, n, _ in pruned},
        }
        return Allocation(tuple(counts), info)

    def _published(self, group: ChannelGroup) -> int:
        """How many filters the published network lost of a group."""
        match = _FIRST_OF_BLOCK.fullmatch(group.name)
        if match is None or len(group.producers) > 1:
            return 0
        stage, block = int(match[1]) - 1, int(match[2])
        if 2 * (BLOCKS * stage + block) + 2 in SKIPPED[self.variant]:
            return 0
        return group.size - group.size * (100 - RATES[self.variant][stage]) // 100


def _require_resnet56(model: nn.Module) -> None:
    """Refuse anything but three stages of nine blocks with two convolutions each, named as in public checkpoints."""
    modules = dict(model.named_modules())
    blocks = [[name for name in modules if re.fullmatch(rf"layer{stage}\.\d+", name)] for stage in (1, 2, 3, 4)]
    found = [len(stage) for stage in blocks]
    pairs = all(f"{name}.conv{i}" in modules for stage in blocks for name in stage for i in (1, 2))
    bottleneck = any(f"{name}.conv3" in modules for stage in blocks for name in stage)
    kinds = "" if pairs and not bottleneck else ", not all of them with conv1 and conv2 alone"
    if found != [BLOCKS] * 3 + [0] or kinds:
        stages = ", ".join(str(n) for n in found if n) or "no such"
        raise ValueError(
            "allocator: the rates of li2016_a and li2016_b, and which blocks they spare, are published for the "
            f"ResNet-56 of CIFAR alone, three stages of {BLOCKS} blocks with two convolutions (layer1.0.conv1, ...); "
            f"this model has stages of {stages} blocks{kinds}: take uniform or sensitivity"
        )


li2016_a = register_allocator("li2016_a")(Li2016("a"))
li2016_b = register_allocator("li2016_b")(Li2016("b"))
