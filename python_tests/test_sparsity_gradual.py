"""Weights that go during a training: exact zeros, exact numbers at every step, and a training that is not disturbed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from training_data import random_data, small_net

from srr_ext.calibration import Calibration
from srr_ext.criteria.base import SelectorContext
from srr_ext.sparsity.gradual import GradualPruning
from srr_ext.sparsity.masks import Masks
from srr_ext.sparsity.schedule import Gradual, gradual_steps
from srr_ext.sparsity.scores import get_score
from srr_ext.training import TrainConfig, averaged_model, train

NAMES = ("0.weight", "3.weight")  # 108 and 24 weights; the classifier stays
KEEP = 17
EXAMPLE = torch.zeros(1, 2, 4, 4)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach() for name in NAMES}


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(random_data().batches("train", 8))


def context(model: nn.Module) -> SelectorContext:
    """Through a loader, which draws random numbers whenever it is gone through."""
    loader = DataLoader(TensorDataset(*(torch.cat(parts) for parts in zip(*batches(), strict=True))), 12)
    return SelectorContext(model, EXAMPLE, 3, data=Calibration(loader))


def pruning(model: nn.Module, score: str = "magnitude", **others: Any) -> GradualPruning:
    """From all 132 weights down to 17 between steps 2 and 13, every 3."""
    given = {"events": [2, 5, 8, 11, 13], "scope": "global"} | others
    alive = given.pop("alive", None) or Masks.ones(weights(model))
    return GradualPruning(model, alive, KEEP, score=get_score(score), context=context, **given)


def wanted(step: int, begin: int = 2, end: int = 13, every: int = 3, initial: int = 132) -> int:
    """How many weights are to be left when ``step`` steps are done: the formula at the last event."""
    if step < begin:
        return initial
    event = end if step >= end else begin + (step - begin) // every * every
    return floor(KEEP + (initial - KEEP) * (1 - Fraction(event - begin, end - begin)) ** 3 + Fraction(1, 2))


def largest(scores: dict[str, Tensor], alive: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks of the largest scores by a full sort, the first of equal ones."""
    flat = np.concatenate([np.where(alive[n].flatten(), scores[n].flatten().double(), -np.inf) for n in scores])
    stay = np.zeros(len(flat), dtype=bool)
    stay[np.argsort(-flat, kind="stable")[:count]] = True
    ends = np.cumsum([scores[n].numel() for n in scores])[:-1]
    parts = zip(scores, np.split(stay, ends), strict=True)
    return {n: torch.from_numpy(part).reshape(scores[n].shape) for n, part in parts}


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5),
}


def training(model: nn.Module, gradual: GradualPruning, optimizer: str, bf16: bool, steps: int = 15) -> Iterator[Any]:
    """Train as anyone would by hand; stop after every step, with the average so far."""
    made, average = OPTIMIZERS[optimizer](model.parameters()), averaged_model(model, 0.9)
    torch.manual_seed(0)
    model.train()
    gradual.apply(model)
    data = batches()
    for step in range(steps):
        images, labels = data[step % len(data)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            scores = model(images)
        made.zero_grad()
        cross_entropy(scores.float(), labels).backward()
        gradual.apply_to_gradients(model)
        made.step()
        gradual.step(0.1)
        gradual.apply(model)
        average.update_parameters(model)
        gradual.apply(average.module)
        yield average.module


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("score", "scope"), [("magnitude", "global"), ("gradient", "layerwise"), ("random", "global")])
def test_density_and_zeros_are_exact_after_every_step(optimizer: str, bf16: bool, score: str, scope: str) -> None:
    """Of the network and of the average; and what has gone never comes back."""
    model = small_net()
    gradual = pruning(model, score, scope=scope)
    before, seen = gradual.masks, []
    for step, average in enumerate(training(model, gradual, optimizer, bf16), 1):
        masks = gradual.masks
        assert masks.kept == sum(int(mask.sum()) for mask in masks.values()) == wanted(step)
        for network in (model, average):
            for name, weight in weights(network).items():
                assert torch.equal(weight != 0, masks[name])  # nor is any other weight zero
        assert not any((masks[name] & ~before[name]).any() for name in NAMES)
        before = masks
        seen.append(masks.kept)
        if scope == "layerwise" and step >= 5:
            assert abs(masks.counts["3.weight"] - masks.kept * 24 / 132) <= 1
    assert seen[0] == 132 and seen[-1] == KEEP and len(set(seen)) == 5
    assert (model[7].weight != 0).all()


@pytest.mark.parametrize("score", ["magnitude", "gradient"])
def test_the_weights_that_go_are_the_least_of_those_at_that_step(score: str) -> None:
    """By a full sort of scores that are computed anew: those of the weights before they become zero."""
    model = small_net()
    gradual = pruning(model, score)
    raw: dict[str, Tensor] = {}
    step = gradual.step

    def watched(lr: float) -> None:
        alive, twin = gradual.masks, copy.deepcopy(model)
        step(lr)
        if gradual.masks is alive:
            return
        twin.eval().zero_grad()
        mean = sum(cross_entropy(twin(images), labels) for images, labels in context(model).batches()) / 2
        mean.backward()  # type: ignore[union-attr]
        factor = {n: twin.get_parameter(n).grad if score == "gradient" else torch.ones(()) for n in NAMES}
        raw.update({n: (w * factor[n]).abs() for n, w in weights(twin).items()})
        want = largest(raw, dict(alive), gradual.masks.kept)
        assert all(torch.equal(gradual.masks[n], want[n]) for n in NAMES)

    gradual.step = watched  # type: ignore[method-assign]
    for _ in training(model, gradual, "sgd", False):
        pass
    assert raw and gradual.masks.kept == KEEP


@pytest.mark.parametrize("score", ["magnitude", "gradient", "random"])
def test_a_training_is_not_disturbed(score: str) -> None:
    """Gradients, statistics, weights, training modes, who requires gradients, and random numbers, byte for byte."""
    model = small_net()
    model[3].eval()
    model[7].bias.requires_grad_(False)
    gradual = pruning(model, score, events=[0, 1, 2])
    images, labels = batches()[0]
    cross_entropy(model(images), labels).backward()

    def everything() -> list[Any]:
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
        flags = [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        return [*(t.clone() for t in (*tensors, torch.get_rng_state())), torch.tensor(flags), torch.tensor(hooks)]

    before, same = everything(), [id(p) for p in model.parameters()]
    for _ in range(2):
        gradual.step(0.1)
        after = everything()
        assert len(after) == len(before) and all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert gradual.masks.kept == KEEP and same == [id(p) for p in model.parameters()]
    assert torch.is_grad_enabled() and all(p.grad is not None for p in (model[0].weight, model[3].weight))


def test_what_is_masked_at_the_start_stays_masked() -> None:
    """The schedule goes from what is left, not from all; however large a masked weight is."""
    model = small_net()
    with torch.no_grad():
        model[0].weight[:3] = 100.0
    alive = Masks({n: torch.arange(w.numel()).reshape(w.shape) >= 54 for n, w in weights(model).items() if n[0] == "0"})
    gradual = pruning(model, alive=alive)
    left = []
    for step, _ in enumerate(training(model, gradual, "sgd", False), 1):
        assert gradual.masks.kept == wanted(step, initial=54) and not gradual.masks["0.weight"][:3].any()
        assert (model[0].weight[:3] == 0).all() and (model[3].weight != 0).all()
        left.append(gradual.masks.kept)
    assert left[0] == 54 and left[-1] == KEEP


def test_what_has_gone_never_comes_back() -> None:
    """Not even by a score that likes zeros best."""

    def zeros_first(tensors: Mapping[str, Tensor], context: SelectorContext) -> dict[str, Tensor]:
        return {name: -tensor.abs() for name, tensor in tensors.items()}

    model = small_net()
    gradual = GradualPruning(model, Masks.ones(weights(model)), KEEP, zeros_first, "global", [2, 5, 8, 11, 13], context)
    before, left = gradual.masks, []
    for _ in training(model, gradual, "sgd", False):
        assert not any((gradual.masks[name] & ~before[name]).any() for name in NAMES)
        before = gradual.masks
        left.append(before.kept)
    assert left == [wanted(step) for step in range(1, 16)]


def test_nothing_is_scored_where_nothing_goes() -> None:
    """Between events, and where all is to stay."""
    model = small_net()
    asked: list[int] = []

    def asking(model: nn.Module) -> SelectorContext:
        asked.append(gradual.done)
        return context(model)

    alive = Masks.ones(weights(model))
    for keep, events in ((KEEP, [1, 4, 7]), (132, [1, 4, 7])):
        gradual = GradualPruning(model, alive, keep, get_score("magnitude"), "global", events, asking, begin=1)
        for _ in range(9):
            gradual.step(0.1)
        assert gradual.done == 10
        assert asked == [4, 7] and gradual.masks.kept == keep
    assert gradual.masks is alive


class Watched:
    """Passes everything on, and looks at the zeros of what was masked."""

    def __init__(self, gradual: GradualPruning) -> None:
        self.gradual = gradual
        self.kept: list[tuple[int, int, int]] = []

    def apply(self, model: nn.Module) -> None:
        self.gradual.apply(model)
        assert self.gradual.masks.zeros_in(model)
        zeros = sum(int((weight == 0).sum()) for weight in weights(model).values())
        self.kept.append((self.gradual.done, self.gradual.masks.kept, 132 - zeros))

    def apply_to_gradients(self, model: nn.Module) -> None:
        self.gradual.apply_to_gradients(model)
        for name, mask in self.gradual.masks.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None and not gradient.cpu()[~mask].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("ema", "precision", "begin"), [(0.0, "fp32", 0), (0.9, "bf16", 0), (0.9, "fp32", 4)])
def test_training_by_the_recipe(optimizer: str, ema: float, precision: str, begin: int, device: torch.device) -> None:
    """The same through `train`, on any device, from any step of the recipe."""
    model = small_net()
    config: Any = {"optimizer": optimizer, "ema": ema, "precision": precision, "clip_norm": 1.0, "weight_decay": 0.1}
    config = TrainConfig(epochs=5, batch_size=8, lr=0.02, **config)
    steps = 15
    events = gradual_steps(Gradual(0.1, 0.8, 3), begin, steps)
    alive, score = Masks.ones(weights(model)), get_score("gradient")
    gradual = GradualPruning(model, alive, KEEP, score, "global", events, context, begin=begin)
    watched = Watched(gradual)
    train(model, random_data(), config, device=device.type, after_step=gradual.step, masks=watched, begin=begin)  # type: ignore[arg-type]
    networks = 2 if ema else 1
    assert [done for done, _, _ in watched.kept] == [s for s in range(begin, steps + 1) for _ in range(networks)]
    for done, kept, nonzero in watched.kept:
        assert kept == nonzero == wanted(done, events[0], events[-1])
    assert gradual.masks.kept == KEEP and gradual.masks.zeros_in(model)
    assert sum(int((weight != 0).sum()) for weight in weights(model).values()) == KEEP


def test_the_same_training_again_gives_the_same_masks() -> None:
    def made() -> tuple[Masks, Tensor]:
        model = small_net()
        gradual = pruning(model, "gradient")
        for _ in training(model, gradual, "adamw", True):
            pass
        return gradual.masks, torch.cat([p.detach().flatten() for p in model.parameters()])

    (first, one), (second, two) = made(), made()
    assert first.same_as(second) and torch.equal(one, two)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"scope": "2:4"}, "^scope 2:4 does not go with weights that go gradually: .* prune at once"),
        ({"scope": "locally"}, "^scope must be global, layerwise or N:M"),
        ({"events": [3]}, r"^events must be at least two increasing .* begin, 0, on, but are \[3\]; see gradual_steps"),
        ({"events": [3, 5, 5]}, r"^events must be .* but are \[3, 5, 5\]"),
        ({"events": [3, 5], "begin": 4}, "^events must be at least two increasing numbers of steps from begin, 4, on"),
        ({"alive": Masks({"0.weight": torch.ones(1, dtype=torch.bool)})}, "^masks: '0.weight' is masked as"),
        (
            {"alive": Masks({"3.weight": torch.arange(24).reshape(4, 6, 1, 1) < 16})},
            "^keep must be from 1 to the 16 weights that are left, but is 17",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(others: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning(small_net(), **others)
