"""Data sets by name, ``srr_ext.data.load("digits")``, or your own, ``srr_ext.data.from_datasets(...)``."""

from __future__ import annotations

from srr_ext.data import sources
from srr_ext.data.augment import Augment, crop_and_flip, cut_out
from srr_ext.data.base import Batches, ImageData, Skipped
from srr_ext.data.datasets import from_datasets
from srr_ext.data.streamed import StreamedData, count_workers
from srr_ext.data.tensors import Split, TensorData, channel_statistics, split_validation
from srr_ext.models.registry import nearest
from srr_ext.progress import Progress

__all__ = [
    "Augment",
    "Batches",
    "ImageData",
    "Skipped",
    "Split",
    "StreamedData",
    "TensorData",
    "available_data",
    "channel_statistics",
    "crop_and_flip",
    "cut_out",
    "from_datasets",
    "load",
    "split_validation",
]

_TORCHVISION = ("cifar10", "cifar100", "fashion-mnist", "mnist")
_SIZABLE = ("folder", "imagenet")


def available_data() -> list[str]:
    """Names that :func:`load` knows, sorted.

    Returns
    -------
    list of str
    """
    return sorted(("digits", *_TORCHVISION, *_SIZABLE))


def load(
    name: str,
    *,
    seed: int = 0,
    validation: float = 0.1,
    image_size: int | None = None,
    augment: Augment = Augment(),  # noqa: B008 - immutable
    download: bool = False,
    test_only: bool = False,
    workers: int | None = None,
    skip_corrupt: bool = False,
    progress: Progress | None = None,
) -> ImageData:
    """Read a data set: a small one into memory, a large one while it is used.

    Parameters
    ----------
    name : str
        ``digits`` (part of scikit-learn, nothing to fetch); ``mnist``, ``fashion-mnist``, ``cifar10`` or ``cifar100``
        with an optional ``:PATH`` to torchvision's root folder (default ``data``); ``folder:PATH`` with
        ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*`` (``PATH/val`` where there is no ``test``), JPEG and other
        formats, read as RGB; ``imagenet:PATH`` with 1000 classes in ``PATH/train`` and ``PATH/val``.
    seed : int, default 0
        Of the validation split.
    validation : float, default 0.1
        Share of the training images held out, in [0, 1).
    image_size : int, optional
        For ``folder``: bring images to this size; default as they are. Up to 96 pixels, and 4 GiB in all, they are
        scaled, cropped to the centre square and held in memory. Larger ones are streamed: training takes a random
        part, scaled to this size; evaluation scales the shorter side to 256/224 of it and takes the centre square (or
        images as they are). For ``imagenet``, which is always streamed: default 224. Other sets keep their own size.
    augment : Augment, optional
        Random changes of training images; default what suits the data set.
    download : bool, default False
        Let torchvision fetch its sets.
    test_only : bool, default False
        Leave training and validation empty, which saves decoding a ``folder``'s training images.
    workers : int, optional
        Processes that decode streamed images, 0 for none; default one per core, at most eight.
    skip_corrupt : bool, default False
        For ``folder`` and ``imagenet``: decode every image once at the beginning and leave out those that cannot be
        read, before they are split; ``ImageData.skipped`` counts them. Without, such an image is an error, when it is
        met.
    progress : Progress, optional
        Shows the decoding of image files.

    Returns
    -------
    ImageData

    Raises
    ------
    ValueError
        Unknown name (with the nearest), data that are missing (with how to get them) or damaged, an argument that is
        out of its range or does not apply to the data.
    """
    kind, _, path = name.partition(":")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be in [0, 1), but is {validation}")
    if kind not in available_data():
        raise ValueError(f"data {name!r} is not known; {nearest(kind, available_data())}")
    if image_size is not None and kind not in _SIZABLE:
        raise ValueError(f"image_size applies to folder:PATH and imagenet:PATH; data {kind!r} has a size of its own")
    if skip_corrupt and kind not in _SIZABLE:
        raise ValueError(f"skip_corrupt applies to folder:PATH and imagenet:PATH, but data is {kind!r}; leave it out")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, but is {image_size}")
    options = sources.Options(
        seed, validation, image_size, augment, download, test_only, count_workers(workers), progress, skip_corrupt
    )
    if kind in _TORCHVISION:
        return sources.torchvision_set(kind, path, options)
    if kind == "folder":
        return sources.folder(path, options)
    if kind == "imagenet":
        return sources.imagenet(path, options)
    if path:
        raise ValueError("data 'digits' takes no path: it is part of scikit-learn")
    return sources.digits(options)
