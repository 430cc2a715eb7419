"""What a network asks torch to do: every operation of a forward pass, with its shapes, so that it can be done again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from srr_ext.inputs import detached, run
from srr_ext.measuring import measuring


@dataclass(frozen=True)
class TensorPart:
    """An argument that is a tensor: its type, and its dimensions from the one with the widest stride to the narrowest.

    It takes as many of the operation's numbers as it has dimensions.
    """

    dtype: torch.dtype
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorPart:
        """Describe a tensor; dimensions of the same stride stand in their own order."""
        order = sorted(range(tensor.ndim), key=lambda d: -int(tensor.stride()[d]))
        return cls(tensor.dtype, tuple(order))

    def make(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Make a tensor of that kind: numbers between 0.5 and 1.5, so that nothing is divided by 0 or becomes tiny."""
        memory = [shape[d] for d in self.order]
        if self.dtype.is_floating_point:
            values = torch.rand(memory, device=device).add_(0.5).to(self.dtype)
        else:
            values = torch.zeros(memory, dtype=self.dtype, device=device)
        return values.permute([self.order.index(d) for d in range(len(self.order))]) if memory else values


@dataclass(frozen=True)
class NumberPart:
    """An argument that is an integer, or one entry of a list of them; it takes one of the operation's numbers."""


@dataclass(frozen=True, eq=False)
class ConstantPart:
    """An argument that no cut changes: None, a flag, a float, a type, a device."""

    value: Any


Part = TensorPart | NumberPart | ConstantPart


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of a torch operator.

    Attributes
    ----------
    operator : torch.OpOverload
        What is called.
    parts : tuple
        What its arguments are, flattened.
    numbers : tuple of int
        All integers in them: sizes of tensors and arguments that are integers, in order.
    structure : TreeSpec
        How the flattened arguments belong together.
    device : torch.device
        Where its tensors are.
    """

    operator: Any
    parts: tuple[Part, ...]
    numbers: tuple[int, ...]
    structure: TreeSpec
    device: torch.device

    @classmethod
    def of(cls, operator: Any, args: Any, kwargs: Any) -> Operation:
        """Describe a call."""
        leaves, structure = tree_flatten((args, kwargs))
        parts: list[Part] = []
        numbers: list[int] = []
        device = torch.device("cpu")
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                parts.append(TensorPart.of(leaf))
                numbers += leaf.shape
                device = leaf.device if leaf.device.type != "cpu" else device
            elif isinstance(leaf, int) and not isinstance(leaf, bool):
                parts.append(NumberPart())
                numbers.append(leaf)
            else:
                parts.append(ConstantPart(leaf))
        return cls(operator, tuple(parts), tuple(int(n) for n in numbers), structure, device)

    @cached_property
    def kind(self) -> str:
        """What stays the same whatever is cut: the operator, the kinds of its arguments, and the constants."""
        return ", ".join(
            [str(self.operator), *(_constant(p) if isinstance(p, ConstantPart) else _name(p) for p in self.parts)]
        )

    @cached_property
    def key(self) -> str:
        """The call as text, the same for equal calls: what a table finds it by."""
        words = []
        for part, numbers in self._with_numbers():
            if isinstance(part, TensorPart):
                layout = "" if part.order == tuple(range(len(part.order))) else f" order {list(part.order)}"
                words.append(f"{_name(part)}{list(numbers)}{layout}")
            else:
                words.append(_constant(part) if isinstance(part, ConstantPart) else str(numbers[0]))
        return f"{self.operator}({', '.join(words)})"

    def resized(self, numbers: Sequence[int]) -> Operation:
        """Return the same call with other sizes."""
        return replace(self, numbers=tuple(numbers))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make arguments of those sizes, to call the operator with."""
        leaves: list[Any] = []
        for part, numbers in self._with_numbers():
            if isinstance(part, TensorPart):
                leaves.append(part.make(numbers, self.device))
            else:
                leaves.append(part.value if isinstance(part, ConstantPart) else numbers[0])
        args, kwargs = tree_unflatten(leaves, self.structure)
        return args, kwargs

    def _with_numbers(self) -> Iterator[tuple[Part, tuple[int, ...]]]:
        at = 0
        for part in self.parts:
            taken = len(part.order) if isinstance(part, TensorPart) else int(isinstance(part, NumberPart))
            yield part, self.numbers[at : at + taken]
            at += taken


def record_operations(model: nn.Module, inputs: Any) -> list[Operation]:
    """Run a model once, in the mode it is in, and return the operations of that forward pass, in order.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs : Tensor, tuple or dict
        Its arguments.

    Returns
    -------
    list of Operation
    """
    with measuring(0), torch.inference_mode():
        inputs = detached(inputs)
        with _Recorder() as recorder:
            run(model, inputs)
    return recorder.operations


class _Recorder(TorchDispatchMode):
    """Keeps what every operation was called with, but none of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(Operation.of(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _name(part: Part) -> str:
    return str(part.dtype).removeprefix("torch.") if isinstance(part, TensorPart) else "int"


def _constant(part: ConstantPart) -> str:
    """Name a constant; the name of an object without one would hold its address, which is never the same."""
    text = repr(part.value)
    return type(part.value).__qualname__ if " at 0x" in text else text
