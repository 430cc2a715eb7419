"""Plans and reports are made where the model is, are the CPU's to the byte, and leave the weights where they are."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from shared_data import SHARED
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import srr_ext
from srr_ext import models
from srr_ext.channels import analyze_channels

EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FEW_WAITS = 20  # about one per pass over the distances, of which gamma=auto takes about four, and one per answer


class Copies(TorchDispatchMode):
    """Bytes of every copy between two types of device."""

    def __init__(self, source: str, target: str) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            to, came = (result, args[0]) if func.overloadpacket is torch.ops.aten._to_copy else args[:2]
            if (came.device.type, to.device.type) == (self.source, self.target):
                self.sizes.append(to.numel() * to.element_size())
        return result


def test_copies_are_counted():
    with Copies("cpu", "meta") as copies:
        x = torch.ones(10)
        x.to("meta")
        torch.empty(3, device="meta").copy_(x[:3].double())
        x.double()
    assert copies.sizes == [40, 12]


@pytest.fixture(scope="module")
def resnet20() -> nn.Module:
    """With its published weights where they are at hand, with random ones elsewhere."""
    torch.manual_seed(0)
    found = sorted((SHARED / "weights").glob("resnet20*.th"))
    return models.create("resnet20", num_classes=10, weights=str(found[0]) if found else None).eval()


@pytest.mark.parametrize("streams", ["keep", "prune"])
@pytest.mark.parametrize(
    ("allocator", "selector"), [("srr", "l1"), ("srr", "fpgm"), ("srr", "l2"), ("global", "l2"), ("uniform", "random")]
)
def test_a_plan_is_that_of_the_cpu(allocator, selector, streams, resnet20, device):
    options: dict[str, Any] = {"allocator": allocator, "selector": selector, "streams": streams, "keep_macs": 0.6}
    expected = srr_ext.make_plan(resnet20, EXAMPLE, **options)
    moved = copy.deepcopy(resnet20).to(device)
    assert srr_ext.make_plan(moved, EXAMPLE.to(device), **options).to_json() == expected.to_json()
    assert all(p.device.type == device.type for p in moved.parameters())


@pytest.mark.parametrize("node_order", ["random", "degree"])
def test_orders_are_those_of_the_cpu(node_order, resnet20, device):
    options: dict[str, Any] = {"node_order": node_order, "keep_macs": 0.6}
    expected = srr_ext.make_plan(resnet20, EXAMPLE, **options)
    moved = copy.deepcopy(resnet20).to(device)
    assert srr_ext.make_plan(moved, EXAMPLE.to(device), **options).to_json() == expected.to_json()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_plan_of_other_types_is_that_of_the_cpu(dtype, resnet20, device):
    model = copy.deepcopy(resnet20).to(dtype)
    expected = srr_ext.make_plan(model, EXAMPLE.to(dtype), keep_macs=0.6)
    got = srr_ext.make_plan(model.to(device), EXAMPLE.to(device, dtype), keep_macs=0.6)
    assert got.to_json() == expected.to_json()


def test_a_report_is_that_of_the_cpu(resnet20, device):
    moved = copy.deepcopy(resnet20).to(device)
    for gamma in ("auto", 0.07):
        expected = srr_ext.analyze(resnet20, EXAMPLE, gamma=gamma)
        assert srr_ext.analyze(moved, EXAMPLE.to(device), gamma=gamma).to_json() == expected.to_json()


def test_a_weight_that_is_not_finite_is_refused_by_name(resnet20, device):
    model = copy.deepcopy(resnet20).to(device)
    name, weight = next((n, p) for n, p in model.named_parameters() if p.dim() == 4 and "layer2" in n)
    weight.data[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"must be finite|infinity or NaN|NaN or infinity") as refusal:
        srr_ext.make_plan(model, EXAMPLE.to(device), keep_macs=0.6)
    assert name.rsplit(".", 1)[0] in str(refusal.value)


def test_the_plan_fits_and_is_exact(resnet20, device):
    model, example = copy.deepcopy(resnet20).to(device), EXAMPLE.to(device)
    plan = srr_ext.make_plan(model, example, keep_macs=0.6)
    assert srr_ext.verify(model, plan, example) < 1e-9
    small = srr_ext.apply_plan(model, plan, example)
    assert all(p.device.type == device.type for p in small.parameters())


@pytest.mark.cuda
def test_no_weights_are_copied_to_the_host(cuda, monkeypatch):
    """But for the record's fingerprint, a SHA-256 over every weight, which decides nothing."""
    monkeypatch.setattr("srr_ext.plan.fingerprint", lambda model: "")
    model, example = models.create("resnet56", num_classes=10).eval().to(cuda), EXAMPLE.to(cuda)
    weight_bytes = [p.numel() * p.element_size() for p in model.parameters()]
    for selector in ("l1", "l2", "fpgm"):
        with Copies("cuda", "cpu") as copies:
            srr_ext.make_plan(model, example, selector=selector, keep_macs=0.6)
        assert 0 < sum(copies.sizes) < sum(weight_bytes) / 10, (selector, copies.sizes)
        assert max(copies.sizes) < max(weight_bytes) / 2, (selector, copies.sizes)


@pytest.mark.cuda
def test_a_plan_waits_a_few_times_only(cuda, resnet20, monkeypatch):
    monkeypatch.setattr("srr_ext.plan.fingerprint", lambda model: "")
    model, example = copy.deepcopy(resnet20).to(cuda), EXAMPLE.to(cuda)
    analysis = analyze_channels(model, example)
    srr_ext.make_plan(model, example, keep_macs=0.6, analysis=analysis)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            srr_ext.make_plan(model, example, keep_macs=0.6, analysis=analysis)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
    print(f"{len(places)} waits", *places, sep="\n")
    assert 1 <= len(places) <= FEW_WAITS, places


@pytest.mark.cuda
def test_a_plan_on_another_stream(cuda, resnet20):
    model, example = copy.deepcopy(resnet20).to(cuda), EXAMPLE.to(cuda)
    expected = srr_ext.make_plan(resnet20, EXAMPLE, keep_macs=0.6)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = srr_ext.make_plan(model, example, keep_macs=0.6)
    assert got.to_json() == expected.to_json()
