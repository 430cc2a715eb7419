"""The training loop."""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from srr_ext.data import ImageData
from srr_ext.processes import processes
from srr_ext.progress import Progress, Step, silent
from srr_ext.training.averaging import averaged_model, take_average
from srr_ext.training.config import TrainConfig
from srr_ext.training.devices import Device, UsedPrecision, autocast, make_accelerator, make_scaler, resolve_precision
from srr_ext.training.evaluation import EVAL_BATCH, accuracy_on, check_scores, count
from srr_ext.training.lending import in_mode, lent_to, seeded
from srr_ext.training.losses import training_loss
from srr_ext.training.schedules import learning_rate_factor, make_optimizer
from srr_ext.training.sharding import check_shardable, gather_into, is_sharded, sharded, share
from srr_ext.training.state import Keeper, Stateful, restore, state_of
from srr_ext.training.synchronised import mean_in_order, synchronised_batch_norm

if TYPE_CHECKING:  # it takes a second, and most users of the package do not train
    from accelerate import Accelerator

Log = Callable[[dict[str, Any]], None]
AfterStep = Callable[[float], None]


class WeightMasks(Protocol):
    """What keeps some weights at zero while a network is trained."""

    def apply(self, model: nn.Module, /) -> None:
        """Make the masked weights of a network zero, in place."""
        ...

    def apply_to_gradients(self, model: nn.Module, /) -> None:
        """Make their gradients zero, where there are some, in place."""
        ...


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
    teacher: nn.Module | None = None,
    after_step: AfterStep | None = None,
    masks: WeightMasks | None = None,
    begin: int = 0,
    keeper: Keeper | None = None,
    stateful: Mapping[str, Stateful] | None = None,
    shard: bool = False,
) -> list[dict[str, Any]]:
    """Train a classifier in place; the weights of the last epoch stay (none is picked by its accuracy).

    Parameters
    ----------
    model : nn.Module
        Maps images [b, c, h, w] to class scores [b, n_classes]. Its weights are trained in place and stay in float32;
        its training mode, device and memory format are left as they were, its gradients are gone.
    data : ImageData
        The training split trains, the validation split is measured after every epoch.
    config : TrainConfig
        The recipe. With ``ema`` it is the averaged weights that are measured and stay.
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
    teacher : nn.Module, optional
        Whose scores ``distill`` asks for; without ``distill`` it is not used. It computes in evaluation mode without
        gradients, and is left as it was.
    after_step : callable, optional
        Called after every step of the optimiser with the learning rate of that step; may change the weights in place,
        as a proximal step does.
    masks : WeightMasks, optional
        Which weights are zero and stay so: their gradients are made zero before these are clipped and used, the weights
        themselves after every step and ``after_step``, those of the average after each of its updates. So neither
        momentum nor weight decay nor the average can move them, and masks may grow on the way.
    begin : int, default 0
        Step of the recipe to begin with, as after rewinding: the learning rates, and the order and augmentation of the
        images, are those of the steps from there on of a whole training with the same seed. Momentum starts anew.
    keeper : Keeper, optional
        Gets the state after every epoch but the last; if it has one, the training goes on from there, and ends with the
        same weights, bit for bit on a CPU with as many threads.
    stateful : mapping of str to Stateful, optional
        What else changes with the steps, ``masks`` or ``after_step`` say, by names for the state.
    shard : bool, default False
        Divide weights, gradients and the optimiser's state among the processes, for a network that does not fit into
        one GPU with them. It is then best given on the CPU, where it stays and gets its weights in the end. Goes
        without ``after_step``, ``masks``, ``stateful``, ``ema`` and ``compile``.

    Returns
    -------
    list of dict
        One per epoch that was trained now: ``stage``, ``epoch`` of the recipe from 1, ``lr`` at its end, mean ``loss``,
        ``train_top1`` and ``validation_top1`` in percent (None without validation images). The training accuracy is
        that of the scores that were trained on, so of augmented images and changing weights.

    Raises
    ------
    ValueError
        A GPU was asked for where there is none, the device does not have the precision, there are no training images,
        ``begin`` outside the recipe, a saved state of another training, ``distill`` without a teacher of the same
        classes, ``compile`` without a compiler, a model without parameters to train, or one that does not score every
        class.
    TypeError
        The model gives something else than scores, in training mode say.
    FloatingPointError
        The loss or the weights are no longer finite.

    Notes
    -----
    Where several processes share a process group of ``torch.distributed``, all have to call this, with equal models and
    arguments. Every batch is then divided among them, gradients and the statistics of batch normalisation are those
    of the whole batch, and all end with the same weights: those of one process, up to rounding, drop-out, and the last
    images of an epoch if they are fewer than the processes.
    """
    _check_teacher(config, model, teacher)
    accelerator = make_accelerator(device)
    precision = resolve_precision(config.precision, accelerator.device)
    if config.compile:
        _check_compiler(accelerator.device)
    if not data.size("train"):
        raise ValueError(f"data: {data.name} holds no training images")
    if config.epochs and not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no parameter that requires a gradient; unfreeze some, or set epochs to 0")
    here = processes()
    if shard:
        whole_only = {"after_step": after_step, "masks": masks, "stateful": stateful, "ema": config.ema}
        check_shardable(here, **whole_only, compile=config.compile)
    batches = data.batches("train", config.batch_size, train=True, seed=seed, device=accelerator.device).divided(here)
    held_out = data.batches("validation", EVAL_BATCH, device=accelerator.device).divided(here)
    history: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(seeded(seed, here.rank))  # else all would drop out the same of their images
        stack.enter_context(in_mode(model, training=True))
        if shard:
            network = sharded(model, here, accelerator.device)
        else:
            network = stack.enter_context(lent_to(accelerator.device, model, channels_last=config.channels_last))
        if config.distill and teacher is not None:
            stack.enter_context(in_mode(teacher, training=False))
            stack.enter_context(lent_to(accelerator.device, teacher))
        steps = config.epochs * len(batches)
        if not 0 <= begin <= steps:
            raise ValueError(f"begin must be a step of the recipe, in [0, {steps}], but is {begin}")
        loop = _Loop(network, config, accelerator, precision, steps, teacher, len(data.classes), after_step, masks)
        stack.callback(loop.close)
        loop.done, others = begin, stateful or {}
        if keeper is not None and (saved := keeper.load()) is not None:
            loop.done = restore(saved, *loop.parts, others)
        step = stack.enter_context((progress or silent()).stage(stage, loop.steps - loop.done))
        batches.epoch, taken = divmod(loop.done, len(batches))
        for epoch in range(batches.epoch + 1, config.epochs + 1):
            loss, top1 = loop.epoch(islice(zip(batches, batches.sizes, strict=True), taken, None), step)
            taken = 0
            if not math.isfinite(loss):
                raise FloatingPointError(f"{stage}: the loss is {loss} in epoch {epoch}; use a smaller learning rate")
            if not loop.is_finite():  # the last step counts, too, of which no loss tells
                raise FloatingPointError(
                    f"{stage}: weights are not finite after epoch {epoch}; use a smaller learning rate"
                )
            validation = accuracy_on(loop.result, held_out, len(data.classes))["top1"] if len(held_out) else None
            record = {"stage": stage, "epoch": epoch, "lr": loop.lr, "loss": loss}
            record |= {"train_top1": top1, "validation_top1": validation}
            history.append(record)
            if log is not None:
                log(record)
            shown = f"training {top1:.2f} %" if validation is None else f"validation {validation:.2f} %"
            step(0, f"epoch {epoch}/{config.epochs}, {shown}")
            if keeper is not None and epoch < config.epochs:
                keeper.save(state_of(*loop.parts, others, loop.done))
        if loop.averaged is not None and history:
            take_average(model, loop.averaged)
        if shard:
            gather_into(model, network)
    return history


class _Loop:
    """Everything that a step of the training needs.

    Attributes
    ----------
    steps, done : int
        Of the whole training, and taken so far.
    lr : float
        The learning rate of the next step.
    averaged : AveragedModel or None
        The moving average of the weights.
    result : nn.Module
        What the training has made so far: the averaged network, or the network itself.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        accelerator: Accelerator,
        precision: UsedPrecision,
        steps: int,
        teacher: nn.Module | None,
        n_classes: int,
        after_step: AfterStep | None,
        masks: WeightMasks | None,
    ) -> None:
        self.n_classes, self.after_step, self.masks, self.processes = n_classes, after_step, masks, processes()
        self.model, self.config, self.accelerator, self.steps, self.done = model, config, accelerator, steps, 0
        self.teacher = teacher if config.distill else None
        self.autocast = autocast(precision, accelerator.device)
        self.scaler = make_scaler(precision, accelerator.device)
        self.averaged = averaged_model(model, config.ema) if config.ema else None
        self.result = model if self.averaged is None else self.averaged.module
        self.optimizer = make_optimizer(config, model.parameters())
        if masks is not None:
            for network in self.networks:
                masks.apply(network)
        self.network: Callable[[Tensor], Tensor] = model if is_sharded(model) else self._prepared()
        if config.compile:
            self.network = torch.compile(self.network)

    def _prepared(self) -> Callable[[Tensor], Tensor]:
        """Return what computes the network, in several processes each of which has it whole.

        accelerate prepares the network and knows the optimiser, but the optimiser takes its steps itself: accelerate's
        wrapper looks on the disk for a module in every one of them, which takes 5 % of the time of a small network, and
        its backward divides the loss by a number that the environment may set.
        """
        with warnings.catch_warnings():  # that the next torch calls broadcast_buffers otherwise
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            network = self.accelerator.prepare(self.model, self.optimizer)[0]
        if self.processes.count > 1 and self.accelerator.device.type == "cpu":
            network.register_comm_hook(self.processes, lambda here, bucket: mean_in_order(here, bucket))
        return network

    @property
    def lr(self) -> float:
        return self.config.lr * learning_rate_factor(self.config, self.done, self.steps)

    @property
    def parts(
        self,
    ) -> tuple[nn.Module, torch.optim.Optimizer, AveragedModel | None, torch.amp.GradScaler | None]:
        """What has a state that goes on from epoch to epoch."""
        return self.model, self.optimizer, self.averaged, self.scaler

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The network that is trained and, if there is one, the average."""
        return (self.model,) if self.averaged is None else (self.model, self.result)

    def epoch(self, batches: Iterable[tuple[tuple[Tensor, Tensor], int]], show: Step) -> tuple[float, float]:
        """Take one step per batch, given with its size; return the mean loss and the accuracy in percent."""
        from torchmetrics.classification import MulticlassAccuracy

        # One loss per step and two integers per image stay on the device until the epoch ends: to look at them in every
        # step would make a GPU wait, and to count them takes some percent of the time of a small network.
        losses: list[Tensor] = []
        predicted: list[Tensor] = []
        wanted: list[Tensor] = []
        n_classes = 0
        for (images, labels), size in batches:
            loss, scores = self.step(images, labels, size)
            losses.append(loss)
            predicted.append(scores.argmax(1))
            wanted.append(labels)
            n_classes = scores.shape[1]
            show()
        per_step = torch.stack(losses).double()
        sizes = per_step.new_tensor([len(labels) for labels in wanted])
        accuracy = MulticlassAccuracy(n_classes, average="micro", validate_args=False, sync_on_compute=False)
        accuracy = accuracy.to(per_step.device)
        accuracy.update(torch.cat(predicted), torch.cat(wanted))
        n = int(sizes.sum())
        loss_sum, right, n_all = self.processes.sum(float(per_step @ sizes), count(accuracy, n), n)
        return loss_sum / n_all, 100 * right / n_all

    def is_finite(self) -> bool:
        """Whether all weights are."""
        here = torch.stack([share(p.detach()).isfinite().all() for p in self.model.parameters()]).all()
        return self.processes.sum(not here) == [0]

    def step(self, images: Tensor, labels: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """Take one step on the share of a whole batch; return its loss and scores, without gradients."""
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        with self.autocast, synchronised_batch_norm(self.processes):
            scores = self.network(images)
        check_scores(scores, self.n_classes)
        loss = training_loss(self.config, scores, labels, self._taught(images))
        # Gradients are averaged over processes, whose shares may differ by an image.
        weighted = loss if self.processes.count == 1 else loss * (self.processes.count * len(labels) / whole)
        self.optimizer.zero_grad()
        (weighted if self.scaler is None else self.scaler.scale(weighted)).backward()
        if self.processes.count > 1 and not is_sharded(self.model):
            _check_used(self.model)
        if self.masks is not None:
            self.masks.apply_to_gradients(self.model)
        if self.config.clip_norm:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # which leaves out steps with an overflow
            self.scaler.update()
        if self.after_step is not None:
            self.after_step(self.lr)
        if self.masks is not None:
            self.masks.apply(self.model)
        self.done += 1
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
            if self.masks is not None:
                self.masks.apply(self.result)
        return loss.detach(), scores.detach()

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with self.autocast:
            return self.teacher(images)

    def close(self) -> None:
        """Take away what accelerate and the steps have put on the model."""
        self.optimizer.zero_grad()
        if is_sharded(self.model):
            return
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.model).pop("_is_accelerate_prepared", None)


def _check_teacher(config: TrainConfig, model: nn.Module, teacher: nn.Module | None) -> None:
    """Raise a ValueError unless the recipe has the teacher it needs."""
    if not config.distill:
        return
    if teacher is None:
        raise ValueError(f"distill is {config.distill}, which needs a teacher; pass one or set distill to 0")
    own = {id(p) for p in model.parameters()}
    if teacher is model or any(id(p) in own for p in teacher.parameters()):
        raise ValueError("teacher shares parameters with the network that is trained; pass a copy")


def _check_used(model: nn.Module) -> None:
    """Raise a ValueError if a parameter got no gradient: several processes would wait for it, and step apart."""
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise ValueError(
            f"model has a parameter that its scores do not depend on, {unused[0]}{more}, for which several processes "
            "would wait; freeze it (requires_grad_(False)), or train in one process"
        )


def _check_compiler(device: torch.device) -> None:
    """Raise a ValueError where torch.compile would find no C++ compiler for the CPU."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(f"compile needs the C++ compiler {compiler}, which is not there; install it or set CXX")
