"""What is trained after pruning: the named combinations, the moments, and trainings that begin in the middle."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from training_data import random_data, small_net

from srr_ext import models
from srr_ext.data import Augment, TensorData, load
from srr_ext.retraining import Moment, retraining
from srr_ext.training import Snapshots, TrainConfig, train
from srr_ext.training.schedules import learning_rate_factor

DENSE = TrainConfig(epochs=6, schedule="step", milestones=(3, 5), warmup=0, lr=0.1)
TUNE = TrainConfig(epochs=2, schedule="constant", lr=0.001, warmup=0)


def test_the_names_are_the_table_of_the_module() -> None:
    """Weights and recipe are independent choices; each name is one pair of them."""
    found = {n: retraining(n, DENSE, TUNE) for n in ("finetune", "lr-rewind", "weight-rewind", "scratch")}
    assert {name: what.weights for name, what in found.items()} == {
        "finetune": "kept",
        "lr-rewind": "kept",
        "weight-rewind": "rewound",
        "scratch": "new",
    }
    assert found["finetune"].recipe == TUNE and found["finetune"].group == "fine_tune"
    assert found["lr-rewind"].recipe == found["weight-rewind"].recipe == DENSE
    scratch = found["scratch"].recipe
    assert scratch == replace(DENSE, epochs=8, milestones=scratch.milestones)
    assert scratch.milestones == pytest.approx((4, 20 / 3))
    longer = retraining("scratch", DENSE, TUNE, sparse_epochs=6).recipe
    assert longer.epochs == 14 and longer.milestones == pytest.approx((7, 35 / 3))
    assert {str(what.begin) for what in found.values()} == {"0ep", "4ep"}
    assert [found[name].epochs(10) for name in found] == [2, 2, 2, 8]
    assert retraining("weight-rewind", DENSE, TUNE, rewind_to="5it").epochs(10) == 5.5


def test_rewinding_has_to_be_within_the_dense_training() -> None:
    """Both ends are within, nothing beyond."""
    assert str(retraining("lr-rewind", DENSE, TUNE, rewind_to="6ep").begin) == "6ep"
    with pytest.raises(ValueError, match=r"within the 6 epochs of the dense network, but is 6\.5ep"):
        retraining("lr-rewind", DENSE, TUNE, rewind_to="6.5ep")
    with pytest.raises(ValueError, match="rewind_to must be given: 7 epochs after pruning are more than the 6 of"):
        retraining("weight-rewind", DENSE, replace(TUNE, epochs=7))


@pytest.mark.parametrize("text", ["", "3", "ep", "-1ep", "1.5it", "3 epochs", "1e3it", "nanep"])
def test_moments_are_epochs_or_steps(text: str) -> None:
    """Anything else is refused, in a line that shows how to write them."""
    with pytest.raises(ValueError, match=r"rewind_to must be epochs or steps, as in 3ep, 0\.5ep or 500it, but is"):
        Moment.read(text)


@given(st.integers(0, 5000), st.sampled_from(["ep", "it"]), st.integers(1, 999))
def test_moments_are_written_as_they_are_read(thousandths: int, unit: str, per_epoch: int) -> None:
    """Text and value agree, and the step is the nearest one."""
    moment = Moment(Fraction(thousandths if unit == "it" else Fraction(thousandths, 1000)), unit)  # type: ignore[arg-type]
    assert Moment.read(str(moment)) == moment
    exact = moment.count if unit == "it" else moment.count * per_epoch
    assert abs(moment.step(per_epoch) - exact) <= Fraction(1, 2)


def few_digits() -> TensorData:
    """Forty-eight training images, shuffled and moved about anew in every epoch."""
    images = load("digits", augment=Augment(crop=1))
    assert isinstance(images, TensorData)
    return replace(
        images, train=images.train.take(torch.arange(48)), validation=images.validation.take(torch.arange(9))
    )


def net(seed: int = 0) -> nn.Module:
    """A network that draws no random numbers while it is trained."""
    torch.manual_seed(seed)
    return models.create("digits_cnn")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("begin", [0, 4, 7, 12, 18])
def test_a_rewound_training_ends_where_the_whole_one_does(begin: int) -> None:
    """Without momentum, to go on from the weights of a step is to repeat what came after it, bit for bit.

    So learning rates, order and augmentation of the images are those of the whole training.
    """
    data = few_digits()
    config = replace(DENSE, batch_size=16, momentum=0, nesterov=False, warmup=0.2)
    whole = net()
    snapshots = Snapshots(whole, [begin, 10**6])
    history = train(whole, data, config, device="cpu", seed=3, after_step=snapshots.after_step)
    assert list(snapshots.states) == [begin]
    part = net(seed=1)
    part.load_state_dict(snapshots.states[begin])
    again = train(part, data, config, device="cpu", seed=3, begin=begin)
    assert all(
        torch.equal(one, other) for one, other in zip(weights(part).values(), weights(whole).values(), strict=True)
    )
    assert [record["epoch"] for record in again] == list(range(begin // 3 + 1, 7))
    assert begin % 3 or again == history[begin // 3 :]


def test_the_first_step_is_within_the_recipe() -> None:
    """Neither before nor after."""
    data, config = random_data(n=48), replace(DENSE, batch_size=16)
    for begin in (-1, 19):
        with pytest.raises(ValueError, match=rf"begin must be a step of the recipe, in \[0, 18\], but is {begin}"):
            train(small_net(), data, config, device="cpu", begin=begin)


def test_learning_rates_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step has the rate that the formula gives it."""
    data, config = random_data(n=48), replace(DENSE, batch_size=16, schedule="cosine", milestones=(), warmup=0.3)
    seen: list[float] = []
    train(small_net(), data, config, device="cpu", begin=5, after_step=seen.append)
    assert seen == [config.lr * learning_rate_factor(config, step, 18) for step in range(5, 18)]


class Half:
    """Keeps the first half of every weight matrix at zero, from the start or after some calls."""

    def __init__(self, after: int = 0) -> None:
        self.calls, self.after = 0, after

    def apply(self, model: nn.Module) -> None:
        self.calls += 1
        if self.calls > self.after:
            with torch.no_grad():
                for parameter in chosen(model):
                    parameter[: len(parameter) // 2] = 0

    def apply_to_gradients(self, model: nn.Module) -> None:
        if self.calls > self.after:
            for parameter in chosen(model):
                if parameter.grad is not None:
                    parameter.grad[: len(parameter) // 2] = 0


def chosen(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim > 1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9},
        {"precision": "bf16"},
        {"optimizer": "adamw", "nesterov": False},
        {"clip_norm": 0.1, "ema": 0.99, "precision": "bf16"},
    ],
)
@pytest.mark.parametrize("after", [0, 7])
def test_masked_weights_are_zero_after_every_step(changes: dict[str, object], after: int) -> None:
    """Through momentum, weight decay, averages, clipping and half precision; also for masks that come later."""
    data = random_data(n=48)
    config = replace(DENSE, batch_size=16, weight_decay=0.1, epochs=3, milestones=(1, 2), **changes)  # type: ignore[arg-type]
    model, masks = small_net(), Half(after)
    seen: list[bool] = []

    def look(lr: float) -> None:  # before the mask is applied: so the gradients alone keep them at zero
        seen.append(all(not p[: len(p) // 2].any() for p in chosen(model)))

    train(model, data, config, device="cpu", masks=masks, after_step=look)
    assert all(not p[: len(p) // 2].any() and p[len(p) // 2 :].all() for p in chosen(model))
    assert after or all(seen)


def test_masked_gradients_do_not_count_when_they_are_clipped() -> None:
    """A mask over nearly everything leaves the norm of what is left."""
    data, config = (
        random_data(n=32),
        replace(
            DENSE,
            epochs=1,
            milestones=(0.5,),
            batch_size=16,
            clip_norm=1e-3,
            momentum=0,
            nesterov=False,
            weight_decay=0,
            lr=1,
        ),
    )
    model = small_net()
    before = weights(model)
    steps = 0

    def count(lr: float) -> None:
        nonlocal steps
        steps += 1

    class All(Half):
        def apply_to_gradients(self, model: nn.Module) -> None:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None and name != last:
                    parameter.grad.zero_()

    last = [name for name, _ in model.named_parameters()][-1]
    train(model, data, config, device="cpu", masks=All(10**9), after_step=count)
    moved = (model.state_dict()[last] - before[last]).norm()
    assert 0 < moved <= 1.001e-3 * steps and moved > 0.2e-3
