"""Prune a network that a trainer holds: the same module and parameter objects, smaller.

Surgery returns a copy. A trainer has long handed out references to the module, its parameters, its optimisers and
their schedules, and cannot take another one. So the copy is made as always, proven as always, and then the objects that
everyone holds take over its tensors and sizes. This is the only place of the package that changes a caller's module.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from srr_ext.allocators.base import get_allocator
from srr_ext.cost import Target
from srr_ext.criteria import get_selector
from srr_ext.layers import widths_of
from srr_ext.plan import PruningPlan, make_plan
from srr_ext.surgery import apply_plan, cut, prune_optimizer


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what `make_plan` does not know before a training begins that would fail in its middle.

    Parameters
    ----------
    options : mapping of str to Any
        Keyword arguments for `make_plan`.

    Raises
    ------
    TypeError
        An option is unknown.
    ValueError
        There is not exactly one target, or it is out of range; or an allocator or selector of no known name.
    """
    known = [name for name, p in inspect.signature(make_plan).parameters.items() if p.kind is p.KEYWORD_ONLY]
    known.remove("analysis")  # of the network as it will be when it is pruned
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{unknown[0]}: make_plan has no such option; it takes {', '.join(known)}")
    Target.choose(**{name: value for name, value in options.items() if name.startswith("keep_")})
    get_allocator(options.get("allocator", "srr"))
    get_selector(options.get("selector", "l1"))


def check_network(network: nn.Module, example_inputs: Any, options: Mapping[str, Any]) -> None:
    """Refuse, when a training begins, a network that cannot be pruned as wanted; errors as in `make_plan`.

    The plan made here is the cheapest one, with the same target and limits; it looks at no images.
    """
    chosen = {key: value for key, value in options.items() if key not in ("data", "progress")}
    make_plan(network, on_device_of(network, example_inputs), **{**chosen, "allocator": "uniform", "selector": "l1"})


def is_dense(network: nn.Module, plan: PruningPlan) -> bool:
    """Whether a network has the widths of the one that a plan was made for, and so waits to be cut by it."""
    return {name: list(sides) for name, sides in widths_of(network).items()} == plan.widths


def prune_in_place(
    network: nn.Module,
    example_inputs: Any,
    options: Mapping[str, Any],
    *,
    twin: nn.Module | None = None,
    owner: nn.Module | None = None,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> PruningPlan:
    """Plan, cut, prove, and let the network and its optimisers become what came out.

    Parameters
    ----------
    network : nn.Module
        Changed in place, or, if anything is refused, not at all.
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass, on any device.
    options : mapping of str to Any
        Keyword arguments of `make_plan`.
    twin : nn.Module, optional
        A copy of the network to plan and prove with, where the network itself has been wrapped so that it computes in
        another precision than its own.
    owner : nn.Module, optional
        Module that the network is a part of, where optimisers hold parameters of that, too.
    optimizers : iterable of torch.optim.Optimizer
        Those that hold parameters of the network.

    Returns
    -------
    PruningPlan
        For the network as it was; the names in it are those inside the network.

    Raises
    ------
    TypeError, ValueError
        As `make_plan`, `apply_plan` and `prune_optimizer`.
    """
    source = network if twin is None else twin
    example_inputs = on_device_of(source, example_inputs)
    plan = make_plan(source, example_inputs, **options)
    small = apply_plan(source, plan, example_inputs)
    transplant(network, small, plan, owner=owner, optimizers=optimizers)
    return plan


def cut_in_place(network: nn.Module, plan: PruningPlan) -> None:
    """Give a dense network the shapes that a plan leaves, for weights that are loaded next; errors as in `cut`."""
    transplant(network, cut(network, plan), plan)


def transplant(
    network: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    *,
    owner: nn.Module | None = None,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> None:
    """Let a network become its pruned copy, and optimisers follow it.

    Parameters
    ----------
    network : nn.Module
        The dense network. All modules, parameters and buffers in it stay the objects that they are, and parameters
        keep their hooks; those that are cut lose their gradient.
    small : nn.Module
        What `cut` or `apply_plan` made of it; not to be used afterwards, as it shares its memory with the network.
    plan : PruningPlan
        The plan applied.
    owner : nn.Module, optional
        Module that the network is a part of.
    optimizers : iterable of torch.optim.Optimizer
        Their parameter groups stay as they are; state of parameters that are cut is cut alike.

    Raises
    ------
    ValueError
        As `prune_optimizer`; nothing has been changed then.
    """
    old, new = dict(network.named_parameters()), dict(small.named_parameters())
    changed = [(old[name], new[name]) for name in old if old[name].shape != new[name].shape]
    followers = [(optimizer, _follow(optimizer, network, small, plan, owner)) for optimizer in optimizers]
    for optimizer, follower in followers:
        for parameter, lesser in changed:
            if lesser in follower.state:
                optimizer.state[parameter] = follower.state[lesser]
    twins = dict(small.named_modules())
    for name, module in network.named_modules():
        twin = twins[name]
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            lesser = twin._parameters[key] if key in twin._parameters else twin._buffers[key]
            if tensor is not None and lesser is not None and tensor.shape != lesser.shape:
                _take_over(tensor, lesser.detach())
        for key, value in vars(twin).items():
            if type(value) is int and vars(module)[key] != value:  # in_channels, num_features and the like
                setattr(module, key, value)


def _follow(
    optimizer: torch.optim.Optimizer, network: nn.Module, small: nn.Module, plan: PruningPlan, owner: nn.Module | None
) -> torch.optim.Optimizer:
    """Return the pruned twin of an optimiser that may also hold parameters of the network's owner."""
    # A parameter has the first name that it is found under, so only the owner's others come from the second entry.
    rest = network if owner is None else owner
    before, after = nn.ModuleList([network, rest]), nn.ModuleList([small, rest])
    moved = replace(plan, layers={f"0.{name}": layer for name, layer in plan.layers.items()})
    return prune_optimizer(optimizer, before, after, moved)


def _take_over(tensor: Tensor, lesser: Tensor) -> None:
    """Give a tensor other memory and another shape."""
    tensor.grad = None
    # As long as a loss of an earlier step is alive, autograd remembers the shape that the gradient had. It forgets it
    # when the type changes.
    tensor.data = lesser.new_empty(0, dtype=torch.float16 if lesser.dtype != torch.float16 else torch.float32)
    tensor.data = lesser


def on_device_of(network: nn.Module, example_inputs: Any) -> Any:
    """Copy the tensors among example inputs to the device of the network's first parameter."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example_inputs)


def summary(plan: PruningPlan) -> dict[str, float]:
    """Return what a plan leaves, for logs: MACs, parameters and output channels, and the shares that they are."""
    numbers: dict[str, float] = {}
    for quantity, cost in plan.cost.items():
        numbers[f"srr/{quantity}"] = float(cost["pruned"])
        numbers[f"srr/{quantity}_kept"] = cost["pruned"] / cost["dense"]
    return numbers


def sentence(plan: PruningPlan, moment: str) -> str:
    """Say in a line what a plan did, and when."""
    costs = ", ".join(f"{cost['dense']:,} -> {cost['pruned']:,} {name}" for name, cost in plan.cost.items())
    return f"srr_ext: pruned at {moment} ({plan.allocator}+{plan.selector}): {costs}"
