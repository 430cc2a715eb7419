"""Change a model, or the random state, for a while and give them back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from srr_ext.training.devices import device_of

_SEEDS = 1 << 63  # what torch takes
_RANK_STRIDE = 1_000_000_007  # a prime, so that nobody's seeds are next to each other


@contextmanager
def lent_to(device: torch.device, model: nn.Module, *, channels_last: bool = False) -> Iterator[nn.Module]:
    """Move a model to a device for a while, then back, each parameter with its own memory format.

    Parameters
    ----------
    device : torch.device
        Where the model is wanted.
    model : nn.Module
        Moved in place.
    channels_last : bool, default False
        Also bring its 4-dimensional parameters into the channels-last memory format.

    Yields
    ------
    nn.Module
        The model.
    """
    home = device_of(model)
    images = [p for p in model.parameters() if p.ndim == 4] if channels_last else []
    strides = [p.stride() for p in images]
    try:
        model.to(device)
        for p in images:
            # Not contiguous(), which leaves 1x1 kernels as they are: their gradients then come with other strides.
            p.data = torch.empty_like(p.data, memory_format=torch.channels_last).copy_(p.data)
        yield model
    finally:
        model.to(home)
        for p, stride in zip(images, strides, strict=True):
            if p.stride() != stride:
                p.data = torch.empty_strided(p.shape, stride, dtype=p.dtype, device=p.device).copy_(p.data)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the training mode for a while, then give every module its own back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(seed: int, rank: int = 0) -> Iterator[None]:
    """Seed torch for a while, otherwise in each of several processes, then give the caller's random state back."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed((seed + rank * _RANK_STRIDE) % _SEEDS)
        yield
