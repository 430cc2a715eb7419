"""What every data set offers, whether it is held in memory or read while training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from srr_ext.processes import ALONE, Processes

SPLITS = ("train", "validation", "test")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPOCH_STRIDE = 1_000_003  # a prime far above any number of epochs keeps (seed, epoch) pairs apart
_SEEDS = 1 << 63  # torch's generators take no larger ones


class BadImage(ValueError):
    """An image that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Skipped:
    """Images that were left out because they cannot be read.

    Attributes
    ----------
    train, test : int, default 0
        How many of the training images, validation included, and of the test images.
    first : str, default ""
        The path of the first of them and why it cannot be read.
    """

    train: int = 0
    test: int = 0
    first: str = ""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.train or self.test)


NOTHING_SKIPPED = Skipped()


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB; a TypeError for pixels of more than 8 bits, which Pillow would cut off at 255."""
    if image.mode.startswith(("I", "F")):
        raise TypeError(f"mode {image.mode} has pixels of more than 8 bits; convert the images to 8 bits first")
    return image.convert("RGB")


class Batches(ABC):
    """Batches of normalised images; every iteration is one epoch.

    Yields
    ------
    images : Tensor of float32, shape [b, c, h, w]
    labels : Tensor of int64, shape [b]
        None for an image that another process counts; see `divided`.

    Attributes
    ----------
    epoch : int
        How many epochs have begun. It takes part in the order and the augmentation of the next one: set it to go on
        where another process has stopped.
    processes : Processes
        Among whom every batch is divided; see `divided`.
    """

    def __init__(self, n: int, batch_size: int, train: bool, seed: int, device: torch.device) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        self.n, self.batch_size, self.train, self.seed, self.device = n, batch_size, train, seed, device
        self.epoch, self.processes = 0, ALONE

    def divided(self, processes: Processes) -> Self:
        """Let this process have every so many-th image of each batch, the others the rest.

        The batches, and the order and augmentation of the images, are those of one process alone. A process without a
        share of the last images, where these are not for training, gets one of them without a label, so that all go
        through equally many batches.

        Parameters
        ----------
        processes : Processes
            This one and the others.

        Returns
        -------
        Batches
            These.

        Raises
        ------
        ValueError
            A training batch has fewer images than there are processes.
        """
        smallest = min(self.batch_size, self.n)
        if self.train and 0 < smallest < processes.count:
            raise ValueError(
                f"batch_size must be at least {processes.count}, an image for each of so many processes, but a batch "
                f"has {smallest}; start fewer"
            )
        self.processes = processes
        return self

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        full, rest = divmod(self.n, self.batch_size)
        if 0 < rest < max(2, self.processes.count) and full and self.train:
            return full  # batch normalisation cannot learn from a single image, nor a process from none
        return full + (rest > 0)

    def mine(self, chunk: Tensor) -> Tensor:
        """Return which positions of a batch this process gets, at least one."""
        share = chunk[self.processes.share]
        return share if len(share) else chunk[:1]

    def counted(self, chunk: Tensor) -> int:
        """Return how many of them are its own."""
        return len(chunk[self.processes.share])

    @property
    def sizes(self) -> list[int]:
        """Images of every batch of an epoch, in all processes."""
        return [min(self.batch_size, self.n - start) for start in range(0, self.n, self.batch_size)][: len(self)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through one epoch."""
        epoch, self.epoch = self.epoch if self.train else 0, self.epoch + 1
        # Drawn on the CPU whatever the device, so that a seed means the same order everywhere.
        generator = torch.Generator().manual_seed((self.seed * _EPOCH_STRIDE + epoch) % _SEEDS)
        order = torch.randperm(self.n, generator=generator) if self.train else torch.arange(self.n)
        return self._make(list(order.split(self.batch_size)[: len(self)]), generator)

    @abstractmethod
    def _make(self, chunks: list[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one batch for each chunk of positions: of these, the share of this process."""


class ImageData(ABC):
    """A data set for classification: three splits of images, and how they become network inputs.

    Attributes
    ----------
    name : str
        As it was asked for, e.g. ``digits``.
    classes : tuple of str
        Class names, in the order of the labels.
    skipped : Skipped
        What was left out because it cannot be read; nothing unless that was asked for.
    """

    name: str
    classes: tuple[str, ...]
    skipped: Skipped = NOTHING_SKIPPED

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.example().shape[1]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return self.example().shape[2]

    @abstractmethod
    def size(self, split: str) -> int:
        """Count the images of a split.

        Parameters
        ----------
        split : {"train", "validation", "test"}
            Which part.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            There is no such split.
        """

    @abstractmethod
    def batches(
        self, split: str, batch_size: int, *, train: bool = False, seed: int = 0, device: torch.device | str = "cpu"
    ) -> Batches:
        """Iterate over a split.

        Parameters
        ----------
        split : {"train", "validation", "test"}
            Which part.
        batch_size : int
            Images per batch; the last one may be smaller, but a last training batch of a single image is left out, or
            of fewer images than there are processes to divide it.
        train : bool, default False
            Shuffle and augment, differently in every epoch.
        seed : int, default 0
            Fixes both, independently of the device and of the number of worker processes.
        device : torch.device or str, default "cpu"
            Where the batches are wanted.

        Returns
        -------
        Batches
            Sized; every iteration is one epoch of images float32 [b, c, h, w] and labels int64 [b].

        Raises
        ------
        ValueError
            There is no such split, or ``batch_size`` is below 1.
        """

    def example(self) -> Tensor:
        """Return one image as a network input, float32 [1, c, h, w], not augmented; of the test images last."""
        for split in SPLITS:
            if self.size(split):
                return next(iter(self.batches(split, 1)))[0]
        raise ValueError(f"data {self.name!r} holds no images at all")

    def describe(self) -> str:
        """Say in one line what the data are: name, images per split, size and classes."""
        counts = ", ".join(f"{self.size(split):,} {split}" for split in SPLITS)
        _, channels, height, width = self.example().shape
        return f"{self.name}: {counts} images, {channels} x {height} x {width}, {len(self.classes)} classes"


def check_split(split: str) -> str:
    """Return the name of a split, or raise a ValueError with those there are."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, but is {split!r}")
    return split
