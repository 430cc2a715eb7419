"""Run folders: written whole or not at all, read without pickle, and refused when they do not fit."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from srr_ext import artifacts, models
from srr_ext.artifacts import RunFolder, load, load_dense, save, save_dense
from srr_ext.files import read_json, replace_file, write_json
from srr_ext.plan import PruningPlan, make_plan
from srr_ext.surgery import apply_plan

EXAMPLE = torch.zeros(1, 1, 8, 8)


class Tied(nn.Module):
    """A network of the user's own; two of its layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3)
        self.conv2 = nn.Conv2d(12, 12, 3)
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.out = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(x).relu()).relu().mean((2, 3))
        return self.out(self.second(self.first(x).relu()).relu())


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return models.create("digits_cnn").eval()


@pytest.fixture(scope="module")
def plan(dense: nn.Module) -> PruningPlan:
    return make_plan(dense, EXAMPLE, allocator="uniform", keep_macs=0.5)


@pytest.fixture
def saved(tmp_path: Path, dense: nn.Module, plan: PruningPlan) -> Path:
    return save(tmp_path / "run", apply_plan(dense, plan, EXAMPLE), plan)


def test_a_saved_network_comes_back_equal(saved: Path, dense: nn.Module, plan: PruningPlan) -> None:
    small, loaded = apply_plan(dense, plan, EXAMPLE), load(saved)
    assert not loaded.training
    expected, found = small.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(small(x), loaded(x))
    state = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), state)
    assert PruningPlan.load(saved / "plan.json") == plan
    assert models.architecture_of(loaded) == models.Architecture("digits_cnn", {})


def test_no_file_is_a_pickle(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["architecture.json", "model.safetensors", "plan.json"]
    for path in saved.glob("*.json"):
        json.loads(path.read_text())
    assert load_file(saved / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(tmp_path: Path, dense: nn.Module, plan: PruningPlan, dtype: torch.dtype) -> None:
    small = apply_plan(dense, plan, EXAMPLE).to(dtype)
    loaded = load(save(tmp_path, small, plan))
    assert loaded.stage1[0].weight.dtype == dtype
    assert torch.equal(loaded.stage1[0].weight, small.stage1[0].weight)


def test_channels_last_is_saved(tmp_path: Path, dense: nn.Module, plan: PruningPlan) -> None:
    small = apply_plan(dense, plan, EXAMPLE).to(memory_format=torch.channels_last)
    assert torch.equal(load(save(tmp_path, small, plan)).stage2[3].weight, small.stage2[3].weight)


def test_a_network_of_ones_own_needs_the_dense_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    plan = make_plan(model, EXAMPLE, allocator="uniform", keep_params=0.8)
    small = apply_plan(model, plan, EXAMPLE)
    save(tmp_path, small, plan)
    with pytest.raises(ValueError, match="not made by name; pass model="):
        load(tmp_path)
    fresh = Tied()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    loaded = load(tmp_path, model=fresh)
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())
    assert loaded.first.weight is loaded.second.weight
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(x), small(x))


def test_saving_over_another_network_leaves_nothing_of_it(saved: Path) -> None:
    model = Tied().eval()
    save(saved, model, PruningPlan(layers={}))
    with pytest.raises(ValueError, match="pass model="):
        load(saved)


def test_wrong_arguments_are_named(tmp_path: Path, dense: nn.Module, plan: PruningPlan) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        save(tmp_path, "net", plan)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan must be a PruningPlan"):
        save(tmp_path, dense, {})  # type: ignore[arg-type]


def test_a_plan_for_another_network_names_the_layer(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"layer 'stage\d"):
        load(saved, model=models.create("resnet20"))


def test_weights_of_another_network_name_the_tensor(saved: Path) -> None:
    weights = saved / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "extra.weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"has extra\.weight, which the model lacks"):
        load(saved)
    save_file({**state, "stage1.3.weight": torch.zeros(2, 2)}, weights)
    with pytest.raises(ValueError, match=r"stage1\.3\.weight has shape \[2, 2\]"):
        load(saved)
    save_file({name: value for name, value in state.items() if name != "classifier.bias"}, weights)
    with pytest.raises(ValueError, match=r"lacks classifier\.bias"):
        load(saved)


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors", "architecture.json"])
def test_missing_and_truncated_files_are_named(saved: Path, name: str) -> None:
    path = saved / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=name):
        load(saved)
    path.unlink()
    with pytest.raises(ValueError, match=name if name != "architecture.json" else "pass model="):
        load(saved)


def test_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        replace_file(path, fail)
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_run_folders_are_new_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = RunFolder(None, "net-folder:/a/b"), RunFolder(None, "net-folder:/a/b")
    assert [str(folder.path) for folder in (first, second)] == ["runs/net-folder--a-b-001", "runs/net-folder--a-b-002"]
    with pytest.raises(ValueError, match="is in use"):
        RunFolder(first.path, "")
    with pytest.raises(ValueError, match="is in use"):
        RunFolder(first.path / artifacts.LOG, "")  # a file
    with pytest.raises(ValueError, match="cannot be written"):
        RunFolder(first.path / artifacts.LOG / "below", "")
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty", "").discard()
    assert not any((tmp_path / "empty").iterdir())


def test_runs_that_start_together_take_different_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder(None, "net").path, range(32)))
    assert sorted(map(str, folders)) == [f"runs/net-{number:03d}" for number in range(1, 33)]


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b", "")
    folder.write(artifacts.CONFIG, {})
    folder.log({"epoch": 1})
    folder.log({"epoch": 2})
    lines = (folder.path / artifacts.LOG).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    folder.discard()
    assert not (tmp_path / "a").exists()


def test_networks_whose_layers_have_versions_come_back(tmp_path: Path) -> None:
    """MNASNet refuses tensors without the version of the code that wrote them."""
    model, example = models.create("mnasnet0_5", 10, image_size=32).eval(), torch.randn(1, 3, 32, 32)
    plan = make_plan(model, example, allocator="uniform", keep_macs=0.5)
    small = apply_plan(model, plan, example)
    save(tmp_path, small, plan)
    assert torch.equal(load(tmp_path)(example), small(example))


def test_a_dense_network_comes_back(tmp_path: Path) -> None:
    """By name, with its tensors, in evaluation mode; one of the user's own says how to read it."""
    model, example = models.create("resnet18", 7, image_size=32), torch.randn(2, 3, 32, 32)
    again = save_dense_and_load(tmp_path, model)
    assert not again.training and torch.equal(again(example), model.eval()(example))
    with pytest.raises(ValueError, match="was not made by name"):
        save_dense_and_load(tmp_path / "own", nn.Linear(2, 2))


def save_dense_and_load(folder: Path, model: nn.Module) -> nn.Module:
    """Write a dense network and read it back."""
    return load_dense(save_dense(folder, model))
