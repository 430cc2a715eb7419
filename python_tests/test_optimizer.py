"""Optimisers follow surgery: momentum and other state is cut with its parameters, options are carried over."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

import srr_ext
from srr_ext.surgery import prune_optimizer

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

ZOO = zoo.load()
OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def _loss(model: nn.Module, example: Any) -> Tensor:
    outputs = [t for t in oracle.tensors(model(*oracle.as_tuple(example))) if isinstance(t, Tensor)]
    return torch.stack([F.mse_loss(t.tanh(), torch.full_like(t, 0.3)) for t in outputs]).sum()


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, example: Any) -> None:
    optimiser.zero_grad()
    _loss(model, example).backward()
    optimiser.step()


def _kept_slices(module: nn.Module, cut: Any, tensor: Tensor) -> Tensor:
    """Cut a parameter of a masked module to what the plan keeps (ungrouped layers only)."""
    if cut.out is not None:
        tensor = tensor[np.asarray(cut.out)]
    if cut.in_ is not None and tensor.dim() > 1:
        tensor = tensor[:, np.asarray(cut.in_)]
    return tensor


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@pytest.mark.parametrize("name", ["plain_chain", "residual", "flatten_nhwc"])
def test_a_step_after_surgery_is_the_masked_models_step(name: str, optimiser: str) -> None:
    """Train, prune model and optimiser, step once: the kept parameters move as the masked full model's do.

    The masked model is the original with the removed channels' parameters at zero; BatchNorm is in evaluation mode,
    so that a removed channel stays silent and the kept parameters' gradients are equal in both.
    """
    model, example = ZOO[name].build()
    model, example = model.double(), oracle.to_double(example)
    state = OPTIMISERS[optimiser](model.parameters())
    for _ in range(3):
        _step(model, state, example)
    plan = oracle.random_plan(model, example, 0, 0.5)
    pruned = srr_ext.apply_plan(model, plan, example)
    carried = prune_optimizer(state, model, pruned, plan)
    assert type(carried) is type(state)

    modules = dict(model.named_modules())
    for layer, cut in plan.layers.items():
        if cut.out is not None:
            oracle.zero_rows(modules[layer], np.asarray(cut.out))
    _step(model, state, example)
    _step(pruned, carried, example)
    for key, after in pruned.named_parameters():
        layer = key.rpartition(".")[0]
        wanted = dict(model.named_parameters())[key]
        if layer in plan.layers:
            wanted = _kept_slices(modules[layer], plan.layers[layer], wanted)
        torch.testing.assert_close(after, wanted, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")


def test_optimiser_groups_and_options_are_carried_over() -> None:
    """Parameter groups keep their members' places, learning rates and other options; scalars of the state too."""
    model, example = ZOO["residual"].build()
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    rest = [p for p in model.parameters() if all(p is not q for q in norms)]
    state = torch.optim.AdamW(
        [{"params": rest, "lr": 0.02, "name": "rest"}, {"params": norms, "weight_decay": 0.0}], lr=0.01
    )
    _step(model, state, example)
    plan = oracle.random_plan(model, example, 0, 0.5)
    pruned = srr_ext.apply_plan(model, plan, example)
    carried = prune_optimizer(state, model, pruned, plan)
    names = {id(p): n for n, p in model.named_parameters()}
    new_names = {id(p): n for n, p in pruned.named_parameters()}
    for old, new in zip(state.param_groups, carried.param_groups, strict=True):
        assert [names[id(p)] for p in old["params"]] == [new_names[id(p)] for p in new["params"]]
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}
        for before, after in zip(old["params"], new["params"], strict=True):
            assert carried.state[after]["step"] == state.state[before]["step"]
            assert carried.state[after]["exp_avg"].shape == after.shape
            assert carried.state[after]["exp_avg"].data_ptr() != state.state[before]["exp_avg"].data_ptr()


def test_optimiser_surgery_leaves_the_original_alone() -> None:
    """The old optimiser still drives the old model, with its own state."""
    model, example = ZOO["residual"].build()
    state = torch.optim.Adam(model.parameters(), lr=0.01)
    _step(model, state, example)
    before = copy.deepcopy(state.state_dict())
    plan = oracle.random_plan(model, example, 0, 0.5)
    pruned = srr_ext.apply_plan(model, plan, example)
    carried = prune_optimizer(state, model, pruned, plan)
    _step(pruned, carried, example)
    after = state.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for index, values in before["state"].items():
        assert all(torch.equal(values[key], after["state"][index][key]) for key in values)


def test_an_optimiser_of_another_model_is_refused() -> None:
    """Parameters that are not the model's are an error, not a silent fresh start."""
    model, example = ZOO["residual"].build()
    plan = oracle.random_plan(model, example, 0, 0.5)
    pruned = srr_ext.apply_plan(model, plan, example)
    stranger, _ = ZOO["plain_chain"].build()
    with pytest.raises(ValueError, match="optimizer"):
        prune_optimizer(torch.optim.SGD(stranger.parameters(), lr=0.1), model, pruned, plan)


def test_a_fresh_optimiser_has_nothing_to_cut() -> None:
    """An optimiser that never stepped, over some of the parameters only, is carried over as it is."""
    model, example = ZOO["residual"].build()
    plan = oracle.random_plan(model, example, 0, 0.5)
    pruned = srr_ext.apply_plan(model, plan, example)
    carried = prune_optimizer(torch.optim.SGD(model.stem.parameters(), lr=0.1, momentum=0.9), model, pruned, plan)
    assert {id(p) for g in carried.param_groups for p in g["params"]} == {id(p) for p in pruned.stem.parameters()}
    _step(pruned, carried, example)
