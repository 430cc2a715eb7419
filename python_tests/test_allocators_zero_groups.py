"""What is zero goes, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import zoo
from planning_nets import Net, chain, deep, plan
from torch import Tensor, nn

from srr_ext import analyze_channels, apply_plan, make_plan, models
from srr_ext.allocators import get_allocator
from srr_ext.allocators.zero_groups import zero_groups
from srr_ext.cost import CostModel
from srr_ext.coupled import CoupledWeights
from srr_ext.criteria import get_selector
from srr_ext.criteria.group_norm import group_norm


def kept_of(scores: list[list[float]], widths: tuple[int, ...], **options: Any) -> list[list[int]]:
    """Plan a chain of these widths with these scores; return the vertices kept per group."""
    net = deep(widths)
    given = [torch.tensor(s, dtype=torch.float64) for s in scores]
    options = {"keep": 1.0, "quantity": "channels", "floor": 0.0} | options
    kept, _ = plan(net, "zero_groups", lambda groups, context: given, **options)
    return [kept[group.name].tolist() for group in net.groups]


def zeroed(net: Net, **vertices: list[int]) -> Net:
    """Make vertices of groups, by position, zero with all that goes with them."""
    for group in net.groups:
        factors = torch.ones(group.size)
        factors[vertices.get(f"g{group.name}", [])] = 0
        CoupledWeights(group, net.model).scale_(factors)
    return net


def test_names() -> None:
    assert get_allocator("zero_groups") is zero_groups and get_selector("group_norm") is group_norm


def test_exactly_the_zeros_go() -> None:
    """Tiny scores stay; a group without zeros stays whole."""
    kept = kept_of([[0, 3, 0, 1e-300, 2], [1, 1, 1], [0, 0, 5, 0]], (5, 3, 4))
    assert kept == [[1, 3, 4], [0, 1, 2], [2]]


def test_one_vertex_stays_of_a_group_of_zeros_and_more_with_a_floor() -> None:
    assert [len(v) for v in kept_of([[0] * 8, [1] * 4], (8, 4))] == [1, 4]
    assert [len(v) for v in kept_of([[0] * 8, [1] * 4], (8, 4), floor=0.5)] == [4, 4]
    assert kept_of([[0, 0, 0, 0, 0, 0, 1, 0], [1] * 4], (8, 4), floor=0.5) == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_round_to_brings_zeros_back_and_takes_nothing_else() -> None:
    kept = kept_of([[0, 0, 0, 1, 2, 3, 4, 5], [0, 1, 1, 1]], (8, 4), round_to=4)
    assert kept == [list(range(8)), list(range(4))]
    kept = kept_of([[0, 0, 0, 1, 2, 0, 0, 5], [0, 1, 1, 1]], (8, 4), round_to=4)
    assert kept == [[3, 4, 6, 7], [0, 1, 2, 3]]  # five zeros, of which one comes back: the last in order


def test_the_plan_says_how_many_are_zero() -> None:
    net = zeroed(chain(), g0=[1, 2], g3=[0])
    made = make_plan(net.model, net.inputs, allocator="zero_groups", selector="group_norm", keep_macs=1.0)
    assert made.info == {"zero": 3}
    assert made.layers["0"].out == (0, 3, 4, 5) and made.layers["3"].out == (1, 2, 3, 4, 5, 6, 7)
    again = make_plan(net.model, net.inputs, allocator="zero_groups", selector="group_norm", keep_macs=1.0)
    assert made.to_json() == again.to_json()


def test_a_target_that_the_zeros_do_not_reach_is_refused() -> None:
    """The message says how many are zero, what is left, and what to do; just that much is reached."""
    net = zeroed(chain(), g0=[1, 2], g3=[0])
    cost = CostModel(net.analysis, "params")
    left = cost.of({"0": np.array([0, 3, 4, 5]), "3": np.arange(1, 8)})
    with pytest.raises(
        ValueError, match=r"keep_params=0\.1 is out of reach: 3 of 14 vertices have importance 0"
    ) as error:
        plan(net, "zero_groups", "group_norm", 0.1, "params")
    for words in (f"without the 3 of them that may go, {left} of {cost.dense} params", "strength", "more epochs"):
        assert words in str(error.value)
    assert "global:normalise=none" in str(error.value)
    kept, _ = plan(net, "zero_groups", "group_norm", (left + 0.5) / cost.dense, "params")
    assert cost.of(kept) == left
    with pytest.raises(ValueError, match="out of reach"):
        plan(net, "zero_groups", "group_norm", (left - 0.5) / cost.dense, "params")


def test_global_ranking_takes_the_zeros_first_and_goes_on() -> None:
    """What the message advises."""
    net = zeroed(chain((16, 24)), g0=[3, 5, 7], g3=[0, 23])
    zeros, _ = plan(net, "zero_groups", "group_norm", 1.0)
    ranked, _ = plan(net, "global:normalise=none", "group_norm", 0.5)
    assert all(set(ranked[name].tolist()) <= set(zeros[name].tolist()) for name in zeros)
    assert any(len(ranked[name]) < len(zeros[name]) for name in zeros)


def test_scores_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group '1' an importance below 0 \(down to -0\.5\).*group_norm"):
        kept_of([[0, 1], [1, -0.5]], (2, 2))


ENTRIES = zoo.load()
NAMES = (
    "resnet20 depthwise inverted_residual grouped_two shufflenet_unit dense_block u_net squeeze_excite prelu_channels "
    "transposed_grouped transposed_depthwise_multiplier batch_norm_twice batch_norm_no_affine recurrent_convolution "
    "conv3d_chain mlp flatten_nchw sigmoid plus_one loop_over_layers"
).split()


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return model.double().eval()(inputs.double()).detach()


@pytest.mark.parametrize("name", NAMES)
def test_zero_vertices_go_without_any_change_of_the_outputs(name: str) -> None:
    """Half of the vertices of every group of odd networks, streams included, and about half of a whole one."""
    model, inputs = ENTRIES[name].build() if name in ENTRIES else (models.create(name), torch.randn(2, 3, 32, 32))
    analysis = analyze_channels(model.eval(), inputs)
    for group in analysis.groups:
        coupled = CoupledWeights(group, model)
        coupled.scale_((coupled.norms() > coupled.norms().median()).float())
    options: dict[str, Any] = {"streams": "prune", "floor": 0.0, "keep_channels": 1.0}
    made = make_plan(model, inputs, allocator="zero_groups", selector="group_norm", analysis=analysis, **options)
    small = apply_plan(model, made, inputs)
    assert made.info["zero"] > 0 and made.cost["params"]["pruned"] < made.cost["params"]["dense"]
    torch.testing.assert_close(outputs(small, inputs), outputs(model, inputs), rtol=1e-12, atol=1e-12)
