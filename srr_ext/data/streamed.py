"""Image sets too large for memory: decoded, cropped and stacked by worker processes while the network trains.

Workers hand over pixels as uint8, a quarter of the bytes of floats; a whole batch is then mirrored and normalised on
the device. Each image carries its own seed, so that neither the number of workers nor their speed changes what is
trained on.
"""

from __future__ import annotations

import operator
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srr_ext.data.augment import ToInput
from srr_ext.data.base import NOTHING_SKIPPED, SPLITS, BadImage, Batches, ImageData, Skipped, as_rgb, check_split

_MOST_WORKERS = 8  # by default: more seldom help one GPU, and each needs memory

Transform = Callable[[Any], Any]


class Source(Protocol):
    """A map-style data set: anything with a length and (image, label) at each position."""

    def __len__(self) -> int:
        """Count the images."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Return an image and its label."""


@dataclass(frozen=True, eq=False)
class Part:
    """One split of a streamed data set.

    Attributes
    ----------
    source : Source
        Images as PIL images, uint8 tensors or float tensors [c, h, w], and labels.
    positions : Tensor of int64, shape [n]
        Which of them belong to the split, and in which order.
    """

    source: Source
    positions: Tensor

    def __len__(self) -> int:
        """Count the images."""
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class StreamedData(ImageData):
    """A data set that is read while it is used.

    Attributes
    ----------
    name : str
        As it was asked for, e.g. ``imagenet:PATH``.
    classes : tuple of str
        Class names, in the order of the labels.
    train, validation, test : Part
        Validation is a seeded random part of the training images, without their augmentation where that is this
        package's; the test images take no part in any decision.
    shape : tuple of int
        Channels, height and width of every image once it is transformed.
    mean, std : tuple of float, optional
        Per channel, of pixels scaled to [0, 1]; None where the images are normalised floats already.
    train_transform, test_transform : callable, optional
        Applied to each image by the workers, the first one in training batches, the second one elsewhere.
    crop, flip, cutout
        Augmentation of whole batches on the device, see :class:`srr_ext.data.Augment`.
    batch_transform : callable, optional
        Further augmentation: images float32 [b, c, h, w] on the device to images of the same shape.
    workers : int
        Processes that decode; 0 for none.
    skipped : Skipped
        What was left out because it cannot be read.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part
    shape: tuple[int, int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    train_transform: Transform | None = None
    test_transform: Transform | None = None
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    batch_transform: Callable[[Tensor], Tensor] | None = None
    workers: int = 0
    skipped: Skipped = NOTHING_SKIPPED

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.shape[0]

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return self.shape[1]

    def size(self, split: str) -> int:
        """See :meth:`ImageData.size`."""
        return len(self.part(split))

    def part(self, split: str) -> Part:
        """Return the split of this name, or raise a ValueError."""
        return getattr(self, check_split(split))

    def batches(
        self, split: str, batch_size: int, *, train: bool = False, seed: int = 0, device: torch.device | str = "cpu"
    ) -> StreamedBatches:
        """See :meth:`ImageData.batches`; an image that cannot be read is a ValueError that names it, on the way."""
        return StreamedBatches(self, split, batch_size, train, seed, torch.device(device), self.workers)

    def example(self) -> Tensor:
        """See :meth:`ImageData.example`; no worker is started for it."""
        for split in SPLITS:
            if self.size(split):
                return next(iter(StreamedBatches(self, split, 1, False, 0, torch.device("cpu"), 0)))[0]
        raise ValueError(f"data {self.name!r} holds no images at all")


class StreamedBatches(Batches):
    """Batches decoded by worker processes, which stay for the next epoch; see :class:`Batches`.

    They end with this object, or with an iteration that stops early.
    """

    def __init__(
        self,
        data: StreamedData,
        split: str,
        batch_size: int,
        train: bool,
        seed: int,
        device: torch.device,
        workers: int,
    ) -> None:
        part = data.part(split)
        super().__init__(len(part), batch_size, train, seed, device)
        self.positions = part.positions
        self.samples = Samples(data, split, data.train_transform if train else data.test_transform)
        crop, flip, cutout = (data.crop, data.flip, data.cutout) if train else (0, False, 0)
        self.to_input = ToInput(data.mean, data.std, crop, flip, cutout, device)
        self.batch_transform = data.batch_transform if train else None
        self.workers = min(workers, len(self))
        self._idle: torch.utils.data.DataLoader[Any] | None = None

    def _make(self, chunks: list[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        # One seed per image and epoch, whichever worker gets it: a crop follows from (seed, epoch, image) alone.
        seeds = torch.randint(2**31, (self.n,), generator=generator)
        loader, self._idle = self._idle or self._loader(), None
        keys = loader.batch_sampler
        assert isinstance(keys, _Keys)
        keys.chunks = [(self.positions[mine], seeds[mine]) for mine in map(self.mine, chunks)]
        try:
            for found, chunk in zip(loader, chunks, strict=True):
                if isinstance(found, BadImage):
                    raise found
                images, labels = (part.to(self.device, non_blocking=True) for part in found)
                images = self.to_input(images, generator, len(chunk), self.processes.share)
                if self.batch_transform is not None:
                    drawn = int(torch.randint(2**31, (), generator=generator))
                    with seeded((drawn + self.processes.rank) % 2**31):  # each transforms its share by itself
                        images = self.batch_transform(images)
                yield images, labels[: self.counted(chunk)]
            self._idle = loader  # its workers wait for the next epoch
        finally:
            del loader  # the workers of an iteration that stopped early end here, not with some traceback

    def _loader(self) -> torch.utils.data.DataLoader[Any]:
        return torch.utils.data.DataLoader(
            self.samples,
            batch_sampler=_Keys(),
            num_workers=self.workers,
            worker_init_fn=_leave_interrupts,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # the loader draws from it at every start; the caller's numbers stay untouched
        )


class Samples(torch.utils.data.Dataset[Any]):
    """Images and labels of a split as tensors of one shape and kind, checked one by one.

    Parameters
    ----------
    data : StreamedData
        Its ``shape``, ``mean`` (whether pixels or normalised floats are expected) and ``classes`` are what is checked.
    split : str
        For messages, and whose source is read.
    transform : callable, optional
        Applied to each image first.
    """

    def __init__(self, data: StreamedData, split: str, transform: Transform | None) -> None:
        self.source, self.transform = data.part(split).source, transform
        self.where, self.shape, self.n_classes = f"{data.name}, {split} image", data.shape, len(data.classes)
        self.dtype = torch.float32 if data.mean is None else torch.uint8

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor] | BadImage:
        """Return images [b, c, h, w] and labels [b] at (position, seed) pairs, or what is wrong with one of them.

        An exception raised in a worker would arrive with the worker's traceback as its message.
        """
        try:
            samples = [self.sample(position, seed) for position, seed in keys]
        except BadImage as error:
            return BadImage(str(error))
        return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])

    def sample(self, position: int, seed: int) -> tuple[Tensor, int]:
        """Return one image [c, h, w] and its label."""
        with seeded(seed):
            image, label = self.source[position]
            if self.transform is not None:
                image = self.transform(image)
        try:
            image, label = as_tensor(image), as_label(label)
        except TypeError as error:
            raise BadImage(f"{self.where} {position}: {error}") from error
        if image.shape != self.shape or image.dtype != self.dtype:
            found, wanted = (f"{t} {list(s)}" for t, s in ((image.dtype, image.shape), (self.dtype, self.shape)))
            raise BadImage(f"{self.where} {position} is {found}, but {wanted} was expected; make all images alike")
        if not 0 <= label < self.n_classes:
            raise BadImage(f"{self.where} {position} has label {label}, but there are {self.n_classes} classes")
        return image, label


class _Keys:
    """The batches of an epoch as lists of (position, seed), for the loader."""

    def __init__(self) -> None:
        self.chunks: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for positions, seeds in self.chunks:
            yield list(zip(positions.tolist(), seeds.tolist(), strict=True))


def as_tensor(image: Any) -> Tensor:
    """Return an image as uint8 or float32 [c, h, w].

    Parameters
    ----------
    image : PIL.Image.Image or Tensor
        A PIL image in mode L becomes [1, h, w], in any other mode RGB [3, h, w]; uint8 tensors stay; float tensors of
        any precision become float32.

    Returns
    -------
    Tensor, shape [c, h, w]

    Raises
    ------
    TypeError
        Anything else, or a PIL image of more than 8 bits.
    """
    if isinstance(image, Image.Image):
        pixels = np.array(image if image.mode == "L" else as_rgb(image))
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    if isinstance(image, Tensor) and image.ndim == 3 and (image.dtype == torch.uint8 or image.is_floating_point()):
        plain = image.detach().as_subclass(Tensor)
        return plain if plain.dtype == torch.uint8 else plain.float()
    what = f"a tensor {image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
    raise TypeError(f"an image must be a PIL image or a uint8 or float tensor [c, h, w], but is {what}")


def as_label(label: Any) -> int:
    """Return a label as int; a TypeError if it is no whole number."""
    try:
        return operator.index(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"a label must be a whole number, but is {label!r}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed what transforms draw from on the CPU (torch, NumPy, Python) for a while, then give the old states back."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU, too
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def hold_out(pool: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Split training images by a seeded permutation into training and validation."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    n = round(share * len(pool))
    return Part(pool.source, pool.positions[order[n:]]), Part(pool.source, pool.positions[order[:n]])


def whole(source: Source) -> Part:
    """Return all images of a source as one part."""
    return Part(source, torch.arange(len(source)))


def count_workers(workers: int | None) -> int:
    """Return the number of worker processes; None asks for one per usable core, at most eight.

    Raises
    ------
    ValueError
        Below 0.
    """
    if workers is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(_MOST_WORKERS, usable)
    if workers < 0:
        raise ValueError(f"workers must be at least 0, but is {workers}")
    return workers


def _leave_interrupts(worker: int) -> None:
    """Let Ctrl-C, which a terminal sends to all processes, end the main one alone; it ends the workers then.

    A worker that had gone before would be an error to the main process, in place of the interrupt.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
