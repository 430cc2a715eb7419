"""Leave out the images that cannot be read: all are looked at before any is used.

Splits, order and counts then follow from the files alone, and whoever decodes the images later meets none of these.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from srr_ext.data.base import BadImage, Skipped
from srr_ext.data.folder import ImageFiles, check_image
from srr_ext.progress import Progress, silent

_RUN = 100  # images of a task: a million small tasks would take gigabytes

Found = tuple[int, str]  # position of an image, and why it cannot be read


def leave_out_corrupt(
    train: ImageFiles, test: ImageFiles, *, test_only: bool = False, progress: Progress | None = None
) -> tuple[ImageFiles, ImageFiles, Skipped]:
    """Decode every image once, in a pool of threads, and leave out those that cannot be read.

    Parameters
    ----------
    train, test : ImageFiles
        What is listed.
    test_only : bool, default False
        Whether to take the training images as they are.
    progress : Progress, optional
        Shows how many are looked at.

    Returns
    -------
    train, test : ImageFiles
        Without them, in the same order and with the same classes.
    skipped : Skipped
        How many were left out, and the first of them: of the training images first, in the order of the files.

    Raises
    ------
    ValueError
        No image of a class can be read, or an image cannot be read for a reason that is not its own: a file that is
        gone or forbidden, a disk that fails, memory that is full. Such files may be all right.
    """
    found = [[] if test_only else _corrupt(train, progress), _corrupt(test, progress)]
    first = next((reason for part in found for _, reason in part), "")
    kept = [_without(files, part) for files, part in zip((train, test), found, strict=True)]
    return kept[0], kept[1], Skipped(len(found[0]), len(found[1]), first)


def _corrupt(files: ImageFiles, progress: Progress | None) -> list[Found]:
    """Find the images that cannot be read, in the order of the files."""

    def check(start: int) -> tuple[int, list[Found]]:
        end = min(start + _RUN, len(files))
        reasons = ((index, _why_not(files.path(index))) for index in range(start, end))
        return end - start, [(index, reason) for index, reason in reasons if reason]

    found: list[Found] = []
    name = f"check {files.root.name}"
    with ThreadPoolExecutor(os.cpu_count()) as pool, (progress or silent()).stage(name, len(files)) as step:
        for n, part in pool.map(check, range(0, len(files), _RUN)):
            step(n)
            found += part
    return found


def _why_not(path: Path) -> str:
    """Return the path of an image and why it cannot be read; nothing if it can."""
    try:
        check_image(path)
    except BadImage as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None):
            raise  # the file may be all right: Pillow's own OSErrors, of what is in a file, have no number
        return f"{path} ({cause})"
    return ""


def _without(files: ImageFiles, corrupt: Sequence[Found]) -> ImageFiles:
    """Return the files without these; a ValueError if a class is empty then."""
    stays = torch.ones(len(files), dtype=torch.bool)
    stays[[index for index, _ in corrupt]] = False
    kept = replace(files, names=files.names[stays.numpy()], labels=files.labels[stays])
    counts = torch.bincount(kept.labels, minlength=len(files.classes))
    for index, reason in corrupt:
        label = int(files.labels[index])
        if not counts[label]:
            folder = files.root / files.classes[label]
            raise ValueError(f"data: no image of the class folder {folder} can be read, such as {reason}")
    return kept
