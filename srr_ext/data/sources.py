"""Where images come from: each function reads one kind of source."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srr_ext.data.augment import MIN_SCALE, Augment
from srr_ext.data.base import IMAGENET_MEAN, IMAGENET_STD, NOTHING_SKIPPED, ImageData, Skipped
from srr_ext.data.corrupt import leave_out_corrupt
from srr_ext.data.folder import ImageFiles, common_size, decode, header_size, list_folder
from srr_ext.data.streamed import Part, StreamedData, Transform, hold_out, whole
from srr_ext.data.tensors import Split, TensorData, channel_statistics, split_validation
from srr_ext.progress import Progress

# CIFAR-10's public checkpoints were trained with ImageNet's mean and deviation, those of CIFAR-100 with its own.
_STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_CROP_AND_FLIP = {"mnist": (2, False), "fashion-mnist": (2, True), "cifar10": (4, True), "cifar100": (4, True)}
_DEFAULT_ROOT = "data"
_SMALL = 96  # pixels: images up to this size are held in memory
_MOST_BYTES = 4 << 30  # and only if all of them take no more than this
_MNIST_FILES = 4  # images and labels of two splits
_IMAGENET_CLASSES, _IMAGENET_SIZE = 1000, 224


@dataclass(frozen=True)
class Options:
    """What :func:`srr_ext.data.load` was asked for, beside the name of the data."""

    seed: int
    validation: float
    image_size: int | None
    augment: Augment
    download: bool
    test_only: bool
    workers: int
    progress: Progress | None
    skip_corrupt: bool = False


def digits(options: Options) -> ImageData:
    """scikit-learn's digits: 1,797 gray 8x8 images of real handwriting, part of its installation.

    A fixed 30 % of a fixed permutation is the test split, whatever the seed: results of different seeds stay
    comparable, and one image is 0.19 points.
    """
    _check_in_memory("digits", options.augment)
    from sklearn.datasets import load_digits  # here and below: these take seconds, and one source is used at a time

    found = load_digits()
    pixels = torch.from_numpy(np.rint(found.images * (255 / 16)).astype(np.uint8))[:, None]  # source: 0 to 16
    every = Split(pixels, torch.from_numpy(found.target).long())
    pool, test = split_validation(every, 0.3, seed=0)
    names = tuple(str(name) for name in found.target_names)
    return _in_memory("digits", pool, test, names, channel_statistics(pool.images), 1, False, options)


def torchvision_set(name: str, root: str, options: Options) -> ImageData:
    """Read one of torchvision's data sets in its own format below ``root`` (default ``data``)."""
    _check_in_memory(name, options.augment)
    from torchvision import datasets

    kinds: dict[str, Any] = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    kind, where = kinds[name], Path(root or _DEFAULT_ROOT)
    try:
        with _unpacked(where, kind.__name__) as unpacked:
            train, test = (kind(unpacked, train=train, download=options.download) for train in (True, False))
    except (RuntimeError, OSError, AssertionError, ValueError, EOFError) as error:
        if options.download:
            raise ValueError(f"data {name!r} could not be downloaded to {where}: {error}") from error
        if "not found" in str(error):  # torchvision, of missing files, and of CIFAR files that are damaged
            advice = f"add --download to fetch it, or name its folder: {name}:PATH"
            raise ValueError(f"data {name!r} was not found below {where}; {advice}") from error
        raise ValueError(f"data {name!r} below {where} is damaged ({error}); fetch it anew") from error
    names = tuple(str(digit) for digit in range(10)) if name == "mnist" else tuple(train.classes)
    pool, tests = (_as_split(part.data, part.targets) for part in (train, test))
    return _in_memory(name, pool, tests, names, _STATISTICS[name], *_CROP_AND_FLIP[name], options)


@contextmanager
def _unpacked(root: Path, kind: str) -> Iterator[Path]:
    """Return a root where the files of an MNIST-like set are unpacked.

    torchvision reads them unpacked only, but they are published, and often kept, as .gz. Those are then unpacked into a
    temporary folder, so that a user's own folder stays as it is.
    """
    raw = root / kind / "raw"
    packed = sorted(raw.glob("*-ubyte.gz"))
    if len(packed) < _MNIST_FILES or all(path.with_suffix("").exists() for path in packed):
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="srr_ext-") as folder:
        target = Path(folder) / kind / "raw"
        target.mkdir(parents=True)
        for path in packed:
            try:
                with gzip.open(path) as source, (target / path.stem).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path} cannot be unpacked: {error}") from error
        yield Path(folder)


def _as_split(pixels: torch.Tensor | np.ndarray, labels: torch.Tensor | list[int]) -> Split:
    """Convert [n, h, w] or [n, h, w, c] pixels of a torchvision data set."""
    images = torch.as_tensor(pixels)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Split(images.contiguous(), torch.as_tensor(labels).long())


def folder(root: str, options: Options) -> ImageData:
    """Images in class folders: ``root/train/CLASS/*`` and ``root/test/CLASS/*`` (or ``root/val``).

    Small images (up to 96 pixels, 4 GiB) are held in memory and cropped after padding; larger ones are streamed and
    cropped at a random size. Mean and deviation are ImageNet's, with which public CIFAR checkpoints were trained, too.
    """
    if not root:
        raise ValueError("data 'folder' needs a path, as in folder:PATH with PATH/train and PATH/test")
    name, size = f"folder:{root}", options.image_size
    train, test = list_folder(Path(root))
    n_listed = len(train) + len(test)
    train, test, skipped = _readable(train, test, options)
    used = [test] if options.test_only else [train, test]
    shape = (size, size) if size is not None else header_size(test.path(0))
    # All count, whichever are used: evaluated by themselves, the test images must be scaled as they were in the run.
    if max(shape) <= _SMALL and 3 * shape[0] * shape[1] * n_listed <= _MOST_BYTES:
        _check_in_memory(name, options.augment)
        tests = decode(test, size, options.progress)
        pool = tests.take(torch.arange(0)) if options.test_only else decode(train, size, options.progress)
        if pool.images.shape[2:] != tests.images.shape[2:]:
            raise ValueError(f"data: the images of {train.root} and {test.root} differ in size; set --image-size")
        crop = max(1, tests.images.shape[-1] // 8)  # 4 pixels for 32, as is usual
        held = _in_memory(name, pool, tests, test.classes, (IMAGENET_MEAN, IMAGENET_STD), crop, True, options)
        return replace(held, skipped=skipped)
    if size is None:
        common_size(used, options.progress)  # an error unless they are all alike
    at_test = None if size is None else centre_crop(size)
    return replace(_streamed(name, train, test, shape, at_test, options), skipped=skipped)


def imagenet(root: str, options: Options) -> ImageData:
    """ImageNet in class folders, ``root/train`` and ``root/val``, streamed at 224 pixels or ``image_size``."""
    wanted = "imagenet:PATH wants PATH/train and PATH/val with a folder for each of ImageNet's 1000 classes"
    if not root:
        raise ValueError(f"data 'imagenet' needs a path: {wanted}")
    for part in ("train", "val"):
        if not (Path(root) / part).is_dir():
            raise ValueError(f"data: there is no folder {Path(root) / part}; {wanted}")
    train, test = list_folder(Path(root), test="val")
    if len(train.classes) != _IMAGENET_CLASSES:
        found = f"{train.root} has {len(train.classes)}"
        raise ValueError(f"data: {wanted}, but {found}; folder:PATH takes any number of classes")
    size = options.image_size or _IMAGENET_SIZE
    train, test, skipped = _readable(train, test, options)
    images = _streamed(f"imagenet:{root}", train, test, (size, size), centre_crop(size), options)
    return replace(images, skipped=skipped)


def _readable(train: ImageFiles, test: ImageFiles, options: Options) -> tuple[ImageFiles, ImageFiles, Skipped]:
    """Leave out what cannot be read, if that was asked for."""
    if not options.skip_corrupt:
        return train, test, NOTHING_SKIPPED
    return leave_out_corrupt(train, test, test_only=options.test_only, progress=options.progress)


def random_resized_crop(size: tuple[int, int], min_scale: float) -> Transform:
    """Return the usual augmentation for ImageNet: a random part of an image, scaled to ``size``."""
    from torchvision.transforms import v2

    return v2.RandomResizedCrop(size, scale=(min_scale, 1.0))


def centre_crop(size: int) -> Transform:
    """Return the usual evaluation for ImageNet: the shorter side to 256/224 of ``size``, then the centre square."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])


def _check_in_memory(name: str, augment: Augment) -> None:
    """Raise a ValueError for a setting of streamed images, before time goes into reading."""
    if augment.min_scale != MIN_SCALE:
        raise ValueError(f"min_scale is for images read while training, but {name} is held in memory; use crop")


def _in_memory(
    name: str,
    pool: Split,
    test: Split,
    classes: tuple[str, ...],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    crop: int,
    flip: bool,
    options: Options,
) -> TensorData:
    """Split off the validation images and settle the augmentation."""
    augment = options.augment
    nothing = test.take(torch.arange(0))
    train, held_out = split_validation(nothing if options.test_only else pool, options.validation, options.seed)
    return TensorData(
        name,
        train,
        held_out,
        test,
        classes,
        *statistics,
        crop=crop if augment.crop is None else augment.crop,
        flip=flip if augment.flip is None else augment.flip,
        cutout=augment.cutout,
    )


def _streamed(
    name: str,
    train: ImageFiles,
    test: ImageFiles,
    shape: tuple[int, int],
    at_test: Transform | None,
    options: Options,
) -> StreamedData:
    """Split off the validation images and settle the augmentation of files that are read while training."""
    augment = options.augment
    if augment.crop is not None:
        raise ValueError(f"crop is for images held in memory, but {name} is read while training; use min_scale")
    pool = Part(train, torch.arange(0)) if options.test_only else whole(train)
    part, held_out = hold_out(pool, options.validation, options.seed)
    return StreamedData(
        name,
        test.classes,
        part,
        held_out,
        whole(test),
        (3, *shape),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_transform=random_resized_crop(shape, augment.min_scale),
        test_transform=at_test,
        flip=augment.flip is not False,
        cutout=augment.cutout,
        workers=options.workers,
    )
