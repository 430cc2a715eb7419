"""The layer that takes another's place: rotate the input, compute in few directions, rotate back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import skip_init

Basis = Literal["channels", "patches"]

Replaceable = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
REPLACEABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Bottleneck(nn.Sequential):
    """Three layers in place of one convolution or linear layer, of any weights until `rotate` gives them some.

    Parameters
    ----------
    layer : nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.Linear
        What is replaced; ungrouped. Its dtype, device, ``requires_grad`` and mode are carried over.
    rank_in, rank_out : int
        Directions kept of its inputs and outputs.
    basis : {"channels", "patches"}, default "channels"
        Where the kernel goes, with stride, padding and dilation: to the core (input directions mix channels), or to
        the first layer (input directions mix all that a filter sees).

    Notes
    -----
    ``rotate_in`` maps n_in channels to rank_in, ``core`` rank_in to rank_out, ``rotate_out`` rank_out to n_out; the
    bias of the layer is that of ``rotate_out``. All three are ordinary layers and train as such.
    """

    def __init__(self, layer: Replaceable, rank_in: int, rank_out: int, basis: Basis = "channels") -> None:
        n_out, n_in = layer.weight.shape[:2]
        kernels: list[dict[str, Any]] = [{}, {}, {}]
        if isinstance(layer, _ConvNd):
            kernels = [{"kernel_size": 1}, {"kernel_size": 1}, {"kernel_size": 1}]
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            kernels[0 if basis == "patches" else 1] = {name: getattr(layer, name) for name in names}
        widths = [(n_in, rank_in), (rank_in, rank_out), (rank_out, n_out)]
        weight, bias = layer.weight, layer.bias
        biases = [False, False, bias is not None]
        layers: list[Replaceable] = [
            skip_init(type(layer), *width, **kernel, bias=has, device=weight.device, dtype=weight.dtype)
            for width, kernel, has in zip(widths, kernels, biases, strict=True)
        ]
        super().__init__(OrderedDict(zip(("rotate_in", "core", "rotate_out"), layers, strict=True)))
        self.basis = basis
        for part in layers:
            part.weight.requires_grad_(weight.requires_grad)
        if bias is not None:
            end = cast(nn.Parameter, layers[2].bias)
            end.data.copy_(bias.data)
            end.requires_grad_(bias.requires_grad)
        self.train(layer.training)

    @torch.no_grad()
    def rotate(self, weight: Tensor, base_in: Tensor, base_out: Tensor) -> None:
        r"""Take the weights of the original layer, projected on directions.

        Parameters
        ----------
        weight : Tensor, shape [n_out, n_in, \*kernel]
            The original's.
        base_in : Tensor, shape [n_in or fan-in, rank_in]
            Orthonormal directions of the inputs.
        base_out : Tensor, shape [n_out, rank_out]
            Orthonormal directions of the outputs.

        Notes
        -----
        With all directions the layer computes what the original does; rounding aside.
        """
        star = rotated(weight, base_in, base_out, self.basis)
        parts = (base_in.T, star, base_out)
        for layer, part in zip(self, parts, strict=True):
            mine = cast(Replaceable, layer).weight
            mine.copy_(part.reshape(mine.shape))


def rotated(weight: Tensor, base_in: Tensor, base_out: Tensor, basis: Basis) -> Tensor:
    """Weights between directions, float64 [rank_out, rank_in, kernel elements] (1 of them for patches)."""
    matrix = weight.detach().double().flatten(1)  # [n_out, fan_in]
    per_channel = matrix.unflatten(1, (-1, 1) if basis == "patches" else (weight.shape[1], -1))  # [n_out, d, kernel]
    return torch.einsum("or,odk,dq->rqk", base_out.to(matrix), per_channel, base_in.to(matrix))


def replace_layers(model: nn.Module, others: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Put other modules in place of a model's, wherever it has them."""
    table = {id(old): new for old, new in others}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() gives a shared one once
            if id(child) in table:
                setattr(parent, name, table[id(child)])
