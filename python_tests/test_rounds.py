"""Plans made one after the other, as one plan; how far every round goes."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import srr_ext
from srr_ext.cost import Target
from srr_ext.rounds import floors_of_round, join, target_of_round


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "resnext50_32x4d"])
def test_two_plans_after_each_other_are_one(name: str) -> None:
    """One cut by the joint plan gives the network that two cuts give, tensor by tensor; its figures add up."""
    model = srr_ext.models.create(name, 10).eval()
    example = torch.randn(1, 3, 64, 64)
    first = srr_ext.make_plan(model, example, keep_macs=0.8, allocator="uniform", seed=3)
    half = srr_ext.apply_plan(model, first, example)
    second = srr_ext.make_plan(half, example, keep_macs=0.8, allocator="widest", selector="random", seed=4)
    joint = join(srr_ext.analyze_channels(model, example), first, second)
    small, expected = srr_ext.apply_plan(model, joint, example), srr_ext.apply_plan(half, second, example)
    assert small.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(small.state_dict()[key], value) for key, value in expected.state_dict().items())
    assert srr_ext.verify(model, joint, example) < 1e-9
    for quantity in ("macs", "params"):
        assert joint.cost[quantity]["dense"] == first.cost[quantity]["dense"]
        assert joint.cost[quantity]["pruned"] == second.cost[quantity]["pruned"]
    assert {group: size["size"] for group, size in joint.groups.items()} == {
        group: size["size"] for group, size in first.groups.items()
    }
    assert (joint.fingerprint, joint.seed, joint.allocator) == (first.fingerprint, 3, "widest")


def test_plans_that_do_not_follow_each_other_are_refused() -> None:
    """The second one was made for the dense network, or for another one."""
    model, example = srr_ext.models.create("resnet20"), torch.randn(1, 3, 32, 32)
    plan = srr_ext.make_plan(model, example, keep_macs=0.6)
    with pytest.raises(ValueError, match=r"later: \S+ has \[output, input\] channels \["):
        join(srr_ext.analyze_channels(model, example), plan, plan)


@given(st.floats(0.01, 1), st.integers(1, 6), st.integers(1000, 10**10))
def test_rounds_arrive_at_the_target_in_equal_shares(keep: float, rounds: int, dense: int) -> None:
    """Each takes about the same share; the last one ends at the target, to one unit, and never above."""
    target, now = Target("macs", keep), dense
    for round_ in range(1, rounds + 1):
        now = target_of_round(target, round_, rounds, dense, now).limit(now)
        assert abs(now - dense * keep ** (round_ / rounds)) <= 2
    assert target.limit(dense) - 1 <= now <= target.limit(dense)


def test_the_floor_is_that_of_the_dense_network() -> None:
    """Rounds together leave no group fewer than one round does, however many there are."""
    model, example = srr_ext.models.create("digits_cnn"), torch.randn(1, 1, 8, 8)
    analysis = srr_ext.analyze_channels(model, example)
    done = srr_ext.make_plan(model, example, keep_channels=0.6, allocator="widest")
    floors = floors_of_round(0.3, done)
    later = srr_ext.make_plan(
        srr_ext.apply_plan(model, done, example),
        example,
        keep_channels=0.54,
        floor=floors,
        allocator="widest",
    )
    sizes = join(analysis, done, later).groups.values()
    assert all(group["kept"] >= math.ceil(0.3 * group["size"] - 1e-9) for group in sizes)
    assert any(group["kept"] == math.ceil(0.3 * group["size"] - 1e-9) for group in sizes)


@given(st.integers(1, 99), st.integers(1, 500), st.data())
def test_floors_of_later_rounds_ask_for_the_same_number(percent: int, size: int, data: st.DataObject) -> None:
    """As exact fractions do."""
    least = -(-percent * size // 100)
    kept = data.draw(st.integers(least, size))
    done = srr_ext.PruningPlan({}, groups={"a": {"size": size, "kept": kept}})
    share = floors_of_round(percent / 100, done)["a"]
    assert math.ceil(Fraction(repr(share)) * kept) == least
