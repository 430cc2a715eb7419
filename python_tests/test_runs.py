"""Training apart, pruning in rounds, by a plan that is there, and with the dense network as a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import srr_ext
from srr_ext.__main__ import main
from srr_ext.plan import PruningPlan

BRIEF = ("--epochs", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a short training."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--epochs", "4", "--device", "cpu", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def weights(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Work in an empty folder; return the flag's value."""
    monkeypatch.chdir(tmp_path)
    return str(trained / "dense.safetensors")


def read(path: str) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_training_leaves_a_folder_that_the_other_commands_take(
    trained: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same accuracy from ``evaluate`` by folder and by file; the recorded configuration trains it again."""
    names = {path.name for path in trained.iterdir()}
    assert names == {"architecture.json", "config.json", "dense.safetensors", "events", "log.jsonl", "report.json"}
    report = read(f"{trained}/report.json")
    assert report["top1"] > 85 and report["macs"] == 1_155_024 and report["params"] == 115_570
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2, 3, 4] and {record["stage"] for record in log} == {
        "train dense"
    }
    for flags in (["--run", str(trained)], ["--weights", weights]):
        capsys.readouterr()
        assert main(["evaluate", *flags]) == 0
        assert f"top-1 {report['top1']:.2f} %, top-5 {report['top5']:.2f} %" in capsys.readouterr().out
    assert main(["train", "--config", f"{trained}/config.json", "--output", "again"]) == 0
    assert Path("again/dense.safetensors").read_bytes() == Path(weights).read_bytes()


def test_training_goes_on_from_a_checkpoint(weights: str) -> None:
    """``--weights`` is where it starts, so one epoch at a tiny learning rate changes little."""
    flags = ["--epochs", "1", "--lr", "1e-6", "--dense.weight-decay", "0", "--weights", weights]
    assert main(["train", *flags, "--output", "more"]) == 0
    before = srr_ext.models.create("digits_cnn", 10, weights).state_dict()
    after = srr_ext.models.create("digits_cnn", 10, "more/dense.safetensors").state_dict()
    kernels = [name for name in before if name.endswith("weight")]
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in kernels)
    assert any(not torch.equal(before[name], after[name]) for name in kernels)


def test_rounds_end_at_the_target_with_one_plan(weights: str) -> None:
    """Every round has its own training; the plan leads from the dense network to the final one, floors included."""
    flags = ["--weights", weights, *BRIEF, "--keep-macs", "0.3", "--floor", "0.2"]
    assert main(["prune", *flags, "--rounds", "3", "--output", "run"]) == 0
    report, plan = read("run/report.json"), PruningPlan.load("run/plan.json")
    assert report["rounds"] == 3 and report["target"] == plan.target == {"macs": 0.3}
    assert 0.25 < report["macs"]["pruned"] / report["macs"]["dense"] <= 0.3 and report["surgery_error"] < 1e-9
    assert all(group["kept"] >= 0.2 * group["size"] for group in plan.groups.values())
    assert plan.options["rounds"] == 3 and plan.options["floor"] == 0.2
    stages = [json.loads(line)["stage"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert stages == [f"fine-tune {number} of 3" for number in (1, 2, 3) for _ in range(2)]
    network = srr_ext.load("run")
    assert sum(parameter.numel() for parameter in network.parameters()) == report["params"]["pruned"]
    assert main(["prune", "--config", "run/config.json", "--output", "again"]) == 0
    for name in ("plan.json", "model.safetensors"):
        assert Path("run", name).read_bytes() == Path("again", name).read_bytes()


def test_a_plan_that_is_there_is_cut_as_it_stands(weights: str) -> None:
    """The same widths, whatever allocator the flags name, and another training on top."""
    assert main(["prune", "--weights", weights, *BRIEF, "--allocator", "widest", "--output", "first"]) == 0
    flags = ["--plan", "first/plan.json", "--keep-macs", "0.5", "--fine-tune.distill", "0.5", "--fine-tune.ema", "0.9"]
    assert main(["prune", "--weights", weights, *BRIEF, *flags, "--output", "second"]) == 0
    first, second = read("first/report.json"), read("second/report.json")
    assert first["macs"] == second["macs"] and second["allocator"] == "widest" and second["target"] == {"macs": 0.5}
    assert first["top1"]["after_surgery"] == second["top1"]["after_surgery"]
    assert Path("first/model.safetensors").read_bytes() != Path("second/model.safetensors").read_bytes()
    assert PruningPlan.load("first/plan.json") == PruningPlan.load("second/plan.json")
