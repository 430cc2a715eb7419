"""Accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from srr_ext.data import Batches, ImageData
from srr_ext.processes import ALONE, Processes
from srr_ext.progress import Progress, Step, silent
from srr_ext.training.devices import device_of
from srr_ext.training.lending import in_mode

if TYPE_CHECKING:  # it takes a second, and most users of the package do not train
    from torchmetrics.classification import MulticlassAccuracy

EVAL_BATCH = 200  # large enough to keep a CPU or GPU busy, small enough that activations stay in cache


def evaluate(
    model: nn.Module,
    data: ImageData,
    split: str = "test",
    *,
    batch_size: int = EVAL_BATCH,
    stage: str = "evaluate",
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> float:
    """Measure top-1 accuracy; see :func:`evaluate_topk` for the parameters and errors.

    Returns
    -------
    float
        Percent.
    """
    found = evaluate_topk(
        model, data, split, topk=(1,), batch_size=batch_size, stage=stage, progress=progress, processes=processes
    )
    return found["top1"]


@torch.no_grad()
def evaluate_topk(
    model: nn.Module,
    data: ImageData,
    split: str = "test",
    *,
    topk: Sequence[int] = (1, 5),
    batch_size: int = EVAL_BATCH,
    stage: str = "evaluate",
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Measure how often the right class is among the k highest scores.

    Parameters
    ----------
    model : nn.Module
        Maps images [b, c, h, w] to class scores; used where it is, in evaluation mode, and left as it was.
    data : ImageData
        The images.
    split : {"test", "validation", "train"}, default "test"
        Which of them, without augmentation.
    topk : sequence of int, default (1, 5)
        Each at least 1. Those above 1 that are not below the number of classes are left out: they say nothing.
    batch_size : int, default 200
        Images per step.
    stage : str, default "evaluate"
        What progress calls this evaluation.
    progress : Progress, optional
        Shows the steps.
    processes : Processes, default this one alone
        Among whom the images are divided; all of them have to call this, and each gets the accuracy on all images.

    Returns
    -------
    dict of str to float
        Percent by ``top1``, ``top5`` and so on, in the order of ``topk``.

    Raises
    ------
    ValueError
        The split holds no images, a k is below 1, or the model does not score every class.
    TypeError
        The model gives something else than scores.
    """
    if not topk or min(topk) < 1:
        raise ValueError(f"topk must name numbers of at least 1, but is {tuple(topk)}")
    if not data.size(split):
        raise ValueError(f"split {split!r} of {data.name} holds no images")
    batches = data.batches(split, batch_size, device=device_of(model)).divided(processes)
    with (progress or silent()).stage(stage, len(batches)) as step:
        return accuracy_on(model, batches, len(data.classes), topk, step)


@torch.no_grad()
def accuracy_on(
    model: nn.Module, batches: Batches, n_classes: int, topk: Sequence[int] = (1,), step: Step | None = None
) -> dict[str, float]:
    """Measure on batches that are there, for whoever measures often: their worker processes then stay.

    Parameters
    ----------
    model : nn.Module
        On the device of the batches; used in evaluation mode, and left as it was.
    batches : Batches
        At least one; one pass is made. Where they are divided among processes, all have to call this, and each gets the
        accuracy on all images.
    n_classes : int
        Of the labels.
    topk : sequence of int, default (1,)
        See :func:`evaluate_topk`.
    step : callable, optional
        Called after every batch.

    Returns
    -------
    dict of str to float
        Percent, see :func:`evaluate_topk`.
    """
    from torchmetrics.classification import MulticlassAccuracy

    kept = [k for k in topk if k == 1 or k < n_classes]
    accuracy: dict[str, MulticlassAccuracy] = {}
    n_images = 0
    with in_mode(model, training=False):
        for images, labels in batches:
            scores = model(images)
            check_scores(scores, n_classes)
            scores = scores[: len(labels)]
            n_images += len(labels)
            if not accuracy:  # here the number of scores is known, which may be above that of the classes
                n = scores.shape[1]
                for k in kept:
                    metric = MulticlassAccuracy(n, top_k=k, average="micro", validate_args=False, sync_on_compute=False)
                    accuracy[f"top{k}"] = metric.to(scores.device)
            for metric in accuracy.values() if len(labels) else ():  # they cannot take none
                metric.update(scores, labels)
            if step is not None:
                step()
    right = [count(accuracy[f"top{k}"], n_images) if n_images else 0 for k in kept]
    *right_all, n_all = batches.processes.sum(*right, n_images)
    return {f"top{k}": 100 * found / n_all for k, found in zip(kept, right_all, strict=True)}


def count(accuracy: MulticlassAccuracy, n_images: int) -> int:
    """Return how many of the images that a metric has seen were right; it divides in float32."""
    return round(float(accuracy.compute()) * n_images)


def check_scores(scores: object, n_classes: int) -> None:
    """Raise an error unless a network gave scores [b, n] of at least ``n_classes`` classes."""
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
        given = f"a tensor {list(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise TypeError(f"model must give scores [b, n_classes], in training mode as well, but gives {given}")
    if scores.shape[1] < n_classes:
        raise ValueError(f"model gives {scores.shape[1]} scores for an image, but there are {n_classes} classes")
