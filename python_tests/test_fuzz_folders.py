"""Run folders from anywhere: nothing in them is run, imported, believed to be small, or written through."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import LIARS, fuzz, pickles, texts
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import srr_ext
from srr_ext import artifacts, models
from srr_ext.__main__ import main
from srr_ext.plan import make_plan
from srr_ext.surgery import apply_plan

EXAMPLE = torch.zeros(1, 1, 8, 8)
CODE = "made_by_a_stranger:net"
MODULE = """
from pathlib import Path
Path(__file__).with_name("it-ran").touch()
import srr_ext
def net(num_classes=10):
    return srr_ext.models.create("digits_cnn", num_classes)
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole run folder, as `srr evaluate` reads it."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("pruned"), models.create("digits_cnn", 10).eval()
    plan = make_plan(model, EXAMPLE, allocator="uniform", keep_macs=0.1, floor=0.0)
    artifacts.save_dense(folder, model)
    artifacts.save(folder, apply_plan(model, plan, EXAMPLE), plan)
    (folder / "config.json").write_text(json.dumps({"data": "digits"}))
    return folder


@pytest.fixture
def run(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy that may be spoilt, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(pruned, "run"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must refuse in one line, with exit code 2; return the line."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code  # type: ignore[assignment]
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said, said
    line = said.splitlines()[-1]
    assert line.startswith(f"srr {arguments[0]}: error: ") and line.isprintable(), line
    return line


def set_architecture(run: Path, name: Any, **options: Any) -> None:
    (run / "architecture.json").write_text(json.dumps({"name": name, "options": options}))


def test_a_folder_cannot_choose_what_is_imported(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not a module that lies in the current folder, where commands look for modules."""
    Path("made_by_a_stranger.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    set_architecture(run, CODE, num_classes=10)
    for read in (srr_ext.load, artifacts.load_dense):
        with pytest.raises(ValueError, match=r"names code .* 'made_by_a_stranger:net', and no folder may choose"):
            read(run)
    assert "names code" in refused(capsys, "evaluate", "--run", "run")
    for name in ("os:abort", "timm/hf-hub:a/b", "a" * 10**6, ["digits_cnn"], {"digits_cnn": 1}, None, ""):
        set_architecture(run, name)
        with pytest.raises(ValueError, match=r"names code|is not known|must hold name and options|needs timm"):
            srr_ext.load(run)
    assert not Path("it-ran").exists() and "made_by_a_stranger" not in sys.modules


def test_the_caller_may_name_the_code(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By passing the network, or its name, which has to be that of the folder."""
    Path("made_by_a_stranger.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    set_architecture(run, CODE, num_classes=10)
    dense = models.create("digits_cnn", 10)
    assert isinstance(srr_ext.load(run, model=dense), nn.Module) and not Path("it-ran").exists()
    same = artifacts.load_dense(run, model=dense).state_dict()
    assert all(torch.equal(same[name], value) for name, value in load_file(run / "dense.safetensors").items())
    with pytest.raises(ValueError, match="names code"):
        artifacts.dense_architecture(run, code="other:net")
    assert isinstance(artifacts.dense_architecture(run, code=CODE), nn.Module) and Path("it-ran").exists()
    sys.modules.pop("made_by_a_stranger")
    set_architecture(run, "digits_cnn")
    with pytest.raises(ValueError, match="holds the network 'digits_cnn', which made_by_a_stranger:net does not make"):
        artifacts.dense_architecture(run, code=CODE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits_cnn", {"num_classes": 10**8}),
        ("resnet20", {"num_classes": 2**31 - 1}),
        ("lenet5", {"image_size": 20_000}),
        ("alexnet_small", {"in_channels": 2**31 - 1, "num_classes": 2**31 - 1}),
        ("mobilenet_v2", {"num_classes": 10**7}),
        ("resnet18", {"in_channels": 10**9, "image_size": 32}),
        ("vit_b_16", {"image_size": 160_000}),
    ],
)
def test_a_folder_cannot_name_a_network_that_fills_the_memory(run: Path, name: str, options: dict[str, int]) -> None:
    """It is refused before there is memory for it, which would have to be filled with initial weights."""
    set_architecture(run, name, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"more than 4 GiB|cannot be made|cannot read images"):
        srr_ext.load(run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # KiB


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 10**30},
        {"num_classes": -1},
        {"num_classes": True},
        {"num_classes": "10"},
        {"weights": "x.pt"},
        [],
    ],
)
def test_options_are_small_whole_numbers(run: Path, options: Any) -> None:
    """And no names of files, which `create` would read, or fetch."""
    (run / "architecture.json").write_text(json.dumps({"name": "digits_cnn", "options": options}))
    with pytest.raises(ValueError, match=r"architecture\.json must hold name and options"):
        srr_ext.load(run)


@pytest.mark.parametrize("kind", ["pickle", "text", "zip", "legacy"])
@pytest.mark.parametrize("name", ["model.safetensors", "dense.safetensors", "masks.safetensors"])
def test_pickles_in_a_folder_are_refused(run: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the name of any file with tensors, by `srr evaluate` and from Python."""
    if name != "model.safetensors":
        (run / "plan.json").unlink()
    marker = Path("it-ran").resolve()
    pickles(marker)[kind](run / name)
    if name == "masks.safetensors":
        with pytest.raises(ValueError, match="is damaged"):
            srr_ext.sparsity.Masks.load(run / name)
    else:
        assert name in refused(capsys, "evaluate", "--run", "run")
    assert not marker.exists()


@pytest.mark.parametrize("kind", LIARS)
def test_headers_that_lie_are_refused(run: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model.safetensors").write_bytes(LIARS[kind])
    assert "--run: run/model.safetensors" in refused(capsys, "evaluate", "--run", "run")


def test_weights_of_another_kind_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole numbers, complex ones, and none at all."""
    state = load_file(run / "model.safetensors")
    for dtype in (torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn):
        save_file(state | {"classifier.weight": state["classifier.weight"].to(dtype)}, run / "model.safetensors")
        line = refused(capsys, "evaluate", "--run", "run")
        assert "classifier.weight has dtype" in line
    state["classifier.weight"].fill_(torch.nan)
    save_file(state, run / "model.safetensors")
    assert "gives scores that are not finite" in refused(capsys, "evaluate", "--run", "run")


def test_names_in_a_folder_cannot_steer_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(load_file(run / "model.safetensors") | {"\x1b[2J\nfine": torch.zeros(1)}, run / "model.safetensors")
    assert r"has \x1b[2J fine, which the model lacks" in refused(capsys, "evaluate", "--run", "run")


@fuzz(40)
@given(st.data())
def test_any_other_text_in_a_folder(pruned: Path, data: st.DataObject) -> None:
    """One file is another: the folder is loaded, or refused by a ValueError."""
    path = pruned / data.draw(st.sampled_from(["architecture.json", "plan.json"]))
    before = path.read_text()
    path.write_text(data.draw(texts(json.loads(before))), encoding="utf-8", errors="replace")
    try:
        with contextlib.suppress(ValueError):
            assert isinstance(srr_ext.load(pruned), nn.Module)
    finally:
        path.write_text(before)


@fuzz(40)
@given(st.data())
def test_any_other_bytes_in_a_folder(pruned: Path, data: st.DataObject) -> None:
    """Bytes of the tensors, mostly of the header that says where they are, are others."""
    path = pruned / "model.safetensors"
    before = path.read_bytes()
    torn = bytearray(before)
    for _ in range(data.draw(st.integers(1, 4))):
        torn[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(torn[: data.draw(st.sampled_from([len(torn), len(torn) // 2, 100]))]))
    try:
        with contextlib.suppress(ValueError):
            assert isinstance(srr_ext.load(pruned), nn.Module)
    finally:
        path.write_bytes(before)


def test_a_config_of_another_kind_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images that it names are read as if a flag had named them; all else in it is not looked at."""
    for config in ({"data": 5}, {"data": "folder:a\0b"}, {"data": "../../x"}, ["data"], None, {"data": "\x1b[2J"}):
        (run / "config.json").write_text(json.dumps(config))
        assert refused(capsys, "evaluate", "--run", "run")
    (run / "config.json").write_text(json.dumps({"data": "folder:x", "image_size": "no"}))
    assert refused(capsys, "evaluate", "--run", "run")
