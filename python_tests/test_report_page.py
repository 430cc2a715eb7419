"""The figures and the page of a run: complete, harmless, the same every time, and legible in a real browser."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import srr_ext
from srr_ext.files import write_json
from srr_ext.report import layer_latency, observe, write
from srr_ext.report.figures import (
    cost_figure,
    curves_figure,
    redundancy_figure,
    training_figure,
    weight_layers,
    widths_figure,
)
from srr_ext.report.graph_figure import graph_figure
from srr_ext.report.page import command_line
from srr_ext.report.svg import clean

SECTIONS = "summary command redundancy curves widths training cost graphs pins settings".split()
HOSTILE = [
    "<script>window.harmed = 1</script>",
    "\"><img src=x onerror='window.harmed = 1'>",
    "</svg></style></title><script>window.harmed = 1</script>",
    "$\\frac{1}{$ {{ 7 * 7 }} ]]> &amp; \x00\x1b\ud800\u202e",
    "url(https://example.com/x.png) " + "long" * 80,
    "id='graph1-title' #c0ffee",
]
LOG = [
    {"stage": stage, "epoch": epoch, "lr": 0.01, "loss": 2.0 / epoch, "train_top1": 90 + epoch, "validation_top1": 91.5}
    for stage, epochs in (("train dense", 5), ("fine-tune 1", 1), ("fine-tune 2", 4))
    for epoch in range(1, epochs + 1)
]


def small_run() -> dict[str, Any]:
    """Everything a run folder may hold, by file name."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3),
        nn.Flatten(), nn.Linear(8 * 36, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        weight = model[3].weight
        weight.copy_(weight[torch.arange(24) % 5] + 0.3 * weight.std() * torch.randn_like(weight))
    example = torch.randn(1, 3, 12, 12)
    plan = srr_ext.make_plan(model, example, keep_macs=0.5)
    small = srr_ext.apply_plan(model, plan, example)
    structure = observe(model, small, plan, example) | {"latency": layer_latency(model, small, example, rounds=2)}
    report = {
        "model": "three layers", "data": "digits", "allocator": "srr", "selector": "l1", "gamma": plan.gamma, "seed": 0,
        "macs": plan.cost["macs"], "params": plan.cost["params"],
        "latency_ms": {"dense": 3.0, "pruned": 1.5, "batch_size": 64, "device": "cpu", "threads": 1},
        "top1": {"dense": 93.25, "after_surgery": 10.0, "final": 92.0}, "n_test_images": 400,
        "command": ["srr", "prune", "--data", "folder:my images"], "environment": {"torch": "2.14", "python": "3.11"},
    }  # fmt: skip
    config = {"model": "three layers", "keep_macs": 0.5, "fine_tune": {"epochs": 5}}
    return {"report": report, "structure": structure, "plan": json.loads(plan.to_json()), "config": config, "log": LOG}


RUN: dict[str, Any] = {}


@pytest.fixture
def run() -> dict[str, Any]:
    if not RUN:
        RUN.update(small_run())
    return copy.deepcopy(RUN)


def folder_of(run: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in run.items():
        if name == "log":
            (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in content))
        else:
            write_json(folder / f"{name}.json", content)
    return folder


def hostile(run: dict[str, Any]) -> dict[str, Any]:
    """The run with names that try to get out of their place."""
    names = itertools.cycle(HOSTILE)
    structure, report = run["structure"], run["report"]
    for entry in (*structure["layers"], *structure["groups"], *structure["graphs"], *structure["latency"]):
        entry["name"] = next(names)
    structure["pins"] = [{"module": name, "channels": 3, "reason": name[::-1] + name} for name in HOSTILE]
    structure["unreached"] = HOSTILE
    report |= {"model": HOSTILE[2], "data": HOSTILE[0], "allocator": HOSTILE[1], "command": ["srr", *HOSTILE]}
    report["environment"] = dict.fromkeys(HOSTILE, HOSTILE[0])
    run["config"] |= {HOSTILE[2]: HOSTILE[1]}
    run["plan"]["allocator"] = HOSTILE[0]
    for record, stage in zip(run["log"], names, strict=False):
        record["stage"] = stage
    return run


def figures(run: dict[str, Any]) -> dict[str, str]:
    structure = run["structure"]
    drawn = {f"graph{i}": graph_figure(graph, f"graph{i}") for i, graph in enumerate(structure["graphs"], 1)}
    return drawn | {
        "redundancy": redundancy_figure(structure),
        "curves": curves_figure(structure),
        "widths": widths_figure(structure),
        "cost": cost_figure(structure),
        "training": training_figure(run["log"], 93.25),
    }


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")
    ]


# --- figures


def test_figures_name_every_layer_and_have_no_nan(run: dict[str, Any]) -> None:
    drawn = figures(run)
    groups = {group["name"] for group in run["structure"]["groups"]}
    layers = {layer["name"] for layer in weight_layers(run["structure"])}
    assert groups == {"0", "3", "5"} and layers == {"0", "3", "5", "7"}
    for name, wanted in (("redundancy", groups), ("curves", groups), ("widths", layers), ("cost", layers)):
        assert wanted <= set(texts(drawn[name]))
    for svg in drawn.values():
        assert not re.search(r"\b(nan|inf|none,none)\b", re.sub(r'="none"', "", svg), re.IGNORECASE)
    assert {"train dense", "validation", "dense network, validation: 93.25 %"} <= set(texts(drawn["training"]))


def test_figures_are_deterministic_and_ids_are_their_own(run: dict[str, Any]) -> None:
    first, second = figures(run), figures(run)
    assert first == second
    seen: set[str] = set()
    for svg in first.values():
        root = ElementTree.fromstring(svg)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids)) and not seen & set(ids)
        seen |= set(ids)
        references = re.findall(r'(?:href="|url\()#([^")]+)', svg)
        assert references and set(references) <= set(ids)
        assert set(root.get("aria-labelledby", "").split()) <= set(ids) and root.get("role") == "img"
        assert "dc:date" not in svg and "<metadata" not in svg


def test_theme_colours_replace_black_and_palette(run: dict[str, Any]) -> None:
    for svg in figures(run).values():
        used = set(re.findall(r"#[0-9a-f]{6}\b", svg)) - set(re.findall(r"var\(--\w+, (#[0-9a-f]{6})\)", svg))
        assert "#000000" not in used and "#000002" not in svg
        for element in ElementTree.fromstring(svg).iter():
            if element.tag.endswith("}text"):
                assert "currentColor" in element.get("style", "") + element.get("fill", "")


def test_colour_is_never_the_only_cue(run: dict[str, Any]) -> None:
    """Whatever a legend tells apart differs in shape, filling or dashes once all colours are one."""
    for name, svg in figures(run).items():
        root = ElementTree.fromstring(svg)
        shapes = {e.get("id"): e.get("d") for e in root.iter() if e.tag.endswith("}path") and e.get("id")}
        legend = next(e for e in root.iter() if (e.get("id") or "").endswith("-legend_1"))
        looks = []
        for handle in legend.iter():
            if "line2d" not in (handle.get("id") or ""):
                continue
            look = []
            for element in handle.iter():
                style = element.get("style", "")
                filling = re.search(r"fill(?:-opacity)?: (none|0;|var\(--paper)", style + ";")
                dashes = re.search(r"stroke-dasharray: ([^;]+)", style)
                href = next((v for k, v in element.attrib.items() if k.endswith("href")), "")
                if style or href:
                    look.append((shapes.get(href[1:]), filling and filling[1], dashes and dashes[1]))
            looks.append(tuple(look))
        assert len(looks) >= 2 and len(set(looks)) == len(looks), name
    # Neighbouring covers differ in shape, removed filters are hollow.
    graph = {
        "name": "g", "n_filters": 8, "n_edges": 4, "n_covers": 4, "nodes": list(range(8)), "note": "",
        "cover": [0, 0, 1, 1, 2, 2, 3, 3], "centres": [0, 2, 4, 6], "kept": [True, False] * 4,
        "edges": [[0, 1], [2, 3], [4, 5], [6, 7]],
    }  # fmt: skip
    svg = graph_figure(graph, "g")
    root = ElementTree.fromstring(svg)
    axes = next(e for e in root.iter() if e.get("id") == "g-axes_1")
    hrefs = [e for e in axes.iter() if e.tag.endswith("}use")]
    shapes = {e.get("id"): e.get("d") for e in root.iter() if e.tag.endswith("}path") and e.get("id")}
    marks = [(shapes[next(v for k, v in e.attrib.items() if k.endswith("href"))[1:]], "--paper" in e.get("style", ""))
             for e in hrefs]  # fmt: skip
    filters = [mark for mark in marks if marks.count(mark) == 1]
    assert len(filters) == 8 and sum(hollow for _, hollow in filters) == 4


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text_in_figures(run: dict[str, Any], name: str) -> None:
    structure = run["structure"]
    structure["groups"][0]["name"] = structure["layers"][0]["name"] = structure["graphs"][0]["name"] = name
    run["log"][0]["stage"] = name
    drawn = figures(run)
    for svg in drawn.values():
        root = ElementTree.fromstring(svg.encode("utf-8"))
        kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert kinds <= {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect", "title", "desc",
                         "linearGradient", "stop", "image", "style"}  # fmt: skip
    assert clean(name) in texts(drawn["redundancy"])


def test_many_long_names_do_not_overlap(run: dict[str, Any]) -> None:
    structure = run["structure"]
    group, layer = structure["groups"][0], structure["layers"][0]
    structure["groups"] = [group | {"name": f"features.stage{i}.block.convolution.depthwise"} for i in range(70)]
    structure["layers"] = [layer | {"name": g["name"]} for g in structure["groups"]]
    for draw in (redundancy_figure, widths_figure):
        root = ElementTree.fromstring(draw(structure))
        rows = [
            float(e.get("y") or 0)
            for e in root.iter()
            if e.tag.endswith("}text") and "features" in "".join(e.itertext())
        ]
        assert len(rows) == 70
        assert all(abs(a - b) > 9 for a, b in itertools.pairwise(rows))


# --- page


def test_page_has_every_section_and_its_numbers(run: dict[str, Any], tmp_path: Path) -> None:
    html = write(folder_of(run, tmp_path)).read_text()
    found = re.findall(r'<section id="(\w+)">', html)
    assert found == SECTIONS
    assert 'class="missing"' not in html and html.count("<figure>") == 5 + len(run["structure"]["graphs"])
    macs = run["report"]["macs"]
    story = re.search(r'<p class="story">(.*?)</p>', html)[1]
    assert f"{macs['pruned']:,} of {macs['dense']:,} multiply-accumulates per image" in story
    assert "from 93.25 % to 92.00 % (\N{MINUS SIGN}1.25 points) after 5 epochs of fine-tuning" in story
    assert "1.5 ms instead of 3 ms, 2.00 times as fast" in story
    assert "srr prune --data &#39;folder:my images&#39;" in html
    assert "<td>\N{MINUS SIGN}83.25 points</td>" in html and "one image is 0.25 points" in html
    for pin in run["structure"]["pins"]:
        assert pin["reason"] in html


@pytest.mark.parametrize("gone", ["structure.json", "plan.json", "config.json", "log.jsonl"])
def test_missing_files_are_said(run: dict[str, Any], tmp_path: Path, gone: str) -> None:
    folder = folder_of(run, tmp_path)
    (folder / gone).unlink()
    html = write(folder).read_text()
    assert 'class="missing"' in html and re.findall(r'<section id="(\w+)">', html) == SECTIONS


def test_missing_figures_are_said(run: dict[str, Any], tmp_path: Path) -> None:
    html = write(folder_of({"report": {}}, tmp_path / "bare")).read_text()
    assert html.count('class="missing"') == 12 and re.findall(r'<section id="(\w+)">', html) == SECTIONS
    run["structure"] |= {
        "gamma": None,
        "gamma_note": "there is none",
        "graphs": [],
        "curve_gammas": [],
        "latency": None,
    }
    for group in run["structure"]["groups"]:
        group |= {"before": None, "after": None, "turning_gamma": None, "complete_gamma": None, "curve": []}
    html = write(folder_of(run, tmp_path / "no gamma")).read_text()
    assert html.count('class="missing"') == 3 and "No redundancy was measured: there is none" in html


def test_damaged_files_are_named(run: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of(run, tmp_path)
    (folder / "log.jsonl").write_text('{"stage": "x", "epoch": 1}\n{"st')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is damaged"):
        write(folder)
    (folder / "log.jsonl").unlink()
    (folder / "structure.json").write_text("[]")
    with pytest.raises(ValueError, match=r"structure\.json must hold an object"):
        write(folder)
    (folder / "structure.json").write_text('{"gamma": 1}')
    with pytest.raises(ValueError, match="not those of a run"):
        write(folder)
    (folder / "report.json").unlink()
    with pytest.raises(ValueError, match=r"is .* a run folder"):
        write(folder)
    assert not (folder / "report.html").exists()


def test_same_bytes_twice(run: dict[str, Any], tmp_path: Path) -> None:
    assert len({write(folder_of(run, tmp_path / name)).read_bytes() for name in ("a", "b")}) == 1


@pytest.mark.slow
def test_same_bytes_in_another_process(run: dict[str, Any], tmp_path: Path) -> None:
    page = write(folder_of(run, tmp_path))
    content = page.read_bytes()
    page.unlink()
    code = "import sys; from srr_ext.report import write; write(sys.argv[1])"
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert page.read_bytes() == content


def test_drawing_leaves_matplotlib_as_it_was(run: dict[str, Any]) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures(run)
    assert dict(mpl.rcParams) == before


def test_command_is_built_from_what_differs_from_the_defaults() -> None:
    config = {
        "model": "resnet20", "keep_macs": 0.4, "gamma": "auto", "download": True, "ignored": ["a b", "c"],
        "output": None, "fine_tune": {"epochs": 3},
    }  # fmt: skip
    command, given = command_line({}, config) or ("", True)
    assert not given
    flags = "--model resnet20 --keep-macs 0.4 --download --ignored 'a b' c --fine-tune.epochs 3"
    assert command == f"srr prune {flags}"
    import shlex

    from srr_ext.cli.parsing import parse
    from srr_ext.config import PruneConfig

    parsed = parse(PruneConfig, shlex.split(command)[2:], "srr prune")
    assert (parsed.keep_macs, parsed.ignored, parsed.fine_tune.epochs) == (0.4, ("a b", "c"), 3)
    assert command_line({"command": ["srr", "a b"]}, config) == ("srr 'a b'", True)
    assert command_line({}, {}) is None


# --- a real browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of an ordinary run, and that of one with names that try to do harm."""
    RUN.update(RUN or small_run())
    runs = {"usual": RUN, "hostile": hostile(copy.deepcopy(RUN))}
    return {kind: write(folder_of(run, tmp_path_factory.mktemp(kind))) for kind, run in runs.items()}


def opened(browser: Any, page_file: Path, width: int = 1100, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and everything it complained about or asked for."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
    page.on("request", lambda r: None if r.url in (page_file.as_uri(), "data:,") else complaints.append(r.url))
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return page, complaints


CONTRASTS = """() => {
  const linear = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 }
  const parse = text => (text.match(/[0-9.]+/g) || []).map(Number)
  const luminance = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2])
  const rows = []
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
    if (!own || !e.getClientRects().length || ['title', 'desc', 'style'].includes(e.tagName)) continue
    const style = getComputedStyle(e)
    const ink = parse(e.closest('svg') ? style.fill : style.color)
    let box = e
    while (box && (parse(getComputedStyle(box).backgroundColor)[3] === 0)) box = box.parentElement
    const paper = parse(getComputedStyle(box || document.body).backgroundColor)
    const [a, b] = [luminance(ink), luminance(paper)].sort((x, y) => y - x)
    rows.push([(a + 0.05) / (b + 0.05), e.tagName, e.textContent.slice(0, 30)])
  }
  return rows
}"""


# Whatever is painted in SVG's default black, which does not follow the theme.
FORGOTTEN_BLACK = """() => [...document.querySelectorAll('figure svg *')].filter(e => {
  if (e.closest('defs') || !(e instanceof SVGGeometryElement || e instanceof SVGUseElement)) return false
  const style = getComputedStyle(e)
  const black = 'rgb(0, 0, 0)'
  return (style.fill === black && style.fillOpacity !== '0') || (style.stroke === black && style.strokeWidth !== '0px')
}).map(e => e.outerHTML.slice(0, 100))"""


def test_no_complaint_no_request(browser: Any, pages: dict[str, Path]) -> None:
    page, complaints = opened(browser, pages["usual"])
    assert page.title() == "three layers on digits, pruned"
    assert page.locator("figure svg").count() == 5 + len(RUN["structure"]["graphs"])
    assert complaints == []
    page.close()


@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_phone_needs_no_sideways_scrolling(browser: Any, pages: dict[str, Path], kind: str) -> None:
    page, _ = opened(browser, pages[kind], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    outside = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
        "e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)")
    if kind == "usual":  # the main table is whole, without scrolling
        assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#summary .scroll'))")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    page, _ = opened(browser, pages["usual"], scheme=scheme)
    rows = page.evaluate(CONTRASTS)
    assert len(rows) > 300 and {"text", "P", "TD", "H2"} <= {row[1] for row in rows}
    assert min(rows)[0] >= 4.5, min(rows)
    assert page.evaluate(FORGOTTEN_BLACK) == []
    red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")
    assert red > 200 if scheme == "light" else red < 60
    page.close()


def test_labels_do_not_overlap(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["usual"])
    overlaps = page.evaluate("""() => {
      const found = []
      for (const svg of document.querySelectorAll('figure svg')) {
        const labels = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()])
        const box = svg.getBoundingClientRect()
        for (const [i, [a, p]] of labels.entries()) {
          if (p.left < box.left - 1 || p.right > box.right + 1 || p.top < box.top - 1) found.push([a, 'cut'])
          for (const [b, q] of labels.slice(i + 1))
            if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 2 && q.top < p.bottom - 2)
              found.push([a, b])
        }
      }
      return found
    }""")
    assert overlaps == []
    page.close()


def test_print(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["usual"], scheme="dark")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(page.evaluate(CONTRASTS))[0] >= 4.5
    page.close()


def test_hostile_names_do_nothing(browser: Any, pages: dict[str, Path]) -> None:
    page, complaints = opened(browser, pages["hostile"])
    assert page.evaluate("window.harmed === undefined && document.scripts.length === 0 && document.images.length === 0")
    assert complaints == []
    assert page.locator("#pins details").count() == len(HOSTILE) and page.locator("main > section").count() == 10
    assert "49" not in page.locator("#command code").inner_text()
    shown = page.locator("#pins code").first.inner_text()
    assert shown == HOSTILE[0]
    page.close()


@pytest.mark.parametrize("top", [0.00123, 0.0178, 0.0199, 0.9, 12.3, 250.0])
def test_short_times_have_few_labels(top: float) -> None:
    """Which are long, and side by side on one axis."""
    layers = [{"name": f"l{i}", "kind": "conv", "macs": [9000 * (i + 1), 5000 * (i + 1)]} for i in range(5)]
    times = [{"name": f"l{i}", "kind": "Conv2d", "dense_ms": top * (i + 1) / 5, "pruned_ms": 0.0} for i in range(5)]
    drawn = cost_figure({"layers": layers, "latency": times})
    labels = re.findall(r">([\d.]+)</text>", drawn.split("milliseconds per batch")[0].split("MACs for the example")[1])
    assert 2 <= len(labels) <= 6 and len(set(labels)) == len(labels)
