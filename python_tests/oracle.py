"""An exactness check of surgery that shares no code with the package, and plans to try it on.

The contract of surgery: in a float64 copy of the model, zero the weight and bias rows of every removed output channel
(affine parameters in normalisation layers). The pruned model computes what that masked copy computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

CONTRACT = 1e-9  # relative error of the outputs, float64


def as_tuple(example: Any) -> tuple[Any, ...]:
    """Return the positional arguments for example inputs given as a tensor or a tuple."""
    return example if isinstance(example, tuple) else (example,)


def to_double(value: Any) -> Any:
    """Return a nested structure with its floating-point tensors detached, copied and in float64."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().clone()
        return leaf.double() if leaf.is_floating_point() else leaf

    return pytree.tree_map(convert, value)


def clone(model: nn.Module) -> nn.Module:
    """Return a deep copy, also of modules that hold tensors with a history (weight_norm by hooks)."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def double_copy(model: nn.Module) -> nn.Module:
    """Return an independent float64 copy in evaluation mode."""
    return clone(model).double().eval()


def bake(module: nn.Module) -> None:
    """Replace weight_norm, spectral_norm and other reparametrisations of one module by plain parameters."""
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    for hook in list(module._forward_pre_hooks.values()):
        kind = type(hook).__name__
        if kind == "WeightNorm":
            nn.utils.remove_weight_norm(module, hook.name)
        elif kind == "SpectralNorm":
            nn.utils.remove_spectral_norm(module, hook.name)


@torch.no_grad()
def zero_rows(module: nn.Module, kept: np.ndarray) -> None:
    """Zero the parameters that make the output channels which are not kept."""
    if isinstance(module, nn.PReLU):
        return  # it keeps zeros
    bake(module)
    weight, bias = module.weight, module.bias
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        width = module.out_channels
    elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.modules.batchnorm._NormBase | nn.GroupNorm):
        width = len(weight) if weight is not None else module.num_features
    elif isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) != 1:
            raise AssertionError("the oracle knows no removal of channels from a LayerNorm over several dimensions")
        width = module.normalized_shape[0]
    elif isinstance(module, nn.Embedding):
        width = module.embedding_dim
    else:
        raise AssertionError(f"the oracle does not know how a {type(module).__name__} loses output channels")
    kept = np.asarray(kept)
    if kept.ndim != 1 or np.any(np.diff(kept) <= 0) or (len(kept) and (kept[0] < 0 or kept[-1] >= width)):
        raise AssertionError(f"kept indices of a {type(module).__name__} with {width} outputs: {kept}")
    removed = np.setdiff1d(np.arange(width), kept)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        per_group, fan = width // module.groups, module.in_channels // module.groups
        for channel in removed:  # the weight is [inputs, outputs per group, ...]
            group = channel // per_group
            weight[group * fan : (group + 1) * fan, channel % per_group] = 0
    elif isinstance(module, nn.Embedding):
        weight[:, removed] = 0
        return
    elif weight is not None:
        weight[removed] = 0
    if bias is not None:
        bias[removed] = 0


def masked_copy(model: nn.Module, plan: Any) -> nn.Module:
    """Return the float64 copy of the model whose planned channels are zero."""
    masked = double_copy(model)
    modules = dict(masked.named_modules(remove_duplicate=False))
    for name, layer in plan.layers.items():
        if layer.out is not None:
            zero_rows(modules[name], np.asarray(layer.out))
    return masked


def tensors(value: Any) -> list[Any]:
    """Return the leaves of nested outputs, None included."""
    return pytree.tree_leaves(value, is_leaf=lambda leaf: leaf is None)


def relative_error(result: Any, wanted: Any) -> float:
    """Return the largest difference of two nested outputs, relative to the largest value of each tensor.

    Structures, shapes, numbers and integer tensors must be equal: otherwise, or with NaN on one side, infinity.
    """
    if pytree.tree_structure(result) != pytree.tree_structure(wanted):
        return float("inf")
    worst = 0.0
    for a, b in zip(tensors(result), tensors(wanted), strict=True):
        if not isinstance(b, Tensor):
            worst = max(worst, 0.0 if a == b else float("inf"))
        elif a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        elif not b.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
        elif b.numel():
            scale = b.abs().max().item() or 1.0
            error = (a - b).abs().max().item() / scale
            worst = max(worst, error if error == error else float("inf"))
    return worst


@contextmanager
def deterministic_training(*models: nn.Module) -> Iterator[None]:
    """Train models with dropout at zero and normalisation in evaluation mode; back to evaluation mode afterwards."""
    for model in models:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
            if "Drop" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
                module.p = 0.0  # type: ignore[assignment]
    yield
    for model in models:
        model.eval()


def run(model: nn.Module, example: Any) -> Any:
    """Run a model on a private copy of example inputs in float64, without gradients and from a fixed seed."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(*as_tuple(to_double(example)))


def exactness(model: nn.Module, plan: Any, example: Any, *, training: bool = True) -> float:
    """Return the relative error of the pruned model against the masked one, in evaluation and in training mode.

    With ``training=False`` the training pass must still run, but its outputs are not compared.
    """
    import srr_ext

    pruned = srr_ext.apply_plan(double_copy(model), plan, to_double(example))
    check_sizes(model, pruned, plan)
    pruned = pruned.double().eval()
    masked = masked_copy(model, plan)
    error = relative_error(run(pruned, example), run(masked, example))
    with deterministic_training(pruned, masked):
        result = run(pruned, example)
        if training:
            error = max(error, relative_error(result, run(masked, example)))
    return error


def has_effect(model: nn.Module, plan: Any, example: Any) -> bool:
    """Return whether the planned channels matter to the outputs: an oracle that cannot see them proves nothing."""
    return relative_error(run(masked_copy(model, plan), example), run(double_copy(model), example)) > 1e-6


def check_sizes(model: nn.Module, pruned: nn.Module, plan: Any) -> None:
    """Assert that every planned module of the pruned model has as many channels as the plan keeps, and says so."""
    before, after = (dict(m.named_modules(remove_duplicate=False)) for m in (model, pruned))
    assert before.keys() == after.keys(), f"surgery changed the modules: {before.keys() ^ after.keys()}"
    for name, layer in plan.layers.items():
        module = after[name]
        assert type(module) is type(before[name]) or parametrize.is_parametrized(before[name]), name
        n_out = None if layer.out is None else len(layer.out)
        n_in = None if layer.in_ is None else len(layer.in_)
        for attribute, wanted in _attributes(module, n_out, n_in).items():
            assert getattr(module, attribute) == wanted, (
                f"{name}.{attribute} is {getattr(module, attribute)}, not {wanted}"
            )
        if isinstance(module, nn.modules.conv._ConvNd):
            a, b = module.in_channels, module.out_channels
            if module.transposed:
                a, b = b, a
            assert tuple(module.weight.shape[:2]) == (b, a // module.groups), (
                f"{name}.weight is {tuple(module.weight.shape)}"
            )
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features), name


def _attributes(module: nn.Module, n_out: int | None, n_in: int | None) -> dict[str, Any]:
    sizes: dict[str, Any]
    if isinstance(module, nn.modules.conv._ConvNd):
        sizes = {"out_channels": n_out, "in_channels": n_in}
    elif isinstance(module, nn.Linear):
        sizes = {"out_features": n_out, "in_features": n_in}
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sizes = {"num_features": n_out}
    elif isinstance(module, nn.LayerNorm):
        sizes = {"normalized_shape": None if n_out is None else (n_out,)}
    elif isinstance(module, nn.GroupNorm):
        sizes = {"num_channels": n_out}
    else:
        sizes = {}
    return {name: size for name, size in sizes.items() if size is not None}


def random_kept(
    analysis: Any, seed: int, fraction: float, streams: Literal["prune", "keep"] = "prune"
) -> dict[str, np.ndarray]:
    """Return random kept vertices of every group: about ``fraction`` of each goes, at least one and never all."""
    rng = np.random.default_rng(seed)
    kept: dict[str, np.ndarray] = {}
    for group in analysis.groups:
        removed = min(group.size - 1, max(1, round(fraction * group.size)))
        if streams == "keep" and group.stream:
            removed = 0
        kept[group.name] = np.sort(rng.permutation(group.size)[removed:]).astype(np.int64)
    return kept


def plan_for(analysis: Any, kept: Mapping[str, np.ndarray]) -> Any:
    """Return the plan that keeps these vertices."""
    from srr_ext.plan import plan_from_vertices

    return plan_from_vertices(analysis, kept)


def random_plan(
    model: nn.Module, example: Any, seed: int, fraction: float, streams: Literal["prune", "keep"] = "prune"
) -> Any:
    """Return a plan that removes a random subset of every group's vertices, so that wrong alignments show."""
    from srr_ext.channels import analyze_channels

    analysis = analyze_channels(model, example)
    return plan_for(analysis, random_kept(analysis, seed, fraction, streams))


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that analysis and surgery must leave alone, comparable with ``==``."""
    facts: dict[str, Any] = {
        "modules": [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    }
    for name, module in model.named_modules():
        hooks = {k: [(i, id(h)) for i, h in v.items()] for k, v in vars(module).items() if k.endswith("_hooks")}
        facts[f"{name}:module"] = (
            module.training,
            type(module),
            sorted(vars(module)),
            hooks,
            id(vars(module).get("forward")),
        )
    kinds = (("parameter", model.named_parameters), ("buffer", model.named_buffers))
    for kind, iterate in kinds:
        for name, tensor in iterate(remove_duplicate=False):
            raw = tensor.detach().cpu().contiguous().clone().view(-1).view(torch.uint8)
            facts[f"{name}:{kind}"] = (
                id(tensor),
                tensor.data_ptr(),
                tensor.dtype,
                tensor.device,
                tuple(tensor.shape),
                tensor.stride(),
                tensor.requires_grad,
                None if tensor.grad is None else tensor.grad.clone().numpy().tobytes(),
                tensor._version,
                raw.numpy().tobytes(),
            )
    return facts
