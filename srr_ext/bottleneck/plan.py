"""The decision which layers become bottlenecks of which ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from torch import Tensor

from srr_ext.bottleneck.layer import Basis
from srr_ext.files import parse_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Ranks:
    """Directions that a bottleneck keeps.

    Attributes
    ----------
    in_, out : int
        Of the inputs and of the outputs.
    """

    in_: int
    out: int


@dataclass(frozen=True)
class BottleneckPlan:
    """The decision, complete: apply it with `apply_bottlenecks`, save what came of it with `save_bottlenecks`.

    Attributes
    ----------
    layers : dict of str to Ranks
        Every layer that is replaced, in order of execution.
    left : dict of str to str
        Every other convolution and linear layer, and why it stays as it is.
    basis : {"channels", "patches"}
        See `Bottleneck`.
    target : dict
        Quantity ("macs" or "params") to the share that was to be kept.
    floor : float
        Share of each layer's directions, on either side, that was to stay.
    labels : str
        Whose gradients were squared, see `srr_ext.criteria.kfac.fisher_pass`.
    quantile : float
        Share of all directions, of all layers and both sides, that fell to the cut-off.
    threshold : float
        The largest damage of a direction that fell; 0 if none did.
    seed : int
        Seed of everything random.
    cost : dict
        ``{"macs": {"dense", "pruned"}, "params": {...}}`` for the example inputs, rotations included, counted on both
        networks.
    widths : dict
        Name of each replaced layer to its ``[output, input]`` channels.
    fingerprint : str
        SHA-256 of the weights the plan was made for.
    bases : dict
        Name of each replaced layer to its directions of inputs and outputs (`Bottleneck.rotate`). Not part of the JSON
        text, so a plan that was read from there has none; not compared either.
    """

    layers: dict[str, Ranks]
    left: dict[str, str] = field(default_factory=dict)
    basis: Basis = "channels"
    target: dict[str, float] = field(default_factory=dict)
    floor: float = 0.0
    labels: str = "sampled"
    quantile: float = 0.0
    threshold: float = 0.0
    seed: int = 0
    cost: dict[str, dict[str, int]] = field(default_factory=dict)
    widths: dict[str, list[int]] = field(default_factory=dict)
    fingerprint: str = ""
    bases: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> str:
        """Return the plan as JSON text, the same bytes for the same plan."""
        content: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del content["bases"]
        content["layers"] = {name: {"in": ranks.in_, "out": ranks.out} for name, ranks in self.layers.items()}
        return json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = "plan") -> BottleneckPlan:
        """Read a plan back, without bases.

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
        except ValueError as error:
            raise ValueError(f"{origin}: not a complete JSON file ({error})") from None
        if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(f"{origin}: expected a bottleneck plan of schema version {SCHEMA_VERSION}")
        if "layers" not in content or content.keys() - _FIELDS.keys():
            raise ValueError(f"{origin}: not a bottleneck plan (its fields: {', '.join(sorted(content))})")
        for name, value in content.items():
            if not _FIELDS[name](value):
                raise ValueError(f"{origin}: field {name!r} is not what a bottleneck plan holds there")
        content["layers"] = {name: Ranks(ranks["in"], ranks["out"]) for name, ranks in content["layers"].items()}
        plan = cls(**content)
        for name, ranks in plan.layers.items():
            n_out, n_in = plan.widths.get(name, (0, 0))
            if ranks.out > n_out or (ranks.in_ > n_in and plan.basis == "channels"):
                raise ValueError(
                    f"{origin}: layer {name!r} has ranks {ranks.in_} and {ranks.out}, but {n_in} input and {n_out} "
                    "output channels"
                )
        return plan

    def record(self) -> dict[str, Any]:
        """Return what a report says of the plan: plain values, without the widths."""
        told = ("target", "basis", "labels", "floor", "quantile", "seed", "left")
        replaced = {name: [ranks.in_, ranks.out] for name, ranks in self.layers.items()}
        return {**self.cost, **{name: getattr(self, name) for name in told}, "replaced": replaced}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _maps(value: Any, entry: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(entry(item) for item in value.values())


def _is_ranks(value: Any) -> bool:
    return _maps(value, lambda rank: _is_int(rank) and rank > 0) and value.keys() == {"in", "out"}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_FIELDS: dict[str, Callable[[Any], bool]] = {  # what each field of a plan file may hold
    "layers": lambda value: _maps(value, _is_ranks),
    "left": lambda value: _maps(value, _is_text),
    "basis": lambda value: value in get_args(Basis),
    "target": lambda value: _maps(value, _is_number),
    "floor": _is_number,
    "labels": _is_text,
    "quantile": _is_number,
    "threshold": _is_number,
    "seed": _is_int,
    "cost": lambda value: _maps(value, lambda counts: _maps(counts, _is_int)),
    "widths": lambda value: _maps(
        value, lambda pair: isinstance(pair, list) and len(pair) == 2 and all(_is_int(width) for width in pair)
    ),
    "fingerprint": _is_text,
}
