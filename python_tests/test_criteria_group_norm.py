"""The norm of all that goes with a vertex, against what surgery takes away when the vertex goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from coupled_oracle import all_weights, numbered, weights_of
from planning_nets import NETS, chain, grouped, residual
from random_nets import random_net
from torch import Tensor, nn

from srr_ext import analyze_channels, models
from srr_ext.channels.records import ChannelGroup
from srr_ext.coupled import CoupledWeights
from srr_ext.criteria import SelectorContext
from srr_ext.criteria.group_norm import group_norm

ENTRIES = zoo.load()
SOME = sorted(set(list(ENTRIES)[::9]) | {n for n in ENTRIES if any(w in n for w in ("prelu", "group", "transpose"))})


def group_norms(groups: Sequence[ChannelGroup], model: nn.Module, inputs: Any = None) -> list[Tensor]:
    return group_norm(groups, SelectorContext(model, inputs))


def check_against_surgery(groups: Sequence[ChannelGroup], model: nn.Module) -> None:
    """Compare the first, a middle and the last vertex of every group."""
    twin, values = numbered(model), all_weights(model)
    for group, scores in zip(groups, group_norms(groups, model), strict=True):
        assert scores.shape == (group.size,) and scores.dtype == torch.float64
        for vertex in sorted({0, group.size // 2, group.size - 1}) if group.size > 1 else ():  # an only one cannot go
            want = values[weights_of(twin, group, vertex)].square().sum().sqrt().item()
            assert scores[vertex].item() == pytest.approx(want, rel=1e-12), (group.name, vertex)


@pytest.mark.parametrize("net", NETS)
def test_it_is_the_norm_of_what_surgery_takes_away(net: str) -> None:
    made = NETS[net]()
    check_against_surgery(made.groups, made.model)


@pytest.mark.parametrize("name", SOME)
def test_in_every_kind_of_layer(name: str) -> None:
    model, inputs = ENTRIES[name].build()
    check_against_surgery(analyze_channels(model.eval(), inputs).groups, model)


@pytest.mark.parametrize("seed", range(12))
def test_in_random_networks(seed: int) -> None:
    model, inputs = random_net(seed)
    check_against_surgery(analyze_channels(model, inputs).groups, model)


def test_by_hand() -> None:
    """Filter and bias of a convolution, scale and shift, and the columns of a flattened 4 x 4 map."""
    net = chain()
    parts = [net.model[3].weight[5], net.model[4].weight[5], net.model[4].bias[5], net.model[7].weight[:, 80:96]]
    want = torch.cat([part.detach().double().flatten() for part in parts]).norm()
    assert group_norms(net.groups, net.model)[1][5].item() == pytest.approx(want.item(), rel=1e-12)


def test_it_is_zero_exactly_where_all_that_goes_with_the_vertex_is() -> None:
    """Also where weights are so small that their squares are nothing in float32."""
    net = residual()
    twin = numbered(net.model)
    gone = weights_of(twin, net.groups[0], 3)
    for parameter, numbers in zip(net.model.parameters(), twin.parameters(), strict=True):
        parameter.data[torch.isin(numbers.detach(), torch.tensor(gone).double())] = 0
    scores = group_norms(net.groups, net.model)
    assert scores[0][3] == 0 and (torch.cat(scores) == 0).sum() == 1
    net.model.head.weight.data[0, 3] = 1e-30
    assert 0 < group_norms(net.groups, net.model)[0][3].item() < 2e-30


def test_channels_without_a_vertex_do_not_count() -> None:
    net = grouped()
    before = group_norms(net.groups, net.model)
    for module in (1, 2):
        net.model[module].weight.data[[0, 5]] = 100  # pinned in both groups of convolution 1
    after = group_norms(net.groups[1:], net.model)
    assert torch.equal(before[1], after[0])


def test_running_statistics_and_slopes_do_not_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 2, 1)).eval()
    groups = analyze_channels(model, torch.randn(1, 3, 4, 4)).groups
    before = group_norms(groups, model)
    model[1].running_mean += 3
    model[2].weight.data += 3
    assert torch.equal(before[0], group_norms(groups, model)[0])
    model[1].bias.data[2] += 3
    assert (before[0] != group_norms(groups, model)[0]).tolist() == [False, False, True, False]


def test_factors_reach_all_that_goes_with_a_vertex_and_nothing_else() -> None:
    net = grouped()
    net.model.double()
    twin, before = numbered(net.model), all_weights(net.model)
    factors = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    CoupledWeights(net.groups[1], net.model).scale_(factors)
    want = before.clone()
    for vertex, factor in enumerate(factors.tolist()):
        want[weights_of(twin, net.groups[1], vertex)] *= factor
    assert torch.equal(all_weights(net.model), want)


def test_memory_format_dtype_and_device_make_no_difference(device: torch.device) -> None:
    model = models.create("resnet20").eval()
    groups = analyze_channels(model, torch.randn(1, 3, 32, 32)).groups
    coupled = [CoupledWeights(group, model) for group in groups]
    want = [c.norms(torch.float64) for c in coupled]
    model.to(device, memory_format=torch.channels_last)
    for c, norms in zip(coupled, want, strict=True):
        found = c.norms()
        assert found.dtype == torch.float32 and found.device.type == device.type
        np.testing.assert_allclose(found.cpu(), norms, rtol=1e-6)
        np.testing.assert_allclose(c.norms(torch.float64).cpu(), norms, rtol=1e-12)
    assert {s.device.type for s in group_norms(groups, model)} == {device.type}
