"""Surgery: what it carries over, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import zoo
from torch import nn

import srr_ext
from srr_ext.channels import analyze_channels
from srr_ext.plan import plan_from_vertices

ZOO = zoo.load()
VARIED = (
    "plain_chain",
    "residual",
    "inverted_residual",
    "squeeze_excite",
    "u_net",
    "dense_block",
    "flatten_nhwc",
    "prelu_channels",
)


def built(name: str, seed: int = 0, fraction: float = 0.5) -> tuple[nn.Module, Any, Any]:
    """Return a zoo model, its example and a random plan."""
    model, example = ZOO[name].build()
    return model, example, oracle.random_plan(model, example, seed, fraction)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the deprecation warnings of TorchScript, which deployments still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def apply(model: nn.Module, plan: Any, example: Any) -> nn.Module:
    """Return the pruned copy."""
    pruned: nn.Module = srr_ext.apply_plan(model, plan, example)
    return pruned


# -- the caller's model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_callers_model_is_untouched(name: str) -> None:
    """Parameters, buffers, gradients, modes, hooks and attributes of the model are what they were, bit for bit."""
    model, example, plan = built(name)
    if all(p.is_leaf for p in model.parameters()) and next(model.parameters()).dtype == torch.float32:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    before, generator = oracle.state_of(model), torch.get_rng_state()
    apply(model, plan, example)
    after = oracle.state_of(model)
    assert {key for key in before if before[key] != after.get(key)} == set()
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("name", VARIED)
def test_nothing_is_shared_with_the_callers_model(name: str) -> None:
    """Training the pruned model cannot change the original: no storage is common to both."""
    model, example, plan = built(name)
    pruned = apply(model, plan, example)

    def storages(net: nn.Module) -> set[int]:
        return {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers()) if t.numel()}

    assert not storages(model) & storages(pruned)


def test_the_plan_is_untouched() -> None:
    """Applying a plan twice gives the same model twice, and the plan's text does not change."""
    model, example, plan = built("inverted_residual")
    before = plan.to_json()
    first, second = apply(model, plan, example), apply(model, plan, example)
    assert plan.to_json() == before
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


# -- what is carried over ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIED)
def test_the_pruned_model_is_an_ordinary_one(name: str) -> None:
    """Same classes, names and modes; fewer parameters; parameters are leaves without gradients."""
    model, example, plan = built(name)
    model.train()
    model.get_submodule(next(iter(plan.layers))).eval()
    pruned = apply(model, plan, example)
    assert type(pruned) is type(model)
    assert [(n, type(m), m.training) for n, m in pruned.named_modules()] == [
        (n, type(m), m.training) for n, m in model.named_modules()
    ]
    assert [n for n, _ in pruned.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in pruned.named_buffers()] == [n for n, _ in model.named_buffers()]
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.grad is None for p in pruned.parameters())


def test_requires_grad_is_carried_over() -> None:
    """Frozen parameters stay frozen, cut or not; buffers stay buffers."""
    model, example, plan = built("plain_chain")
    frozen = [
        name for i, (name, p) in enumerate(model.named_parameters()) if i % 2 == 0 and p.requires_grad_(False) is p
    ]
    pruned = apply(model, plan, example)
    assert [n for n, p in pruned.named_parameters() if not p.requires_grad] == frozen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_carried_over(dtype: torch.dtype) -> None:
    """Every parameter and floating-point buffer keeps its type; the integer buffers theirs."""
    model, example, plan = built("residual")
    pruned = apply(model.to(dtype), plan, example.to(dtype))
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert {b.dtype for b in pruned.buffers()} == {dtype, torch.int64}


def test_device_is_carried_over() -> None:
    """A model on another device stays there, whichever it is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, example, plan = built("residual")
    pruned = apply(model.to(device), plan, example.to(device))
    assert {t.device.type for t in (*pruned.parameters(), *pruned.buffers())} == {device.type}


def test_memory_format_is_carried_over() -> None:
    """Convolution weights in channels_last stay so; contiguous ones stay contiguous."""
    model, example, plan = built("plain_chain")
    assert all(p.is_contiguous() for p in apply(model, plan, example).parameters())
    pruned = apply(model.to(memory_format=torch.channels_last), plan, example)
    weights = [p for p in pruned.parameters() if p.dim() == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_hooks_are_carried_over() -> None:
    """Forward and backward hooks run on the pruned model; handles of the original remove only the original's."""
    model, example, plan = built("plain_chain")
    calls: list[str] = []
    handle = model.get_submodule("net.2").register_forward_hook(lambda *_: calls.append("forward"))
    model.get_submodule("net.5").register_full_backward_hook(lambda *_: calls.append("backward"))
    model.register_forward_pre_hook(lambda *_: calls.append("pre"))
    pruned = apply(model, plan, example)
    calls.clear()
    pruned(example).sum().backward()
    assert calls == ["pre", "forward", "backward"]
    handle.remove()
    calls.clear()
    pruned(example)
    assert "forward" in calls


def test_kept_values_are_the_originals() -> None:
    """What is kept is copied exactly, in ascending order, in weights, biases, affine parameters and statistics."""
    model, example, plan = built("plain_chain")
    pruned = apply(model, plan, example)
    layers = plan.layers
    for name, inputs in (("net.2", layers["net.2"].in_), ("net.5", layers["net.5"].in_)):
        old, new = model.get_submodule(name), pruned.get_submodule(name)
        out = np.asarray(layers[name].out)
        assert torch.equal(new.weight, old.weight[out][:, np.asarray(inputs)])
        assert torch.equal(new.bias, old.bias[out])
    old, new, kept = model.get_submodule("net.3"), pruned.get_submodule("net.3"), np.asarray(layers["net.3"].out)
    for attribute in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(new, attribute), getattr(old, attribute)[kept])


def test_attributes_follow() -> None:
    """in_channels, out_channels, groups and num_features say what the tensors are, in ``repr`` as well."""
    model, example, plan = built("inverted_residual")
    pruned = apply(model, plan, example)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            assert tuple(module.weight.shape[:2]) == (module.out_channels, module.in_channels // module.groups), name
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean), name
    depth = pruned.get_submodule("blocks.0.depth.0")
    assert depth.groups == depth.in_channels == depth.out_channels < 12
    assert f"groups={depth.groups}" in repr(depth)


def test_an_empty_plan_changes_nothing() -> None:
    """Keeping every vertex gives the same tensors and outputs."""
    model, example = ZOO["residual"].build()
    analysis = analyze_channels(model, example)
    plan = plan_from_vertices(analysis, {g.name: np.arange(g.size) for g in analysis.groups})
    pruned = apply(model, plan, example)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), pruned.state_dict().values(), strict=True)
    )
    assert torch.equal(model(example), pruned(example))


def test_tied_parameters_stay_tied() -> None:
    """A module registered under two names, and called twice, is one module after surgery too."""
    model, example, plan = built("shared_conv_sizes")
    model.alias = model.b
    pruned = apply(model, oracle.random_plan(model, example, 0, 0.5), example)
    assert pruned.alias is pruned.b
    weights, weights_example, plan = built("tied_weights_and_bias")
    pruned = apply(weights, plan, weights_example)
    assert pruned.b.weight is pruned.c.weight
    assert pruned.b.bias is pruned.c.bias


# -- afterwards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIED)
def test_a_pruned_model_can_be_pruned_again(name: str) -> None:
    """The second analysis sees an ordinary model, and its plans are exact too."""
    model, example, plan = built(name, fraction=0.3)
    pruned = apply(model, plan, example)
    again = oracle.random_plan(pruned, example, 1, 0.3)
    assert oracle.exactness(pruned, again, example) < oracle.CONTRACT
    smaller = apply(pruned, again, example)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in pruned.parameters())


@pytest.mark.parametrize(
    "name", ["plain_chain", "residual_padded", "inverted_residual", "squeeze_excite", "dense_block"]
)
def test_the_pruned_model_exports(name: str) -> None:
    """torch.export and torch.jit.trace take the pruned model and agree with it."""
    model, example, plan = built(name)
    pruned = apply(model, plan, example).eval()
    wanted = pruned(example)
    exported = torch.export.export(pruned, oracle.as_tuple(example)).module()
    assert oracle.relative_error(exported(example), wanted) < 1e-5
    with torch.no_grad(), quiet():
        traced = torch.jit.trace(pruned, example, check_trace=False)
        assert oracle.relative_error(traced(example), wanted) < 1e-5


def test_the_pruned_model_scripts() -> None:
    """An ordinary Sequential stays scriptable and symbolically traceable."""
    model = nn.Sequential(
        zoo.conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), zoo.conv(6, 8), nn.ReLU(), zoo.conv(8, 5)
    ).eval()
    example = zoo.image()
    pruned = apply(model, oracle.random_plan(model, example, 0, 0.5), example)
    with quiet():
        scripted = torch.jit.script(pruned)
    assert oracle.relative_error(scripted(example), pruned(example)) < 1e-5
    assert oracle.relative_error(torch.fx.symbolic_trace(pruned)(example), pruned(example)) < 1e-5


def test_the_pruned_model_learns_and_saves(tmp_path: Any) -> None:
    """Gradients reach every parameter; its state loads into a second pruned copy without a pickle of the module."""
    model, example, plan = built("residual")
    pruned = apply(model, plan, example).train()
    pruned(example).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    other = apply(model, plan, example)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other.eval()(example), pruned.eval()(example))
    copy.deepcopy(pruned)


def test_planning_and_surgery_are_deterministic() -> None:
    """The same seed gives the same plan byte for byte and the same weights bit for bit."""
    texts, states = [], []
    for _ in range(2):
        model, example, plan = built("u_net", seed=5)
        texts.append(plan.to_json())
        states.append(apply(model, plan, example).state_dict())
    assert texts[0] == texts[1]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_plans_survive_their_file(tmp_path: Any) -> None:
    """A plan that was saved and loaded cuts the same model."""
    model, example, plan = built("dense_block")
    plan.save(tmp_path / "plan.json")
    loaded = srr_ext.PruningPlan.load(tmp_path / "plan.json")
    first, second = apply(model, plan, example), apply(model, loaded, example)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert oracle.exactness(model, loaded, example) < oracle.CONTRACT


@pytest.mark.parametrize("name", VARIED)
def test_verify_agrees_with_the_oracle(name: str) -> None:
    """The package's own verification accepts what the oracle accepts."""
    model, example, plan = built(name)
    assert srr_ext.verify(model, plan, example) < oracle.CONTRACT


def test_layer_plans_are_consistent() -> None:
    """Indices are sorted, unique and within range, and only modules that change are listed."""
    for name in VARIED:
        model, _, plan = built(name)
        modules = dict(model.named_modules())
        for layer, cut in plan.layers.items():
            assert cut.out is not None or cut.in_ is not None
            module = modules[layer]
            sizes = {
                "out": getattr(
                    module, "out_channels", getattr(module, "out_features", getattr(module, "num_features", None))
                )
            }
            sizes["in_"] = getattr(module, "in_channels", getattr(module, "in_features", None))
            for side, kept in (("out", cut.out), ("in_", cut.in_)):
                if kept is not None:
                    kept = list(kept)
                    assert kept == sorted(set(kept))
                    assert kept[0] >= 0
                    assert sizes[side] is None or kept[-1] < sizes[side]


# -- plans that do not fit --------------------------------------------------------------------------------------------


def _chain(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in zip((3, *widths[:-1]), widths, strict=True):
        layers += [zoo.conv(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


@pytest.mark.parametrize(
    ("other", "culprit"),
    [
        (lambda: _chain(6, 9, 10, 5), "2"),
        (lambda: _chain(4, 8, 10, 5), "0"),
        (lambda: nn.Sequential(*[*_chain(6, 8, 10, 5)][:3], nn.ReLU(), nn.Flatten()), "4"),
        (lambda: nn.Sequential(*[*_chain(6, 8)], nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), zoo.conv(8, 5)), "4"),
    ],
    ids=["second-wider", "first-narrower", "missing", "other-type"],
)
def test_a_plan_for_another_model_names_the_layer(other: Callable[[], nn.Module], culprit: str) -> None:
    """The first layer that disagrees is named, and the model that was offered is left alone."""
    model, example = _chain(6, 8, 10, 5), zoo.image()
    plan = oracle.random_plan(model, example, 0, 0.5)
    stranger = other()
    before = oracle.state_of(stranger)
    with pytest.raises(ValueError, match=rf"(^|\W){re.escape(culprit)}(\W|$)"):
        srr_ext.apply_plan(stranger, plan, example)
    assert oracle.state_of(stranger) == before


def test_a_missing_layer_is_named_in_full() -> None:
    """Names with dots are reported whole."""
    _, example, plan = built("residual")
    stranger, _ = ZOO["plain_chain"].build()
    with pytest.raises(ValueError, match=re.escape(next(iter(plan.layers)))):
        srr_ext.apply_plan(stranger, plan, example)


def test_pruning_a_pruned_model_with_the_same_plan_is_refused() -> None:
    """The plan no longer fits: the widths are not those it was made for."""
    model, example, plan = built("plain_chain")
    with pytest.raises(ValueError, match=r"net\.0"):
        srr_ext.apply_plan(apply(model, plan, example), plan, example)


@pytest.mark.parametrize(
    "kept",
    [np.array([], dtype=np.int64), np.array([0, 99]), np.array([-1, 2])],
    ids=["none", "too-large", "negative"],
)
def test_impossible_vertices_are_refused(kept: np.ndarray) -> None:
    """Empty groups and vertices out of range are errors that name the group."""
    model, example = ZOO["plain_chain"].build()
    analysis = analyze_channels(model, example)
    wanted = {g.name: np.arange(g.size) for g in analysis.groups} | {"net.2": kept}
    with pytest.raises(ValueError, match=r"net\.2"):
        plan_from_vertices(analysis, wanted)


def test_unknown_groups_are_refused() -> None:
    """A group name the analysis does not have is an error that names it."""
    model, example = ZOO["plain_chain"].build()
    analysis = analyze_channels(model, example)
    with pytest.raises(ValueError, match="nonsense"):
        plan_from_vertices(analysis, {g.name: np.arange(g.size) for g in analysis.groups} | {"nonsense": np.arange(2)})


# -- the proof itself -------------------------------------------------------------------------------------------------


def test_outputs_that_are_not_numbers_prove_nothing() -> None:
    """A model whose outputs are NaN cannot be verified, so a plan for it is refused."""
    model, example = _chain(6, 8, 5), zoo.image()
    plan = oracle.random_plan(model, example, 0, 0.5)
    with torch.no_grad():
        model[2].bias[:] = float("nan")
    assert srr_ext.verify(model, plan, example) == float("inf")
    with pytest.raises(ValueError, match="plan"):
        srr_ext.apply_plan(model, plan, example)
