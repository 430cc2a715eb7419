"""When weights go: the formulas at every step, and what any schedule must hold."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_ext.sparsity.schedule import Gradual, cubic_count, cubic_sparsity, gradual_steps, iterative_counts

# --- iterative ----------------------------------------------------------------------------------------------------

RATES = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@given(st.data(), st.integers(1, 10**9), RATES.filter(lambda rate: rate >= 0.02))
def test_every_round_removes_the_share_of_what_remains(data: st.DataObject, prunable: int, rate: float) -> None:
    """To the nearest weight, but at least one, and the last lands on what is to stay."""
    keep = data.draw(st.integers(1, prunable))
    counts = iterative_counts(prunable, keep, rate)
    assert counts[-1] == keep
    if keep == prunable:
        assert counts == (keep,)
        return
    thousandths = round(1000 * rate)
    for before, after in itertools.pairwise((prunable, *counts)):
        gone = before - after
        assert gone >= 1
        exact = Fraction(thousandths * before, 1000)
        if after > keep:
            assert gone == 1 or abs(gone - exact) <= Fraction(1, 2)
            assert gone > 1 or exact < Fraction(3, 2)
        else:
            assert gone <= max(1, exact + Fraction(1, 2))


def test_rounds_of_a_network_by_hand() -> None:
    """Twenty percent of 1000, 800, 640; of 512 only what is still to go. Small numbers lose one at a time."""
    assert iterative_counts(1000, 500) == (800, 640, 512, 500)
    assert iterative_counts(1000, 512) == (800, 640, 512)
    assert iterative_counts(5, 1, 0.2) == (4, 3, 2, 1)
    assert iterative_counts(2, 1, 0.001) == (1,)
    assert iterative_counts(25, 20, 0.1) == (22, 20)  # 2.5 weights are 3
    assert iterative_counts(30, 20, 0.1) == (27, 24, 22, 20)  # 0.1 is a tenth, and 2.4 weights are 2
    assert iterative_counts(10**9, 7, 1.0) == (7,)
    assert iterative_counts(7, 7) == (7,)


def test_rounds_of_the_lottery_ticket_are_powers_of_the_rest() -> None:
    """Within one weight per round: 0.8 ** k of a ResNet-20's."""
    counts = iterative_counts(270_000, 1000)
    for k, count in enumerate(counts[:-1], 1):
        assert abs(count - 270_000 * 0.8**k) <= 0.5 * sum(0.8**i for i in range(k))
    assert len(counts) == math.ceil(math.log(1000 / 270_000) / math.log(0.8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0), "keep must be from 1 to the 10 prunable weights, but is 0"),
        ((10, 11), "keep must be from 1 to the 10 prunable weights, but is 11"),
        ((10, 5, 0.0), r"rate must be in \(0, 1\], but is 0.0"),
        ((10, 5, 1.5), r"rate must be in \(0, 1\], but is 1.5"),
        ((10, 5, math.nan), r"rate must be in \(0, 1\], but is nan"),
    ],
)
def test_rounds_that_make_no_sense_are_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iterative_counts(*arguments)


# --- cubic --------------------------------------------------------------------------------------------------------

SHARES = st.floats(0, 1).flatmap(lambda low: st.tuples(st.just(low), st.floats(low, 1)))
SPANS = st.tuples(st.integers(0, 10**6), st.integers(1, 200))


@given(SPANS, SHARES)
@settings(deadline=None)
def test_sparsity_is_the_formula_at_every_step(span: tuple[int, int], shares: tuple[float, float]) -> None:
    """Of Zhu and Gupta, in exact fractions; it never falls and stays within its ends."""
    (begin, length), (initial, final) = span, shares
    low, high = Fraction(initial), Fraction(final)
    previous = initial
    for step in range(begin - 3, begin + length + 4):
        got = cubic_sparsity(step, begin=begin, end=begin + length, initial=initial, final=final)
        t = min(max(step - begin, 0), length)
        want = high + (low - high) * (1 - Fraction(t, length)) ** 3
        assert abs(Fraction(got) - want) <= Fraction(1, 2**50)
        assert previous <= got and initial <= got <= final
        if step <= begin:
            assert got == initial
        if step >= begin + length:
            assert got == final
        previous = got


@given(SPANS, st.integers(0, 10**12), st.integers(0, 10**12))
@settings(deadline=None)
def test_counts_are_the_formula_to_the_nearest_weight_at_every_step(span: tuple[int, int], a: int, b: int) -> None:
    begin, length = span
    final, initial = sorted((a, b))
    previous = initial
    for step in range(begin - 3, begin + length + 4):
        got = cubic_count(step, begin=begin, end=begin + length, initial=initial, final=final)
        t = min(max(step - begin, 0), length)
        want = final + (initial - final) * (1 - Fraction(t, length)) ** 3
        assert -Fraction(1, 2) < got - want <= Fraction(1, 2)
        assert final <= got <= previous
        previous = got
    assert previous == final


@given(st.integers(1, 300), st.integers(1, 10**6), st.data())
@settings(deadline=None)
def test_counts_and_shares_are_one_schedule(length: int, total: int, data: st.DataObject) -> None:
    """What is left is the total without the share that is gone."""
    initial = data.draw(st.integers(0, total))
    final = data.draw(st.integers(0, initial))
    span = {"begin": 5, "end": 5 + length}
    step = data.draw(st.integers(0, length + 10))
    count = cubic_count(step, **span, initial=initial, final=final)
    share = cubic_sparsity(step, **span, initial=1 - initial / total, final=1 - final / total)
    assert abs(count - total * (1 - share)) <= 0.5 + 1e-6


def test_half_way_an_eighth_is_left_to_go() -> None:
    assert cubic_sparsity(150, begin=100, end=200, initial=0.0, final=0.8) == pytest.approx(0.7)
    assert [cubic_count(s, begin=0, end=4, initial=64, final=0) for s in range(6)] == [64, 27, 8, 1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 0.5, "final": 0.4}, "0 <= initial <= final <= 1, but are 0.5 and 0.4"),
        ({"initial": -0.1, "final": 0.4}, "0 <= initial <= final <= 1, but are -0.1 and 0.4"),
        ({"initial": 0.0, "final": 1.1}, "0 <= initial <= final <= 1, but are 0.0 and 1.1"),
        ({"initial": 0.0, "final": math.nan}, "but are 0.0 and nan"),
        ({"initial": 0.0, "final": 0.5, "end": 3}, "end must be after begin, but they are 3 and 3"),
    ],
)
def test_shares_that_make_no_sense_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cubic_sparsity(5, **{"begin": 3, "end": 9} | arguments)  # type: ignore[arg-type]


def test_counts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="0 <= final <= initial weights, but are 4 and 5"):
        cubic_count(5, begin=3, end=9, initial=4, final=5)
    with pytest.raises(ValueError, match="end must be after begin, but they are 2 and 3"):
        cubic_count(5, begin=3, end=2, initial=5, final=4)


# --- when, in a training ------------------------------------------------------------------------------------------


@st.composite
def settings_of_gradual(draw: st.DrawFn) -> Gradual:
    begin = draw(st.integers(0, 99))
    end = draw(st.integers(begin + 1, 100))
    return Gradual(begin / 100, end / 100, draw(st.integers(1, 50)))


@given(settings_of_gradual(), st.integers(0, 500), st.integers(1, 1000))
def test_events_are_evenly_apart_and_end_at_the_end(gradual: Gradual, begin: int, taken: int) -> None:
    """Within the training; the shares are of the steps it takes."""
    events = gradual_steps(gradual, begin, begin + taken)
    assert len(events) >= 2 and begin <= events[0] and events[-1] <= begin + taken
    gaps = [b - a for a, b in itertools.pairwise(events)]
    assert all(gap == gradual.every for gap in gaps[:-1]) and 1 <= gaps[-1] <= gradual.every
    assert -1 < events[0] - begin - gradual.begin * taken <= 1e-9
    assert -1e-9 <= events[-1] - begin - gradual.end * taken < 1


def test_events_by_hand() -> None:
    assert gradual_steps(Gradual(every=100), 0, 1000) == [0, 100, 200, 300, 400, 500]
    assert gradual_steps(Gradual(0.1, 0.3, 8), 0, 100) == [10, 18, 26, 30]
    assert gradual_steps(Gradual(0.1, 0.3, 8), 100, 200) == [110, 118, 126, 130]
    assert gradual_steps(Gradual(), 0, 1) == [0, 1]
    assert gradual_steps(Gradual(0.0, 1.0, 4), 3, 11) == [3, 7, 11]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin": -0.1}, r"^begin must be in \[0, 1\), but is -0.1"),
        ({"begin": 1.0, "end": 1.0}, r"^begin must be in \[0, 1\), but is 1.0"),
        ({"begin": 0.5, "end": 0.5}, "^end must be above begin, which is 0.5, and at most 1, but is 0.5"),
        ({"end": 1.01}, "^end must be above begin, which is 0.0, and at most 1, but is 1.01"),
        ({"end": math.nan}, "^end must be above begin"),
        ({"every": 0}, "^every must be at least 1, but is 0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gradual(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("begin", [10, 11, -1])
def test_a_training_without_steps_is_refused(begin: int) -> None:
    with pytest.raises(ValueError, match=rf"^begin must be a step .* in \[0, 10\), but is {begin}; .* prune at once"):
        gradual_steps(Gradual(), begin, 10)
