"""One intercepted operation: its plain name, its operands' labels, and the record of what it did."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from srr_ext.channels.trace import LabelTracer

REFLECTED = {f"__r{name}__" for name in "add sub mul truediv div pow floordiv mod matmul".split()}
AUGMENTED = {f"__i{name}__" for name in "add sub mul truediv div pow floordiv mod matmul and or xor".split()}


SMALL = 64  # entries of a fixed tensor that are compared one by one


class Call:
    """One intercepted call, as rules see it."""

    def __init__(
        self, tracer: LabelTracer, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ):
        self.tracer, self.function, self.args, self.kwargs = tracer, function, args, kwargs
        self.name, self.in_place = operation_name(function)
        operands = self.tensors((args, kwargs))
        found = [(tensor, tracer.labels(tensor)) for tensor in operands]
        self.labelled = [labels for _, labels in found if labels is not None]
        self.fixed = [tensor for tensor, labels in found if labels is None]
        self.result: Any = None

    @staticmethod
    def tensors(value: Any) -> list[Tensor]:
        """Tensors in a nest of containers."""
        return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def lost_zero(self) -> str:
        """First reason among the labelled operands why removed channels are not zero."""
        return next((labels.lost_zero for labels in self.labelled if labels.lost_zero), "")

    def constants(self) -> list[Any]:
        """Numbers among the arguments, and values of small fixed tensors.

        Tensors computed from activations rightly change with the network, as random ones do in training mode.
        """
        numbers = plain_numbers((self.args, self.kwargs))
        if self.tracer.model.training:
            return numbers
        small = (t for t in self.fixed if t.numel() <= SMALL and not self.tracer.is_computed(t))
        return numbers + [_one_nan(t.tolist()) for t in small]

    @property
    def out_of_place(self) -> Callable[..., Any]:
        """The function, or its variant that does not write into its first argument."""
        return getattr(Tensor, self.name, self.function) if self.in_place else self.function


@functools.cache
def operation_name(function: Callable[..., Any]) -> tuple[str, bool]:
    """Plain name of an operation, and whether it writes into its first argument."""
    name = getattr(function, "__name__", type(function).__name__).split(".")[0]
    if name in ("__get__", "__set__"):  # a property: torch.Tensor.T.__get__
        return (resolve_name(function) or f"..{name}").split(".")[-2], name == "__set__"
    if name in REFLECTED or name in AUGMENTED:
        return name.strip("_")[1:], name in AUGMENTED
    if name.startswith("__") and name.endswith("__"):
        plain = name.strip("_")
        return (plain if plain in ("getitem", "setitem") or hasattr(Tensor, plain) else name), plain == "setitem"
    return name.rstrip("_"), name.endswith("_")


@dataclass(frozen=True, eq=False)
class Step:
    """What one labelled operation did.

    Attributes
    ----------
    name, module : str
        The operation and the module it ran in.
    read : list of Tensor
        Labels of its labelled operands.
    made : list of (torch.Size, Tensor or None)
        Shape and labels of its tensor results.
    constants : list
        Numbers and small fixed tensors it combined the labelled operands with, which no removal may change.
    """

    name: str
    module: str
    read: list[Tensor]
    made: list[tuple[torch.Size, Tensor | None]]
    constants: list[Any]


def plain_numbers(values: Any) -> list[int | float]:
    """Return the Python numbers in nested values, such that lists of equal ones are equal."""
    return [_one_nan(leaf) for leaf in tree_leaves(values) if isinstance(leaf, (int, float))]


def _one_nan(value: Any) -> Any:
    """Replace every NaN by the same object: to lists, an object equals itself even if NaN does not."""
    if isinstance(value, list):
        return [_one_nan(item) for item in value]
    return math.nan if isinstance(value, float) and math.isnan(value) else value
