"""Bottlenecks as a method of ``srr compare``: how they are written, what is refused, and what a cell leaves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import refused
from comparing import QUICK, finished, save_weights
from torch.utils.flop_counter import FlopCounterMode

from srr_ext import models
from srr_ext.__main__ import main
from srr_ext.bottleneck import BottleneckPlan, load_bottlenecks, make_bottlenecks
from srr_ext.bottleneck.deciding import check_reach
from srr_ext.bottleneck.options import Options, read_options
from srr_ext.comparison import results
from srr_ext.comparison.grid import Method, cell_config, make_cells, make_methods, parse_method
from srr_ext.comparison.kinds import KINDS
from srr_ext.config import CompareConfig

PATCHES = "bottleneck:basis=patches,labels=given"


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_the_method_is_read() -> None:
    """Its kind, its options and its settings; names that only begin like it are allocators."""
    assert parse_method("bottleneck") == Method(
        "bottleneck", "bottleneck", {"allocator": "bottleneck"}, kind="bottleneck"
    )
    text = f"{PATCHES} fine_tune.lr=0.01 as=given"
    wanted = {"allocator": PATCHES, "fine_tune.lr": "0.01"}
    assert parse_method(text) == Method("given", f"{PATCHES} fine_tune.lr=0.01", wanted, kind="bottleneck")
    assert parse_method("bottlenecks").kind == parse_method("srr+bottleneck").kind == "prune"
    assert read_options("bottleneck") == Options() == Options("channels", "sampled", 0.03)
    assert read_options(f"{PATCHES},floor=0.2") == Options("patches", "given", 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bottleneck+l1", "'bottleneck+l1': bottleneck goes alone, without selector and update"),
        ("bottleneck:floor=0.1+l1+reconstruct", "bottleneck goes alone"),
        ("bottleneck selector=l2", "write selector as a part"),
        *((f"bottleneck {key}=1", f"{key} is no setting of bottlenecks") for key in ("floor", "round_to", "gamma")),
    ],
)
def test_text_that_is_no_bottleneck_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_method(text)


def test_a_cell_has_all_that_its_method_says_and_all_that_others_share() -> None:
    config = CompareConfig(methods=("srr", f"{PATCHES} fine_tune.epochs=3"), keep=(0.5,), quantity="params", seeds=(4,))
    (cell,) = (cell for cell in make_cells(config, "net.th") if cell.method.kind != "prune")
    plain = cell_config(config, parse_method("srr"), 0.5, 4, "net.th")
    epochs = replace(plain.fine_tune, epochs=3)
    assert cell.config == replace(plain, allocator=PATCHES, selector="eigendamage", fine_tune=epochs)
    assert cell.config.targets == {"keep_params": 0.5}


def test_the_control_from_new_weights_is_of_the_same_kind() -> None:
    """Where bottlenecks come first, it is their network that is trained anew."""
    config = CompareConfig(methods=(f"{PATCHES} ignored=conv1 as=b", "bottleneck"))
    scratch = next(method for method in make_methods(config) if method.label == "scratch")
    assert scratch.kind == "bottleneck" and parse_method(scratch.text).kind == "bottleneck"
    assert scratch.settings == {"allocator": PATCHES, "ignored": "conv1", "retrain": "scratch"}
    assert cell_config(config, scratch, 0.5, 0, None) == cell_config(config, parse_method(scratch.text), 0.5, 0, None)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--methods", "bottleneck:basis=filters"), "--methods: 'bottleneck:basis=filters': basis must be one of"),
        (("--methods", "bottleneck:labels=own"), "--methods: 'bottleneck:labels=own': labels must be one of"),
        (("--methods", "bottleneck:floor=1"), "--methods: 'bottleneck:floor=1': floor is a share of each layer's"),
        (("--methods", "bottleneck:rank=4"), "--methods: 'bottleneck:rank=4': method 'bottleneck' has no option"),
        (("--quantity", "channels"), "--methods: 'bottleneck': --quantity: bottlenecks remove no channels"),
        (("--update", "reconstruct"), "--methods: 'bottleneck': --update: bottlenecks have none"),
        (("--rounds", "2"), "--methods: 'bottleneck': --rounds: bottlenecks are made at once"),
        (("--launcher", "torchrun"), "--launcher: starts srr prune, which does not know 'bottleneck'"),
        (("--methods", "bottleneck ignored=conv9"), "--keep: 'bottleneck ignored=conv9' at 0.75: --ignored: "),
        (("--methods", "bottleneck:floor=0.9"), "--keep: 'bottleneck:floor=0.9' at 0.75: keep_macs=0.75 is out of"),
        (("--methods", "bottleneck", "--keep", "0.5", "0.01"), "--keep: 'bottleneck' at 0.01: keep_macs=0.01 is out"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    flags: tuple[str, ...], line: str, in_empty_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag is named, and the method; nothing is written."""
    found = refused(capsys, "compare", "--device", "cpu", "--methods", "srr", "bottleneck", *flags, "--output", "grid")
    assert found.startswith(line) and not Path("grid").exists()


@pytest.mark.parametrize("basis", ["channels", "patches"])
@pytest.mark.parametrize("keep", [{"keep_macs": 0.005}, {"keep_params": 0.01}, {"keep_macs": 0.6}])
def test_what_is_within_reach_is_known_without_images(basis: str, keep: dict[str, float]) -> None:
    """The same error as with images, word for word, or none."""
    torch.manual_seed(0)
    net = models.create("digits_cnn").eval()
    images = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))]
    said = []
    for decide, data in ((check_reach, {}), (make_bottlenecks, {"data": images})):
        try:
            decide(net, torch.zeros(1, 1, 8, 8), basis=basis, floor=0.02, **keep, **data)  # type: ignore[operator]
            said.append("")
        except ValueError as error:
            said.append(str(error))
    assert said[0] == said[1] and ("out of reach" in said[0]) == (next(iter(keep.values())) < 0.1)


@pytest.mark.slow
def test_a_grid_with_bottlenecks(tmp_path: Path) -> None:
    """Cells of both kinds, with the same dense network; each saved network costs and is what its row says."""
    weights, folder = save_weights(tmp_path / "net.th"), tmp_path / "grid"
    methods = ("srr", "bottleneck", f"{PATCHES} as=given", "bottleneck retrain=scratch as=new")
    command = ["compare", *QUICK, "--epochs", "0", "--dense.epochs", "1", "--calibration", "64"]
    command += ["--methods", *methods, "--keep", "0.5"]
    command += ["--seeds", "0", "--no-controls", "--weights", weights, "--output", str(folder), "--jobs", "1"]
    assert main(command) == 0
    rows = {row.method: row for row in results.read(folder)}
    assert list(rows) == ["srr", "bottleneck", "given", "new"]
    parts = {label: (row.allocator, row.selector, row.update) for label, row in rows.items()}
    assert parts == {
        "srr": ("srr", "l1", "none"),
        "bottleneck": ("bottleneck", "eigendamage", "none"),
        "given": (PATCHES, "eigendamage", "none"),
        "new": ("bottleneck", "eigendamage", "none"),
    }
    assert (rows["new"].macs, rows["new"].params) == (rows["bottleneck"].macs, rows["bottleneck"].params)
    assert rows["new"].top1_after_surgery == rows["bottleneck"].top1_after_surgery
    new, old = (load_bottlenecks(folder / "cells" / rows[label].cell) for label in ("new", "bottleneck"))
    pairs = dict(zip(new.named_parameters(), old.parameters(), strict=True))
    assert all(not torch.equal(first, second) for (_, first), second in pairs.items()), "trained from other weights"
    assert len({(row.top1_dense, row.macs_dense, row.params_dense) for row in rows.values()}) == 1
    latency = json.loads((folder / results.LATENCY).read_text())
    assert sorted(latency) == finished(folder) and all(entry["pruned_ms"] > 0 for entry in latency.values())
    for label, basis in (("bottleneck", "channels"), ("given", "patches")):
        row = rows[label]
        cell = folder / "cells" / row.cell
        assert (
            json.loads((cell / "report.json").read_text()).keys()
            == json.loads((folder / "cells" / rows["srr"].cell / "report.json").read_text()).keys()
        )
        plan = BottleneckPlan.from_json((cell / "bottlenecks.json").read_text())
        assert (plan.basis, plan.target, plan.seed) == (basis, {"macs": 0.5}, 0) and plan.layers
        network = load_bottlenecks(cell)
        assert main(["evaluate", "--run", str(cell)]) == 0
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 1, 8, 8))
        assert row.macs == counter.get_total_flops() // 2 <= 0.5 * row.macs_dense
        assert row.params == sum(parameter.numel() for parameter in network.parameters())
        assert (
            KINDS["bottleneck"].load(cell, models.create("digits_cnn")).state_dict().keys()
            == dict(network.state_dict()).keys()
        )
    for line in (folder / "comparison.csv").read_text().splitlines()[2:]:
        assert "eigendamage" in line
    assert PATCHES in (folder / "comparison.md").read_text().replace("\\", "") and (folder / "report.html").is_file()
