"""A moving average of the weights during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srr_ext.copying import copy_model


def averaging_decay(ema: float, n_averaged: int) -> float:
    """Return the share that the average keeps when it meets one more set of weights.

    A constant decay d averages over about 1 / (1 - d) steps. In a run that is shorter than this, and at the start of
    every run, the average would be made of the first, untrained weights; so it starts short and grows.

    Parameters
    ----------
    ema : float
        The decay of long runs.
    n_averaged : int
        How many sets of weights are in the average already, at least 1.

    Returns
    -------
    float
        min(ema, (1 + n) / (10 + n)).
    """
    return min(ema, (1 + n_averaged) / (10 + n_averaged))


def averaged_model(model: nn.Module, ema: float) -> AveragedModel:
    """Return a copy of the model that holds the moving average of its weights and buffers.

    Call ``update_parameters(model)`` after every step. The first call copies the weights; each further one makes them
    d * average + (1 - d) * weights with d = :func:`averaging_decay`. Integers (counters) are copied, not averaged.

    Parameters
    ----------
    model : nn.Module
        The model that is trained.
    ema : float
        The decay of long runs, in (0, 1).

    Returns
    -------
    torch.optim.swa_utils.AveragedModel
        The averaged network itself is its ``module``.
    """

    @torch.no_grad()
    def meet(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            taken = int(result.n_averaged)  # stays on the CPU; to read the argument would make a GPU wait
            get_ema_multi_avg_fn(averaging_decay(ema, taken))(averaged, current, n_averaged)
        else:
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    # Copied twice, as deepcopy alone refuses the computed tensors of old-style weight normalisation.
    result = AveragedModel(copy_model(model), multi_avg_fn=meet, use_buffers=True)  # type: ignore[arg-type]  # its lists are tensors
    return result


@torch.no_grad()
def take_average(model: nn.Module, averaged: AveragedModel) -> None:
    """Give a model the averaged weights and buffers.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    averaged : AveragedModel
        Made from it by :func:`averaged_model`.
    """
    for mine, theirs in (
        (model.parameters(), averaged.module.parameters()),
        (model.buffers(), averaged.module.buffers()),
    ):
        for old, new in zip(mine, theirs, strict=True):
            old.copy_(new)
