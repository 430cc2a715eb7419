"""torchvision's data sets, and folders: where they are found, what they become, what is said when they are missing."""

from __future__ import annotations

import gzip
import inspect
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from shared_data import SHARED

from srr_ext import data
from srr_ext.data import Augment, TensorData


def write_idx(root: Path, kind: str, packed: bool) -> dict[str, np.ndarray]:
    """Write a tiny set in MNIST's format (a magic number, big-endian sizes, bytes); return the arrays."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 20), ("t10k", 6)):
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = rng.integers(0, 10, n, dtype=np.uint8)
    for name, array in arrays.items():
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        if packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_like_sets_are_read_packed_and_unpacked(tmp_path: Path, name: str, kind: str, packed: bool) -> None:
    """The pixels are those of the files, and the folder stays as it is."""
    arrays = write_idx(tmp_path, kind, packed)
    before = sorted(tmp_path.rglob("*"))
    found = data.load(f"{name}:{tmp_path}", validation=0)
    assert sorted(tmp_path.rglob("*")) == before
    assert isinstance(found, TensorData) and found.describe() == (
        f"{name}: 20 train, 0 validation, 6 test images, 1 x 28 x 28, 10 classes"
    )
    assert np.array_equal(found.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(found.test.labels.numpy(), arrays["t10k-labels-idx1-ubyte"])
    assert sorted(found.train.labels.tolist()) == sorted(arrays["train-labels-idx1-ubyte"].tolist())
    assert found.classes[1] == {"mnist": "1", "fashion-mnist": "Trouser"}[name]
    assert (found.crop, found.flip) == (2, name == "fashion-mnist")


def test_real_mnist_is_read_as_it_is_published() -> None:
    """Packed; its mean and deviation are those that normalise it."""
    root = SHARED / "data" / "mnist"
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {root}")
    found = data.load(f"mnist:{root}", validation=0)
    assert isinstance(found, TensorData) and found.size("train") == 60_000
    mean, std = data.channel_statistics(found.train.images)
    assert abs(mean[0] - found.mean[0]) < 1e-4 and abs(std[0] - found.std[0]) < 1e-4
    assert torch.bincount(found.train.labels).tolist()[:3] == [5923, 6742, 5958]  # as published


def test_damaged_sets_are_named(tmp_path: Path) -> None:
    """A file that does not unpack, and one that is cut off."""
    write_idx(tmp_path / "a", "MNIST", True)
    path = tmp_path / "a" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz cannot be unpacked"):
        data.load(f"mnist:{tmp_path / 'a'}")
    write_idx(tmp_path / "b", "MNIST", False)
    path = tmp_path / "b" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"data 'mnist' below .*b is damaged"):
        data.load(f"mnist:{tmp_path / 'b'}")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_becomes_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A stand-in with the attributes of torchvision's class: [n, h, w, c] pixels, a list of labels, class names."""
    rng = np.random.default_rng(0)
    seen = []

    def stand_in(root: Path, train: bool, download: bool) -> Any:
        seen.append((Path(root), train, download))
        pixels = rng.integers(0, 256, (20 if train else 5, 32, 32, 3), dtype=np.uint8)
        parts[train] = SimpleNamespace(
            data=pixels, targets=[i % 3 for i in range(len(pixels))], classes=["x", "y", "z"]
        )
        return parts[train]

    parts: dict[bool, Any] = {}
    original = getattr(torchvision.datasets, name.upper())
    assert list(inspect.signature(original).parameters)[:2] == ["root", "train"]
    stand_in.__name__ = original.__name__
    monkeypatch.setattr(torchvision.datasets, name.upper(), stand_in)
    found = data.load(f"{name}:{tmp_path}", augment=Augment(cutout=8))
    assert seen == [(tmp_path, True, False), (tmp_path, False, False)]
    assert isinstance(found, TensorData) and found.classes == ("x", "y", "z") and found.size("validation") == 2
    assert np.array_equal(found.test.images.permute(0, 2, 3, 1).numpy(), parts[False].data)
    assert found.test.labels.tolist() == parts[False].targets
    assert (found.crop, found.flip, found.cutout) == (4, True, 8)
    only = data.load(f"{name}:{tmp_path}", test_only=True)
    assert [only.size(split) for split in ("train", "validation", "test")] == [0, 0, 5]


def test_missing_sets_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched without being asked; a download that fails says so instead of asking for one."""
    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(ValueError, match=f"was not found below .*; add --download to fetch it, .*: {name}:PATH"):
            data.load(f"{name}:{tmp_path}")
    assert not list(tmp_path.rglob("*"))

    def offline(self: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", offline)
    write_idx(tmp_path, "FashionMNIST", True)
    next(tmp_path.rglob("t10k-images*.gz")).unlink()  # an incomplete set is fetched to where it belongs
    with pytest.raises(ValueError, match=r"'fashion-mnist' could not be downloaded to .*: no route to host"):
        data.load(f"fashion-mnist:{tmp_path}", download=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"'cifar11' is not known; did you mean cifar10"),
        ("fashion_mnist:x", r"did you mean fashion-mnist"),
        ("", r"known are cifar10, cifar100, digits, fashion-mnist, folder, imagenet, mnist"),
        ("digits:x", "data 'digits' takes no path"),
        ("imagenet", "data 'imagenet' needs a path"),
        ("folder:", "data 'folder' needs a path"),
    ],
)
def test_names_that_do_not_fit(name: str, message: str) -> None:
    """With the nearest ones, or what is missing."""
    with pytest.raises(ValueError, match=message):
        data.load(name)


def test_settings_that_do_not_apply(tmp_path: Path) -> None:
    """Nothing is ignored silently."""
    for name in ("digits", f"mnist:{tmp_path}", f"cifar100:{tmp_path}"):
        with pytest.raises(ValueError, match="image_size applies to folder:PATH and imagenet:PATH"):
            data.load(name, image_size=32)
    with pytest.raises(ValueError, match=r"validation must be in \[0, 1\), but is 1"):
        data.load("digits", validation=1)


def make_folder(root: Path, layout: dict[str, int]) -> str:
    """Write 8x8 images: so many in each of these folders; return the name of the data."""
    for i, (folder, n) in enumerate(layout.items()):
        (root / folder).mkdir(parents=True)
        for k in range(n):
            Image.new("RGB", (8, 8), (i, k, 0)).save(root / folder / f"{k}.png")
    return f"folder:{root}"


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"train": 0, "test/a": 1}, r"train has no class folders"),
        ({"train/a": 1, "train/b": 1, "test": 0}, r"test has no class folders"),
        ({"train/a": 1, "train/b": 0, "test/a": 1, "test/b": 1}, r"class folder .*train/b holds no images"),
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1}, r"train and .*test have different classes, such as b"),
        ({"train/a": 1, "test/a": 1}, r"train has one class only, a; a classifier needs two or more"),
        ({"a": 1, "b": 1}, r"needs folders train/ and test/ \(or val/\), with one folder per class in each"),
        ({"train/a": 1, "train/b": 1}, r"needs folders train/ and test/ \(or val/\)"),
    ],
)
def test_folders_of_another_layout(tmp_path: Path, layout: dict[str, int], message: str) -> None:
    """What is missing, and where."""
    with pytest.raises(ValueError, match=message):
        data.load(make_folder(tmp_path, layout))


def test_folders_are_listed_in_order_and_without_hidden_files(tmp_path: Path) -> None:
    """Nested folders count; names that begin with a dot and other files do not; test/ goes before val/."""
    name = make_folder(tmp_path, {"train/b": 2, "train/a": 1, "train/a/more": 2, "test/a": 1, "test/b": 1, "val/x": 3})
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "a" / ".thumbs").mkdir()
    for extra in ("a/._0.png", "a/.thumbs/0.png", "a/notes.txt"):
        (tmp_path / "train" / extra).write_bytes(b"no image")
    found = data.load(name, validation=0)
    assert isinstance(found, TensorData) and found.classes == ("a", "b")
    listed = list(zip(found.train.labels.tolist(), found.train.images[:, :2, 0, 0].tolist(), strict=True))
    assert sorted(listed) == [(0, [1, 0]), (0, [2, 0]), (0, [2, 1]), (1, [0, 0]), (1, [0, 1])]


def test_linked_class_folders_are_read_and_loops_are_not(tmp_path: Path) -> None:
    """A link to another folder counts as one of its images' folders; one that leads back up ends there."""
    root = Path(make_folder(tmp_path / "set", {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1}).partition(":")[2])
    make_folder(tmp_path / "more", {"deep": 2})
    (root / "train/a/linked").symlink_to(tmp_path / "more")
    (root / "train/a/loop").symlink_to(root / "train")
    (root / "train/a/self").symlink_to(root / "train/a")
    loaded = data.load(f"folder:{root}", validation=0.0)
    assert isinstance(loaded, TensorData)
    assert sorted(loaded.train.labels.tolist()) == [0, 0, 0, 1]


@pytest.mark.parametrize("bits", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_refused(tmp_path: Path, bits: type[np.generic]) -> None:
    """Pillow would cut them off at 255, so that they would be all white."""
    folder = make_folder(tmp_path / "set", {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1})
    deep = Image.fromarray(np.full((8, 8), 20_000, bits))
    deep.save(tmp_path / "set/train/b/deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff cannot be read as an image .* more than 8 bits"):
        data.load(folder)
    with pytest.raises(TypeError, match=r"train\[0\].*more than 8 bits"):
        data.from_datasets("deep", [(deep, 0)], [(deep, 1)], ["a", "b"])


def test_test_images_alone_are_read_as_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all of them are too many for memory, evaluation by itself crops as the evaluation in the run did."""
    folder = make_folder(tmp_path / "set", {"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
    Image.linear_gradient("L").resize((8, 8)).save(tmp_path / "set/test/a/0.png")
    monkeypatch.setattr(data.sources, "_MOST_BYTES", 5 * 3 * 6 * 6)
    both, alone = (data.load(folder, image_size=6, workers=0, test_only=only) for only in (False, True))
    pixels, others = (next(iter(loaded.batches("test", 2)))[0] for loaded in (both, alone))
    assert isinstance(both, data.StreamedData) and torch.equal(pixels, others)
