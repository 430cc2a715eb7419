"""Statistics of batch normalisation, measured anew after channels have gone."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from srr_ext.processes import ALONE, Processes
from srr_ext.progress import Progress, silent
from srr_ext.training.devices import device_of
from srr_ext.training.lending import in_mode
from srr_ext.training.synchronised import synchronised_batch_norm


@torch.no_grad()
def recalibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    n_batches: int = 50,
    *,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> int:
    """Measure the running statistics of batch normalisation anew, without training.

    Removing channels shifts the statistics of what the later layers see; this brings back much of the accuracy at the
    cost of a few forward passes.

    Parameters
    ----------
    model : nn.Module
        Its BatchNorm statistics change in place; weights, modes and momenta do not.
    batches : iterable of (images, labels)
        Training images; the labels are not used.
    n_batches : int, default 50
        At most how many batches count, each with the same weight.
    progress : Progress, optional
        Shows the batches.
    processes : Processes, default this one alone
        Among whom the batches are divided; the statistics are those of all their images.

    Returns
    -------
    int
        Number of layers measured, 0 for a network without batch normalisation.

    Raises
    ------
    ValueError
        There is no batch, so nothing to measure.

    Notes
    -----
    Whatever error ends it, the statistics are then as they were.
    """
    if n_batches < 1:
        raise ValueError(f"n_batches must be at least 1, but is {n_batches}")
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    total = min(n_batches, operator.length_hint(batches, n_batches))
    counted = itertools.islice(batches, n_batches)
    first = next(counted, None)
    if first is None:
        raise ValueError("batches is empty; pass at least one batch of training images")
    momenta = [norm.momentum for norm in norms]
    measured = [copy.deepcopy(dict(norm.named_buffers())) for norm in norms]
    device = device_of(model)
    with (
        in_mode(model, training=False),
        synchronised_batch_norm(processes),
        (progress or silent()).stage("recalibrate", total) as step,
    ):  # drop-out stays off
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # which means the plain mean over batches
                norm.train()
            for images, _ in itertools.chain([first], counted):
                model(images.to(device))
                step()
        except BaseException:
            for norm, buffers in zip(norms, measured, strict=True):
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms)
