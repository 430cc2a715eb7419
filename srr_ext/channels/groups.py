"""From classes of labels to groups: which vertices there are and where each lies in every module."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from srr_ext.channels.labels import KEPT, LabelSpace
from srr_ext.channels.records import NO_VERTEX, ChannelGroup, Member, Pin, Role
from srr_ext.channels.trace import AxisNote, Notes

ROLE_ORDER: tuple[Role, ...] = ("producer", "follower", "consumer")


def pin_dead_ends(space: LabelSpace, notes: Notes) -> None:
    """Keep channels that no layer was seen to read: what becomes of them is unknown."""
    read = {root for note in notes.axes.values() if note.role == "consumer" for root in _roots(space, note).tolist()}
    for note in notes.axes.values():
        if note.role == "producer":
            unread = [root not in read for root in _roots(space, note).tolist()]
            space.pin(note.labels[torch.tensor(unread, dtype=torch.bool)], "no layer was seen to read it")


def build_groups(space: LabelSpace, notes: Notes) -> tuple[tuple[ChannelGroup, ...], tuple[Pin, ...]]:
    """Gather the removable classes into groups, in order of execution.

    Producers that share a removable class are in one group; its vertices are their removable classes. Where a side of
    a module could lose all its channels to removals that leave the group alive, one of its vertices is pinned.
    """
    while True:
        groups, emptied = _gather(space, notes)
        if not emptied:
            return groups, _pins(space, notes)
        for note in emptied:
            if not any(space.find(label) in space.pinned_classes() for label in note.labels.tolist()):
                space.pin(note.labels[:1], f"{note.module} must keep a channel")


def _roots(space: LabelSpace, note: AxisNote) -> np.ndarray:
    return space.roots(note.labels).numpy()


def _gather(space: LabelSpace, notes: Notes) -> tuple[tuple[ChannelGroup, ...], list[AxisNote]]:
    """Build groups from the present pins; also return the axes that a group could empty."""
    free = np.ones(len(space), dtype=bool)
    free[[KEPT, *space.pinned_classes()]] = False
    roots = {key: _roots(space, note) for key, note in notes.axes.items()}
    producers = [key for key, note in notes.axes.items() if note.role == "producer"]

    family = np.full(len(space), NO_VERTEX, dtype=np.int64)  # class -> position of its group's first producer
    for position, key in enumerate(producers):
        mine = roots[key][free[roots[key]]]
        for earlier in np.unique(family[mine]):
            if earlier != NO_VERTEX:
                family[family == earlier] = position
        family[mine] = position
    vertex = np.full(len(space), NO_VERTEX, dtype=np.int64)  # class -> vertex within its group
    names: dict[int, str] = {}
    sizes: Counter[int] = Counter()
    for key in producers:
        for root in roots[key].tolist():
            number = int(family[root])
            if number != NO_VERTEX and vertex[root] == NO_VERTEX:
                names.setdefault(number, key[0])
                vertex[root] = sizes[number]
                sizes[number] += 1

    members: dict[int, list[Member]] = {number: [] for number in names}
    emptied = []
    for key, note in notes.axes.items():
        numbers = family[roots[key]]
        for number in np.unique(numbers[numbers != NO_VERTEX]).tolist():
            here = np.where(numbers == number, vertex[roots[key]], NO_VERTEX)
            members[number].append(Member(note.module, note.side, note.role, here))
            if (numbers == number).all() and len(np.unique(here)) < sizes[number]:
                emptied.append(note)
    streams = {int(family[root]) for root in space.stream_classes()}
    groups = []
    for number, name in names.items():
        ordered = sorted(members[number], key=lambda member: ROLE_ORDER.index(member.role))
        groups.append(ChannelGroup(name, sizes[number], tuple(ordered), number in streams))
    return tuple(groups), emptied


def _pins(space: LabelSpace, notes: Notes) -> tuple[Pin, ...]:
    reasons = space.pinned_classes()
    pins = []
    for note in notes.axes.values():
        if note.role == "producer":
            found = Counter(reasons[root] for root in _roots(space, note).tolist() if root in reasons)
            pins += [Pin(note.module, count, reason) for reason, count in found.items()]
    return tuple(pins)
