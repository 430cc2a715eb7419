"""The optimiser, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from srr_ext.training.config import TrainConfig
from srr_ext.training.sharding import is_divided


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe.

    Parameters
    ----------
    config : TrainConfig
        Its ``optimizer``, ``lr``, ``momentum``, ``nesterov`` and ``weight_decay`` count.
    parameters : iterable of nn.Parameter
        What it changes.

    Returns
    -------
    torch.optim.SGD or torch.optim.AdamW
    """
    parameters = list(parameters)
    # One kernel for all parameters: half the time, which shows in small networks, and the same numbers. It is not there
    # for SGD on parameters that are divided among processes.
    fused = all(p.is_floating_point() and not is_divided(p) for p in parameters)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def learning_rate_factor(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the highest learning rate that step ``step`` of ``steps`` uses.

    Parameters
    ----------
    config : TrainConfig
        Its ``schedule``, ``warmup``, and for ``step`` its ``milestones``, ``decay`` and ``epochs`` count.
    step : int
        From 0.
    steps : int
        Of the whole training.

    Returns
    -------
    float
        In [0, 1]. Over the w = round(warmup * steps) steps of the warm-up it is (step + 1) / (w + 1). Then

        - ``cosine``: (1 + cos(pi t)) / 2, where t goes from 0 at step w to 1 at the end (Loshchilov and Hutter 2017);
        - ``step``: decay ** m, where m milestones have passed; one of e epochs has when e epochs are complete, and
          those that pass during the warm-up count as soon as it is over;
        - ``constant``: 1.

    References
    ----------
    Loshchilov, Hutter: SGDR: Stochastic gradient descent with warm restarts. ICLR 2017.
    """
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.decay ** sum(step * config.epochs >= milestone * steps for milestone in config.milestones)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
