"""The weights that a network had at some steps of its training, to rewind to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Snapshots:
    """Copies of all weights and buffers, taken while a network is trained.

    Parameters
    ----------
    model : nn.Module
        The network; the copy of step 0 is taken now.
    steps : iterable of int
        After which steps of the optimiser copies are taken.

    Attributes
    ----------
    states : dict of int to dict
        The ``state_dict`` after each of those steps that have been taken, on the CPU. With a moving average these are
        the weights that are trained, not the average.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> snapshots = Snapshots(model, [0, 100])
    >>> list(snapshots.states)  # then train(model, ..., after_step=snapshots.after_step)
    [0]
    """

    def __init__(self, model: nn.Module, steps: Iterable[int]) -> None:
        self._model, self._steps, self._taken = model, frozenset(steps), 0
        self.states: dict[int, dict[str, Tensor]] = {}
        self._look()

    def after_step(self, lr: float) -> None:
        """Count a step of the optimiser, and copy the weights if they are wanted."""
        self._taken += 1
        self._look()

    def state(self) -> dict[str, Tensor]:
        """Return all of it as tensors, for a training that may be stopped."""
        copies = {f"{step}:{n}": tensor for step, state in self.states.items() for n, tensor in state.items()}
        return copies | {"taken": torch.tensor(self._taken)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self._taken, self.states = int(tensors["taken"]), {}
        for key, tensor in tensors.items():
            step, colon, name = key.partition(":")
            if colon:
                self.states.setdefault(int(step), {})[name] = tensor

    def _look(self) -> None:
        if self._taken in self._steps:
            state = self._model.state_dict()
            self.states[self._taken] = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
