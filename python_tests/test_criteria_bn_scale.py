"""The scales of normalisations, read off the modules."""

from __future__ import annotations

import warnings

import pytest
import torch
from criteria_nets import CASES, Case, make_case
from torch import Tensor, nn
from zoo import Net, conv, image

from srr_ext.channels import analyze_channels
from srr_ext.criteria import SelectorContext, get_selector
from srr_ext.criteria.bn_scale import bn_scale


def scores_of(case: Case) -> dict[str, Tensor]:
    """Scores by group, where nothing may be said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {g.name: s for g, s in zip(case.groups, case.score("bn_scale", data=None), strict=True)}


def test_scales_of_the_layers_own_normalisation() -> None:
    net = nn.Sequential(
        conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(True), conv(6, 8), nn.BatchNorm2d(8), nn.ReLU(True), conv(8, 5)
    )
    case = make_case(net, (3, 4, 4), {"0": "1", "3": "4"})
    net[1].weight.data[2] *= -3
    scores = scores_of(case)
    assert torch.equal(scores["0"], net[1].weight.detach().abs())
    assert torch.equal(scores["3"], net[4].weight.detach().abs())


def test_a_stream_adds_up_all_its_layers() -> None:
    case = CASES["residual"]()
    scores = scores_of(case)
    model = case.model
    for name, norms in {"stem": ("n", "nb1", "nb2"), "a1": ("na1",), "a2": ("na2",)}.items():
        want = sum(model.get_submodule(norm).weight.detach().abs() for norm in norms)
        torch.testing.assert_close(scores[name], want, rtol=1e-15, atol=0)


def test_channels_that_are_one_vertex_add_up() -> None:
    """A grouped convolution reads pairs (c, c + 4) of the layer before."""
    net = Net(
        lambda m, x: m.z(m.g(m.n(m.a(x)).relu()).relu()), a=conv(3, 8), n=nn.BatchNorm2d(8), g=conv(8, 6, groups=2),
        z=conv(6, 5),
    )  # fmt: skip
    group = analyze_channels(net.eval(), image(size=4)).groups[0]
    torch.nn.init.uniform_(net.n.weight, -1, 1)
    (score,) = bn_scale([group], SelectorContext(net, image(size=4)))
    scale = net.n.weight.detach().double().abs()
    assert group.size == 4 and torch.equal(score, scale[:4] + scale[4:])


def test_each_normalisation_of_a_layer_that_runs_twice_counts_once() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        return m.z(m.n(m.a(x)).relu() + m.o(m.a(x.flip(3))).relu() + m.n(m.a(x.flip(2))))

    net = Net(body, a=conv(3, 4), n=nn.BatchNorm2d(4), o=nn.InstanceNorm2d(4, affine=True), z=conv(4, 5))
    case = make_case(net, (3, 4, 4), {"a": "n"})
    assert torch.equal(scores_of(case)["a"], (net.n.weight.abs() + net.o.weight.abs()).detach())


@pytest.mark.parametrize("kind", ["none", "behind a ReLU", "behind an addition", "without scales", "on one of two"])
def test_without_a_normalisation_the_group_is_named_and_scored_by_its_norms(kind: str) -> None:
    bodies = {
        "none": lambda m, x: m.z(m.b(m.n(m.a(x))).relu()),
        "behind a ReLU": lambda m, x: m.z(m.o(m.b(m.n(m.a(x))).relu_())),
        "behind an addition": lambda m, x: m.z(m.o(m.b(m.n(m.a(x))) + m.b(m.n(m.a(x))))),
        "without scales": lambda m, x: m.z(m.plain(m.b(m.n(m.a(x)))).relu()),
        "on one of two": lambda m, x: m.z(m.o(m.b(y := m.n(m.a(x)))) + m.c(y)),
    }
    net = Net(
        bodies[kind], a=conv(3, 6), n=nn.BatchNorm2d(6), b=conv(6, 8), c=conv(6, 8), o=nn.BatchNorm2d(8),
        plain=nn.BatchNorm2d(8, affine=False, track_running_stats=False), z=conv(8, 5),
    )  # fmt: skip
    groups = analyze_channels(net.eval(), image(size=4)).groups
    context = SelectorContext(net, image(size=4))
    missing = "c" if kind == "on one of two" else "b"
    with pytest.warns(UserWarning, match=rf"^bn_scale: no batch normalisation .* instead: b \({missing}\)$"):
        scores = get_selector("bn_scale")(groups, context)
    assert [group.name for group in groups] == ["a", "b"]
    assert torch.equal(scores[0], net.n.weight.detach().double().abs())
    assert torch.equal(scores[1], get_selector("l2")(groups[1:], context)[0])


def test_the_same_on_any_device(device: torch.device) -> None:
    case = CASES["residual"]()
    want = case.score("bn_scale")
    moved = SelectorContext(case.model.to(device), case.batches[0][0].to(device))
    for a, b in zip(want, bn_scale(case.groups, moved), strict=True):
        assert b.device.type == device.type
        assert torch.equal(b.cpu(), a)
