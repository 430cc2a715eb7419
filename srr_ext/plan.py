"""A pruning plan: which channels of which modules stay, and how that was decided. Making one touches no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.allocators import Allocator, decide, require_groups
from srr_ext.allocators.base import NodeOrder
from srr_ext.allocators.decide import DEFAULT_FLOOR
from srr_ext.allocators.schedule import Floor
from srr_ext.calibration import Batch, Calibration
from srr_ext.channels import ChannelAnalysis, analyze_channels
from srr_ext.cost import CostModel, Counted, Target
from srr_ext.criteria import Selector
from srr_ext.files import parse_json, read_bytes, write_text
from srr_ext.graph import Distance, select_groups
from srr_ext.latency_table import LatencyCost, LatencyTable, with_batch
from srr_ext.latency_table.cost import DEFAULT_BATCH, check_batch
from srr_ext.layers import kept_positions, widths_of
from srr_ext.plan_fields import FIELDS, WIDEST
from srr_ext.progress import Progress

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerPlan:
    """What stays of one module.

    Attributes
    ----------
    out, in_ : tuple of int or None
        Kept output and input channel indices, increasing; None where that side stays whole.
    """

    out: tuple[int, ...] | None = None
    in_: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PruningPlan:
    """The decision, complete: apply it with `apply_plan`, print it, save it.

    Attributes
    ----------
    layers : dict of str to LayerPlan
        Every module that surgery changes, normalisation layers included, in order of execution.
    allocator, selector : str
        The method.
    target : dict
        Quantity ("macs", "params", "channels" or "latency") to the share that was to be kept.
    gamma : float or None
        Distance threshold of the filter graphs, for allocators that use one.
    seed : int
        Seed of everything random.
    options : dict
        The other options of `make_plan`, as given.
    groups : dict
        Group name to ``{"size", "kept"}``: how many vertices it had and has.
    cost : dict
        ``{"macs": {"dense", "pruned"}, "params": {...}, "channels": {...}}``, for the example inputs. With the target
        "latency" that, too: nanoseconds of a batch, both networks measured as wholes when the plan was made.
    widths : dict
        Module name to its ``[output, input]`` channels before the cut, for every module of a kind that can be cut.
    info : dict
        What the allocator says about its decision.
    fingerprint : str
        SHA-256 of the weights the plan was made for; empty if it was not made for particular weights.
    """

    layers: dict[str, LayerPlan]
    allocator: str = "given"
    selector: str = "given"
    target: dict[str, float] = field(default_factory=dict)
    gamma: float | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    cost: dict[str, dict[str, int]] = field(default_factory=dict)
    widths: dict[str, list[int | None]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def to_json(self) -> str:
        """Return the plan as JSON text, the same bytes for the same plan."""
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        content["layers"] = {name: {"out": plan.out, "in": plan.in_} for name, plan in self.layers.items()}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = "plan") -> PruningPlan:
        """Read a plan back.

        Parameters
        ----------
        text : str
            What `to_json` wrote.
        origin : str, default "plan"
            Where the text comes from, for messages.

        Raises
        ------
        ValueError
            If the text is no plan of this schema version.
        """
        try:
            content = parse_json(text)
        except ValueError as error:  # bad UTF-8 or bad JSON
            raise ValueError(f"{origin}: not a complete JSON file ({error})") from None
        if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(f"{origin}: expected a pruning plan of schema version {SCHEMA_VERSION}")
        unknown = content.keys() - cls.__dataclass_fields__.keys()
        layers = content.pop("layers", None)
        if unknown or not isinstance(layers, dict):
            problem = f"unknown field {min(unknown)!r}" if unknown else "no layers"
            raise ValueError(f"{origin}: not a pruning plan ({problem})")
        content["layers"] = {name: _read_layer(name, entry, origin) for name, entry in layers.items()}
        for name, value in content.items():
            if not FIELDS[name](value):
                raise ValueError(f"{origin}: field {name!r} is not what a plan holds there")
        plan = cls(**content)
        for name, layer in plan.layers.items():
            _check_width(name, layer, plan.widths.get(name), origin)
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan to a file; the file is complete or absent."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan from a file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds no plan.
        """
        return cls.from_json(read_bytes(Path(path)).decode("utf-8", errors="replace"), str(path))


def _read_layer(name: str, entry: Any, origin: str) -> LayerPlan:
    def read(side: str) -> tuple[int, ...] | None:
        indices = entry.get(side)
        if indices is None:
            return None
        whole = isinstance(indices, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in indices)
        if not whole or not indices or indices[0] < 0 or indices != sorted(set(indices)) or indices[-1] >= WIDEST:
            raise ValueError(f"{origin}: layer {name!r}: {side!r} must be increasing channel indices or null")
        return tuple(indices)

    if not isinstance(entry, dict) or entry.keys() - {"out", "in"}:
        raise ValueError(f'{origin}: layer {name!r} must be an object with "out" and "in"')
    return LayerPlan(read("out"), read("in"))


def _check_width(name: str, layer: LayerPlan, widths: list[int | None] | None, origin: str) -> None:
    """Refuse kept channels that the layer, by the plan's own record of it, does not have."""
    for side, kept, width in zip(("out", "in"), (layer.out, layer.in_), widths or (), strict=False):
        if kept is not None and width is not None and kept[-1] >= width:
            raise ValueError(f"{origin}: layer {name!r}: {side!r} keeps channel {kept[-1]}, but there are {width}")


def plan_from_vertices(analysis: ChannelAnalysis, kept: Mapping[str, Iterable[int]], **record: Any) -> PruningPlan:
    """Turn kept vertices into a plan.

    Parameters
    ----------
    analysis : ChannelAnalysis
        The model's channels.
    kept : mapping of str to int array
        Vertices that stay, by group name; groups that are not named stay whole.
    **record
        Other fields of `PruningPlan`.

    Raises
    ------
    ValueError
        If a group is unknown, a vertex does not exist, or a group would keep none.
    """
    choice = {name: np.unique(np.asarray(list(vertices), dtype=np.int64)) for name, vertices in kept.items()}
    cost = {}
    for quantity in get_args(Counted):
        model = CostModel(analysis, quantity)  # checks names and ranges
        cost[quantity] = {"dense": model.dense, "pruned": model.of(choice)}
    for name, vertices in choice.items():
        if len(vertices) == 0:
            raise ValueError(f"kept: group {name!r} must keep at least one vertex")
    sides = kept_positions(analysis.groups, choice)
    layers = {}
    for name in analysis.layers:
        out, in_ = sides.get((name, "out")), sides.get((name, "in"))
        if out is not None or in_ is not None:
            layers[name] = LayerPlan(*(None if side is None else tuple(side.tolist()) for side in (out, in_)))
    sizes = {
        group.name: {"size": group.size, "kept": len(choice.get(group.name, range(group.size)))}
        for group in analysis.groups
    }
    widths = {name: list(sides) for name, sides in analysis.widths.items()}
    return PruningPlan(layers, groups=sizes, cost=cost, widths=widths, **record)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a model's tensors.

    The one part of a plan for which weights leave their device: a record of what it was made for, not a decision.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    allocator: str | Allocator = "srr",
    selector: str | Selector = "l1",
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_channels: float | None = None,
    keep_latency: float | None = None,
    latency_batch: int = DEFAULT_BATCH,
    latency_table: LatencyTable | None = None,
    gamma: float | Literal["auto"] = "auto",
    distance: Distance = "rms",
    streams: Literal["keep", "prune"] = "keep",
    ignored: Iterable[str] = (),
    floor: Floor = DEFAULT_FLOOR,
    round_to: int = 1,
    node_order: NodeOrder = "selector",
    seed: int = 0,
    data: Calibration | Iterable[Batch] | None = None,
    progress: Progress | None = None,
    analysis: ChannelAnalysis | None = None,
) -> PruningPlan:
    """Decide which channels a model can lose. The model is not touched.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass; MACs are counted for them.
    allocator : str or callable, default "srr"
        How many channels each group loses, see `available_allocators`.
    selector : str or callable, default "l1"
        Which channels of a group go first, see `available_selectors`.
    keep_macs, keep_params, keep_channels, keep_latency : float, optional
        Share to keep, in (0, 1]; exactly one of them. ``keep_channels`` counts output channels of prunable layers.
        ``keep_latency`` is about the time of a forward pass in evaluation mode, where the model is, with as many
        threads as torch has now: its operations are measured, see `srr_ext.latency_table.LatencyCost`.
    latency_batch : int, default 64
        For ``keep_latency``: of how many images; the example inputs are repeated until there are so many.
    latency_table : LatencyTable, optional
        For ``keep_latency``: where times come from; default the user's cache for this device.
    gamma : float or "auto", default "auto"
        Distance threshold of the filter graphs (`srr` only); "auto" finds the smallest one with which every removal
        is made in a layer of redundancy above 1.
    distance : {"rms", "euclidean"}, default "rms"
        What gamma bounds (`srr` only): the distance of two unit filters divided by the square root of their number of
        weights, as a public reproduction has it, or the distance itself, which is the same angle in every layer.
    streams : {"keep", "prune"}, default "keep"
        Whether channels that additions tie across layers (residual streams) may go.
    ignored : iterable of str
        Modules whose output channels stay. The model's outputs always do.
    floor : float or mapping of str to float, default 0.1
        Share of each group that always stays, for all groups or by name; one channel always does.
    round_to : int, default 1
        Keep channel counts at multiples of this, or whole.
    node_order : {"selector", "random", "degree"}, default "selector"
        Order in which redundancy trajectories remove filters (`srr` only).
    seed : int, default 0
        Same inputs and seed, same plan, byte for byte; with ``keep_latency``, same table of times, too.
    data : Calibration or iterable of (inputs, targets), optional
        Images for the methods that look at some; see `srr_ext.Calibration`.
    progress : Progress, optional
        Where long stages report; silent by default.
    analysis : ChannelAnalysis, optional
        Result of `analyze_channels` for this model, to save its time. Give ``ignored`` to it, not here.

    Returns
    -------
    PruningPlan
        Apply it with `apply_plan`.

    Raises
    ------
    TypeError, ValueError
        If an option is wrong or the target is out of reach; the message names it and says what is possible.

    References
    ----------
    Z. Wang, C. Li, X. Wang, "Convolutional Neural Network Pruning with Structural Redundancy Reduction", CVPR 2021.
    """
    target = Target.choose(keep_macs, keep_params, keep_channels, keep_latency)
    check_batch(latency_batch)
    ignored = tuple(ignored)
    if analysis is not None and ignored:
        raise ValueError("ignored: give it to analyze_channels, whose result is used, not to make_plan")
    analysis = analysis or analyze_channels(model, example_inputs, ignored=ignored)
    if analysis.widths != widths_of(model):
        raise ValueError("analysis: was made for another model; call analyze_channels(model, example_inputs)")
    groups = select_groups(analysis, streams)
    cost = None
    if target.quantity == "latency":
        require_groups(analysis, groups)
        cost = LatencyCost(
            model,
            with_batch(example_inputs, latency_batch),
            analysis,
            groups,
            trial=example_inputs,
            table=latency_table,
            keep=target.keep,
            progress=progress,
        )
    kept, allocation = decide(
        analysis,
        groups,
        model,
        example_inputs,
        allocator,
        selector,
        target,
        gamma=gamma,
        distance=distance,
        floor=floor,
        round_to=round_to,
        node_order=node_order,
        seed=seed,
        data=Calibration.of(data),
        progress=progress,
        cost=cost,
    )
    info = dict(allocation.info)
    if cost is not None:
        info["latency"] = {**cost.record(kept), "batch_size": latency_batch}
    plan = plan_from_vertices(
        analysis,
        kept,
        allocator=_name(allocator),
        selector=_name(selector),
        target={target.quantity: float(target.keep)},
        gamma=info.pop("gamma", None),
        seed=seed,
        options={
            "gamma": gamma,
            "distance": distance,
            "streams": streams,
            "floor": dict(floor) if isinstance(floor, Mapping) else floor,
            "round_to": round_to,
            "node_order": node_order,
            "ignored": list(analysis.ignored),
        },
        info=info,
        fingerprint=fingerprint(model),
    )
    return plan if cost is None else replace(plan, cost=plan.cost | {"latency": cost.measured(kept)})


def _name(method: Any) -> str:
    if isinstance(method, str):
        return method
    if is_dataclass(method):
        return repr(method)  # with its options
    return getattr(method, "__qualname__", type(method).__qualname__)
