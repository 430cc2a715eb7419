"""Accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from srr_ext.data import ImageData
from srr_ext.progress import Progress, silent
from srr_ext.training.devices import device_of
from srr_ext.training.lending import in_mode

_EVAL_BATCH = 200  # large enough to keep a CPU or GPU busy, small enough that activations stay in cache


def evaluate(
    model: nn.Module,
    data: ImageData,
    split: str = "test",
    *,
    batch_size: int = _EVAL_BATCH,
    stage: str = "evaluate",
    progress: Progress | None = None,
) -> float:
    """Measure top-1 accuracy; see :func:`evaluate_topk` for the parameters and errors.

    Returns
    -------
    float
        Percent.
    """
    found = evaluate_topk(model, data, split, topk=(1,), batch_size=batch_size, stage=stage, progress=progress)
    return found["top1"]


@torch.no_grad()
def evaluate_topk(
    model: nn.Module,
    data: ImageData,
    split: str = "test",
    *,
    topk: Sequence[int] = (1, 5),
    batch_size: int = _EVAL_BATCH,
    stage: str = "evaluate",
    progress: Progress | None = None,
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

    Returns
    -------
    dict of str to float
        Percent by ``top1``, ``top5`` and so on, in the order of ``topk``.

    Raises
    ------
    ValueError
        The split holds no images, or a k is below 1.
    """
    from torchmetrics.classification import MulticlassAccuracy

    if not topk or min(topk) < 1:
        raise ValueError(f"topk must name numbers of at least 1, but is {tuple(topk)}")
    if not data.size(split):
        raise ValueError(f"split {split!r} of {data.name} holds no images")
    device = device_of(model)
    batches = data.batches(split, batch_size, device=device)
    kept = [k for k in topk if k == 1 or k < len(data.classes)]
    accuracy: dict[str, MulticlassAccuracy] = {}
    with in_mode(model, training=False), (progress or silent()).stage(stage, len(batches)) as step:
        for images, labels in batches:
            scores = model(images)
            if not accuracy:  # here the number of scores is known, which may be above that of the classes
                n = scores.shape[1]
                for k in kept:
                    metric = MulticlassAccuracy(n, top_k=k, average="micro", validate_args=False)
                    accuracy[f"top{k}"] = metric.to(device)
            for metric in accuracy.values():
                metric.update(scores, labels)
            step()
    n_images = data.size(split)  # torchmetrics divides in float32: 99.2 % would be 99.19999838 %
    return {name: 100 * round(float(metric.compute()) * n_images) / n_images for name, metric in accuracy.items()}
