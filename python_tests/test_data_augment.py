"""Random changes of training images: every result is a possible one, and all possible ones occur."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_ext import data
from srr_ext.data import Augment, crop_and_flip, cut_out

SIDES = st.integers(1, 7)
SEEDS = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(b=st.integers(0, 4), h=SIDES, w=SIDES, crop=st.integers(0, 9), flip=st.booleans(), seed=SEEDS)
def test_a_crop_is_a_window_of_the_padded_image(b: int, h: int, w: int, crop: int, flip: bool, seed: int) -> None:
    """Each image is its own at one shift, mirrored or not, with zeros around it; channels move together."""
    images = torch.arange(1, b * 2 * h * w + 1).reshape(b, 2, h, w)
    found = crop_and_flip(images, crop, flip, generator(seed))
    assert found.shape == images.shape and found.is_contiguous()
    for before, after in zip(images.numpy(), found.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (crop, crop), (crop, crop)))
        windows = [padded[:, y : y + h, x : x + w] for y in range(2 * crop + 1) for x in range(2 * crop + 1)]
        windows += [window[:, :, ::-1] for window in windows] if flip else []
        assert any(np.array_equal(window, after) for window in windows)


@settings(max_examples=30, deadline=None)
@given(b=st.integers(1, 6), h=SIDES, w=SIDES, seed=SEEDS)
def test_mirroring_twice_gives_the_image_back(b: int, h: int, w: int, seed: int) -> None:
    """With the same draws; and some images are mirrored, others not."""
    images = torch.rand(b, 3, h, w)
    once = crop_and_flip(images, 0, True, generator(seed))
    assert torch.equal(crop_and_flip(once, 0, True, generator(seed)), images)
    for before, after in zip(images, once, strict=True):
        assert torch.equal(before, after) or torch.equal(before.flip(-1), after)


@settings(max_examples=80, deadline=None)
@given(b=st.integers(0, 4), h=SIDES, w=SIDES, side=st.integers(0, 16), seed=SEEDS)
def test_cutout_is_a_square_around_a_pixel(b: int, h: int, w: int, side: int, seed: int) -> None:
    """The zeros are exactly the part of a square that lies in the image, its centre too; the rest is untouched."""
    images = torch.rand(b, 2, h, w) + 1
    found = cut_out(images, side, generator(seed))
    assert bool(((found == images) | (found == 0)).all())
    possible = set()
    for y in range(h):
        for x in range(w):
            square = np.zeros((h, w), bool)
            top, left = y - side // 2, x - side // 2
            square[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
            assert not side or square[y, x]
            possible.add(square.tobytes())
    for image in found:
        assert torch.equal(image[0] == 0, image[1] == 0)  # all channels alike
        assert (image[0] == 0).numpy().tobytes() in possible


def test_cutout_takes_every_place_alike() -> None:
    """Each pixel is the centre equally often; an inner square has its full area."""
    n = 9000
    found = cut_out(torch.ones(n, 1, 9, 10), 1, generator(0))[:, 0] == 0
    counts = found.sum(0)
    assert int(counts.sum()) == n and int(counts.min()) > 60 and int(counts.max()) < 145  # 100 +- 4.5 deviations
    for side in (3, 4):
        found = cut_out(torch.ones(n, 1, 9, 10), side, generator(0))[:, 0] == 0
        covering = np.zeros((9, 10))  # how many of the 90 centres have a square over each pixel
        for y in range(9):
            for x in range(10):
                top, left = y - side // 2, x - side // 2
                covering[max(top, 0) : top + side, max(left, 0) : left + side] += 1
        np.testing.assert_allclose(found.sum(0).numpy(), covering * n / 90, rtol=0.25)


def test_cutout_leaves_the_mean() -> None:
    """Zero after normalisation; only in training batches; each epoch another place; the rest is as without it."""
    plain = data.load("digits", augment=Augment(crop=0))
    cut = data.load("digits", augment=Augment(crop=0, cutout=4))
    batches = cut.batches("train", 50, train=True)
    images, same = next(iter(batches))[0], next(iter(plain.batches("train", 50, train=True)))[0]
    assert 0.05 < float((images == 0).float().mean()) <= 16 / 64
    assert torch.equal(images[images != 0], same[images != 0]) and not torch.equal(images, next(iter(batches))[0])
    for first, second in zip(cut.batches("test", 100), plain.batches("test", 100), strict=True):
        assert torch.equal(first[0], second[0])


def test_load_takes_the_augmentation_that_is_asked_for() -> None:
    """None means the data set's own; zero and false mean none."""
    own = data.load("digits")
    assert isinstance(own, data.TensorData) and (own.crop, own.flip, own.cutout) == (1, False, 0)
    other = data.load("digits", augment=Augment(crop=0, flip=True, cutout=3))
    assert isinstance(other, data.TensorData) and (other.crop, other.flip, other.cutout) == (0, True, 3)
    with pytest.raises(ValueError, match="min_scale is for images read while training, but digits is held in memory"):
        data.load("digits", augment=Augment(min_scale=0.2))
    with pytest.raises(ValueError, match="but cifar10 is held in memory"):  # before the images are even looked for
        data.load("cifar10:/no/such/place", augment=Augment(min_scale=0.2))


@pytest.mark.parametrize(
    ("field", "value"),
    [("crop", -1), ("cutout", -2), ("min_scale", 0.0), ("min_scale", 1.5), ("min_scale", float("nan"))],
)
def test_augment_checks_its_ranges(field: str, value: float) -> None:
    """The message begins with the field."""
    with pytest.raises(ValueError, match=f"^{field} must be .*, but is {value}"):
        Augment(**{field: value})
