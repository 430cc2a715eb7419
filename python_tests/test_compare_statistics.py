"""Means, paired tests and claims: against hand computation, closed forms, SciPy and definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_ext.comparison.statistics import LEVEL, Pair, PairedTest, Spread, holm, judge, number


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_spread_is_the_sample_deviation() -> None:
    assert Spread.of([1.0, 2.0, 4.0]) == Spread(7 / 3, math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2), 3)
    assert Spread.of([93.5]) == Spread(93.5, None, 1)
    with pytest.raises(ValueError, match="at least one number"):
        Spread.of([])


def test_paired_test_is_that_of_students_closed_form() -> None:
    """With two degrees of freedom the distribution is elementary: P(|T| > t) = 1 - t / sqrt(t^2 + 2)."""
    found = PairedTest.of(by_seed(90, 91, 93), by_seed(89, 89, 90))  # differences 1, 2, 3
    t = 2 * math.sqrt(3)
    assert found.difference == Spread(2.0, 1.0, 3)
    assert found.t == pytest.approx(t, rel=1e-12)
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2), rel=1e-12)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_paired_test_is_a_one_sample_test_of_differences(values: list[tuple[float, float]]) -> None:
    first, second = by_seed(*(a for a, _ in values)), by_seed(*(b for _, b in values))
    found = PairedTest.of(first, second)
    differences = [a - b for a, b in values]
    if found.p is None:
        assert max(differences) - min(differences) < 1e-8
        return
    expected = scipy.stats.ttest_1samp(differences, 0)
    assert found.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    opposite = PairedTest.of(second, first)
    assert (opposite.t, opposite.p) == (pytest.approx(-found.t), pytest.approx(found.p))


def test_only_common_seeds_are_paired() -> None:
    found = PairedTest.of({0: 50.0, 1: 91.0, 2: 92.0, 5: 94.0}, {5: 92.0, 1: 90.0, 2: 89.0, 7: 10.0})
    assert found == PairedTest.of(by_seed(91, 92, 94), by_seed(90, 89, 92))
    with pytest.raises(ValueError, match="a seed in common"):
        PairedTest.of({0: 1.0}, {1: 1.0})


@given(st.lists(st.floats(0, 1), max_size=6))
@settings(max_examples=80, deadline=None)
def test_holm_is_the_closed_bonferroni_test(p: list[float]) -> None:
    """A hypothesis falls when every intersection of hypotheses that holds it falls by Bonferroni's test."""
    for i, adjusted in enumerate(holm(p)):
        others = [j for j in range(len(p)) if j != i]
        subsets = (
            (i, *rest) for size in range(len(p)) for rest in itertools.combinations(others, size)
        )  # fmt: skip
        assert adjusted == pytest.approx(max(min(1, len(s) * min(p[j] for j in s)) for s in subsets), rel=1e-12)


def test_holm_by_hand_and_refusal() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\], got nan"):
        holm([float("nan")])


A = by_seed(93.0, 93.1, 92.9)


def pair(other: dict[int, float], name: str = "b", first: dict[int, float] = A, **settings: dict[str, str]) -> Pair:
    return Pair("a", name, 0.5, 0.5, first, other, **settings)


def test_a_claim_is_made_with_its_numbers() -> None:
    found = judge([pair(by_seed(91.0, 91.2, 90.8))])[0]  # differences 2.0, 1.9, 2.1
    t = 2 * math.sqrt(3) / 0.1
    p = 1 - t / math.sqrt(t * t + 2)
    assert (found.p, found.p_adjusted) == (pytest.approx(p, rel=1e-6), pytest.approx(p, rel=1e-6))
    assert not found.withheld
    assert found.claim == (
        f"a beats b at keep 0.5 by 2.00 \N{PLUS-MINUS SIGN} 0.10 points "
        f"(paired t-test over 3 seeds, Holm-adjusted p = {p:.2g})"
    )


def test_a_claim_against_the_first_method_is_made_too() -> None:
    found = judge([pair(by_seed(95.0, 95.2, 94.8))])[0]
    assert found.claim.startswith("b beats a at keep 0.5 by 2.00 ")


def test_claims_are_withheld_with_the_reason() -> None:
    found = judge(
        [
            pair({0: 80.0, 1: 80.2}),
            pair(by_seed(92.0, 94.0, 93.1)),
            pair(by_seed(92.0, 92.1, 91.9)),
            pair({8: 1.0, 9: 2.0, 10: 3.0}),
            pair(by_seed(91.0, 91.2, 90.8), larger={"a": "a has 5.0 % more MACs"}),
            pair(by_seed(91.0, 91.2, 90.8), larger={"b": "b has 5.0 % more MACs"}),
        ]
    )
    starts = [
        "too few seeds: 2, and 3 are needed", "not significant: Holm-adjusted p = ", "zero variance of the differences",
        "no seed in common", "not at equal cost: a has 5.0 % more MACs", "",
    ]  # fmt: skip
    for verdict, start in zip(found, starts, strict=True):
        assert verdict.withheld.startswith(start) and bool(verdict.claim) == (not start)
        assert bool(verdict.claim) != bool(verdict.withheld)
    assert (found[0].p_adjusted, found[2].p, found[2].p_adjusted, found[3].difference) == (None, None, None, None)
    assert found[0].p is not None and found[2].difference == Spread(1.0, pytest.approx(0, abs=1e-9), 3)


def test_the_family_is_all_that_was_tested() -> None:
    """A difference that stands alone does not stand among many; untestable ones count, those with few seeds do not."""
    clear = by_seed(91.0, 91.7, 90.6)
    alone = judge([pair(clear)])[0]
    assert alone.claim and LEVEL / 10 < (alone.p or 1) < LEVEL / 2
    noise = by_seed(92.0, 94.0, 93.1)
    among = judge([pair(clear), *[pair(noise, str(i)) for i in range(9)]])[0]
    assert among.p == alone.p and among.p_adjusted == pytest.approx(10 * alone.p) and not among.claim
    same = by_seed(92.0, 92.1, 91.9)
    assert judge([pair(clear), pair(same)])[0].p_adjusted == pytest.approx(2 * alone.p)
    assert judge([pair(clear), pair({0: 3.0, 1: 4.0})])[0].p_adjusted == alone.p


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.049999, "0.049999"), (0.0500001, "0.05"), (1e-7, "1.0e-07"), (0.5, "0.5"), (0.0123, "0.012")],
)
def test_p_is_never_rounded_over_the_level(p: float, shown: str) -> None:
    assert number(p) == shown
