"""A data set that offers exactly what training asks of one, and ways to look into a training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srr_ext.data import Batches
from srr_ext.training import loop, make_optimizer


class Fixed:
    """The same images in the same order in every epoch.

    Parameters
    ----------
    images : Tensor, shape [n, c, h, w]
    labels : Tensor, shape [n]
    validation : int, default 0
        How many of the images, from the first, are the validation split too.
    """

    name = "fixed"

    def __init__(self, images: Tensor, labels: Tensor, *, n_classes: int, validation: int = 0) -> None:
        self.classes = tuple(f"class {i}" for i in range(n_classes))
        self._splits = {
            "train": (images, labels),
            "validation": (images[:validation], labels[:validation]),
            "test": (images, labels),
        }

    def size(self, split: str) -> int:
        """Count the images."""
        return len(self._splits[split][1])

    def batches(
        self, split: str, batch_size: int, *, train: bool = False, seed: int = 0, device: torch.device | str = "cpu"
    ) -> InOrder:
        """Iterate over a split."""
        images, labels = (t.to(device) for t in self._splits[split])
        return InOrder(images, labels, batch_size)


class InOrder(Batches):
    """Batches of these images, from the first to the last."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        super().__init__(len(labels), batch_size, False, 0, images.device)
        self.images, self.labels = images, labels

    def _make(self, chunks: list[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in chunks:
            mine = chunk[self.processes.share]
            yield self.images[mine], self.labels[mine]


def random_data(n: int = 24, n_classes: int = 7, *, validation: int = 0, scale: float = 1.0) -> Any:
    """Seeded noise [n, 2, 4, 4] with random labels."""
    generator = torch.Generator().manual_seed(5)
    images = scale * torch.randn(n, 2, 4, 4, generator=generator)
    labels = torch.randint(n_classes, (n,), generator=generator)
    return Fixed(images, labels, n_classes=n_classes, validation=validation)


def small_net(n_classes: int = 7, in_channels: int = 2, seed: int = 0) -> nn.Module:
    """Two convolutions, a normalisation, drop-out and a classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, n_classes),
    )


def after_steps(monkeypatch: pytest.MonkeyPatch, look: Callable[[torch.optim.Optimizer], None]) -> None:
    """Call ``look`` with the optimiser after each of its steps."""

    @functools.wraps(make_optimizer)
    def make(*args: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(*args)
        optimizer.register_step_post_hook(lambda optimizer, *_: look(optimizer))
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", make)


def vector(model: nn.Module) -> Tensor:
    """All parameters and buffers in one float64 row."""
    return torch.cat([t.detach().double().flatten() for t in (*model.parameters(), *model.buffers())])
