"""Channel labels: one integer per channel, the label tensors of activations, and the classes that labels merge into."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

KEPT = 0  # the label of everything that no plan removes: model inputs, fixed tensors, zero padding


class LabelSpace:
    """Union-find over labels. A class of labels is removed as a whole or, once pinned, not at all."""

    def __init__(self) -> None:
        self._parent: list[int] = [KEPT]
        self._added: set[int] = set()  # labels that met another by addition, the mark of a residual stream
        self.pinned: dict[int, str] = {}  # label -> the first reason it was given
        self.frozen = False  # while set, `unite` and `pin` do nothing

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> Tensor:
        """Make ``count`` fresh labels, int64 [count]."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count, device="cpu")

    def find(self, label: int) -> int:
        """Return the representative of the label's class: its smallest member."""
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def roots(self, labels: Tensor) -> Tensor:
        """Return the representatives of a whole label tensor, same shape."""
        unique, inverse = torch.unique(labels, return_inverse=True)
        return torch.tensor([self.find(label) for label in unique.tolist()], dtype=torch.int64, device="cpu")[inverse]

    def unite(self, first: Tensor, second: Tensor, reason: str, *, added: bool = False) -> None:
        """Merge the classes of labels that meet position by position; meeting ``KEPT`` pins.

        Parameters
        ----------
        first, second : Tensor of int64
            Labels, broadcast against each other.
        reason : str
            Why a label that meets ``KEPT`` has to stay.
        added : bool, default False
            Whether they meet in an addition.
        """
        if self.frozen:
            return
        pairs = torch.stack(torch.broadcast_tensors(first, second), -1).reshape(-1, 2)
        for a, b in torch.unique(pairs, dim=0).tolist():
            if a == b:
                continue
            if KEPT in (a, b):
                self.pinned.setdefault(a + b, reason)
                continue
            low, high = sorted((self.find(a), self.find(b)))
            self._parent[high] = low
            if added:
                self._added.add(a)

    def pin(self, labels: Tensor, reason: str) -> None:
        """Forbid the removal of these labels; the first reason given to a label is the one reported."""
        for label in torch.unique(labels).tolist():
            if label != KEPT and not self.frozen:
                self.pinned.setdefault(label, reason)

    def pinned_classes(self) -> dict[int, str]:
        """Map the representative of every class that holds a pinned label to the reason."""
        reasons: dict[int, str] = {}
        for label, reason in self.pinned.items():
            reasons.setdefault(self.find(label), reason)
        return reasons

    def stream_classes(self) -> set[int]:
        """Return the representatives of classes that additions made."""
        return {self.find(label) for label in self._added}


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one activation.

    Attributes
    ----------
    base : Tensor of int64, on the CPU
        As many dimensions as the activation, of size 1 along each dimension on which labels do not vary.
    shape : torch.Size
        Shape of the activation.
    lost_zero : str
        Empty while a removed channel's entries are exactly zero when its filters are zeroed; otherwise the operation
        after which they no longer are.
    """

    base: Tensor
    shape: torch.Size
    lost_zero: str = ""

    @property
    def full(self) -> Tensor:
        """The labels entry by entry, in the activation's shape (a broadcast view)."""
        return self.base.expand(self.shape)

    def with_loss(self, operation: str) -> Labels:
        """Return the same labels, marked as no longer zero unless they already were."""
        return self if self.lost_zero or not operation else replace(self, lost_zero=operation)

    def flat(self, axis: int) -> Tensor:
        """Labels along one dimension, int64 [shape[axis]]; the others must not distinguish classes."""
        base = self.base
        for dim in range(base.ndim):
            if dim != axis % base.ndim:
                base = base.narrow(dim, 0, 1)
        return base.reshape(-1).expand(self.shape[axis]).contiguous()


def squeeze_constant(full: Tensor) -> Tensor:
    """Shrink to size 1 every dimension along which a tensor does not vary."""
    for dim in range(full.ndim):
        if full.shape[dim] > 1:
            first = full.narrow(dim, 0, 1)
            if full.stride(dim) == 0 or bool((full == first).all()):
                full = first
    return full.contiguous()


def varying(base: Tensor) -> list[int]:
    """Dimensions of size above 1."""
    return [dim for dim, size in enumerate(base.shape) if size > 1]


def class_axis(space: LabelSpace, base: Tensor) -> int | None:
    """Return the one dimension that tells classes apart, None if all entries are of one class.

    A removal must take whole slices of a tensor. Where classes differ along several dimensions (after a view that
    splits channels into [groups, channels per group], say), the classes are merged along all but one of them: the one
    that leaves the most classes.
    """
    dims = varying(base)
    if len(dims) <= 1:
        return dims[0] if dims else None
    roots = squeeze_constant(space.roots(base))
    dims = varying(roots)
    if len(dims) <= 1:
        return dims[0] if dims else None

    def classes_left(keep: int) -> int:
        # Slices that share a class merge; counting distinct first entries is exact unless slices overlap partly.
        return len(torch.unique(roots.movedim(keep, 0).reshape(roots.shape[keep], -1)[:, 0]))

    keep = max(dims, key=lambda dim: (classes_left(dim), -dim))
    first = roots
    for dim in dims:
        if dim != keep:
            first = first.narrow(dim, 0, 1)
    space.unite(roots, first, "shares a slice with channels that never change")
    return keep


def compact(space: LabelSpace, labels: Labels, removed: np.ndarray) -> tuple[torch.Size, Tensor] | None:
    """Return the shape and base that an activation has once some classes are gone.

    None if that is no tensor: nothing is left, or the removal does not take whole slices.

    Parameters
    ----------
    space : LabelSpace
        The classes.
    labels : Labels
        The activation's labels before the removal.
    removed : ndarray of bool, shape [number of labels]
        Which labels go, closed under classes.
    """
    gone = torch.from_numpy(removed)[labels.base]
    if not bool(gone.any()):
        return labels.shape, labels.base
    if bool(gone.all()):
        return None
    axis = class_axis(space, labels.base)
    assert axis is not None  # several classes are present, so one dimension tells them apart
    others = [dim for dim in range(gone.ndim) if dim != axis]
    dropped = gone.any(others) if others else gone
    if others and not torch.equal(dropped, gone.all(others)):
        return None
    keep = (~dropped).nonzero().reshape(-1)
    shape = list(labels.shape)
    shape[axis] = len(keep)
    return torch.Size(shape), squeeze_constant(labels.base.index_select(axis, keep))
