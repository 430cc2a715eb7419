"""The training recipe: its fields are also flags of the commands."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Penalty = Literal["none", "group_lasso", "bn_l1", "l1"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The fields are also flags of the commands.

    Attributes
    ----------
    optimizer : {"sgd", "adamw"}
        Stochastic gradient descent with momentum, or Adam with decoupled weight decay, which wants an lr near 0.001.
    epochs : int
        Passes over the training images.
    batch_size : int
        Images per step.
    lr : float
        Highest learning rate.
    schedule : {"cosine", "step", "constant"}
        Whether the learning rate goes down to 0 along a half cosine, drops at every milestone, or stays.
    milestones : tuple of float
        For step: the epochs after which the learning rate drops, increasing.
    decay : float
        For step: what the learning rate is multiplied by at a milestone.
    warmup : float
        Share of the steps over which the learning rate grows from 0.
    momentum : float
        Of the gradient, for sgd; adamw averages over 0.9 and 0.999 as is usual.
    nesterov : bool
        Look ahead along the momentum, for sgd.
    weight_decay : float
        Of all parameters.
    label_smoothing : float
        Share of the target that is spread over all classes.
    clip_norm : float
        Largest norm of the gradient of all parameters together; 0 for no limit.
    ema : float
        Decay per step of a moving average of the weights, smaller in the first steps; the average is validated and
        stays in the end. 0 for none.
    distill : float
        Share of the loss that asks for the scores of the dense network in place of the labels; 0 for none.
    temperature : float
        Of the softmax in that share of the loss; higher ones weigh the unlikely classes more.
    precision : {"auto", "fp32", "bf16", "fp16"}
        Of the layers; auto is bf16 on a GPU that has it, else fp32. fp16 needs a GPU.
    channels_last : bool
        Keep the channels of a pixel together in memory while training.
    compile : bool
        Translate the network with torch.compile first; pays off in long trainings.

    Raises
    ------
    ValueError
        A value out of its range.
    """

    optimizer: Optimizer = "sgd"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    warmup: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    precision: Precision = "auto"
    channels_last: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        increasing = all(a < b for a, b in itertools.pairwise((0.0, *self.milestones, math.inf)))
        rules = {
            "optimizer": _one_of(self.optimizer, Optimizer),
            "epochs": (self.epochs >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 2, "at least 2 (batch normalisation cannot learn from one image)"),
            "lr": (math.isfinite(self.lr) and self.lr > 0, "above 0"),
            "schedule": _one_of(self.schedule, Schedule),
            "milestones": (increasing, "finite, above 0 and increasing"),
            "decay": (0 < self.decay <= 1, "in (0, 1]"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "nesterov": (self.momentum > 0 or not self.nesterov or self.optimizer != "sgd", "false without momentum"),
            "weight_decay": (math.isfinite(self.weight_decay) and self.weight_decay >= 0, "at least 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "clip_norm": (math.isfinite(self.clip_norm) and self.clip_norm >= 0, "at least 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "distill": (0 <= self.distill <= 1, "in [0, 1]"),
            "temperature": (math.isfinite(self.temperature) and self.temperature > 0, "above 0"),
            "precision": _one_of(self.precision, Precision),
        }
        for name, (holds, wanted) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {wanted}, but is {getattr(self, name)}")
        if (self.schedule == "step") != bool(self.milestones):
            wanted = "name at least one epoch" if self.schedule == "step" else "be empty"
            raise ValueError(f"milestones must {wanted} with schedule {self.schedule}, but is {self.milestones}")


@dataclass(frozen=True)
class SparseConfig(TrainConfig):
    """How to train under a penalty that makes channels or weights zero. The fields are also flags of the commands.

    Attributes
    ----------
    penalty : {"none", "group_lasso", "bn_l1", "l1"}
        Of the Euclidean norms of channels with all that hangs on them, of the absolute values of the scales of batch
        normalisation (network slimming), of the absolute values of single weights, or no such training at all.
    strength : float
        Weight of the penalty beside the loss. A norm loses at most strength times the sum of the learning rates of all
        steps, so that short trainings need strengths far above those of the literature, from 1e-4 on.
    """

    penalty: Penalty = "none"
    strength: float = 1e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.penalty not in get_args(Penalty):
            raise ValueError(f"penalty must be one of {', '.join(get_args(Penalty))}, but is {self.penalty}")
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"strength must be at least 0, but is {self.strength}")
        if self.ema and self.penalty != "none":
            raise ValueError(
                f"ema must be 0 with penalty {self.penalty}, but is {self.ema}: an average of weights is not zero "
                "where the weights have become zero"
            )


def _one_of(value: str, kind: object) -> tuple[bool, str]:
    """Return the rule that a value is one of the names of a Literal."""
    names = get_args(kind)
    return value in names, f"one of {', '.join(names)}"
