"""Train, fine-tune and evaluate classifiers, on a CPU or a GPU through accelerate.

    history = train(model, data, TrainConfig(epochs=20, lr=0.05))
    top1 = evaluate(model, data, "test")

Everything random, the order of the images included, follows from one seed.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from srr_ext.data import Batches, ImageData
from srr_ext.progress import Progress, Step, silent

if TYPE_CHECKING:  # imported where they are used: they take seconds, and most users of the package do not train
    from accelerate import Accelerator
    from torchmetrics.classification import MulticlassAccuracy

Device = Literal["auto", "cpu", "cuda"]
Schedule = Literal["cosine", "constant"]
Log = Callable[[dict[str, Any]], None]

_EVAL_BATCH = 200  # large enough to keep a CPU or GPU busy, small enough that activations stay in cache


@dataclass(frozen=True)
class TrainConfig:
    """How to train: stochastic gradient descent with momentum. The fields are also flags of the commands.

    Attributes
    ----------
    epochs : int
        Passes over the training images.
    batch_size : int
        Images per step.
    lr : float
        Highest learning rate.
    schedule : {"cosine", "constant"}
        Whether the learning rate goes down to 0 along a half cosine or stays.
    warmup : float
        Share of the steps over which the learning rate grows from 0.
    momentum : float
        Of the gradient.
    nesterov : bool
        Look ahead along the momentum.
    weight_decay : float
        Of all parameters.
    label_smoothing : float
        Share of the target that is spread over all classes.

    Raises
    ------
    ValueError
        A value out of its range.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    schedule: Schedule = "cosine"
    warmup: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        rules = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 2, "at least 2 (batch normalisation cannot learn from one image)"),
            "lr": (math.isfinite(self.lr) and self.lr > 0, "above 0"),
            "schedule": (self.schedule in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "nesterov": (self.momentum > 0 or not self.nesterov, "false without momentum"),
            "weight_decay": (math.isfinite(self.weight_decay) and self.weight_decay >= 0, "at least 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
        }
        for name, (holds, wanted) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {wanted}, but is {getattr(self, name)}")


def train(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    *,
    device: Device = "auto",
    seed: int = 0,
    stage: str = "train",
    progress: Progress | None = None,
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """Train a classifier in place; the weights of the last epoch stay (none is picked by its accuracy).

    Parameters
    ----------
    model : nn.Module
        Maps images [b, c, h, w] to class scores [b, n_classes]. Trained in place, in float32; its training mode is
        left as it was, and so is its device.
    data : ImageData
        The training split trains, the validation split is measured after every epoch.
    config : TrainConfig
        The recipe.
    device : {"auto", "cpu", "cuda"}, default "auto"
        ``auto`` takes a GPU when there is one.
    seed : int, default 0
        Fixes the order and augmentation of the images and the drop-out.
    stage : str, default "train"
        What progress and log call this training.
    progress : Progress, optional
        Shows the steps.
    log : callable, optional
        Receives the record of every epoch as it ends.

    Returns
    -------
    list of dict
        One per epoch: ``stage``, ``epoch`` from 1, ``lr`` at its end, mean ``loss``, ``train_top1`` and
        ``validation_top1`` in percent (None without validation images).

    Raises
    ------
    ValueError
        A GPU was asked for where there is none, or there are no training images.
    FloatingPointError
        The loss is no longer finite.
    """
    accelerator = make_accelerator(device)
    batches = data.batches("train", config.batch_size, train=True, seed=seed, device=accelerator.device)
    if not len(batches):
        raise ValueError(f"data: {data.name} holds no training images")
    steps = config.epochs * len(batches)
    history: list[dict[str, Any]] = []
    bar = (progress or silent()).stage(stage, steps)
    with _seeded(seed), _mode(model, training=True), _lent_to(accelerator, model), bar as step:
        sgd = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        prepared, optimizer = accelerator.prepare(model, sgd)
        schedule = LambdaLR(sgd, lambda at: learning_rate_factor(config, at, steps))
        for epoch in range(1, config.epochs + 1):
            prepared.train()
            loss, top1 = _epoch(prepared, batches, config, accelerator, optimizer, schedule, step)
            if not math.isfinite(loss):
                raise FloatingPointError(f"{stage}: the loss is {loss} in epoch {epoch}; use a smaller learning rate")
            validation = evaluate(model, data, "validation") if len(data.validation) else None
            record = {"stage": stage, "epoch": epoch, "lr": schedule.get_last_lr()[0], "loss": loss}
            record |= {"train_top1": top1, "validation_top1": validation}
            history.append(record)
            if log is not None:
                log(record)
            shown = f"training {top1:.2f} %" if validation is None else f"validation {validation:.2f} %"
            step(0, f"epoch {epoch}/{config.epochs}, {shown}")
    return history


def _epoch(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    step: Step,
) -> tuple[float, float]:
    """Take one step per batch; return the mean loss and the accuracy in percent."""
    from torchmetrics import MeanMetric

    mean_loss = MeanMetric(nan_strategy="disable").to(accelerator.device)
    accuracy: MulticlassAccuracy | None = None
    for images, labels in batches:
        scores = model(images)
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        accuracy = accuracy or _accuracy(scores)
        accuracy.update(scores.detach(), labels)
        mean_loss.update(loss.detach(), len(labels))
        step()
    return float(mean_loss.compute()), 0.0 if accuracy is None else 100 * float(accuracy.compute())


def learning_rate_factor(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the highest learning rate that step ``step`` of ``steps`` uses.

    Parameters
    ----------
    config : TrainConfig
        Its ``schedule`` and ``warmup`` count.
    step : int
        From 0.
    steps : int
        Of the whole training.

    Returns
    -------
    float
        In [0, 1]: linear over the warm-up, then constant or (1 + cos(pi t)) / 2 for t from 0 to 1.
    """
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ImageData,
    split: str = "test",
    *,
    batch_size: int = _EVAL_BATCH,
    stage: str = "evaluate",
    progress: Progress | None = None,
) -> float:
    """Measure top-1 accuracy.

    Parameters
    ----------
    model : nn.Module
        Maps images [b, c, h, w] to class scores; used where it is, in evaluation mode, and left as it was.
    data : ImageData
        The images.
    split : {"test", "validation", "train"}, default "test"
        Which of them, without augmentation.
    batch_size : int, default 200
        Images per step.
    stage : str, default "evaluate"
        What progress calls this evaluation.
    progress : Progress, optional
        Shows the steps.

    Returns
    -------
    float
        Percent.
    """
    batches = data.batches(split, batch_size, device=_device_of(model))
    if not len(batches):
        raise ValueError(f"split {split!r} of {data.name} holds no images")
    accuracy: MulticlassAccuracy | None = None
    with _mode(model, training=False), (progress or silent()).stage(stage, len(batches)) as step:
        for images, labels in batches:
            scores = model(images)
            accuracy = accuracy or _accuracy(scores)
            accuracy.update(scores, labels)
            step()
    assert accuracy is not None  # there was at least one batch
    return 100 * float(accuracy.compute())


@torch.no_grad()
def recalibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    n_batches: int = 50,
    *,
    progress: Progress | None = None,
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

    Returns
    -------
    int
        Number of layers measured, 0 for a network without batch normalisation.

    Raises
    ------
    ValueError
        There is no batch, so nothing to measure; the statistics are then as they were.
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
    device = _device_of(model)
    with _mode(model, training=False), (progress or silent()).stage("recalibrate", total) as step:  # drop-out stays off
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # which means the plain mean over batches
                norm.train()
            for images, _ in itertools.chain([first], counted):
                model(images.to(device))
                step()
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms)


def make_accelerator(device: Device = "auto") -> Accelerator:
    """Return an accelerator for the device.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}, default "auto"
        ``auto`` takes a GPU when there is one.

    Returns
    -------
    Accelerator

    Raises
    ------
    ValueError
        Unknown device, no GPU where one was asked for, or accelerate already runs on another device in this process.
    """
    from accelerate import Accelerator

    if device not in get_args(Device):
        raise ValueError(f"device must be one of {', '.join(get_args(Device))}, but is {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no GPU; use cpu or auto")
    accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
    if device == "cuda" and accelerator.device.type != "cuda":  # accelerate keeps the first device of a process
        raise ValueError("device is 'cuda', but this process has trained on the CPU before; use a new process")
    return accelerator


def _accuracy(scores: Tensor) -> MulticlassAccuracy:
    """Top-1 over all images alike, for scores [b, n_classes]."""
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(scores.shape[1], average="micro", validate_args=False).to(scores.device)


def _device_of(model: nn.Module) -> torch.device:
    """Where the first parameter is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def _lent_to(accelerator: Accelerator, model: nn.Module) -> Any:
    """Move the model to the accelerator's device for a while, then back, without what accelerate has put around it."""
    home = _device_of(model)
    try:
        model.to(accelerator.device)
        yield
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        model.to(home)


@contextmanager
def _mode(model: nn.Module, training: bool) -> Any:
    """Set the training mode for a while, then give every module its own back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _seeded(seed: int) -> Any:
    """Seed torch for a while, then give the caller's random state back."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
