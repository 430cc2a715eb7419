"""Decode class folders of images into one tensor, with a pool of threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from srr_ext.data.dataset import Split
from srr_ext.progress import Progress, silent

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}
_LARGE = 4 << 30  # bytes of decoded images above which the answer is an error instead of a machine without memory


def read_folder(
    root: Path, image_size: int | None = None, test_only: bool = False, progress: Progress | None = None
) -> tuple[tuple[str, ...], Split, Split]:
    """Read ``root/train`` and ``root/test`` (or ``root/val``), one sub-folder per class.

    Parameters
    ----------
    root : Path
        The folder.
    image_size : int, optional
        Scale the shorter side to this many pixels and keep the centre square. Default: the images must have one
        size and are taken as they are.
    test_only : bool, default False
        Leave the training split empty; its folder must still be there.
    progress : Progress, optional
        Shows how many images are decoded.

    Returns
    -------
    classes : tuple of str
        Sub-folder names, sorted; a label is a position in this tuple.
    train, test : Split
        In the order of the sorted paths.

    Raises
    ------
    ValueError
        Missing or empty folders, classes that differ, images that cannot be read or differ in size.
    """
    if not root.is_dir():
        raise ValueError(f"data: there is no folder {root}")
    train_root = root / "train"
    test_root = root / "test" if (root / "test").is_dir() else root / "val"
    if not train_root.is_dir() or not test_root.is_dir():
        raise ValueError(f"data: {root} needs folders train/ and test/ (or val/), with one folder per class in each")
    classes, train_files = _list(train_root)
    test_classes, test_files = _list(test_root)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise ValueError(f"data: {train_root} and {test_root} have different classes, such as {odd[0]}")
    test = _decode(test_files, image_size, progress)
    train = test.take(torch.arange(0)) if test_only else _decode(train_files, image_size, progress)
    if train.images.shape[2:] != test.images.shape[2:] and not test_only:
        raise ValueError(f"data: the images of {train_root} and {test_root} differ in size; set --image-size")
    return classes, train, test


def _list(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Return the class names and every image file with its label."""
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    if not classes:
        raise ValueError(f"data: {root} has no class folders")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"data: the class folder {root / name} holds no images")
        files += [(path, label) for path in found]
    return classes, files


def _decode(files: list[tuple[Path, int]], image_size: int | None, progress: Progress | None) -> Split:
    """Decode all files into one uint8 tensor [n, 3, h, w]."""
    first = _read(files[0][0], image_size)
    if (size := len(files) * first.nbytes) > _LARGE:
        raise ValueError(f"data: {len(files)} images need {size / 2**30:.0f} GiB of memory; use a smaller --image-size")
    pixels = np.empty((len(files), *first.shape), np.uint8)  # [n, h, w, 3]

    def load(index: int) -> None:
        path = files[index][0]
        image = _read(path, image_size)
        if image.shape != first.shape:
            sizes = f"{first.shape[1]}x{first.shape[0]} and {image.shape[1]}x{image.shape[0]}"
            raise ValueError(f"data: images differ in size ({sizes}, {path}); set --image-size to bring them to one")
        pixels[index] = image

    name = files[0][0].parents[1].name
    with ThreadPoolExecutor(os.cpu_count()) as pool, (progress or silent()).stage(f"decode {name}", len(files)) as step:
        for _ in pool.map(load, range(len(files))):
            step()
    labels = torch.tensor([label for _, label in files])
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)


def _read(path: Path, image_size: int | None) -> np.ndarray:
    """Return one image as uint8 [h, w, 3]."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"data: {path} cannot be read as an image ({error})") from error
    if image_size is not None:
        scale = image_size / min(rgb.size)
        width, height = (max(image_size, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        rgb = rgb.crop((left, top, left + image_size, top + image_size))
    return np.asarray(rgb)
