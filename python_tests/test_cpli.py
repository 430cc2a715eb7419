"""LASSO selection against a plain implementation of the parent, and against the layers themselves."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from planning_nets import NETS, chain, member
from random_nets import random_net
from sklearn.linear_model import Lasso
from test_reconstruct import ODD, chain_of_three, context_for, prune
from torch import Tensor, nn

import srr_ext
from srr_ext.channels import analyze_channels
from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria import CountedSelector, SelectorContext, get_selector
from srr_ext.criteria.cpli import CPLI, choose, lasso, response_gram
from srr_ext.patches import is_sampled, samples
from srr_ext.updates import get_update

CHAIN = ("0", "2", "5")  # producers of chain_of_three, and the number of the layer that reads each
READER = {"0": 2, "2": 5, "5": 8}


# The parent, written down plainly: every response a column entry, scikit-learn's coordinate descent, numpy's lstsq.


def parents_columns(layer: Any, values: Tensor, size: int) -> np.ndarray:
    """Z, [rows * features, size]: what each input channel adds to each output entry, all positions."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        each = torch.einsum("nc,oc->noc", values, weight)  # channel c // 16 of the flattened map
        return each.unflatten(2, (size, -1)).sum(3).flatten(0, 1).numpy()
    patches = F.unfold(values, layer.kernel_size, padding=layer.padding).mT.flatten(0, 1).unflatten(1, (size, -1))
    return torch.einsum("rck,ock->roc", patches, weight.flatten(2)).flatten(0, 1).numpy()


def parents_choice(z: np.ndarray, y: np.ndarray, wanted: int, alpha: float) -> list[int]:
    """Solve the LASSO for more and more, then bisected penalties; keep the strongest of those left."""

    def solve(penalty: float) -> np.ndarray:
        solver = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=200_000, precompute=True)
        return solver.fit(z, y).coef_

    left, right = 0.0, alpha
    while (solve(right) != 0).sum() >= wanted:
        right *= 2
    while True:
        middle = (left + right) / 2
        beta = solve(middle)
        found = int((beta != 0).sum())
        if found > 1.1 * wanted:
            left = middle
        elif found < wanted:
            right = middle
        else:
            break
    return sorted(np.argsort(-np.abs(beta) * np.linalg.norm(z, axis=0))[:wanted].tolist())


def chosen(scores: list[Tensor], counts: list[int]) -> list[list[int]]:
    return [sorted(s.argsort(descending=True)[:c].tolist()) for s, c in zip(scores, counts, strict=True)]


def activations(net: nn.Module, inputs: Tensor) -> list[Tensor]:
    values = [inputs]
    for layer in net:
        values.append(layer(values[-1]))
    return values


@pytest.mark.parametrize("counts", [[3, 2, 2], [5, 4, 3], [6, 5, 4]], ids=str)
def test_without_mu_and_f_it_is_the_parent(counts: list[int]) -> None:
    """Choice of channels, then least squares: the same channels and the same weights."""
    net, inputs = chain_of_three()
    groups = analyze_channels(net, inputs[:1]).groups
    assert [group.name for group in groups] == list(CHAIN)
    context = context_for(net, inputs)
    selector = get_selector("he2017:positions=0")
    assert selector == CPLI(mu=0.0, epsilon=1.0, positions=0) and isinstance(selector, CountedSelector)
    kept = chosen(selector.given_counts(groups, counts, context), counts)

    values = [value.detach() for value in activations(net, inputs)]
    for group, count, mine in zip(groups, counts, kept, strict=True):
        number = READER[group.name]
        layer = net[number]
        z = parents_columns(layer, values[number], group.size)
        bias = 0 if layer.bias is None else layer.bias.detach()
        y = values[number + 1] if number == 8 else values[number + 1].flatten(2).mT.flatten(0, 1)
        y = (y - bias).flatten().numpy()
        assert mine == parents_choice(z, y, count, 1e-3 * float((y**2).mean()))

    alone = {"2": kept[1]}
    pruned, plan = prune(net, inputs, alone)
    result = get_update("reconstruct:positions=0,ridge=0")(pruned, plan, context)
    patches = F.unfold(values[5][:, kept[1]], 3).mT.flatten(0, 1).numpy()
    rows = np.concatenate([patches, np.ones((len(patches), 1))], 1)
    want = np.linalg.lstsq(rows, values[6].flatten(2).mT.flatten(0, 1).numpy(), rcond=None)[0]
    np.testing.assert_allclose(result[5].weight.detach().flatten(1).T, want[:-1], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(result[5].bias.detach(), want[-1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("relative", [True, False])
def test_gradient_and_later_choice_weigh_the_rows(relative: bool) -> None:
    """From the output backwards, with rows weighted by hand."""
    net, inputs = chain_of_three()
    groups, counts = analyze_channels(net, inputs[:1]).groups, [4, 3, 3]
    context = context_for(net, inputs)
    selector = CPLI(mu=5.0 if relative else 3e4, epsilon=0.05, positions=0, relative=relative)
    kept = chosen(selector.given_counts(groups, counts, context), counts)

    (_, labels) = next(iter(context.batches()))
    values = activations(net, inputs)
    gradients = torch.autograd.grad(F.cross_entropy(values[-1], labels), values[1:])
    known: dict[int, list[int]] = {}
    differs = False
    for group, count, mine in reversed(list(zip(groups, counts, kept, strict=True))):
        number = READER[group.name]
        layer, gradient, y = net[number], 40 * gradients[number], values[number + 1].detach()
        y = y - (0 if layer.bias is None else layer.bias.detach().view(-1, *[1] * (y.ndim - 2)))
        if number != 8:
            y, gradient = (part.flatten(2).mT.flatten(0, 1) for part in (y, gradient))
        f = torch.full((y.shape[1],), 0.05).double()
        f[known.get(number, slice(None))] = 1
        squares = gradient**2 / ((gradient**2).mean() if relative else 1)
        weights = (f * torch.sqrt(1 + selector.mu * squares)).flatten().numpy()
        z = parents_columns(layer, values[number].detach(), group.size)
        y = y.flatten().numpy()
        alpha = 1e-3 * float(((weights * y) ** 2).mean())
        assert mine == parents_choice(z * weights[:, None], y * weights, count, alpha)
        differs |= mine != parents_choice(z, y, count, 1e-3 * float((y**2).mean()))
        known[int(group.name)] = mine
    assert differs, "the weights play no part here"


def test_importance_is_the_largest_penalty_a_channel_survives() -> None:
    net, inputs = chain_of_three()
    groups = analyze_channels(net, inputs[:1]).groups
    scores = get_selector("he2017:positions=0")(groups, context_for(net, inputs))
    values = [value.detach() for value in activations(net, inputs)]
    for group, score in zip(groups, scores, strict=True):
        number = READER[group.name]
        z = parents_columns(net[number], values[number], group.size)
        y = z.sum(1)
        assert score.dtype == torch.float64 and bool((score > 0).all())
        assert float(score.max()) == pytest.approx(np.abs(z.T @ y).max() / (y @ y))
        for vertex, alpha in enumerate(score.tolist()):
            for factor in (1.001, 0.999):
                penalty = alpha * factor * float((y**2).mean())
                beta = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=200_000).fit(z, y).coef_
                assert (beta[vertex] != 0) == (factor < 1)


def build(name: str | int) -> tuple[nn.Module, Tensor]:
    if isinstance(name, int):
        return random_net(name)
    if name in NETS:
        made = NETS[name]()
        return made.model.eval(), torch.randn(3, *made.inputs.shape[1:])
    net, inputs = zoo.load()[name].build()
    assert isinstance(inputs, Tensor)
    return net, inputs


@pytest.mark.parametrize("name", [*NETS, *ODD, *range(6)], ids=str)
def test_columns_are_what_each_vertex_adds_to_the_outputs(name: str | int) -> None:
    """Against the layer itself, run on its inputs with all but one vertex's channels at zero."""
    net, inputs = build(name)
    net, inputs = net.double(), inputs.double()
    context = context_for(net, inputs)
    checked = name == "tied_weights"  # all pinned
    for group in analyze_channels(net, inputs).groups:
        for reader in group.members:
            layer: Any = net.get_submodule(reader.module)
            if reader.role != "consumer" or not is_sampled(layer):
                continue
            read: list[Tensor] = []
            with layer.register_forward_pre_hook(lambda _, args, read=read: read.append(args[0])):
                (found,) = samples(net, [reader.module], context, 0)
            weights = [torch.rand_like(sample.outputs) + 0.5 for sample in found[reader.module]]
            gram, energy = response_gram(layer, reader, group.size, found[reader.module], weights)
            bare = copy.deepcopy(layer)
            if bare.bias is not None:
                bare.bias.data.zero_()
            want, square = torch.zeros_like(gram), 0.0
            for values, weight in zip(read, weights, strict=True):
                axis = -1 if isinstance(layer, nn.Linear) else values.ndim - layer.weight.ndim + 1

                def rows(kept: np.ndarray, values: Tensor = values, axis: int = axis, bare: Any = bare) -> Tensor:
                    mask = torch.from_numpy(kept).double()
                    out = bare(values * (mask if axis == -1 else mask.view(-1, *[1] * (values.ndim - axis - 1))))
                    return out.movedim(axis, -1).reshape(-1, out.shape[axis]).detach()

                z = torch.stack([(rows(reader.vertex == v) * weight).flatten() for v in range(group.size)])
                want += z @ z.T
                square += float(((rows(np.ones(len(reader.vertex))) * weight) ** 2).sum())
            torch.testing.assert_close(gram, want, rtol=1e-9, atol=1e-9)
            assert energy == pytest.approx(square, rel=1e-9)
            checked = True
    assert checked


@pytest.mark.parametrize("name", [*NETS, *ODD, *range(6)], ids=str)
def test_any_network(name: str | int) -> None:
    """As many as wanted, the same again, and nothing of the caller's is touched."""
    net, inputs = build(name)
    net.train()
    groups = analyze_channels(net, inputs).groups
    counts = [max(1, group.size // 2) for group in groups]
    context = context_for(net, inputs, 2, loss=lambda out, _: out.square().mean())
    state = copy.deepcopy(net.state_dict())
    for selector in ("cpli", "he2017"):
        select = get_selector(selector)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answers = [[select(groups, context), select.given_counts(groups, counts, context)] for _ in range(2)]  # type: ignore[attr-defined]
        for first, second in zip(*answers, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            assert all(s.shape == (g.size,) and s.dtype == torch.float64 for s, g in zip(first, groups, strict=True))
            assert all(bool(s.isfinite().all()) for s in first)
        for score, count in zip(answers[0][1], counts, strict=True):
            ordered = score.sort(descending=True).values
            assert count == len(ordered) or ordered[count - 1] >= 2 > 1 >= ordered[count]
    assert net.training and not any(p.grad is not None for p in net.parameters())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_layers_that_read_a_stream_count_alike() -> None:
    """Scaling one reader's weights changes nothing."""
    made = NETS["residual"]()
    inputs = torch.randn(20, 3, 4, 4)
    stream = made.groups[:1]
    before = get_selector("he2017")(stream, context_for(made.model, inputs))[0]
    made.model.head.weight.data *= 1000
    after = get_selector("he2017")(stream, context_for(made.model, inputs))[0]
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-9)


class TwoUses(nn.Module):
    """Channels 0 and 1 of the first layer make feature 0 of the second, channels 2 and 3 feature 1, much larger."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.second.weight.copy_(torch.tensor([[1.0, 0.8, 0, 0], [0, 0, 3.0, 2.4]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()))


def test_features_that_go_need_no_channels() -> None:
    """Feature 1 hardly matters to the head, so it goes, and then channels 0 and 1 stay though they add less."""
    net, inputs = TwoUses(), torch.randn(200, 4)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[5.0, 0.1], [-5.0, 0.1], [3.0, -0.1]]))
    context = context_for(net, inputs)
    groups = analyze_channels(net, inputs).groups
    assert [group.name for group in groups] == ["first", "second"]
    blind = chosen(CPLI(mu=0, epsilon=1).given_counts(groups, [2, 1], context), [2, 1])
    guided = chosen(CPLI(mu=0).given_counts(groups, [2, 1], context), [2, 1])
    assert blind == [[2, 3], [0]] and guided == [[0, 1], [0]]


def test_features_that_the_loss_ignores_need_no_channels() -> None:
    net, inputs = TwoUses(), torch.randn(200, 4)
    context = context_for(net, inputs, loss=lambda out, _: out.square().mean())
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[5.0, 0.0], [-5.0, 0.0], [3.0, 0.0]]))
    groups = analyze_channels(net, inputs).groups[:1]
    assert chosen(CPLI(mu=0).given_counts(groups, [2], context), [2]) == [[2, 3]]
    assert chosen(CPLI(mu=1000).given_counts(groups, [2], context), [2]) == [[0, 1]]
    before, after = (CPLI(mu=mu)(groups, context)[0] for mu in (0, 1000))
    assert float(before[2:].min()) > float(before[:2].max()) and float(after[:2].min()) > float(after[2:].max())


def test_equal_and_dead_channels_go_first() -> None:
    """Channels 4 to 7 are twice 0 to 3 and read alike; 3 is never positive."""
    net, inputs = chain_of_three(duplicates=True)
    with torch.no_grad():
        net[2].weight[:, 4:] = net[2].weight[:, :4]
        net[0].weight[3], net[0].bias[3] = 0, -1
    groups = analyze_channels(net, inputs[:1]).groups[:1]
    context = context_for(net, inputs)
    (score,) = get_selector("he2017")(groups, context)
    assert bool((score[:4] == 0).all()) and bool((score[4:] > 0).all())
    assert chosen(get_selector("he2017").given_counts(groups, [4], context), [4]) == [[4, 5, 6, 7]]
    (kept,) = chosen(get_selector("he2017").given_counts(groups, [6], context), [6])
    assert set(kept) > {4, 5, 6, 7} and 3 not in kept, "more than there is to choose: the strongest of the equals"


def test_nothing_to_choose_by() -> None:
    """No reader, or readers of nothing but zeros: said, and chosen by the filters' norms."""
    net = chain()
    inputs = torch.randn(4, 3, 4, 4)
    norms = torch.stack([f.norm() for f in net.model[0].weight.detach().double()])
    lonely = ChannelGroup("0", 6, (member("0", "out", "producer", range(6)),))
    for group in (lonely, net.groups[0]):
        net.model[3].weight.data *= 0
        context = context_for(net.model, inputs)
        with pytest.warns(UserWarning, match="group '0': none of the layers that read it"):
            (score,) = get_selector("cpli")([group], context)
        torch.testing.assert_close(score, norms / norms.max())
        with pytest.warns(UserWarning, match="group '0'"):
            (score,) = get_selector("cpli").given_counts([group], [2], context)  # type: ignore[attr-defined]
        assert set(score.topk(2).indices.tolist()) == set(norms.topk(2).indices.tolist())
    with pytest.raises(ValueError, match="data: this method looks at images"):
        get_selector("cpli")(net.groups, SelectorContext(net.model, inputs))


def test_the_path_is_that_of_coordinate_descent() -> None:
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)), 0) * rng.uniform(0.2, 2, 12)
    gram = z.T @ z / (z.sum(1) @ z.sum(1))
    path = lasso(gram)
    for alpha in np.geomspace(1e-5, 1.5, 30) * path.alphas[0]:
        solver = Lasso(alpha=alpha * float((z.sum(1) ** 2).mean()), fit_intercept=False, tol=1e-13, max_iter=10**6)
        np.testing.assert_allclose(path.at(alpha), solver.fit(z, z.sum(1)).coef_, atol=1e-6)
    np.testing.assert_allclose(path.at(0.0), 1.0, rtol=1e-8)
    assert [len(choose(path, gram, count)) for count in range(1, 13)] == list(range(1, 13))


def test_as_a_method_from_plan_to_weights() -> None:
    net, inputs = chain_of_three(dtype=torch.float32)
    data = context_for(net, inputs, 3).data
    plans = [srr_ext.make_plan(net, inputs[:1], allocator="uniform", selector=s, keep_macs=0.5, data=data)
             for s in ("cpli", "cpli", "l1", "cpli:mu=0,epsilon=1")]  # fmt: skip
    assert plans[0].to_json() == plans[1].to_json()
    assert [len(plan.groups) for plan in plans] == [3, 3, 3, 3]
    assert len({plan.cost["macs"]["pruned"] for plan in plans}) == 1, "compared at equal cost"
    small = srr_ext.apply_plan(net, plans[0], inputs[:1])
    better = srr_ext.update_weights(net, small, plans[0], inputs[:1], "reconstruct:mu=1", data=data)
    with torch.no_grad():
        near, far = (float((model(inputs) - net(inputs)).square().mean()) for model in (better, small))
    assert near < 0.5 * far


@pytest.mark.parametrize(
    "options", [{"mu": -1.0}, {"mu": float("inf")}, {"epsilon": 1.5}, {"positions": -1}, {"entries": 0}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        CPLI(**options)


def test_samples_in_parts_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs = chain_of_three()
    groups, counts, context = analyze_channels(net, inputs[:1]).groups, [4, 3, 3], context_for(net, inputs)
    whole = CPLI().given_counts(groups, counts, context)
    module = importlib.import_module("srr_ext.criteria.cpli")
    monkeypatch.setattr(module, "_HELD", 1)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    parts = CPLI().given_counts(groups, counts, context)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
