"""Small networks for selectors that run the model, each with the layers that stand for its gates.

To multiply a channel behind a normalisation by a factor is to multiply the normalisation's scale and shift; behind a
layer, its weights and bias. So Euler's identity gives the derivative with respect to the factor from gradients of
parameters alone: the sum of parameter times gradient over those of the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo import Net, conv, randomise

from srr_ext.calibration import Calibration
from srr_ext.channels import ChannelGroup, analyze_channels
from srr_ext.criteria import SelectorContext, get_selector
from srr_ext.filters import channel_weights
from srr_ext.inputs import run

CLASSES = 5


@dataclass(frozen=True)
class Case:
    """A model, its groups, batches, and for each producer the layer whose parameters are its gates."""

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    batches: list[tuple[Tensor, Tensor]]
    sites: dict[str, str]

    def context(self, seed: int = 0, **options: Any) -> SelectorContext:
        data = options.pop("data", Calibration(self.batches))
        return SelectorContext(self.model, self.batches[0][0][:1], seed, data=data, **options)

    def score(self, name: str, seed: int = 0, **options: Any) -> list[Tensor]:
        return get_selector(name)(self.groups, self.context(seed, **options))


def make_case(model: nn.Module, shape: tuple[int, ...], sites: dict[str, str], samples: int = 4) -> Case:
    """Randomise a model in float64 and find its groups, streams among them."""
    randomise(model.double(), 1)
    generator = torch.Generator().manual_seed(2)
    batches = [
        (
            torch.randn(samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (samples,), generator=generator),
        )
        for _ in range(3)
    ]
    groups = analyze_channels(model, batches[0][0][:1]).groups
    assert {member.module for group in groups for member in group.producers} == set(sites)
    return Case(model.eval(), groups, batches, sites)


def changes(case: Case, group: ChannelGroup, inputs: Tensor, targets: Tensor) -> Tensor:
    """Derivatives of the loss with respect to common factors of the channels of each vertex, float64 [group.size]."""
    case.model.zero_grad()
    nn.functional.cross_entropy(run(case.model, inputs), targets).backward()
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.producers:
        site: Any = case.model.get_submodule(case.sites[member.module])
        products = site.bias * site.bias.grad if site.bias is not None else 0
        if site.weight.ndim == 1:
            products = products + site.weight * site.weight.grad
        else:  # a layer: `channel_weights` knows how its rows lie
            rows = channel_weights(site)
            site.weight.data, kept = site.weight.grad, site.weight.data
            products = products + (rows * channel_weights(site)).sum(1)
            site.weight.data = kept
        for channel, vertex in enumerate(member.vertex.tolist()):
            if vertex >= 0:
                total[vertex] += products[channel].item()
    case.model.zero_grad(set_to_none=True)
    return total


def _chain(inplace: bool) -> Case:
    """Convolutions with and without normalisation, one channel kept; the linear layer reads a flattened map."""
    model = nn.Sequential(
        conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace), conv(6, 7), nn.ReLU(inplace), conv(7, 8, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(inplace), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    return make_case(model, (3, 4, 4), {"0": "1", "3": "3", "5": "6"})


def _residual() -> Case:
    """A stream of three producers and what is inside the blocks, with ReLU in place after the addition."""

    def body(m: Any, x: Tensor) -> Tensor:
        x = m.n(m.stem(x)).relu_()
        for a, na, b, nb in ((m.a1, m.na1, m.b1, m.nb1), (m.a2, m.na2, m.b2, m.nb2)):
            x = (nb(b(na(a(x)).relu_())) + x).relu_()
        out: Tensor = m.head(x.mean((2, 3)))
        return out

    parts: dict[str, nn.Module] = {"stem": conv(3, 6, bias=False), "n": nn.BatchNorm2d(6), "head": nn.Linear(6, 5)}
    for i in (1, 2):
        parts |= {f"a{i}": conv(6, 4), f"na{i}": nn.BatchNorm2d(4), f"b{i}": conv(4, 6), f"nb{i}": nn.BatchNorm2d(6)}
    sites = {"stem": "n", "a1": "na1", "b1": "nb1", "a2": "na2", "b2": "nb2"}
    return make_case(Net(body, **parts), (3, 4, 4), sites)


def _branches() -> Case:
    """Concatenation, a depthwise convolution, a transposed one, and an addition of layers without normalisation."""

    def body(m: Any, x: Tensor) -> Tensor:
        x = torch.cat([m.a(x), m.n(m.b(x))], 1).relu()
        y = m.down(m.deep(x)) + m.side(x)
        out: Tensor = m.head(m.up(y.relu()).mean((2, 3)))
        return out

    net = Net(
        body, a=conv(3, 4), b=conv(3, 5), n=nn.BatchNorm2d(5), deep=conv(9, 9, groups=9), down=conv(9, 6, 1),
        side=conv(9, 6, 1, bias=False), up=nn.ConvTranspose2d(6, 7, 2, 2), head=nn.Linear(7, CLASSES),
    )  # fmt: skip
    return make_case(net, (3, 4, 4), {"a": "a", "b": "n", "down": "down", "side": "side", "up": "up"})


def _shared(norm: bool) -> Case:
    """One convolution that runs three times, on its own output too, with one normalisation or none."""

    def body(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).relu()
        for _ in range(3):
            x = m.n(m.again(x)).relu() if norm else m.again(x).relu()
        out: Tensor = m.head(x.amax((2, 3)))
        return out

    parts = {"n": nn.BatchNorm2d(6)} if norm else {}
    net = Net(body, stem=conv(3, 6), again=conv(6, 6), head=nn.Linear(6, CLASSES), **parts)
    return make_case(net, (3, 4, 4), {"stem": "stem", "again": "n" if norm else "again"})


def _tokens() -> Case:
    """Linear layers over the last of three dimensions."""
    net = Net(
        lambda m, x: m.head(m.b(m.a(x).relu()).tanh().mean(1)), a=nn.Linear(4, 7), b=nn.Linear(7, 6, bias=False),
        head=nn.Linear(6, CLASSES),
    )  # fmt: skip
    return make_case(net, (3, 4), {"a": "a", "b": "b"})


CASES: dict[str, Callable[[], Case]] = {
    "chain": partial(_chain, False),
    "chain_in_place": partial(_chain, True),
    "residual": _residual,
    "branches": _branches,
    "shared": partial(_shared, False),
    "shared_and_normalised": partial(_shared, True),
    "tokens": _tokens,
}


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a selector has to leave alone, in a form that can be compared."""
    return {
        "tensors": {
            name: (id(t), t._version, t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()
        },
        "gradients": {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)) for m in model.modules()
        ],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Compare two states."""
    for name, (identity, version, value) in before["tensors"].items():
        assert after["tensors"][name][:2] == (identity, version), name
        assert torch.equal(after["tensors"][name][2], value), name
    assert {key: value for key, value in before.items() if key != "tensors"} == {
        key: value for key, value in after.items() if key != "tensors"
    }


def close(scores: Tensor, wanted: Tensor | np.ndarray, rtol: float = 1e-9) -> None:
    """Compare scores with an independent computation."""
    want = np.asarray(wanted)
    np.testing.assert_allclose(scores.numpy(), want, rtol=rtol, atol=rtol * float(np.abs(want).max()))
