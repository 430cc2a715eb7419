"""Zoo: element-wise operations, reductions and products, above all those that do not keep zero at zero."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Example, Net, conv, entry, image, same, sandwich

BOTH = ("s", "a")


def _inplace_ops(m: Any, x: Tensor) -> Tensor:
    x.relu_()
    x += 0.5 * x
    x *= 2
    return x.clamp_(max=3.0)


def _inplace_alias(m: Any, x: Tensor) -> Tensor:
    y = x.view_as(x)
    y.add_(x.flip(1))
    return x


def _inplace_add_constant(m: Any, x: Tensor) -> Tensor:
    x.add_(1.0)
    return x


def _out_argument(m: Any, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.mul(x, 2.0, out=y)
    return y


def _standardise(m: Any, x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3)


def _standardise_space(m: Any, x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-3).sqrt()


def _spatial_mask(m: Any, x: Tensor) -> Tensor:
    mask = m.mask(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
    return x * mask


def _attention(m: Any, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    weights = (flat.transpose(1, 2) @ flat).mul(0.1).softmax(-1)
    return (flat @ weights).view_as(x)


def _gram(m: Any, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return torch.bmm(flat, flat.transpose(1, 2)).unsqueeze(-1)


# element-wise, zero stays zero
for name, op in {
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "mish": F.mish,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
}.items():
    sandwich(name, lambda m, x, op=op: op(x), prunable=BOTH)
for name, op in {
    "abs": torch.abs,
    "square": torch.square,
    "sqrt_abs": lambda x: x.abs().sqrt(),
    "expm1": torch.expm1,
    "log1p": lambda x: x.abs().log1p(),
    "sin": torch.sin,
    "sign": torch.sign,
    "negative": lambda x: -x,
    "twice": lambda x: x * 2.5,
    "halved": lambda x: x / 2,
    "clamp_around_zero": lambda x: x.clamp(-0.5, 1.0),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "softshrink": F.softshrink,
    "round": torch.round,
    "detach": torch.detach,
    "to_double_and_back": lambda x: x.double().to(x.dtype),
    "masked_fill_zero": lambda x: x.masked_fill(x > 0.5, 0.0),
}.items():
    sandwich(name, lambda m, x, op=op: op(x))

# element-wise, zero becomes something else: the removed channels would still be seen by the consumer
for name, op in {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "cos": torch.cos,
    "plus_one": lambda x: x + 1,
    "one_minus": lambda x: 1 - x,
    "reversed_division": lambda x: 1.0 / (x.abs() + 1.0),
    "clamp_above_zero": lambda x: x.clamp(min=0.1),
    "power_zero": lambda x: x**0,
    "logit_style": lambda x: (x.sigmoid() * 0.5).log(),
    "masked_fill_one": lambda x: x.masked_fill(x <= 0, 1.0),
    "where_constant": lambda x: torch.where(x > 0, x, 0.3),
    "is_zero": lambda x: (x == 0).to(x.dtype) + x,
    "greater_equal": lambda x: (x >= 0).to(x.dtype),
    "threshold_value": lambda x: F.threshold(x, 0.1, 0.7),
    "nan_to_num_of_log": lambda x: torch.nan_to_num(x.abs().log(), neginf=-2.0),
    "heaviside": lambda x: torch.heaviside(x, torch.ones_like(x)),
    "ones_like": lambda x: torch.ones_like(x) + x,
    "lerp_to_one": lambda x: torch.lerp(x, torch.ones_like(x), 0.5),
    "addcmul": lambda x: torch.addcmul(torch.ones_like(x), x, x),
}.items():
    sandwich(name, lambda m, x, op=op: op(x), fixed=("a",))

# constants along channels
sandwich("add_buffer", lambda m, x: x + m.shift, fixed=("a",), shift=lambda: torch.randn(8, 1, 1))
sandwich("mul_buffer", lambda m, x: x * m.scale, scale=lambda: torch.randn(8, 1, 1))
sandwich("mul_parameter", lambda m, x: x * m.scale, scale=lambda: nn.Parameter(torch.randn(1, 8, 1, 1)))
sandwich(
    "layer_scale_last",
    lambda m, x: (x.permute(0, 2, 3, 1) * m.scale).permute(0, 3, 1, 2),
    scale=lambda: nn.Parameter(torch.randn(8)),
)
sandwich("add_parameter", lambda m, x: x + m.shift, fixed=("a",), shift=lambda: nn.Parameter(torch.randn(1, 8, 1, 1)))
sandwich(
    "position_embedding", lambda m, x: x + m.where, fixed=("a",), where=lambda: nn.Parameter(torch.randn(1, 8, 8, 8))
)
sandwich("add_scalar_parameter", lambda m, x: x + m.shift, fixed=("a",), shift=lambda: nn.Parameter(torch.randn(1)))
sandwich("mul_scalar_parameter", lambda m, x: x * m.scale, scale=lambda: nn.Parameter(torch.randn(1)))
sandwich("divide_buffer", lambda m, x: x / m.scale, scale=lambda: torch.rand(8, 1, 1) + 0.5)
sandwich(
    "affine_by_hand",
    lambda m, x: x * m.scale + m.shift,
    fixed=("a",),
    scale=lambda: torch.randn(8, 1, 1),
    shift=lambda: torch.randn(8, 1, 1),
)
sandwich("constant_in_forward", lambda m, x: x * torch.arange(1.0, 9.0).to(x).view(8, 1, 1))
sandwich("constant_by_size", lambda m, x: x * torch.arange(1, x.shape[1] + 1).to(x).view(-1, 1, 1))
sandwich("divide_by_width", lambda m, x: x / x.shape[1] ** 0.5)
sandwich("width_in_python", lambda m, x: x * (2.0 if x.shape[1] == 8 else 5.0))
sandwich("count_elements", lambda m, x: x * (x.numel() / 1000.0))
sandwich("linspace_by_size", lambda m, x: x * torch.linspace(1, 2, x.size(1)).to(x)[:, None, None])

# reductions over channels and over space
sandwich("sum_channels", lambda m, x: x.sum(1, keepdim=True), out=1)
sandwich("mean_channels", lambda m, x: x.mean(1, keepdim=True), out=1)
sandwich("max_channels", lambda m, x: x.amax(1, keepdim=True), out=1)
sandwich("max_values_channels", lambda m, x: x.max(1, keepdim=True).values, out=1)
sandwich("min_channels", lambda m, x: x.min(dim=1, keepdim=True)[0], out=1)
sandwich("prod_channels", lambda m, x: (x * 0.5 + 1).prod(1, keepdim=True), out=1)
sandwich("logsumexp_channels", lambda m, x: x.logsumexp(1, keepdim=True), out=1)
sandwich("norm_channels", lambda m, x: x.norm(dim=1, keepdim=True), out=1)
sandwich("std_channels", lambda m, x: x.std(1, keepdim=True), out=1)
sandwich("median_channels", lambda m, x: x.median(1, keepdim=True).values, out=1)
sandwich("argmax_channels", lambda m, x: x.argmax(1, keepdim=True).to(x.dtype), out=1)
sandwich("count_positive_channels", lambda m, x: (x >= 0).sum(1, keepdim=True).to(x.dtype), out=1)
sandwich("any_channels", lambda m, x: (x == 0).any(1, keepdim=True).to(x.dtype) + x[:, :1], out=1)
sandwich("cumsum_channels", lambda m, x: x.cumsum(1))
sandwich("cumprod_channels", lambda m, x: (x + 1).cumprod(1))
sandwich("diff_channels", lambda m, x: x.diff(dim=1), out=7)
sandwich("softmax_channels", lambda m, x: x.softmax(1))
sandwich("log_softmax_channels", lambda m, x: F.log_softmax(x, 1))
sandwich("softmin_channels", lambda m, x: F.softmin(x, 1))
sandwich("softmax_space", lambda m, x: x.flatten(2).softmax(-1).view_as(x))
sandwich("normalize_channels", lambda m, x: F.normalize(x, dim=1))
sandwich("standardise_channels", _standardise)
sandwich("standardise_space", _standardise_space)
sandwich("mean_everything", lambda m, x: x - x.mean())
sandwich("max_everything", lambda m, x: x / (x.abs().max() + 1))
sandwich("mean_by_width", lambda m, x: x.sum(1, keepdim=True) / x.shape[1], out=1)
sandwich("einsum_channel_sum", lambda m, x: torch.einsum("bchw->bhw", x)[:, None], out=1)
sandwich("global_average", lambda m, x: x.mean((2, 3), keepdim=True), prunable=BOTH)
sandwich("global_max", lambda m, x: x.amax((2, 3), keepdim=True))
sandwich("adaptive_max_pool", lambda m, x: F.adaptive_max_pool2d(x, 3), prunable=BOTH)
sandwich("avg_pool", lambda m, x: F.avg_pool2d(x, 3, 2, 1), prunable=BOTH)
sandwich("max_pool_indices", lambda m, x: F.max_unpool2d(*F.max_pool2d(x.relu(), 2, return_indices=True), 2))
sandwich("lp_pool", lambda m, x: F.lp_pool2d(x, 2.0, 2))
sandwich("pool_over_channels", lambda m, x: F.max_pool3d(x.unsqueeze(1), (2, 1, 1)).squeeze(1), out=4)
sandwich("average_over_channels_last", lambda m, x: F.avg_pool2d(x.permute(0, 2, 3, 1), 2).permute(0, 3, 1, 2), out=4)
sandwich("adaptive_pool_over_channels", lambda m, x: F.adaptive_avg_pool3d(x, (4, 8, 8)), out=4)

# several features together
sandwich("square_by_hand", lambda m, x: x * x, prunable=("s",))
sandwich("maximum", lambda m, x: torch.maximum(m.b(x), m.c(x)), b=same, c=same)
sandwich("subtract", lambda m, x: m.b(x) - m.c(x).relu(), prunable=("s", "b", "c"), b=same, c=same)
sandwich("divide_features", lambda m, x: m.b(x) / (m.c(x).abs() + 0.5), b=same, c=same)
sandwich("divide_bare", lambda m, x: m.b(x) / m.c(x), b=same, c=same)
sandwich("where_features", lambda m, x: torch.where(m.b(x) > 0, m.b(x), m.c(x)), b=same, c=same)
sandwich("where_other_condition", lambda m, x: torch.where(m.b(x) > 0, x, x.flip(1)), b=same)
sandwich("power_of_features", lambda m, x: (x.abs() + 0.5) ** m.b(x).tanh(), b=same)
sandwich("add_crossed", lambda m, x: m.b(x) + m.b(x).flip(1), b=same)
sandwich("add_shifted", lambda m, x: m.b(x) + m.b(x).roll(1, 1), b=same)
sandwich(
    "broadcast_pooled",
    lambda m, x: m.b(x) + m.c(x).mean((2, 3), keepdim=True),
    prunable=("s", "b", "c"),
    b=same,
    c=same,
)
sandwich("broadcast_one_channel", lambda m, x: m.b(x) + m.c(x), b=same, c=lambda: conv(8, 1))
sandwich("multiply_one_channel", lambda m, x: m.b(x) * m.c(x), b=same, c=lambda: conv(8, 1))
sandwich("film", lambda m, x: m.b(x) * (1 + m.c(x).mean((2, 3), keepdim=True)), b=same, c=same)
sandwich("spatial_mask", _spatial_mask, mask=lambda: conv(2, 1, 7))
sandwich(
    "outer_product",
    lambda m, x: (m.b(x).unsqueeze(2) * m.c(x).unsqueeze(1)).flatten(1, 2),
    out=12,
    b=lambda: conv(8, 3),
    c=lambda: conv(8, 4),
)
sandwich(
    "outer_sum",
    lambda m, x: (m.b(x).unsqueeze(2) + m.c(x).unsqueeze(1)).flatten(1, 2),
    out=12,
    b=lambda: conv(8, 3),
    c=lambda: conv(8, 4),
)
sandwich("self_attention", _attention)
sandwich("gram_matrix", _gram)
sandwich(
    "einsum_mix", lambda m, x: torch.einsum("bchw,cd->bdhw", x, m.mix), mix=lambda: nn.Parameter(torch.randn(8, 8))
)
sandwich("matmul_constant", lambda m, x: (m.mix @ x.flatten(2)).view(2, 6, 8, 8), out=6, mix=lambda: torch.randn(6, 8))
sandwich(
    "cosine_of_features", lambda m, x: F.cosine_similarity(m.b(x), m.c(x), dim=1).unsqueeze(1), out=1, b=same, c=same
)
sandwich("cdist", lambda m, x: torch.cdist(x.flatten(2), x.flatten(2)).unsqueeze(-1))
sandwich("complex_pair", lambda m, x: torch.view_as_real(torch.complex(m.b(x), m.c(x))).sum(-1), b=same, c=same)
sandwich("fft_space", lambda m, x: torch.fft.rfft2(x).real)
sandwich("fft_channels", lambda m, x: torch.fft.fft(x, dim=1).real)

# in place
sandwich("inplace_ops", _inplace_ops)
sandwich("inplace_alias", _inplace_alias)
sandwich("inplace_add_constant", _inplace_add_constant, fixed=("a",))
sandwich("out_argument", _out_argument)
sandwich("inplace_after_read", lambda m, x: m.b(x) + x.relu_(), b=same)

# randomness
sandwich("dropout", lambda m, x: F.dropout(x, 0.5, m.training), prunable=BOTH, random_training=True)
sandwich("dropout_module", lambda m, x: m.drop(x), prunable=BOTH, drop=nn.Dropout)
sandwich("dropout_channels", lambda m, x: m.drop(x), prunable=BOTH, drop=nn.Dropout2d)
sandwich("dropout_alpha", lambda m, x: m.drop(x), drop=nn.AlphaDropout)
sandwich("dropout_inplace", lambda m, x: m.drop(x), prunable=BOTH, drop=lambda: nn.Dropout(inplace=True))
sandwich("noise_in_training", lambda m, x: x + torch.randn_like(x) if m.training else x, random_training=True)


@entry(prunable=("s",))
def embedding_added() -> tuple[nn.Module, Example]:
    """A class embedding is added to the features: channels meet an embedding's columns."""
    net = Net(
        lambda m, x, y: m.z((m.a(m.s(x).relu()) + m.table(y)[:, :, None, None]).relu()),
        s=conv(3, 6),
        a=conv(6, 8),
        table=nn.Embedding(4, 8),
        z=conv(8, 5),
    )
    return net.eval(), (image(), torch.tensor([1, 3]))


@entry(prunable=("s",))
def learned_query() -> tuple[nn.Module, Example]:
    """A raw parameter attends to the features."""
    net = Net(
        lambda m, x: m.z(torch.einsum("bchw,qc->bqhw", m.a(m.s(x).relu()), m.query).softmax(1)),
        s=conv(3, 6),
        a=conv(6, 8),
        query=nn.Parameter(torch.randn(4, 8)),
        z=conv(4, 5),
    )
    return net.eval(), image()
