"""How long a forward pass takes on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.inference_mode()
def measure_latency(models: Sequence[nn.Module], images: Tensor, *, seconds: float = 2.0) -> list[float]:
    """Time forward passes of several networks, in turns, so that a slow moment of the machine meets all of them.

    Parameters
    ----------
    models : sequence of nn.Module
        Networks that read the same input, on the device of ``images``; used in evaluation mode and left as they were.
    images : Tensor
        One batch.
    seconds : float, default 2.0
        Time to spend in all; at least six rounds are made.

    Returns
    -------
    list of float
        Milliseconds per batch in the fastest round, in the order of the models: other work on the machine only ever
        adds time.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
        _time(model, images)  # the first passes choose algorithms and allocate
        _time(model, images)
    times: list[list[float]] = [[] for _ in models]
    turns = list(zip(models, times, strict=True))
    end = time.perf_counter() + seconds
    while len(times[-1]) < 6 or time.perf_counter() < end:
        for model, taken in turns:
            taken.append(_time(model, images))
        turns.reverse()  # or the one after the largest would always find the caches full of the other's data
    for module, mode in modes:
        module.training = mode
    return [1000 * min(taken) for taken in times]


def _time(model: nn.Module, images: Tensor) -> float:
    """Seconds of one forward pass, until the device has finished it."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
