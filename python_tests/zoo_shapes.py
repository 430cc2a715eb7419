"""Zoo: operations that move, split, merge, select or copy channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Example, Net, conv, entry, image, sandwich


def _shuffle(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def _shuffle_minus_one(m: Any, x: Tensor) -> Tensor:
    b, _, h, w = x.size()
    return x.view(b, 2, -1, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


def _setitem_halves(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, : x.shape[1] // 2] = x[:, x.shape[1] // 2 :]
    return y


def _setitem_one(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2] = x[:, 5]
    return y


def _setitem_constant(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = 0.7
    return y


def _copy_into(m: Any, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(x.flip(1))
    return y


def _index_put(m: Any, x: Tensor) -> Tensor:
    y = x.clone().transpose(0, 1)
    index = (torch.tensor([1, 3], device=x.device),)
    return y.index_put_(index, y[4:6] * 2).transpose(0, 1)


def _scatter(m: Any, x: Tensor) -> Tensor:
    index = m.order.view(1, -1, 1, 1).expand(x.shape)
    return torch.zeros_like(x).scatter(1, index, x)


def _gather(m: Any, x: Tensor) -> Tensor:
    return x.gather(1, m.order.view(1, -1, 1, 1).expand(x.shape))


def _swap_chunks(m: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def _add_chunks(m: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a + b


def _overlap(m: Any, x: Tensor) -> Tensor:
    return torch.cat([x[:, :5], x[:, 3:]], 1)


def _interleave(m: Any, x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(1)], 2).flatten(1, 2)


def _moved_list(m: Any, x: Tensor) -> Tensor:
    parts = [x[:, i : i + 1] for i in range(x.shape[1])]
    return torch.cat(parts[::-1], 1)


def _split_uneven(m: Any, x: Tensor) -> Tensor:
    a, b = x.split([3, 5], 1)
    return torch.cat([b, a], 1)


def _reshape_pairs(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c // 2, 2, h, w).sum(2)


def _pad_and_cut(m: Any, x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 2, 3))[:, 1:-1]


ORDER = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])


def _order() -> Tensor:
    return ORDER.clone()


sandwich("identity", lambda m, x: x, prunable=("s", "a"))
sandwich("shuffle_dynamic", _shuffle, prunable=("s", "a"))
sandwich("shuffle_minus_one", _shuffle_minus_one, prunable=("s", "a"))
sandwich("shuffle_literal", lambda m, x: x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8))
sandwich("shuffle_native", lambda m, x: F.channel_shuffle(x, 2))
sandwich("flip_channels", lambda m, x: x.flip(1))
sandwich("flip_space", lambda m, x: x.flip(-1).flip(2), prunable=("s", "a"))
sandwich("roll_channels", lambda m, x: x.roll(3, 1))
sandwich("roll_space", lambda m, x: x.roll((1, 2), (2, 3)), prunable=("s", "a"))
sandwich("roll_everything", lambda m, x: x.roll(7))
sandwich("slice_literal", lambda m, x: x[:, :5], out=5)
sandwich("slice_negative", lambda m, x: x[:, -3:], out=3)
sandwich("slice_half", lambda m, x: x[:, : x.shape[1] // 2], out=4)
sandwich("slice_second_half", lambda m, x: x[:, x.size(1) // 2 :], out=4)
sandwich("slice_strided", lambda m, x: x[:, ::2], out=4)
sandwich("slice_strided_odd", lambda m, x: x[:, 1::3], out=3)
sandwich("slice_space", lambda m, x: x[:, :, ::2, 1:], prunable=("s", "a"))
sandwich("slice_ellipsis", lambda m, x: x[..., 2:, :-1], prunable=("s", "a"))
sandwich("slice_overlap", _overlap, out=10)
sandwich("select_one", lambda m, x: x[:, 3].unsqueeze(1), out=1)
sandwich("narrow", lambda m, x: x.narrow(1, 2, 4), out=4)
sandwich("index_select", lambda m, x: x.index_select(1, m.order), order=_order)
sandwich("index_list", lambda m, x: x[:, [4, 2, 2, 0]], out=4)
sandwich("index_tensor", lambda m, x: x[:, m.order[:6]], out=6, order=_order)
sandwich("index_mask", lambda m, x: x[:, m.order > 2], out=5, order=_order)
sandwich("gather", _gather, order=_order)
sandwich("take_along_dim", lambda m, x: x.take_along_dim(m.order.view(1, -1, 1, 1), 1), order=_order)
sandwich("scatter", _scatter, order=_order)
sandwich("chunk_swap", _swap_chunks)
sandwich("chunk_add", _add_chunks, out=4)
sandwich("chunk_first", lambda m, x: x.chunk(2, 1)[0], out=4)
sandwich("chunk_uneven", lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1))
sandwich("split_literal", lambda m, x: torch.cat(x.split(4, 1)[::-1], 1))
sandwich("split_dynamic", lambda m, x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1))
sandwich("split_uneven", _split_uneven)
sandwich("tensor_split", lambda m, x: torch.cat(x.tensor_split((2, 5), 1)[::-1], 1))
sandwich("unbind_stack", lambda m, x: torch.stack(x.unbind(1)[::-1], 1))
sandwich("unbind_batch", lambda m, x: torch.stack(x.unbind(0)[::-1], 0))
sandwich("stack_pairs", _interleave, out=16)
sandwich("python_list_of_channels", _moved_list)
sandwich("cat_twice", lambda m, x: torch.cat([x, x], 1), out=16, prunable=("s", "a"))
sandwich("cat_three_of_two", lambda m, x: torch.cat([x, x.relu(), x], 1), out=24, prunable=("s", "a"))
sandwich(
    "cat_with_zeros", lambda m, x: torch.cat([x, x.new_zeros(x.shape[0], 2, 8, 8)], 1), out=10, prunable=("s", "a")
)
sandwich("cat_with_ones", lambda m, x: torch.cat([torch.ones_like(x[:, :3]), x], 1), out=11)
sandwich("cat_with_ones_like_all", lambda m, x: torch.cat([torch.ones_like(x), x], 1), out=16)
sandwich("cat_space", lambda m, x: torch.cat([x, x * 2], 3), prunable=("s", "a"))
sandwich("cat_batch", lambda m, x: torch.cat([x, x.flip(3)], 0), prunable=("s", "a"))
sandwich("cat_input", lambda m, x: torch.cat([x, F.relu(x)], 1).flip(1), out=16)
sandwich("glu", lambda m, x: F.glu(x, 1), out=4)
sandwich("pixel_shuffle", lambda m, x: F.pixel_shuffle(x, 2), out=2)
sandwich("pixel_unshuffle", lambda m, x: F.pixel_unshuffle(x, 2), out=32)
sandwich("permute_round_trip", lambda m, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), prunable=("s", "a"))
sandwich("swap_channel_and_height", lambda m, x: x.transpose(1, 2))
sandwich("rot90_channel_plane", lambda m, x: x.rot90(1, (1, 2)))
sandwich("channels_to_batch", lambda m, x: x.reshape(-1, 4, 8, 8).view(2, 8, 8, 8))
sandwich("channels_into_width", lambda m, x: x.reshape(2, 4, 8, 16), out=4)
sandwich("reshape_pairs", _reshape_pairs, out=4)
sandwich("unflatten", lambda m, x: x.unflatten(1, (2, -1)).flip(1).flatten(1, 2))
sandwich("scramble", lambda m, x: x.flatten().flip(0).view_as(x))
sandwich("repeat_blocks", lambda m, x: x.repeat(1, 2, 1, 1), out=16)
sandwich("repeat_interleave", lambda m, x: x.repeat_interleave(2, 1), out=16)
sandwich("tile_space", lambda m, x: x.tile(1, 1, 2, 1), prunable=("s", "a"))
sandwich("expand_one", lambda m, x: x[:, :1].expand(-1, 4, -1, -1), out=4)
sandwich("expand_width_one", lambda m, x: x.expand(-1, 4, -1, -1), width=1, out=4)
sandwich("setitem_halves", _setitem_halves)
sandwich("setitem_one", _setitem_one)
sandwich("setitem_constant", _setitem_constant)
sandwich("copy_into", _copy_into)
sandwich("index_put", _index_put)
sandwich("pad_channels", lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2)), out=11)
sandwich("pad_channels_ones", lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2), value=1.0), out=11)
sandwich("pad_channels_negative", lambda m, x: F.pad(x, (0, 0, 0, 0, -2, 1)), out=7)
sandwich("pad_and_cut", _pad_and_cut, out=11)
sandwich("pad_space", lambda m, x: F.pad(x, (1, 2, 0, 1)), prunable=("s", "a"))
sandwich("pad_reflect", lambda m, x: F.pad(x, (1, 2, 1, 1), mode="reflect"), prunable=("s",))
sandwich("pad_space_ones", lambda m, x: F.pad(x, (1, 1, 1, 1), value=1.0), fixed=("a",))
sandwich("unfold_patches", lambda m, x: F.unfold(x, 2).view(2, 32, 7, 7), out=32)
sandwich("unfold_patches_dynamic", lambda m, x: F.unfold(x, 2).unflatten(2, (7, 7)), out=32)
sandwich("fold", lambda m, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2))
sandwich("unfold_method", lambda m, x: x.unfold(2, 3, 1).mean(-1), prunable=("s",))
sandwich("unfold_channels", lambda m, x: x.unfold(1, 3, 1).mean(-1), out=6)
sandwich("as_strided", lambda m, x: x.contiguous().as_strided((2, 4, 8, 8), (512, 128, 8, 1)), out=4)
sandwich("sort_channels", lambda m, x: x.sort(1).values)
sandwich("topk_channels", lambda m, x: x.topk(4, 1).values, out=4)
sandwich("tril_over_channels", lambda m, x: x.transpose(1, 2).tril().transpose(1, 2))
sandwich("interpolate", lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"), prunable=("s", "a"))
sandwich("interpolate_nearest", lambda m, x: F.interpolate(x, size=(5, 6)), prunable=("s", "a"))
sandwich(
    "interpolate_channels",
    lambda m, x: F.interpolate(x.permute(0, 2, 3, 1), size=(8, 4)).permute(0, 3, 1, 2),
    out=4,
)
sandwich(
    "grid_sample", lambda m, x: F.grid_sample(x, m.grid.to(x), align_corners=False), grid=lambda: torch.rand(2, 6, 6, 2)
)


@entry(prunable=("features.0", "features.2"))
def flatten_nchw() -> tuple[nn.Module, Example]:
    """Flatten channels first, then a linear layer: in-indices come in runs of height x width."""
    features = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    net = Net(lambda m, x: m.head(torch.flatten(m.features(x), 1)), features=features, head=nn.Linear(32, 5))
    return net.eval(), image()


@entry(prunable=("a",))
def flatten_nhwc() -> tuple[nn.Module, Example]:
    """Flatten channels last, then a linear layer: in-indices are strided."""
    net = Net(
        lambda m, x: m.head(m.a(x).relu().permute(0, 2, 3, 1).flatten(1)),
        a=conv(3, 8, stride=2),
        head=nn.Linear(128, 5),
    )
    return net.eval(), image()


@entry()
def flatten_literal() -> tuple[nn.Module, Example]:
    """A literal size in view freezes the flattened dimension, unless surgery rewrites it."""
    net = Net(
        lambda m, x: m.head(m.a(m.s(x)).relu().view(-1, 128)),
        s=conv(3, 6),
        a=conv(6, 8, stride=2),
        head=nn.Linear(128, 5),
    )
    return net.eval(), image()


@entry(prunable=("a", "hidden"))
def flatten_batch_first() -> tuple[nn.Module, Example]:
    """``view(batch, -1)`` before a multilayer perceptron."""
    net = Net(
        lambda m, x: m.head(m.hidden(m.a(x).relu().view(x.size(0), -1)).relu()),
        a=conv(3, 8, stride=2),
        hidden=nn.Linear(128, 10),
        head=nn.Linear(10, 5),
    )
    return net.eval(), image()


@entry(prunable=("a",))
def flatten_two_parts() -> tuple[nn.Module, Example]:
    """Average and maximum, flattened and concatenated, into one linear layer."""
    net = Net(
        lambda m, x: m.head(
            torch.cat([(y := m.a(x).relu()).mean((2, 3)), y.amax((2, 3)), y[:, :, ::4, ::4].flatten(1)], 1)
        ),
        a=conv(3, 8),
        head=nn.Linear(8 + 8 + 32, 5),
    )
    return net.eval(), image()


@entry(prunable=("s",))
def pixel_shuffle_head() -> tuple[nn.Module, Example]:
    """Super-resolution: the last convolution feeds PixelShuffle, which feeds the output."""
    net = Net(lambda m, x: m.up(m.a(m.s(x).relu())), s=conv(3, 6), a=conv(6, 12), up=nn.PixelShuffle(2))
    return net.eval(), image()


@entry(prunable=("s",))
def glu_gated() -> tuple[nn.Module, Example]:
    """A gated unit written by hand: value * sigmoid(gate), both halves of one convolution."""

    def body(m: Any, x: Tensor) -> Tensor:
        value, gate = m.a(m.s(x).relu()).chunk(2, 1)
        out: Tensor = m.z(value * gate.sigmoid())
        return out

    return Net(body, s=conv(3, 6), a=conv(6, 12), z=conv(6, 5)).eval(), image()
