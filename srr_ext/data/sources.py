"""Where images come from: each function reads one kind of source into tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from srr_ext.data.dataset import ImageData, Split, channel_statistics, split_validation
from srr_ext.data.folder import read_folder
from srr_ext.progress import Progress

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, MNIST

_CIFAR_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what the public CIFAR checkpoints were trained with
_MNIST_MEAN_STD = ((0.1307,), (0.3081,))
_DEFAULT_ROOT = "data"


def digits(seed: int, validation: float) -> ImageData:
    """scikit-learn's digits: 1,797 gray 8x8 images of real handwriting, part of its installation.

    A fixed 30 % of a fixed permutation is the test split, whatever the seed: results of different seeds stay
    comparable, and one image is 0.19 points.
    """
    from sklearn.datasets import load_digits  # here and below: these take seconds, and one source is used at a time

    found = load_digits()
    pixels = torch.from_numpy(np.rint(found.images * (255 / 16)).astype(np.uint8))[:, None]  # source: 0 to 16
    every = Split(pixels, torch.from_numpy(found.target).long())
    pool, test = split_validation(every, 0.3, seed=0)
    train, held_out = split_validation(pool, validation, seed)
    names = tuple(str(name) for name in found.target_names)
    return ImageData("digits", train, held_out, test, names, *channel_statistics(pool.images), crop=1)


def mnist(root: str | None, seed: int, validation: float, download: bool) -> ImageData:
    """MNIST in its own format below ``root/MNIST/raw``."""
    import torchvision.datasets

    pool, test = _torchvision_pair(torchvision.datasets.MNIST, root, download, "mnist")
    train, held_out = split_validation(pool, validation, seed)
    names = tuple(str(digit) for digit in range(10))
    return ImageData("mnist", train, held_out, test, names, *_MNIST_MEAN_STD, crop=2)


def cifar10(root: str | None, seed: int, validation: float, download: bool) -> ImageData:
    """CIFAR-10 in its own Python format below ``root``."""
    import torchvision.datasets

    pool, test = _torchvision_pair(torchvision.datasets.CIFAR10, root, download, "cifar10")
    train, held_out = split_validation(pool, validation, seed)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return ImageData("cifar10", train, held_out, test, names, *_CIFAR_MEAN_STD, crop=4, flip=True)


def folder(
    root: str | None,
    seed: int,
    validation: float,
    image_size: int | None,
    test_only: bool,
    progress: Progress | None,
) -> ImageData:
    """Images in class folders: ``root/train/CLASS/*`` and ``root/test/CLASS/*`` (or ``root/val``)."""
    if not root:
        raise ValueError("data 'folder' needs a path, as in folder:PATH with PATH/train and PATH/test")
    classes, pool, test = read_folder(Path(root), image_size, test_only, progress)
    train, held_out = split_validation(pool, validation, seed)
    crop = max(1, pool.images.shape[-1] // 8)  # 4 pixels for 32, as is usual
    return ImageData(f"folder:{root}", train, held_out, test, classes, *_CIFAR_MEAN_STD, crop=crop, flip=True)


def _torchvision_pair(
    kind: type[MNIST] | type[CIFAR10],
    root: str | None,
    download: bool,
    name: str,
) -> tuple[Split, Split]:
    """Read the training and the test images of a torchvision data set."""
    root = root or _DEFAULT_ROOT
    try:
        parts = [kind(root, train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise ValueError(
            f"data {name!r} was not found below {root}; add --download to fetch it, or name its folder: {name}:PATH"
        ) from error
    train, test = (_as_split(part.data, part.targets) for part in parts)
    return train, test


def _as_split(pixels: torch.Tensor | np.ndarray, labels: torch.Tensor | list[int]) -> Split:
    """Convert [n, h, w] or [n, h, w, c] pixels of a torchvision data set."""
    images = torch.as_tensor(pixels)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Split(images.contiguous(), torch.as_tensor(labels).long())
