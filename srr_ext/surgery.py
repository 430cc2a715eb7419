"""The only place that changes models, and always a copy: apply a plan, prove it exact, carry the optimiser along."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.channels.records import Side
from srr_ext.copying import copy_model
from srr_ext.equality import relative_error
from srr_ext.inputs import detached, run, tensors_in, to_double
from srr_ext.layers import Positions, cut_layers, cut_tensor, mask_layers, widths_of
from srr_ext.plan import PruningPlan

_SIDES: tuple[Side, Side] = ("out", "in")
TOLERANCE = 1e-9  # relative, in float64: the contract of surgery


def cut(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Copy the model and remove what the plan removes, without running it.

    Raises
    ------
    ValueError
        If the plan does not fit; the message names the first layer that disagrees.
    """
    if not isinstance(model, nn.Module) or not isinstance(plan, PruningPlan):
        given = f"{type(model).__name__} and {type(plan).__name__}"
        raise TypeError(f"model, plan: expected a torch.nn.Module and a PruningPlan, got {given}")
    sides, found = _sides(plan), widths_of(model)
    try:
        for name, widths in plan.widths.items():
            for side, planned, here in zip(_SIDES, widths, found.get(name, (None, None)), strict=True):
                if planned != here and (name not in found or (name, side) in sides):
                    raise ValueError(f"layer {name!r}: expected {planned} {side} channels, found {here or 'none'}")
        strange = [name for name in found if name not in plan.widths] if plan.widths else []
        if strange:
            raise ValueError(f"layer {strange[0]!r}: the model that the plan was made for has none of that name")
        return cut_layers(model, sides)
    except ValueError as error:
        raise ValueError(f"the plan does not fit this model: {error}") from None


def apply_plan(model: nn.Module, plan: PruningPlan, example_inputs: Any) -> nn.Module:
    """Return a smaller copy of the model, proven equal to the original with the removed filters at zero.

    Parameters
    ----------
    model : nn.Module
        The dense model; left untouched in every respect. Its training mode, dtype, device, memory format,
        ``requires_grad`` and hooks are carried over.
    plan : PruningPlan
        What stays.
    example_inputs : Tensor, tuple or dict
        Inputs for the proof, see `verify`.

    Returns
    -------
    nn.Module
        An ordinary model of the same class.

    Raises
    ------
    ValueError
        If the plan does not fit the model (the first layer that disagrees is named), or if the smaller model does not
        compute what it should.
    """
    small = cut(model, plan)
    error = _error(model, small, plan, example_inputs)
    if not error <= TOLERANCE:
        raise ValueError(
            f"plan: cutting this model by it changes the outputs by {error:.3g} relative (allowed: {TOLERANCE}); "
            "was it made for another model, or does the model choose its path at random or by the data?"
        )
    return small


def verify(model: nn.Module, plan: PruningPlan, example_inputs: Any) -> float:
    """Largest relative difference between the pruned model and the masked one, both in float64.

    The masked model is the original with the planned filters, their biases and their normalisation at zero.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    plan : PruningPlan
        What stays.
    example_inputs : Tensor, tuple or dict
        Inputs to compare on.

    Returns
    -------
    float
        max |pruned - masked| / max |masked|, the largest over the outputs; at most 1e-9 for a correct plan, infinite if
        outputs differ in shape, hold NaN or hold nothing.

    Raises
    ------
    ValueError
        If the plan does not fit the model.
    """
    return _error(model, cut(model, plan), plan, example_inputs)


def _error(model: nn.Module, small: nn.Module, plan: PruningPlan, example_inputs: Any) -> float:
    inputs = to_double(example_inputs)
    return relative_error(_outputs(masked(model, plan), inputs), _outputs(copy_model(small), inputs))


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    try:
        with torch.no_grad():
            return list(tensors_in(run(model.double().eval(), detached(inputs))))
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"plan, example_inputs: the model does not run with them in float64 ({problem})") from error


def masked(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Copy the model with every planned filter, its bias and its normalisation set to zero."""
    return mask_layers(model, _sides(plan))


def prune_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, pruned: nn.Module, plan: PruningPlan
) -> torch.optim.Optimizer:
    """Return an optimiser over the pruned model whose state is the original's, cut alike.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Optimiser over parameters of ``model``; left untouched.
    model, pruned : nn.Module
        The dense model and what `apply_plan` made of it.
    plan : PruningPlan
        The plan applied.

    Returns
    -------
    torch.optim.Optimizer
        Of the same class, with the same parameter groups and options; momentum and other state tensors of a cut
        parameter are cut along the same channels.

    Raises
    ------
    ValueError
        If the optimiser holds a parameter that is not the model's, or state that is not shaped like its parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    small = dict(pruned.named_parameters())
    modules = dict(model.named_modules())
    sides = _sides(plan)

    def cut_state(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.numel() == 1:
            return copy.deepcopy(value)  # step counts and the like
        module, _, attribute = name.rpartition(".")
        ins, outs = sides.get((module, "in")), sides.get((module, "out"))
        return cut_tensor(modules[module], attribute, value, ins, outs).clone()

    groups = []
    for group in optimizer.param_groups:
        unknown = [parameter for parameter in group["params"] if id(parameter) not in names]
        if unknown:
            raise ValueError(f"optimizer: holds a parameter of shape {list(unknown[0].shape)} that is not the model's")
        options = copy.deepcopy({key: value for key, value in group.items() if key != "params"})
        groups.append({**options, "params": [small[names[id(parameter)]] for parameter in group["params"]]})
    check_state(optimizer)
    twin = type(optimizer)(groups, **_constructor_defaults(optimizer))
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        twin.state[small[name]] = {key: cut_state(name, value) for key, value in state.items()}
    return twin


def check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError if an optimiser has state that is not shaped like its parameter, which cannot be cut."""
    for parameter, state in optimizer.state.items():
        for value in state.values():
            if isinstance(value, Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                kind = type(optimizer).__name__
                raise ValueError(
                    f"optimizer: {kind} keeps state of another shape than its parameters, which cannot be cut"
                )


def _constructor_defaults(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    accepted = inspect.signature(type(optimizer).__init__).parameters
    return {key: value for key, value in optimizer.defaults.items() if key in accepted}


def _sides(plan: PruningPlan) -> Mapping[tuple[str, Side], Positions]:
    sides: dict[tuple[str, Side], Positions] = {}
    for name, layer in plan.layers.items():
        both: tuple[tuple[Side, tuple[int, ...] | None], ...] = (("in", layer.in_), ("out", layer.out))
        sides |= {(name, side): np.asarray(kept, dtype=np.int64) for side, kept in both if kept is not None}
    return sides
