"""Training, evaluation and recalibration."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from training_data import random_data, small_net, vector

from srr_ext import data, models
from srr_ext.data import ImageData
from srr_ext.progress import Lines
from srr_ext.training import TrainConfig, evaluate, evaluate_topk, recalibrate_batch_norm, train


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


EVERYTHING = TrainConfig(
    optimizer="adamw",
    lr=0.003,
    epochs=2,
    batch_size=10,
    schedule="step",
    milestones=(1.0,),
    label_smoothing=0.1,
    clip_norm=1.0,
    ema=0.9,
    distill=0.5,
    precision="bf16",
)


@pytest.mark.parametrize("config", [TrainConfig(epochs=2, batch_size=10), EVERYTHING], ids=["default", "everything"])
def test_equal_trainings_leave_equal_bytes(config: TrainConfig) -> None:
    """Weights and records, whatever was computed in between; and the caller's random state is not touched."""
    found = set()
    for _ in range(2):
        model, teacher, log = small_net(), small_net(seed=1), list[str]()
        state = torch.get_rng_state()
        train(
            model,
            random_data(validation=10),
            config,
            device="cpu",
            seed=3,
            teacher=teacher,
            log=lambda record, log=log: log.append(json.dumps(record)),
        )
        assert torch.equal(torch.get_rng_state(), state)
        found.add((*log, vector(model).numpy().tobytes()))
        torch.rand(5)
    assert len(found) == 1


def test_records_hold_the_means_over_the_images() -> None:
    """Batches of 10, 10 and 4: by a hook that sees every score, computed again in float64."""
    model, data, scores = small_net(), random_data(validation=10), list[Tensor]()
    model.register_forward_hook(
        lambda module, _, out: scores.append(out.detach().double()) if module.training else None
    )
    record = train(model, data, TrainConfig(epochs=1, batch_size=10), device="cpu")[0]
    images, labels = next(iter(data.batches("train", 24)))
    assert list(record) == ["stage", "epoch", "lr", "loss", "train_top1", "validation_top1"]
    assert [len(batch) for batch in scores] == [10, 10, 4]
    every = torch.cat(scores)
    assert record["loss"] == pytest.approx(float(nn.functional.cross_entropy(every, labels)), rel=1e-5)
    assert record["train_top1"] == pytest.approx(100 * float((every.argmax(1) == labels).double().mean()), rel=1e-5)
    model.eval()
    right = (model(images[:10]).argmax(1) == labels[:10]).double().mean()
    assert record["validation_top1"] == pytest.approx(100 * float(right), rel=1e-5)
    assert train(small_net(), random_data(), TrainConfig(epochs=1), device="cpu")[0]["validation_top1"] is None


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


def test_weights_lost_in_the_last_step_are_noticed(digits: ImageData) -> None:
    """No loss tells of them: the only step of a training is its last."""
    with pytest.raises(FloatingPointError, match="weights are not finite after epoch 1"):
        train(make(), digits, TrainConfig(epochs=1, batch_size=5000, lr=3e38, weight_decay=30.0, warmup=0.0))


def test_networks_that_do_not_score_every_class_are_refused(digits: ImageData) -> None:
    """With what they give, and before a label is out of the loss's range."""
    narrow = models.create("digits_cnn", num_classes=9)
    with pytest.raises(ValueError, match="model gives 9 scores for an image, but there are 10 classes"):
        train(narrow, digits, TrainConfig(epochs=1))
    with pytest.raises(ValueError, match="model gives 9 scores"):
        evaluate(narrow, digits)
    with pytest.raises(TypeError, match=r"gives a tensor \[200, 1, 8, 8\]"):
        evaluate(nn.Identity(), digits)


def test_a_network_without_trainable_parameters_is_refused(digits: ImageData) -> None:
    """Unless it is not trained."""
    frozen = make().requires_grad_(False)
    with pytest.raises(ValueError, match="model has no parameter that requires a gradient"):
        train(frozen, digits, TrainConfig(epochs=1))
    assert train(frozen, digits, TrainConfig(epochs=0)) == []


def test_the_learning_rate_ends_at_zero_without_the_dropped_image(digits: ImageData) -> None:
    """A last batch of one image is no step, neither of the schedule nor of the bar."""
    sixty_five = replace(digits, train=digits.train.take(torch.arange(65)))
    text = io.StringIO()
    progress = Lines(Console(file=text, width=200))
    history = train(make(), sixty_five, TrainConfig(epochs=2, warmup=0.0), device="cpu", progress=progress)
    assert history[-1]["lr"] == pytest.approx(0, abs=1e-9)
    assert text.getvalue().startswith("train: 2 steps in ")


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


@pytest.mark.parametrize(("n_classes", "keys"), [(5, ["top1"]), (6, ["top1", "top5"]), (7, ["top1", "top5"])])
def test_top_k_counts_labels_among_the_highest_scores(n_classes: int, keys: list[str]) -> None:
    """Like sorting all scores; where five classes are all there are, five guesses say nothing."""
    images, model = random_data(40, n_classes), small_net(n_classes).eval()
    x, labels = next(iter(images.batches("test", 40)))
    order = np.argsort(-model(x).detach().numpy(), axis=1)
    found = evaluate_topk(model, images, batch_size=12)
    assert list(found) == keys
    for key, share in found.items():
        k = int(key.removeprefix("top"))
        wanted = np.mean([label in row[:k] for label, row in zip(labels.numpy(), order, strict=True)])
        assert share == pytest.approx(100 * wanted)
    assert evaluate(model, images) == found["top1"]
    assert list(evaluate_topk(model, images, topk=(3, 2))) == ["top3", "top2"]


def test_top_k_of_a_perfect_first_batch() -> None:
    """Top-1 and top-5 count apart also where they begin alike."""

    class FirstThenSecond(nn.Module):
        """Right about the first ten images; then the label has the second score."""

        def __init__(self, labels: Tensor) -> None:
            super().__init__()
            self.labels, self.at = labels, 0

        def forward(self, x: Tensor) -> Tensor:
            """Return scores."""
            index = torch.arange(self.at, self.at + len(x))
            self.at += len(x)
            scores = nn.functional.one_hot(self.labels[index], 7).float()
            above = 2.0 * nn.functional.one_hot((self.labels[index] + 1) % 7, 7)
            return torch.where(index[:, None] < 10, scores, scores + above)

    images = random_data(40)
    labels = next(iter(images.batches("test", 40)))[1]
    found = evaluate_topk(FirstThenSecond(labels), images, batch_size=10)
    assert found == {"top1": pytest.approx(25), "top5": pytest.approx(100)}


def test_evaluation_refuses_what_says_nothing(digits: ImageData) -> None:
    """No images, no k."""
    with pytest.raises(ValueError, match="split 'train' of digits holds no images"):
        evaluate(make(), data.load("digits", test_only=True), "train")
    for topk in ((), (0,), (1, -5)):
        with pytest.raises(ValueError, match="topk must name numbers of at least 1"):
            evaluate_topk(make(), digits, topk=topk)


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
