"""Which layers could become bottlenecks, and what each would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from srr_ext.bottleneck.layer import REPLACEABLE, Basis, Replaceable
from srr_ext.copying import copy_model
from srr_ext.criteria.kfac import kernel_elements
from srr_ext.inputs import detached, first_argument, run


@dataclass(frozen=True)
class Candidate:
    """Shape facts of a layer that could be replaced.

    Attributes
    ----------
    name : str
        Module name.
    n_in, n_out, kernel : int
        Channels, and weights per pair of them.
    positions_in, positions_out : int
        Positions on either side, of all calls and images of the example inputs.
    """

    name: str
    n_in: int
    n_out: int
    kernel: int
    positions_in: int
    positions_out: int

    @property
    def dense(self) -> dict[str, int]:
        """MACs and weights of the layer as it is."""
        weights = self.n_out * self.n_in * self.kernel
        return {"macs": self.positions_out * weights, "params": weights}

    def replaced(self, rank_in: int, rank_out: int, basis: Basis) -> dict[str, int]:
        """MACs and weights of a bottleneck in its place, both rotations included; the bias stays."""
        first, core, last = self.n_in * rank_in, rank_in * rank_out, rank_out * self.n_out
        if basis == "patches":
            first, where = first * self.kernel, self.positions_out
        else:
            core, where = core * self.kernel, self.positions_in
        return {"macs": where * first + self.positions_out * (core + last), "params": first + core + last}


def find_candidates(
    model: nn.Module, example_inputs: Any, ignored: Iterable[str]
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the layers that could be replaced, in order of execution, and why each of the others could not.

    Raises
    ------
    TypeError
        If ``ignored`` is a string.
    ValueError
        If it names no module, or the model does not run on the example inputs.
    """
    if isinstance(ignored, str):
        raise TypeError(f"ignored: expected a list of module names, got the string {ignored!r}")
    modules, ignored = dict(model.named_modules()), set(ignored)
    unknown = sorted(ignored - modules.keys())
    if unknown:
        raise ValueError(f"ignored: no module of the model is called {unknown[0]!r}")
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    left = {
        name: "ignored" if name in ignored else reason
        for name, module in modules.items()
        if isinstance(module, (_ConvNd, nn.Linear)) and (name in ignored or (reason := _obstacle(module, owners)))
    }
    wanted = [name for name, m in modules.items() if isinstance(m, (_ConvNd, nn.Linear)) and name not in left]
    positions = _positions(model, example_inputs, wanted)
    left |= dict.fromkeys((name for name in wanted if name not in positions), "the example inputs do not reach it")
    if positions:
        last = list(positions)[-1]
        left[last] = "the last layer, whose outputs are the scores"  # as the authors' code has it
        del positions[last]
    found = []
    for name, (inside, outside) in positions.items():
        n_out, n_in = modules[name].weight.shape[:2]
        found.append(Candidate(name, n_in, n_out, kernel_elements(modules[name]), inside, outside))
    return found, left


def measured_cost(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Count MACs for the example inputs with torch's own counter, and parameters."""
    with FlopCounterMode(display=False) as counter:
        _run(copy_model(model, share_parameters=True), example_inputs)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"macs": counter.get_total_flops() // 2, "params": params}


def _obstacle(module: nn.Module, owners: Counter[int]) -> str:
    """Why a layer cannot be replaced; empty if it can."""
    weight = module._parameters.get("weight")
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution"
    if isinstance(module, _ConvNd) and module.groups > 1:
        return "a grouped convolution"
    if type(module) not in REPLACEABLE or weight is None:
        return f"{type(module).__name__} computes something of its own"
    if any(owners[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
        return "another layer has the same weights"
    return "it has hooks" if any(hooks) else ""


def _positions(model: nn.Module, example_inputs: Any, names: list[str]) -> dict[str, tuple[int, int]]:
    """Input and output positions of layers, in order of execution."""
    positions: dict[str, tuple[int, int]] = {}
    twin = copy_model(model, share_parameters=True)

    def count(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> None:
        inputs = first_argument(args, kwargs)
        n_out, n_in = cast(Replaceable, twin.get_submodule(name)).weight.shape[:2]
        before = positions.pop(name, (0, 0))
        positions[name] = before[0] + inputs.numel() // n_in, before[1] + outputs.numel() // n_out

    for name in names:
        twin.get_submodule(name).register_forward_hook(
            lambda module, args, kwargs, outputs, name=name: count(name, args, kwargs, outputs), with_kwargs=True
        )
    _run(twin, example_inputs)
    return positions


def _run(model: nn.Module, example_inputs: Any) -> None:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs = torch.utils._pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, detached(example_inputs)
    )
    try:
        with torch.no_grad():
            run(model.eval(), inputs)
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(f"example_inputs: the model does not run on them ({problem})") from error
