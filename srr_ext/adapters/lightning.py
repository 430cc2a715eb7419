"""A callback that prunes the network of a LightningModule while it is trained, and finds it pruned in checkpoints.

Needs ``lightning``: ``pip install 'srr_ext[lightning]'``.
"""

from __future__ import annotations

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
from srr_ext.plan import PruningPlan
from srr_ext.surgery import check_state

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
except ImportError as _error:
    raise ModuleNotFoundError(
        f"the callback SRRPruning needs lightning, which is not installed ({_error}); pip install 'srr_ext[lightning]'"
    ) from _error

_AVERAGING: tuple[type, ...] = (  # these keep a copy of the module from before
    StochasticWeightAveraging,
    *(getattr(pl.callbacks, name) for name in ("WeightAveraging",) if hasattr(pl.callbacks, name)),
)
_KEY = "SRRPruning"  # under which checkpoints hold the state of the callback


class SRRPruning(Callback):
    """Prune the network at the beginning of an epoch; optimisers and learning rate schedules go on.

    Parameters
    ----------
    at_epoch : int, default 0
        Epoch, counted from 0, before which the network is pruned, once.
    network : str, default ""
        Name of the submodule to prune, as in ``"net"`` or ``"model.backbone"``; empty for the LightningModule itself,
        if it has a ``forward``.
    example_inputs : Tensor, tuple or dict, optional
        Inputs for one forward pass of the network; default ``example_input_array`` of the LightningModule, for the
        LightningModule itself. MACs are counted for them.
    **options
        All other options of `srr_ext.make_plan`: one of ``keep_macs``, ``keep_params`` and ``keep_channels``,
        ``allocator``, ``selector``, ``data`` and so on.

    Attributes
    ----------
    plan : PruningPlan or None
        What was removed; None until it is. Its names are those inside ``network``.

    Raises
    ------
    TypeError
        An unknown option, or one of a wrong type. When training starts: a trainer of ``pytorch_lightning``.
    ValueError
        An option is out of range. When training starts: no example inputs, a network that offers nothing to prune, more
        than one device, or a callback that averages weights or saves nothing but weights. After the first step: an
        optimiser whose state cannot be cut, such as Adafactor. When the epoch comes: as `srr_ext.make_plan`.

    Notes
    -----
    The module and its parameters remain the objects that they are, so the optimisers' parameter groups and everything
    else that refers to them stay valid. The state of the optimisers is cut with the parameters
    (`srr_ext.prune_optimizer`).

    The plan goes into checkpoints, as JSON text. ``trainer.fit(..., ckpt_path=...)``, ``validate``, ``test`` and
    ``predict`` find it there and cut the module before its weights are loaded. Without a trainer, `load_checkpoint`
    does.

    Examples
    --------
    >>> SRRPruning(keep_macs=0.5, at_epoch=3, network="net", allocator="uniform").plan is None
    True
    """

    def __init__(self, *, at_epoch: int = 0, network: str = "", example_inputs: Any = None, **options: Any) -> None:
        if isinstance(at_epoch, bool) or not isinstance(at_epoch, int) or at_epoch < 0:
            raise ValueError(f"at_epoch must be an epoch, counted from 0, but is {at_epoch!r}")
        if not isinstance(network, str):
            raise TypeError(f"network must be the name of a submodule, but is {type(network).__name__}")
        check_options(options)
        self.at_epoch, self.network, self.example_inputs, self.options = at_epoch, network, example_inputs, options
        self.plan: PruningPlan | None = None
        self._checked = False  # whether the optimisers have state that can be cut

    # -- training -----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse now what would fail when the epoch comes."""
        self._stop_listening(pl_module)
        self._checked = False
        if self.plan is None:
            if trainer.max_epochs is not None and -1 < trainer.max_epochs <= self.at_epoch:
                rank_zero_warn(
                    f"srr_ext: nothing will be pruned: at_epoch is {self.at_epoch}, counted from 0, and the training "
                    f"has {trainer.max_epochs} epochs"
                )
            check_network(_network(pl_module, self.network), self._example(trainer, pl_module), self.options)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, if it is time."""
        if self.plan is not None or trainer.current_epoch < self.at_epoch:
            return
        self.plan = prune_in_place(
            _network(pl_module, self.network),
            self._example(trainer, pl_module),
            self.options,
            owner=pl_module,
            optimizers=trainer.optimizers,
        )
        rank_zero_info(sentence(self.plan, f"epoch {trainer.current_epoch}"))
        for logger in trainer.loggers:
            logger.log_metrics(summary(self.plan), step=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Refuse after the first step, and not epochs later, optimisers with state that cannot be cut."""
        if self.plan is None and not self._checked and trainer.global_step > 0:
            for optimizer in trainer.optimizers:
                check_state(optimizer)
            self._checked = True

    def _example(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        example = self.example_inputs
        if example is None and not self.network:
            example = pl_module.example_input_array
        if example is None:
            raise ValueError(
                "example_inputs: SRRPruning has none; pass them, or set example_input_array of the LightningModule "
                "where that itself is pruned"
            )
        return trainer.precision_plugin.convert_input(example)  # as its batches: to double for "64-true", and so on

    # -- checkpoints --------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints, whatever the options."""
        return _KEY

    def state_dict(self) -> dict[str, Any]:
        """Return the plan as JSON text, and where it belongs; nothing before there is one."""
        return {} if self.plan is None else {"network": self.network, "plan": self.plan.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the plan of a checkpoint; the module has been cut by it before."""
        self.plan = PruningPlan.from_json(state_dict["plan"], "checkpoint")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Get ready to cut the module when a checkpoint comes: callbacks hear of it only after its weights."""
        if stage == "fit":
            self._check_trainer(trainer)
            if self.plan is not None and is_dense(_network(pl_module, self.network), self.plan):
                self.plan = None  # a training of another module, or from the start
        self._stop_listening(pl_module)
        own = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            self._stop_listening(pl_module)
            self._meet(pl_module, checkpoint)
            own(checkpoint)

        self._listening = (pl_module, vars(pl_module).get("on_load_checkpoint"))
        pl_module.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module's own methods as they were."""
        self._stop_listening(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module's own methods as they were."""
        self._stop_listening(pl_module)

    _listening: tuple[pl.LightningModule, Any] | None = None

    def _stop_listening(self, pl_module: pl.LightningModule) -> None:
        if self._listening is not None and self._listening[0] is pl_module:
            vars(pl_module).pop("on_load_checkpoint", None)
            if self._listening[1] is not None:
                pl_module.on_load_checkpoint = self._listening[1]  # type: ignore[method-assign]
            self._listening = None

    def _meet(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the module the shapes of a checkpoint."""
        found = _plan_in(checkpoint)
        if found is None:
            if self.plan is not None and not is_dense(_network(pl_module, self.network), self.plan):
                raise ValueError(
                    "ckpt_path: the checkpoint is from before the pruning, but the module is pruned already; "
                    "make it anew, or take a later checkpoint"
                )
            return
        name, plan = found
        if name != self.network:
            raise ValueError(f"network: the checkpoint has {name!r} pruned, this callback is for {self.network!r}")
        _cut_if_dense(pl_module, name, plan)

    def _check_trainer(self, trainer: pl.Trainer) -> None:
        if not isinstance(trainer, pl.Trainer):
            raise TypeError(f"trainer: SRRPruning needs one of lightning.pytorch, not of {type(trainer).__module__}")
        if not isinstance(trainer.strategy, SingleDeviceStrategy):
            strategy = type(trainer.strategy).__name__
            raise ValueError(f"trainer: SRRPruning works on one device, not with {strategy}; pass devices=1")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a part of the trainer
        averaging = [type(callback).__name__ for callback in callbacks if isinstance(callback, _AVERAGING)]
        if averaging:
            raise ValueError(f"callbacks: {averaging[0]} averages with weights from before the pruning; leave it out")
        if any(getattr(callback, "save_weights_only", False) for callback in callbacks):
            raise ValueError("callbacks: save_weights_only=True leaves the plan out of checkpoints; set it to False")


def load_checkpoint(path: str | Path, pl_module: pl.LightningModule) -> PruningPlan | None:
    """Load a checkpoint of Lightning's into a module, cut first where the checkpoint was pruned.

    Parameters
    ----------
    path : str or Path
        The checkpoint. It is read with ``weights_only=True``: no code in it runs.
    pl_module : LightningModule
        As its class makes it, dense; or pruned alike already. Changed in place.

    Returns
    -------
    PruningPlan or None
        What was removed, None where nothing was.

    Raises
    ------
    ValueError
        The plan does not fit the module.

    Notes
    -----
    Hooks such as ``on_load_checkpoint`` are not called, nor is the state of optimisers read: for those, give the path
    to a trainer as ``ckpt_path``.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    found = _plan_in(checkpoint)
    if found is not None:
        _cut_if_dense(pl_module, *found)
    pl_module.load_state_dict(checkpoint["state_dict"])
    return None if found is None else found[1]


def _plan_in(checkpoint: dict[str, Any]) -> tuple[str, PruningPlan] | None:
    state = checkpoint.get("callbacks", {}).get(_KEY)
    return None if state is None else (state["network"], PruningPlan.from_json(state["plan"], "checkpoint"))


def _cut_if_dense(pl_module: pl.LightningModule, name: str, plan: PruningPlan) -> None:
    network = _network(pl_module, name)
    if is_dense(network, plan):
        cut_in_place(network, plan)


def _network(pl_module: pl.LightningModule, name: str) -> nn.Module:
    try:
        return pl_module.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"network: the LightningModule has no submodule {name!r} ({error})") from error
