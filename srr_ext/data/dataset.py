"""Small image sets held whole as tensors, and batches cut and augmented from them in one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_EPOCH_STRIDE = 1_000_003  # a prime far above any number of epochs keeps (seed, epoch) pairs apart


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

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """Return the images at these positions."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification: three splits and how they become network inputs.

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

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.test.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return self.test.images.shape[2]

    def example(self) -> Tensor:
        """Return one test image as a network input, float32 [1, c, h, w]."""
        return next(iter(self.batches("test", 1)))[0]

    def batches(
        self, split: str, batch_size: int, *, train: bool = False, seed: int = 0, device: torch.device | str = "cpu"
    ) -> Batches:
        """Iterate over a split.

        Parameters
        ----------
        split : {"train", "validation", "test"}
            Which part.
        batch_size : int
            Images per batch; the last one may be smaller.
        train : bool, default False
            Shuffle and augment, differently in every epoch.
        seed : int, default 0
            Fixes both, independently of the device.
        device : torch.device or str, default "cpu"
            Where the images are kept and the batches are made.

        Returns
        -------
        Batches
        """
        return Batches(self, getattr(self, split), batch_size, train, seed, torch.device(device))


class Batches:
    """Batches of normalised images; every iteration is one epoch.

    Yields
    ------
    images : Tensor of float32, shape [b, c, h, w]
    labels : Tensor of int64, shape [b]
    """

    def __init__(
        self, data: ImageData, split: Split, batch_size: int, train: bool, seed: int, device: torch.device
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        self.batch_size, self.train, self.seed, self.device = batch_size, train, seed, device
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.crop, self.flip = (data.crop, data.flip) if train else (0, False)
        # (pixel / 255 - mean) / std as one multiplication and one addition
        std, mean = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (data.std, data.mean))
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.epoch = 0

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        full, rest = divmod(len(self.labels), self.batch_size)
        if rest == 1 and full and self.train:
            return full  # batch normalisation cannot learn from a single image
        return full + (rest > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through one epoch."""
        n = len(self.labels)
        # Drawn on the CPU whatever the device, so that a seed means the same order everywhere.
        generator = torch.Generator().manual_seed(self.seed * _EPOCH_STRIDE + self.epoch)
        order = torch.randperm(n, generator=generator) if self.train else torch.arange(n)
        for index in order.split(self.batch_size)[: len(self)]:
            images = self.images[index.to(self.device)]
            images = augment(images, self.crop, self.flip, generator)
            yield torch.addcmul(self.shift, images.float(), self.scale), self.labels[index.to(self.device)]
        self.epoch += 1


def augment(images: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Crop and mirror every image at random, all of them in one gather.

    Parameters
    ----------
    images : Tensor, shape [b, c, h, w]
        Any dtype and device.
    crop : int
        Zero pixels added on each side; each image is then cut back to [h, w] at its own random place.
    flip : bool
        Mirror each image left to right with probability 1/2.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor, shape [b, c, h, w]
    """
    if not crop and not flip:
        return images
    b, _, h, w = images.shape
    top, left = torch.randint(2 * crop + 1, (2, b, 1), generator=generator)
    rows = torch.arange(h).repeat(b, 1)  # [b, h]
    columns = torch.arange(w).repeat(b, 1)  # [b, w]
    if flip:
        mirror = torch.rand(b, 1, generator=generator) < 0.5
        columns = torch.where(mirror, w - 1 - columns, columns)
    padded = torch.nn.functional.pad(images, (crop, crop, crop, crop))
    rows, columns = (rows + top).to(images.device), (columns + left).to(images.device)
    sample = torch.arange(b, device=images.device)
    # Indices around the sliced channel dimension put it last: [b, h, w, c].
    picked = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


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
