"""Zoo: kinds of layers, normalisations, reparametrisations, sharing and tying."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo import Example, Net, conv, entry, image, register, same, sandwich

BOTH = ("s", "a")


def _old_style(function: str, module: nn.Module) -> nn.Module:
    """Return the module with the reparametrisation by hooks, which newer PyTorch calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: nn.Module = getattr(torch.nn.utils, function)(module)
    return wrapped


def _layer(name: str, part: Any, *, prunable: tuple[str, ...] = ("s",), out: int | None = None, **options: Any) -> None:
    sandwich(name, lambda m, x: m.b(x), prunable=prunable, out=out, b=part, **options)


# convolutions
_layer("conv_stride", lambda: conv(8, 8, stride=2), prunable=("s", "a", "b"))
_layer("conv_dilated", lambda: conv(8, 8, padding=2, dilation=2), prunable=("s", "a", "b"))
_layer("conv_padding_same", lambda: conv(8, 8, padding="same"), prunable=("s", "a", "b"))
_layer("conv_padding_circular", lambda: conv(8, 8, padding_mode="circular"), prunable=("s", "a", "b"))
_layer("conv_padding_reflect", lambda: conv(8, 8, padding_mode="reflect"), prunable=("s", "a", "b"))
_layer("conv_no_bias", lambda: conv(8, 8, bias=False), prunable=("s", "a", "b"))
_layer("depthwise", lambda: conv(8, 8, groups=8), prunable=BOTH)
_layer("depthwise_multiplier_2", lambda: conv(8, 16, groups=8), out=16)
_layer("depthwise_multiplier_3", lambda: conv(8, 24, groups=8, bias=False), out=24)
_layer("grouped_two", lambda: conv(8, 8, groups=2))
_layer("grouped_wider", lambda: conv(8, 16, groups=2), out=16)
_layer("grouped_narrow", lambda: conv(8, 8, groups=4))
_layer("grouped_narrow_wider", lambda: conv(8, 12, groups=4), out=12)
_layer("grouped_narrower", lambda: conv(8, 4, groups=4), out=4)
_layer("transposed", lambda: nn.ConvTranspose2d(8, 10, 2, 2), out=10, prunable=("s", "a", "b"))
_layer(
    "transposed_odd",
    lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, bias=False),
    out=6,
    prunable=("s", "a", "b"),
)
_layer("transposed_grouped", lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=2), out=12)
_layer("transposed_depthwise", lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=8))
_layer("transposed_depthwise_multiplier", lambda: nn.ConvTranspose2d(8, 16, 2, 2, groups=8), out=16)
sandwich(
    "grouped_after_grouped",
    lambda m, x: m.c(m.b(x).relu()),
    b=lambda: conv(8, 12, groups=4),
    c=lambda: conv(12, 8, groups=2),
)
sandwich(
    "grouped_then_shuffle",
    lambda m, x: m.c(m.b(x).relu().unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)),
    b=lambda: conv(8, 8, groups=2),
    c=lambda: conv(8, 8, groups=2),
)
sandwich("grouped_and_residual", lambda m, x: x + m.b(x.relu()), b=lambda: conv(8, 8, groups=2))
sandwich("depthwise_and_residual", lambda m, x: x + m.b(x.relu()), b=lambda: conv(8, 8, groups=8), prunable=BOTH)
sandwich(
    "depthwise_after_cat",
    lambda m, x: m.b(torch.cat([x, x.relu()], 1)),
    out=16,
    b=lambda: conv(16, 16, groups=16),
    prunable=BOTH,
)
sandwich("grouped_after_cat", lambda m, x: m.b(torch.cat([x, m.c(x)], 1)), b=lambda: conv(16, 8, groups=2), c=same)
sandwich("depthwise_after_flip", lambda m, x: m.b(x.flip(1)), b=lambda: conv(8, 8, groups=8))

# normalisations
_layer("batch_norm", lambda: nn.BatchNorm2d(8), prunable=BOTH)
_layer("batch_norm_no_affine", lambda: nn.BatchNorm2d(8, affine=False), fixed=("a",))
_layer("batch_norm_no_statistics", lambda: nn.BatchNorm2d(8, track_running_stats=False))
_layer("batch_norm_no_bias", lambda: nn.BatchNorm2d(8))
_layer("instance_norm", lambda: nn.InstanceNorm2d(8))
_layer("instance_norm_affine", lambda: nn.InstanceNorm2d(8, affine=True))
_layer("instance_norm_statistics", lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
_layer("group_norm", lambda: nn.GroupNorm(4, 8))
_layer("group_norm_one", lambda: nn.GroupNorm(1, 8))
_layer("group_norm_each", lambda: nn.GroupNorm(8, 8))
_layer("local_response_norm", lambda: nn.LocalResponseNorm(3, alpha=0.5, k=1.0))
sandwich("layer_norm_last", lambda m, x: m.b(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), b=lambda: nn.LayerNorm(8))
sandwich("layer_norm_all", lambda m, x: m.b(x), b=lambda: nn.LayerNorm([8, 8, 8]))
sandwich("layer_norm_space", lambda m, x: m.b(x), b=lambda: nn.LayerNorm([8, 8]))
sandwich("rms_norm_last", lambda m, x: m.b(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), b=lambda: nn.RMSNorm(8))
sandwich(
    "functional_batch_norm",
    lambda m, x: F.batch_norm(x, m.mean, m.var, m.scale, m.shift),
    mean=lambda: torch.randn(8),
    var=lambda: torch.rand(8) + 0.5,
    scale=lambda: nn.Parameter(torch.randn(8)),
    shift=lambda: nn.Parameter(torch.randn(8)),
)
sandwich("shared_batch_norm", lambda m, x: m.n(m.b(x)) + m.n(m.c(x)), b=same, c=same, n=lambda: nn.BatchNorm2d(8))
sandwich(
    "shared_batch_norm_cat",
    lambda m, x: torch.cat([m.n(m.b(x)), m.n(m.c(x))], 1),
    out=16,
    b=same,
    c=same,
    n=lambda: nn.BatchNorm2d(8),
)
sandwich(
    "batch_norm_before_and_after_cat",
    lambda m, x: m.n(torch.cat([m.k(m.b(x)), m.c(x)], 1)),
    out=14,
    prunable=("s", "a", "b", "c"),
    b=same,
    c=lambda: conv(8, 6),
    k=lambda: nn.BatchNorm2d(8),
    n=lambda: nn.BatchNorm2d(14),
)
sandwich("batch_norm_twice", lambda m, x: m.n(m.n(x).relu()), n=lambda: nn.BatchNorm2d(8))
sandwich("batch_norm_on_flipped", lambda m, x: m.n(x) + m.n(x.flip(1)), n=lambda: nn.BatchNorm2d(8))
_layer("prelu_channels", lambda: nn.PReLU(8), prunable=BOTH)
_layer("prelu_single", lambda: nn.PReLU(), prunable=BOTH)
_layer("rrelu", lambda: nn.RReLU(), random_training=True)

# reparametrisations
_layer("weight_norm_hook", lambda: _old_style("weight_norm", conv(8, 8)))
_layer("weight_norm", lambda: parametrizations.weight_norm(conv(8, 8)))
_layer("weight_norm_transposed", lambda: parametrizations.weight_norm(nn.ConvTranspose2d(8, 8, 2, 2)))
_layer("spectral_norm_hook", lambda: _old_style("spectral_norm", conv(8, 8)))
_layer("spectral_norm", lambda: parametrizations.spectral_norm(conv(8, 8)))
_layer("orthogonal", lambda: parametrizations.orthogonal(conv(8, 8, 1)))

# other shapes of data
sandwich("unsqueezed_conv3d", lambda m, x: m.b(x.unsqueeze(1)).mean(1), b=lambda: nn.Conv3d(1, 4, 3, padding=1))
sandwich(
    "conv3d_depth",
    lambda m, x: m.b(x.unsqueeze(2)).squeeze(2),
    prunable=("s", "a", "b"),
    b=lambda: nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)),
)
sandwich(
    "conv1d_rows",
    lambda m, x: m.b(x.flatten(2)).unflatten(2, (8, 8)),
    prunable=("s", "a", "b"),
    b=lambda: nn.Conv1d(8, 8, 5, padding=2),
)
sandwich("linear_on_width", lambda m, x: m.b(x), b=lambda: nn.Linear(8, 8))
sandwich(
    "linear_channels_last",
    lambda m, x: m.b(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    prunable=("s", "a"),
    b=lambda: nn.Linear(8, 8),
)
sandwich(
    "lstm",
    lambda m, x: m.b(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, (8, 8)),
    out=4,
    b=lambda: nn.LSTM(8, 4, batch_first=True),
)
sandwich(
    "gru_over_channels", lambda m, x: m.b(x.flatten(2))[0].unsqueeze(-1), b=lambda: nn.GRU(64, 4, batch_first=True)
)
sandwich(
    "multihead_attention",
    lambda m, x: m.b(*[x.flatten(2).transpose(1, 2)] * 3)[0].transpose(1, 2).unflatten(2, (8, 8)),
    b=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
)
sandwich(
    "transformer_layer",
    lambda m, x: m.b(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8)),
    b=lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
)
sandwich("bilinear", lambda m, x: m.b(x.mean((2, 3)), x.amax((2, 3)))[:, :, None, None], b=lambda: nn.Bilinear(8, 8, 8))

# sharing and raw parameters
sandwich("shared_conv_chain", lambda m, x: m.b(m.b(x).relu()), b=same)
sandwich("shared_conv_branches", lambda m, x: torch.cat([m.b(x), m.b(x.flip(1))], 1), out=16, b=same)
sandwich("shared_conv_sizes", lambda m, x: F.interpolate(m.b(F.avg_pool2d(x, 2)), scale_factor=2) + m.b(x), b=same)
sandwich(
    "raw_conv_weight",
    lambda m, x: F.conv2d(x, m.raw, padding=1).relu(),
    out=7,
    raw=lambda: nn.Parameter(torch.randn(7, 8, 3, 3)),
)
sandwich(
    "raw_linear_weight",
    lambda m, x: F.linear(x.mean((2, 3)), m.raw)[:, :, None, None],
    out=7,
    raw=lambda: nn.Parameter(torch.randn(7, 8)),
)
sandwich("scaled_weight", lambda m, x: F.conv2d(x, m.b.weight * 0.5, m.b.bias, padding=1), b=same)
sandwich(
    "standardised_weight",
    lambda m, x: F.conv2d(x, m.b.weight - m.b.weight.mean((1, 2, 3), keepdim=True), m.b.bias, padding=1),
    b=same,
)
sandwich("weight_read_elsewhere", lambda m, x: m.b(x) * m.b.weight.abs().mean(), b=same)
sandwich("bias_read_elsewhere", lambda m, x: m.b(x).relu() + m.a.bias[:, None, None], b=same)
sandwich(
    "dynamic_convolution",
    lambda m, x: F.conv2d(x, m.b(x).mean((0, 2, 3)).view(8, 1, 1, 1).expand(-1, 8, -1, -1)),
    b=same,
)


def _tied(share_bias: bool) -> Net:
    net = Net(lambda m, x: m.z(m.c(m.b(m.s(x)).relu()).relu()), s=conv(3, 8), b=conv(8, 8), c=conv(8, 8), z=conv(8, 5))
    net.c.weight = net.b.weight
    if share_bias:
        net.c.bias = net.b.bias
    return net.eval()


register("tied_weights", lambda: (_tied(False), image()))
register("tied_weights_and_bias", lambda: (_tied(True), image()))


@entry()
def tied_in_and_out() -> tuple[nn.Module, Example]:
    """An autoencoder of linear layers: the decoder's weight is the encoder's, transposed."""
    net = Net(
        lambda m, x: F.linear(m.code(m.a(x).relu()).relu(), m.code.weight.t()), a=nn.Linear(10, 8), code=nn.Linear(8, 6)
    )
    return net.eval(), torch.randn(3, 10)


@entry()
def tied_norms() -> tuple[nn.Module, Example]:
    """Two BatchNorm layers of different streams share their affine weight."""
    net = Net(
        lambda m, x: m.z(m.n(m.b(x)).relu() + 0 * x.mean() + m.k(m.c(m.n(m.b(x)).relu())).relu()),
        b=conv(3, 8),
        c=conv(8, 8),
        n=nn.BatchNorm2d(8),
        k=nn.BatchNorm2d(8),
        z=conv(8, 5),
    )
    net.k.weight = net.n.weight
    return net.eval(), image()


@entry(prunable=("net.0", "net.3"))
def conv1d_chain() -> tuple[nn.Module, Example]:
    """One-dimensional convolutions and BatchNorm."""
    layers = [
        nn.Conv1d(3, 8, 3),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 6, 3, groups=1),
        nn.ReLU(),
        nn.Conv1d(6, 4, 1),
    ]
    return Net(lambda m, x: m.net(x), net=nn.Sequential(*layers)).eval(), torch.randn(2, 3, 16)


@entry(prunable=("net.0", "net.3"))
def conv3d_chain() -> tuple[nn.Module, Example]:
    """Three-dimensional convolutions, BatchNorm and a transposed convolution."""
    layers = [
        nn.Conv3d(2, 8, 3),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.ConvTranspose3d(8, 6, 2),
        nn.ReLU(),
        nn.Conv3d(6, 4, 1),
    ]
    return Net(lambda m, x: m.net(x), net=nn.Sequential(*layers)).eval(), torch.randn(2, 2, 5, 5, 5)


@entry(prunable=("net.0", "net.2"))
def mlp() -> tuple[nn.Module, Example]:
    """A plain perceptron with BatchNorm."""
    layers = [nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)]
    return Net(lambda m, x: m.net(x), net=nn.Sequential(*layers)).eval(), torch.randn(4, 10)


@entry(prunable=("a",))
def batch_norm_1d_after_flatten() -> tuple[nn.Module, Example]:
    """BatchNorm1d between flatten and the linear layer: the norm loses runs of channels."""
    net = Net(
        lambda m, x: m.z(m.n(m.a(x).relu().flatten(1)).relu()),
        a=conv(3, 8, stride=4),
        n=nn.BatchNorm1d(32),
        z=nn.Linear(32, 5),
    )
    return net.eval(), image()


@entry()
def unbatched_input() -> tuple[nn.Module, Example]:
    """Convolutions accept [C, H, W]; the channels are then dimension 0."""
    net = Net(lambda m, x: m.z(m.a(m.s(x).relu()).relu()), s=conv(3, 6), a=conv(6, 8), z=conv(8, 5))
    return net.eval(), torch.randn(3, 8, 8)


def _mixer(m: Any, x: Tensor) -> Tensor:
    y = m.embed(x).flatten(2).transpose(1, 2)
    y = y + m.token2(m.token1(m.norm1(y).transpose(1, 2)).relu()).transpose(1, 2)
    y = y + m.channel2(F.gelu(m.channel1(m.norm2(y))))
    head: Tensor = m.head(y.mean(1))
    return head


@entry(prunable=("token1", "channel1"))
def mlp_mixer() -> tuple[nn.Module, Example]:
    """Linear layers over tokens and over channels alternate."""
    net = Net(
        _mixer,
        embed=conv(3, 8, 2, stride=2, padding=0),
        norm1=nn.LayerNorm(8),
        token1=nn.Linear(16, 10),
        token2=nn.Linear(10, 16),
        norm2=nn.LayerNorm(8),
        channel1=nn.Linear(8, 12),
        channel2=nn.Linear(12, 8),
        head=nn.Linear(8, 5),
    )
    return net.eval(), image()
