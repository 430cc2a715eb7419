"""Images that decisions look at: what is accepted, where they are given, and selectors that score again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from planning_nets import chain, deep, plan
from torch import Tensor, nn

import srr_ext
from srr_ext import Calibration, make_plan
from srr_ext.calibration import batches_on
from srr_ext.cli import steps
from srr_ext.cli.running import on_screen
from srr_ext.config import PruneConfig
from srr_ext.criteria import CountedSelector, SelectorContext, get_selector

Batch = tuple[Any, Tensor]


def some(n: int = 2) -> list[Batch]:
    return [(torch.full((4, 3, 4, 4), float(i)), torch.full((4,), i)) for i in range(n)]


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_what_can_be_gone_through_once_is_refused() -> None:
    """Scores need several passes over the same images."""
    for once in ((batch for batch in some()), iter(some()), torch.zeros(3), "images"):
        with pytest.raises(TypeError, match="train: expected batches that can be gone through again"):
            Calibration(once)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="validation: expected batches"):
        Calibration(some(), iter(some()))
    with pytest.raises(TypeError, match="loss: expected a callable, got str"):
        Calibration(some(), loss="cross_entropy")  # type: ignore[arg-type]


def test_batches_alone_are_images_to_score_on() -> None:
    batches, whole = some(), Calibration(some(1))
    made = Calibration.of(batches)
    assert made is not None and made.train is batches and tuple(made.validation) == ()
    assert Calibration.of(whole) is whole and Calibration.of(None) is None
    scores, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    want = -torch.log_softmax(scores, 1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(made.loss(scores, labels), want)


def test_batches_go_to_the_device_whatever_the_inputs_are() -> None:
    """Tensors in tuples and dicts too; other values stay."""
    nested = [({"x": torch.zeros(2), "n": 3}, torch.zeros(2)), ((torch.zeros(2), "mode"), torch.zeros(2))]
    found = list(batches_on(torch.device("meta"), nested, "batches"))
    assert found[0][0]["x"].device.type == "meta" and found[0][0]["n"] == 3 and found[0][1].device.type == "meta"
    assert found[1][0][0].device.type == "meta" and found[1][0][1] == "mode"


def test_batches_that_are_missing_or_no_pairs_are_refused() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="data: holds no training batches"):
        list(batches_on(cpu, [], "training batches"))
    for wrong in (torch.zeros(2), (torch.zeros(2),), {"x": torch.zeros(2)}):
        with pytest.raises(TypeError, match=r"data: expected batches of \(inputs, targets\)"):
            list(batches_on(cpu, [wrong], "batches"))  # type: ignore[list-item]


# --- where they are given ---------------------------------------------------------------------------------------------


def test_the_context_gives_both_kinds_and_says_when_there_are_none() -> None:
    net = chain()
    context = SelectorContext(net.model, net.inputs, data=Calibration(some(3), some(1)))
    assert len(list(context.batches())) == 3 == len(list(context.batches()))
    assert len(list(context.validation_batches())) == 1
    with pytest.raises(ValueError, match="data: this method looks at images and there are none"):
        SelectorContext(net.model, net.inputs).batches()
    with pytest.raises(ValueError, match="data: holds no validation batches"):
        list(SelectorContext(net.model, net.inputs, data=Calibration(some())).validation_batches())


def test_the_working_copy_is_apart_from_the_model() -> None:
    net = chain()
    net.model.train()
    twin = SelectorContext(net.model, net.inputs).working_copy()
    assert not twin.training and net.model.training
    ours = {p.data_ptr() for p in (*net.model.parameters(), *net.model.buffers())}
    assert not ours & {p.data_ptr() for p in (*twin.parameters(), *twin.buffers())}
    twin(net.inputs).sum().backward()
    assert all(p.grad is None for p in net.model.parameters())


@pytest.mark.parametrize("wrap", [list, Calibration], ids=["batches", "Calibration"])
def test_a_plan_hands_them_to_selector_and_allocator(wrap: Any) -> None:
    net, seen = chain(), []

    def selector(groups: Sequence[Any], context: SelectorContext) -> list[Tensor]:
        seen.append(sum(float(inputs.sum()) for inputs, _ in context.batches()))
        return [torch.ones(group.size, dtype=torch.float64) for group in groups]

    def allocator(groups: Sequence[Any], importance: Any, cost: Any, target: Any, context: Any) -> list[int]:
        seen.append(sum(float(inputs.sum()) for inputs, _ in context.batches()))
        return [group.size for group in groups]

    made = make_plan(net.model, net.inputs, allocator=allocator, selector=selector, keep_macs=1.0, data=wrap(some(3)))
    assert seen == [4 * 48 * 3.0] * 2 and made.layers == {}


def test_the_commands_hold_the_same_seeded_images() -> None:
    """Training images only, in whole batches, read once and the same in every pass; validation images beside them."""
    config = PruneConfig(calibration=130)
    images = steps.load_data(config, on_screen())
    made, again = steps.calibration(config, images), steps.calibration(config, images)
    first, second, other = ([i for i, _ in batches] for batches in (made.train, made.train, again.train))
    assert [len(batch) for batch in first] == [64, 64]
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    shuffled = steps.calibration(PruneConfig(calibration=130, seed=1), images)
    assert not torch.equal(first[0], next(iter(shuffled.train))[0])
    assert sum(len(labels) for _, labels in made.validation) == images.size("validation")
    few = steps.calibration(PruneConfig(calibration=10), images)
    assert [len(labels) for _, labels in few.train] == [10]


def test_batches_are_read_when_they_are_needed() -> None:
    reads = []

    def read() -> list[Batch]:
        reads.append(1)
        return some()

    held = steps.ReadOnce(read)
    made = Calibration(held)
    assert not reads and len(list(made.train)) == 2 == len(list(made.train)) and reads == [1]


# --- selectors that score again ---------------------------------------------------------------------------------------


class Counted:
    """Scores by index at first, and the other way round once the counts are known."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []

    def __call__(self, groups: Sequence[Any], context: SelectorContext) -> list[Tensor]:
        return [torch.arange(group.size, dtype=torch.float64) for group in groups]

    def given_counts(self, groups: Sequence[Any], counts: Sequence[int], context: SelectorContext) -> list[Tensor]:
        self.counts.append(list(counts))
        return [torch.arange(group.size, 0, -1, dtype=torch.float64) for group in groups]


def test_a_counted_selector_scores_again_when_the_counts_are_settled() -> None:
    """How many stay follows from the first scores, which of them from the second."""
    net, selector = deep((12, 20, 10)), Counted()
    assert isinstance(selector, CountedSelector) and not isinstance(get_selector("l1"), CountedSelector)
    kept, allocation = plan(net, "uniform", selector, 0.5, round_to=2)
    plain, of_plain = plan(net, "uniform", lambda groups, context: Counted()(groups, context), 0.5, round_to=2)
    assert allocation.counts == of_plain.counts and selector.counts == [list(allocation.counts)]
    for group, count in zip(net.groups, allocation.counts, strict=True):
        assert kept[group.name].tolist() == list(range(count))
        assert plain[group.name].tolist() == list(range(group.size - count, group.size))
    assert all(
        count % 2 == 0 or count == group.size for group, count in zip(net.groups, allocation.counts, strict=True)
    )


def test_what_a_counted_selector_returns_is_checked_too() -> None:
    class Short(Counted):
        def given_counts(self, groups: Sequence[Any], counts: Sequence[int], context: SelectorContext) -> list[Tensor]:
            return super().given_counts(groups, counts, context)[1:]

    class Infinite(Counted):
        def given_counts(self, groups: Sequence[Any], counts: Sequence[int], context: SelectorContext) -> list[Tensor]:
            return [scores * np.inf for scores in super().given_counts(groups, counts, context)]

    with pytest.raises(ValueError, match="must score 3 groups, got 2 tensors"):
        plan(deep((12, 20, 9)), "uniform", Short(), 0.5)
    with pytest.raises(ValueError, match="infinity or NaN"):
        plan(deep((12, 20, 9)), "uniform", Infinite(), 0.5)


def test_updates_get_model_plan_and_images() -> None:
    net = chain()
    made = make_plan(net.model, net.inputs, allocator="uniform", keep_macs=0.5)
    small = srr_ext.apply_plan(net.model, made, net.inputs)
    seen: dict[str, Any] = {}

    def update(pruned: nn.Module, plan: Any, context: SelectorContext) -> nn.Module:
        seen.update(pruned=pruned, plan=plan, model=context.model, seed=context.seed, n=len(list(context.batches())))
        return nn.Identity()

    result = srr_ext.update_weights(net.model, small, made, net.inputs, update, data=some(3), seed=7)
    assert isinstance(result, nn.Identity)
    assert seen == {"pruned": small, "plan": made, "model": net.model, "seed": 7, "n": 3}
    with pytest.raises(ValueError, match="no update is called 'none'"):
        srr_ext.update_weights(net.model, small, made, net.inputs, "none")


def batches_once() -> Iterator[Batch]:
    yield from some()


def test_make_plan_refuses_batches_that_are_gone_after_one_pass() -> None:
    net = chain()
    with pytest.raises(TypeError, match="train: expected batches that can be gone through again, a list say, got gen"):
        make_plan(net.model, net.inputs, keep_macs=0.9, data=batches_once())


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("method", ["taylor2016", "taylor2019", "aofp", "eigendamage", "c_obd", "cpli", "he2017"])
def test_batches_without_images_are_refused_by_every_method(method: str, place: int) -> None:
    """Wherever they stand; a batch of targets that nobody reads may be empty."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    batches = [(images, labels), (images, labels)]
    batches[place] = (images[:0], labels[:0])
    options = {"allocator": "uniform", "selector": method, "keep_params": 0.6}
    with pytest.raises(ValueError, match=f"data: batch {place} of the training batches holds no images"):
        srr_ext.make_plan(model, images, data=batches, **options)
    with pytest.raises(ValueError, match=f"data: batch {place} of the validation batches holds no images"):
        srr_ext.make_plan(model, images, allocator="sensitivity", keep_params=0.6,
                          data=srr_ext.Calibration([batches[1 - place]], batches))  # fmt: skip
    unread = srr_ext.Calibration([(images, labels[:0])], loss=lambda scores, _: scores.square().mean())
    if method.startswith("taylor"):
        srr_ext.make_plan(model, images, data=unread, **options)
