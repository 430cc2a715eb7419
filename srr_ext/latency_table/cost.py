"""How long a forward pass takes after any removal of vertices: measured operations, added up and held to the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from srr_ext.channels.records import ChannelAnalysis, ChannelGroup, Layer
from srr_ext.copying import copy_model
from srr_ext.cost import CostModel, Target, kept_mask
from srr_ext.inputs import tensors_in
from srr_ext.latency_table.families import Family, Placed, place
from srr_ext.latency_table.operations import Operation, record_operations
from srr_ext.latency_table.table import LatencyTable, digest_of
from srr_ext.layers import cut_layers, kept_positions
from srr_ext.progress import Progress, silent

DEFAULT_BATCH = 64
_MARGIN = 1.02  # after a first plan has been measured, the next ones aim so much lower, to end below the goal
_NEAR = 0.94  # of what may be left: what a plan takes, measured as a whole, is near enough from here to 1


class LatencyCost(CostModel):
    r"""Nanoseconds of one forward pass after any removal of vertices.

    Parameters
    ----------
    model : nn.Module
        The dense model, on the device whose times count; it is left as it is.
    inputs : Tensor, tuple or dict
        Arguments of the forward pass that counts; see `with_batch`.
    analysis : ChannelAnalysis
        The model's channels.
    groups : sequence of ChannelGroup
        Those of its groups that may lose vertices.
    trial : Tensor, tuple or dict, optional
        Smaller arguments, for finding out which sizes follow which group; default ``inputs``.
    table : LatencyTable, optional
        Where times come from; default the user's cache for that device, which measures what it does not have.
    keep : float, default 0.5
        The share that will be asked for: what plans near it need is measured at once, and everything else when needed.
    progress : Progress, optional
        Where the stages "channels" and "latency" report; silent by default.

    Attributes
    ----------
    dense : int
        Of the dense network, measured as a whole.
    unmeasured : tuple of str
        Operators that cannot be called by themselves, whose times are in none of the sums, or not at some of the sizes
        that were asked for, where they count as they do in the dense network.

    Raises
    ------
    ValueError
        If the model does other operations when channels are gone.

    Notes
    -----
    The forward pass is recorded as a list of operations with all their sizes. Which sizes follow which group is found
    by cutting each group once and recording again. Then the operations' sum for any plan is

    .. math:: S(k) = \sum_o t_o(n_1(k), n_2(k)),

    where :math:`t_o` is measured, at widths where the device's vectors are full or have just become too few, and linear
    between them. The estimate is :math:`T \cdot g(S(k) / S)`, with :math:`T` the time of the dense network as a whole.
    At first :math:`g(x) = x`. When a plan has been made, the network that it leaves is measured beside the dense one
    (`miss`), :math:`g` is drawn through that point, and the plan is made again, unless it was near enough.
    """

    attempts = 6

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        analysis: ChannelAnalysis,
        groups: Sequence[ChannelGroup],
        *,
        trial: Any = None,
        table: LatencyTable | None = None,
        keep: float = 0.5,
        progress: Progress | None = None,
    ) -> None:
        self.analysis = analysis
        self.quantity = "latency"
        self._attempts: list[_Attempt] = []
        self._model, self._inputs = copy_model(model, share_parameters=True).eval(), inputs
        self._groups = {group.name: group for group in groups}
        device = next((tensor.device for tensor in tensors_in([inputs, *model.parameters()])), torch.device("cpu"))
        self.table = table or LatencyTable(device)
        self.table.begin(device)
        progress = progress or silent()
        operations = record_operations(self._model, inputs)
        self._digest = digest_of(operations)
        self._placed = self._place(operations, inputs if trial is None else trial, progress)
        self._of_group: dict[str, list[int]] = {name: [] for name in self._groups}
        for at, placed in enumerate(self._placed):
            for group in dict.fromkeys(group for shares in placed.shares for group, _ in shares):
                self._of_group[group].append(at)
        self._known: dict[tuple[Family, tuple[int, ...]], int] = {}
        self._refused: list[Operation] = []  # by torch, at sizes between the smallest and the full one
        self._measure(keep, progress)
        self._full = [self._time(placed, {}) for placed in self._placed]
        self._sum = max(1, sum(self._full))
        self._curve: list[tuple[float, float]] = [(0.0, 0.0), (1.0, 1.0)]
        (self.dense,) = self.table.networks([self._digest], inputs, lambda: [self._model])
        self.table.save()

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Operators that cannot be called by themselves."""
        missing = [p.family.operation for p in self._placed if self.table.operation(p.family.operation) is None]
        return tuple(dict.fromkeys(str(operation.operator) for operation in [*missing, *self._refused]))

    def layer_cost(self, layer: Layer, n_in: int, n_out: int) -> int:
        """Refuse: times are those of operations, many of which belong to no layer with weights."""
        raise ValueError("keep_latency: this allocator asks for the cost of single layers; take keep_macs")

    def share(self, kept: Mapping[str, np.ndarray]) -> float:
        """Return the share of the operations' times that a plan leaves, by the table alone."""
        gone = {name: int((~kept_mask(self._group(name), vertices)).sum()) for name, vertices in kept.items()}
        times = list(self._full)
        for at in {at for name, count in gone.items() if count for at in self._of_group[name]}:
            times[at] = self._time(self._placed[at], gone)
        return sum(times) / self._sum

    def of(self, kept: Mapping[str, np.ndarray]) -> int:
        """Nanoseconds when each named group keeps only the given vertices; see `srr_ext.cost.CostModel.of`."""
        return self._estimate(self.share(kept))

    def walker(self, groups: Sequence[ChannelGroup]) -> LatencyWalker:
        """Return a counter that starts dense and follows removals one vertex at a time, by index into ``groups``."""
        return LatencyWalker(self, groups)

    def miss(self, kept: Mapping[str, np.ndarray], target: Target) -> float:
        """Measure the network that a plan leaves beside the dense one, and remember it for the next estimates.

        Parameters
        ----------
        kept : mapping of str to ndarray of int64
            Kept vertices by group name.
        target : Target
            What was asked for.

        Returns
        -------
        float
            How far the measured share is from the goal, as a share of it; 0 from 6 % below the goal to the goal itself.
        """
        small = cut_layers(self._model, kept_positions(self._groups.values(), kept))
        names = [self._digest, digest_of(record_operations(small, self._inputs))]
        dense, pruned = self.table.networks(names, self._inputs, lambda: [self._model, small])
        self.table.save()
        share, measured = self.share(kept), pruned / dense
        predicted = self._estimate(share) / self.dense
        self._attempts.append(_Attempt(dict(kept), names, share, predicted, measured))
        self._curve = _through([*self._curve[1:-1], (share, min(1.0, measured * _MARGIN))])
        off = measured / target.keep
        return 0.0 if _NEAR <= off <= 1 else abs(off - 1)

    def measured(self, kept: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Return the nanoseconds that `miss` measured for a plan, ``dense`` and ``pruned``."""
        attempt = self._attempt(kept)
        dense, pruned = self.table.networks(attempt.names, self._inputs, lambda: ())  # which the table knows
        return {"dense": dense, "pruned": min(dense, pruned)}

    def record(self, kept: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return how a plan came about that `miss` was asked about, in plain values.

        Returns
        -------
        dict
            The table's ``environment`` and ``table``, the digest of all that was asked of it; ``predicted_ms`` and
            ``measured_ms``, each ``dense`` and ``pruned``; ``attempts``, for every plan tried the share that the sum of
            ``operations`` had, the share that was ``predicted`` from it and the one that was ``measured``; and
            ``unmeasured``.
        """
        attempt = self._attempt(kept)
        measured = self.measured(kept)
        tried = [{"operations": a.share, "predicted": a.predicted, "measured": a.measured} for a in self._attempts]
        return {
            "environment": self.table.environment,
            "table": self.table.digest,
            "predicted_ms": {"dense": self.dense / 1e6, "pruned": self.dense * attempt.predicted / 1e6},
            "measured_ms": {name: ns / 1e6 for name, ns in measured.items()},
            "attempts": tried,
            "unmeasured": list(self.unmeasured),
        }

    def _attempt(self, kept: Mapping[str, np.ndarray]) -> _Attempt:
        same = (a for a in self._attempts if all(np.array_equal(a.kept[name], kept[name]) for name in kept))
        return next(same)

    def _estimate(self, share: float) -> int:
        """Return nanoseconds for a share of the operations' times."""
        if share > 1:  # narrower, and yet slower
            return round(self.dense * share)
        shares, measured = zip(*self._curve, strict=True)
        return round(self.dense * float(np.interp(share, shares, measured)))

    def _place(self, operations: Sequence[Operation], trial: Any, progress: Progress) -> list[Placed]:
        """Cut every group once and see which sizes follow it."""
        whole = operations if trial is self._inputs else record_operations(self._model, trial)
        going = {name: np.arange(1, group.size, 2) for name, group in self._groups.items() if group.size > 1}
        with progress.stage("channels", len(going)) as step:

            def cut(name: str) -> list[Operation]:
                step(note=name)
                kept = {name: np.setdiff1d(np.arange(self._groups[name].size), going[name])}
                positions = kept_positions([self._groups[name]], kept)
                return record_operations(cut_layers(self._model, positions, rehearse=True), trial)

            removed = {name: len(vertices) for name, vertices in going.items()}
            return place(operations, whole, cut, removed, self.table.block)

    def _measure(self, keep: float, progress: Progress) -> None:
        """Measure the dense network's operations, and narrower ones that a plan for that share is likely to need."""
        wanted: dict[str, Operation] = {}
        for family in dict.fromkeys(placed.family for placed in self._placed):
            for steps in [family.full, *family.diagonal(keep / 2)]:
                operation = family.at(steps)
                wanted.setdefault(operation.key, operation)
        with progress.stage("latency", len(wanted)) as step:
            for operation in wanted.values():
                self.table.operation(operation)
                step(note=str(operation.operator))

    def _time(self, placed: Placed, gone: Mapping[str, int]) -> int:
        """Nanoseconds of one operation when so many vertices of each group are gone."""
        family, steps = placed.family, placed.steps(gone)
        if (family, steps) not in self._known:
            times = [(self._corner(family, corner), weight) for corner, weight in family.corners(steps)]
            self._known[family, steps] = round(sum(time * weight for time, weight in times))
        return self._known[family, steps]

    def _corner(self, family: Family, steps: tuple[int, ...]) -> int:
        """Nanoseconds of an operation at a size that is measured."""
        operation = family.at(steps)
        time, full = self.table.operation(operation), self.table.operation(family.operation)
        if time is None and full is not None:
            self._refused.append(operation)
        return time or full or 0


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A plan whose network was measured: shares of the dense network's time."""

    kept: dict[str, np.ndarray]
    names: list[str]
    share: float
    predicted: float
    measured: float


class LatencyWalker:
    """The time while vertices go one after the other; made by `LatencyCost.walker`.

    Attributes
    ----------
    current : int
        Nanoseconds now.
    """

    def __init__(self, model: LatencyCost, groups: Sequence[ChannelGroup]) -> None:
        self.current = model.dense
        self._model = model
        self._names = [group.name for group in groups]
        self._times = list(model._full)
        self._sum = sum(self._times)
        self._gone: dict[str, int] = {}
        self._seen: set[tuple[int, int]] = set()

    def remove(self, group_index: int, vertex: int) -> int:
        """Remove one vertex of ``groups[group_index]`` and return the time that is left.

        Raises
        ------
        ValueError
            If that vertex is gone already.
        """
        if (group_index, vertex) in self._seen:
            raise ValueError(f"vertex {vertex} of group number {group_index} is removed already")
        self._seen.add((group_index, vertex))
        name = self._names[group_index]
        self._gone[name] = self._gone.get(name, 0) + 1
        for at in self._model._of_group[name]:
            now = self._model._time(self._model._placed[at], self._gone)
            self._sum += now - self._times[at]
            self._times[at] = now
        self.current = self._model._estimate(self._sum / self._model._sum)
        return self.current


def check_batch(batch: int) -> None:
    """Refuse what is no number of images, as `with_batch` does."""
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise TypeError(f"latency_batch must be an integer, got {batch!r}")
    if batch < 1:
        raise ValueError(f"latency_batch must be at least 1, got {batch}")


def with_batch(example_inputs: Any, batch: int) -> Any:
    """Repeat the images of example inputs, or leave some out, until there are so many.

    Parameters
    ----------
    example_inputs : Tensor, tuple or dict
        Arguments of one forward pass; all tensors whose first size is that of the first tensor are batches.
    batch : int
        How many images are wanted.

    Returns
    -------
    Tensor, tuple or dict
        Alike, with so many.

    Raises
    ------
    ValueError
        If ``batch`` is below 1.
    TypeError
        If ``batch`` is no integer.
    """
    check_batch(batch)
    first = next((tensor for tensor in tensors_in(example_inputs) if tensor.ndim), None)
    size = 0 if first is None else len(first)
    if not size:
        return example_inputs

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != size:
            return leaf
        return leaf[torch.arange(batch, device=leaf.device) % size]

    return tree_map(repeat, example_inputs)


def _through(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Draw a curve that never falls through measured points, from nothing to the dense network."""
    shares, measured = [0.0], [0.0]
    for share, time in sorted(points):
        if shares[-1] < share < 1:
            shares.append(share)
            measured.append(max(measured[-1], min(1.0, time)))
    return list(zip([*shares, 1.0], [*measured, 1.0], strict=True))
