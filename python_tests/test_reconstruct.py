"""Samples of layers against the layers themselves; refitted weights against numpy's least squares."""

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
from planning_nets import NETS
from random_nets import random_net
from torch import Tensor, nn

import srr_ext
from srr_ext.calibration import Calibration
from srr_ext.channels import analyze_channels
from srr_ext.criteria import SelectorContext
from srr_ext.patches import Sample, samples, set_weight_blocks, weight_blocks
from srr_ext.plan import PruningPlan, plan_from_vertices
from srr_ext.surgery import cut
from srr_ext.updates import Reconstruction, get_update, update_weights

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (5, 4, 7, 6)),
    "conv without bias": (lambda: nn.Conv2d(4, 6, 1, bias=False), (5, 4, 7, 6)),
    "strided, dilated, grouped": (lambda: nn.Conv2d(4, 6, 3, 2, 2, 2, groups=2), (5, 4, 9, 8)),
    "kernel of two sizes": (lambda: nn.Conv2d(4, 6, (1, 3), (2, 1), (0, 2)), (5, 4, 9, 8)),
    "same, circular": (lambda: nn.Conv1d(4, 6, 5, padding="same", padding_mode="circular"), (5, 4, 9)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (5, 4, 7, 6)),
    "valid, one image": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (5, 2, 3, 4, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (5, 4, 7, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), (5, 4, 5, 6)),
    "transposed, dilated, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, dilation=2), (5, 4, 5, 6)),
    "linear": (lambda: nn.Linear(7, 3), (5, 7)),
    "linear over tokens": (lambda: nn.Linear(7, 3), (5, 2, 4, 7)),
}


def context_for(
    model: nn.Module, inputs: Tensor, n_batches: int = 1, targets: int | None = None, seed: int = 0, loss: Any = None
) -> SelectorContext:
    """Return a context whose batches are the inputs and others like them."""
    generator = torch.Generator().manual_seed(5)
    batches = [inputs] + [torch.randn(inputs.shape, generator=generator).to(inputs) for _ in range(n_batches - 1)]
    images = len(inputs) if targets is None else targets
    labels = [torch.randint(0, 4, (images,), generator=generator) for _ in batches]
    data = Calibration(list(zip(batches, labels, strict=True)), loss=loss or F.cross_entropy)
    return SelectorContext(model, inputs, seed, data=data)


def responses(module: nn.Module, sample: Sample) -> Tensor:
    """What weights make of patches, without bias."""
    blocks = weight_blocks(module)
    return torch.einsum("rgck,gock->rgo", sample.patches.unflatten(1, (len(blocks), -1)), blocks).flatten(1)


@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_patches_and_weights_make_the_outputs(name: str, positions: int) -> None:
    make, shape = LAYERS[name]
    layer = make().double()
    net, inputs = nn.Sequential(layer, nn.Tanh()), torch.randn(shape).double()
    images = 1 if name == "valid, one image" else 5
    context = context_for(net, inputs, targets=images, loss=lambda out, _: (torch.atanh(out) ** 3).sum() / images)
    (found,) = samples(net, ["0"], context, positions, gradients=True)
    (sample,) = found["0"]
    bias = 0 if layer.bias is None else layer.bias
    torch.testing.assert_close(responses(layer, sample) + bias, sample.outputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sample.gradients, 3 * sample.outputs**2, rtol=1e-8, atol=1e-9)  # each image's own loss
    out = layer(inputs)
    n_places = out.numel() // images // sample.outputs.shape[1]
    assert len(sample.outputs) == images * (min(positions, n_places) if positions else n_places)
    if not positions:  # all places, once each, in order
        by_place = out if isinstance(layer, nn.Linear) else (out if images > 1 else out[None]).flatten(2).mT
        torch.testing.assert_close(sample.outputs, by_place.reshape(len(sample.outputs), -1))


@pytest.mark.parametrize("name", LAYERS)
def test_weight_blocks_come_back(name: str) -> None:
    layer, other = LAYERS[name][0](), LAYERS[name][0]()
    set_weight_blocks(other, weight_blocks(layer), layer.bias)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_places_depend_on_the_seed_and_are_limited() -> None:
    net, inputs = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(6, 3, 9, 9)

    def draw(seed: int, entries: int | None = None) -> Tensor:
        (found,) = samples(net, ["0"], context_for(net, inputs, seed=seed), 5, entries=entries)
        return found["0"][0].outputs

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert len(draw(1)) == 30
    assert len(draw(1, 4 * 7 + 3)) == 7 and len(draw(1, 1)) == 1
    assert len(draw(1).unique(dim=0)) == 30, "without repetition"


def test_hooks_are_gone_and_inputs_changed_in_place_do_not_matter() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4))
    inputs = torch.randn(6, 3, 5, 5)
    before = net[0](inputs) if net(inputs) is not None else None
    for gradients in (False, True):
        (found,) = samples(net, ["0", "3"], context_for(net, inputs), 0, gradients=gradients)
        assert bool((found["0"][0].outputs < 0).any())
        torch.testing.assert_close(found["0"][0].outputs, before.flatten(2).mT.flatten(0, 1))
    gradient = found["0"][0].gradients
    assert bool((gradient[found["0"][0].outputs < 0] == 0).all()) and bool((gradient != 0).any())
    assert not any(module._forward_hooks for module in net.modules())


# the update


def chain_of_three(duplicates: bool = False, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 4),
    )  # fmt: skip
    zoo.randomise(net, 1)
    if duplicates:  # 4..7 of the first and 3..5 of the second are others again, at another scale
        with torch.no_grad():
            net[0].weight[4:] = 2 * net[0].weight[:4]
            net[0].bias[4:] = 2 * net[0].bias[:4]
            net[2].weight[3:] = net[2].weight[:3]
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(net[3], name)[3:] = getattr(net[3], name)[:3]
    return net.to(dtype).eval(), torch.randn(40, 3, 6, 6, dtype=dtype)


KEPT = {"0": [0, 1, 2, 3], "2": [0, 1, 2], "5": [0, 2, 4]}


def prune(net: nn.Module, inputs: Tensor, kept: dict[str, list[int]] | None = None) -> tuple[nn.Module, PruningPlan]:
    plan = plan_from_vertices(analyze_channels(net, inputs[:1]), kept or KEPT)
    return cut(net, plan), plan


def linear_rows(layer: nn.Module, values: Tensor) -> np.ndarray:
    """All patches of a layer's inputs, [images * places, inputs * kernel], by torch's own unfold."""
    if isinstance(layer, nn.Linear):
        return values.detach().numpy()
    return F.unfold(values.detach(), layer.kernel_size, padding=layer.padding).mT.flatten(0, 1).numpy()


@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_every_layer_is_the_least_squares_of_the_dense_outputs_on_the_pruned_inputs(mu: float) -> None:
    """Against numpy.linalg.lstsq, layer after layer, on all places; the gradient by autograd on a plain pass."""
    net, inputs = chain_of_three()
    pruned, plan = prune(net, inputs)
    context = context_for(net, inputs)
    result = Reconstruction(mu=mu, positions=0, ridge=0)(pruned, plan, context)
    (_, labels), wanted = next(iter(context.batches())), copy.deepcopy(pruned)

    values, outputs = [inputs], {}
    for number, layer in enumerate(net):
        values.append(layer(values[-1]))
        outputs[number] = values[-1]
    gradients = torch.autograd.grad(F.cross_entropy(values[-1], labels), list(outputs.values()))
    for number in (2, 5, 8):
        layer, kept = wanted[number], plan.layers[str(number)].out
        rows = linear_rows(layer, wanted[:number](inputs))
        if layer.bias is not None:
            rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
        target, gradient = outputs[number].detach(), 40 * gradients[number]
        if number != 8:
            target, gradient = (part.flatten(2).mT.flatten(0, 1) for part in (target, gradient))
        if kept is not None:
            target, gradient = target[:, list(kept)], gradient[:, list(kept)]
        if mu == 0:
            solution = np.linalg.lstsq(rows, target.numpy(), rcond=None)[0]
        else:
            roots = torch.sqrt(1 + mu * gradient**2 / (gradient**2).mean()).numpy()
            columns = [
                np.linalg.lstsq(rows * roots[:, [j]], target.numpy()[:, j] * roots[:, j], rcond=None)[0]
                for j in range(target.shape[1])
            ]
            solution = np.stack(columns, 1)
        with torch.no_grad():
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(solution[-1]))
                solution = solution[:-1]
            layer.weight.copy_(torch.from_numpy(solution.T.copy()).view(layer.weight.shape))
        if number == 8:  # 48 unknowns and 40 rows: what they determine are the outputs, not the weights
            torch.testing.assert_close(result(inputs), wanted(inputs), rtol=1e-7, atol=1e-7)
        else:
            torch.testing.assert_close(result[number].weight, layer.weight, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("rows", "features"), [(60, 5), (7, 3), (12, 1)])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_regression_takes_the_smallest_correction_that_is_best(rows: int, features: int, ridge: float) -> None:
    """Twelve unknowns, of which two are others' copies and one never varies; with and without enough rows."""
    from srr_ext.updates.reconstruct import Regression

    x = torch.randn(2, rows, 12, dtype=torch.float64)
    x[..., 7], x[..., 8], x[..., 9] = x[..., 3], 3 * x[..., 4], 0
    y, before = torch.randn(2, rows, features).double(), torch.randn(2, 12, features).double()
    regression = Regression(before, 2e-16, ridge)
    for part in range(0, rows, 5):
        regression.add(x[:, part : part + 5], y[:, part : part + 5])
    after = regression.solve()
    for group in range(2):
        a = x[group].numpy()
        left = (y[group] - x[group] @ before[group]).numpy()
        if ridge:
            gram = a.T @ a
            step = np.linalg.solve(gram + ridge * np.diag(gram).mean() * np.eye(12), a.T @ left)
        else:
            step = np.linalg.lstsq(a, left, rcond=1e-10)[0]
        torch.testing.assert_close(after[group], before[group] + torch.from_numpy(step), rtol=1e-7, atol=1e-8)
        assert torch.equal(after[group][9], before[group][9]), "nothing is known of it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_channels_that_others_make_up_are_not_missed(dtype: torch.dtype) -> None:
    net, inputs = chain_of_three(duplicates=True, dtype=dtype)
    pruned, plan = prune(net, inputs, {"0": [0, 1, 2, 3], "2": [0, 1, 2]})
    with torch.no_grad():
        want, fresh = net(inputs), torch.randn(8, 3, 6, 6, dtype=dtype)
        assert float((pruned(inputs) - want).abs().max()) > 0.1
        data = context_for(net, inputs).data
        result = update_weights(net, pruned, plan, inputs[:1], "reconstruct:ridge=0", data=data)
        scale = float(want.abs().max())
        assert float((result(inputs) - want).abs().max()) < 1e-6 * scale * (1 if dtype == torch.float64 else 20)
        assert float((result(fresh) - net(fresh)).abs().max()) < 1e-6 * scale * (1 if dtype == torch.float64 else 20)
        if dtype == torch.float64:
            torch.testing.assert_close(result(inputs), want, rtol=1e-6, atol=1e-6)


def errors(dense: nn.Module, small: nn.Module, plan: PruningPlan, context: SelectorContext, upto: str) -> float:
    """Squared error of a layer's outputs on the sampled rows."""
    total = 0.0
    pair = [samples(copy.deepcopy(model), [upto], context, 10) for model in (dense, small)]
    for one, two in zip(*pair, strict=True):
        for a, b in zip(one.get(upto, []), two.get(upto, []), strict=True):
            kept = plan.layers[upto].out
            wanted = a.outputs if kept is None else a.outputs[:, list(kept)]
            total += float(((wanted.double() - b.outputs.double()) ** 2).sum())
    return total


def random_plan(net: nn.Module, example: Any, seed: int = 0) -> PruningPlan:
    analysis = analyze_channels(net, example)
    rng = np.random.default_rng(seed)
    kept = {}
    for group in analysis.groups:
        kept[group.name] = rng.permutation(group.size)[: max(1, group.size * 2 // 3)]
        for member in group.members:  # no side is emptied
            if not np.isin(member.vertex, kept[group.name]).any() and (member.vertex >= 0).any():
                kept[group.name] = np.union1d(kept[group.name], member.vertex[member.vertex >= 0][:1])
    return plan_from_vertices(analysis, kept)


ODD = (
    "depthwise_multiplier_2", "grouped_two", "grouped_narrow_wider", "transposed_odd", "transposed_grouped",
    "conv_padding_circular", "conv3d_chain", "shared_conv_chain", "linear_channels_last", "weight_norm", "mlp",
    "grouped_after_cat", "tied_weights", "batch_norm_before_and_after_cat", "unbatched_input", "multihead_attention",
)  # fmt: skip


@pytest.mark.parametrize("name", [*NETS, *ODD, *range(6)], ids=str)
def test_no_layer_is_further_from_the_dense_network_than_before(name: str | int) -> None:
    """The first layer refitted has the cut network's inputs; the whole runs, and nothing of the caller's is touched."""
    if isinstance(name, int):
        net, inputs = random_net(name)
    elif name in NETS:
        made = NETS[name]()
        net, inputs = made.model.eval(), torch.randn(3, *made.inputs.shape[1:])
    else:
        net, inputs = zoo.load()[name].build()
    assert isinstance(inputs, Tensor)
    plan = random_plan(net, inputs)
    pruned = cut(net, plan).train()
    loss = lambda out, _: out.square().mean()  # noqa: E731
    context = context_for(net, inputs, 3, loss=loss)
    before = [copy.deepcopy(model.state_dict()) for model in (net, pruned)]
    for mu in (0.0, 1.0):
        update = Reconstruction(mu=mu)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result, again = (update(pruned, plan, context) for _ in range(2))
        assert [p.shape for p in result.parameters()] == [p.shape for p in pruned.parameters()]
        assert [p.dtype for p in result.parameters()] == [p.dtype for p in pruned.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(result.parameters(), again.parameters(), strict=True))
        assert result.training and not any(p.grad is not None for p in net.parameters())
        for model, state in zip((net, pruned), before, strict=True):
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
            assert not any(m._forward_hooks for m in model.modules() if not isinstance(m, nn.MultiheadAttention))
        assert all(bool(p.isfinite().all()) for p in result.parameters())
        if mu == 0:
            changed = dict(pruned.named_parameters())
            refitted = [k.rpartition(".")[0] for k, p in result.named_parameters() if not torch.equal(p, changed[k])]
            assert refitted or name in ("tied_weights", "unbatched_input"), "something was refitted"
            first = next(iter(samples(copy.deepcopy(net).eval(), list(dict.fromkeys(refitted)), context, 10)), {})
            for layer in list(first)[:1]:
                now = errors(net, result.eval(), plan, context, layer)
                assert now <= errors(net, cut(net, plan).eval(), plan, context, layer) * (1 + 1e-5) + 1e-9
            result.train()


def test_the_whole_is_nearer_to_the_dense_network() -> None:
    torch.manual_seed(1)
    net = srr_ext.models.create("resnet20", num_classes=10).eval()
    zoo.randomise(net, 3)
    inputs = torch.randn(32, 3, 16, 16)
    plan = random_plan(net, inputs[:1])
    pruned = cut(net, plan)
    result = get_update("reconstruct")(pruned, plan, context_for(net, inputs, 2))
    fresh = torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        near, far = (float((model(fresh) - net(fresh)).square().mean()) for model in (result, pruned))
    assert near < 0.5 * far


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_the_division_into_parts_changes_nothing(mu: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer or all at once; in one batch or in several, for which the places are drawn alike if all are."""
    net, inputs = chain_of_three()
    net[0].weight.requires_grad_(False)
    pruned, plan = prune(net, inputs)
    context = context_for(net, inputs)
    update = Reconstruction(mu=mu, positions=0)
    whole = update(pruned, plan, context)
    assert [p.requires_grad for p in whole.parameters()] == [p.requires_grad for p in pruned.parameters()]
    ((images, labels),) = context.data.train
    monkeypatch.setattr(importlib.import_module("srr_ext.updates.reconstruct"), "_HELD", 1)
    batches = [(images[part : part + 10], labels[part : part + 10]) for part in range(0, 40, 10)]
    parts = update(pruned, plan, SelectorContext(net, inputs, data=Calibration(batches)))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_half_the_outputs_have_no_gradient() -> None:
    """An output that the loss does not look at counts as plainly as with mu = 0."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x).relu()
            return self.left(y), self.right(y)

    net, inputs = Two().double(), torch.randn(50, 6).double()
    pruned, plan = prune(net, inputs, {"first": [0, 2, 3, 6, 7]})
    context = context_for(net, inputs, 2, loss=lambda out, labels: F.cross_entropy(out[1], labels))
    plain, guided = (Reconstruction(mu=mu)(pruned, plan, context) for mu in (0.0, 3.0))
    torch.testing.assert_close(plain.left.weight, guided.left.weight, rtol=1e-9, atol=1e-12)
    assert float((plain.right.weight - guided.right.weight).detach().abs().max()) > 1e-4


def test_what_cannot_be_refitted_is_said() -> None:
    net, inputs = chain_of_three()
    pruned, plan = prune(net, inputs)
    context = context_for(net, inputs)
    nn.utils.parametrizations.weight_norm(pruned[2])
    pruned[5].forward = lambda x: F.conv2d(x, pruned[5].weight, pruned[5].bias)  # still called
    with pytest.warns(UserWarning, match=r"layer '2' lost inputs and keeps .*: its weight is computed"):
        result = get_update("reconstruct")(pruned, plan, context)
    torch.testing.assert_close(result[2].weight, pruned[2].weight)

    pruned, plan = prune(net, inputs)
    pruned.again = nn.Conv2d(4, 3, 3, bias=False, dtype=torch.float64)
    pruned.again.weight = pruned[2].weight
    pruned.again.forward = lambda x: x
    with pytest.warns(UserWarning, match="layer '2' .*: it shares its weights with another module"):
        get_update("reconstruct")(pruned, plan, context_for(net, inputs))

    with pytest.raises(ValueError, match="data: this method looks at images"):
        update_weights(net, pruned, plan, inputs[:1])
    other, _ = prune(net, inputs, {"0": [0, 1], "2": [0, 1, 2], "5": [0, 2, 4]})
    with pytest.raises(ValueError, match="pruned: layer '2' has 2 inputs where the plan leaves 4"):
        get_update("reconstruct")(other, plan, context)


@pytest.mark.parametrize("options", [{"mu": -1.0}, {"mu": float("nan")}, {"positions": -1}, {"ridge": -0.5}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        Reconstruction(**options)


def test_options_by_name() -> None:
    assert get_update("reconstruct:mu=1,positions=0,relative=false") == Reconstruction(1.0, 0, relative=False)


def test_networks_that_compute_nothing_are_refused() -> None:
    """Finite weights may still make infinite activations; fitted to those, weights would be nan."""
    net, inputs = chain_of_three(dtype=torch.float32)
    small, plan = prune(net, inputs)
    with torch.no_grad():
        next(small.parameters()).fill_(3e38)
    with pytest.raises(ValueError, match="numbers that are not finite, so that there is nothing to fit"):
        update_weights(net, small, plan, inputs, "reconstruct", data=[(inputs, torch.zeros(len(inputs)).long())])
