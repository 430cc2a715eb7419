"""Data sets as tensors: reading, splitting, augmenting, and what is said about bad ones."""

from __future__ import annotations

import gzip
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import SHARED

from srr_ext import data
from srr_ext.data import Split, crop_and_flip


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Twelve training and four test images of two classes, 8x8, lossless."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def rows(split: Split) -> set[bytes]:
    """Return the images as a set."""
    return {image.numpy().tobytes() for image in split.images}


def test_digits_are_split_into_three() -> None:
    """Disjoint and complete; the seed moves the validation split and never the test split."""
    a, b = data.load("digits", seed=0), data.load("digits", seed=1)
    assert len(a.train) + len(a.validation) + len(a.test) == 1797
    assert torch.equal(a.test.images, b.test.images) and not torch.equal(a.validation.images, b.validation.images)
    assert rows(a.train) | rows(a.validation) == rows(b.train) | rows(b.validation)
    assert not rows(a.train) & rows(a.validation) and not rows(a.train) & rows(a.test)
    assert a.train.images.dtype == torch.uint8 and a.in_channels == 1 and a.image_size == 8
    assert torch.bincount(a.test.labels).min() > 35  # all ten classes are there


def test_batches_are_normalised_and_in_order() -> None:
    """Evaluation batches are the images themselves, with mean 0 and deviation 1 over the training pool."""
    found = data.load("digits", validation=0.0)
    images = torch.cat([images for images, _ in found.batches("train", 100)])
    labels = torch.cat([labels for _, labels in found.batches("train", 100)])
    expected = (found.train.images.double() / 255 - found.mean[0]) / found.std[0]
    torch.testing.assert_close(images.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(labels, found.train.labels)
    assert abs(float(images.mean())) < 1e-4 and abs(float(images.std()) - 1) < 1e-3


def test_training_batches_follow_the_seed() -> None:
    """Same seed, same epochs; another epoch or seed, another order; every image once."""
    found = data.load("digits")

    def epochs(seed: int) -> list[torch.Tensor]:
        batches = found.batches("train", 64, train=True, seed=seed)
        return [torch.cat([images for images, _ in batches]) for _ in range(2)]

    first, again, other = epochs(3), epochs(3), epochs(4)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])
    labels = torch.cat([labels for _, labels in found.batches("train", 64, train=True)])
    assert torch.equal(torch.bincount(labels), torch.bincount(found.train.labels))


def test_a_single_left_over_image_is_no_training_batch() -> None:
    """Batch normalisation could not use it; evaluation does."""
    found = data.load("digits")
    n = len(found.train)
    assert sum(len(labels) for _, labels in found.batches("train", n - 1, train=True)) == n - 1
    assert sum(len(labels) for _, labels in found.batches("train", n - 1)) == n
    for size, train in itertools.product((1, 2, 3, n - 1, n, n + 1), (False, True)):
        batches = found.batches("train", size, train=train)
        assert len(batches) == sum(1 for _ in batches), (size, train)


def test_augmentation_is_a_crop_of_the_padded_image_or_its_mirror() -> None:
    """Every result is one of all possible ones, and all of them occur."""
    image = torch.arange(1, 13).reshape(1, 1, 3, 4).repeat(2000, 2, 1, 1)
    padded = torch.nn.functional.pad(image[:1], (1, 1, 1, 1))
    crops = [padded[0, :, y : y + 3, x : x + 4] for y in range(3) for x in range(3)]
    mirrored = torch.nn.functional.pad(image[:1].flip(-1), (1, 1, 1, 1))
    possible = {c.numpy().tobytes() for c in crops}
    possible |= {mirrored[0, :, y : y + 3, x : x + 4].numpy().tobytes() for y in range(3) for x in range(3)}
    found = crop_and_flip(image, 1, True, torch.Generator().manual_seed(0))
    assert {result.contiguous().numpy().tobytes() for result in found} == possible
    flips_only = crop_and_flip(image, 0, True, torch.Generator().manual_seed(0))
    share = float((flips_only[:, 0, 0, 0] == 4).float().mean())
    assert 0.45 < share < 0.55


def test_channel_statistics_are_those_of_numpy() -> None:
    """Mean and deviation per channel."""
    images = torch.randint(0, 256, (50, 3, 5, 7), dtype=torch.uint8)
    mean, std = data.channel_statistics(images)
    pixels = images.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-6)


def test_folder_reads_every_image_as_it_is(image_folder: Path) -> None:
    """Pixels, labels and class names agree with the files."""
    found = data.load(f"folder:{image_folder}", validation=0.25)
    assert found.classes == ("cat", "dog") and (len(found.train), len(found.validation), len(found.test)) == (9, 3, 4)
    assert found.test.labels.tolist() == [0, 0, 1, 1]
    for i, (name, number) in enumerate([("cat", 0), ("cat", 1), ("dog", 0), ("dog", 1)]):
        pixels = np.asarray(Image.open(image_folder / "test" / name / f"{number}.png"))
        assert np.array_equal(found.test.images[i].permute(1, 2, 0).numpy(), pixels)
    assert found.mean == (0.485, 0.456, 0.406) and found.std == (0.229, 0.224, 0.225)


def test_folder_takes_val_for_test_and_reads_tests_alone(image_folder: Path) -> None:
    """Both layouts are common."""
    (image_folder / "test").rename(image_folder / "val")
    found = data.load(f"folder:{image_folder}", test_only=True)
    assert (len(found.train), len(found.test), found.image_size, found.in_channels) == (0, 4, 8, 3)


def test_folder_scales_and_crops_on_request(image_folder: Path) -> None:
    """Images of several sizes come to one; without being asked that is an error."""
    Image.new("L", (20, 10), 255).save(image_folder / "train" / "cat" / "wide.jpg")
    with pytest.raises(ValueError, match=r"differ in size \(8x8 and 20x10.*--image-size"):
        data.load(f"folder:{image_folder}")
    found = data.load(f"folder:{image_folder}", image_size=6, validation=0)
    assert found.train.images.shape == (13, 3, 6, 6)
    assert any(bool((image == 255).all()) for image in found.train.images)


def test_bad_folders_say_what_is_wrong(image_folder: Path) -> None:
    """Missing parts, empty classes, damaged images, classes that differ."""
    with pytest.raises(ValueError, match="there is no folder"):
        data.load("folder:/no/such/place")
    with pytest.raises(ValueError, match="needs a path"):
        data.load("folder")
    (image_folder / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"different classes, such as emu|class folder .*emu holds no images"):
        data.load(f"folder:{image_folder}")
    (image_folder / "train" / "emu").rmdir()
    damaged = image_folder / "train" / "cat" / "x.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        data.load(f"folder:{image_folder}")
    shutil.rmtree(image_folder / "test")
    with pytest.raises(ValueError, match="needs folders train/ and test/"):
        data.load(f"folder:{image_folder}")


def test_missing_sets_say_how_to_get_them(tmp_path: Path) -> None:
    """No download without being asked."""
    for name in ("mnist", "cifar10"):
        with pytest.raises(ValueError, match=f"add --download to fetch it, or name its folder: {name}:PATH"):
            data.load(f"{name}:{tmp_path}")
    with pytest.raises(ValueError, match=r"'digit' is not known; did you mean digits\?"):
        data.load("digit")
    with pytest.raises(ValueError, match="image_size applies to folder:PATH and imagenet:PATH"):
        data.load("digits", image_size=16)


def test_mnist_in_its_own_format(tmp_path: Path) -> None:
    """torchvision reads the raw files; the shapes are as promised."""
    raw = SHARED / "data" / "mnist" / "MNIST" / "raw"
    if not raw.is_dir():
        pytest.skip(f"no MNIST in {raw}")
    target = tmp_path / "MNIST" / "raw"
    target.mkdir(parents=True)
    for source in raw.glob("*.gz"):
        with gzip.open(source) as packed:
            (target / source.stem).write_bytes(packed.read())
    found = data.load(f"mnist:{tmp_path}")
    assert found.train.images.shape == (54_000, 1, 28, 28) and len(found.validation) == 6_000
    assert abs(data.channel_statistics(found.train.images)[0][0] - found.mean[0]) < 1e-3
