"""Sensitivity: accuracies of networks that really were cut, the merge of the curves by hand, and the cache."""

from __future__ import annotations

import functools
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planning_nets import deep
from torch import Tensor, nn

import srr_ext
from srr_ext.allocators import Sensitivity, get_allocator, sensitivity
from srr_ext.calibration import Calibration
from srr_ext.channels import ChannelAnalysis, analyze_channels
from srr_ext.plan import plan_from_vertices

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
passes = 0


class Net(nn.Module):
    """A stream, a channel shuffle of a concatenation, and PReLU; it counts forward passes of all its copies."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.PReLU(12))
        self.inner = nn.Sequential(nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.outer = nn.Conv2d(10, 12, 3, padding=1)
        self.wide = nn.ConvTranspose2d(12, 9, 2, 2)
        self.head = nn.Linear(21, 4)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        global passes
        passes += 1
        x = self.stem(x)
        x = x + self.outer(self.inner(x))
        return self.head(torch.cat([x.mean((2, 3)), self.wide(x).relu().mean((2, 3))], 1))


@functools.cache
def data(n: int = 120, seed: int = 1) -> Calibration:
    """Images and the classes that the network itself gives most of them, so that pruning costs accuracy."""
    torch.manual_seed(seed)
    model, images = Net().eval(), torch.randn(n, 3, 8, 8)
    scores = model(images).detach()
    labels = (scores + 0.1 * scores.std() * torch.randn_like(scores)).argmax(1)
    return Calibration([], list(zip(images.split(40), labels.split(40), strict=True)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "srr_ext" / "sensitivity"


def make(model: nn.Module, allocator: Any = "sensitivity", keep: float = 0.6, **options: Any) -> srr_ext.PruningPlan:
    options = {"data": data(), "streams": "prune", "floor": 0.2, **options}
    return srr_ext.make_plan(model, EXAMPLE, allocator=allocator, keep_macs=keep, **options)


def accuracy_when_cut(model: nn.Module, analysis: ChannelAnalysis, group: Any, order: np.ndarray, k: int) -> float:
    plan = plan_from_vertices(analysis, {group.name: order[k:]})
    small = srr_ext.apply_plan(model, plan, EXAMPLE)
    with torch.no_grad():
        hits = [(small(images).argmax(1) == labels).sum().item() for images, labels in data().validation]
    return 100 * sum(hits) / 120


def test_accuracies_are_those_of_networks_that_were_cut() -> None:
    model = Net().eval()
    analysis = analyze_channels(model, EXAMPLE)
    info = make(model, "sensitivity:rates=4", analysis=analysis).info
    assert len(analysis.groups) == 3
    assert list(info["groups"]) == [group.name for group in analysis.groups]
    some = set()
    for group in analysis.groups:
        norms = srr_ext.criteria.SelectorContext(model, EXAMPLE)
        order = np.argsort(srr_ext.criteria.get_selector("l1")([group], norms)[0].numpy(), kind="stable")
        found = info["groups"][group.name]
        limit = group.size - math.ceil(0.2 * group.size)
        assert found["removed"] == [round(limit * j / 4) for j in (1, 2, 3, 4)]
        cut = [accuracy_when_cut(model, analysis, group, order, k) for k in found["removed"]]
        assert found["accuracy"] == cut
        some |= set(cut)
    with torch.no_grad():
        dense = sum((model(x).argmax(1) == y).sum().item() for x, y in data().validation) / 1.2
    assert info["accuracy"] == pytest.approx(dense)
    assert info["images"] == 120
    assert len(some) > 5, "the accuracies must differ, or this test shows nothing"


def curves(info: dict[str, Any], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Monotone drop after 1, 2, ... removals, written out."""
    result = {}
    for name, found in info["groups"].items():
        drop, worst = [], 0.0
        points = [(0, 0.0)]
        for k, accuracy in zip(found["removed"], found["accuracy"], strict=True):
            worst = max(worst, info["accuracy"] - accuracy)
            points.append((k, worst))
        for k in range(1, found["removed"][-1] + 1):
            (a, low), (b, high) = next(p for p in pairwise(points) if p[0][0] < k <= p[1][0])
            drop.append(low + (high - low) * (k - a) / (b - a))
        result[name] = np.array(drop)
    return result


def test_every_group_goes_to_the_same_drop() -> None:
    model = Net().eval()
    plan = make(model, keep=0.5)
    sizes = {name: entry["size"] for name, entry in plan.groups.items()}
    drops = curves(plan.info, sizes)
    lost = {name: entry["size"] - entry["kept"] for name, entry in plan.groups.items()}
    reached = max(drops[name][k - 1] for name, k in lost.items() if k)
    assert plan.info["drop"] == pytest.approx(reached)
    assert 0 < reached < max(drop[-1] for drop in drops.values())
    # What stays would have cost as much, but for a vertex or two of each group that came back at the end.
    for name, k in lost.items():
        assert k + 2 >= len(drops[name]) or drops[name][k + 2] >= reached - 1e-9


def test_a_group_that_costs_nothing_goes_first() -> None:
    """The classifier does not look at the channels of "wide": the drop there is zero."""
    model = Net().eval()
    model.head.weight.data[:, 12:] = 0
    plan = make(model, keep=0.92)
    assert plan.groups["wide"]["kept"] < plan.groups["wide"]["size"]
    assert plan.info["drop"] == 0
    assert set(plan.info["groups"]["wide"]["accuracy"]) == {plan.info["accuracy"]}


def test_the_second_time_nothing_is_measured(cache: Path) -> None:
    global passes
    model, analysis = Net().eval(), analyze_channels(Net().eval(), EXAMPLE)
    first = make(model, analysis=analysis)
    (path,) = cache.glob("*.json")
    assert len(path.stem) == 64
    passes = 0
    assert make(model, analysis=analysis).to_json() == first.to_json()
    assert make(model, analysis=analysis, keep=0.4).info["groups"] == first.info["groups"]
    assert passes == 0
    make(model, "sensitivity:cache=false", analysis=analysis)
    assert passes > 9
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize("what", ["weights", "selector", "rates", "images", "labels", "floor", "streams", "module"])
def test_whatever_matters_is_measured_again(what: str, cache: Path) -> None:
    model = Net().eval()
    make(model)
    changed: dict[str, Any] = {}
    if what == "weights":
        model.inner[0].weight.data[0, 0, 0, 0] += 1
    elif what == "module":
        model.inner[2] = nn.ELU()
    elif what in ("images", "labels"):
        (images, labels), *others = data().validation
        altered = (images + 1, labels) if what == "images" else (images, 1 - labels.clamp(max=1))
        changed["data"] = Calibration([], [altered, *others])
    else:
        changed = {
            "selector": {"selector": "random"},
            "rates": {"allocator": "sensitivity:rates=3"},
            "floor": {"floor": 0.3},
            "streams": {"streams": "keep", "keep": 0.8},
        }[what]
    make(model, **changed)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', "other key", "too few", "words", "\udcff"])
def test_a_damaged_record_is_measured_again(content: str, cache: Path) -> None:
    model = Net().eval()
    first = make(model)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    record = json.loads(whole)
    if content == "other key":
        record["key"] = "0" * 64
    elif content == "too few":
        record["found"]["groups"]["wide"]["accuracy"].pop()
    elif content == "words":
        record["found"]["groups"]["wide"]["accuracy"][0] = "high"
    given = json.dumps(record) if content in ("other key", "too few", "words") else content
    path.write_bytes(given.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=r"\.json is no whole record .*; it is measured again"):
        second = make(model)
    assert second.to_json() == first.to_json()
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the cache cannot be written"):
        first = make(Net().eval())
    assert first.info["groups"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.warns(UserWarning, match=r"the cache cannot be written \(no home\)"):
        assert make(Net().eval()).info == first.info


def test_a_relative_cache_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make(Net().eval())
    assert (tmp_path / "home/.cache/srr_ext/sensitivity").is_dir()
    assert not (tmp_path / "cache").exists()


def test_the_model_is_left_as_it_is() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make(model, "sensitivity:cache=false")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_only_the_first_images_are_looked_at() -> None:
    plan = make(Net().eval(), "sensitivity:images=50,cache=false")
    assert plan.info["images"] == 80
    assert make(Net().eval(), "sensitivity:images=0,cache=false").info["images"] == 120


def test_images_are_needed_and_scores() -> None:
    with pytest.raises(ValueError, match="data: this method looks at images and there are none"):
        make(Net().eval(), data=None)
    with pytest.raises(ValueError, match="holds no validation batches"):
        make(Net().eval(), data=Calibration([(EXAMPLE, torch.zeros(2))]))
    net = deep((8, 8))  # gives maps [b, 4, h, w]: with one label per pixel they are scores
    pixels = Calibration([], [(net.inputs, torch.zeros(1, 2, 2, dtype=torch.int64))])
    assert srr_ext.make_plan(net.model, net.inputs, allocator="sensitivity", keep_macs=0.7, data=pixels).info["images"]
    wrong = Calibration([], [(net.inputs, torch.zeros(1, dtype=torch.int64))])
    with pytest.raises(ValueError, match=r"scores \[b, n_classes\] for targets \[b\], got a tensor \[1, 4, 2, 2\]"):
        srr_ext.make_plan(net.model, net.inputs, allocator="sensitivity", keep_macs=0.7, data=wrong)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rates": 0}, ValueError, "rates must be at least 1, got 0"),
        ({"images": -1}, ValueError, "images must be at least 0"),
        ({"rates": 2.0}, TypeError, "rates must be an integer"),
        ({"cache": 1}, TypeError, "cache must be true or false"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sensitivity(**options)
    assert get_allocator("sensitivity") is sensitivity
