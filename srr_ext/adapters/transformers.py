"""A callback that prunes the model of a Hugging Face ``transformers.Trainer`` while it is trained.

Needs ``transformers``: ``pip install 'srr_ext[transformers]'``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srr_ext.adapters.in_place import (
    check_network,
    check_options,
    cut_in_place,
    is_dense,
    prune_in_place,
    sentence,
    summary,
)
from srr_ext.artifacts import PLAN
from srr_ext.copying import copy_model
from srr_ext.plan import PruningPlan
from srr_ext.surgery import check_state

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as _error:
    raise ModuleNotFoundError(
        f"SRRPruningCallback needs transformers, which is not installed ({_error}); pip install 'srr_ext[transformers]'"
    ) from _error

_logger = logging.getLogger(__name__)


class SRRPruningCallback(TrainerCallback):
    """Prune the model at the beginning of an epoch or a step; the optimiser and its schedule go on.

    Parameters
    ----------
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass, such as ``{"pixel_values": torch.randn(1, 3, 224, 224)}``. MACs are counted for
        them.
    at_epoch, at_step : int, optional
        When: the epoch, or the number of optimiser steps, counted from 0. At most one of them; default epoch 0.
    **options
        All other options of `srr_ext.make_plan`: one of ``keep_macs``, ``keep_params`` and ``keep_channels``,
        ``allocator``, ``selector``, ``data`` and so on.

    Attributes
    ----------
    plan : PruningPlan or None
        What was removed; None until it is.

    Raises
    ------
    TypeError
        An unknown option, or one of a wrong type.
    ValueError
        An option is out of range. When training starts: a model that offers nothing to prune, several processes,
        ``load_best_model_at_end`` with a later pruning. After the first step: an optimiser whose state cannot be cut,
        such as Adafactor. When the time comes: as `srr_ext.make_plan`.

    Notes
    -----
    The model and its parameters remain the objects that they are, so what Trainer and accelerate hold stays valid. The
    state of the optimiser is cut with the parameters (`srr_ext.prune_optimizer`).

    ``plan.json`` is written into every checkpoint after the pruning, beside ``model.safetensors``, so that
    ``srr_ext.load(checkpoint, model=dense)`` reads it. To go on from one, call `restore` first. Costs are logged, and
    added to ``state.log_history``.

    Examples
    --------
    >>> import torch
    >>> example = {"pixel_values": torch.randn(1, 3, 32, 32)}
    >>> SRRPruningCallback(example, at_epoch=1, keep_macs=0.5).plan is None
    True
    """

    def __init__(
        self, example_inputs: Any, *, at_epoch: int | None = None, at_step: int | None = None, **options: Any
    ) -> None:
        if at_epoch is not None and at_step is not None:
            raise ValueError(f"at_epoch, at_step: SRRPruningCallback takes one of them, got {at_epoch} and {at_step}")
        for name, value in (("at_epoch", at_epoch), ("at_step", at_step)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{name} must be a number of epochs or steps, counted from 0, but is {value!r}")
        check_options(options)
        self.example_inputs, self.options = example_inputs, options
        self.at_epoch, self.at_step = (0 if at_step is None else None) if at_epoch is None else at_epoch, at_step
        self.plan: PruningPlan | None = None
        self._epoch: int | None = None  # that has begun last
        self._checked = False  # whether the optimiser has state that can be cut

    def restore(self, model: nn.Module, checkpoint: str | Path) -> None:
        """Cut the model as it was when a checkpoint was written, before ``trainer.train`` goes on from that.

        Parameters
        ----------
        model : nn.Module
            The dense model of the trainer, ``trainer.model``. Changed in place: its shapes are right afterwards, its
            weights come from the checkpoint. Left alone if the checkpoint is from before the pruning.
        checkpoint : str or Path
            The folder, also given to ``trainer.train(resume_from_checkpoint=...)``.

        Raises
        ------
        ValueError
            There is no such folder, or its plan does not fit the model.
        """
        folder = Path(checkpoint)
        if not folder.is_dir():
            raise ValueError(f"checkpoint: there is no folder {folder}")
        if (folder / PLAN).is_file():
            plan = PruningPlan.load(folder / PLAN)
            cut_in_place(model, plan)
            self.plan = plan

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse now what would fail when the time comes."""
        assert model is not None
        self._epoch, self._checked = None, False
        how = "DeepSpeed" if args.deepspeed else "FSDP" if getattr(args, "fsdp", None) else args.parallel_mode.value
        if how not in ("not_parallel", "not_distributed"):
            raise ValueError(f"args: SRRPruningCallback works in one process on whole parameters, not with {how}")
        if args.load_best_model_at_end and (self.at_epoch or self.at_step):
            raise ValueError(
                "args: with load_best_model_at_end the best model may be one from before the pruning, which does not "
                "fit any more; prune at epoch 0, or leave it out"
            )
        if self.plan is not None and is_dense(model, self.plan):
            self.plan = None  # a training of another model, or from the start
        if self.plan is None:
            if (self.at_step or 0) >= state.max_steps or (self.at_epoch or 0) >= state.num_train_epochs:
                _logger.warning(
                    "srr_ext: nothing will be pruned: %s, counted from 0, and the training has %d epochs of together "
                    "%d steps",
                    f"at_epoch is {self.at_epoch}" if self.at_step is None else f"at_step is {self.at_step}",
                    state.num_train_epochs,
                    state.max_steps,
                )
            check_network(_unwrapped(model), self.example_inputs, self.options)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune, if it is the epoch."""
        # Only where a training starts or goes on is state.epoch the number of the epoch: for data of unknown length it
        # counts in shares of the whole training. It is a sum, so that the third epoch may begin at 1.9999999.
        self._epoch = int((state.epoch or 0) + 1e-6) if self._epoch is None else self._epoch + 1
        if self.at_epoch is not None and self._epoch >= self.at_epoch:
            self._prune(state, **kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune, if it is the step."""
        if self.at_step is not None and state.global_step >= self.at_step:
            self._prune(state, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse after the first step, and not epochs later, an optimiser with state that cannot be cut."""
        if self.plan is None and not self._checked:
            check_state(_inner(kwargs["optimizer"]))
            self._checked = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the plan into the checkpoint."""
        if self.plan is not None and state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.plan.save(folder / PLAN)

    def _prune(self, state: TrainerState, *, model: nn.Module, optimizer: torch.optim.Optimizer, **kwargs: Any) -> None:
        if self.plan is not None:
            return
        twin, optimizers = _unwrapped(model), [_inner(optimizer)]
        self.plan = prune_in_place(model, self.example_inputs, self.options, twin=twin, optimizers=optimizers)
        _logger.info(sentence(self.plan, f"step {state.global_step}"))
        state.log_history.append({**summary(self.plan), "step": state.global_step, "epoch": state.epoch or 0.0})


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimiser that accelerate has wrapped."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _unwrapped(model: nn.Module) -> nn.Module:
    """Copy a model without the autocast that accelerate puts around its ``forward`` for mixed precision."""
    twin = copy_model(model)
    forward = vars(twin).pop("_original_forward", None)
    if forward is not None:
        twin.forward = forward
    return twin
