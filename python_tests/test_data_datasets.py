"""Other people's data sets as images for training: what each kind of image becomes, and what is refused."""

from __future__ import annotations

import doctest
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from srr_ext.data import Augment, ImageData, datasets, from_datasets
from srr_ext.data.base import IMAGENET_MEAN, IMAGENET_STD

NAMES = ("a", "b", "c")


class Items:
    """A map-style data set made of a list; ``change`` is applied to the images."""

    def __init__(self, items: list[tuple[Any, Any]], change: Any = None) -> None:
        self.items, self.change = items, change

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.items[index]
        return (image if self.change is None else self.change(image)), label


def of(image: Any, n: int = 4, label: Any = 1) -> Items:
    """Return a data set of one image."""
    return Items([(image, label)] * n)


def train_images(found: ImageData, epochs: int = 1) -> Tensor:
    """Return all training images of some epochs, in order."""
    batches = found.batches("train", 4, train=True)
    return torch.cat([images for _ in range(epochs) for images, _ in batches])


def test_pil_images_become_gray_or_rgb() -> None:
    """Mode L keeps its one channel; palettes and transparency become RGB; both are normalised."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    gray = from_datasets("x", of(Image.fromarray(noise)), of(Image.fromarray(noise)), NAMES, workers=0)
    np.testing.assert_allclose(gray.example()[0, 0].numpy(), noise / 127.5 - 1, atol=1e-6)
    for mode in ("RGB", "RGBA", "P"):
        image = Image.fromarray(noise).convert(mode)
        found = from_datasets("x", of(image), of(image), NAMES, workers=0).example()[0]
        expected = (np.asarray(image.convert("RGB")) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_tensors_are_scaled_or_taken_as_they_are() -> None:
    """uint8 is normalised, by what is given or the default; floats of any precision are the user's own business."""
    image = torch.randint(0, 256, (2, 4, 3), dtype=torch.uint8)
    default = from_datasets("x", of(image), of(image), NAMES, workers=0).example()[0]
    torch.testing.assert_close(default, image / 127.5 - 1)
    mean, std = (0.1, 0.2), (0.3, 0.4)
    given = from_datasets("x", of(image), of(image), NAMES, mean=mean, std=std, workers=0).example()[0]
    torch.testing.assert_close(
        given, (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    )
    for dtype in (torch.float16, torch.float32, torch.float64):
        floats = torch.randn(2, 4, 3).to(dtype)
        found = from_datasets("x", of(floats), of(floats), NAMES, workers=0)
        assert found.example().dtype == torch.float32 and torch.equal(found.example()[0], floats.float())
        assert (found.in_channels, found.image_size) == (2, 4)


def test_torch_data_sets_fit() -> None:
    """TensorDataset, Subset and torchvision's FakeData, with workers; every label once, validation apart."""
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 4, 4)
    tensors = TensorDataset(images, torch.arange(20) % 3)
    found = from_datasets("x", tensors, Subset(tensors, [3, 4]), NAMES, mean=(0, 0, 0), std=(1, 1, 1), workers=2)
    assert [found.size(split) for split in ("train", "validation", "test")] == [18, 2, 2]
    validation = torch.cat([images for images, _ in found.batches("validation", 4)])
    both = torch.cat([train_images(found), validation])[:, 0, 0, 0] * 255
    assert sorted(both.round().int().tolist()) == list(range(20))
    for batch, labels in found.batches("train", 4, train=True):
        assert torch.equal((batch[:, 0, 0, 0] * 255).round().long() % 3, labels)
    fake = FakeData(8, (3, 16, 16), 5, transform=v2.PILToTensor())
    found = from_datasets("fake", fake, fake, [str(i) for i in range(5)], workers=1)
    expected = (fake[0][0] / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[
        :, None, None
    ]
    torch.testing.assert_close(found.example()[0], expected)


def draw(image: Tensor) -> Tensor:
    """Draw from each of the three generators that transforms use."""
    return (
        image
        + torch.stack([torch.rand(()), torch.tensor(np.random.rand()), torch.tensor(random.random())])[:, None, None]
    )


def test_random_transforms_of_the_data_set_are_repeatable() -> None:
    """The same whatever the workers; other draws for other images, epochs and seeds."""
    train = Items([(torch.zeros(3, 2, 2), 0)] * 12, draw)
    images = [train_images(from_datasets("x", train, train, NAMES, workers=workers), 2) for workers in (0, 1, 2)]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    for channel in images[0][:, :, 0, 0].unbind(1):
        assert len(channel.unique()) == len(channel)
    test = from_datasets("x", train, train, NAMES, workers=0).batches("test", 4)
    assert torch.equal(torch.cat([x for x, _ in test]), torch.cat([x for x, _ in test]))  # evaluation does not wander


def test_batches_are_augmented_on_request() -> None:
    """Crop, flip, cutout and the user's own function, in training batches only, and repeatably."""
    items = Items([(torch.rand(3, 8, 8) + 1, 0) for _ in range(10)])
    plain = from_datasets("x", items, items, NAMES, validation=0, workers=0)
    assert {image.numpy().tobytes() for image in train_images(plain)} == {
        image.numpy().tobytes() for image, _ in items.items
    }
    cut = from_datasets("x", items, items, NAMES, validation=0, workers=0, augment=Augment(crop=2, flip=True, cutout=3))
    assert bool((train_images(cut) == 0).any()) and torch.equal(train_images(cut), train_images(cut))

    mirrored = from_datasets("x", items, items, NAMES, validation=0, workers=0, augment=Augment(flip=True))
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(train_images(mirrored), train_images(plain), strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(train_images(mirrored), train_images(plain), strict=True)]
    assert sum(turned) + sum(kept) == 10 and any(turned) and any(kept)

    def noise(images: Tensor) -> Tensor:
        return images + torch.rand(len(images), 1, 1, 1)

    noisy = [from_datasets("x", items, items, NAMES, validation=0, workers=w, batch_transform=noise) for w in (0, 2)]
    found, again = (train_images(data) for data in noisy)
    shift = (found - train_images(plain)).flatten(1)
    assert torch.equal(found, again) and len(shift[:, 0].unique()) == 10 and float(shift.std(1).max()) < 1e-6
    assert torch.equal(noisy[0].example(), plain.example())


def test_validation_may_be_a_data_set() -> None:
    """Then nothing is held out of the training images."""
    a, b = of(torch.ones(1, 2, 2), 5), of(torch.zeros(1, 2, 2), 3)
    found = from_datasets("x", a, a, NAMES, validation=b, workers=0)
    assert [found.size(split) for split in ("train", "validation", "test")] == [5, 3, 5]
    assert not bool(next(iter(found.batches("validation", 3)))[0].any())


def test_class_names_come_from_the_data_set() -> None:
    """torchvision's data sets have them."""
    items = of(torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="classes must name the classes"):
        from_datasets("x", items, items)
    items.classes = ["cat", "dog"]
    assert from_datasets("x", items, items).classes == ("cat", "dog")
    with pytest.raises(ValueError, match="classes must be two names or more"):
        from_datasets("x", items, items, ["cat"])


IMAGE = torch.ones(3, 4, 4)


@pytest.mark.parametrize(
    ("train", "options", "error", "message"),
    [
        (iter([]), {}, TypeError, "train must be a map-style data set with len"),
        (Items([]), {}, ValueError, "train is empty"),
        (of(np.ones((4, 4, 3))), {}, TypeError, r"train\[0\]: an image must be a PIL image or .*, but is a ndarray"),
        (of(torch.ones(4, 4)), {}, TypeError, r"but is a tensor torch.float32 \[4, 4\]"),
        (of(torch.ones(3, 4, 4).long()), {}, TypeError, r"but is a tensor torch.int64"),
        ([torch.ones(3, 4, 4)], {}, TypeError, r"train\[0\] must be a pair \(image, label\), but is a Tensor"),
        (of(IMAGE.byte()), {}, ValueError, r"test\[0\] is unlike train\[0\], which is uint8 \[3, 4, 4\]"),
        (of(IMAGE), {"mean": (0, 0, 0)}, ValueError, "mean and std are for PIL images"),
        (of(IMAGE), {"validation": 1.0}, ValueError, r"validation must be in \[0, 1\) or a data set, but is 1.0"),
        (of(IMAGE), {"validation": Items([])}, ValueError, "validation is empty"),
        (of(IMAGE), {"workers": -2}, ValueError, "workers must be at least 0, but is -2"),
        (of(IMAGE), {"augment": Augment(min_scale=0.5)}, ValueError, "min_scale does not apply here"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(train: Any, options: Any, error: type[Exception], message: str) -> None:
    """The argument is named."""
    with pytest.raises(error, match=message):
        from_datasets("x", train, of(IMAGE), NAMES, **options)


def test_bad_statistics_are_refused() -> None:
    """One value for each channel, deviations above 0."""
    items = of(IMAGE.byte())
    with pytest.raises(ValueError, match="mean must have one value for each of 3 channels"):
        from_datasets("x", items, items, NAMES, mean=(0.5,))
    with pytest.raises(ValueError, match="std must be above 0"):
        from_datasets("x", items, items, NAMES, std=(0.5, 0.5, 0.0))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.ones(3, 4, 5), 0), r"x, train image 7 is torch.float32 \[3, 4, 5\], but torch.float32 \[3, 4, 4\]"),
        ((IMAGE.byte(), 0), r"x, train image 7 is torch.uint8 \[3, 4, 4\], but torch.float32"),
        ((IMAGE, 3), "x, train image 7 has label 3, but there are 3 classes"),
        ((IMAGE, -1), "x, train image 7 has label -1"),
        ((IMAGE, 0.5), "x, train image 7: a label must be a whole number, but is 0.5"),
        (("cat.jpg", 0), "x, train image 7: an image must be a PIL image .* but is a str"),
    ],
)
def test_an_odd_image_is_named(item: tuple[Any, Any], message: str, workers: int) -> None:
    """When it is reached."""
    items = [(IMAGE, torch.tensor(1)), (IMAGE, np.int64(2))] * 5
    items[7] = item
    found = from_datasets("x", Items(items), of(IMAGE), NAMES, workers=workers, validation=0)
    with pytest.raises(ValueError, match=message) as error:
        train_images(found)
    assert "\n" not in str(error.value)


def test_the_example_of_the_documentation_runs() -> None:
    """As it is printed."""
    results = doctest.testmod(datasets)
    assert results.attempted and not results.failed
