"""When weights go: how many are left after each round, or at each step of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Gradual:
    """When weights go during a training, a few at a time. The fields are also flags of the commands.

    Attributes
    ----------
    begin : float
        Share of the training's steps after which the number of weights starts to fall.
    end : float
        Share of the training's steps after which the last ones go; the rest of the training is for what stays.
    every : int
        Steps from one removal to the next.

    Raises
    ------
    ValueError
        A value out of its range.
    """

    begin: float = 0.0
    end: float = 0.5
    every: int = 20

    def __post_init__(self) -> None:
        """Check the ranges."""
        rules = {
            "begin": (0 <= self.begin < 1, "in [0, 1)"),
            "end": (self.begin < self.end <= 1, f"above begin, which is {self.begin}, and at most 1"),
            "every": (self.every >= 1, "at least 1"),
        }
        for name, (holds, wanted) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {wanted}, but is {getattr(self, name)}")


def iterative_counts(prunable: int, keep: int, rate: float = 0.2) -> tuple[int, ...]:
    r"""Return how many weights are left after each round of iterative pruning.

    Parameters
    ----------
    prunable : int
        Weights before the first round.
    keep : int
        Weights that are to be left in the end, from 1 to ``prunable``.
    rate : float, default 0.2
        Share of the weights that a round begins with which it removes, in (0, 1]; the decimal as written.

    Returns
    -------
    tuple of int
        Falling from one round to the next; the last is ``keep``. One round, without a removal, if nothing is to go.

    Raises
    ------
    ValueError
        A value out of its range.

    Notes
    -----
    From :math:`n` weights a round leaves

    .. math:: \max(\mathrm{keep},\; n - \max(1, \lfloor r n + 1/2 \rfloor))

    with the rate :math:`r`: a share of what remains, as for lottery tickets, rounded to the nearest weight, halves
    upwards. Rounding, and that the last round is shortened so as to end on ``keep``, are ours.

    References
    ----------
    Frankle, Carbin. The lottery ticket hypothesis: finding sparse, trainable neural networks. ICLR 2019,
    arXiv 1803.03635.

    Examples
    --------
    >>> iterative_counts(1000, 500)
    (800, 640, 512, 500)
    """
    if not 1 <= keep <= prunable:
        raise ValueError(f"keep must be from 1 to the {prunable} prunable weights, but is {keep}")
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], but is {rate}")
    counts: list[int] = []
    share, left = _as_written(rate), prunable
    while not counts or left > keep:
        left = max(keep, left - max(1, math.floor(share * left + Fraction(1, 2))))
        counts.append(left)
    return tuple(counts)


def cubic_sparsity(step: int, *, begin: int, end: int, initial: float, final: float) -> float:
    r"""Return the share of the weights that is gone at a step of a gradual schedule.

    Parameters
    ----------
    step : int
        Any step.
    begin, end : int
        Steps at which the share starts to grow and is full.
    initial, final : float
        The shares before and after, 0 <= ``initial`` <= ``final`` <= 1.

    Returns
    -------
    float
        Never falls from one step to the next, in [``initial``, ``final``]; exactly ``initial`` up to ``begin`` and
        exactly ``final`` from ``end`` on.

    Raises
    ------
    ValueError
        A value out of its range, or ``end`` is not after ``begin``.

    Notes
    -----
    With the first step :math:`t_0` and the last :math:`t_0 + n \Delta t`,

    .. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{n \Delta t}\right)^3

    References
    ----------
    Zhu, Gupta. To prune, or not to prune: exploring the efficacy of pruning for model compression. ICLR 2018 workshop,
    arXiv 1710.01878.
    """
    if not 0 <= initial <= final <= 1:
        raise ValueError(f"initial and final must be 0 <= initial <= final <= 1, but are {initial} and {final}")
    _check_order(begin, end)
    if step <= begin:
        return initial
    if step >= end:
        return final
    left = 1 - (step - begin) / (end - begin)
    # Products, not a power, which the C library may round so that it falls; and never past the ends by rounding.
    return min(final, max(initial, final + (initial - final) * (left * left * left)))


def cubic_count(step: int, *, begin: int, end: int, initial: int, final: int) -> int:
    """Return how many weights are left at a step of a gradual schedule: `cubic_sparsity`, exact, in whole weights.

    Parameters
    ----------
    step : int
        Any step.
    begin, end : int
        Steps at which the number starts to fall and at which it is ``final``.
    initial, final : int
        Weights left before and after, 0 <= ``final`` <= ``initial``.

    Returns
    -------
    int
        The formula's number rounded to the nearest weight, halves upwards; computed in whole numbers, so that it is
        right for any number of weights. Never rises from one step to the next.

    Raises
    ------
    ValueError
        A value out of its range, or ``end`` is not after ``begin``.
    """
    if not 0 <= final <= initial:
        raise ValueError(f"initial and final must be 0 <= final <= initial weights, but are {initial} and {final}")
    _check_order(begin, end)
    whole = (end - begin) ** 3
    left = (end - min(max(step, begin), end)) ** 3
    return final + (2 * (initial - final) * left + whole) // (2 * whole)


def gradual_steps(gradual: Gradual, begin: int, steps: int) -> list[int]:
    """Return after which steps of a training weights go.

    Parameters
    ----------
    gradual : Gradual
        The settings. Their shares are of the steps that the training takes, ``steps - begin``.
    begin : int
        Step of the recipe that the training begins with, as for `srr_ext.training.train`; 0 but after rewinding.
    steps : int
        Steps of the whole recipe.

    Returns
    -------
    list of int
        Numbers of steps of the recipe that are done, increasing, at least two, in [``begin``, ``steps``]. At the first
        the schedule starts, so there it has its initial sparsity; then come those ``every`` steps apart; the last is
        the end, with the final sparsity, and may follow sooner. The start is rounded down and the end up to a step.

    Raises
    ------
    ValueError
        The training has no step.
    """
    if not 0 <= begin < steps:
        raise ValueError(
            f"begin must be a step before the last of the recipe, in [0, {steps}), but is {begin}; weights that go "
            "during a training need one: give it more epochs, or prune at once"
        )
    taken = steps - begin
    first = begin + math.floor(_as_written(gradual.begin) * taken)
    last = begin + math.ceil(_as_written(gradual.end) * taken)
    return [*range(first, last, gradual.every), last]


def _check_order(begin: int, end: int) -> None:
    if begin >= end:
        raise ValueError(f"end must be after begin, but they are {end} and {begin}")


def _as_written(share: float) -> Fraction:
    """Return the decimal as written: 0.1 of 30 is 3, not a little more."""
    return Fraction(repr(float(share)))
