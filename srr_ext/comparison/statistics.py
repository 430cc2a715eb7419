"""Means over seeds, and which differences between methods may be called one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEAST_SEEDS = 3  # two differences have a deviation, but it says next to nothing
LEVEL = 0.05  # an adjusted p below this makes a claim
_SAME = 1e-9  # percentage points: a smaller deviation of differences is rounding


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes
    ----------
    mean : float
        Their mean.
    std : float or None
        Their sample standard deviation (divided by n - 1); None for a single value.
    n : int
        How many there are.
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise one value per seed.

        Parameters
        ----------
        values : sequence of float
            At least one.

        Returns
        -------
        Spread
        """
        if not values:
            raise ValueError("values must hold at least one number to have a mean, got none")
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))


@dataclass(frozen=True)
class PairedTest:
    r"""A paired t-test of one method against another.

    Attributes
    ----------
    difference : Spread
        Of the differences, first minus second, over the seeds that both have.
    t : float or None
        The statistic; None where it is undefined, with fewer than two pairs or when all differences are the same.
    p : float or None
        Two-sided probability of such a t or a larger one if there is no difference.

    Notes
    -----
    With differences :math:`d_i` over n seeds, mean :math:`\bar d` and sample deviation s,
    :math:`t = \bar d \sqrt n / s` follows Student's distribution with n - 1 degrees of freedom if the :math:`d_i` are
    normal around zero.

    References
    ----------
    Student, "The probable error of a mean", Biometrika 6, 1908.
    """

    difference: Spread
    t: float | None
    p: float | None

    @classmethod
    def of(cls, first: Mapping[int, float], second: Mapping[int, float]) -> PairedTest:
        """Test values by seed; seeds that only one of them has are left out.

        Parameters
        ----------
        first, second : mapping of int to float
            Value of every seed; at least one seed must be in both.

        Returns
        -------
        PairedTest
        """
        from scipy.stats import ttest_rel

        seeds = sorted(first.keys() & second.keys())
        if not seeds:
            raise ValueError("first and second must have a seed in common to be paired, but they have none")
        difference = Spread.of([first[seed] - second[seed] for seed in seeds])
        if difference.std is None or difference.std < _SAME:
            return cls(difference, None, None)
        found = ttest_rel([first[seed] for seed in seeds], [second[seed] for seed in seeds])
        return cls(difference, float(found.statistic), float(found.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Adjust the p values of a family of tests so that the chance of a single false claim stays below the level.

    Parameters
    ----------
    p_values : sequence of float
        Of all tests that were made.

    Returns
    -------
    list of float
        Adjusted values in the same order, at most 1.

    Notes
    -----
    For sorted :math:`p_{(1)} \le \dots \le p_{(m)}`, the adjusted values are
    :math:`\tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1) p_{(j)})`.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p_values must lie in [0, 1], got {p}")
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = reached
    return adjusted


@dataclass(frozen=True)
class Verdict:
    """What may be said about two methods at one cost.

    Attributes
    ----------
    method, other : str
        Labels of the method in question and of the one it is compared with.
    keep, other_keep : float
        Share of the cost that each keeps; they differ only where the other is not pruned.
    n : int
        Seeds that both have.
    difference : Spread or None
        Final top-1 accuracy of the method minus that of the other, in points; None without a common seed.
    t, p, p_adjusted : float or None
        Of the paired test; the adjusted value is by Holm, over all tests of the comparison. None where not tested.
    claim : str
        The sentence that the test backs; empty if it is withheld.
    withheld : str
        Why there is no claim; empty if there is one.
    """

    method: str
    other: str
    keep: float
    other_keep: float
    n: int
    difference: Spread | None
    t: float | None
    p: float | None
    p_adjusted: float | None
    claim: str
    withheld: str


@dataclass(frozen=True)
class Pair:
    """Two methods to be compared at one cost.

    Attributes
    ----------
    method, other : str
        Their labels.
    keep, other_keep : float
        Share of the cost that each keeps.
    values, other_values : mapping of int to float
        Final top-1 accuracy in percent of each, by seed.
    larger : mapping of str to str
        For whichever of the two costs more than the other: its label, and by how much, in words. It cannot win.
    """

    method: str
    other: str
    keep: float
    other_keep: float
    values: Mapping[int, float]
    other_values: Mapping[int, float]
    larger: Mapping[str, str] = field(default_factory=dict)


def judge(pairs: Sequence[Pair]) -> list[Verdict]:
    """Test every pair and say what may be claimed.

    Parameters
    ----------
    pairs : sequence of Pair
        All that are of interest: together they are the family over which p is adjusted.

    Returns
    -------
    list of Verdict
        One per pair, in the same order.

    Notes
    -----
    A claim needs `LEAST_SEEDS` common seeds and an adjusted p below `LEVEL`. Pairs with enough seeds whose differences
    are all the same have no t; they count in the family as tests that failed (p = 1).
    """
    tests = [
        PairedTest.of(p.values, p.other_values) if p.values.keys() & p.other_values.keys() else None for p in pairs
    ]
    family = {
        i: 1.0 if test.p is None else test.p
        for i, test in enumerate(tests)
        if test and test.difference.n >= LEAST_SEEDS
    }
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))
    return [_verdict(pair, tests[i], adjusted.get(i)) for i, pair in enumerate(pairs)]


def _verdict(pair: Pair, test: PairedTest | None, adjusted: float | None) -> Verdict:
    names = (pair.method, pair.other, pair.keep, pair.other_keep)
    if test is None:
        return Verdict(*names, 0, None, None, None, None, "", "no seed in common")
    difference = test.difference
    claim, withheld = "", ""
    winner, loser = (pair.method, pair.other) if difference.mean > 0 else (pair.other, pair.method)
    if adjusted is None:
        withheld = f"too few seeds: {difference.n}, and {LEAST_SEEDS} are needed"
    elif test.p is None:
        withheld = "zero variance of the differences: every seed gave the same one, so that there is no t-test"
    elif adjusted >= LEVEL:
        withheld = f"not significant: Holm-adjusted p = {number(adjusted)}, and less than {LEVEL:g} is needed"
    elif winner in pair.larger:
        withheld = f"not at equal cost: {pair.larger[winner]}"
    else:
        assert difference.std is not None
        claim = (
            f"{winner} beats {loser} at keep {pair.keep:g} by {abs(difference.mean):.2f} \N{PLUS-MINUS SIGN} "
            f"{difference.std:.2f} points (paired t-test over {difference.n} seeds, Holm-adjusted "
            f"p = {number(adjusted)})"
        )
    p_adjusted = None if test.p is None else adjusted
    return Verdict(*names, difference.n, difference, test.t, test.p, p_adjusted, claim, withheld)


def number(p: float) -> str:
    """Write a p value so that it never looks like zero and never rounds to the other side of the level."""
    if p < 1e-4:
        return f"{p:.1e}"
    shown = f"{p:.2g}"
    digits = 3
    while (float(shown) < LEVEL) != (p < LEVEL) and not math.isclose(p, LEVEL, rel_tol=1e-12):
        shown = f"{p:.{digits}g}"
        digits += 1
    return shown
