"""Between the host and the device that holds a model: every transfer that a plan needs goes through here.

A transfer to the host makes it wait for all the work the device was given so far. Hence few of them, each of everything
that is known by then, and one place where they can be counted.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

ALIGNMENT = 8  # bytes, of the widest element type


def to_host(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors to the CPU: one copy, hence one wait, for all that share a device.

    Parameters
    ----------
    *tensors : Tensor
        Of any shapes and types, without gradients.

    Returns
    -------
    list of Tensor
        The same on the CPU; those that are there already are returned as they are.
    """
    result = list(tensors)
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        for i, tensor in zip(places, _fetch([tensors[i] for i in places]), strict=True):
            result[i] = tensor
    return result


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, as a rule without waiting for the work the device was given before."""
    return tensor.to(device, non_blocking=True)  # from pageable memory: the source may be changed at once


def _fetch(tensors: list[Tensor]) -> list[Tensor]:
    """Copy tensors of one device to the CPU."""
    if tensors[0].device.type == "cpu":
        return tensors
    return _unpacked(_packed(tensors).cpu(), tensors)


def _packed(tensors: list[Tensor]) -> Tensor:
    """Bytes of all tensors, one after the other, each aligned."""
    flat = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat([torch.nn.functional.pad(octets, (0, -len(octets) % ALIGNMENT)) for octets in flat])


def _unpacked(packed: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Tensors of these types and shapes from what `_packed` made of them."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in like]
    places = pairwise(accumulate((size + -size % ALIGNMENT for size in sizes), initial=0))
    return [
        packed[begin:end][:size].view(tensor.dtype).reshape(tensor.shape)
        for (begin, end), size, tensor in zip(places, sizes, like, strict=True)
    ]
