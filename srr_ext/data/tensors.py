"""Small image sets held whole as tensors, and batches cut and augmented from them in one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from srr_ext.data.augment import ToInput
from srr_ext.data.base import NOTHING_SKIPPED, Batches, ImageData, Skipped, check_split


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part of a data set.

    Attributes
    ----------
    images : Tensor of uint8, shape [n, c, h, w]
        Pixels, 0 to 255.
    labels : Tensor of int64, shape [n]
        Class indices.
    """

    images: Tensor
    labels: Tensor
    _copies: dict[torch.device, Split] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """Return the images at these positions."""
        return Split(self.images[index], self.labels[index])

    def on(self, device: torch.device) -> Split:
        """Return the split on a device; it is copied there once, however many epochs and evaluations read it."""
        if device == self.labels.device:
            return self
        if device not in self._copies:
            self._copies[device] = Split(self.images.to(device), self.labels.to(device))
        return self._copies[device]


@dataclass(frozen=True, eq=False)
class TensorData(ImageData):
    """A data set in memory.

    Attributes
    ----------
    name : str
        As it was asked for, e.g. ``digits``.
    train, validation, test : Split
        Validation is a seeded random part of the training images; the test images take no part in any decision.
    classes : tuple of str
        Class names, in the order of the labels.
    mean, std : tuple of float
        Per image channel, of pixels scaled to [0, 1].
    crop : int
        Augmentation: zero pixels added on each side before a random crop back to size; 0 for none.
    flip : bool
        Augmentation: mirror every other image, left to right.
    cutout : int
        Augmentation: side of a square set to the mean; 0 for none.
    skipped : Skipped
        What was left out because it cannot be read.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    skipped: Skipped = NOTHING_SKIPPED

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.test.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return self.test.images.shape[2]

    def size(self, split: str) -> int:
        """See :meth:`ImageData.size`."""
        return len(getattr(self, check_split(split)))

    def batches(
        self, split: str, batch_size: int, *, train: bool = False, seed: int = 0, device: torch.device | str = "cpu"
    ) -> TensorBatches:
        """See :meth:`ImageData.batches`; the images of the split are moved to the device once."""
        return TensorBatches(self, getattr(self, check_split(split)), batch_size, train, seed, torch.device(device))


class TensorBatches(Batches):
    """Batches made from tensors on their device; see :class:`Batches`."""

    def __init__(
        self, data: TensorData, split: Split, batch_size: int, train: bool, seed: int, device: torch.device
    ) -> None:
        super().__init__(len(split), batch_size, train, seed, device)
        self.split = split.on(device)
        crop, flip, cutout = (data.crop, data.flip, data.cutout) if train else (0, False, 0)
        self.to_input = ToInput(data.mean, data.std, crop, flip, cutout, device)

    def _make(self, chunks: list[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in chunks:
            mine = self.mine(chunk).to(self.device, non_blocking=True)  # a blocking copy waits for the last step
            part = self.split.take(mine)
            images = self.to_input(part.images, generator, len(chunk), self.processes.share)
            yield images, part.labels[: self.counted(chunk)]


def split_validation(pool: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split training images by a seeded permutation.

    Parameters
    ----------
    pool : Split
        All training images.
    share : float
        Part that becomes the validation split, in [0, 1).
    seed : int
        Of the permutation.

    Returns
    -------
    train, validation : Split
    """
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    n = round(share * len(pool))
    return pool.take(order[n:]), pool.take(order[:n])


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels scaled to [0, 1].

    Parameters
    ----------
    images : Tensor of uint8, shape [n, c, h, w]

    Returns
    -------
    mean, std : tuple of float
        The deviation is at least 1e-3, so that a constant channel can be divided by it.
    """
    # Exact integer counts of the 256 values need no float copy of the images.
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        centre = float(share.double() @ values)
        mean.append(centre)
        std.append(max(float(share.double() @ (values - centre).square()) ** 0.5, 1e-3))
    return tuple(mean), tuple(std)
