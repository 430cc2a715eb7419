"""The commands, as a user types them."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from rich.console import Console
from shared_data import SHARED

import srr_ext
from srr_ext import models
from srr_ext.__main__ import main
from srr_ext.cli.parsing import as_dict, parse
from srr_ext.config import AnalyzeConfig, EvaluateConfig, PruneConfig, TrainRunConfig
from srr_ext.latency import measure_latency
from srr_ext.progress import on, silent

ROOT = Path(__file__).parents[1]
QUICK = ("--dense.epochs", "2", "--epochs", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` from an empty folder, as another user would, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_the_default_run_halves_the_cost_and_keeps_the_accuracy() -> None:
    """No arguments, under two minutes, the whole run folder, all figures consistent."""
    start = time.perf_counter()
    result = run_module("srr_ext.prune")
    assert result.returncode == 0, result.stderr
    assert time.perf_counter() - start < 120
    folder = Path("runs/digits_cnn-digits-001")
    names = "architecture.json config.json dense.safetensors events log.jsonl model.safetensors plan.json report.html"
    assert sorted(path.name for path in folder.iterdir()) == [*names.split(), "report.json", "structure.json"]
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert report["top1"]["dense"] >= 97 and report["top1"]["final"] >= report["top1"]["dense"] - 1
    assert report["macs"]["pruned"] <= 0.5 * report["macs"]["dense"]
    assert report["allocator"] == "srr" and report["selector"] == "l1" and report["seed"] == 0
    assert report["gamma"] > 0 and report["surgery_error"] < 1e-9
    assert report["latency_ms"]["dense"] > 0 and report["latency_ms"]["pruned"] > 0
    assert f"next: open {folder}/report.html; python -m srr_ext.evaluate --run {folder}" in result.stdout
    assert report["command"] == ["python", "-m", "srr_ext.prune"]
    assert report["environment"]["torch"] == torch.__version__
    assert report["top5"]["final"] > report["top1"]["final"] and report["rounds"] == 1
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8") and list((folder / "events").iterdir())
    for stage in ("train dense", "gamma", "fine-tune", "recalibrate", "latency", "test dense", "test surgery"):
        assert f"{stage}: " in result.stderr and f"{stage}: " not in result.stdout
    assert "epoch 20/20, validation " in result.stderr
    dense = run_module("srr_ext.evaluate", "--weights", str(folder / "dense.safetensors"))
    assert f"top-1 {report['top1']['dense']:.2f} %" in dense.stdout
    for word in ("parameters", "MACs", "latency", "accuracy", "x smaller", "x faster"):
        assert word in result.stdout
    network = srr_ext.load(folder)
    assert sum(p.numel() for p in network.parameters()) == report["params"]["pruned"]
    again = run_module("srr_ext.evaluate", "--run", str(folder))
    top1, top5 = report["top1"]["final"], report["top5"]["final"]
    assert f"top-1 {top1:.2f} %, top-5 {top5:.2f} % of 539 test images" in again.stdout


@pytest.mark.parametrize("module", ["prune", "train", "analyze", "evaluate"])
def test_help_comes_from_everywhere(module: str) -> None:
    """``python -m`` outside the checkout; no warning about doubly imported modules."""
    result = run_module(f"srr_ext.{module}", "--help")
    assert result.returncode == 0 and "--model MODEL" in result.stdout and not result.stderr


def test_the_same_seed_repeats_the_run_and_the_saved_configuration_too() -> None:
    """Plan and weights byte for byte."""
    assert main(["prune", *QUICK, "--output", "a", "--keep-macs", "0.6", "--selector", "l2", "--floor", "0.2"]) == 0
    assert main(["prune", "--config", "a/config.json", "--output", "b"]) == 0
    for name in ("plan.json", "model.safetensors", "log.jsonl", "config.json"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert json.loads(Path("a/config.json").read_text())["keep_macs"] == 0.6


def test_weights_skip_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    """The dense network is then the checkpoint's."""
    torch.manual_seed(3)
    torch.save({"state_dict": models.create("digits_cnn").state_dict()}, "net.th")
    arguments = ["--weights", "net.th", "--epochs", "0", "--allocator", "uniform", "--keep-params", "0.5"]
    assert main(["prune", *arguments, "--output", "run"]) == 0
    report = json.loads(Path("run/report.json").read_text())
    assert report["top1"]["dense"] < 40 and report["target"] == {"params": 0.5} and report["gamma"] is None
    assert report["params"]["pruned"] <= 0.5 * report["params"]["dense"]
    assert "train dense" not in capsys.readouterr().err
    assert not Path("run/dense.safetensors").exists()  # it is the user's file already


@pytest.fixture
def image_set(elsewhere: Path) -> Path:
    """Make a folder of a few images of two classes, 32x32, in the current folder."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 10), ("test", 3)):
        for name in ("cat", "dog"):
            Path("set", split, name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(f"set/{split}/{name}/{i}.png")
    return Path("set")


def test_evaluate_takes_the_images_of_the_run(image_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folder and size come from its record; other images are measured if they fit, and refused in a line if not."""
    flags = ["--model", "lenet5", "--data", "folder:set", "--image-size", "20", "--allocator", "uniform"]
    assert main(["prune", *flags, "--dense.epochs", "1", "--epochs", "0", "--output", "run"]) == 0
    top1 = json.loads(Path("run/report.json").read_text())["top1"]["final"]
    capsys.readouterr()
    assert main(["evaluate", "--run", "run"]) == 0
    assert capsys.readouterr().out == f"top-1 {top1:.2f} % of 6 test images\n"
    assert main(["evaluate", "--run", "run", "--data", f"folder:{image_set.resolve()}"]) == 0
    assert refused(capsys, "evaluate", "--run", "run", "--model", "resnet20").startswith("--run: goes without --model")
    line = refused(capsys, "evaluate", "--run", "run", "--data", "digits")
    assert line.startswith("--data: the network of run cannot read images [1, 8, 8]: ")
    line = refused(capsys, "evaluate", "--run", "run", "--image-size", "24")
    assert line.startswith("--data: the network of run cannot read images [3, 24, 24]: ")
    Path("run/config.json").unlink()
    assert refused(capsys, "evaluate", "--run", "run").startswith("--run: there is no file run/config.json")
    assert main(["evaluate", "--run", "run", "--data", "folder:set", "--image-size", "20"]) == 0
    Path("run/config.json").write_text("[]")
    assert refused(capsys, "evaluate", "--run", "run").startswith("--run: run/config.json does not say which images")


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ("prune.make_plan", {"architecture.json", "dense.safetensors", "events"}),
        (
            "cli.measuring.measure_latency",
            {"architecture.json", "dense.safetensors", "events", "model.safetensors", "plan.json"},
        ),
        ("cli.training.train", set()),
    ],
)
def test_a_stopped_run_keeps_what_it_has_learned(
    step: str, kept: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at several moments: one line says what the folder holds and how to go on, which comes to an end."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"srr_ext.{step}", stop)
        assert main(["prune", *QUICK, "--output", "run"]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("srr prune: stopped; run holds ") and "; srr prune --resume run goes on" in line
    assert {path.name for path in Path("run").iterdir()} == {"checkpoint", "config.json", "log.jsonl"} | kept
    if "model.safetensors" in kept:
        assert srr_ext.load("run")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert main(["prune", "--resume", "run"]) == 0 and not Path("run/checkpoint").exists()


def test_analyze_takes_no_flag_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    """What decides a plan alone is no matter of the analysis."""
    for flag, value in (("--allocator", "uniform"), ("--selector", "l2"), ("--floor", "0.5"), ("--round-to", "8")):
        assert f"unrecognized arguments: {flag}" in refused(capsys, "analyze", flag, value)


def test_pruning_a_residual_network_on_an_image_folder(image_set: Path) -> None:
    """The command for real networks, on a few images: a stream is kept or pruned as told."""
    common = [
        "--model",
        "resnet20",
        "--data",
        "folder:set",
        "--dense.epochs",
        "1",
        "--epochs",
        "1",
        "--keep-macs",
        "0.7",
    ]
    assert main(["prune", *common, "--output", "kept"]) == 0
    assert srr_ext.load("kept").conv1.out_channels == 16
    assert main(["prune", *common, "--output", "cut", "--streams", "prune", "--allocator", "uniform"]) == 0
    assert srr_ext.load("cut")(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_analyze_prints_every_group_and_pin(capsys: pytest.CaptureFixture[str]) -> None:
    """The table, the reasons, and the same as JSON."""
    assert main(["analyze", "--dense.epochs", "1", "--gamma", "0.07", "--output", "report.json"]) == 0
    out = capsys.readouterr().out
    report = json.loads(Path("report.json").read_text())
    assert report["gamma"] == 0.07 and len(report["groups"]) == 6
    for word in ("N", "fan-in", "density", "components", "covers", "R", "classifier", "model output"):
        assert word in out
    assert all(group["name"] in out for group in report["groups"])


def test_the_distance_reaches_analysis_plan_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    """One threshold joins other filters when distances are not divided; what bounds it is told with it."""
    joined = {}
    for distance in ("rms", "euclidean"):
        options = ["--dense.epochs", "1", "--gamma", "1.2", "--distance", distance, "--output", f"{distance}.json"]
        assert main(["analyze", *options]) == 0
        assert f"at gamma 1.2, {distance} distance" in capsys.readouterr().out
        report = json.loads(Path(f"{distance}.json").read_text())
        assert report["distance"] == distance
        joined[distance] = [group["edge_density"] for group in report["groups"]]
    assert all(density == 1 for density in joined["rms"]) and min(joined["euclidean"]) < 1
    assert main(["prune", "--dense.epochs", "1", "--epochs", "1", "--distance", "euclidean", "--output", "run"]) == 0
    plan, report, structure = (
        json.loads(Path(f"run/{name}.json").read_text()) for name in ("plan", "report", "structure")
    )
    assert plan["options"]["distance"] == report["distance"] == structure["distance"] == "euclidean"
    assert (
        plan["gamma"] > 0.8
        and "it bounds the distance of two filters of length 1." in Path("run/report.html").read_text()
    )


def test_the_function_analyze_survives_the_module_of_that_name() -> None:
    """The command's module must not hide the public function."""
    function = srr_ext.analyze
    importlib.import_module("srr_ext.analyze")
    assert srr_ext.analyze is function and callable(srr_ext.analyze)


@pytest.mark.parametrize("config", [PruneConfig, TrainRunConfig, AnalyzeConfig, EvaluateConfig])
def test_flags_and_their_defaults_are_those_of_the_dataclass(config: type[Any]) -> None:
    """Nothing is lost between dataclass, flags and file."""
    assert parse(config, [], "x") == config()
    Path("c.json").write_text(json.dumps(as_dict(config())))
    assert parse(config, ["--config", "c.json"], "x") == config()


def test_flags_reach_the_configuration() -> None:
    """Dashes, nested recipes, lists and switches."""
    flags = ["--keep-params", "0.25", "--epochs", "3", "--no-fine-tune.nesterov", "--dense.batch-size", "7"]
    config = parse(PruneConfig, [*flags, "--ignored", "a", "b.c", "--download", "--gamma", "0.1", "--output", "x"], "x")
    assert config.target == {"keep_params": 0.25} and config.fine_tune.epochs == 3 and config.dense.epochs == 20
    assert not config.fine_tune.nesterov and config.dense.batch_size == 7 and config.ignored == ("a", "b.c")
    assert config.download and config.gamma == 0.1 and config.output == Path("x")
    assert parse(PruneConfig, [], "x").target == {"keep_macs": 0.5}


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints, ``--config`` reads."""
    with pytest.raises(SystemExit) as stop:
        main(["prune", "--keep-channels", "0.3", "--print_config"])
    assert stop.value.code == 0
    Path("c.yaml").write_text(capsys.readouterr().out)
    assert parse(PruneConfig, ["--config", "c.yaml"], "x").target == {"keep_channels": 0.3}


def test_evaluate_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint or a run folder, not both."""
    assert refused(capsys, "evaluate").startswith("--weights: name a checkpoint, or a run folder with --run")
    assert refused(capsys, "evaluate", "--run", "nowhere").startswith("--run: there is no file nowhere/plan.json")
    assert refused(capsys, "evaluate", "--run", "a", "--weights", "b").startswith("--run: goes without --weights")


def test_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """``srr`` alone and with a typing error."""
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("srr COMMAND", "prune", "analyze", "evaluate"))
    assert main([]) == 2 and "a command is missing" in capsys.readouterr().err
    assert main(["prun"]) == 2 and "'prun' is no command" in capsys.readouterr().err


@pytest.fixture(scope="session")
def cifar_test_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 (JPEG): the test images, and one training image of each class."""
    archive = SHARED / "data" / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no CIFAR-10 in {archive}")
    root = tmp_path_factory.mktemp("cifar10-jpeg")
    seen: set[str] = set()
    with tarfile.open(archive) as packed:
        for member in packed:
            folder = member.name.rpartition("/")[0]
            if member.isfile() and ("test/" in member.name or folder not in seen):
                seen.add(folder)
                packed.extract(member, root, filter="data")
    return next(path.parent for path in root.rglob("test") if path.is_dir())


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "expected"), [(20, 81.03), (56, 83.20)])
def test_public_checkpoints_reach_the_known_accuracy(
    depth: int, expected: float, cifar_test_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented command, on all 10,000 test images."""
    weights = next((SHARED / "weights").glob(f"resnet{depth}-*.th"))
    data = f"folder:{cifar_test_images}"
    assert main(["evaluate", "--model", f"resnet{depth}", "--weights", str(weights), "--data", data]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("of 10,000 test images")
    assert abs(float(line.split()[1]) - expected) < 0.1, line


def test_progress_is_bars_on_a_terminal_and_lines_elsewhere() -> None:
    """Stage, count, rate and note; every step counts."""
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=150)
        with on(console).stage("decode [x]", 300) as step:
            for i in range(300):
                step(1, f"image {i}")
        shown[terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.fullmatch(r"decode \[x\]: 300 steps in \d+\.\d s image 299\n", shown[False])
    assert "decode [x]" in shown[True] and "300/300" in shown[True] and "image 299" in shown[True]
    with silent().stage("quiet", 3) as step:
        step()


def test_latency_tells_a_slow_network_from_a_fast_one() -> None:
    """Milliseconds per batch, and modes as they were."""

    class Sleep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return x

    slow, fast = Sleep().train(), torch.nn.Identity().eval()
    first, second = measure_latency([slow, fast], torch.zeros(1), seconds=0.1)
    assert 10 <= first < 1000 and second < first
    assert slow.training and not fast.training
