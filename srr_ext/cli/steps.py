"""First steps that the commands share: check the settings, read the images, make the network; each blames its flag."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from srr_ext import data, models
from srr_ext.allocators import get_allocator
from srr_ext.cli.parsing import UsageError, blame, flag_of
from srr_ext.config import ModelAndData, Planning, PruneConfig
from srr_ext.cost import Target
from srr_ext.criteria import get_selector
from srr_ext.data import ImageData
from srr_ext.progress import Progress
from srr_ext.training import Log, TrainConfig, make_accelerator, train

_TINY = 10_000_000  # floating point operations per image; a CIFAR ResNet-20 has 80 million


def load_data(config: ModelAndData, progress: Progress, *, test_only: bool = False) -> ImageData:
    """Read the images, or blame ``--data``."""
    kind = config.data.partition(":")[0]
    if config.image_size is not None and (config.image_size < 1 or kind != "folder"):
        raise UsageError("--image-size", f"must be at least 1 and goes with folder:PATH, not {config.data}")
    with blame("--data"):
        return data.load(
            config.data,
            seed=config.seed,
            image_size=config.image_size,
            download=config.download,
            test_only=test_only,
            progress=progress,
        )


def make_model(config: ModelAndData, images: ImageData) -> nn.Module:
    """Make the network for these images, or blame ``--model`` or ``--weights``."""
    torch.manual_seed(config.seed)  # of the initial weights
    if config.weights is not None and Path(config.weights).is_dir():
        raise UsageError("--weights", f"{config.weights} is a folder; name the checkpoint file in it")
    shape: dict[str, Any] = {"in_channels": images.in_channels, "image_size": images.image_size}
    with blame("--model"):
        model = models.create(config.model, len(images.classes), **shape)
    if config.weights is not None:
        with blame("--weights"):
            model = models.create(config.model, len(images.classes), config.weights, **shape)
    with blame("--model"):
        check_fit(model.eval(), config.model, images)
    return model.train()


@torch.no_grad()
def check_fit(model: nn.Module, name: str, images: ImageData) -> None:
    """Raise a ValueError unless the network reads these images and scores their classes."""
    try:
        scores = model(images.example())
    except (RuntimeError, IndexError) as error:
        channels, size = images.in_channels, images.image_size
        raise ValueError(f"{name} cannot read images [{channels}, {size}, {size}]: {error}") from error
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or scores.shape[1] < len(images.classes):
        raise ValueError(f"{name} does not give one score for each of {len(images.classes)} classes")


def dense_network(config: Planning, images: ImageData, progress: Progress, log: Log | None = None) -> nn.Module:
    """Make the network and train it, unless it comes with weights; return it in evaluation mode."""
    model = make_model(config, images)
    if config.weights is None:
        train_blaming("--dense", model, images, config.dense, config, progress, log)
    return model.eval()


def train_blaming(
    flag: str,
    model: nn.Module,
    images: ImageData,
    recipe: TrainConfig,
    config: ModelAndData,
    progress: Progress,
    log: Log | None = None,
) -> None:
    """Train in place; if that diverges, blame the learning rate of this group of flags."""
    stage = {"--dense": "train dense", "--fine-tune": "fine-tune"}[flag]
    try:
        with threads_for(model, images):
            train(
                model, images, recipe, device=config.device, seed=config.seed, stage=stage, progress=progress, log=log
            )
    except FloatingPointError as error:
        raise UsageError(f"{flag}.lr", str(error)) from error


@contextmanager
def threads_for(model: nn.Module, images: ImageData) -> Iterator[None]:
    """Use one thread for a while if the network is tiny.

    A layer then takes microseconds, of which a second thread saves little; but where the cores are busy with other
    work, waiting for that thread at the end of every layer costs ten times as much as everything else.
    """
    before = torch.get_num_threads()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).cpu().eval()(images.example())
    if counter.get_total_flops() < _TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(config: Planning) -> None:
    """Refuse devices, targets, methods and limits that cannot be, before any work."""
    with blame("--device"):
        make_accelerator(config.device)
    if isinstance(config, PruneConfig):
        with blame("--allocator"):
            get_allocator(config.allocator)
        with blame("--selector"):
            get_selector(config.selector)
    given = list(config.target)
    if len(given) > 1:
        raise UsageError(flag_of(given[1]), f"goes alone, without {flag_of(given[0])}")
    for name, keep in config.target.items():
        with blame(flag_of(name)):
            Target(name.removeprefix("keep_"), keep)  # type: ignore[arg-type]  # the three names are its quantities
    limits = {
        "gamma": (config.gamma == "auto" or config.gamma > 0, "'auto' or above 0"),
        "seed": (config.seed >= 0, "at least 0"),
    }
    if isinstance(config, PruneConfig):
        limits["floor"] = (0 <= config.floor < 1, "in [0, 1)")
        limits["round_to"] = (config.round_to >= 1, "at least 1")
    for name, (holds, wanted) in limits.items():
        if not holds:
            raise UsageError(flag_of(name), f"must be {wanted}, but is {getattr(config, name)}")
