"""How long a forward pass takes on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from srr_ext.inputs import run, tensors_in

Clock = Callable[[], float]


@torch.inference_mode()
def measure_latency(
    models: Sequence[nn.Module], images: Any, *, seconds: float = 2.0, rounds: int = 6, clock: Clock = time.perf_counter
) -> list[float]:
    """Time forward passes of several networks, in turns, so that a slow moment of the machine meets all of them.

    Parameters
    ----------
    models : sequence of nn.Module
        Networks that read the same input, on the device of ``images``; used in evaluation mode and left as they were.
    images : Tensor, tuple or dict
        One batch.
    seconds : float, default 2.0
        Time to spend in all.
    rounds : int, default 6
        But so many rounds are made at least.
    clock : callable, default time.perf_counter
        Returns seconds. See `undisturbed_clock`.

    Returns
    -------
    list of float
        Milliseconds per batch in the fastest round, in the order of the models: other work on the machine only ever
        adds time.
    """
    settle_memory()
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
        _time(model, images, clock)  # the first passes choose algorithms and allocate
        _time(model, images, clock)
    times: list[list[float]] = [[] for _ in models]
    turns = list(zip(models, times, strict=True))
    end = time.perf_counter() + seconds
    while len(times[-1]) < rounds or time.perf_counter() < end:
        for model, taken in turns:
            taken.append(_time(model, images, clock))
        turns.reverse()  # or the one after the largest would always find the caches full of the other's data
    for module, mode in modes:
        module.training = mode
    return [1000 * min(taken) for taken in times]


def settle_memory() -> None:
    """Bring the allocator of the C library into the state in which a process is that has run for a while.

    glibc at first gives memory back to the system as soon as a few megabytes are free, and every forward pass then pays
    for getting it again, page by page: a ResNet-20 on 64 small images takes twice as long. That ends when a block of up
    to 32 MiB has been freed, which the training of a network, say, does sooner or later. So what a measurement says
    would depend on what the process did before.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def undisturbed_clock(device: torch.device) -> Clock:
    """Return a clock by which other work on the machine counts least.

    Where one thread computes, that is the time which the system has given to this thread: as long as it runs, it is
    what a clock on the wall says, and it stands while other programs have the core. Several threads wait for each
    other, and for a GPU the processor waits, which only the clock on the wall sees.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _time(model: nn.Module, images: Any, clock: Clock) -> float:
    """Seconds of one forward pass, until the device has finished it."""
    device = next((tensor.device for tensor in tensors_in(images) if tensor.is_cuda), None)
    if device is not None:
        torch.cuda.synchronize(device)
    start = clock()
    run(model, images)
    if device is not None:
        torch.cuda.synchronize(device)
    return clock() - start
