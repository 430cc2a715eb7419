"""Data sets by name: ``srr_ext.data.load("digits")``, ``"mnist:PATH"``, ``"cifar10"``, ``"folder:PATH"``."""

from __future__ import annotations

from dataclasses import replace

import torch

from srr_ext.data import sources
from srr_ext.data.dataset import Batches, ImageData, Split, augment, channel_statistics, split_validation
from srr_ext.data.folder import read_folder
from srr_ext.models.registry import nearest
from srr_ext.progress import Progress

__all__ = [
    "Batches",
    "ImageData",
    "Split",
    "augment",
    "available_data",
    "channel_statistics",
    "load",
    "read_folder",
    "split_validation",
]


def available_data() -> list[str]:
    """Names that :func:`load` knows, sorted.

    Returns
    -------
    list of str
    """
    return ["cifar10", "digits", "folder", "mnist"]


def load(
    name: str,
    *,
    seed: int = 0,
    validation: float = 0.1,
    image_size: int | None = None,
    download: bool = False,
    test_only: bool = False,
    progress: Progress | None = None,
) -> ImageData:
    """Read a data set into memory.

    Parameters
    ----------
    name : str
        ``digits`` (part of scikit-learn, nothing to fetch), ``mnist`` or ``cifar10`` with an optional ``:PATH`` to
        torchvision's root folder (default ``data``), or ``folder:PATH`` with ``PATH/train/CLASS/*`` and
        ``PATH/test/CLASS/*`` (or ``PATH/val``), JPEG and other formats, read as RGB.
    seed : int, default 0
        Of the validation split.
    validation : float, default 0.1
        Share of the training images held out, in [0, 1).
    image_size : int, optional
        For ``folder``: scale and centre-crop to this size. Other sets keep their own.
    download : bool, default False
        Let torchvision fetch ``mnist`` and ``cifar10``.
    test_only : bool, default False
        Leave training and validation empty, which saves decoding a ``folder``'s training images.
    progress : Progress, optional
        Shows the decoding of image files.

    Returns
    -------
    ImageData

    Raises
    ------
    ValueError
        Unknown name (with the nearest), data that are missing (with how to get them) or damaged.
    """
    kind, _, path = name.partition(":")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be in [0, 1), but is {validation}")
    if image_size is not None and kind != "folder":
        raise ValueError(f"image_size applies to folder:PATH only; data {kind!r} has a size of its own")
    if kind == "digits":
        if path:
            raise ValueError("data 'digits' takes no path: it is part of scikit-learn")
        data = sources.digits(seed, validation)
    elif kind == "mnist":
        data = sources.mnist(path or None, seed, validation, download)
    elif kind == "cifar10":
        data = sources.cifar10(path or None, seed, validation, download)
    elif kind == "folder":
        data = sources.folder(path or None, seed, validation, image_size, test_only, progress)
    else:
        raise ValueError(f"data {name!r} is not known; {nearest(kind, available_data())}")
    nothing = data.test.take(torch.arange(0))
    return replace(data, train=nothing, validation=nothing) if test_only else data
