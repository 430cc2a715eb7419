"""Training, evaluation and recalibration."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from srr_ext import data, models
from srr_ext.data import ImageData
from srr_ext.progress import Lines
from srr_ext.training import (
    TrainConfig,
    evaluate,
    learning_rate_factor,
    make_accelerator,
    recalibrate_batch_norm,
    train,
)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    """The embedded data set."""
    return data.load("digits")


def make(seed: int = 0) -> nn.Module:
    """Return the small network with seeded weights."""
    torch.manual_seed(seed)
    return models.create("digits_cnn")


def test_training_learns_and_leaves_the_rest_alone(digits: ImageData) -> None:
    """Accuracy rises far above chance; mode, device and the caller's random state stay."""
    model = make().eval()
    state = torch.get_rng_state()
    seen: list[dict[str, object]] = []
    history = train(model, digits, TrainConfig(epochs=3), device="cpu", log=seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and [record["epoch"] for record in history] == [1, 2, 3] and seen == history
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["lr"] < 0.05
    assert evaluate(model, digits, "test") > 90 and not model.training


def test_training_is_repeatable(digits: ImageData) -> None:
    """Same seed, same weights bit for bit; another seed, others."""

    def weights(seed: int) -> Tensor:
        model = make()
        train(model, digits, TrainConfig(epochs=1), device="cpu", seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1)) and not torch.equal(first, weights(2))


def test_training_refuses_to_go_on_with_nonsense(digits: ImageData) -> None:
    """A loss that is not finite ends the training with advice."""
    model = make().eval()
    model.stage2.train()
    modes = [module.training for module in model.modules()]
    with pytest.raises(FloatingPointError, match="use a smaller learning rate"):
        train(model, digits, TrainConfig(epochs=2, lr=1e20), device="cpu")
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="digits holds no training images"):
        train(model, data.load("digits", test_only=True), TrainConfig(epochs=1), device="cpu")


def test_the_learning_rate_ends_at_zero_without_the_dropped_image(digits: ImageData) -> None:
    """A last batch of one image is no step, neither of the schedule nor of the bar."""
    sixty_five = replace(digits, train=digits.train.take(torch.arange(65)))
    text = io.StringIO()
    progress = Lines(Console(file=text, width=200))
    history = train(make(), sixty_five, TrainConfig(epochs=2, warmup=0.0), device="cpu", progress=progress)
    assert history[-1]["lr"] == pytest.approx(0, abs=1e-9)
    assert text.getvalue().startswith("train: 2 steps in ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("schedule", "sine"),
        ("warmup", 1.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("label_smoothing", 1.0),
    ],
)
def test_recipes_out_of_range_name_the_field(field: str, value: object) -> None:
    """One rule per field."""
    with pytest.raises(ValueError, match=f"^{field} must be"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_learning_rate_rises_then_falls() -> None:
    """Linear warm-up, half a cosine to zero; constant stays."""
    config = TrainConfig(warmup=0.2)
    rates = [learning_rate_factor(config, step, 100) for step in range(101)]
    assert all(a < b for a, b in itertools.pairwise(rates[:21])) and rates[20] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[20:])) and abs(rates[100]) < 1e-12
    assert rates[60] == pytest.approx(0.5)
    assert learning_rate_factor(TrainConfig(schedule="constant", warmup=0.0), 99, 100) == 1.0


class Oracle(nn.Module):
    """Knows the labels of a split in order, and gets the first ``wrong`` of them wrong."""

    def __init__(self, labels: Tensor, wrong: int) -> None:
        super().__init__()
        self.labels, self.at, self.wrong = labels, 0, wrong

    def forward(self, x: Tensor) -> Tensor:
        """Return one-hot scores."""
        index = torch.arange(self.at, self.at + len(x))
        self.at += len(x)
        return nn.functional.one_hot((self.labels[index] + (index < self.wrong)) % 10, 10).float()


@pytest.mark.parametrize("batch_size", [1, 100, 539, 1000])
def test_evaluation_counts_every_image_once(digits: ImageData, batch_size: int) -> None:
    """Batches of any size weigh every image alike."""
    top1 = evaluate(Oracle(digits.test.labels, 38), digits, "test", batch_size=batch_size)
    assert top1 == pytest.approx(100 * (539 - 38) / 539, abs=1e-4)


def test_recalibration_measures_the_plain_mean() -> None:
    """Running statistics become the means over batches; weights, modes and momenta stay."""
    torch.manual_seed(0)
    batches = [(torch.randn(8, 2, 4, 4) * 3 + 1, torch.zeros(8)) for _ in range(6)]
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(2, momentum=0.3), nn.ReLU())
    model[0].eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert recalibrate_batch_norm(model, batches, n_batches=4) == 1
    used = torch.stack([images for images, _ in batches[:4]])  # [4, b, c, h, w]
    torch.testing.assert_close(model[1].running_mean, used.mean((0, 1, 3, 4)))
    torch.testing.assert_close(model[1].running_var, used.transpose(1, 2).flatten(2).var(2).mean(0))
    assert model[1].momentum == 0.3 and model[1].training and not model[0].training
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert recalibrate_batch_norm(nn.Linear(2, 2), batches) == 0


def test_recalibration_stops_reading_in_time() -> None:
    """No more batches are drawn than used."""

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(3):
            yield torch.randn(4, 2), torch.zeros(4)
        raise AssertionError("a fourth batch was asked for")

    recalibrate_batch_norm(nn.BatchNorm1d(2), endless(), n_batches=3)


def test_recalibration_without_images_or_with_wrong_ones_leaves_the_layer_whole() -> None:
    """Nothing is reset for nothing, and momenta come back."""
    norm = nn.BatchNorm1d(2, momentum=0.3)
    norm(torch.randn(8, 2) + 5)
    before = norm.running_mean.clone()
    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate_batch_norm(norm, [])
    with pytest.raises(ValueError, match="n_batches must be at least 1"):
        recalibrate_batch_norm(norm, [], n_batches=0)
    assert torch.equal(norm.running_mean, before) and norm.momentum == 0.3
    with pytest.raises((RuntimeError, ValueError)):
        recalibrate_batch_norm(norm, [(torch.randn(4, 3), torch.zeros(4))])
    assert norm.momentum == 0.3


@pytest.mark.parametrize(("n_batches", "steps"), [(2, 2), (50, 4)])
def test_recalibration_shows_its_batches(n_batches: int, steps: int) -> None:
    """As many as there are, at most as many as count."""
    text = io.StringIO()
    batches = [(torch.randn(4, 2), torch.zeros(4))] * 4
    recalibrate_batch_norm(nn.BatchNorm1d(2), batches, n_batches, progress=Lines(Console(file=text, width=200)))
    assert text.getvalue().startswith(f"recalibrate: {steps} steps in ")


def test_devices_that_are_not_there_are_refused() -> None:
    """No silent change to the CPU."""
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda"):
        make_accelerator("tpu")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch finds no GPU"):
            make_accelerator("cuda")
