"""Trainings that are stopped after some epoch and go on from what was saved then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_retraining import DENSE, few_digits
from torch import Tensor, nn

from srr_ext.criteria import SelectorContext
from srr_ext.sparsity import GradualPruning, Masks, get_score
from srr_ext.training import Snapshots, TrainConfig, train

EPOCHS = 4
STEPS = 12  # three for each of them
PLAIN = replace(DENSE, epochs=EPOCHS, milestones=(1, 3), batch_size=16)
RECIPES = {
    "sgd": PLAIN,
    "momentum off": replace(PLAIN, momentum=0, nesterov=False),
    "adamw, average, bf16, clipped": replace(
        PLAIN, optimizer="adamw", nesterov=False, lr=1e-3, ema=0.9, precision="bf16", clip_norm=1.0
    ),
}


def net() -> nn.Module:
    """A network with drop-out, so that random numbers are drawn while it is trained."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Shelf:
    """Keeps the states; stops the training when it has as many as wanted."""

    def __init__(self, until: int = 10**6) -> None:
        self.saved: list[dict[str, Tensor]] = []
        self.until = until

    def load(self) -> dict[str, Tensor] | None:
        return self.saved[-1] if self.saved else None

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        self.saved.append({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})
        if len(self.saved) == self.until:
            raise KeyboardInterrupt


class Growing:
    """All that a training may have that changes on the way: gradual pruning and snapshots."""

    def __init__(self, model: nn.Module) -> None:
        tensors = {name: p for name, p in model.named_parameters() if p.ndim > 1}
        masks = Masks.ones(tensors)
        score = get_score("magnitude")
        self.snapshots = Snapshots(model, [0, 5, 10])
        self.gradual = GradualPruning(
            model, masks, masks.total // 4, score, "global", [1, 3, 5, 8, 10], lambda m: SelectorContext(m, None)
        )

    def step(self, lr: float) -> None:
        self.snapshots.after_step(lr)
        self.gradual.step(lr)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "after_step": self.step,
            "masks": self.gradual,
            "stateful": {"gradual": self.gradual, "snapshots": self.snapshots},
        }


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("begin", [0, 2])
def test_a_training_goes_on_as_if_it_had_never_been_stopped(name: str, after: int, begin: int) -> None:
    """Bit for bit: weights, running statistics, the log, masks and snapshots; from any epoch, with any state."""
    recipe, data = RECIPES[name], few_digits()
    whole = net()
    expected = Growing(whole)
    history = train(whole, data, recipe, device="cpu", seed=5, begin=begin, **expected.options)

    shelf, stopped = Shelf(until=after), net()
    with pytest.raises(KeyboardInterrupt):
        train(stopped, data, recipe, device="cpu", seed=5, begin=begin, keeper=shelf, **Growing(stopped).options)
    shelf.until = 10**6

    torch.manual_seed(99)
    again = net()
    for parameter in again.parameters():
        parameter.data.normal_()
    found = Growing(again)
    rest = train(again, data, recipe, device="cpu", seed=5, begin=begin, keeper=shelf, **found.options)
    assert rest == history[after:] and len(shelf.saved) == EPOCHS - 1
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert found.gradual.masks == expected.gradual.masks
    assert found.snapshots.states.keys() >= {step for step in expected.snapshots.states if step}
    for step, state in expected.snapshots.states.items():
        assert not step or all(torch.equal(state[key], found.snapshots.states[step][key]) for key in state)


def test_the_state_of_another_training_is_refused() -> None:
    """Another network or another kind of state."""
    shelf, model = Shelf(until=1), net()
    with pytest.raises(KeyboardInterrupt):
        train(model, few_digits(), PLAIN, device="cpu", keeper=shelf)
    with pytest.raises(ValueError, match="the saved state is of another training"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), few_digits(), PLAIN, device="cpu", keeper=shelf)
    with pytest.raises(ValueError, match="the saved state is of another training"):
        train(net(), few_digits(), replace(PLAIN, ema=0.5), device="cpu", keeper=shelf)


def test_the_last_epoch_needs_no_state() -> None:
    """What follows it is the end, which is recorded in another way."""
    shelf = Shelf()
    train(net(), few_digits(), TrainConfig(epochs=1, batch_size=16), device="cpu", keeper=shelf)
    assert not shelf.saved
