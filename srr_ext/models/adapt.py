"""Fit an architecture to other images: the channels of its first convolution, the stride of its stem, its head.

Everything here is decided by the name of the network and the options of :func:`srr_ext.models.create` alone, so that a
network can be made again from them; and everything that was done is said, in one sentence each.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from srr_ext.copying import copy_model
from srr_ext.models.names import reason

SMALL = 64  # pixels; below it, a stem that divides the image by 4 and the stages after it leave hardly any pixels

# Families whose usual CIFAR versions keep the resolution in the stem: prefixes of the names -> its convolution, and the
# max pooling that follows it.
STEMS: dict[tuple[str, ...], tuple[str, str | None]] = {
    ("resnet", "resnext", "wide_resnet"): ("conv1", "maxpool"),
    ("densenet",): ("features.conv0", "features.pool0"),
    ("shufflenet_v2",): ("conv1.0", "maxpool"),
    ("mobilenet_v2", "mobilenet_v3", "efficientnet"): ("features.0.0", None),
    ("mnasnet",): ("layers.0", None),
    ("regnet",): ("stem.0", None),
}

_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)


def keep_resolution(model: nn.Module, name: str, image_size: int) -> str | None:
    """Make a stem that keeps the resolution of small images, in place.

    Parameters
    ----------
    model : nn.Module
        A torchvision classifier.
    name : str
        Its name, which decides the family.
    image_size : int
        Pixels; nothing is done from 64 on.

    Returns
    -------
    str or None
        What was done, as a sentence.
    """
    if image_size >= SMALL:
        return None
    found = [stem for prefixes, stem in STEMS.items() if name.startswith(prefixes)]
    if not found:
        return None
    conv_name, pool_name = found[0]
    conv = model.get_submodule(conv_name)
    assert isinstance(conv, nn.Conv2d)
    side, stride = conv.kernel_size[0], conv.stride[0]
    if side == 3:
        conv.stride = (1, 1)
    else:
        model.set_submodule(conv_name, _redrawn(conv, conv.in_channels, side=3, stride=1, padding=1))
    if pool_name is not None:
        model.set_submodule(pool_name, nn.Identity())
    if side == 3 and pool_name is None:
        made = "the stem's stride 2 became 1"
    else:
        pooling = " and its max pooling" if pool_name is not None else ""
        made = f"the {side}x{side} stride-{stride} stem{pooling} became one 3x3 convolution with stride 1"
    return f"{name}: {made}, as images have {image_size} pixels"


def stem_of(model: nn.Module) -> str:
    """Return the name of the first convolution, which reads the image."""
    return next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def set_in_channels(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one that reads images with other channels, with new weights."""
    stem = stem_of(model)
    conv = model.get_submodule(stem)
    assert isinstance(conv, nn.Conv2d)
    if conv.in_channels != in_channels:
        side, stride = conv.kernel_size[0], conv.stride[0]
        model.set_submodule(stem, _redrawn(conv, in_channels, side, stride, conv.padding))


def _redrawn(
    conv: nn.Conv2d, in_channels: int, side: int, stride: int, padding: int | tuple[int, ...] | str
) -> nn.Conv2d:
    """Return a like convolution of another shape.

    Its weights have the old standard deviation times sqrt(old fan-in / new fan-in), so that its outputs have the
    variance that this family is initialised for.
    """
    like = nn.Conv2d(
        in_channels,
        conv.out_channels,
        side,
        stride,
        padding,  # type: ignore[arg-type]  # torch's own attribute says tuple of any length
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    spread = float(conv.weight.detach().std()) * math.sqrt(conv.weight[0].numel() / like.weight[0].numel())
    nn.init.normal_(like.weight, 0.0, spread)
    if like.bias is not None and conv.bias is not None:
        like.bias.data.copy_(conv.bias.data)
    return like


def colour_kernels(weight: Tensor, in_channels: int) -> Tensor:
    """Turn the kernels of a convolution over colours into kernels over other channels.

    Parameters
    ----------
    weight : Tensor
        [n_filters, 3, h, w]
    in_channels : int
        Channels wanted.

    Returns
    -------
    Tensor
        [n_filters, in_channels, h, w]: the sum of the three colours' kernels for one channel, else these in turn, times
        3 / in_channels. For one channel, and for multiples of three, an image whose channels are all alike gives what
        the gray colour image gives in the original.
    """
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    colours = weight.shape[1]
    repeated = weight.repeat(1, math.ceil(in_channels / colours), 1, 1)[:, :in_channels]
    return repeated * (colours / in_channels)


def check_images(model: nn.Module, name: str, in_channels: int, image_size: int) -> str | None:
    """Refuse images that vanish inside the network; say where one pixel is left of them.

    Parameters
    ----------
    model : nn.Module
        Left untouched.
    name : str
        For the messages.
    in_channels, image_size : int
        Shape of the images.

    Returns
    -------
    str or None
        The sentence, where a feature map has only one pixel.

    Raises
    ------
    ValueError
        The network cannot read such images.
    """
    shape = (1, in_channels, image_size, image_size)
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.detach().to("meta")) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
    }
    try:
        sides = _sides(copy.deepcopy(model, memo), torch.empty(shape, device="meta"))  # costs no memory or arithmetic
    except Exception:
        # It may also be that the model makes tensors on the CPU as it runs, so the real one has the last word.
        try:
            sides = _sides(copy_model(model, share_parameters=True), torch.zeros(shape))
        except Exception as error:
            why = f"({reason(error)}); take larger ones or another network"
            raise ValueError(f"{name} cannot read images {list(shape[1:])} {why}") from error
    if sides and min(sides) <= 1:
        return f"{name}: images of {image_size} pixels shrink to a single one inside the network"
    return None


@torch.no_grad()
def _sides(model: nn.Module, images: Tensor) -> list[int]:
    """Return the smaller side of every feature map that a module makes from neighbouring pixels."""
    sides: list[int] = []

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        sides.append(min(output.shape[-2:]))

    for module in model.modules():
        # 1x1 convolutions also work on pooled vectors, so they do not count.
        if (isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1) or isinstance(module, _POOLINGS):
            module.register_forward_hook(record)
    model.eval()(images)
    return sides
