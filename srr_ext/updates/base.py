"""What an update of the weights is, what it is given, and how it is found by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

from srr_ext.calibration import Batch, Calibration
from srr_ext.criteria import SelectorContext
from srr_ext.plan import PruningPlan
from srr_ext.progress import Progress
from srr_ext.registry import Registry


class Update(Protocol):
    """Gives a pruned network better weights before it is trained, from what the network before it computed."""

    def __call__(self, pruned: nn.Module, plan: PruningPlan, context: SelectorContext, /) -> nn.Module:
        """Return a copy of ``pruned`` with other weights and the same shapes.

        ``plan`` made ``pruned`` of ``context.model``; the context gives images too.
        """
        ...


_registry: Registry[Update] = Registry("update", "srr_ext.updates")
register_update = _registry.register
get_update = _registry.get
available_updates = _registry.available


def update_weights(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    update: str | Update = "reconstruct",
    *,
    data: Calibration | Iterable[Batch] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """Give a pruned network other weights, before it is trained.

    Parameters
    ----------
    model : nn.Module
        The network that the plan was made for; left as it is.
    pruned : nn.Module
        What `apply_plan` made of it; left as it is.
    plan : PruningPlan
        The plan that was applied.
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass.
    update : str or callable, default "reconstruct"
        See `available_updates`.
    data : Calibration or iterable of (inputs, targets), optional
        Images, for updates that look at some.
    seed : int, default 0
        Seed of everything random.
    progress : Progress, optional
        Where long stages report; silent by default.

    Returns
    -------
    nn.Module
        A copy of ``pruned`` with other weights.

    Raises
    ------
    ValueError
        If the name is unknown, or images are needed and there are none.
    """
    context = SelectorContext(model, example_inputs, seed, data=Calibration.of(data), progress=progress)
    return get_update(update)(pruned, plan, context)
