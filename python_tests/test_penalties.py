"""Penalties: their steps in closed form, what they leave alone, and that what they make zero can go."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from coupled_oracle import all_weights, numbered, weights_of
from planning_nets import NETS, Net, chain, grouped, residual
from random_nets import random_net
from torch import nn
from training_data import Fixed

from srr_ext import analyze_channels, apply_plan, make_plan
from srr_ext.allocators.zero_groups import zero_groups
from srr_ext.channels.records import ChannelGroup
from srr_ext.coupled import CoupledWeights
from srr_ext.criteria.group_norm import group_norm
from srr_ext.graph import select_groups
from srr_ext.training import SparseConfig, evaluate, learning_rate_factor, make_penalty, train
from srr_ext.training.penalties import BatchNormL1, GroupLasso, WeightL1


def settings(penalty: str = "group_lasso", strength: float = 0.1, **others: object) -> SparseConfig:
    return SparseConfig(penalty=penalty, strength=strength, **others)  # type: ignore[arg-type]


def typical_norm(net: Net) -> float:
    return float(torch.cat([CoupledWeights(group, net.model).norms() for group in net.groups]).median())


# --- group lasso ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_a_step_is_the_proximal_operator_group_after_group(net: str) -> None:
    """In closed form, on the weights that surgery says go with each vertex."""
    made = NETS[net]()
    made.model.double()
    twin, want = numbered(made.model), all_weights(made.model)
    lr, strength = 0.5, 2 * typical_norm(made)
    for group in made.groups:  # the second on what the first has left
        owned = [weights_of(twin, group, vertex) for vertex in range(group.size)]
        norms = [want[numbers].norm().item() for numbers in owned]
        for numbers, norm in zip(owned, norms, strict=True):
            want[numbers] *= max(0.0, 1 - lr * strength / norm)
    penalty = GroupLasso(made.groups, made.model, strength)
    penalty.step(lr)
    np.testing.assert_allclose(all_weights(made.model), want, rtol=1e-12)
    zero = {g.name: sum(bool((want[weights_of(twin, g, v)] == 0).all()) for v in range(g.size)) for g in made.groups}
    assert penalty.zero_vertices() == zero and 0 < sum(zero.values()) < sum(g.size for g in made.groups)


def test_it_solves_what_a_proximal_operator_has_to_solve() -> None:
    """With one group: argmin of |w - v|^2 / 2 + t sum |w_j|, whose sub-gradient holds zero."""
    net = chain()
    group = net.groups[:1]
    net.model.double()
    twin, before = numbered(net.model), all_weights(net.model)
    threshold = float(CoupledWeights(group[0], net.model).norms().median())
    GroupLasso(group, net.model, 2.0).step(threshold / 2)
    after, zero = all_weights(net.model), 0
    for vertex in range(group[0].size):
        numbers = weights_of(twin, group[0], vertex)
        v, w = before[numbers], after[numbers]
        if (w == 0).all():
            zero += 1
            assert v.norm() <= threshold * (1 + 1e-12)
        else:
            torch.testing.assert_close(w - v + threshold * w / w.norm(), torch.zeros_like(w), atol=1e-12, rtol=0)
    assert 0 < zero < group[0].size


def test_no_other_weights_solve_it_better() -> None:
    """Brute force: along every vertex and anywhere, the minimum is higher by half the squared distance at least."""
    net = chain()
    group = net.groups[0]
    net.model.double()
    twin, before = numbered(net.model), all_weights(net.model)
    threshold = float(CoupledWeights(group, net.model).norms().median())
    GroupLasso([group], net.model, threshold).step(1.0)
    after, generator = all_weights(net.model), torch.Generator().manual_seed(0)
    for vertex in range(group.size):
        numbers = weights_of(twin, group, vertex)
        v, w = before[numbers], after[numbers]
        along = torch.linspace(-1, 2, 301, dtype=torch.float64)[:, None] * v
        radius = 10 ** torch.linspace(-4, 0.5, 100, dtype=torch.float64)[:, None]
        around = w + radius * torch.randn(100, len(v), generator=generator, dtype=torch.float64)
        others = torch.cat([along, around])
        best, rest = (((x - v) ** 2).sum(-1) / 2 + threshold * x.norm(dim=-1) for x in (w, others))
        assert (rest >= best + ((others - w) ** 2).sum(-1) / 2 - 1e-12).all()


def test_the_value_is_the_strength_times_all_norms() -> None:
    net = residual()
    twin, weights = numbered(net.model), all_weights(net.model)
    norms = [weights[weights_of(twin, group, v)].norm().item() for group in net.groups for v in range(group.size)]
    assert GroupLasso(net.groups, net.model, 0.3).value() == pytest.approx(0.3 * math.fsum(norms), rel=1e-12)


def test_a_step_of_nothing_changes_no_byte() -> None:
    """Nor does it make NaN of a vertex that is zero already."""
    net = chain()
    penalty = GroupLasso(net.groups, net.model, 100.0)
    penalty.step(100.0)
    assert penalty.zero_vertices() == {"0": 6, "3": 8} and penalty.value() == 0
    for model, strength, lr in (
        (net.model, 1.0, 0.0),
        (chain(seed=1).model, 0.0, 1.0),
        (chain(seed=1).model, 1.0, 0.0),
    ):
        before = copy.deepcopy(model.state_dict())
        GroupLasso(net.groups, model, strength).step(lr)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    penalty.step(1.0)
    assert all(bool(p.isfinite().all()) for p in net.model.parameters()) and penalty.value() == 0


def test_what_no_vertex_owns_stays() -> None:
    """Pinned channels, running statistics, the bias of the classifier, slopes."""
    net = grouped()
    before = copy.deepcopy(net.model.state_dict())
    GroupLasso(net.groups, net.model, 100.0).step(100.0)
    after = net.model.state_dict()
    assert torch.equal(after["5.bias"], before["5.bias"]) and torch.equal(
        after["5.weight"][:, 0], before["5.weight"][:, 0]
    )
    assert torch.equal(after["2.weight"][[0, 5]], before["2.weight"][[0, 5]])
    assert (after["2.weight"][[1, 2, 3, 4]] == 0).all() and (after["0.weight"] == 0).all()
    model = chain().model
    statistics = {key: value.clone() for key, value in model.named_buffers()}
    GroupLasso(chain().groups, model, 100.0).step(1.0)
    assert all(torch.equal(value, statistics[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize("seed", range(8))
def test_zero_vertices_go_without_any_change_of_the_outputs(seed: int) -> None:
    """On random networks, streams included: the masked network is the network."""
    model, inputs = random_net(seed)
    model, inputs = model.double(), inputs.double()
    analysis = analyze_channels(model, inputs)
    groups = select_groups(analysis, "prune")
    before = model(inputs)
    penalty = GroupLasso(groups, model, 1.0)
    while not sum(penalty.zero_vertices().values()):
        penalty.step(0.2)
    outputs = model(inputs)
    assert not torch.allclose(outputs, before)
    plan = make_plan(
        model, inputs, allocator=zero_groups, selector=group_norm, streams="prune", keep_channels=1.0, floor=0.0
    )
    small = apply_plan(model, plan, inputs)
    assert plan.cost["params"]["pruned"] < plan.cost["params"]["dense"]
    error = (small(inputs) - outputs).abs().max() / outputs.abs().max()
    assert error < 1e-12


def test_a_zero_vertex_of_an_ordinary_chain_gets_no_gradient() -> None:
    """All that is multiplied with it is zero, so without momentum it stays; a sigmoid of zero is not zero."""
    for activation, stays in ((nn.ReLU(), True), (nn.Sigmoid(), False)):
        net = chain()
        net.model[2] = activation
        penalty = GroupLasso(net.groups[:1], net.model, 1.0)
        for vertex in (1, 4):
            for part in (net.model[0], net.model[1]):
                for parameter in part.parameters():
                    parameter.data[vertex] = 0
            net.model[3].weight.data[:, vertex] = 0
        net.model.train()(torch.randn(8, 3, 4, 4)).square().sum().backward()
        torch.optim.SGD(net.model.parameters(), lr=0.1, weight_decay=0.1).step()
        assert penalty.zero_vertices() == {"0": 2 if stays else 0}


def test_weights_that_are_not_trained_cannot_become_zero() -> None:
    """Their group is left out, with a warning; with no other group it is refused."""
    net = chain()
    net.model[0].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"group_lasso leaves out group '0': 0\.weight is not trained"):
        penalty = GroupLasso(net.groups, net.model, 100.0)
    before = copy.deepcopy(net.model[0].state_dict())
    penalty.step(1.0)
    assert penalty.zero_vertices() == {"3": 8}
    assert all(torch.equal(value, before[key]) for key, value in net.model[0].state_dict().items())
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="group_lasso has no channels to make zero"):
        GroupLasso(net.groups, net.model.requires_grad_(False), 1.0)


# --- scales of normalisation ------------------------------------------------------------------------------------------


def normalised() -> tuple[nn.Module, tuple[ChannelGroup, ...]]:
    """One group of six channels with a normalisation, one without, and one whose second channel stays."""
    net = chain()
    for norm in (net.model[1], net.model[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return net.model, net.groups


def test_scales_are_soft_thresholded() -> None:
    model, groups = normalised()
    before = copy.deepcopy(model.state_dict())
    penalty = BatchNormL1(groups, model, 2.0)
    scales = torch.cat([before["1.weight"], before["4.weight"]]).double()
    assert penalty.value() == pytest.approx(2.0 * scales.abs().sum().item(), rel=1e-12)
    penalty.step(0.2)
    for key, value in model.state_dict().items():
        want = before[key]
        if key in ("1.weight", "4.weight"):
            want = want.sign() * (want.abs() - 0.4).clamp(min=0)
        torch.testing.assert_close(value, want, rtol=1e-6, atol=0)
    zero = {"0": int((before["1.weight"].abs() <= 0.4).sum()), "3": int((before["4.weight"].abs() <= 0.4).sum())}
    assert penalty.zero_vertices() == zero and 0 < sum(zero.values()) < 14


def test_scales_of_channels_that_stay_do_not_count() -> None:
    """A normalisation of channels of which only some may go, and one channel that is two vertices' in no case."""
    model, groups = normalised()
    old = groups[0].members
    some = np.array([0, 1, -1, 2, 3, -1])
    members = tuple(type(m)(m.module, m.side, m.role, some) for m in old)
    before = model[1].weight.detach().clone()
    penalty = BatchNormL1([ChannelGroup("0", 4, members)], model, 1.0)
    assert penalty.value() == pytest.approx(before[some >= 0].abs().sum().item(), rel=1e-6)
    penalty.step(100.0)
    assert torch.equal(model[1].weight.detach(), torch.where(torch.from_numpy(some) < 0, before, 0))
    assert penalty.zero_vertices() == {"0": 4}


def test_groups_without_scales_are_left_out() -> None:
    """With a warning; with no other group it is refused."""
    model, groups = normalised()
    model[1].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match="bn_l1 leaves out group '0': no normalisation with trained scales"):
        assert BatchNormL1(groups, model, 1.0).zero_vertices() == {"3": 0}
    net = residual()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="bn_l1 has no channels to make zero"):
        BatchNormL1(net.groups, net.model, 1.0)


# --- single weights ---------------------------------------------------------------------------------------------------


def weights_in(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of more than one dimension."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}


def test_weights_are_soft_thresholded() -> None:
    """In closed form; zeros are exact; the value is the sum; everything else stays byte for byte."""
    model = chain().model
    before = copy.deepcopy(model.state_dict())
    tensors = weights_in(model)
    median = float(torch.cat([w.detach().flatten() for w in tensors.values()]).abs().median())
    penalty = WeightL1(tensors, 4 * median)
    size = math.fsum(value for w in tensors.values() for value in w.detach().abs().flatten().tolist())
    assert penalty.value() == pytest.approx(4 * median * size, rel=1e-12)
    assert penalty.zeros() == {name: (0, w.numel()) for name, w in tensors.items()}
    penalty.step(0.25)
    for key, value in model.state_dict().items():
        if key in tensors:
            want = before[key].sign() * (before[key].abs() - median).clamp(min=0)
            torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-8)
            n_zero = int((before[key].abs() <= median).sum())
            assert int((value == 0).sum()) == n_zero and penalty.zeros()[key] == (n_zero, value.numel())
            assert 0 < n_zero < value.numel()
        else:
            assert torch.equal(value, before[key])


def test_each_weight_is_the_brute_force_minimum() -> None:
    """Of (x - w)^2 / 2 + t |x| on a fine grid, for weights on both sides of the threshold and on it."""
    weights = torch.tensor([-2.0, -0.5, -0.3, -0.0, 0.0, 0.1, 0.3, 0.300001, 0.9, 1.7], dtype=torch.float64)
    parameter, threshold = nn.Parameter(weights.clone()), 0.3
    WeightL1({"w": parameter}, 3.0).step(0.1)
    grid = torch.arange(-25_000, 25_001, dtype=torch.float64) / 10_000  # holds 0
    for w, x in zip(weights.tolist(), parameter.tolist(), strict=True):
        best = grid[((grid - w) ** 2 / 2 + threshold * grid.abs()).argmin()].item()
        assert x == pytest.approx(best, abs=1e-4)
        assert (x == 0) == (abs(w) <= 3.0 * 0.1)


def test_weights_without_strength_or_rate_keep_every_byte() -> None:
    for strength, lr in ((0.0, 1.0), (1.0, 0.0)):
        parameter = nn.Parameter(torch.tensor([1.0, -0.0, math.inf, -1e-30] * 16))
        before = parameter.detach().clone()
        WeightL1({"w": parameter}, strength).step(lr)
        assert torch.equal(parameter.detach().view(torch.int32), before.view(torch.int32))


def test_frozen_weights_are_left_out() -> None:
    """With a warning; with no others it is refused."""
    model = chain().model
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    with pytest.warns(UserWarning, match=r"penalty l1 leaves out 0\.weight: it is not trained"):
        penalty = WeightL1(weights_in(model), 100.0)
    penalty.step(1.0)
    assert torch.equal(model[0].weight, before) and (model[3].weight == 0).all()
    assert "0.weight" not in penalty.zeros() and penalty.value() == 0
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="penalty l1 has no weights to make zero"):
        WeightL1(weights_in(model.requires_grad_(False)), 1.0)
    with pytest.raises(ValueError, match="penalty l1 has no weights to make zero"):
        WeightL1({}, 1.0)


def test_weights_may_move(device: torch.device) -> None:
    """The same step where the model is, in whatever memory format."""
    here, there = chain((16, 24)).model, chain((16, 24)).model
    penalties = [WeightL1(weights_in(model), 0.1) for model in (here, there)]
    there.to(device, memory_format=torch.channels_last)
    for parameter in there.parameters():
        parameter.data = parameter.data.clone()  # as a training does that lends a model to a device
    for penalty in penalties:
        penalty.step(1.0)
    assert next(there.parameters()).device.type == device.type
    torch.testing.assert_close(all_weights(here), all_weights(there), rtol=1e-6, atol=0)
    assert penalties[0].zeros() == penalties[1].zeros() and sum(n for n, _ in penalties[0].zeros().values()) > 0
    assert penalties[0].value() == pytest.approx(penalties[1].value(), rel=1e-6)


# --- all --------------------------------------------------------------------------------------------------------------


def test_all_count_their_zeros_alike() -> None:
    """So many of so many, by name, of what the noun says."""
    model, groups = normalised()
    lasso, slim, single = (
        GroupLasso(groups, model, 1.0),
        BatchNormL1(groups, model, 0.5),
        WeightL1({"w": model[0].weight}, 1.0),
    )
    assert lasso.noun == slim.noun == "channels" and single.noun == "weights"
    slim.step(1.0)
    vertices = slim.zero_vertices()
    assert slim.zeros() == {"0": (vertices["0"], 6), "3": (vertices["3"], 8)} and 0 < sum(vertices.values()) < 14
    lasso.step(100.0)
    assert lasso.zeros() == {"0": (6, 6), "3": (8, 8)}
    assert single.zeros() == {"w": (model[0].weight.numel(),) * 2}
    assert lasso.report() == "14 of 14 channels under the penalty are zero"
    assert single.report() == f"{(n := model[0].weight.numel())} of {n} weights under the penalty are zero"


def test_settings_choose_the_penalty() -> None:
    net = chain()
    assert isinstance(make_penalty(settings("group_lasso"), net.groups, net.model), GroupLasso)
    assert isinstance(make_penalty(settings("bn_l1"), net.groups, net.model), BatchNormL1)
    made = make_penalty(settings("l1"), (), net.model, {"weight": net.model[0].weight})
    assert isinstance(made, WeightL1) and made.zeros().keys() == {"weight"}
    with pytest.raises(ValueError, match=r"^tensors: penalty l1 needs the weights .* srr_ext\.sparsity\.prunable"):
        make_penalty(settings("l1"), net.groups, net.model)
    with pytest.raises(ValueError, match="name group_lasso, bn_l1 or l1"):
        make_penalty(settings("none"), net.groups, net.model)
    with pytest.raises(ValueError, match=r"^ema must be 0 with penalty bn_l1, but is 0\.99"):
        settings("bn_l1", ema=0.99)
    with pytest.raises(ValueError, match="no channels to make zero"):
        make_penalty(settings("group_lasso"), (), net.model)


@pytest.mark.parametrize("penalty", ["group_lasso", "bn_l1"])
def test_the_model_may_move(penalty: str, device: torch.device) -> None:
    """Made where the model was, it takes the same step where the model is."""
    steps = []
    for where in (torch.device("cpu"), device):
        net = chain((16, 24))
        made = make_penalty(settings(penalty, 0.5), net.groups, net.model)
        net.model.to(where, memory_format=torch.channels_last)
        made.step(1.0)
        steps.append(all_weights(net.model))
        assert next(net.model.parameters()).device.type == where.type
        assert made.zero_vertices().keys() == {"0", "3"}
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-5, atol=1e-7)


def toy(n: int = 192) -> Fixed:
    """Images [3, 4, 4] of two classes: whether the mean of the first channel is above 0; the others say nothing."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 4, 4, generator=generator)
    labels = (torch.rand(n, generator=generator) < 0.5).long()
    images[:, 0] += (2.0 * labels - 1)[:, None, None]
    return Fixed(images, labels, n_classes=2, validation=n // 2)


def toy_net(seed: int = 0) -> tuple[nn.Module, tuple[ChannelGroup, ...]]:
    """Sixteen channels where two are enough, half of them copies of the other half."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    for parameter, dim in ((model[0].weight, 0), (model[5].weight, 1)):
        half = parameter.data.narrow(dim, 0, 8)
        parameter.data = torch.cat([half, half], dim)
    return model, analyze_channels(model.eval(), torch.randn(2, 3, 4, 4)).groups


def trained(penalty: str, strength: float, precision: str = "fp32", optimizer: str = "sgd") -> tuple[nn.Module, int]:
    model, groups = toy_net()
    lr = 0.1 if optimizer == "sgd" else 0.01
    config = settings(penalty, strength, epochs=15, batch_size=32, lr=lr, precision=precision, optimizer=optimizer)
    made = make_penalty(config, groups, model)
    train(model, toy(), config, device="cpu", after_step=made.step)  # type: ignore[arg-type]
    return model.eval(), sum(made.zero_vertices().values())


@pytest.mark.parametrize(("penalty", "strength"), [("group_lasso", 0.6), ("bn_l1", 0.4)])
def test_training_makes_channels_zero_that_are_not_needed(penalty: str, strength: float) -> None:
    """Most of them, and the accuracy stays; without strength none."""
    model, zero = trained(penalty, strength)
    free, none = trained(penalty, 0.0)
    accuracy = evaluate(model, toy(), "validation")  # type: ignore[arg-type]
    assert none == 0 and 7 <= zero < 16
    assert accuracy >= 98 and accuracy >= evaluate(free, toy(), "validation") - 1  # type: ignore[arg-type]


def trained_single(strength: float, optimizer: str, precision: str) -> tuple[nn.Module, float]:
    """Train with the penalty of single weights; return the network and the share of them that is zero."""
    model, _ = toy_net()
    lr = 0.1 if optimizer == "sgd" else 0.01
    config = settings("none", epochs=15, batch_size=32, lr=lr, precision=precision, optimizer=optimizer)
    penalty = WeightL1(weights_in(model), strength)
    train(model, toy(), config, device="cpu", after_step=penalty.step)  # type: ignore[arg-type]
    zero, of = map(sum, zip(*penalty.zeros().values(), strict=True))
    return model.eval(), zero / of


@pytest.mark.parametrize(("optimizer", "precision"), [("sgd", "fp32"), ("sgd", "bf16"), ("adamw", "fp32")])
def test_training_makes_weights_zero_that_are_not_needed(optimizer: str, precision: str) -> None:
    """Most of them, exactly, and the accuracy stays; without strength none."""
    model, zero = trained_single(0.05 if optimizer == "sgd" else 0.3, optimizer, precision)
    free, none = trained_single(0.0, optimizer, precision)
    accuracy, reference = (evaluate(net, toy(), "validation") for net in (model, free))  # type: ignore[arg-type]
    assert none == 0 and 0.5 <= zero < 1
    assert accuracy >= 98 and accuracy >= reference - 1


def test_more_strength_more_zeros() -> None:
    zeros = [trained("group_lasso", strength)[1] for strength in (0.0, 0.2, 0.4, 5.0)]
    assert zeros == sorted(zeros) and zeros[0] == 0 and zeros[-1] == 16


@pytest.mark.parametrize(("precision", "optimizer"), [("bf16", "sgd"), ("fp32", "adamw")])
def test_zeros_are_exact_in_other_recipes(precision: str, optimizer: str) -> None:
    """Weights stay float32 under autocast."""
    strength = 0.3 if optimizer == "sgd" else 3.0
    model, zero = trained("group_lasso", strength, precision, optimizer)
    assert 0 < zero < 16 and all(p.dtype == torch.float32 for p in model.parameters())


def test_the_same_training_again_gives_the_same_bytes() -> None:
    first, second = (all_weights(trained("group_lasso", 0.3)[0]) for _ in range(2))
    assert torch.equal(first, second)


def test_training_calls_back_after_every_step_with_its_learning_rate() -> None:
    """And may change the weights, which the next step goes on from."""
    model, _ = toy_net()
    rates: list[float] = []

    def mask(lr: float) -> None:
        rates.append(lr)
        model[0].weight.data[3] = 0

    config = settings("none", epochs=2, batch_size=32)
    train(model, toy(), config, device="cpu", after_step=mask)  # type: ignore[arg-type]
    steps = 2 * 6
    assert rates == [config.lr * learning_rate_factor(config, step, steps) for step in range(steps)]
    assert (model[0].weight[3] == 0).all() and (model[0].weight[4] != 0).any()
