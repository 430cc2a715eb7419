"""Weights that go while the network is trained, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from srr_ext.criteria.base import SelectorContext
from srr_ext.measuring import measuring
from srr_ext.sparsity.choose import choose, parse_scope
from srr_ext.sparsity.masks import Masks
from srr_ext.sparsity.schedule import cubic_count
from srr_ext.sparsity.scores import Score


class GradualPruning:
    r"""Masks that keep fewer and fewer weights as a training goes on.

    For one training: ``train(model, ..., after_step=gradual.step, masks=gradual, begin=begin)``.

    Parameters
    ----------
    model : nn.Module
        The model that is trained; its weights may be moved to another device at any time.
    alive : Masks
        What is there at the start. Of it, weights go; what is masked stays so.
    keep : int
        How many weights are left in the end, from 1 to ``alive.kept``.
    score : Score
        Says which weights go first; see `srr_ext.sparsity.get_score`. It sees the weights as they are at each event.
    scope : {"global", "layerwise"}
        Where weights compete; see `choose`.
    events : sequence of int
        Numbers of steps of the recipe after which weights go, at least two; see `gradual_steps`. The schedule starts
        at the first and ends at the last.
    context : callable
        Given the model as it is at an event, returns the `SelectorContext` that the score gets.
    begin : int, default 0
        Steps of the recipe that are done before the training, as after rewinding.

    Attributes
    ----------
    masks : Masks
        What is left at present.
    done : int
        Steps of the recipe that are done.
    counts : dict of int to int
        How many weights are left from each event on. A training that ends before the last event leaves more weights
        than ``keep``.

    Raises
    ------
    ValueError
        A value out of its range, masks that do not fit the model, or a scope N:M.

    Notes
    -----
    After step :math:`t` of the recipe, :math:`n_e` weights are left, with the last event :math:`e \le t` and the
    formula of `cubic_count`: from ``alive.kept`` at the first event to ``keep`` at the last, of which the number after
    each event is exact. Masked weights get no gradient and never come back, which is ours: Zhu and Gupta choose among
    all weights anew, but theirs change no more either once they are masked.

    A pattern N:M is refused: it settles how many weights stay at once, so there is nothing to grow; and weights that
    went on the way without regard to it may leave too few in a group. Prune by it at once, and train with the masks.

    References
    ----------
    Zhu, Gupta. To prune, or not to prune: exploring the efficacy of pruning for model compression. ICLR 2018 workshop,
    arXiv 1710.01878.
    """

    def __init__(
        self,
        model: nn.Module,
        alive: Masks,
        keep: int,
        score: Score,
        scope: str,
        events: Sequence[int],
        context: Callable[[nn.Module], SelectorContext],
        *,
        begin: int = 0,
    ) -> None:
        alive.check(model)
        if not 1 <= keep <= alive.kept:
            raise ValueError(f"keep must be from 1 to the {alive.kept} weights that are left, but is {keep}")
        if isinstance(parse_scope(scope), tuple):
            raise ValueError(
                f"scope {scope} does not go with weights that go gradually: the pattern settles at once how many stay; "
                "take global or layerwise, or prune at once"
            )
        if len(events) < 2 or events[0] < begin or any(later <= sooner for sooner, later in pairwise(events)):
            raise ValueError(
                f"events must be at least two increasing numbers of steps from begin, {begin}, on, but are "
                f"{list(events)}; see gradual_steps"
            )
        self.masks, self.done = alive, begin
        span = {"begin": events[0], "end": events[-1]}
        self.counts = {event: cubic_count(event, **span, initial=alive.kept, final=keep) for event in events}
        self._model, self._score, self._scope, self._context = model, score, scope, context

    def step(self, lr: float) -> None:
        """Count a step of the optimiser; if it is that of an event, choose which weights go.

        The weights themselves become zero with the next `apply`. Nothing else of the model, nor the random state, is
        touched.

        Parameters
        ----------
        lr : float
            Not used.
        """
        self.done += 1
        count = self.counts.get(self.done, self.masks.kept)
        if count < self.masks.kept:
            self.masks = self._chosen(count)

    def apply(self, model: nn.Module) -> None:
        """Set the weights of a model that are masked at present to exactly 0, in place; see `Masks.apply`."""
        self.masks.apply(model)

    def apply_to_gradients(self, model: nn.Module) -> None:
        """Set their gradients to exactly 0, in place, where there are gradients; see `Masks.apply_to_gradients`."""
        self.masks.apply_to_gradients(model)

    def state(self) -> dict[str, Tensor]:
        """Return masks and place in the schedule as tensors, for a training that may be stopped."""
        return {"done": torch.tensor(self.done), **{f"mask:{name}": mask for name, mask in self.masks.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self.done = int(tensors["done"])
        self.masks = Masks({name: tensors[f"mask:{name}"] for name in self.masks})

    def _chosen(self, count: int) -> Masks:
        tensors = {name: self._model.get_parameter(name).detach() for name in self.masks}
        with measuring(0):  # to make images ready, and to go through a loader, may draw random numbers
            context = self._context(self._model)
            with measuring(context.seed):
                return choose(self._score(tensors, context), self.masks, count, self._scope)
