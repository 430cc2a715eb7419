"""What training makes small: cross entropy with the labels, and with the scores of a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from srr_ext.training.config import TrainConfig


def training_loss(config: TrainConfig, scores: Tensor, labels: Tensor, taught: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch.

    Parameters
    ----------
    config : TrainConfig
        Its ``label_smoothing``, ``distill`` and ``temperature`` count.
    scores : Tensor, shape [b, n_classes]
        Of the network; computed with in float32 at least.
    labels : Tensor of int64, shape [b]
        Class indices.
    taught : Tensor, shape [b, n_classes], optional
        Scores of the teacher; wanted where ``distill`` is above 0.

    Returns
    -------
    Tensor
        A scalar: (1 - distill) * cross entropy + distill * :func:`distillation_loss`.

    Raises
    ------
    ValueError
        ``distill`` is above 0 and there are no scores of a teacher, or ones of another shape.
    """
    scores = _at_least_single(scores)
    if not config.distill:
        return F.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
    if taught is None:
        raise ValueError(f"distill is {config.distill}, which needs a teacher; pass one or set distill to 0")
    loss = config.distill * distillation_loss(scores, taught, config.temperature)
    if config.distill < 1:
        loss = loss + (1 - config.distill) * F.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
    return loss


def distillation_loss(scores: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return how far the softened scores of a student are from those of its teacher.

    Parameters
    ----------
    scores, taught : Tensor, shape [b, n_classes]
        Of the student and of the teacher.
    temperature : float
        What both are divided by.

    Returns
    -------
    Tensor
        A scalar: T^2 KL(softmax(taught / T) || softmax(scores / T)), the mean over the batch. The factor keeps the
        size of the gradient independent of T.

    Raises
    ------
    ValueError
        The shapes differ.

    References
    ----------
    Hinton, Vinyals, Dean: Distilling the knowledge in a neural network. arXiv 1503.02531, 2015.
    """
    if scores.shape != taught.shape:
        raise ValueError(
            f"teacher gives scores of shape {list(taught.shape)} where the network gives {list(scores.shape)};"
            " take a teacher of the same classes"
        )
    student = F.log_softmax(_at_least_single(scores) / temperature, 1)
    teacher = F.log_softmax(_at_least_single(taught) / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _at_least_single(scores: Tensor) -> Tensor:
    """Return half-precision scores in float32, others as they are: sums of exponentials need the digits."""
    return scores.float() if scores.itemsize < 4 else scores
