"""Any two torch data sets as images for training and pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from srr_ext.data.augment import MIN_SCALE, Augment
from srr_ext.data.base import IMAGENET_MEAN, IMAGENET_STD, ImageData
from srr_ext.data.streamed import Part, Source, StreamedData, as_tensor, count_workers, hold_out, whole


def from_datasets(
    name: str,
    train: Source,
    test: Source,
    classes: Sequence[str] | None = None,
    *,
    seed: int = 0,
    validation: float | Source = 0.1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: Augment | None = None,
    batch_transform: Callable[[Tensor], Tensor] | None = None,
    workers: int | None = None,
) -> ImageData:
    """Make images for training out of two map-style data sets.

    Every image must come out of its data set in one shape, as one of three kinds, which the first one decides:

    - a PIL image: in mode L it stays gray, in any other mode it becomes RGB; then as uint8;
    - a uint8 tensor [c, h, w]: ``(pixel / 255 - mean) / std``;
    - a float tensor [c, h, w]: taken as it is, as float32; your data set has normalised it.

    Transforms of the data sets themselves run in worker processes. What they draw from torch, NumPy or ``random`` is
    seeded for each image, so that training is repeatable whatever the number of workers.

    Parameters
    ----------
    name : str
        For messages and reports.
    train, test : map-style data set
        With ``len()`` and ``[i]``, which gives (image, label); labels are whole numbers from 0.
    classes : sequence of str, optional
        Class names in the order of the labels; default the ``classes`` of the training set, which torchvision's have.
    seed : int, default 0
        Of the validation split.
    validation : float or map-style data set, default 0.1
        Share of the training images held out, in [0, 1). They come through the training set's own transform; where
        that is random, better give a data set.
    mean, std : sequence of float, optional
        Per channel, of pixels scaled to [0, 1]; default ImageNet's for three channels, else 0.5 and 0.5.
    augment : Augment, optional
        Its crop, flip and cutout are applied to training batches, on the device; default none of them.
    batch_transform : callable, optional
        Further augmentation of training batches: normalised images float32 [b, c, h, w], on the device, to images of
        the same shape.
    workers : int, optional
        Processes that read; 0 reads in this one. Default one per core, at most eight.

    Returns
    -------
    ImageData

    Raises
    ------
    ValueError
        Empty data sets, missing class names, fewer than two classes, settings that do not fit the images. Later, while
        batches are made: an image unlike the first one, a label out of range.
    TypeError
        Data sets that cannot be indexed, images of another kind.

    Examples
    --------
    >>> from torchvision.datasets import FakeData
    >>> train, test = FakeData(40, (3, 32, 32)), FakeData(10, (3, 32, 32), random_offset=40)
    >>> data = from_datasets("noise", train, test, [str(i) for i in range(10)], augment=Augment(crop=4, flip=True))
    >>> data.describe()
    'noise: 36 train, 4 validation, 10 test images, 3 x 32 x 32, 10 classes'
    """
    augment = augment or Augment()
    if augment.min_scale != MIN_SCALE:
        raise ValueError("min_scale does not apply here; use RandomResizedCrop in the transform of the training set")
    for argument, source in (("train", train), ("test", test)):
        _check_source(argument, source)
    shape, is_float = _first("train", train)
    if is_float and not (mean is None and std is None):
        raise ValueError("mean and std are for PIL images and uint8 tensors, but the images are float tensors")
    if _first("test", test) != (shape, is_float):
        kind = "float" if is_float else "uint8"
        raise ValueError(f"test[0] is unlike train[0], which is {kind} {list(shape)}; make all images alike")
    part, held_out = _split(whole(train), validation, seed)
    names = _class_names(train, classes)
    centre, spread = (None, None) if is_float else _statistics(shape[0], mean, std)
    return StreamedData(
        name,
        names,
        part,
        held_out,
        whole(test),
        shape,
        centre,
        spread,
        crop=augment.crop or 0,
        flip=bool(augment.flip),
        cutout=augment.cutout,
        batch_transform=batch_transform,
        workers=count_workers(workers),
    )


def _check_source(argument: str, source: Any) -> None:
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise TypeError(f"{argument} must be a map-style data set with len() and [i], but is a {type(source).__name__}")
    if not len(source):
        raise ValueError(f"{argument} is empty; pass a data set with images")


def _first(argument: str, source: Source) -> tuple[tuple[int, int, int], bool]:
    """Return the shape of the first image and whether it is a float tensor."""
    item = source[0]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"{argument}[0] must be a pair (image, label), but is a {type(item).__name__}")
    try:
        image = as_tensor(item[0])
    except TypeError as error:
        raise TypeError(f"{argument}[0]: {error}") from error
    channels, height, width = image.shape
    return (channels, height, width), image.dtype != torch.uint8


def _split(pool: Part, validation: float | Source, seed: int) -> tuple[Part, Part]:
    """Return training and validation images."""
    if not isinstance(validation, int | float):
        _check_source("validation", validation)
        return pool, whole(validation)
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be in [0, 1) or a data set, but is {validation}")
    return hold_out(pool, validation, seed)


def _class_names(train: Source, classes: Sequence[str] | None) -> tuple[str, ...]:
    found = classes if classes is not None else getattr(train, "classes", None)
    if found is None:
        raise ValueError("classes must name the classes: the training set has no attribute of this name")
    if isinstance(found, str) or len(found) < 2:
        raise ValueError(f"classes must be two names or more, in the order of the labels, but is {found!r}")
    return tuple(str(name) for name in found)


def _statistics(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation, given or by default."""
    default = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    found = tuple(default[0] if mean is None else mean), tuple(default[1] if std is None else std)
    for argument, values in zip(("mean", "std"), found, strict=True):
        if len(values) != channels:
            raise ValueError(f"{argument} must have one value for each of {channels} channels, but is {values}")
    if min(found[1]) <= 0:
        raise ValueError(f"std must be above 0, but is {found[1]}")
    return found
