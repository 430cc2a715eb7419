"""Scores of weights against derivatives by hand, and that computing them leaves no trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from criteria_nets import assert_same, state
from torch import Tensor, nn

import srr_ext
from srr_ext.calibration import Calibration
from srr_ext.criteria import SelectorContext
from srr_ext.sparsity import Masks, available_scores, choose, get_score, gradient, magnitude, prunable, random

Batches = list[tuple[Tensor, Tensor]]


def net(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(),
        nn.Linear(5, 3),
    ).to(**options)  # fmt: skip


def batches(count: int = 3, dtype: torch.dtype = torch.float64) -> Batches:
    return [(torch.randn(6, 2, 4, 4, dtype=dtype), torch.randint(3, (6,))) for _ in range(count)]


def context(model: nn.Module, data: Batches | None = None, seed: int = 0, **options: Any) -> SelectorContext:
    example = torch.zeros(1, 2, 4, 4, dtype=next(model.parameters()).dtype)
    return SelectorContext(model, example, seed, data=data and Calibration(data, **options))


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.ndim > 1}


def test_the_scores_that_there_are() -> None:
    assert {"magnitude", "gradient", "random"} <= set(available_scores())
    assert get_score("magnitude") is magnitude and get_score("gradient") is gradient and get_score("random") is random
    with pytest.raises(ValueError, match="no score is called 'magnitud'; nearest: magnitude"):
        get_score("magnitud")


@pytest.mark.parametrize("name", ["magnitude", "gradient", "random"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_score_suits_what_chooses_and_is_the_same_again(name: str, dtype: torch.dtype) -> None:
    model = net(dtype=dtype)
    tensors, about = weights(model), context(model, batches(dtype=dtype))
    first, second = get_score(name)(tensors, about), get_score(name)(tensors, about)
    assert list(first) == list(tensors)
    for key, score in first.items():
        assert score.shape == tensors[key].shape and score.is_floating_point() and not score.requires_grad
        assert bool(score.isfinite().all()) and bool((score >= 0).all())
        assert torch.equal(score, second[key])
    assert choose(first, Masks.ones(tensors), 40).kept == 40


def test_magnitude_is_the_absolute_value() -> None:
    model = net()
    for name, score in magnitude(weights(model), context(model)).items():
        np.testing.assert_array_equal(score.numpy(), np.abs(model.get_parameter(name).detach().numpy()))


def test_gradient_of_a_linear_network_is_that_of_the_formula() -> None:
    """Of two layers with squared error: the outer products of errors and inputs, written out."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    first, second = (layer.weight.detach().numpy() for layer in model)
    data = [(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)) for _ in range(3)]
    about = SelectorContext(model, data[0][0], data=Calibration(data, loss=nn.functional.mse_loss))
    by_first, by_second = np.zeros((2, 3)), np.zeros((2, 2))
    for inputs, targets in data:
        hidden = inputs.numpy() @ first.T
        error = 2 * (hidden @ second.T - targets.numpy()) / 10
        by_second += error.T @ hidden / 3
        by_first += (error @ second).T @ inputs.numpy() / 3
    scores = gradient(dict(model.named_parameters()), about)
    np.testing.assert_allclose(scores["0.weight"], np.abs(first * by_first), rtol=1e-12)
    np.testing.assert_allclose(scores["1.weight"], np.abs(second * by_second), rtol=1e-12)


def test_gradient_is_that_of_the_mean_loss_in_evaluation_mode() -> None:
    """All images in one batch, by ``backward``, with dropout off and running statistics; also of frozen parameters."""
    model, data = net(dtype=torch.float64), batches()
    model(data[0][0])  # running statistics other than 0 and 1
    model[0].weight.requires_grad_(False)
    scores = gradient(weights(model), context(model, data))
    model.requires_grad_(True).eval()
    nn.functional.cross_entropy(model(torch.cat([x for x, _ in data])), torch.cat([t for _, t in data])).backward()
    for name, score in scores.items():
        parameter = model.get_parameter(name)
        torch.testing.assert_close(score, (parameter * parameter.grad).abs(), rtol=1e-10, atol=1e-14)


def test_gradient_predicts_what_the_loss_does_without_a_small_weight() -> None:
    model, data = net(dtype=torch.float64).eval(), batches(1)
    with torch.no_grad():
        model[5].weight.mul_(1e-4)
    score = gradient(weights(model), context(model, data))["5.weight"]

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(data[0][0]), data[0][1]))

    before = loss()
    for place in [(0, 0), (2, 7), (4, 15)]:
        value = model[5].weight.data[place].item()
        model[5].weight.data[place] = 0
        assert abs(loss() - before) == pytest.approx(score[place].item(), rel=1e-2, abs=1e-13)
        model[5].weight.data[place] = value


@pytest.mark.parametrize("name", ["magnitude", "gradient", "random"])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_scoring_leaves_no_trace(name: str, around: Any) -> None:
    model, data = net(), batches(dtype=torch.float32)
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones(5, 16)
    before, grad, numbers = state(model), model[5].weight.grad, torch.get_rng_state()
    wanted = get_score(name)(weights(model), context(model, data))
    with around():
        scores = get_score(name)(weights(model), context(model, data))
    assert all(torch.equal(scores[key], score) for key, score in wanted.items())
    assert_same(before, state(model))
    assert model[5].weight.grad is grad and bool((grad == 1).all())
    assert torch.equal(numbers, torch.get_rng_state())


def test_a_model_that_draws_random_numbers_gets_the_same_each_time() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + torch.randn(x.shape))

    model = Noisy()
    data = Calibration([(torch.ones(2, 4), torch.tensor([0, 1]))])
    scores = []
    for _ in range(2):
        torch.randn(3)
        scores.append(gradient(weights(model), SelectorContext(model, torch.ones(1, 4), 5, data=data))["layer.weight"])
    assert torch.equal(*scores)


def test_shared_weights_get_the_gradients_of_all_uses() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    data = [(torch.randn(5, 4, dtype=torch.float64), torch.randint(4, (5,)))]
    tensors = prunable(model, data[0][0], classifier=True)
    score = gradient(tensors, SelectorContext(model, data[0][0], data=Calibration(data)))["0.weight"]
    nn.functional.cross_entropy(model(data[0][0]), data[0][1]).backward()
    torch.testing.assert_close(score, (model[0].weight * model[0].weight.grad).abs().detach())


def test_gradient_says_which_tensor_none_reaches() -> None:
    model = net(dtype=torch.float64)
    model.add_module("unused", nn.Identity())
    model.unused.layer = nn.Linear(2, 2, dtype=torch.float64)  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match=r"no gradient reaches unused\.layer\.weight; its scores are 0"):
        scores = gradient(weights(model), context(model, batches()))
    assert not bool(scores["unused.layer.weight"].any()) and bool(scores["0.weight"].any())


def test_gradient_refuses_what_it_cannot_differentiate() -> None:
    model = net(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^data: this method looks at images and there are none"):
        gradient(weights(model), context(model))
    with pytest.raises(ValueError, match=r"^data: holds no training batches"):
        gradient(weights(model), SelectorContext(model, torch.zeros(1), data=Calibration([])))
    with pytest.raises(ValueError, match=r"^data: the loss has no gradient"):
        gradient(weights(model), context(model, batches(), loss=lambda outputs, targets: outputs.detach().sum()))
    with pytest.raises(ValueError, match=r"^data: the loss of a batch cannot be computed and differentiated"):
        gradient(weights(model), context(model, [(torch.zeros(1, 2, 9, 9).double(), torch.tensor([0]))]))
    with pytest.raises(ValueError, match=r"^gradient: the model has no parameter '8\.weight'"):
        gradient({"8.weight": torch.ones(2, 2)}, context(model, batches()))


@pytest.mark.parametrize("name", ["magnitude", "gradient"])
def test_a_model_with_nan_is_refused_by_the_tensor(name: str) -> None:
    model = net(dtype=torch.float64)
    model[7].weight.data[1, 2] = math.nan
    tensors = {key: tensor for key, tensor in weights(model).items() if name == "gradient" or key == "7.weight"}
    with pytest.raises(ValueError, match=r"those of '(0|7)\.weight' are not all finite"):
        choose(get_score(name)(tensors, context(model, batches())), Masks.ones(tensors), 10)


def test_random_depends_on_seed_and_name_alone() -> None:
    model = net()
    tensors = weights(model)
    scores = random(tensors, context(model))
    others = {name: tensors[name].detach().to("meta") for name in reversed(list(tensors))}
    alone = random({"5.weight": tensors["5.weight"]}, context(net()))
    for name, score in random(others, context(net())).items():
        assert torch.equal(score, scores[name]) and score.device.type == "cpu"
    assert torch.equal(alone["5.weight"], scores["5.weight"])
    assert not torch.equal(random(tensors, context(model, seed=1))["5.weight"], scores["5.weight"])
    same_shape = random({"a": torch.ones(50), "b": torch.ones(50)}, context(model))
    assert not torch.equal(same_shape["a"], same_shape["b"])


def test_random_is_uniform() -> None:
    """Fifty bins of a thousand: a chi-squared statistic with 49 degrees of freedom exceeds 85 once in a thousand."""
    score = random({"w": torch.empty(50, 1000)}, context(net()))["w"]
    counts = np.histogram(score.numpy(), bins=50, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 85


def test_random_masks_of_less_and_less_are_nested() -> None:
    model = srr_ext.models.create("resnet20", num_classes=10)
    tensors = prunable(model, torch.zeros(1, 3, 32, 32))
    about = SelectorContext(model, torch.zeros(1, 3, 32, 32), 3)
    dense = Masks.ones(tensors)
    more, less = (choose(random(tensors, about), dense, keep) for keep in (100_000, 20_000))
    assert all(not bool((less[name] & ~more[name]).any()) for name in tensors)
    by_rounds = choose(random(tensors, about), more, 20_000)
    assert by_rounds == less
    share = {name: less.counts[name] / tensors[name].numel() for name in tensors if tensors[name].numel() > 9000}
    assert all(abs(part - less.density) < 0.02 for part in share.values())
