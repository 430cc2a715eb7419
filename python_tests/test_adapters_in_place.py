"""What trainers hold is pruned in place: equal to surgery's copy, same objects, optimisers and schedules that go on."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import oracle
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional as F

import srr_ext
from srr_ext.adapters.in_place import check_options, cut_in_place, is_dense, prune_in_place, summary, transplant
from srr_ext.surgery import prune_optimizer

ZOO = zoo.load()
OPTIONS: dict[str, Any] = {"keep_macs": 0.6, "allocator": "uniform"}
OPTIMISERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


class Net(nn.Module):
    """Two blocks with batch statistics, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 16, 3)
        self.twice, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.norm(self.a(x)))).relu()
        return self.head(self.twice(self.twice(x)).mean((2, 3)))


def step(model: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loss = F.cross_entropy(model(torch.randn(6, 3, 8, 8, generator=generator)), torch.arange(6) % 4)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss


@pytest.mark.parametrize("kind", sorted(OPTIMISERS))
def test_training_goes_on_as_with_the_pruned_copy_and_its_optimiser(kind: str) -> None:
    """Three steps, surgery, three steps: bit for bit what `apply_plan` and `prune_optimizer` give, with a schedule."""
    example = torch.randn(2, 3, 8, 8)
    model = Net()
    optimiser = OPTIMISERS[kind](model.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.7)
    twin = copy.deepcopy(model)
    other = OPTIMISERS[kind](twin.parameters())
    rate = optimiser.param_groups[0]["lr"]
    for seed in range(3):
        step(model, optimiser, seed)
        step(twin, other, seed)
        schedule.step()
        rate *= 0.7
        other.param_groups[0]["lr"] = rate
    objects = [*model.modules(), *model.parameters(), *model.buffers()]

    plan = prune_in_place(model, example, OPTIONS, optimizers=[optimiser])

    assert plan == srr_ext.make_plan(twin, example, **OPTIONS) and plan.layers
    small = srr_ext.apply_plan(twin, plan, example)
    other = prune_optimizer(other, twin, small, plan)
    assert all(a is b for a, b in zip(objects, [*model.modules(), *model.parameters(), *model.buffers()], strict=True))
    assert str(model) == str(small) and model.training
    for seed in range(3, 6):
        step(model, optimiser, seed)
        step(small, other, seed)
        schedule.step()
        rate *= 0.7
        other.param_groups[0]["lr"] = rate
        assert optimiser.param_groups[0]["lr"] == pytest.approx(rate)
    wanted = small.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in model.parameters()) == plan.cost["params"]["pruned"]


@pytest.mark.parametrize("name", ["residual", "flatten_nhwc", "cat_twice", "shuffle_dynamic"])
def test_every_kind_of_cut_is_taken_over(name: str) -> None:
    """Tensors, sizes and texts of `cut`, for streams, flattened, concatenated and shuffled channels alike."""
    model, example = ZOO[name].build()
    plan = oracle.random_plan(model, example, 0, 0.5)
    small = srr_ext.cut(model, plan)
    assert is_dense(model, plan)
    cut_in_place(model, plan)
    assert not is_dense(model, plan)
    wanted = small.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
    assert str(model) == str(small)
    with pytest.raises(ValueError, match="does not fit"):
        cut_in_place(model, plan)


def test_a_loss_that_is_still_alive_does_not_matter() -> None:
    """Autograd remembers shapes of gradients while a graph lives; hooks on parameters stay."""
    model, example = Net(), torch.randn(2, 3, 8, 8)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    alive, seen = step(model, optimiser, 0), []
    model.b.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(tuple(parameter.grad.shape)))
    prune_in_place(model, example, OPTIONS, optimizers=[optimiser])
    assert model.b.weight.grad is None
    step(model, optimiser, 1)
    assert seen == [tuple(model.b.weight.shape)] != [(16, 12, 3, 3)] and alive.requires_grad


def test_parameters_of_the_owner_are_left_alone() -> None:
    """An optimiser may hold more than the network: the rest keeps its state, and its place."""

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.net = nn.Parameter(torch.ones(())), Net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale

    owner = Owner()
    optimiser = torch.optim.Adam([{"params": owner.net.parameters()}, {"params": [owner.scale], "lr": 0.5}])
    step(owner, optimiser, 0)
    before = copy.deepcopy(optimiser.state[owner.scale])
    plan = prune_in_place(owner.net, torch.randn(2, 3, 8, 8), OPTIONS, owner=owner, optimizers=[optimiser])
    assert "a" in plan.layers or "b" in plan.layers
    assert optimiser.param_groups[1]["lr"] == 0.5 and optimiser.param_groups[1]["params"] == [owner.scale]
    assert {k: float(v) for k, v in optimiser.state[owner.scale].items()} == {k: float(v) for k, v in before.items()}
    for parameter in owner.net.parameters():
        assert optimiser.state[parameter]["exp_avg"].shape == parameter.shape
    step(owner, optimiser, 1)


def test_a_refusal_changes_nothing() -> None:
    """State that cannot be cut is found before the first tensor is touched."""
    model = Net()
    optimiser = torch.optim.Adam(model.parameters())
    step(model, optimiser, 0)
    optimiser.state[model.b.weight]["exp_avg"] = torch.zeros(7)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="optimizer"):
        prune_in_place(model, torch.randn(2, 3, 8, 8), OPTIONS, optimizers=[optimiser])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    plan = srr_ext.make_plan(model, torch.randn(2, 3, 8, 8), **OPTIONS)
    stranger = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not the model's"):
        transplant(model, srr_ext.cut(model, plan), plan, optimizers=[stranger])
    assert is_dense(model, plan)


def test_options_are_checked_before_a_training() -> None:
    check_options({"keep_params": 0.5, "selector": "fpgm", "streams": "prune"})
    for options, error, message in (
        ({}, ValueError, "exactly one"),
        ({"keep_macs": 0.5, "keep_params": 0.5}, ValueError, "exactly one"),
        ({"keep_macs": 2.0}, ValueError, "keep_macs"),
        ({"keep_macs": 0.5, "keepmacs": 0.5}, TypeError, "keepmacs: make_plan has no such option"),
        ({"keep_macs": 0.5, "allocator": "srrr"}, ValueError, "srrr"),
        ({"keep_macs": 0.5, "selector": "l3"}, ValueError, "l3"),
        ({"keep_macs": 0.5, "analysis": None}, TypeError, "analysis"),
    ):
        with pytest.raises(error, match=message):
            check_options(options)


def test_the_summary_is_the_plan() -> None:
    plan = srr_ext.make_plan(Net(), torch.randn(1, 3, 8, 8), **OPTIONS)
    numbers = summary(plan)
    assert numbers["srr/macs"] == plan.cost["macs"]["pruned"] and 0.4 < numbers["srr/macs_kept"] <= 0.6


@pytest.mark.slow
def test_the_package_does_not_import_what_adapters_need() -> None:
    """`import srr_ext` stays quick, and a missing library is named with the extra that brings it."""
    code = """
import sys, srr_ext
libraries = ("lightning", "transformers", "torch_pruning")
assert not {*libraries, "srr_ext.adapters"} & sys.modules.keys()
for name in libraries:
    sys.modules[name] = None
    try:
        __import__(f"srr_ext.adapters.{name}")
    except ModuleNotFoundError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, extra in zip(lines, ("lightning", "transformers", "torch-pruning"), strict=True):
        assert "not installed" in line and line.endswith(f"pip install 'srr_ext[{extra}]'")
