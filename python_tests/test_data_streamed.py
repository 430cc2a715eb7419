"""Images read while training: the same whatever the number of workers, and nothing left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from srr_ext import data
from srr_ext.data import Augment, ImageData, StreamedData
from srr_ext.data.base import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes above 96 pixels: red grows to the right, green grows downwards, blue is the number."""
    root = tmp_path_factory.mktemp("photographs")
    number = 0
    for split, n in (("train", 9), ("val", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                save(root / split / name / f"{i}.png", 100 + 10 * i, 128, number)
                number += 10
    return root


def save(path: Path, width: int, height: int, number: int = 0) -> None:
    """Write such an image."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([red, green, np.full_like(red, number)], 2).round().astype(np.uint8)
    Image.fromarray(pixels).save(path)


def epochs(found: ImageData, n: int = 2, batch_size: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return images and labels of some epochs of training batches."""
    batches = found.batches("train", batch_size, train=True, seed=seed)
    results = []
    for _ in range(n):
        images, labels = zip(*batches, strict=True)
        results.append((torch.cat(images), torch.cat(labels)))
    return results


def pixels(images: Tensor) -> Tensor:
    """Undo the normalisation: [b, 3, h, w] from 0 to 255."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images * std + mean) * 255


def test_the_number_of_workers_changes_nothing(photographs: Path) -> None:
    """Order and augmentation follow the seed and the epoch only, bit for bit."""
    augment = Augment(cutout=20)
    results = [
        epochs(data.load(f"folder:{photographs}", image_size=100, augment=augment, workers=workers))
        for workers in (0, 1, 2)
    ]
    for others in results[1:]:
        for (images, labels), (expected, expected_labels) in zip(others, results[0], strict=True):
            assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
    (first, labels), (second, _) = results[0]
    assert first.shape == (16, 3, 100, 100) and first.dtype == torch.float32 and labels.dtype == torch.int64
    assert not torch.equal(first, second)
    found = data.load(f"folder:{photographs}", image_size=100, augment=augment, workers=0)
    assert not torch.equal(epochs(found, 1, seed=1)[0][0], first)
    resumed = found.batches("train", 4, train=True)
    resumed.epoch = 1
    assert torch.equal(torch.cat([images for images, _ in resumed]), second)


def test_every_image_once_and_at_the_same_crop_whatever_the_batch(photographs: Path) -> None:
    """Blue tells the images apart: all training images less the validation images; crops do not depend on batches."""
    found = data.load(f"folder:{photographs}", image_size=100, augment=Augment(flip=False), workers=0)
    assert (found.size("train"), found.size("validation"), found.size("test")) == (16, 2, 6)
    first, again = epochs(found, 1, 4)[0][0], epochs(found, 1, 5)[0][0][:15]
    assert torch.equal(first[:15], again)
    validation = torch.cat([images for images, _ in found.batches("validation", 4)])
    numbers = torch.cat([pixels(images)[:, 2].mean((1, 2)) for images in (first, validation)])
    assert sorted(numbers.round().int().tolist()) == [10 * i for i in range(18)]


def test_training_crops_keep_the_share_that_is_asked_for(photographs: Path) -> None:
    """The area follows from the span of red and green; mirrored images have falling red."""

    def areas(min_scale: float, flip: bool | None) -> tuple[Tensor, Tensor]:
        augment = Augment(min_scale=min_scale, flip=flip)
        found = data.load(f"folder:{photographs}", image_size=100, augment=augment, workers=0, validation=0)
        images = pixels(torch.cat([images for images, _ in epochs(found, 3)]))
        red, green = images[:, 0, 50], images[:, 1, :, 50]
        return (red.amax(1) - red.amin(1)) * (green.amax(1) - green.amin(1)) / 255**2, red[:, -1] < red[:, 0]

    large, mirrored = areas(0.6, None)
    assert float(large.min()) > 0.55 and 0.2 < float(mirrored.float().mean()) < 0.8
    small, mirrored = areas(0.08, False)
    assert float(small.min()) < 0.4 and not bool(mirrored.any())


def test_evaluation_takes_the_centre(tmp_path: Path) -> None:
    """An image of 256 pixels is not scaled for 224; batches come in order and are the same every time."""
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            save(tmp_path / split / name / "0.png", 300, 256, label)
    found = data.load(f"folder:{tmp_path}", image_size=224, workers=0)
    batches = found.batches("test", 2)
    images, labels = next(iter(batches))
    whole = np.asarray(Image.open(tmp_path / "val" / "dog" / "0.png")).transpose(2, 0, 1)
    assert labels.tolist() == [0, 1] and torch.equal(next(iter(batches))[0], images)
    np.testing.assert_allclose(pixels(images)[1].numpy(), whole[:, 16:240, 38:262], atol=1e-3)
    assert torch.equal(found.example(), images[:1])
    assert found.describe() == f"folder:{tmp_path}: 2 train, 0 validation, 2 test images, 3 x 224 x 224, 2 classes"
    assert (found.in_channels, found.image_size) == (3, 224)


def test_large_images_of_one_size_need_no_size(tmp_path: Path) -> None:
    """They are evaluated as they are; one that differs is an error at once, which names it and the flag."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            save(tmp_path / split / name / "0.png", 110, 100)
    found = data.load(f"folder:{tmp_path}", workers=0, validation=0)
    whole = np.asarray(Image.open(tmp_path / "test" / "cat" / "0.png")).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels(found.example())[0].numpy(), whole, atol=1e-3)
    assert epochs(found, 1, 2)[0][0].shape == (2, 3, 100, 110)
    save(tmp_path / "train" / "dog" / "odd.png", 100, 110)
    with pytest.raises(ValueError, match=r"differ in size \(110x100 and 100x110, .*odd\.png\); set --image-size"):
        data.load(f"folder:{tmp_path}", workers=0)
    assert data.load(f"folder:{tmp_path}", test_only=True, workers=0).size("train") == 0


def test_small_images_stay_in_memory(photographs: Path) -> None:
    """Up to 96 pixels; one more is streamed. Settings that one of them lacks are errors."""
    small = data.load(f"folder:{photographs}", image_size=96)
    large = data.load(f"folder:{photographs}", image_size=97)
    assert isinstance(small, data.TensorData) and isinstance(large, StreamedData)
    with pytest.raises(ValueError, match=r"^crop is for images held in memory"):
        data.load(f"folder:{photographs}", image_size=97, augment=Augment(crop=4))
    only = data.load(f"folder:{photographs}", image_size=97, test_only=True)
    assert [only.size(split) for split in ("train", "validation", "test")] == [0, 0, 6]


def test_sets_too_large_for_memory_are_streamed(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on the sum of all images."""
    monkeypatch.setattr("srr_ext.data.sources._MOST_BYTES", 24 * 3 * 96 * 96 - 1)
    assert isinstance(data.load(f"folder:{photographs}", image_size=96), StreamedData)
    monkeypatch.setattr("srr_ext.data.sources._MOST_BYTES", 24 * 3 * 96 * 96)
    assert isinstance(data.load(f"folder:{photographs}", image_size=96), data.TensorData)


def test_workers_stay_between_epochs_and_end_with_the_batches(photographs: Path) -> None:
    """A whole epoch leaves them for the next one; an early stop, a deletion and an error end them."""
    before = set(multiprocessing.active_children())

    def workers() -> set[int | None]:
        return {child.pid for child in multiprocessing.active_children() if child not in before}

    found = data.load(f"folder:{photographs}", image_size=100, workers=2)
    threads = torch.get_num_threads()
    batches = found.batches("train", 4, train=True)
    assert not workers()
    assert sum(len(labels) for _, labels in batches) == 16
    first = workers()
    assert len(first) == 2
    assert sum(len(labels) for _, labels in batches) == 16 and workers() == first
    for _ in batches:
        break
    gc.collect()
    assert not workers()
    for one, two in zip(batches, batches, strict=True):  # two iterations of one object do not disturb each other
        assert one[0].shape == two[0].shape
    assert len(workers()) in (2, 4)
    del batches, one, two
    gc.collect()
    assert not workers() and torch.get_num_threads() == threads
    next(iter(found.batches("test", 4)))
    gc.collect()
    assert not workers()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(tmp_path: Path, workers: int) -> None:
    """Out of a worker, too, in one line and without its traceback; no worker is left."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                save(tmp_path / split / name / f"{i}.png", 120, 120)
    path = tmp_path / "train" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:200])  # its header is whole
    found = data.load(f"folder:{tmp_path}", workers=workers, validation=0)
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match=r"train/dog/2\.png cannot be read as an image") as error:
        epochs(found, 1)
    assert "\n" not in str(error.value)
    assert set(multiprocessing.active_children()) <= before
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.png cannot be read as an image|differ in size"):
        data.load(f"folder:{tmp_path}", workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_random_numbers_stay(photographs: Path, workers: int) -> None:
    """Reading images draws from nobody else's generator."""
    found = data.load(f"folder:{photographs}", image_size=100, workers=workers)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    epochs(found, 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 15, 16, 17])
@pytest.mark.parametrize("train", [False, True])
def test_the_length_is_the_number_of_batches(photographs: Path, batch_size: int, train: bool) -> None:
    """A last training batch of one image is left out, as for images in memory."""
    found = data.load(f"folder:{photographs}", image_size=100, workers=0)
    batches = found.batches("train", batch_size, train=train)
    sizes = [len(labels) for _, labels in batches]
    assert len(batches) == len(sizes)
    assert sum(sizes) == 16 - (train and batch_size in (5, 15))


def test_imagenet_wants_its_layout(tmp_path: Path) -> None:
    """A thousand class folders in train and val; 224 pixels unless asked otherwise; tests come from val."""
    with pytest.raises(ValueError, match="needs a path: imagenet:PATH wants PATH/train and PATH/val with a folder for"):
        data.load("imagenet")
    with pytest.raises(ValueError, match=r"there is no folder .*train; imagenet:PATH wants"):
        data.load(f"imagenet:{tmp_path}")
    save(tmp_path / "image.png", 150, 130)
    image = (tmp_path / "image.png").read_bytes()
    for split in ("train", "val"):
        for label in range(1000):
            (tmp_path / split / f"n{label:08}").mkdir(parents=True)
            (tmp_path / split / f"n{label:08}" / "a.png").write_bytes(image)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "n00000000" / "._a.png").write_bytes(b"what another system leaves behind")
    found = data.load(f"imagenet:{tmp_path}", workers=0)
    assert [found.size(split) for split in ("train", "validation", "test")] == [900, 100, 1000]
    assert len(found.classes) == 1000 and found.example().shape == (1, 3, 224, 224)
    assert isinstance(found, StreamedData) and (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)
    small = data.load(f"imagenet:{tmp_path}", image_size=64, workers=0)
    images, labels = next(iter(small.batches("train", 3, train=True)))
    assert isinstance(small, StreamedData) and images.shape == (3, 3, 64, 64) and int(labels.max()) > 9
    for split in ("train", "val"):
        (tmp_path / split / "n00000000").rename(tmp_path / f"{split}-0")
    with pytest.raises(ValueError, match=r"ImageNet's 1000 classes, but .*train has 999; folder:PATH takes any number"):
        data.load(f"imagenet:{tmp_path}")


def test_bad_arguments_are_named(photographs: Path) -> None:
    """Splits, batch sizes, workers."""
    found = data.load(f"folder:{photographs}", image_size=100, workers=0)
    with pytest.raises(ValueError, match="split must be one of train, validation, test, but is 'val'"):
        found.size("val")
    with pytest.raises(ValueError, match="split must be one of train, validation, test, but is 'tests'"):
        found.batches("tests", 4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, but is 0"):
        found.batches("test", 0)
    with pytest.raises(ValueError, match="workers must be at least 0, but is -1"):
        data.load(f"folder:{photographs}", image_size=100, workers=-1)
    with pytest.raises(ValueError, match="image_size must be at least 1, but is 0"):
        data.load(f"folder:{photographs}", image_size=0)


class InterruptedWorkers(Dataset[Any]):
    """Images in whose reading every worker gets what Ctrl-C sends to all processes of a terminal."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return torch.full((1, 4, 4), index, dtype=torch.uint8), index % 2


def test_workers_leave_interrupts_to_the_main_process() -> None:
    """One that had gone would be an error in place of the interrupt, which the main process gets as well."""
    source = InterruptedWorkers()
    loaded = data.from_datasets("signals", source, source, ["a", "b"], validation=0.0, workers=2)
    assert sum(len(labels) for _, labels in loaded.batches("train", 2, train=True)) == 8
