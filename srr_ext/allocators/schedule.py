"""In which order the vertices of a group would go, where that stops, and which stops are hardware-friendly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from srr_ext.channels.records import ChannelGroup

Floor = float | Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The removals a group offers, first to last.

    Attributes
    ----------
    order : ndarray of int64, shape [size]
        All vertices, in the order in which they go: least important first, ties to the lowest index, and last the
        vertices that the floor protects.
    limit : int
        How many vertices may go at most; the rest is the group's floor.
    settled : ndarray of int64, shape [limit + 1]
        ``settled[k]``: how many of the first ``k`` removals take effect, given that channel counts are to be multiples.
    """

    order: np.ndarray
    limit: int
    settled: np.ndarray

    @property
    def size(self) -> int:
        """Number of vertices of the group."""
        return len(self.order)

    def kept(self, count: int) -> np.ndarray:
        """Return the vertices that stay when ``count`` are kept, int64, ascending."""
        return np.sort(self.order[self.size - count :])


def make_schedules(
    groups: Sequence[ChannelGroup], importance: Sequence[np.ndarray], floor: Floor, round_to: int
) -> list[Schedule]:
    """Put the vertices of every group in their order of removal.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    importance : sequence of ndarray of float64, shape [group.size]
        Importance per group, higher = keep.
    floor : float or mapping of str to float
        Share of a group's vertices that always stays, at least one, for all groups or by name (groups without one: just
        one vertex). The same share of the channels of each member stays: where a stream passes a layer that has only
        part of its channels, that layer is not emptied.
    round_to : int
        Producers keep a multiple of this many channels, or all of them.

    Returns
    -------
    list of Schedule
        One per group.
    """
    schedules = []
    for group, scores in zip(groups, importance, strict=True):
        least = floor.get(group.name, 0.0) if isinstance(floor, Mapping) else floor
        share = Fraction(repr(float(least)))  # the decimal as written: 0.1 of 30 is 3, not 4
        ascending = np.argsort(scores, kind="stable")
        protected = _protected(group, ascending, share)
        order = np.concatenate([ascending[~protected[ascending]], ascending[protected[ascending]]])
        limit = group.size - int(protected.sum())
        schedules.append(Schedule(order, limit, _settled(group, order[:limit], round_to)))
    return schedules


def _protected(group: ChannelGroup, ascending: np.ndarray, share: Fraction) -> np.ndarray:
    """Mask of the vertices that stay: of each member's vertices, and of all, the most important ``share``."""
    protected = np.zeros(group.size, dtype=bool)
    for present in (np.arange(group.size), *(member.vertex[member.vertex >= 0] for member in group.members)):
        mine = ascending[np.isin(ascending, present)]
        protected[mine[len(mine) - max(1, math.ceil(share * len(mine))) :]] = True
    return protected


def _settled(group: ChannelGroup, removals: np.ndarray, round_to: int) -> np.ndarray:
    """For each k, the largest number of removals up to k that leaves every producer a multiple, or whole."""
    fits = np.ones(len(removals) + 1, dtype=bool)
    for member in group.producers:
        per_vertex = np.bincount(member.vertex[member.vertex >= 0], minlength=group.size)
        gone = np.concatenate([[0], np.cumsum(per_vertex[removals])])
        width = len(member.vertex)
        fits &= ((width - gone) % round_to == 0) | (gone == 0)
    return np.maximum.accumulate(np.where(fits, np.arange(len(fits)), 0))
