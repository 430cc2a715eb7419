"""Train, fine-tune and evaluate classifiers, on a CPU or a GPU through accelerate.

    history = train(model, data, TrainConfig(epochs=20, lr=0.05))
    top1 = evaluate(model, data, "test")

Everything random, the order of the images included, follows from one seed.
"""

from __future__ import annotations

from srr_ext.training.averaging import averaged_model, averaging_decay, take_average
from srr_ext.training.config import Optimizer, Precision, Schedule, SparseConfig, TrainConfig
from srr_ext.training.devices import Device, make_accelerator, resolve_precision
from srr_ext.training.evaluation import evaluate, evaluate_topk
from srr_ext.training.initialisation import reinitialise
from srr_ext.training.loop import AfterStep, Log, WeightMasks, train
from srr_ext.training.losses import distillation_loss, training_loss
from srr_ext.training.penalties import BatchNormL1, GroupLasso, ProximalPenalty, make_penalty
from srr_ext.training.recalibration import recalibrate_batch_norm
from srr_ext.training.schedules import learning_rate_factor, make_optimizer
from srr_ext.training.sharding import gather_into
from srr_ext.training.snapshots import Snapshots
from srr_ext.training.state import Keeper, Stateful

__all__ = [
    "AfterStep",
    "BatchNormL1",
    "Device",
    "GroupLasso",
    "Keeper",
    "Log",
    "Optimizer",
    "Precision",
    "ProximalPenalty",
    "Schedule",
    "Snapshots",
    "SparseConfig",
    "Stateful",
    "TrainConfig",
    "WeightMasks",
    "averaged_model",
    "averaging_decay",
    "distillation_loss",
    "evaluate",
    "evaluate_topk",
    "gather_into",
    "learning_rate_factor",
    "make_accelerator",
    "make_optimizer",
    "make_penalty",
    "recalibrate_batch_norm",
    "reinitialise",
    "resolve_precision",
    "take_average",
    "train",
    "training_loss",
]
