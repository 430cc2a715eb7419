"""Filter matrices: which weights make a channel, and how coupled channels are put together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planning_nets import chain, grouped, member, residual
from torch import nn

from srr_ext.channels.records import ChannelGroup
from srr_ext.filters import channel_weights, filter_matrix, raw_filters

MODULES = {
    "conv1d": (nn.Conv1d(6, 9, 3, groups=3), (6, 5)),
    "conv2d": (nn.Conv2d(4, 6, (1, 3)), (4, 5, 5)),
    "conv2d-depthwise": (nn.Conv2d(5, 5, 3, groups=5), (5, 4, 4)),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 3, 3, 3)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3), (4, 5)),
    "transposed2d-groups": (nn.ConvTranspose2d(6, 9, (2, 3), groups=3), (6, 4, 4)),
    "transposed3d": (nn.ConvTranspose3d(2, 4, 2, groups=2), (2, 3, 3, 3)),
    "linear": (nn.Linear(7, 5), (7,)),
}


@pytest.mark.parametrize("name", MODULES)
def test_row_j_holds_exactly_the_weights_that_output_channel_j_depends_on(name: str) -> None:
    module, shape = MODULES[name]
    rows = channel_weights(module)
    output = module(torch.randn(1, *shape))
    assert rows.shape[0] == output.shape[1]
    assert rows.numel() == module.weight.numel()
    for j in range(output.shape[1]):
        (gradient,) = torch.autograd.grad(output[0, j].sum(), module.weight, retain_graph=True)
        mine = module.weight[gradient != 0].detach()
        torch.testing.assert_close(rows[j].sort().values, mine.sort().values, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "linear"])
def test_contiguous_weights_are_viewed_in_place(name: str) -> None:
    module = MODULES[name][0]
    assert channel_weights(module).data_ptr() == module.weight.data_ptr()
    assert not channel_weights(module).requires_grad


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="got BatchNorm2d"):
        channel_weights(nn.BatchNorm2d(3))


def test_simple_group_is_the_weight_itself() -> None:
    net = chain()
    matrix = filter_matrix(net.groups[0], net.model)
    assert matrix.data_ptr() == net.model[0].weight.data_ptr()
    assert matrix.shape == (6, 27)


@pytest.mark.parametrize("change", [nn.Module.half, lambda m: m.to(memory_format=torch.channels_last)])
def test_dtype_and_layout_do_not_matter(change: object) -> None:
    net = chain()
    want = filter_matrix(net.groups[1], net.model)
    got = filter_matrix(net.groups[1], change(net.model))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_vertices_out_of_order_select_rows() -> None:
    net = chain()
    vertex = [4, -1, 0, 2, 1, 3]
    group = ChannelGroup("0", 5, (member("0", "out", "producer", vertex),))
    rows = channel_weights(net.model[0])
    torch.testing.assert_close(filter_matrix(group, net.model), rows[[2, 4, 3, 5, 0]], rtol=0, atol=0)


def test_stream_concatenates_unit_filters_of_all_producers() -> None:
    net = residual()
    matrix = filter_matrix(net.groups[0], net.model)
    parts = [nn.functional.normalize(channel_weights(m), dim=1) for m in (net.model.stem, net.model.outer)]
    torch.testing.assert_close(matrix, torch.cat(parts, 1))
    net.model.outer.weight.data *= 1000
    torch.testing.assert_close(filter_matrix(net.groups[0], net.model), matrix)


def test_channels_of_one_vertex_stand_side_by_side_in_order() -> None:
    net = grouped()
    rows = nn.functional.normalize(channel_weights(net.model[1]), dim=1)
    want = torch.cat([rows[[1, 2, 3, 4]], rows[[6, 7, 8, 9]]], 1)
    torch.testing.assert_close(filter_matrix(net.groups[1], net.model), want)


def test_absent_channels_and_zero_filters_are_zeros() -> None:
    net = residual()
    partial = member("outer", "out", "producer", [1, 0, -1, -1, 2, -1, -1, -1])  # vertices 3 to 7 have no channel here
    group = replace(net.groups[0], members=(net.groups[0].members[0], partial))
    net.model.stem.weight.data[5] = 0
    matrix = filter_matrix(group, net.model)
    stem, outer = matrix[:, :27], matrix[:, 27:]
    assert outer.shape == (8, 108)
    assert bool((outer[3:] == 0).all())
    np.testing.assert_allclose(outer[:3].norm(dim=1), 1, rtol=1e-6)
    assert bool((stem[5] == 0).all())
    np.testing.assert_allclose(stem[[0, 1, 2, 3, 4, 6, 7]].norm(dim=1), 1, rtol=1e-6)


def test_tiny_weights_keep_their_direction() -> None:
    net = residual()
    want = filter_matrix(net.groups[0], net.model)
    net.model.stem.weight.data *= 1e-30  # squares underflow in float32
    torch.testing.assert_close(filter_matrix(net.groups[0], net.model), want)


def test_raw_filters_are_not_normalised() -> None:
    net = residual()
    want = torch.cat([channel_weights(m) for m in (net.model.stem, net.model.outer)], 1).double()
    torch.testing.assert_close(raw_filters(net.groups[0], net.model), want, rtol=0, atol=0)


def test_group_without_producer_is_refused() -> None:
    net = chain()
    group = ChannelGroup("x", 6, (member("3", "in", "consumer", range(6)),))
    with pytest.raises(ValueError, match="no producer"):
        filter_matrix(group, net.model)
