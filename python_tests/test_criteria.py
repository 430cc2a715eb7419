"""Selectors against brute force, and how they are found."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
import torch
from planning_nets import NETS, Net, chain, grouped, member, residual
from torch import Tensor

import srr_ext.registry
from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria import Selector, SelectorContext, available_selectors, get_selector, register_selector
from srr_ext.filters import channel_weights

NAMES = ("l1", "l2", "random", "fpgm")


def score(net: Net, name: str, seed: int = 0) -> list[Tensor]:
    return get_selector(name)(net.groups, SelectorContext(net.model, net.inputs, seed))


def filters_of_vertex(net: Net, group: int, vertex: int) -> list[Tensor]:
    return [
        channel_weights(net.model.get_submodule(m.module))[channel].double()
        for m in net.groups[group].producers
        for channel in np.flatnonzero(m.vertex == vertex)
    ]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_one_finite_float64_per_vertex_and_the_same_again(name: str, net: str) -> None:
    made = NETS[net]()
    first, second = score(made, name), score(made, name)
    assert [s.shape for s in first] == [(group.size,) for group in made.groups]
    assert all(s.dtype == torch.float64 and bool(s.isfinite().all()) for s in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("net", NETS)
def test_norms_are_those_of_all_weights_of_the_vertex(net: str) -> None:
    made = NETS[net]()
    for g, (l1, l2) in enumerate(zip(score(made, "l1"), score(made, "l2"), strict=True)):
        for v in range(made.groups[g].size):
            weights = torch.cat(filters_of_vertex(made, g, v))
            assert l1[v].item() == pytest.approx(weights.abs().sum().item(), rel=1e-12)
            assert l2[v].item() == pytest.approx(weights.norm().item(), rel=1e-12)


@pytest.mark.parametrize("net", NETS)
def test_fpgm_is_the_sum_of_distances(net: str) -> None:
    made = NETS[net]()
    for g, scores in enumerate(score(made, "fpgm")):
        rows = [torch.cat(filters_of_vertex(made, g, v)) for v in range(made.groups[g].size)]
        want = [sum((a - b).norm().item() for b in rows) for a in rows]
        np.testing.assert_allclose(scores, want, rtol=1e-12)


def test_equal_filters_tie_exactly() -> None:
    net = chain((16, 24))
    net.model[3].weight.data[17] = net.model[3].weight.data[4]
    for name in ("l1", "l2", "fpgm"):
        scores = score(net, name)[1]
        assert scores[17] == scores[4]


def test_fpgm_sees_signs_and_l1_does_not() -> None:
    net = chain()
    before = {name: score(net, name)[0] for name in ("l1", "fpgm")}
    net.model[0].weight.data[2] *= -1
    assert torch.equal(score(net, "l1")[0], before["l1"])
    assert not torch.allclose(score(net, "fpgm")[0], before["fpgm"])


def test_random_depends_on_seed_and_group_name_alone() -> None:
    net = residual()
    both = score(net, "random", seed=3)
    alone = get_selector("random")(net.groups[1:], SelectorContext(net.model, net.inputs, 3))
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[1], score(net, "random", seed=4)[1])
    assert not torch.equal(both[0], both[1][:8])


def test_context_adds_scores_of_all_channels_of_a_vertex() -> None:
    net = grouped()
    context = SelectorContext(net.model, net.inputs)
    scores = {"1": torch.arange(10.0)}
    assert context.vertex_sum(net.groups[1], scores).tolist() == [7, 9, 11, 13]  # (1, 6) (2, 7) (3, 8) (4, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_are_added_up_in_the_order_of_the_channels(dtype: torch.dtype) -> None:
    """To the last bit, whatever the number of channels of a vertex."""
    generator = np.random.default_rng(0)
    vertices = {"a": generator.integers(-1, 12, 500), "b": generator.integers(0, 12, 40), "c": np.array([3, 5])}
    vertices["a"][vertices["a"] == 7] = 2  # a vertex without a channel there
    group = ChannelGroup("a", 12, tuple(member(name, "out", "producer", v) for name, v in vertices.items()))
    scores = {name: torch.from_numpy(generator.normal(size=len(v))).to(dtype) for name, v in vertices.items()}
    want = [0.0] * 12
    for name, vertex in vertices.items():
        for v, score in zip(vertex.tolist(), scores[name].tolist(), strict=True):
            if v >= 0:
                want[v] += score
    context = SelectorContext(torch.nn.Identity(), None)
    got = context.vertex_sum(group, scores)
    assert got.dtype == torch.float64 and got.tolist() == want


def test_selectors_leave_the_model_as_it_is() -> None:
    net = residual()
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    for name in NAMES:
        score(net, name)
    assert all(torch.equal(v, before[k]) for k, v in net.model.state_dict().items())


def test_names() -> None:
    assert set(NAMES) <= set(available_selectors())
    assert available_selectors() == sorted(available_selectors())
    with pytest.raises(ValueError, match=r"'fpmg'; nearest: fpgm"):
        get_selector("fpmg")
    with pytest.raises(TypeError, match="got int"):
        get_selector(3)
    with pytest.raises(ValueError, match="'l1' is taken"):
        register_selector("l1")(lambda groups, context: [])
    with pytest.raises(TypeError, match="@register_selector"):
        register_selector(lambda groups, context: [])
    with pytest.raises(ValueError, match="empty"):
        register_selector("")
    own = get_selector("l2")
    assert get_selector(own) is own


def test_installed_packages_offer_selectors_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(values: dict[str, str]) -> object:
        found = [importlib.metadata.EntryPoint(k, v, "srr_ext.selectors") for k, v in values.items()]

        def entry_points(*, group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
            return [p for p in found if p.group == group and name in (None, p.name)]

        return entry_points

    own = {"own": "srr_ext.criteria:l2", "broken": "no.such.module:f", "constant": "math:pi"}
    monkeypatch.setattr(srr_ext.registry, "entry_points", points(own))
    registry: srr_ext.registry.Registry[Selector] = srr_ext.registry.Registry("selector", "srr_ext.selectors")
    assert registry.available() == sorted(own)
    assert registry.get("own") is get_selector("l2")
    with pytest.raises(ModuleNotFoundError):
        registry.get("broken")
    with pytest.raises(TypeError, match="math:pi"):
        registry.get("constant")
    assert set(own) <= set(available_selectors())
