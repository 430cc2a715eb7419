"""What the user has decided: how many channels each layer keeps."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.schedule import Schedule
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target


@dataclass(frozen=True)
class FromDict:
    """Keep in every layer what a mapping says, and everything in layers that it does not name.

    Parameters
    ----------
    keep : mapping of str to int or float, optional
        For a layer, by module name, or for a group, which has the name of its first layer: an integer is the number of
        output channels that the layer keeps; a float in (0, 1] the share of the group, rounded to the nearest number of
        vertices and then, for ``round_to``, up. In JSON, 1 is one channel and 1.0 is all.
    path : str, default ""
        A JSON file with such an object, instead: ``dict:path=keep.json`` on the command line.

    Raises
    ------
    ValueError
        If both are given, the file cannot be read, or a number is below one channel or a share outside (0, 1]. When
        called: if nothing is given, a name is unknown or its channels may not go, two names of one group disagree, a
        number is against ``floor`` or ``round_to`` or beyond the layer, or what is kept costs more than the target.
    TypeError
        If ``keep`` is no mapping, or an entry is no number.

    Notes
    -----
    The target is checked, not searched for: with ``keep_macs=1.0`` every mapping meets it. Any layer of a coupled group
    may give its name. Where several channels are one vertex, or some are pinned, an integer still counts the channels
    of the layer named, pinned ones included. ``info`` has ``keep``, as given.
    """

    keep: Mapping[str, int | float] | None = None
    path: str = ""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.keep is not None and self.path:
            raise ValueError(f"keep, path: allocator dict takes one of them, got both (path={self.path!r})")
        if self.keep is not None or self.path:
            self._entries()

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
    ) -> Allocation:
        """Return the vertices kept per group; see `Allocator`."""
        entries = self._entries()
        removed: dict[int, tuple[int, str]] = {}  # index of a group -> how many of its vertices go, and who says so
        for name, value in entries.items():
            owners = [i for i, group in enumerate(groups) if any(m.module == name for m in group.producers)]
            if not owners:
                raise ValueError(_not_offered(name, groups, cost))
            if len(owners) > 1 and isinstance(value, (int, np.integer)):
                parts = ", ".join(groups[i].name for i in owners)
                raise ValueError(f"keep[{name!r}]: its channels are in {len(owners)} groups ({parts}): give a share")
            for i in owners:
                gone = _removals(name, value, groups[i], context.schedules[i])
                before, other = removed.setdefault(i, (gone, name))
                if before != gone:
                    size = groups[i].size
                    raise ValueError(
                        f"keep[{name!r}]: keeps {size - gone} of the {size} vertices of group {groups[i].name!r}, but "
                        f"keep[{other!r}] keeps {size - before} of the same: name one of the two"
                    )
        counts = tuple(group.size - removed.get(i, (0, ""))[0] for i, group in enumerate(groups))
        kept = {g.name: s.kept(count) for g, s, count in zip(groups, context.schedules, counts, strict=True)}
        reached = cost.of(kept)
        if reached > target.limit(cost.dense):
            raise ValueError(
                f"{target.option}={target.keep} is not met by what keep says: {reached} of {cost.dense} "
                f"{target.quantity} ({reached / cost.dense:.4f}) are left. Keep less, or set {target.option} to "
                f"{math.ceil(1e4 * reached / cost.dense) / 1e4:.4f}"
            )
        return Allocation(counts, {"keep": dict(entries)})

    def _entries(self) -> dict[str, int | float]:
        """Return the mapping, from wherever it is, as plain numbers."""
        if self.keep is None and not self.path:
            raise ValueError(
                "allocator: dict needs a mapping: dict:path=keep.json, or FromDict({'layer': 8}) in Python"
            )
        given = self.keep if self.keep is not None else _read(Path(self.path))
        if not isinstance(given, Mapping):
            raise TypeError(f"keep must map names of layers to numbers, got {type(given).__name__}")
        entries: dict[str, int | float] = {}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise TypeError(f"keep[{name!r}] must be a number of channels or a share, got {value!r}")
            whole = isinstance(value, (int, np.integer))
            entries[name] = int(value) if whole else float(value)
            if whole and value < 1:
                raise ValueError(f"keep[{name!r}]: at least one channel stays, got {value}")
            if not whole and not 0 < value <= 1:
                raise ValueError(f"keep[{name!r}]: a share must be in (0, 1], got {value}; channels are integers")
        return entries


def _read(path: Path) -> Any:
    """Read a JSON object; a name that stands in it twice is an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} stands there twice")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise ValueError(f"path: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:  # bad UTF-8, bad JSON, or a name twice
        raise ValueError(f"path: {path} holds no JSON object of layers ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"path: {path} holds no JSON object of layers but a {type(content).__name__}")
    return content


def _removals(name: str, value: float, group: ChannelGroup, schedule: Schedule) -> int:
    """How many vertices of a group go when a layer of it is to keep so many channels, or such a share."""
    least = group.size - schedule.limit
    if not isinstance(value, (int, np.integer)):
        gone = group.size - max(1, math.floor(value * group.size + 0.5))
        if gone > schedule.limit:
            raise ValueError(
                f"keep[{name!r}]: {value} keeps {group.size - gone} of {group.size} vertices, fewer than the {least} "
                "that floor says: lower floor"
            )
        return int(schedule.settled[gone])
    (vertex,) = (m.vertex for m in group.producers if m.module == name)
    per_vertex = np.bincount(vertex[vertex >= 0], minlength=group.size)
    left = len(vertex) - np.concatenate([[0], np.cumsum(per_vertex[schedule.order])])  # after 0, 1, ... removals
    if value > left[0]:
        raise ValueError(f"keep[{name!r}]: the layer has {left[0]} channels, got {value}")
    if value not in left[:-1]:
        possible = left[:-1]
        near = sorted(
            {int(possible[possible < value].max(initial=possible[-1])), int(possible[possible > value].min())}
        )
        raise ValueError(
            f"keep[{name!r}]: {value} of its {left[0]} channels cannot stay, because some go together or are pinned; "
            f"nearest: {', '.join(map(str, near))}"
        )
    gone = int(np.argmax(left == value))
    if gone > schedule.limit:
        raise ValueError(
            f"keep[{name!r}]: {value} channels are fewer than the {left[schedule.limit]} that floor says: lower floor"
        )
    if schedule.settled[gone] != gone:
        up = left[schedule.settled[gone]]
        raise ValueError(f"keep[{name!r}]: {value} channels are not what round_to allows; the next above is {up}")
    return gone


def _not_offered(name: str, groups: Sequence[ChannelGroup], cost: CostModel) -> str:
    """Say why a name stands for nothing that may be pruned."""
    analysis = cost.analysis
    if any(name == member.module for group in analysis.groups for member in group.producers):
        return f"keep[{name!r}]: its channels are in a residual stream, which streams='prune' opens"
    reason = next((pin.reason for pin in analysis.pins if pin.module == name), None)
    if reason is not None:
        return f"keep[{name!r}]: its channels may not go: {reason}"
    known = list(dict.fromkeys(member.module for group in groups for member in group.producers))
    near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4)) or ", ".join(known[:5])
    return f"keep[{name!r}]: no layer of that name makes channels that may go; nearest: {near}"


from_dict = register_allocator("dict")(FromDict())
