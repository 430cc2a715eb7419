"""timm's models by name, small ones of more than a dozen families: made, pruned exactly, saved, loaded, evaluated."""

from __future__ import annotations

import re
from pathlib import Path

import oracle
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo import randomise

import srr_ext
from srr_ext import models
from srr_ext.__main__ import main

FAMILIES = {  # name -> the share of its MACs to keep; transformers lose the hidden channels of their MLPs alone
    "test_byobnet": 0.5,
    "test_coatnet": 0.5,
    "test_convnext": 0.5,
    "test_efficientnet": 0.5,
    "test_maxvit": 0.5,
    "test_resnet": 0.5,
    "test_vit": 0.7,
    "test_vit_relpos": 0.7,
    "cspresnet50": 0.7,
    "dla46x_c": 0.7,
    "fbnetc_100": 0.7,
    "ghostnet_050": 0.7,
    "hardcorenas_a": 0.7,
    "lcnet_035": 0.7,
    "mnasnet_small": 0.7,
    "mobilenetv3_small_050": 0.7,
    "mobilevit_xxs": 0.7,
    "regnetx_002": 0.7,
    "repvgg_a0": 0.7,
    "selecsls42": 0.7,
    "tinynet_e": 0.7,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_pruned_exactly_and_read_back_by_its_name(name: str, tmp_path: Path) -> None:
    """Outputs equal those of the masked network, MACs are those that torch counts, the folder alone gives it back."""
    pytest.importorskip("timm")
    keep = FAMILIES[name]
    model = models.create(f"timm/{name}", 10, image_size=64)
    with torch.no_grad():
        randomise(model)
    example = torch.randn(1, 3, 64, 64)
    streams = "prune" if name == "repvgg_a0" else "keep"  # every channel of which is tied to a branch beside it
    plan = srr_ext.make_plan(model.eval(), example, keep_macs=keep, allocator="uniform", streams=streams)
    small = srr_ext.apply_plan(model, plan, example)
    assert srr_ext.verify(model, plan, example) < 1e-9 and oracle.has_effect(model, plan, example)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.eval()(example)
    assert counter.get_total_flops() <= 2 * plan.cost["macs"]["pruned"] * 1.0001
    assert plan.cost["macs"]["pruned"] <= keep * plan.cost["macs"]["dense"]
    srr_ext.save(tmp_path / "run", small, plan)
    with torch.no_grad():
        assert torch.equal(srr_ext.load(tmp_path / "run")(example), small(example))


@pytest.mark.slow
def test_the_commands_take_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`srr prune` trains, prunes and saves it; `srr evaluate` makes it again from the folder, as accurate as it was."""
    pytest.importorskip("timm")
    run = str(tmp_path / "run")
    common = ["--data", "digits", "--device", "cpu"]
    short = ["--dense.epochs", "1", "--epochs", "1", "--keep-macs", "0.6", "--allocator", "uniform"]
    assert main(["prune", "--model", "timm/test_byobnet", *common, *short, "--output", run]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", run]) == 0
    shown = re.findall(r"(\d+\.\d+) ?%", capsys.readouterr().out)
    report = (Path(run) / "report.json").read_text()
    assert shown and any(f"{float(re.findall(r'.final.: ([0-9.]+)', report)[0]):.2f}" == value for value in shown)
    assert '"timm/test_byobnet"' in (Path(run) / "architecture.json").read_text()
