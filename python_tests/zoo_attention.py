"""Zoo: blocks with attention, gates computed along channels, and channels-last layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Example, Net, conv, conv_bn, entry, image


def _convnext(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.depth(x).permute(0, 2, 3, 1))
    y = m.scale * m.second(F.gelu(m.first(y)))
    return x + y.permute(0, 3, 1, 2)


@entry(prunable=("block.first",))
def convnext_block() -> tuple[nn.Module, Example]:
    """Depthwise 7x7, channels-last LayerNorm, two linear layers and a layer scale."""
    block = Net(
        _convnext,
        depth=conv(8, 8, 7, groups=8),
        norm=nn.LayerNorm(8),
        first=nn.Linear(8, 16),
        second=nn.Linear(16, 8),
        scale=nn.Parameter(torch.randn(8)),
    )
    return Net(lambda m, x: m.z(m.block(m.stem(x))), stem=conv(3, 8), block=block, z=conv(8, 5)).eval(), image()


def _attention(m: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).softmax(-1)
    out: Tensor = m.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
    return out


def _encoder(m: Any, x: Tensor) -> Tensor:
    x = x + _attention(m, m.norm1(x))
    out: Tensor = x + m.fc2(F.gelu(m.fc1(m.norm2(x))))
    return out


@entry(prunable=("block.fc1",))
def vision_transformer() -> tuple[nn.Module, Example]:
    """Patches, class token, position embedding, attention and a multilayer perceptron."""
    block = Net(
        _encoder,
        norm1=nn.LayerNorm(8),
        qkv=nn.Linear(8, 24),
        proj=nn.Linear(8, 8),
        norm2=nn.LayerNorm(8),
        fc1=nn.Linear(8, 16),
        fc2=nn.Linear(16, 8),
    )

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.embed(x).flatten(2).transpose(1, 2)
        y = torch.cat([m.token.expand(x.shape[0], -1, -1), y], 1) + m.where
        out: Tensor = m.head(m.block(y)[:, 0])
        return out

    net = Net(
        body,
        embed=conv(3, 8, 4, stride=4, padding=0),
        token=nn.Parameter(torch.randn(1, 1, 8)),
        where=nn.Parameter(torch.randn(1, 5, 8)),
        block=block,
        head=nn.Linear(8, 5),
    )
    return net.eval(), image()


@entry(prunable=("fc1",))
def transformer_ffn_sdpa() -> tuple[nn.Module, Example]:
    """scaled_dot_product_attention between linear layers."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = x + m.o(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))
        out: Tensor = m.head(y + m.fc2(m.fc1(y).relu()))
        return out

    parts = {name: nn.Linear(8, 8) for name in "qkvo"}
    return Net(body, fc1=nn.Linear(8, 16), fc2=nn.Linear(16, 8), head=nn.Linear(8, 5), **parts).eval(), torch.randn(
        2, 7, 8
    )


@entry(prunable=("stem.0",))
def channel_attention_eca() -> tuple[nn.Module, Example]:
    """ECA: a one-dimensional convolution along the channel axis makes the gates."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(m.stem(x))
        gates = m.along(y.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)
        out: Tensor = m.z(y * gates[:, :, None, None])
        return out

    return Net(
        body, stem=conv_bn(3, 6), a=conv_bn(6, 8), along=nn.Conv1d(1, 1, 3, padding=1), z=conv(8, 5)
    ).eval(), image()


@entry(prunable=("stem.0",))
def selective_kernel() -> tuple[nn.Module, Example]:
    """SKNet: softmax over branches weighs two features of equal width."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        pair = torch.stack([m.a(y), m.b(y)], 1)
        weights = torch.stack([m.f1(y.mean((2, 3))), m.f2(y.mean((2, 3)))], 1).softmax(1)
        out: Tensor = m.z((pair * weights[..., None, None]).sum(1))
        return out

    net = Net(
        body,
        stem=conv_bn(3, 6),
        a=conv_bn(6, 8),
        b=conv_bn(6, 8, 5),
        f1=nn.Linear(6, 8),
        f2=nn.Linear(6, 8),
        z=conv(8, 5),
    )
    return net.eval(), image()
