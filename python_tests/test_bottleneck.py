"""Bottlenecks in the Kronecker-factored eigenbasis: exact at full rank, costed exactly, cut at one quantile."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training_data import random_data

from srr_ext import models
from srr_ext.bottleneck import (
    Bottleneck,
    BottleneckPlan,
    Ranks,
    apply_bottlenecks,
    bottleneck_network,
    load_bottlenecks,
    make_bottlenecks,
    save_bottlenecks,
)
from srr_ext.bottleneck.candidates import find_candidates, measured_cost
from srr_ext.bottleneck.deciding import _Pool, _spectrum
from srr_ext.calibration import Calibration
from srr_ext.cost import Target
from srr_ext.criteria import SelectorContext
from srr_ext.criteria.kfac import Factors, kfac_factors
from srr_ext.models.small import DigitsCNN
from srr_ext.training import TrainConfig, reinitialise, train

BASES = ("channels", "patches")
LAYERS = {
    "conv": (lambda: nn.Conv2d(5, 7, 3, padding=1), (2, 5, 6, 6)),
    "strided": (lambda: nn.Conv2d(5, 7, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), bias=False), (2, 5, 9, 8)),
    "reflecting": (lambda: nn.Conv2d(7, 5, 3, padding="same", padding_mode="reflect"), (2, 7, 6, 6)),
    "pointwise": (lambda: nn.Conv2d(5, 7, 1), (2, 5, 3, 3)),
    "conv1d": (lambda: nn.Conv1d(5, 7, 3, padding=1), (2, 5, 9)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 2), (2, 3, 4, 4, 4)),
    "linear": (lambda: nn.Linear(5, 7), (2, 4, 5)),
}


def net(seed: int = 0, widths: tuple[int, int] = (12, 16)) -> nn.Sequential:
    torch.manual_seed(seed)
    a, b = widths
    return nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(inplace=True),
        nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
        nn.Conv2d(b, b, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * b, 20), nn.ReLU(),
        nn.Linear(20, 4),
    )  # fmt: skip


def images(n: int = 3, size: int = 8, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, size, size, generator=generator), torch.randint(classes, (8,), generator=generator))
        for _ in range(n)
    ]


EXAMPLE = torch.zeros(2, 3, 8, 8)


def orthonormal(n: int, rank: int | None = None) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0][:, :rank]


def flops(model: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("kind", LAYERS)
def test_with_all_directions_it_is_the_layer_itself(kind: str, basis: Any) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    n_out, n_in = layer.weight.shape[:2]
    fan_in = layer.weight[0].numel() if basis == "patches" else n_in
    other = Bottleneck(layer, fan_in, n_out, basis)
    other.rotate(layer.weight, orthonormal(fan_in), orthonormal(n_out))
    torch.testing.assert_close(other(x), layer(x), rtol=1e-9, atol=1e-12)
    assert [name for name, _ in other.named_parameters()][:3] == [
        "rotate_in.weight",
        "core.weight",
        "rotate_out.weight",
    ]


@pytest.mark.parametrize("basis", BASES)
def test_with_fewer_directions_it_is_the_layer_with_projected_weights(basis: Any) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(5, 7, 3, padding=1).double(), torch.randn(2, 5, 6, 6, dtype=torch.float64)
    base_in, base_out = orthonormal(5 if basis == "channels" else 45, 3), orthonormal(7, 4)
    other = Bottleneck(layer, 3, 4, basis)
    other.rotate(layer.weight, base_in, base_out)
    weight = layer.weight.detach()
    if basis == "channels":
        weight = torch.einsum("ochw,cd->odhw", weight, base_in @ base_in.T)
    else:
        weight = (weight.flatten(1) @ base_in @ base_in.T).reshape(weight.shape)
    weight = torch.einsum("op,pchw->ochw", base_out @ base_out.T, weight)
    torch.testing.assert_close(other(x), F.conv2d(x, weight, layer.bias, padding=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
def test_whole_networks_stay_what_they_are_at_full_rank(basis: Any) -> None:
    model, data = net().double(), [(x.double(), y) for x, y in images()]
    names = ["0", "3", "6", "10"]
    factors = kfac_factors(context(model, data), names, channels=basis == "channels")
    bases, ranks, widths = {}, {}, {}
    for name in names:
        weight = model.get_submodule(name).weight
        spectrum = _spectrum(weight, factors[name], basis)
        bases[name] = spectrum.base_in, spectrum.base_out
        ranks[name], widths[name] = Ranks(len(spectrum.base_in), len(weight)), list(weight.shape[:2])
    plan = BottleneckPlan(ranks, basis=basis, widths=widths, bases=bases)
    x = data[0][0]
    model.eval()
    torch.testing.assert_close(apply_bottlenecks(model, plan)(x), model(x), rtol=1e-9, atol=1e-12)


def context(model: nn.Module, data: Any, seed: int = 0) -> SelectorContext:
    return SelectorContext(model, data[0][0], seed, data=Calibration.of(data))


def random_factors(d: int, n: int) -> Factors:
    a, g = (torch.randn(2 * size, size, dtype=torch.float64) for size in (d, n))
    return Factors((a.T @ a)[None], (g.T @ g)[None])


@pytest.mark.parametrize("basis", BASES)
def test_damage_of_a_direction_is_the_form_of_the_weights_that_go(basis: Any) -> None:
    """D sums to tr(W^T G W A); a row sums to that form of the weights' part along its direction, a column as well."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    factors = random_factors(3 if basis == "channels" else 12, 4)
    spectrum = _spectrum(weight, factors, basis)
    places = weight.flatten(2).permute(2, 0, 1) if basis == "channels" else weight.flatten(1)[None]

    def form(w: Tensor) -> float:
        return sum(float(torch.trace(part.T @ factors.g[0] @ part @ factors.a[0])) for part in w)

    total = form(places)
    assert spectrum.damage_in.sum() == pytest.approx(total) and spectrum.damage_out.sum() == pytest.approx(total)
    for i in range(4):
        along = spectrum.base_out[:, i : i + 1]
        assert spectrum.damage_out[i] == pytest.approx(form(along @ along.T @ places))
    for j in range(len(spectrum.base_in)):
        along = spectrum.base_in[:, j : j + 1]
        assert spectrum.damage_in[j] == pytest.approx(form(places @ along @ along.T))


@pytest.mark.parametrize("basis", BASES)
def test_directions_that_inputs_do_not_have_cost_nothing_to_lose(basis: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 10, 1, bias=False), nn.Conv2d(10, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).double()  # fmt: skip
    data = [(x[:, :2].double(), y) for x, y in images()]
    weight = model[1].weight
    factors = kfac_factors(context(model, data), ["1"], channels=basis == "channels")["1"]
    spectrum = _spectrum(weight, factors, basis)
    rank = 2 if basis == "channels" else 18
    falls = np.sort(spectrum.damage_in)[::-1]
    assert falls[rank:].max() < 1e-12 * falls[0] < falls[rank - 1]
    kept = np.argsort(spectrum.damage_in)[-rank:].copy()
    bases = {"1": (spectrum.base_in[:, kept], spectrum.base_out)}
    plan = BottleneckPlan({"1": Ranks(rank, 8)}, basis=basis, widths={"1": [8, 10]}, bases=bases)
    x = data[0][0]
    torch.testing.assert_close(apply_bottlenecks(model, plan)(x), model(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("target", [{"keep_macs": 0.5}, {"keep_params": 0.4}, {"keep_macs": 0.9}])
def test_costs_are_what_torch_counts_and_targets_are_met(target: dict[str, float], basis: Any) -> None:
    model = models.create("resnet20", num_classes=4)
    plan = make_bottlenecks(model, EXAMPLE, data=images(1), basis=basis, **target)
    small = apply_bottlenecks(model, plan)
    for quantity, count in (("macs", lambda m: flops(m.eval(), EXAMPLE) // 2),
                            ("params", lambda m: sum(p.numel() for p in m.parameters()))):  # fmt: skip
        assert plan.cost[quantity] == {"dense": count(model), "pruned": count(small)}
    (option, keep), = target.items()  # fmt: skip
    cost = plan.cost[option.removeprefix("keep_")]
    assert 0.99 * keep < cost["pruned"] / cost["dense"] <= keep
    for name, ranks in plan.layers.items():
        old, new = model.get_submodule(name), small.get_submodule(name)
        assert [part.weight.shape[0] for part in new] == [ranks.in_, ranks.out, old.weight.shape[0]]
        if option == "keep_params":
            assert sum(p.numel() for p in new.parameters()) < sum(p.numel() for p in old.parameters())
    assert plan.layers.keys() | plan.left.keys() == {
        name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    }


@pytest.mark.parametrize("basis", BASES)
def test_the_fewest_directions_fall_and_all_of_them_before_the_others(basis: Any) -> None:
    model, data = net(), images()
    candidates, _ = find_candidates(model, EXAMPLE, ())
    factors = kfac_factors(context(model, data), [c.name for c in candidates], channels=basis == "channels")
    spectra = [_spectrum(model.get_submodule(c.name).weight, factors[c.name], basis) for c in candidates]
    dense = measured_cost(model, EXAMPLE)
    for target in (Target("macs", 0.6), Target("params", 0.7), Target("macs", 1.0)):
        pool = _Pool(candidates, spectra, basis, 0.1, target, dense)
        costs = [pool.cost(fallen) for fallen in range(len(pool._order) + 1)]
        assert costs == sorted(costs, reverse=True)
        limit = target.limit(dense[target.quantity])
        fallen = pool.settle()
        assert fallen == next(k for k, cost in enumerate(costs) if cost <= limit)
        for candidate, spectrum, sides in pool.bottlenecks(fallen):
            for kept, damage in zip(sides, (spectrum.damage_in, spectrum.damage_out), strict=True):
                gone = np.setdiff1d(np.arange(len(damage)), kept)
                assert len(kept) >= math.ceil(0.1 * len(damage)), candidate.name
                assert damage[gone].max(initial=0) <= min(pool.threshold(fallen), damage[kept].min())
                if len(kept) > math.ceil(0.1 * len(damage)):
                    assert damage[kept].min() >= pool.threshold(fallen)


def test_same_seed_same_bytes_and_the_model_stays_as_it_is() -> None:
    model, data = net().train(), images()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, again, other = (make_bottlenecks(model, EXAMPLE, data=data, keep_macs=0.6, seed=s) for s in (3, 3, 4))
    assert first.to_json() == again.to_json() and first == again
    for name, pair in first.bases.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, again.bases[name], strict=True))
    assert first.threshold != other.threshold
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("basis", BASES)
def test_the_network_may_be_on_any_device(basis: Any, device: torch.device) -> None:
    model, data = net().double(), [(x.double(), y) for x, y in images()]
    options: dict[str, Any] = {"data": data, "keep_macs": 0.6, "basis": basis, "labels": "all"}
    there = copy.deepcopy(model).to(device)
    plan, other = (make_bottlenecks(m, EXAMPLE.double(), **options) for m in (model, there))
    assert plan.layers == other.layers and plan.cost == other.cost
    small, moved = apply_bottlenecks(model, plan).eval(), apply_bottlenecks(there, other).eval()
    assert all(p.device.type == device.type for p in moved.parameters())
    x = data[0][0]
    torch.testing.assert_close(moved(x.to(device)).cpu(), small(x), rtol=1e-6, atol=1e-9)


def test_what_the_layer_was_like_is_carried_over() -> None:
    model = net().double().eval()
    model[3].requires_grad_(False)
    data = [(x.double(), y) for x, y in images()]
    plan = make_bottlenecks(model, EXAMPLE.double(), data=data, keep_macs=0.5)
    assert {"3", "10"} <= plan.layers.keys()
    small = apply_bottlenecks(model, plan)
    assert isinstance(small[3], Bottleneck) and not any(m.training for m in small.modules())
    assert not any(p.requires_grad for p in small[3].parameters())
    assert all(p.requires_grad and p.dtype == torch.float64 for p in small[10].parameters())
    assert torch.equal(small[10].rotate_out.bias, model[10].bias)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    apply_bottlenecks(model, plan)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shared_layer_is_replaced_wherever_it_is_called_and_counted_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)
            self.again = self.mix

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.mix(self.stem(x)).relu()).mean((2, 3)))

    model = Twice()
    plan = make_bottlenecks(model, EXAMPLE, data=images(), keep_macs=0.3)
    small = apply_bottlenecks(model, plan)
    assert small.mix is small.again and isinstance(small.mix, Bottleneck)
    assert 2 * plan.cost["macs"]["pruned"] == flops(small, EXAMPLE)


def test_other_layers_are_left_with_the_reason() -> None:
    class Own(nn.Conv2d):
        pass

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.up = nn.ConvTranspose2d(16, 16, 2)
            self.own = Own(16, 16, 1)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1))
            self.tied, self.twin = nn.Conv2d(16, 16, 1, bias=False), nn.Conv2d(16, 16, 1, bias=False)
            self.twin.weight = self.tied.weight
            self.hooked = nn.Conv2d(16, 16, 1)
            self.hooked.register_forward_hook(lambda *_: None)
            self.unused = nn.Conv2d(16, 16, 1)
            self.kept = nn.Conv2d(16, 16, 1)
            self.wide = nn.Conv2d(16, 64, 3, padding=1)
            self.head = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            for name in "stem grouped up own normed tied twin hooked kept wide".split():
                x = self.get_submodule(name)(x).relu()
            return self.head(x.mean((2, 3)))

    plan = make_bottlenecks(Odd(), EXAMPLE, data=images(), keep_params=0.7, ignored=["kept"])
    assert "wide" in plan.layers
    reasons = {
        "grouped": "a grouped convolution",
        "up": "a transposed convolution",
        "own": "Own computes something of its own",
        "normed": "ParametrizedConv2d computes something of its own",
        "tied": "another layer has the same weights",
        "twin": "another layer has the same weights",
        "hooked": "it has hooks",
        "unused": "the example inputs do not reach it",
        "kept": "ignored",
        "head": "the last layer, whose outputs are the scores",
    }
    assert reasons.items() <= plan.left.items()


def test_plans_are_json_and_networks_files(tmp_path: Path) -> None:
    model, data = models.create("digits_cnn"), [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))]
    plan = make_bottlenecks(model, data[0][0], data=data, keep_params=0.5)
    read = BottleneckPlan.from_json(plan.to_json())
    assert read == plan and not read.bases and read.to_json() == plan.to_json()
    with pytest.raises(ValueError, match="holds ranks but no directions for layer"):
        apply_bottlenecks(model, read)
    small = apply_bottlenecks(model, plan).eval()
    folder = save_bottlenecks(tmp_path / "run", small, plan)
    assert sorted(p.name for p in folder.iterdir()) == ["architecture.json", "bottlenecks.json", "model.safetensors"]
    for loaded in (load_bottlenecks(folder), load_bottlenecks(folder, model=models.create("digits_cnn"))):
        assert torch.equal(loaded(data[0][0]), small(data[0][0])) and not loaded.training
    with pytest.raises(ValueError, match=r"does not fit this model: layer '.*': expected \[.*\] output and input"):
        load_bottlenecks(folder, model=DigitsCNN(width=6))
    save_bottlenecks(folder, copy.deepcopy(small).half(), plan)
    assert all(p.dtype == torch.float16 for p in load_bottlenecks(folder).parameters())
    content = json.loads((folder / "bottlenecks.json").read_text())
    content["layers"].popitem()
    (folder / "bottlenecks.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="which the model lacks"):
        load_bottlenecks(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema version 1"),
        ({"layers": {"a": {"in": 0, "out": 2}}}, "field 'layers'"),
        ({"layers": [1]}, "field 'layers'"),
        ({"basis": "pixels"}, "field 'basis'"),
        ({"colour": 1}, "not a bottleneck plan"),
    ],
)
def test_damaged_plans_are_refused(change: dict[str, Any], message: str) -> None:
    content = json.loads(BottleneckPlan({"a": Ranks(1, 2)}).to_json()) | change
    with pytest.raises(ValueError, match=message):
        BottleneckPlan.from_json(json.dumps(content))
    with pytest.raises(ValueError, match="not a complete JSON file"):
        BottleneckPlan.from_json(json.dumps(content)[:-5])


def test_they_train_like_any_network() -> None:
    model, data = net(), random_data(64, 4)
    model[0] = nn.Conv2d(2, 12, 3, padding=1)
    batches = [tuple(batch) for batch in data.batches("train", 16)]
    small, record = bottleneck_network(model, batches[0][0], batches, keep_params=0.7)
    assert record["params"]["pruned"] <= 0.7 * record["params"]["dense"] and record["replaced"]
    assert set(record) >= {"macs", "target", "replaced", "left", "quantile", "seed"} and json.dumps(record)
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    history = train(small, data, TrainConfig(epochs=15, lr=0.2), device="cpu")
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]
    assert all(not torch.equal(p, before[name]) for name, p in small.named_parameters())
    fresh = reinitialise(small, 0)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in small.parameters()]


def test_what_cannot_be_done_is_said() -> None:
    model, data = net(), images()
    with pytest.raises(ValueError, match=r"keep_macs=0.01 is out of reach: with every layer at its floor, \d+ of \d+"):
        make_bottlenecks(model, EXAMPLE, data=data, keep_macs=0.01)
    with pytest.raises(ValueError, match="exactly one of"):
        make_bottlenecks(model, EXAMPLE, data=data)
    with pytest.raises(ValueError, match="basis must be one of channels, patches"):
        make_bottlenecks(model, EXAMPLE, data=data, keep_macs=0.5, basis="pixels")
    with pytest.raises(ValueError, match="floor is a share of each layer's directions"):
        make_bottlenecks(model, EXAMPLE, data=data, keep_macs=0.5, floor=1.0)
    with pytest.raises(ValueError, match="no module of the model is called 'nope'"):
        make_bottlenecks(model, EXAMPLE, data=data, keep_macs=0.5, ignored=["nope"])
    with pytest.raises(ValueError, match=r"no layer of the model can be replaced: 0: the last layer"):
        make_bottlenecks(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), EXAMPLE, data=data, keep_macs=0.5)
    with pytest.raises(ValueError, match="the model does not run on them"):
        make_bottlenecks(model, torch.zeros(1, 5, 8, 8), data=data, keep_macs=0.5)


def test_models_that_read_weights_themselves_are_told_how_to_go_on() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).mean((2, 3)) + self.body.weight.mean())

    with pytest.raises(ValueError, match=r"ignored: name the layers whose weights the model reads itself.*'weight'"):
        make_bottlenecks(Reader(), EXAMPLE, data=images(), keep_macs=0.9)
