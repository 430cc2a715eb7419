"""Small networks with their channel analysis written by hand, to test the planning stages without the stage before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.allocators import Allocation, AllocatorContext, decide, prepare
from srr_ext.channels.records import ChannelAnalysis, ChannelGroup, Layer, Member, Role, Side
from srr_ext.cost import Quantity, Target


@dataclass(frozen=True)
class Net:
    """A model, inputs for it, and what channel analysis should say about it."""

    model: nn.Module
    inputs: Tensor
    analysis: ChannelAnalysis

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        return self.analysis.groups


def member(module: str, side: Side, role: Role, vertex: Sequence[int] | np.ndarray) -> Member:
    return Member(module, side, role, np.asarray(vertex, dtype=np.int64))


def of_layers(model: nn.Module, groups: tuple[ChannelGroup, ...], layers: Sequence[Layer]) -> ChannelAnalysis:
    params = sum(p.numel() for p in model.parameters())
    return ChannelAnalysis(groups, {layer.name: layer for layer in layers}, total_params=params)


def chain(widths: tuple[int, int] = (6, 8), seed: int = 0) -> Net:
    """Two convolutions with normalisation, then a linear layer on the flattened 4 x 4 map: two groups."""
    torch.manual_seed(seed)
    a, b = widths
    model = nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1, bias=False),
        nn.BatchNorm2d(b), nn.ReLU(), nn.Flatten(), nn.Linear(b * 16, 5),
    )  # fmt: skip
    first, second = np.arange(a), np.arange(b)
    groups = (
        ChannelGroup("0", a, (member("0", "out", "producer", first), member("1", "out", "follower", first),
                              member("3", "in", "consumer", first))),
        ChannelGroup("3", b, (member("3", "out", "producer", second), member("4", "out", "follower", second),
                              member("7", "in", "consumer", second.repeat(16)))),
    )  # fmt: skip
    layers = [
        Layer("0", "conv", 3, a, kernel=9, positions=16, tensors=1),
        Layer("1", "norm", a, a, tensors=2),
        Layer("3", "conv", a, b, kernel=9, positions=16),
        Layer("4", "norm", b, b, tensors=2),
        Layer("7", "linear", b * 16, 5, positions=1, tensors=1),
    ]
    return Net(model, torch.randn(1, 3, 4, 4), of_layers(model, groups, layers))


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(8, 12, 1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


def residual(seed: int = 0) -> Net:
    """One residual block: a stream of 8 channels from two producers, and 12 channels inside."""
    torch.manual_seed(seed)
    model, stream, inner = _Residual(), np.arange(8), np.arange(12)
    groups = (
        ChannelGroup("stem", 8, (member("stem", "out", "producer", stream), member("outer", "out", "producer", stream),
                                 member("inner", "in", "consumer", stream), member("head", "in", "consumer", stream)),
                     stream=True),
        ChannelGroup("inner", 12, (member("inner", "out", "producer", inner),
                                   member("outer", "in", "consumer", inner))),
    )  # fmt: skip
    layers = [
        Layer("stem", "conv", 3, 8, kernel=9, positions=16),
        Layer("inner", "conv", 8, 12, positions=16, tensors=1),
        Layer("outer", "conv", 12, 8, kernel=9, positions=16),
        Layer("head", "linear", 8, 5, positions=1, tensors=1),
    ]
    return Net(model, torch.randn(1, 3, 4, 4), of_layers(model, groups, layers))


def grouped(seed: int = 0) -> Net:
    """A grouped convolution whose groups shrink alike, a depthwise one, and a pinned channel: two groups.

    Convolution 0 makes 8 channels in pairs (c, c + 4), which convolution 1 reads in two groups; that makes 10 channels,
    the first of them pinned, which pass the depthwise convolution 2 on their way to the linear layer.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 10, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(10, 10, 3, padding=1, groups=10), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5),
    )  # fmt: skip
    pairs = np.tile(np.arange(4), 2)
    tail = np.tile([-1, 0, 1, 2, 3], 2)
    groups = (
        ChannelGroup("0", 4, (member("0", "out", "producer", pairs), member("1", "in", "consumer", pairs))),
        ChannelGroup("1", 4, (member("1", "out", "producer", tail), member("2", "out", "follower", tail),
                              member("2", "in", "follower", tail), member("5", "in", "consumer", tail))),
    )  # fmt: skip
    layers = [
        Layer("0", "conv", 4, 8, groups=2, positions=16, tensors=1),
        Layer("1", "conv", 8, 10, groups=2, kernel=9, positions=16),
        Layer("2", "conv", 10, 10, groups=10, whole_groups=True, kernel=9, positions=16, tensors=1),
        Layer("5", "linear", 10, 5, positions=1, tensors=1),
    ]
    return Net(model, torch.randn(1, 4, 4, 4), of_layers(model, groups, layers))


NETS = {"chain": chain, "residual": residual, "grouped": grouped}


def deep(widths: Sequence[int], seed: int = 0, duplicates: float = 0.3) -> Net:
    """A chain of 1x1 convolutions, some of whose filters are noisy copies of others, as in trained networks."""
    torch.manual_seed(seed)
    sizes = [3, *widths]
    convs = [nn.Conv2d(n, m, 1) for n, m in pairwise(sizes)]
    for conv in convs:
        weight = conv.weight.data
        copies = torch.rand(len(weight)) < duplicates
        sources = torch.randint(len(weight), (len(weight),))
        weight[copies] = weight[sources][copies] + 0.05 * weight.std() * torch.randn_like(weight)[copies]
    model = nn.Sequential(*convs, nn.Conv2d(sizes[-1], 4, 1))
    groups = tuple(
        ChannelGroup(
            str(i), m, (member(str(i), "out", "producer", range(m)), member(str(i + 1), "in", "consumer", range(m)))
        )
        for i, m in enumerate(widths)
    )
    layers = [
        Layer(str(i), "conv", n, m, positions=4, tensors=1)
        for i, (n, m) in enumerate(zip(sizes, [*widths, 4], strict=True))
    ]
    return Net(model, torch.randn(1, 3, 2, 2), of_layers(model, groups, layers))


def plan(
    net: Net,
    allocator: Any = "uniform",
    selector: Any = "l1",
    keep: float = 0.5,
    quantity: Quantity = "macs",
    **options: Any,
) -> tuple[dict[str, np.ndarray], Allocation]:
    target = Target(quantity, keep)
    return decide(net.analysis, net.groups, net.model, net.inputs, allocator, selector, target, **options)


def context_of(net: Net, **options: Any) -> AllocatorContext:
    return prepare(net.groups, net.model, net.inputs, "l1", **options)[1]
