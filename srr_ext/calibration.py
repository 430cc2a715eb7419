"""The images that a decision may look at: what selectors measure on, and what allocators check on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map

Batch = tuple[Any, Tensor]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches for the methods that look at images; never of the test images.

    Parameters
    ----------
    train : iterable of (inputs, targets)
        What scores are measured on. It is gone through several times and has to give the same batches each time: a
        list, say. ``inputs`` are a tensor, a tuple or a dict, as for ``example_inputs``; every batch of the same size,
        so that means over batches are means over images.
    validation : iterable of (inputs, targets), optional
        Images that were not trained on, for methods that measure accuracy.
    loss : callable, default cross-entropy
        ``loss(outputs, targets)``, a scalar: the mean over the batch.

    Raises
    ------
    TypeError
        If ``train`` or ``validation`` can be gone through only once, or ``loss`` is not callable.
    """

    train: Iterable[Batch]
    validation: Iterable[Batch] = ()
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy

    def __post_init__(self) -> None:
        """Check what can be checked before anything runs."""
        for name in ("train", "validation"):
            batches = getattr(self, name)
            if not isinstance(batches, Iterable) or isinstance(batches, (Iterator, Tensor, str)):
                raise TypeError(
                    f"{name}: expected batches that can be gone through again, a list say, got {type(batches).__name__}"
                )
        if not callable(self.loss):
            raise TypeError(f"loss: expected a callable, got {type(self.loss).__name__}")

    @classmethod
    def of(cls, data: Calibration | Iterable[Batch] | None) -> Calibration | None:
        """Return calibration data as they are, or make them of batches to score on."""
        return data if data is None or isinstance(data, cls) else cls(data)  # type: ignore[arg-type]  # batches


def batches_on(device: torch.device, batches: Iterable[Batch], what: str) -> Iterator[Batch]:
    """Go through batches on a device.

    Raises
    ------
    ValueError
        If there is none, where ``what`` says which are missing, or one of them holds no images.
    TypeError
        If a batch is no pair of inputs and targets.
    """
    empty = True
    for number, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"data: expected batches of (inputs, targets), got {type(batch).__name__}")
        empty = False
        first = next((leaf for leaf in tree_leaves(batch[0]) if isinstance(leaf, Tensor)), None)
        if first is not None and first.ndim and not len(first):
            raise ValueError(f"data: batch {number} of the {what} holds no images; leave empty batches out")
        inputs, targets = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tuple(batch))
        yield inputs, targets
    if empty:
        raise ValueError(f"data: holds no {what}")
