"""What is trained after pruning: which weights take the place of the pruned ones, and which recipe is followed when on.

Fine-tuning, rewinding and training anew are combinations of two choices, for channels and for single weights alike:

    ==============  ==========================================  ======================================================
    name            weights                                     recipe
    ==============  ==========================================  ======================================================
    finetune        those that pruning has left                 that of the fine-tuning
    lr-rewind       those that pruning has left                 that of the dense network, from a moment to its end
    weight-rewind   of the dense network at that moment         that of the dense network, from that moment to its end
    scratch         new ones                                    that of the dense network, stretched over all epochs
    ==============  ==========================================  ======================================================

References
----------
Frankle, Carbin. The lottery ticket hypothesis: finding sparse, trainable neural networks. ICLR 2019, arXiv 1803.03635
(weights rewound to their initial values).

Renda, Frankle, Carbin. Comparing rewinding and fine-tuning in neural network pruning. ICLR 2020, arXiv 2003.02389 (all
of them, and rewinding of the learning rate).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from srr_ext.training import TrainConfig

Retrain = Literal["finetune", "lr-rewind", "weight-rewind", "scratch"]
Weights = Literal["kept", "rewound", "new"]

_MOMENT = re.compile(r"(\d+(?:\.\d+)?)(ep|it)")


@dataclass(frozen=True)
class Moment:
    """A step of a training, counted in epochs or in steps.

    Attributes
    ----------
    count : Fraction
        How many have passed.
    unit : {"ep", "it"}
        Epochs, or steps of the optimiser.
    """

    count: Fraction
    unit: Literal["ep", "it"] = "ep"

    @classmethod
    def read(cls, text: str) -> Moment:
        """Read ``3ep``, ``0.5ep`` or ``500it``.

        Raises
        ------
        ValueError
            The text is none of these.
        """
        match = _MOMENT.fullmatch(text.strip())
        if match is None or (match[2] == "it" and "." in match[1]):
            raise ValueError(f"rewind_to must be epochs or steps, as in 3ep, 0.5ep or 500it, but is {text!r}")
        return cls(Fraction(match[1]), match[2])  # type: ignore[arg-type]  # the pattern has these two

    def __str__(self) -> str:
        """Write what `read` reads; the same for the same moment in the same unit."""
        shown = str(self.count) if self.count.denominator == 1 else f"{float(self.count):.10g}"
        return f"{shown}{self.unit}"

    def step(self, steps_per_epoch: int) -> int:
        """Count the steps that have passed; that of a part of an epoch is the nearest one."""
        return int(self.count) if self.unit == "it" else round(self.count * steps_per_epoch)


@dataclass(frozen=True)
class Retraining:
    """What is trained after pruning.

    Attributes
    ----------
    weights : {"kept", "rewound", "new"}
        The weights that pruning has left, those that the dense network had at ``begin``, or newly drawn ones.
    recipe : TrainConfig
        What is followed.
    begin : Moment
        From when on.
    group : {"fine_tune", "dense"}
        Whose recipe it is, in configurations.
    """

    weights: Weights
    recipe: TrainConfig
    begin: Moment = Moment(Fraction(0))
    group: Literal["fine_tune", "dense"] = "dense"

    def epochs(self, steps_per_epoch: int) -> float:
        """Return how many epochs it takes."""
        return self.recipe.epochs - self.begin.step(steps_per_epoch) / steps_per_epoch


def retraining(
    name: Retrain, dense: TrainConfig, fine_tune: TrainConfig, *, rewind_to: str | None = None, sparse_epochs: int = 0
) -> Retraining:
    """Return what a name stands for.

    Parameters
    ----------
    name : {"finetune", "lr-rewind", "weight-rewind", "scratch"}
        See the table above.
    dense : TrainConfig
        Of the dense network.
    fine_tune : TrainConfig
        Of the fine-tuning. Rewinding without ``rewind_to`` takes as many epochs: it goes back to epoch T - t of the T
        epochs of the dense network.
    rewind_to : str, optional
        Moment of the dense training to rewind to; 0ep is its beginning.
    sparse_epochs : int, default 0
        Of the training under a penalty between the two, which a training from new weights lasts longer for.

    Returns
    -------
    Retraining

    Raises
    ------
    ValueError
        Rewinding to a moment after the dense training, or before it; the message begins with ``rewind_to``.
    """
    if name == "finetune":
        return Retraining("kept", fine_tune, group="fine_tune")
    if name == "scratch":
        return Retraining("new", stretched(dense, dense.epochs + sparse_epochs + fine_tune.epochs))
    begin = moment_of(dense, fine_tune, rewind_to)
    return Retraining("rewound" if name == "weight-rewind" else "kept", dense, begin)


def stretched(recipe: TrainConfig, epochs: int) -> TrainConfig:
    """Return a recipe of other length in which the learning rate drops at the same shares of the training."""
    factor = epochs / recipe.epochs if recipe.epochs else 1.0
    return replace(recipe, epochs=epochs, milestones=tuple(m * factor for m in recipe.milestones))


def moment_of(dense: TrainConfig, fine_tune: TrainConfig, rewind_to: str | None) -> Moment:
    """Return the moment to rewind to; see `retraining`."""
    if rewind_to is None:
        if fine_tune.epochs > dense.epochs:
            raise ValueError(
                f"rewind_to must be given: {fine_tune.epochs} epochs after pruning are more than the {dense.epochs} of "
                "the dense network, of whose recipe they are to be the last ones"
            )
        return Moment(Fraction(dense.epochs - fine_tune.epochs))
    moment = Moment.read(rewind_to)
    if moment.unit == "ep" and moment.count > dense.epochs:
        raise ValueError(f"rewind_to must be within the {dense.epochs} epochs of the dense network, but is {moment}")
    return moment
