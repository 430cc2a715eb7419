"""Torchvision's networks through the whole command, on real images: trained, cut, tuned, reported, saved and loaded."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from shared_data import SHARED

import srr_ext
from srr_ext import models
from srr_ext.__main__ import main
from srr_ext.plan import PruningPlan
from srr_ext.surgery import apply_plan

PER_CLASS = {"train": 3, "test": 1}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of every class of CIFAR-10 (JPEG)."""
    archive = SHARED / "data" / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no CIFAR-10 in {archive}")
    root = tmp_path_factory.mktemp("photographs")
    taken: dict[Path, int] = {}
    with tarfile.open(archive) as packed:
        for member in packed:
            folder = Path(member.name).parent
            if member.isfile() and taken.get(folder, 0) < PER_CLASS[folder.parent.name]:
                taken[folder] = taken.get(folder, 0) + 1
                packed.extract(member, root, filter="data")
    return next(path.parent for path in root.rglob("test") if path.is_dir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet121"])
def test_large_networks_go_through_the_whole_command(
    name: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images scaled to 100 pixels and read while training; the saved network is the cut and tuned one."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model", name, "--data", f"folder:{photographs}", "--image-size", "100", "--workers", "1"]
    recipe = [f"--{group}.{option}" for group in ("dense", "fine-tune") for option in ("epochs=1", "batch-size=10")]
    assert main(["prune", *flags, *recipe, "--keep-macs", "0.5", "--round-to", "8", "--output", "run"]) == 0
    report = json.loads(Path("run/report.json").read_text())
    assert report["macs"]["pruned"] <= 0.5 * report["macs"]["dense"] and report["surgery_error"] < 1e-9
    small, image = srr_ext.load("run"), torch.randn(2, 3, 100, 100)
    assert sum(parameter.numel() for parameter in small.parameters()) == report["params"]["pruned"]
    dense = models.create(name, 10, "run/dense.safetensors", image_size=100).eval()
    cut = apply_plan(dense, PruningPlan.load("run/plan.json"), image[:1])
    cut.load_state_dict(small.state_dict())
    assert torch.equal(cut.eval()(image), small(image))
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert name in page and page.count("<svg") >= 6
    assert main(["evaluate", "--run", "run"]) == 0
    assert f"top-1 {report['top1']['final']:.2f} %" in capsys.readouterr().out
