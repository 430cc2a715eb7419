"""K-FAC factors and the scores made of them, against loops, autograd and the exact Fisher information."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from planning_nets import NETS, Net, chain, grouped, residual
from random_nets import random_net
from torch import Tensor, nn

from srr_ext.calibration import Calibration
from srr_ext.channels import ChannelGroup, analyze_channels
from srr_ext.criteria import SelectorContext, get_selector
from srr_ext.criteria.eigendamage import c_obd, eigendamage
from srr_ext.criteria.kfac import kfac_factors, patches, per_channel
from srr_ext.filters import channel_weights
from srr_ext.plan import make_plan

ZOO = zoo.load()
KINDS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (3, 4, 6, 5)),
    "conv strided grouped": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), groups=2), (3, 4, 9, 8)),
    "conv depthwise dilated": (lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), (3, 4, 6, 6)),
    "conv reflecting": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 6, 6)),
    "conv without batch": (lambda: nn.Conv2d(4, 6, 3), (4, 6, 6)),
    "conv1d same": (lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2), (3, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3), stride=(1, 2, 1), padding=1, groups=2), (2, 4, 3, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), (3, 4, 4, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, dilation=2), (3, 4, 5)),
    "linear": (lambda: nn.Linear(4, 6), (3, 4)),
    "linear on tokens": (lambda: nn.Linear(4, 6, bias=False), (3, 7, 4)),
}


def batches(shape: tuple[int, ...], n: int = 3, classes: int = 5, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4, *shape, generator=generator), torch.randint(classes, (4,), generator=generator))
        for _ in range(n)
    ]


def context_of(model: nn.Module, data: Any, seed: int = 0) -> SelectorContext:
    return SelectorContext(model, data[0][0], seed, data=Calibration.of(data))


def doubled(net: Net) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    data = [(x.double(), y) for x, y in batches(tuple(net.inputs.shape[1:]))]
    return net.model.double(), data


@pytest.mark.parametrize("kind", KINDS)
def test_weights_times_patches_are_the_outputs(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    columns = torch.cat(list(patches(layer, x, y)), 2)  # [groups, fan_in, positions]
    found = channel_weights(layer).unflatten(0, (columns.shape[0], -1)) @ columns
    want = per_channel(layer, y) - (layer.bias[:, None] if layer.bias is not None else 0)
    torch.testing.assert_close(found.flatten(0, 1), want, rtol=0, atol=1e-12)


def test_patches_come_in_parts_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(3, 5, 3), torch.randn(7, 3, 6, 6)
    whole = list(patches(layer, x, layer(x)))
    monkeypatch.setattr("srr_ext.criteria.kfac._PART", 2 * 27 * 16)
    parts = list(patches(layer, x, layer(x)))
    assert len(whole) == 1 and [part.shape[2] for part in parts] == [32, 32, 32, 16]
    assert torch.equal(torch.cat(parts, 2), whole[0])


def by_loops(model: nn.Module, name: str, data: list[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Factors of an ungrouped convolution with one position at a time, and each image's gradients on their own."""
    conv = model.get_submodule(name)
    (kh, kw), (ph, pw), (sh, sw) = conv.kernel_size, conv.padding, conv.stride
    a, g, n_images, n_places = 0.0, 0.0, 0, 0
    for inputs, targets in data:
        for image, label in zip(inputs, targets, strict=True):
            kept: dict[str, Tensor] = {}

            def keep(module: nn.Module, args: tuple[Tensor], y: Tensor, kept: dict[str, Tensor] = kept) -> None:
                kept.update(x=args[0], y=y)

            handle = conv.register_forward_hook(keep)
            loss = F.cross_entropy(model(image[None]), label[None])
            handle.remove()
            gradients = torch.autograd.grad(loss, kept["y"])[0][0]
            x = np.pad(kept["x"][0].detach().numpy(), ((0, 0), (ph, ph), (pw, pw)))
            for i, j in itertools.product(range(gradients.shape[1]), range(gradients.shape[2])):
                patch = x[:, i * sh : i * sh + kh, j * sw : j * sw + kw].reshape(-1)
                a = a + np.outer(patch, patch)
                g = g + np.outer(gradients[:, i, j].numpy(), gradients[:, i, j].numpy())
                n_places += 1
            n_images += 1
    return a / n_places, g / n_images


@pytest.mark.parametrize("name", ["0", "3"])
def test_factors_are_those_of_loops_over_images_and_positions(name: str) -> None:
    net = chain()
    model, data = doubled(net)
    model.eval()
    factors = kfac_factors(context_of(model, data), [name], labels="given")[name]
    a, g = by_loops(model, name, data)
    np.testing.assert_allclose(factors.a[0], a, rtol=1e-10)
    np.testing.assert_allclose(factors.g[0], g, rtol=1e-9, atol=1e-16)


def test_moments_of_channels_are_the_mean_over_kernel_places() -> None:
    model, data = doubled(chain())
    context = context_of(model, data)
    whole = kfac_factors(context, ["3"])["3"].a[0].unflatten(1, (6, 9)).unflatten(0, (6, 9))
    mean = torch.einsum("ckdk->cd", whole) / 9
    torch.testing.assert_close(kfac_factors(context, ["3"], channels=True)["3"].a[0], mean)


def softmax_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_product_of_factors_is_the_exact_fisher_block_of_a_linear_layer_for_one_image(name: str) -> None:
    model, x = softmax_net(), torch.randn(1, 4, dtype=torch.float64)
    weight = model.get_submodule(name).weight
    log_p = model(x).log_softmax(1)[0]
    fisher = sum(
        p.exp() * torch.outer(grad, grad)
        for p in log_p
        for grad in [torch.autograd.grad(p, weight, retain_graph=True)[0].flatten()]
    )
    factors = kfac_factors(context_of(model, [(x, torch.tensor([0]))]), [name], labels="all")[name]
    torch.testing.assert_close(torch.kron(factors.g[0], factors.a[0]), fisher.detach(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["0", "2"])
def test_damage_is_half_the_gauss_newton_form_of_the_removed_row(name: str) -> None:
    """By the Jacobian of the scores and the Hessian of the softmax."""
    model, x = softmax_net(), torch.randn(1, 4, dtype=torch.float64)
    weight = model.get_submodule(name).weight
    scores = model(x)[0]
    p = scores.softmax(0).detach()
    hessian = torch.diag(p) - torch.outer(p, p)
    jacobian = torch.stack([torch.autograd.grad(score, weight, retain_graph=True)[0] for score in scores])
    change = -torch.einsum("kij,ij->ik", jacobian, weight.detach())  # of the scores, as row i goes
    want = 0.5 * torch.einsum("ik,kl,il->i", change, hessian, change)
    groups = analyze_channels(model, x).groups
    index = [group.name for group in groups].index(name)
    context = context_of(model, [(x, torch.tensor([0]))])
    found = get_selector("eigendamage:labels=all")(groups, context)[index]
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("net", NETS)
def test_scores_are_the_forms_of_the_factors(net: str) -> None:
    made = NETS[net]()
    model, data = doubled(made)
    context = context_of(model, data)
    names = [m.module for group in made.groups for m in group.producers]
    factors = kfac_factors(context, names)
    full, diagonal = eigendamage(made.groups, context), c_obd(made.groups, context)
    for g, group in enumerate(made.groups):
        want, plain = np.zeros(group.size), np.zeros(group.size)
        for m in group.producers:
            weights = channel_weights(model.get_submodule(m.module)).numpy()
            a, blame = factors[m.module].a.numpy(), factors[m.module].g.numpy()
            per_group = len(weights) // len(a)
            for channel, vertex in enumerate(m.vertex):
                if vertex >= 0:
                    block, row = divmod(channel, per_group)
                    w = weights[channel]
                    want[vertex] += 0.5 * blame[block, row, row] * (w @ a[block] @ w)
                    plain[vertex] += 0.5 * blame[block, row, row] * (w**2 @ np.diag(a[block]))
        np.testing.assert_allclose(full[g], want, rtol=1e-10)
        np.testing.assert_allclose(diagonal[g], plain, rtol=1e-10)
        assert full[g].dtype == torch.float64 and not np.allclose(want, plain)


def test_drawn_labels_have_the_model_s_probabilities() -> None:
    model, x = softmax_net(), torch.randn(1, 4, dtype=torch.float64)
    many = [(x.expand(2000, 4), torch.zeros(2000, dtype=torch.int64))] * 2
    exact = kfac_factors(context_of(model, [(x, torch.tensor([0]))]), ["4"], labels="all")["4"].g
    drawn = kfac_factors(context_of(model, many), ["4"])["4"].g
    assert float((drawn - exact).abs().max()) < 0.03 * float(exact.abs().max())
    given = kfac_factors(context_of(model, many), ["4"], labels="given")["4"].g
    assert float((given - exact).abs().max()) > 0.1 * float(exact.abs().max())


def test_same_seed_same_bytes_other_seed_other_draws() -> None:
    net = residual()
    data = batches((3, 4, 4))
    for select in (eigendamage, c_obd):
        first, again, other = (select(net.groups, context_of(net.model, data, seed)) for seed in (3, 3, 4))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["eigendamage", "c_obd"])
def test_the_model_may_be_on_any_device(name: str, device: torch.device) -> None:
    for make in NETS.values():
        net, there = make(), make()
        model, data = doubled(net)
        want = get_selector(name)(net.groups, context_of(model, data))
        found = get_selector(name)(net.groups, context_of(there.model.double().to(device), data))
        for a, b in zip(want, found, strict=True):
            assert b.device.type == device.type
            torch.testing.assert_close(a, b.cpu(), rtol=1e-8, atol=1e-14)


def test_splitting_images_over_batches_changes_nothing() -> None:
    model, data = doubled(residual())
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    groups = residual().groups
    for name in ("eigendamage:labels=given", "c_obd:labels=all"):
        parts, one = (get_selector(name)(groups, context_of(model, d)) for d in (data, whole))
        for a, b in zip(parts, one, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


class Twice(nn.Module):
    """Calls one convolution twice, and writes into activations."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.inplace = inplace
        self.stem = nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=self.inplace)
        x = F.relu(self.shared(x), inplace=self.inplace)
        x = F.relu(self.shared(x), inplace=self.inplace)
        return self.head(x.mean((2, 3)))


def test_in_place_functions_and_frozen_weights_change_nothing() -> None:
    torch.manual_seed(0)
    model, data = Twice(), batches((3, 4, 4))
    plain = Twice(inplace=False)
    plain.load_state_dict(model.state_dict())
    plain.requires_grad_(False)
    groups = analyze_channels(model, data[0][0]).groups
    assert groups
    with torch.no_grad():
        for select in (eigendamage, c_obd):
            scores = [select(groups, context_of(m, data)) for m in (model, plain)]
            assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))


def test_calls_of_a_shared_layer_count_as_positions() -> None:
    torch.manual_seed(0)
    model, data = Twice().double(), [(x.double(), y) for x, y in batches((3, 4, 4))]
    factors = kfac_factors(context_of(model, data), ["shared"], labels="given")["shared"]
    twin = nn.Sequential(
        model.stem, nn.ReLU(), model.shared, nn.ReLU(), copy.deepcopy(model.shared), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head,
    )  # fmt: skip
    one, two = (kfac_factors(context_of(twin, data), ["2", "4"], labels="given")[name] for name in ("2", "4"))
    torch.testing.assert_close(factors.a, (one.a + two.a) / 2)
    torch.testing.assert_close(factors.g, one.g + two.g)


def test_the_model_stays_as_it_is() -> None:
    net = grouped()
    net.model.train()
    before = {key: value.clone() for key, value in net.model.state_dict().items()}
    for select in (eigendamage, c_obd):
        select(net.groups, context_of(net.model, batches((4, 4, 4))))
    assert all(torch.equal(value, before[key]) for key, value in net.model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in net.model.modules())
    assert all(p.requires_grad and p.grad is None for p in net.model.parameters())


def square(outputs: Any, targets: Tensor) -> Tensor:
    """Mean over the batch of the sum of squares of every output."""
    leaves = torch.utils._pytree.tree_leaves(outputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return sum((t.square().sum() for t in tensors), torch.zeros(())) / len(targets)


def check_scores(model: nn.Module, example: Any, groups: tuple[ChannelGroup, ...]) -> None:
    count = len(next(leaf for leaf in torch.utils._pytree.tree_leaves(example) if isinstance(leaf, Tensor)))
    data = Calibration([(example, torch.zeros(count))], loss=square)
    for name in ("eigendamage:labels=given", "c_obd:labels=given"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            scores = get_selector(name)(groups, SelectorContext(model, example, data=data))
        for group, score in zip(groups, scores, strict=True):
            assert score.shape == (group.size,) and score.dtype == torch.float64
            assert bool(score.isfinite().all()) and bool((score >= 0).all())


@pytest.mark.parametrize("name", [*sorted(ZOO)[::10], "script_module", "dropout_inplace"])
def test_odd_models(name: str) -> None:
    model, example = ZOO[name].build()
    check_scores(model.eval(), example, analyze_channels(model, example).groups)


@pytest.mark.parametrize("name", ["heaviside", "inplace_after_read", "out_argument"])
def test_models_without_derivatives_are_refused(name: str) -> None:
    model, example = ZOO[name].build()
    with pytest.raises(ValueError, match="the loss of a batch cannot be computed and differentiated"):
        check_scores(model.eval(), example, analyze_channels(model, example).groups)


def test_random_numbers_of_a_model_are_the_same_each_time() -> None:
    class Noisy(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5, training=True))

    model, data = Noisy(), batches((3, 4, 4))
    groups = analyze_channels(model, data[0][0]).groups
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again = (eigendamage(groups, context_of(model, data)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", range(8))
def test_random_networks(seed: int) -> None:
    model, example = random_net(seed)
    check_scores(model, example, analyze_channels(model, example).groups)


def test_plans_can_be_made_by_them() -> None:
    net = chain((12, 16))
    for selector in ("eigendamage", "c_obd"):
        data = batches((3, 4, 4))
        plan = make_plan(net.model, net.inputs, allocator="global", selector=selector, keep_macs=0.5, data=data)
        assert plan.cost["macs"]["pruned"] <= 0.5 * plan.cost["macs"]["dense"]


def test_layers_that_no_gradient_reaches_are_named() -> None:
    class Detached(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.stem(x).detach()).mean((2, 3)))

    model, data = Detached(), batches((3, 4, 4))
    groups = analyze_channels(model, data[0][0]).groups
    with pytest.warns(UserWarning, match=r"group 'stem': no gradient of the loss reaches stem"):
        scores = eigendamage(groups, context_of(model, data))
    assert not scores[0].any() and bool(scores[1].all())


def test_layers_whose_weights_are_borrowed_are_refused() -> None:
    class Borrowing(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.conv2d(x, self.stem.weight).mean((2, 3)))

    with pytest.raises(ValueError, match=r"layer 'stem': the model uses its weights without calling it"):
        kfac_factors(context_of(Borrowing(), batches((3, 4, 4))), ["stem"])


def test_what_labels_cannot_be_drawn_from() -> None:
    net = chain()
    x, y = batches((3, 4, 4))[0]
    with pytest.raises(ValueError, match="this method looks at images"):
        eigendamage(net.groups, SelectorContext(net.model, net.inputs))
    with pytest.raises(ValueError, match=r"labels must be one of sampled, given, all, got 'real'"):
        get_selector("c_obd:labels=real")(net.groups, context_of(net.model, [(x, y)]))
    with pytest.raises(ValueError, match=r"no class indices \[4\]"):
        eigendamage(net.groups, context_of(net.model, [(x, torch.randn(4, 5))]))
    with pytest.raises(ValueError, match=r"outputs have shape \[20\]"):
        eigendamage(net.groups, context_of(nn.Sequential(*net.model, nn.Flatten(0)), [(x, y)]))
