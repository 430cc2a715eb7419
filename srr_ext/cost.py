"""What a plan leaves: multiply-accumulates, parameters or channels, in exact integers; and what it is to leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, Protocol, get_args

import numpy as np

from srr_ext.channels.records import ChannelAnalysis, ChannelGroup, Layer

Counted = Literal["macs", "params", "channels"]  # exactly, from the shapes
Quantity = Literal["macs", "params", "channels", "latency"]


@dataclass(frozen=True)
class Target:
    """The share of a quantity that a plan has to get down to.

    Attributes
    ----------
    quantity : {"macs", "params", "channels", "latency"}
        What is counted, or measured.
    keep : float
        Share that is *kept*, in (0, 1]: 0.5 leaves at most half of the dense model's.

    Raises
    ------
    TypeError
        If ``keep`` is not a number.
    ValueError
        If ``keep`` is outside (0, 1] or not finite, or the quantity is unknown.
    """

    quantity: Quantity
    keep: float

    def __post_init__(self) -> None:
        """Check both fields, so that no invalid target exists."""
        self.validate()

    def validate(self) -> None:
        """Raise the errors described above; the message names the option (``keep_macs``, ...)."""
        if self.quantity not in get_args(Quantity):
            raise ValueError(f"quantity must be one of {', '.join(get_args(Quantity))}, got {self.quantity!r}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float, np.integer, np.floating)):
            raise TypeError(f"{self.option} must be a number in (0, 1], got {type(self.keep).__name__}")
        if not (math.isfinite(self.keep) and 0 < self.keep <= 1):
            raise ValueError(f"{self.option} is the share to keep and must be in (0, 1], got {self.keep}")

    @property
    def option(self) -> str:
        """Name of the option that sets this target, for messages."""
        return f"keep_{self.quantity}"

    def limit(self, dense: int) -> int:
        """Largest cost that meets the target. ``keep`` counts as the decimal it is written as: 0.7 of 10 is 7."""
        return math.floor(Fraction(repr(float(self.keep))) * dense)

    @classmethod
    def choose(
        cls,
        keep_macs: float | None = None,
        keep_params: float | None = None,
        keep_channels: float | None = None,
        keep_latency: float | None = None,
    ) -> Target:
        """Make the target from the one option that is given.

        Raises
        ------
        ValueError
            If none or several are given.
        """
        options: dict[Quantity, float | None] = {
            "macs": keep_macs,
            "params": keep_params,
            "channels": keep_channels,
            "latency": keep_latency,
        }
        given = [cls(quantity, keep) for quantity, keep in options.items() if keep is not None]
        if len(given) != 1:
            got = ", ".join(f"{target.option}={target.keep}" for target in given) or "none"
            raise ValueError(f"give exactly one of keep_macs, keep_params, keep_channels and keep_latency; got {got}")
        return given[0]


class Walker(Protocol):
    """A cost that follows removals one vertex at a time."""

    current: int

    def remove(self, group_index: int, vertex: int) -> int:
        """Remove one vertex and return the cost that is left."""


class CostModel:
    r"""Exact cost of a model after any removal of vertices.

    Parameters
    ----------
    analysis : ChannelAnalysis
        The model's groups and layer shapes.
    quantity : {"macs", "params", "channels"}
        What is counted.

    Attributes
    ----------
    dense : int
        Cost with every vertex kept.

    Notes
    -----
    With :math:`n'_{in}, n'_{out}` channels left and :math:`g` convolution groups, a layer's weight matrix has

    .. math:: w = n'_{out} \, n'_{in} / g \cdot kernel

    elements, or :math:`n'_{out} \cdot (n_{in} / g) \cdot kernel` if whole convolution groups are removed. Its MACs are
    :math:`positions \cdot w` and its parameters :math:`w + tensors \cdot n'_{out}`; to their sums come the MACs and the
    parameters that no plan changes. "channels" counts output channels of all producers of all groups, pinned ones
    included. One multiply-accumulate is two floating point operations.

    Times are counted by `srr_ext.latency_table.LatencyCost`, which allocators use alike.
    """

    attempts: ClassVar[int] = 1  # how often a plan is made at most, until what it leaves is what was asked for

    def __init__(self, analysis: ChannelAnalysis, quantity: Counted) -> None:
        if quantity not in get_args(Counted):
            raise ValueError(f"quantity must be one of {', '.join(get_args(Counted))}, got {quantity!r}")
        self.analysis = analysis
        self.quantity: Quantity = quantity
        self._groups = {group.name: group for group in analysis.groups}
        self._producers = {member.module for group in analysis.groups for member in group.producers}
        layers = {name: self.layer_cost(layer, layer.n_in, layer.n_out) for name, layer in analysis.layers.items()}
        self._fixed = {
            "macs": analysis.fixed_macs,
            "params": analysis.total_params - sum(layers.values()),
            "channels": 0,
        }[quantity]
        self.dense: int = self._fixed + sum(layers.values())

    def layer_cost(self, layer: Layer, n_in: int, n_out: int) -> int:
        """Cost of one layer with ``n_in`` input and ``n_out`` output channels left."""
        if self.quantity == "channels":
            return n_out if layer.name in self._producers else 0
        weights = 0
        if layer.kind not in ("norm", "prelu"):
            n_in = layer.n_in if layer.whole_groups else n_in
            weights = n_out * n_in // layer.groups * layer.kernel
        return layer.positions * weights if self.quantity == "macs" else weights + layer.tensors * n_out

    def of(self, kept: Mapping[str, np.ndarray]) -> int:
        """Cost when each named group keeps only the given vertices.

        Parameters
        ----------
        kept : mapping of str to ndarray of int64
            Kept vertices by group name; groups that are not named keep all.

        Returns
        -------
        int
            The exact cost.

        Raises
        ------
        ValueError
            If a group is unknown, or a vertex is out of range or repeated.
        """
        channels = {name: [layer.n_in, layer.n_out] for name, layer in self.analysis.layers.items()}
        for name, vertices in kept.items():
            gone = ~kept_mask(self._group(name), vertices)
            for member in self._group(name).members:
                owned = member.vertex[member.vertex >= 0]
                channels[member.module][member.side == "out"] -= int(gone[owned].sum())
        layers = self.analysis.layers
        return self._fixed + sum(self.layer_cost(layers[name], *sizes) for name, sizes in channels.items())

    def walker(self, groups: Sequence[ChannelGroup]) -> Walker:
        """Return a counter that starts dense and follows removals one vertex at a time, by index into ``groups``."""
        return CostWalker(self, groups)

    def miss(self, kept: Mapping[str, np.ndarray], target: Target) -> float:
        """Return how far a plan really is from a target that it meets by this model; what is counted is exact: 0."""
        return 0.0

    def _group(self, name: str) -> ChannelGroup:
        if name not in self._groups:
            raise ValueError(f"kept names the group {name!r}, which this analysis does not have")
        return self._groups[name]


class CostWalker:
    """The cost while vertices go one after the other; made by `CostModel.walker`.

    Attributes
    ----------
    current : int
        Cost now.
    """

    def __init__(self, model: CostModel, groups: Sequence[ChannelGroup]) -> None:
        self.current = model.dense
        self._model = model
        self._layers = list(model.analysis.layers.values())
        self._sizes = [[layer.n_in, layer.n_out] for layer in self._layers]
        position = {layer.name: index for index, layer in enumerate(self._layers)}
        self._touched = [_touched(group, position) for group in groups]
        self._gone: set[tuple[int, int]] = set()

    def remove(self, group_index: int, vertex: int) -> int:
        """Remove one vertex of ``groups[group_index]`` and return the cost that is left.

        Raises
        ------
        ValueError
            If that vertex is gone already.
        """
        if (group_index, vertex) in self._gone:
            raise ValueError(f"vertex {vertex} of group number {group_index} is removed already")
        self._gone.add((group_index, vertex))
        for index, n_in, n_out in self._touched[group_index][vertex]:
            layer, sizes = self._layers[index], self._sizes[index]
            self.current -= self._model.layer_cost(layer, *sizes)
            sizes[0] -= n_in
            sizes[1] -= n_out
            self.current += self._model.layer_cost(layer, *sizes)
        return self.current


def _touched(group: ChannelGroup, position: Mapping[str, int]) -> list[list[tuple[int, int, int]]]:
    """Return, for each vertex, the layers it touches: (index of the layer, inputs lost, outputs lost)."""
    lost: dict[int, np.ndarray] = {}  # layer -> [2, size]
    for member in group.members:
        counts = lost.setdefault(position[member.module], np.zeros((2, group.size), dtype=np.int64))
        counts[int(member.side == "out")] += np.bincount(member.vertex[member.vertex >= 0], minlength=group.size)
    by_layer = [(index, counts.T.tolist()) for index, counts in lost.items()]
    return [[(index, *rows[v]) for index, rows in by_layer if any(rows[v])] for v in range(group.size)]


def kept_mask(group: ChannelGroup, vertices: np.ndarray) -> np.ndarray:
    """Return which vertices of a group stay, bool [size]; a ValueError names those that do not exist or stand twice."""
    vertices = np.asarray(vertices)
    if vertices.size and (vertices.min() < 0 or vertices.max() >= group.size):
        raise ValueError(f"kept vertices of group {group.name!r} must be in [0, {group.size}), got {vertices.tolist()}")
    mask = np.zeros(group.size, dtype=bool)
    mask[vertices.astype(np.int64)] = True
    if mask.sum() != vertices.size:
        raise ValueError(f"kept vertices of group {group.name!r} are repeated: {vertices.tolist()}")
    return mask
