"""Which sizes of an operation follow which groups of channels, and between which of them it is enough to measure."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product
from math import lcm

from srr_ext.latency_table.operations import Operation, TensorPart

Shares = tuple[tuple[str, Fraction], ...]  # per group: which share of a size goes with each of its vertices

_FINE_BLOCKS = 8  # up to so many vector widths, both ends of every one are measured


@dataclass(frozen=True, eq=False)
class Family:
    """One operation at all the sizes that cuts may give it.

    Attributes
    ----------
    operation : Operation
        At full size.
    full : tuple of int
        For each of its axes, the number of steps at full size; each axis is a set of sizes that shrink together.
    axis_of : dict of int to int
        For each of the operation's numbers that shrinks, its axis.
    block : int
        Channels that the device computes at once: times go up by steps of so many.
    """

    operation: Operation
    full: tuple[int, ...]
    axis_of: Mapping[int, int]
    block: int

    def at(self, steps: Sequence[int]) -> Operation:
        """Return the operation with so many steps left on each axis."""
        numbers = list(self.operation.numbers)
        for slot, axis in self.axis_of.items():
            numbers[slot] = max(1, round(Fraction(numbers[slot] * steps[axis], self.full[axis])))
        return self.operation.resized(numbers)

    def corners(self, steps: Sequence[int]) -> list[tuple[tuple[int, ...], float]]:
        """Return the measured points around some steps, with their weights: linear on each axis."""
        per_axis = []
        for here, full in zip(steps, self.full, strict=True):
            points = knots(full, self.block)
            above = bisect.bisect_left(points, here)
            high = points[above]
            low = high if high == here else points[above - 1]
            weight = 1.0 if low == high else (here - low) / (high - low)
            per_axis.append([(high, weight)] if low == high else [(low, 1 - weight), (high, weight)])
        found = []
        for corner in product(*per_axis):
            weight = 1.0
            for _, part in corner:
                weight *= part
            found.append((tuple(point for point, _ in corner), weight))
        return found

    def diagonal(self, keep: float) -> list[tuple[int, ...]]:
        """Return the measured points that plans of the same share everywhere come by, down to a share of each axis."""
        points: dict[tuple[int, ...], None] = {}
        finest = max(self.full, default=1)
        for step in [k for k in knots(finest, self.block) if k >= keep * finest] or [finest]:
            here = [max(1, round(full * step / finest)) for full in self.full]
            points.update(dict.fromkeys(corner for corner, _ in self.corners(here)))
        return list(points)


@dataclass(frozen=True, eq=False)
class Placed:
    """An operation of a network: its family, and how the groups move it.

    Attributes
    ----------
    family : Family
        What it is.
    shares : tuple
        For each axis, per group, which share of the axis goes with each vertex.
    """

    family: Family
    shares: tuple[Shares, ...]

    def steps(self, gone: Mapping[str, int]) -> tuple[int, ...]:
        """Return the steps left on each axis when so many vertices of each group are gone."""
        left = []
        for full, shares in zip(self.family.full, self.shares, strict=True):
            lost = sum((share * gone.get(group, 0) for group, share in shares), start=Fraction(0))
            left.append(max(1, full - round(full * lost)))
        return tuple(left)


def place(
    operations: Sequence[Operation],
    whole: Sequence[Operation],
    cut: Callable[[str], Sequence[Operation]],
    removed: Mapping[str, int],
    block: int,
) -> list[Placed]:
    """Find out by trial which sizes follow which groups.

    Parameters
    ----------
    operations : sequence of Operation
        Of the dense network, for the batch that counts.
    whole : sequence of Operation
        Of the dense network, for the inputs of the trials.
    cut : callable
        Returns, for the name of a group, the operations of the network without some vertices of it.
    removed : mapping of str to int
        How many these are.
    block : int
        See `Family`.

    Returns
    -------
    list of Placed
        One per operation; equal ones have the same family.

    Raises
    ------
    ValueError
        If a cut network does other operations than the dense one.

    Notes
    -----
    With :math:`n` the size in the dense network and :math:`n'` without :math:`r` vertices of a group, each vertex is
    worth the share :math:`(n - n') / (r n)`, which is exact where all vertices have equally many channels in a layer,
    and a mean where they have not. Sizes with the same shares of the same groups are one axis, which goes down by steps
    of one vertex where these are the coarser ones: 3 channels at once in a convolution of 3 groups that all lose one
    together, as torch computes no other numbers of channels there. An operation with more
    than two axes, a concatenation of many inputs say, has one instead: the mean of them, weighted by their sizes.
    """
    shares: list[dict[int, dict[str, Fraction]]] = [{} for _ in operations]
    _check_same(operations, whole, "for a batch")
    for group, count in removed.items():
        smaller = cut(group)
        _check_same(whole, smaller, f"without channels of {group}")
        for at, (before, after) in enumerate(zip(whole, smaller, strict=True)):
            for slot, (n, m) in enumerate(zip(before.numbers, after.numbers, strict=True)):
                if n > m > 0:
                    shares[at].setdefault(slot, {})[group] = Fraction(n - m, count * n)
    families: dict[tuple[object, ...], Family] = {}
    placed = []
    for operation, of_slots in zip(operations, shares, strict=True):
        axes: dict[Shares, list[int]] = {}
        for slot, of_groups in of_slots.items():
            axes.setdefault(tuple(of_groups.items()), []).append(slot)
        finest = min
        if len(axes) > 2:
            axes, finest = {_mean(operation, axes): list(of_slots)}, max
        full = tuple(
            min(finest(operation.numbers[slot] for slot in slots), lcm(*(share.denominator for _, share in shares)))
            for shares, slots in axes.items()
        )
        axis_of = {slot: axis for axis, slots in enumerate(axes.values()) for slot in slots}
        name = (operation.key, full, tuple(sorted(axis_of.items())))
        family = families.setdefault(name, Family(operation, full, axis_of, block))
        placed.append(Placed(family, tuple(axes)))
    return placed


@cache
def knots(full: int, block: int) -> tuple[int, ...]:
    """Return the numbers of steps at which an axis is measured, ascending, the full one last.

    Times of convolutions on a CPU go up by steps of the vector width: 17 channels cost what 32 cost, where 16 numbers
    are computed at once. So both ends of such a block are measured, five points within the first, and from the ninth
    on, where a block is little beside the whole, only the ends of some.
    """
    points = {1, *(max(1, block * quarter // 4) for quarter in (1, 2, 3, 4))}
    for number in range(1, _FINE_BLOCKS):
        points |= {block * number + 1, block * (number + 1)}
    number = _FINE_BLOCKS
    while block * number < full:
        points.add(block * number)
        number += max(1, 1 << (number.bit_length() - 3))  # four to eight for every doubling
    return (*sorted(point for point in points if point < full), full)


def _mean(operation: Operation, axes: Mapping[Shares, Sequence[int]]) -> Shares:
    """Return the shares of all axes together, each weighted by its largest size."""
    weights = {shares: max(operation.numbers[slot] for slot in slots) for shares, slots in axes.items()}
    total: dict[str, Fraction] = {}
    for shares, weight in weights.items():
        for group, share in shares:
            total[group] = total.get(group, Fraction(0)) + share * Fraction(weight, sum(weights.values()))
    return tuple(total.items())


def _check_same(first: Sequence[Operation], second: Sequence[Operation], when: str) -> None:
    """Refuse a model that does other operations for another size."""
    if len(first) != len(second) or any(_form(a) != _form(b) for a, b in zip(first, second, strict=True)):
        raise ValueError(
            f"keep_latency: the model does other operations {when}, so that their times cannot be added up; "
            "take keep_macs"
        )


def _form(operation: Operation) -> tuple[object, ...]:
    """Return what has to agree: the operator and the kinds of its arguments, but not how they lie in memory."""
    parts = operation.parts
    return (operation.operator, *(len(p.order) if isinstance(p, TensorPart) else type(p) for p in parts))
