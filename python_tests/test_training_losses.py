"""One step of training against the same step by hand, in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_data import Fixed, random_data, small_net, vector

from srr_ext.training import TrainConfig, distillation_loss, train, training_loss

ONE_STEP = TrainConfig(
    epochs=1, batch_size=24, lr=0.1, schedule="constant", warmup=0.0, momentum=0.0, nesterov=False, weight_decay=0.0
)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Of each row."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def smooth(labels: np.ndarray, n_classes: int, smoothing: float) -> np.ndarray:
    """Targets as shares."""
    return (1 - smoothing) * np.eye(n_classes)[labels] + smoothing / n_classes


@dataclass
class Case:
    """A linear network with its data, and everything about its first step by hand."""

    data: Fixed
    model: nn.Module
    teacher: nn.Module

    @classmethod
    def make(cls) -> Case:
        torch.manual_seed(1)
        networks = [nn.Sequential(nn.Flatten(), nn.Linear(32, 7, bias=False)) for _ in range(2)]
        return cls(random_data(), *networks)

    def gradient(self, config: TrainConfig) -> tuple[float, np.ndarray]:
        """Loss and its gradient by the weights [7, 32], from the definitions."""
        images, labels = next(iter(self.data.batches("train", 24)))
        x, y = images.flatten(1).double().numpy(), labels.numpy()
        scores, taught = (x @ net[1].weight.detach().double().numpy().T for net in (self.model, self.teacher))
        target, share, heat = smooth(y, 7, config.label_smoothing), config.distill, config.temperature
        p, q = softmax(scores / heat), softmax(taught / heat)
        entropy = -(target * np.log(softmax(scores))).sum(1).mean()
        divergence = (q * (np.log(q) - np.log(p))).sum(1).mean()
        by_scores = (1 - share) * (softmax(scores) - target) + share * heat * (p - q)
        return (1 - share) * entropy + share * heat**2 * divergence, by_scores.T @ x / len(x)

    def train(self, config: TrainConfig) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the loss that the training reports, and the weights before and after."""
        before = self.model[1].weight.detach().double().numpy().copy()
        history = train(self.model, self.data, config, device="cpu", teacher=self.teacher)
        return history[0]["loss"], before, self.model[1].weight.detach().double().numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2},
        {"weight_decay": 0.3},
        {"distill": 0.7, "temperature": 3.0},
        {"distill": 1.0, "temperature": 0.5},
        {"distill": 0.4, "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_one_step_of_gradient_descent_is_the_one_by_hand(options: dict[str, float]) -> None:
    """Loss, gradient and update."""
    case, config = Case.make(), replace(ONE_STEP, **options)
    loss, gradient = case.gradient(config)
    found, before, after = case.train(config)
    assert found == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(after, before - 0.1 * (gradient + config.weight_decay * before), rtol=1e-5, atol=1e-7)
    assert np.abs(gradient).max() > 0.01  # so that a wrong one would show


@pytest.mark.parametrize("share", [0.3, 0.999, 1.001, 100.0])
def test_clipping_bounds_the_norm_of_the_gradient(share: float) -> None:
    """A longer gradient is shortened to the bound, a shorter one stays."""
    case = Case.make()
    _, gradient = case.gradient(ONE_STEP)
    norm = float(np.linalg.norm(gradient))
    bound = share * norm
    _, before, after = case.train(replace(ONE_STEP, clip_norm=bound))
    used = (before - after) / 0.1
    assert np.linalg.norm(used) <= bound * (1 + 1e-5)
    np.testing.assert_allclose(used, gradient * min(1.0, share), rtol=1e-4, atol=1e-6)


def test_one_step_of_adamw_is_the_one_by_hand() -> None:
    """At the first step both moments, corrected, are the gradient itself and its square."""
    case = Case.make()
    config = replace(ONE_STEP, optimizer="adamw", lr=0.01, weight_decay=0.2)
    _, gradient = case.gradient(config)
    _, before, after = case.train(config)
    update = gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(after, before * (1 - 0.01 * 0.2) - 0.01 * update, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_many_steps_are_those_of_a_plain_loop(optimizer: str) -> None:
    """Momentum, normalisation and drop-out included: what torch's own optimiser does in ten lines."""
    data, config = random_data(), TrainConfig(optimizer=optimizer, epochs=3, batch_size=8, lr=0.01, channels_last=False)
    config = replace(config, schedule="constant", warmup=0.0)
    ours, plain = small_net(), small_net()
    train(ours, data, config, device="cpu", seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        steps = {
            "sgd": lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=5e-4, nesterov=True, foreach=False),
            "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=5e-4, foreach=False),
        }[optimizer](plain.parameters())
        for _ in range(3):
            for images, labels in data.batches("train", 8):
                steps.zero_grad()
                nn.functional.cross_entropy(plain(images), labels).backward()
                steps.step()
    torch.testing.assert_close(vector(ours), vector(plain), rtol=1e-5, atol=1e-6)
    assert (vector(ours) - vector(small_net())).abs().max() > 0.01


@settings(max_examples=50)
@given(
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.integers(2, 9),
    st.floats(0.3, 20),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.1, 0.6]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_loss_is_that_of_the_definition(
    seed: int, b: int, n: int, heat: float, share: float, smoothing: float, dtype: torch.dtype
) -> None:
    """(1 - d) * cross entropy + d * T^2 * divergence, also of scores in half precision."""
    generator = torch.Generator().manual_seed(seed)
    scores, taught = (3 * torch.randn(b, n, generator=generator).to(dtype) for _ in range(2))
    labels = torch.randint(n, (b,), generator=generator)
    config = TrainConfig(distill=share, temperature=heat, label_smoothing=smoothing)
    s, t = scores.double().numpy(), taught.double().numpy()
    p, q = softmax(s / heat), softmax(t / heat)
    divergence = heat**2 * (q * (np.log(q) - np.log(p))).sum(1).mean()
    entropy = -(smooth(labels.numpy(), n, smoothing) * np.log(softmax(s))).sum(1).mean()
    found = training_loss(config, scores, labels, taught)
    assert float(found) == pytest.approx((1 - share) * entropy + share * divergence, rel=1e-4, abs=1e-4)
    assert float(distillation_loss(scores, scores, heat)) == pytest.approx(0, abs=1e-4)


def test_distillation_needs_a_teacher_that_fits() -> None:
    """None, the network itself, one that shares its weights, other classes."""
    data, config = random_data(), replace(ONE_STEP, distill=0.5)
    model = small_net()
    before = vector(model)
    with pytest.raises(ValueError, match=r"^distill is 0.5, which needs a teacher"):
        train(model, data, config, device="cpu")
    for teacher in (model, nn.Sequential(model, nn.ReLU())):
        with pytest.raises(ValueError, match=r"^teacher shares parameters with the network"):
            train(model, data, config, device="cpu", teacher=teacher)
    with pytest.raises(ValueError, match=r"^teacher gives scores of shape \[24, 6\] where the network gives \[24, 7\]"):
        train(model, data, config, device="cpu", teacher=small_net(6))
    assert torch.equal(vector(model)[: -1 - 12], before[: -1 - 12])  # all but what normalisation has seen
    with pytest.raises(ValueError, match=r"^distill is 0.5, which needs a teacher"):
        training_loss(config, torch.zeros(2, 3), torch.zeros(2).long())


def test_the_teacher_is_left_as_it_was() -> None:
    """Modes, weights, statistics, gradients and memory format; and drop-out does not disturb what it says."""
    teacher = small_net(seed=4).train()
    teacher[1].eval()
    kept, modes = copy.deepcopy(teacher.state_dict()), [module.training for module in teacher.modules()]
    seen: list[bool] = []
    teacher.register_forward_hook(lambda *_: seen.append(teacher.training or torch.is_grad_enabled()))
    train(small_net(), random_data(), replace(ONE_STEP, distill=0.5), device="cpu", teacher=teacher)
    assert seen == [False]
    assert all(torch.equal(kept[name], tensor) for name, tensor in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes
    assert all(p.grad is None and p.is_contiguous() and p.requires_grad for p in teacher.parameters())
