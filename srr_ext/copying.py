"""Copy a model, also one that holds computed tensors."""

from __future__ import annotations

import copy

from torch import Tensor, nn


def copy_model(model: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """Deep copy; tensors that a hook computed and left in a module (old-style `weight_norm`) are copied by value.

    They are no graph leaves, which ``copy.deepcopy`` refuses; the hook computes them again in the next forward pass.

    Parameters
    ----------
    model : nn.Module
        The model.
    share_parameters : bool, default False
        Whether the copy's parameters are new objects over the same memory, for a copy that only runs.
    """
    memo: dict[int, Tensor] = {}
    if share_parameters:
        memo = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
