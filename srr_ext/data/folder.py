"""Class folders of images: list them, check them, decode them into one tensor or one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srr_ext.data.base import BadImage, as_rgb
from srr_ext.data.tensors import Split
from srr_ext.progress import Progress, silent

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}
_RUN = 500


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files below one folder, in the order of their sorted paths; a map-style data set of (PIL image, label).

    Attributes
    ----------
    root : Path
        The folder with one sub-folder per class.
    classes : tuple of str
        Sub-folder names, sorted; a label is a position in this tuple.
    names : numpy.ndarray of bytes, shape [n]
        Paths below ``root``. One array instead of a million strings, which worker processes would each copy.
    labels : Tensor of int64, shape [n]
        Class indices.
    """

    root: Path
    classes: tuple[str, ...]
    names: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an image in RGB and its label; a ValueError that names the file if it cannot be read."""
        return read_image(self.path(index)), int(self.labels[index])

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / os.fsdecode(self.names[index])


def list_folder(root: Path, test: str | None = None) -> tuple[ImageFiles, ImageFiles]:
    """List the images of ``root/train`` and of a test folder, each with one sub-folder per class.

    Names that begin with a dot are left out.

    Parameters
    ----------
    root : Path
        The folder.
    test : str, optional
        Name of the test folder; default ``test``, or ``val`` where there is no ``test``.

    Returns
    -------
    train, test : ImageFiles
        With the same classes.

    Raises
    ------
    ValueError
        Missing or empty folders, fewer than two classes, classes that differ.
    """
    if not root.is_dir():
        raise ValueError(f"data: there is no folder {root}")
    train_root = root / "train"
    test_root = root / (test or ("test" if (root / "test").is_dir() else "val"))
    if not train_root.is_dir() or not test_root.is_dir():
        raise ValueError(f"data: {root} needs folders train/ and test/ (or val/), with one folder per class in each")
    train, tests = _list(train_root), _list(test_root)
    if train.classes != tests.classes:
        odd = sorted(set(train.classes) ^ set(tests.classes))
        raise ValueError(f"data: {train_root} and {test_root} have different classes, such as {odd[0]}")
    if len(train.classes) < 2:
        raise ValueError(f"data: {train_root} has one class only, {train.classes[0]}; a classifier needs two or more")
    return train, tests


def _list(root: Path) -> ImageFiles:
    """Find every image file of every class folder."""
    with os.scandir(root) as entries:
        classes = tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))
    if not classes:
        raise ValueError(f"data: {root} has no class folders")
    names: list[bytes] = []
    counts = []
    for name in classes:
        found = []
        for folder, inner, files in os.walk(root / name, followlinks=True):
            inner[:] = [entry for entry in inner if not entry.startswith(".") and not _is_loop(folder, entry)]
            below = os.path.relpath(folder, root)
            found += [os.path.join(below, file) for file in files if not file.startswith(".") and _is_image(file)]
        if not found:
            raise ValueError(f"data: the class folder {root / name} holds no images")
        names += [os.fsencode(path) for path in sorted(found, key=lambda path: path.split(os.sep))]
        counts.append(len(found))
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
    return ImageFiles(root, classes, np.array(names), labels)


def _is_loop(folder: str, entry: str) -> bool:
    """Whether an entry of a folder links back to this folder or to one above it."""
    path = os.path.join(folder, entry)
    return os.path.islink(path) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path))


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in SUFFIXES


def common_size(parts: list[ImageFiles], progress: Progress | None = None) -> tuple[int, int]:
    """Return height and width of the images from their headers alone, without decoding them.

    Parameters
    ----------
    parts : list of ImageFiles
        Whose images are compared.
    progress : Progress, optional
        Shows how many are looked at.

    Returns
    -------
    height, width : int

    Raises
    ------
    ValueError
        The images differ in size, or one of them cannot be read.
    """
    first = header_size(parts[0].path(0))
    # Hundreds at a time: a million small tasks would take gigabytes.
    runs = [(part, start) for part in parts for start in range(0, len(part), _RUN)]

    def check(run: tuple[ImageFiles, int]) -> int:
        part, start = run
        end = min(start + _RUN, len(part))
        for index in range(start, end):
            path = part.path(index)
            _check_size(header_size(path), first, path)
        return end - start

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        (progress or silent()).stage("sizes", sum(map(len, parts))) as step,
    ):
        for n in pool.map(check, runs):
            step(n)
    return first


def decode(files: ImageFiles, image_size: int | None, progress: Progress | None = None) -> Split:
    """Decode all files into one tensor, with a pool of threads.

    Parameters
    ----------
    files : ImageFiles
        What to read.
    image_size : int, optional
        Scale the shorter side to this many pixels and keep the centre square. Default: the images must have one
        size and are taken as they are.
    progress : Progress, optional
        Shows how many images are decoded.

    Returns
    -------
    Split
        Images uint8 [n, 3, h, w], in the order of the files.

    Raises
    ------
    ValueError
        An image cannot be read, or images differ in size.
    """

    def read(index: int) -> np.ndarray:
        image = read_image(files.path(index))
        return np.asarray(image if image_size is None else scale_and_crop(image, image_size))

    first = read(0)
    pixels = np.empty((len(files), 3, *first.shape[:2]), np.uint8)

    def load(index: int) -> None:
        image = read(index)
        _check_size(image.shape[:2], first.shape[:2], files.path(index))
        pixels[index] = image.transpose(2, 0, 1)

    name = f"decode {files.root.name}"
    with ThreadPoolExecutor(os.cpu_count()) as pool, (progress or silent()).stage(name, len(files)) as step:
        for _ in pool.map(load, range(len(files))):
            step()
    return Split(torch.from_numpy(pixels), files.labels)


def read_image(path: Path) -> Image.Image:
    """Return one image in RGB, or raise a ValueError that names the file."""
    with _opened(path) as image:
        return as_rgb(image)


def header_size(path: Path) -> tuple[int, int]:
    """Return height and width from the header of an image file, or raise a ValueError that names it."""
    with _opened(path) as image:
        return image.height, image.width


def check_image(path: Path) -> None:
    """Raise a ValueError that names the file unless `read_image` can read all of it.

    A JPEG is decoded to an eighth of its size, which takes half the time and goes through all of its bytes alike.
    """
    with _opened(path) as image:
        image.draft(image.mode, (1, 1))
        as_rgb(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong while it is open becomes a ValueError that names it."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's readers raise half a dozen kinds for damaged files
        raise BadImage(f"data: {path} cannot be read as an image ({error})") from error


def scale_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side of an image to ``size`` pixels and keep the centre square."""
    factor = size / min(image.size)
    width, height = (max(size, round(side * factor)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _check_size(found: tuple[int, ...], wanted: tuple[int, ...], path: Path) -> None:
    if found != wanted:
        sizes = f"{wanted[1]}x{wanted[0]} and {found[1]}x{found[0]}"
        raise BadImage(f"data: images differ in size ({sizes}, {path}); set --image-size to bring them to one")
