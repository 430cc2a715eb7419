"""Example inputs: one tensor, a tuple of positional arguments, or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    Raises
    ------
    TypeError
        If they are neither a tensor, a tuple or list, nor a dict with string keys.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, dict) and all(isinstance(key, str) for key in example_inputs):
        return (), dict(example_inputs)
    raise TypeError(
        "example_inputs: expected a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}"
    )


def run(model: nn.Module, example_inputs: Any) -> Any:
    """Call the model on example inputs."""
    args, kwargs = as_arguments(example_inputs)
    return model(*args, **kwargs)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a layer reads, given by position or as ``input=``."""
    return args[0] if args else kwargs.get("input")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a nest of containers, dataclasses and plain objects, in order."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in([getattr(leaf, field.name) for field in fields(leaf)])
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)) and not callable(leaf):
            yield from tensors_in(list(vars(leaf).values()))


def to_double(value: Any) -> Any:
    """Copy example inputs with every floating-point tensor in float64."""
    return tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, value
    )


def detached(example_inputs: Any) -> Any:
    """Copy example inputs so that a model that writes into them harms nobody."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, example_inputs)
