"""Plans: their record, their file, and that what they promise is what the pruned network costs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import oracle
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import srr_ext
from srr_ext import PruningPlan

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small_plan() -> PruningPlan:
    """Make a plan for a CIFAR ResNet-20."""
    return srr_ext.make_plan(srr_ext.models.create("resnet20"), IMAGE, keep_macs=0.6)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet56", 32),
        ("resnet18", 32),
        ("resnext50_32x4d", 32),
        ("mobilenet_v2", 32),
        ("densenet121", 32),
        ("googlenet", 32),
        ("shufflenet_v2_x1_0", 32),
        ("squeezenet1_1", 32),
        ("efficientnet_b0", 32),
        ("regnet_y_400mf", 32),
    ],
)
@pytest.mark.parametrize("target", ["keep_macs", "keep_params"])
def test_the_planned_cost_is_the_counted_cost(name: str, size: int, target: str) -> None:
    """MACs are half of what torch's counter finds on the pruned network, parameters are those it has; both exactly."""
    model, example = srr_ext.models.create(name).eval(), torch.randn(1, 3, size, size)
    plan = srr_ext.make_plan(model, example, allocator="uniform", streams="prune", **{target: 0.7})
    small = srr_ext.apply_plan(model, plan, example)
    with FlopCounterMode(display=False) as counter:
        small(example)
    assert counter.get_total_flops() == 2 * plan.cost["macs"]["pruned"]
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.cost["params"]["pruned"]
    quantity = target.removeprefix("keep_")
    assert plan.cost[quantity]["pruned"] <= 0.7 * plan.cost[quantity]["dense"]


def test_a_plan_survives_its_file(small_plan: PruningPlan, tmp_path: Any) -> None:
    """Saving and loading give the same plan, and the same bytes again."""
    small_plan.save(tmp_path / "plan.json")
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again == small_plan
    assert again.to_json() == small_plan.to_json()


def test_the_same_seed_gives_the_same_bytes() -> None:
    """Nothing in a plan depends on when or how often it is made."""
    torch.manual_seed(3)
    model = srr_ext.models.create("resnet20")
    plans = [srr_ext.make_plan(model, IMAGE, selector="random", keep_macs=0.6, seed=5).to_json() for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != srr_ext.make_plan(model, IMAGE, selector="random", keep_macs=0.6, seed=6).to_json()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", True),
        ("gamma", "small"),
        ("cost", {"macs": 3}),
        ("widths", {"conv1": "ab"}),
        ("widths", {"conv1": [16]}),
        ("groups", {"conv1": {"size": 1.5}}),
        ("target", {"macs": None}),
        ("layers", {"conv1": {"out": [3, 1], "in": None}}),
        ("layers", {"conv1": {"out": [-1], "in": None}}),
        ("layers", {"conv1": {"out": [], "in": None}}),
        ("layers", {"conv1": [1]}),
        ("layers", []),
        ("schema_version", 99),
        ("surprise", 1),
    ],
)
def test_a_damaged_plan_is_refused(small_plan: PruningPlan, field: str, value: Any) -> None:
    """Every field is checked; the message says where the plan comes from."""
    content = json.loads(small_plan.to_json()) | {field: value}
    with pytest.raises(ValueError, match=r"plan\.json"):
        PruningPlan.from_json(json.dumps(content), "plan.json")


def test_a_truncated_plan_is_refused(small_plan: PruningPlan) -> None:
    """Half a file is no plan."""
    text = small_plan.to_json()
    with pytest.raises(ValueError, match="complete"):
        PruningPlan.from_json(text[: len(text) // 2])


def test_a_plan_for_a_shallower_network_does_not_fit(small_plan: PruningPlan) -> None:
    """All layers of resnet20 exist in resnet56, but not the other way round."""
    with pytest.raises(ValueError, match=r"layer1\.3\.conv1"):
        srr_ext.apply_plan(srr_ext.models.create("resnet56"), small_plan, IMAGE)


def test_ignored_layers_are_recorded_however_they_are_given() -> None:
    """A generator is as good as a list, and an analysis keeps what it was told."""
    model = srr_ext.models.create("resnet20")
    plan = srr_ext.make_plan(model, IMAGE, keep_macs=0.8, ignored=(name for name in ["layer1.0.conv1"]))
    assert plan.options["ignored"] == ["layer1.0.conv1"]
    assert plan.layers.get("layer1.0.conv1") is None
    analysis = srr_ext.analyze_channels(model, IMAGE, ignored=["layer1.0.conv1"])
    assert srr_ext.make_plan(model, IMAGE, keep_macs=0.8, analysis=analysis) == plan
    with pytest.raises(ValueError, match="ignored"):
        srr_ext.make_plan(model, IMAGE, keep_macs=0.8, analysis=analysis, ignored=["layer1.1.conv1"])


def test_an_analysis_of_another_model_is_refused() -> None:
    """It would name layers that are not there."""
    analysis = srr_ext.analyze_channels(srr_ext.models.create("resnet20"), IMAGE)
    with pytest.raises(ValueError, match="analysis"):
        srr_ext.make_plan(srr_ext.models.create("resnet32"), IMAGE, keep_macs=0.5, analysis=analysis)


class TwoScales(nn.Module):
    """One output is small, the other huge and constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = zoo.conv(3, 8), zoo.conv(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's output beside a large number."""
        return self.b(self.a(x).relu()), torch.full((1,), 1e12)


def test_every_output_is_proven_by_its_own_scale() -> None:
    """A large output must not hide that another one is wrong."""
    model, example = TwoScales().eval(), zoo.image()
    plan = oracle.random_plan(model, example, 0, 0.5)
    kept = plan.layers["a"].out
    assert kept is not None
    other = tuple(sorted(set(range(8)) - set(kept)))[: len(kept)]
    wrong = dataclasses.replace(plan, layers=plan.layers | {"b": dataclasses.replace(plan.layers["b"], in_=other)})
    assert srr_ext.verify(model, plan, example) < 1e-9
    assert srr_ext.verify(model, wrong, example) > 1e-3


@pytest.mark.parametrize(("model", "plan"), [("m", None), (nn.Linear(2, 2), {}), (nn.Linear(2, 2), "plan.json")])
def test_what_is_no_plan_is_named(model: Any, plan: Any) -> None:
    """The error says what was wanted and what came."""
    with pytest.raises(TypeError, match=type(plan).__name__):
        srr_ext.apply_plan(model, plan, torch.randn(1, 2))


def test_state_that_cannot_be_cut_is_refused(small_plan: PruningPlan) -> None:
    """Adafactor keeps sums over rows and columns; cutting them would be a guess."""
    model = srr_ext.models.create("resnet20")
    optimizer = torch.optim.Adafactor(model.parameters())
    model(IMAGE).sum().backward()
    optimizer.step()
    small = srr_ext.apply_plan(model, small_plan, IMAGE)
    with pytest.raises(ValueError, match="Adafactor"):
        srr_ext.prune_optimizer(optimizer, model, small, small_plan)


def test_outputs_that_hold_nothing_prove_nothing(small_plan: PruningPlan) -> None:
    """No image, no proof."""
    model = srr_ext.models.create("resnet20")
    assert srr_ext.verify(model, small_plan, IMAGE[:0]) == float("inf")


def test_the_names_to_ignore_are_a_list() -> None:
    """A bare string would be taken for its letters."""
    with pytest.raises(TypeError, match="conv1"):
        srr_ext.analyze_channels(srr_ext.models.create("resnet20"), IMAGE, ignored="conv1")


def test_the_optimisers_tensor_options_are_not_shared(small_plan: PruningPlan) -> None:
    """A learning rate that is a tensor belongs to each optimiser alone."""
    model = srr_ext.models.create("resnet20")
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    small = srr_ext.apply_plan(model, small_plan, IMAGE)
    twin = srr_ext.prune_optimizer(optimizer, model, small, small_plan)
    twin.param_groups[0]["lr"].fill_(0.5)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
