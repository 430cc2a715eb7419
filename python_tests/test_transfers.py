"""Planning stays on the device that holds the model: what the host reads is little, counted, and enough."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from planning_nets import NETS, deep, plan
from stand_in_device import DEVICE, Elsewhere, moved, watched

from srr_ext.filters import planning_device
from srr_ext.graph import group_graphs, group_matrices
from srr_ext.ops import has_kernels
from srr_ext.redundancy import analyze
from srr_ext.transfers import to_device, to_host

WIDTHS = (20, 70, 9, 130)
SELECTORS = ("l1", "l2", "fpgm", "random")


def test_tensors_of_the_host_are_returned_as_they_are() -> None:
    tensors = [torch.randn(3), torch.zeros((), dtype=torch.bool), torch.empty(0, 2)]
    assert all(a is b for a, b in zip(to_host(*tensors), tensors, strict=True))
    assert to_host() == []


def test_one_transfer_brings_any_types_and_shapes() -> None:
    tensors = [
        torch.tensor(True), torch.randn(3, 5), torch.randint(255, (7,), dtype=torch.uint8), torch.randn(2, 3).double(),
        torch.empty(0, 4), torch.arange(5), torch.randn(4, 6).T, torch.randn(3).half(), torch.tensor(-(2**63)),
    ]  # fmt: skip
    with watched() as watch:
        there = [to_device(tensor, DEVICE) for tensor in tensors]
        assert all(isinstance(tensor, Elsewhere) for tensor in there)
        host = torch.arange(3)
        *back, same = to_host(*there, host)
        assert watch.waits == 1
    assert same is host
    for got, expected in zip(back, tensors, strict=True):
        assert got.dtype == expected.dtype and got.device.type == "cpu" and torch.equal(got, expected)


def test_the_watch_sees_what_makes_the_host_wait() -> None:
    for read in (
        lambda x: x.cpu(), lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool((x > 0).any()),
        lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: torch.equal(x, x), lambda x: int(x[0]),
    ):  # fmt: skip
        with watched():
            there = to_device(torch.randn(3), DEVICE)
            with pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
                read(there)
    with watched(), pytest.raises(AssertionError, match="mixes tensors"):
        to_device(torch.randn(3), DEVICE) + torch.randn(3)


@pytest.mark.parametrize("order", ["selector", "random", "degree"])
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("gamma", ["auto", 0.3])
def test_a_plan_waits_for_the_device_a_handful_of_times(selector: str, gamma: float | str, order: str) -> None:
    """And is the one that the CPU makes: importance, whether weights are finite, thresholds, trajectories, sizes."""
    options = {"selector": selector, "gamma": gamma, "node_order": order, "keep": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = plan(deep(WIDTHS), "srr", **options)
        net = deep(WIDTHS)
        moved(net.model)
        with watched() as watch:
            kept, allocation = plan(net, "srr", **options)
    assert allocation == expected[1]
    assert {name: v.tolist() for name, v in kept.items()} == {name: v.tolist() for name, v in expected[0].items()}
    importance, finite, before, after = int(selector != "random"), 1, 1, 1
    passes = 0
    if gamma == "auto":  # eight halvings at a time, the one that is too many included; then 4, 4 and 2 bisections
        halvings = math.log2(2.01 / math.sqrt(3) / allocation.info["gamma"]) // 1
        passes = 1 + (halvings + 1) // 8 + 3
    decisions = (passes + 1) * (2 if order == "degree" else 1)  # and trajectories; degrees are read before
    assert watch.waits == importance + finite + decisions + before + after <= 16


@pytest.mark.parametrize("allocator", ["uniform", "global", "widest"])
def test_other_allocators_wait_for_importance_alone(allocator: str) -> None:
    net = deep(WIDTHS)
    expected = plan(deep(WIDTHS), allocator)
    moved(net.model)
    with watched() as watch:
        got = plan(net, allocator)
    assert got[1] == expected[1] and watch.waits == 1


@pytest.mark.parametrize("name", NETS)
def test_a_report_waits_twice(name: str) -> None:
    """For whether weights are finite, and for all figures of all groups; coupled groups included."""
    net = NETS[name]()
    expected = analyze(net.model, net.inputs, gamma=0.2, streams="prune", analysis=net.analysis)
    moved(net.model)
    with watched() as watch:
        got = analyze(net.model, net.inputs, gamma=0.2, streams="prune", analysis=net.analysis)
    assert got == expected and watch.waits == 2


def test_matrices_and_graphs_stay_on_the_device() -> None:
    net = deep(WIDTHS)
    moved(net.model)
    with watched():
        matrices = group_matrices(net.groups, net.model)
        graphs = group_graphs(net.groups, matrices, 0.2)
    assert {m.device for m in matrices} == {graphs.words.device, graphs.kinds.device} == {DEVICE}
    for matrix, conv in zip(matrices, net.model, strict=False):  # views: not even copied there
        assert matrix.value.data_ptr() == conv.weight.value.data_ptr()


def test_a_device_without_kernels_is_left_for_the_cpu_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    net = deep((8, 8))
    expected = plan(net, "srr")
    assert planning_device(net.model).type == "cpu"
    assert planning_device(torch.nn.ReLU()).type == "cpu"
    monkeypatch.setattr("srr_ext.filters.has_kernels", lambda device: device.type == "cpu")
    moved(net.model)
    with watched() as watch:
        watch.reading = True  # weights do go to the CPU
        with pytest.warns(RuntimeWarning, match="the model is on meta, which this build .* has no kernels for"):
            got = plan(net, "srr")
    assert got[1] == expected[1]


@pytest.mark.parametrize("kind", ["mps", "xpu", "privateuseone"])
def test_other_kinds_of_devices_have_no_kernels(kind: str) -> None:
    assert not has_kernels(torch.device(kind))
