"""What a run of srr sparsify shows: a page and a table with the right numbers, harmless and the same every time."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console
from safetensors.torch import load_file

from srr_ext import models
from srr_ext.__main__ import main
from srr_ext.cli.tables import sparse_table
from srr_ext.files import write_json
from srr_ext.report import sparse_page
from srr_ext.report.sparse_page import density_figure, forms, removed, untimed

SECTIONS = "summary command density training settings".split()
LAYERS = {
    "conv1.weight": {"kept": 54, "dense": 72, "shape": [8, 1, 3, 3]},
    "conv2.weight": {"kept": 144, "dense": 1152, "shape": [16, 8, 3, 3]},
    "fc1.weight": {"kept": 0, "dense": 512, "shape": [32, 16]},
}
REPORT: dict[str, Any] = {
    "model": "three layers", "data": "digits", "allocator": "sparsify", "selector": "magnitude", "scope": "global",
    "schedule": "iterative", "retrain": "lr-rewind", "rounds": 7, "density": 198 / 1736, "layers": LAYERS,
    "params": {"dense": 2000, "pruned": 462}, "macs": {"dense": 90_000, "pruned": 30_000}, "epochs_after_dense": 17.5,
    "latency_ms": {"dense": 3.0, "pruned": 2.5, "batch_size": 64, "device": "cpu", "threads": 1},
    "formats": {
        "dense": 3.1, "pruned": 2.6, "csr": 6.2, "dense_half": None, "semi_structured": None,
        "layers": {"csr": 2, "semi_structured": 0},
        "why_not": {"semi_structured": "fc1: [32, 16] is no shape for it", "dense_half": "there is nothing to compare"},
    },
    "top1": {"dense": 93.25, "after_surgery": 41.5, "final": 92.0}, "validation_top1": {"dense": 93.0},
    "n_test_images": 400, "command": ["srr", "sparsify", "--data", "folder:my images"],
    "environment": {"torch": "2.14"},
}  # fmt: skip
LOG = [
    {"stage": stage, "epoch": epoch, "lr": 0.01, "loss": 2.0 / epoch, "train_top1": 90 + epoch, "validation_top1": 91.5}
    for stage in ("train dense", "retrain 1 of 7", "retrain 2 of 7")
    for epoch in range(1, 4)
]
HOSTILE = [
    "<script>window.harmed = 1</script>",
    "\"><img src=x onerror='window.harmed = 1'>",
    "</svg></style></title><script>window.harmed = 1</script>",
    "$\\frac{1}{$ {{ 7 * 7 }} ]]> &amp; \x00\x1b\ud800\u202e",
]


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(REPORT)


def folder_of(report: dict[str, Any], folder: Path, log: Any = LOG, config: Any = ()) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "report.json", report)
    write_json(folder / "config.json", dict(config) or {"rate": 0.2, "fine_tune": {"epochs": 5}})
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    return folder


def page_of(report: dict[str, Any], folder: Path, log: Any = LOG) -> str:
    """Return the page, with plain signs."""
    html = sparse_page.write(folder_of(report, folder, log)).read_text(encoding="utf-8")
    return html.replace("\N{MULTIPLICATION SIGN}", "x").replace("\N{MINUS SIGN}", "-")


def cells(html: str) -> dict[str, list[str]]:
    """Return the rows of all tables of a page by their first cell."""
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    return {name: re.findall(r"<td>(.*?)</td>", rest) for name, rest in rows}


def printed(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(sparse_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- the page


def test_every_section_is_there_with_its_numbers(report: dict[str, Any], tmp_path: Path) -> None:
    html = page_of(report, tmp_path)
    assert re.findall(r'<section id="(\w+)">', html) == SECTIONS and 'class="missing"' not in html
    rows = cells(html)
    assert rows["parameters"] == ["2,000", "462", "4.33 x fewer"]
    assert rows["MACs per image, of weights that are not zero"] == ["90,000", "30,000", "3.00 x fewer"]
    assert rows["weights that may go"] == ["1,736", "198", "density 11.41 %"]
    assert rows["latency, zeros in place"] == ["3 ms", "2.5 ms", "1.20 x as fast"]
    assert rows["latency, sparse CSR weights in 2 layers"] == ["3.1 ms", "6.2 ms", "0.50 x as fast"]
    assert rows["test accuracy, right after the last of 7 prunings"][1:] == ["41.50 %", "-51.75 points"]
    assert rows["test accuracy, final"][1:] == ["92.00 %", "-1.25 points"]
    assert rows["conv2.weight"] == ["16 x 8 x 3 x 3", "1,152", "144", "12.50 %"]
    assert rows["fine_tune.epochs"] == ["5"] and rows["torch"] == ["2.14"]
    assert "Zeros do not make dense kernels faster" in html and "one image is 0.25 points" in html
    assert "semi-structured: fc1: [32, 16] is no shape for it" in html and "nothing to compare" not in html
    assert "Nothing is left of fc1.weight" in html and "srr sparsify --data &#39;folder:my images&#39;" in html


def test_the_story_says_what_was_done(report: dict[str, Any], tmp_path: Path) -> None:
    story = re.search(r'<p class="story">(.*?)</p>', page_of(report, tmp_path))[1]  # type: ignore[index]
    assert "lost single weights by magnitude (global) in 7 rounds" in story
    assert "trained with the learning rate rewound after each" in story
    assert "462 of 2,000 parameters (23.1 %)" in story and "30,000 of 90,000 multiply-accumulates" in story
    assert "from 93.25 % to 92.00 % (-1.25 points) after 17.5 epochs more than the dense network" in story
    assert "takes 2.5 ms for a forward pass of 64 images on the CPU (1 thread), the dense network 3 ms" in story


def test_stories_differ_by_schedule_and_retraining(report: dict[str, Any]) -> None:
    told = set()
    for schedule in ("one-shot", "iterative", "gradual", "given"):
        for retrain in ("finetune", "lr-rewind", "weight-rewind", "reinit"):
            changes = {"schedule": schedule, "retrain": retrain, "rounds": 7 if schedule == "iterative" else 1}
            told.add(sparse_page.story(report | changes))
    assert len(told) == 16
    assert removed(report | {"rounds": 1}) == "right after pruning"
    assert "at once" in removed(report | {"rounds": 1, "schedule": "gradual"})


def test_the_page_asks_for_nothing_and_runs_nothing(report: dict[str, Any], tmp_path: Path) -> None:
    html = page_of(report, tmp_path)
    assert "default-src 'none'" in html and "<script" not in html
    assert not re.search(r'(?:src|href)="(?!#|data:)', re.sub(r"xlink:href", "", html))
    assert not re.search(r"url\((?!#)|@import", html)


def test_hostile_names_stay_text(report: dict[str, Any], tmp_path: Path) -> None:
    report["layers"] = {name: dict(LAYERS["conv1.weight"]) for name in HOSTILE}
    report |= {"model": HOSTILE[2], "data": HOSTILE[0], "selector": HOSTILE[1], "scope": HOSTILE[3]}
    report |= {"retrain": HOSTILE[0], "command": ["srr", *HOSTILE], "environment": dict.fromkeys(HOSTILE, HOSTILE[0])}
    report["formats"]["why_not"]["csr"] = HOSTILE[2]
    report["formats"]["csr"] = None
    html = page_of(report, tmp_path)
    assert "<script" not in html and "<img" not in html and "49" not in sparse_page.story(report)
    figure = ElementTree.fromstring(density_figure(report["layers"]).encode("utf-8"))
    kinds = {element.tag.rpartition("}")[2] for element in figure.iter()}
    assert kinds <= {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect", "title", "desc", "style"}


def test_what_is_missing_is_said(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    write_json(tmp_path / "bare" / "report.json", {})
    html = sparse_page.write(tmp_path / "bare").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)">', html) == SECTIONS
    assert html.count('class="missing"') == 6 and "Zeros do not" not in html
    for key in ("params", "layers", "latency_ms", "formats", "top1", "schedule", "rounds", "epochs_after_dense"):
        part = {name: value for name, value in report.items() if name != key}
        assert re.findall(r'<section id="(\w+)">', page_of(part, tmp_path, log=())) == SECTIONS, key
    for gone in ("config.json", "log.jsonl"):
        (folder_of(report, tmp_path) / gone).unlink()
        assert sparse_page.write(tmp_path).read_text(encoding="utf-8").count('class="missing"') == 1


def test_damaged_files_are_named(report: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of(report, tmp_path)
    (folder / "log.jsonl").write_text('{"stage": "x", "epoch": 1}\n{"st')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is damaged"):
        sparse_page.write(folder)
    (folder / "log.jsonl").unlink()
    write_json(folder / "report.json", report | {"layers": {"conv1.weight": 3}})
    with pytest.raises(ValueError, match="not those of a run"):
        sparse_page.write(folder)
    (folder / "report.json").unlink()
    with pytest.raises(ValueError, match=r"is .* a run folder"):
        sparse_page.write(folder)
    assert not (folder / "report.html").exists()


def test_same_bytes_twice(report: dict[str, Any], tmp_path: Path) -> None:
    assert page_of(report, tmp_path / "a") == page_of(report, tmp_path / "b")


# --- its figure


def bars(svg: str) -> list[float]:
    """Return the widths of filled rectangles, in order."""
    widths = []
    for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        corners = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]
        if len(corners) == 4 and "fill: var(--c1" in path.get("style", ""):
            widths.append(max(x for x, _ in corners) - min(x for x, _ in corners))
    return widths


def test_bars_are_as_long_as_the_densities() -> None:
    layers = LAYERS | {"whole.weight": {"kept": 10, "dense": 10, "shape": [10, 1]}}
    svg = density_figure(layers)
    conv1, conv2, fc1, whole = bars(svg)[:4]
    assert (conv1 / whole, conv2 / whole, fc1) == pytest.approx((0.75, 0.125, 0.0), abs=1e-4)
    root = ElementTree.fromstring(svg)
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
    places = [texts.index(name) for name in layers]
    assert places == sorted(places) and {"144 of 1,152", "12.5\u00a0%", "of all together: 11.9 %"} <= set(texts)
    ids = {e.get("id") for e in root.iter()}
    assert set(root.get("aria-labelledby", "").split()) <= ids and root.get("role") == "img"


def test_the_legend_differs_without_colours() -> None:
    svg = re.sub(r"var\(--c\d, #\w+\)|currentColor", "one", density_figure(LAYERS))
    legend = next(e for e in ElementTree.fromstring(svg).iter() if (e.get("id") or "").endswith("-legend_1"))
    looks = []
    for handle in (e for e in legend.iter() if "line2d" in (e.get("id") or "")):
        looks.append(tuple(sorted({e.get("style", "") for e in handle.iter() if e.get("style")})))
    assert len(looks) == 3 and len(set(looks)) == 3


# --- forms and the table


def test_only_forms_that_were_timed_are_rows(report: dict[str, Any]) -> None:
    assert [(form.dense, form.pruned) for form in forms(report)] == [(3.0, 2.5), (3.1, 6.2)]
    report["formats"] |= {"dense_half": 1.5, "semi_structured": 0.75, "why_not": {}}
    assert (forms(report)[-1].dense, forms(report)[-1].pruned) == (1.5, 0.75) and untimed(report) == []
    del report["formats"]
    assert [form.what for form in forms(report)] == ["zeros in place"] and untimed(report) == []
    assert forms({}) == []


def test_the_table_has_the_numbers_and_keeps_brackets(report: dict[str, Any]) -> None:
    text = printed(report)
    assert text.startswith("three layers on digits: magnitude, global, iterative, lr-rewind")
    for row in (
        r"parameters +2,000 +462 +4\.33 x fewer",
        r"MACs .* 90,000 +30,000 +3\.00 x fewer",
        r"weights that may go +1,736 +198 +density 11\.41 %",
        r"latency, zeros in place +3\.00 ms +2\.50 ms +1\.20 x as fast",
        r"latency, sparse CSR weights in 2 layers +3\.10 ms +6\.20 ms +0\.50 x as fast",
        r"test accuracy, right after the last of 7 prunings +93\.25 % +41\.50 %",
        r"test accuracy, final +93\.25 % +92\.00 % +-1\.25 points",
    ):
        assert re.search(row, text), row
    assert "latency: of 64 images, cpu (1 thread)" in text
    assert "no latency of semi-structured: fc1: [32, 16] is no shape for it" in " ".join(text.split())
    assert printed(report | {"schedule": "given"}).startswith("three layers on digits: given masks, lr-rewind")


# --- a run


@pytest.mark.slow
def test_a_run_shows_what_is_in_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers on the page are those of the saved weights, counted again."""
    folder = tmp_path / "run"
    settings = "--dense.epochs 2 --epochs 1 --density 0.1 --schedule iterative --rate 0.7"
    assert main(["sparsify", *settings.split(), "--output", str(folder)]) == 0
    state, masks = load_file(folder / "model.safetensors"), load_file(folder / "masks.safetensors")
    rows = cells((folder / "report.html").read_text(encoding="utf-8"))
    for name, mask in masks.items():
        kept = int((state[name] != 0).sum())
        assert kept == int(mask.sum()) and rows[name][1:3] == [f"{mask.numel():,}", f"{kept:,}"]
    total = sum(mask.numel() for mask in masks.values())
    assert rows["weights that may go"][:2] == [f"{total:,}", f"{total // 10:,}"]
    dense = sum(parameter.numel() for parameter in models.create("digits_cnn").parameters())
    assert rows["parameters"][:2] == [f"{dense:,}", f"{dense - total + total // 10:,}"]
    assert "rounds" not in rows and "test accuracy, right after the last of 2 prunings" in rows
    assert f"{total // 10:,}" in capsys.readouterr().out
