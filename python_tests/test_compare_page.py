"""The figures, page and Markdown of a comparison: complete, harmless, always the same, legible in a real browser."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from comparison_data import add_cell, add_comparison, add_config
from test_report_page import CONTRASTS, FORGOTTEN_BLACK, HOSTILE, browser, opened, texts  # noqa: F401  # a fixture

from srr_ext.cli.parsing import as_dict, parse
from srr_ext.comparison import sections
from srr_ext.comparison.checklist import warnings
from srr_ext.comparison.figures import COSTS, curve_figure, looks_of, seeds_figure
from srr_ext.comparison.page import recipe, write
from srr_ext.comparison.results import as_csv, as_json, load
from srr_ext.config import CompareConfig

MANY = tuple(f"{allocator}+{selector}" for allocator in ("srr", "global", "widest") for selector in "abcde")
SECTIONS = "compared warnings curves results claims failures reproduce".split()


def small(folder: Path, **settings: Any) -> Path:
    return add_comparison(folder, **{"keeps": (0.5,), "seeds": (0, 1)} | settings)


# --- figures


@pytest.mark.parametrize("methods", [("srr+l1",), MANY])
def test_figures_name_every_method_and_their_units(tmp_path: Path, methods: tuple[str, ...]) -> None:
    comparison = load(add_comparison(tmp_path, methods))
    for cost in COSTS if methods == MANY else ("measured",):
        drawing = curve_figure(comparison, cost)
        assert drawing is not None
        shown = texts(drawing.svg)
        assert {*methods, "random", "uniform", "scratch", "dense: 90.00 %", "dense-longer: 90.30 %"} <= set(shown)
        assert {"top-1 accuracy, %", COSTS[cost][1]} <= set(shown)
        assert not re.search(r"\b(nan|inf)\b", drawing.svg, re.IGNORECASE)
    rows = texts(seeds_figure(comparison, 0.5, "keep").svg)
    best_first = [entry.method for entry in comparison.ranked(0.5)]
    assert [text for text in rows if text in best_first] == best_first and best_first[0] == "dense-longer"
    final = comparison.ranked(0.5)[1].top1_final
    assert f"{final.mean:.2f} \N{PLUS-MINUS SIGN} {final.std:.2f}" in rows


def test_points_lie_where_the_numbers_say(tmp_path: Path) -> None:
    """The places of the marks are linear in the numbers, for costs and accuracies alike."""
    add_config(tmp_path, ("srr+l1",))
    points = [(0.5, 80.0, 12_000), (0.4, 84.0, 10_000), (0.3, 82.0, 8_000)]
    for keep, final, params in points:
        add_cell(tmp_path, "srr+l1", keep, 0, final, params=params)
    drawing = curve_figure(load(tmp_path), "compression_ratio")
    assert drawing is not None
    root = ElementTree.fromstring(drawing.svg)
    axes = next(e for e in root.iter() if (e.get("id") or "").endswith("axes_1"))
    marks = [e for e in axes.iter() if e.tag.endswith("}use") and "--c1" in (e.get("style") or "")]
    xs, ys = ([float(e.get(name) or 0) for e in marks] for name in ("x", "y"))
    ratios, finals = [20_000 / params for *_, params in points], [final for _, final, _ in points]
    for places, values, direction in ((xs, ratios, 1), (ys, finals, -1)):
        scale = (places[2] - places[0]) / (values[2] - values[0])
        assert scale * direction > 0
        assert places[1] - places[0] == pytest.approx(scale * (values[1] - values[0]), abs=1e-3)


def test_colour_is_never_the_only_cue(tmp_path: Path) -> None:
    comparison = load(small(tmp_path, methods=MANY))
    looks = looks_of(comparison)
    assert list(looks) == comparison.labels
    seen = [(look["marker"], str(look["linestyle"]), "alpha" in look) for look in looks.values()]
    assert len(set(seen)) == len(seen) == len(MANY) + 4
    for first, second in itertools.pairwise(MANY):  # neighbours in the legend differ in all of it
        assert all(looks[first][key] != looks[second][key] for key in ("marker", "linestyle", "color"))
    lines = {label: look["linewidth"] for label, look in looks.items()}
    assert lines[MANY[0]] > max(lines[label] for label in MANY[1:]) > lines["random"]


def test_single_seeds_have_no_bars(tmp_path: Path) -> None:
    def bars(folder: Path) -> int:
        drawing = curve_figure(load(folder), "compression_ratio")
        assert drawing is not None
        return drawing.svg.count("LineCollection")

    one = small(tmp_path / "one", seeds=(0,), controls=False)
    two = small(tmp_path / "two", seeds=(0, 1), controls=False)
    assert (bars(one), bars(two)) == (0, 2)  # one group of bars per method


def test_one_collapsed_method_does_not_hide_the_others(tmp_path: Path) -> None:
    plain, collapsed = small(tmp_path / "a", methods=MANY[:6]), small(tmp_path / "b", methods=MANY[:6])
    add_cell(collapsed, "random", 0.4, 0, 10.0, role="control")
    panels = [curve_figure(load(folder), "speed_up") for folder in (plain, collapsed)]
    assert [panel is not None and "the upper part, enlarged" in texts(panel.svg) for panel in panels] == [False, True]
    small(tmp_path / "c", methods=MANY[:6], controls=False)
    add_cell(tmp_path / "c", "random", 0.5, 0, 10.0, role="control")
    rows = texts(seeds_figure(load(tmp_path / "c"), 0.5, "keep").svg)
    assert rows.count("\N{LEFTWARDS ARROW}") == 1 and "10.00" in rows


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    curve_figure(load(small(tmp_path)), "speed_up")
    assert dict(mpl.rcParams) == before


# --- page and Markdown


def test_page_has_every_section_and_its_numbers(tmp_path: Path) -> None:
    folder = add_comparison(tmp_path)
    (folder / "failed").mkdir()
    failure = {"method": "global+l1", "keep": 0.1, "seed": 4, "message": "ValueError: no such thing"}
    (folder / "failed" / "x.json").write_text(json.dumps(failure))
    write(folder)
    html, markdown = (folder / "report.html").read_text(), (folder / "comparison.md").read_text()
    assert re.findall(r'<section id="(\w+)">', html) == SECTIONS
    assert html.count("<figure>") == 3 + 2 and 'class="missing"' not in html.replace("No claim is backed", "")
    assert sorted(p.name for p in (folder / "figures").iterdir()) == [
        "keep-0.5.png", "keep-0.7.png", "top1-compression-ratio.png", "top1-measured-speed-up.png",
        "top1-theoretical-speed-up.png",
    ]  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (folder / "figures").iterdir())
    comparison = load(folder)
    assert (folder / "comparison.csv").read_text() == as_csv(comparison.rows)
    assert json.loads((folder / "comparison.json").read_text()) == json.loads(json.dumps(as_json(comparison)))
    for entry in comparison.summaries:
        final, change = entry.top1_final, entry.top1_difference
        for text in (html, markdown):
            assert f"{final.mean:.2f} \N{PLUS-MINUS SIGN} {final.std:.2f}" in text
            assert f"{change.mean:+.2f} \N{PLUS-MINUS SIGN}".replace("-", "\N{MINUS SIGN}") in text
    claims = [verdict.claim for verdict in comparison.verdicts if verdict.claim]
    withheld = [verdict.withheld for verdict in comparison.verdicts if verdict.withheld]
    assert claims and withheld
    for sentence in (*claims, *withheld):
        assert sentence in html and sentence in markdown
    assert "ValueError: no such thing" in html and "ValueError: no such thing" in markdown
    assert "one image is 0.25 points" in html and "1.43 \N{MULTIPLICATION SIGN}" in html


def test_tables_say_measured_times_of_the_first_seed(tmp_path: Path) -> None:
    folder = add_comparison(tmp_path)
    table = sections.results(load(folder), 0.5)
    assert table.heads[0] == "method" and table.heads[-1] == "measured"
    measured = {row[0]: row[-1] for row in table.rows}
    assert measured["srr+l1"] == "1.50 \N{MULTIPLICATION SIGN}"  # 30 ms over 20 ms
    assert measured["dense-longer (control)"] == ""
    (folder / "latency.json").unlink()
    write(folder)
    assert {row[-1] for row in sections.results(load(folder), 0.5).rows} == {""}
    html = (folder / "report.html").read_text()
    assert "No latency was measured" in html and "Time was not measured" in html
    assert not (folder / "figures" / "top1-measured-speed-up.png").exists()


def test_a_complete_comparison_lacks_nothing(tmp_path: Path) -> None:
    comparison = load(add_comparison(tmp_path, keeps=(0.8, 0.6, 0.5, 0.4, 0.3)))
    assert warnings(comparison) == []


def test_what_is_lacking_is_said(tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        return "\n".join(warnings(load(folder)))

    bare = said(small(tmp_path / "bare", seeds=(0,), controls=False, latency=False))
    for words in ("only one seed", "only 1 operating point", "random selection", "uniform widths", "from scratch",
                  "trained for as much longer", "Time was not measured"):  # fmt: skip
        assert words in bare
    two = said(small(tmp_path / "two", seeds=(3, 4), keeps=(0.7, 0.5, 0.3)))
    assert "only 2 seeds" in two and "only 3 operating points" in two and "control" not in two
    gaps = small(tmp_path / "gaps", seeds=(0, 1, 2))
    add_cell(gaps, "global+l1", 0.3, 0, 80.0, macs=330_000, cell={"extra_epochs": 40})
    add_cell(gaps, "srr+l1", 0.3, 0, 80.0, report={"surgery_error": 0.5}, dense=91.0)
    found = said(gaps)
    # At 0.3 five labels lack all three seeds but for two cells.
    assert "13 cells of the grid are missing (srr+l1 at 0.3, seed 1; srr+l1 at 0.3, seed 2; " in found
    assert "MACs are not the same for all: at 0.3, global+l1 has 10.0 % more than srr+l1." in found
    assert "global+l1 +40 epochs" in found and "differs from the masked one by 5.0e-01" in found
    assert "dense networks of the seeds differ" in found


def test_a_control_under_another_name_is_one(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1", "uniform+l1", "widest+random as=chance"))
    add_cell(tmp_path, "srr+l1", 0.5, 0, 80.0)
    assert warnings(load(tmp_path))[2].count("?") == 4
    add_cell(tmp_path, "uniform+l1", 0.5, 0, 80.0, report={"allocator": "uniform"})
    add_cell(tmp_path, "chance", 0.5, 0, 80.0, report={"allocator": "widest", "selector": "random:x=1"})
    [said] = [line for line in warnings(load(tmp_path)) if "control" in line]
    assert "uniform" not in said and "random" not in said and said.count("?") == 2


def test_longer_training_is_flagged_beside_the_number(tmp_path: Path) -> None:
    folder = small(tmp_path)
    add_cell(folder, "group_lasso", 0.5, 0, 89.9, cell={"extra_epochs": 40})
    add_cell(folder, "brief", 0.5, 0, 85.0, cell={"extra_epochs": -1})
    write(folder)
    for text in ((folder / "report.html").read_text(), (folder / "comparison.md").read_text()):
        assert "89.90 (+40 epochs)" in text and "85.00 (\N{MINUS SIGN}1 epoch)" in text


def test_nothing_finished_yet(tmp_path: Path) -> None:
    add_config(tmp_path, ("srr+l1",))
    write(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "No cell of this comparison is finished" in html
    assert re.findall(r'<section id="(\w+)">', html) == ["failures", "reproduce"]
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 1


def test_the_recipe_reads_back(tmp_path: Path) -> None:
    config = CompareConfig(methods=("srr+l1", "global: x"), keep=(0.5,), seeds=(4,), output=tmp_path, jobs=3)
    text = recipe(json.loads(json.dumps(as_dict(config), default=str)))
    (tmp_path / "compare.yaml").write_text(text)
    again = parse(CompareConfig, ["--config", str(tmp_path / "compare.yaml")], "srr compare")
    assert again == CompareConfig(methods=("srr+l1", "global: x"), keep=(0.5,), seeds=(4,))
    assert "output" not in yaml.safe_load(text)


def test_same_bytes_twice_and_old_figures_go(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        folder = small(tmp_path / name)
        (folder / "figures").mkdir()
        (folder / "figures" / "keep-0.9.png").write_bytes(b"old")
        write(folder)
        made = [p for p in sorted(folder.rglob("*")) if p.is_file() and "cells" not in p.parts]
        found.append({p.relative_to(folder): p.read_bytes() for p in made})
    assert found[0] == found[1] and len(found[0]) == 2 + 4 + 4
    assert not any(path.name.startswith(".") for path in found[0])


def hostile(folder: Path) -> Path:
    names = tuple(f"srr+l{place}" for place in range(len(HOSTILE)))
    add_config(folder, names, keep=[0.5], seeds=[0], model=HOSTILE[2])
    for name in HOSTILE:
        cell = {"text": name[::-1] + name}
        for seed in range(3):
            add_cell(folder, name, 0.5, seed, 80 + seed / 9, cell=cell, report={"model": HOSTILE[1], "data": name})
    (folder / "failed").mkdir()
    for place, name in enumerate(HOSTILE):
        failure = {"method": name, "keep": 0.5, "seed": 4, "message": name}
        (folder / "failed" / f"{place}.json").write_text(json.dumps(failure))
    write(folder)
    return folder / "report.html"


def test_markdown_stays_a_table(tmp_path: Path) -> None:
    hostile(tmp_path)
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    tables = [list(part) for is_row, part in itertools.groupby(lines, lambda line: line.startswith("|")) if is_row]
    assert len(tables) == 3
    for rows in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert not any(re.search(r"(?<!\\)[<`]", row) for row in rows)


# --- a real browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    usual = add_comparison(tmp_path_factory.mktemp("usual"), MANY[:9])
    write(usual)
    yield {"usual": usual / "report.html", "hostile": hostile(tmp_path_factory.mktemp("hostile"))}


@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_no_complaint_no_request(browser: Any, pages: dict[str, Path], kind: str) -> None:  # noqa: F811
    page, complaints = opened(browser, pages[kind])
    assert page.locator("figure svg").count() == (5 if kind == "usual" else 3)
    assert page.evaluate("window.harmed === undefined && document.scripts.length === 0 && document.images.length === 0")
    assert complaints == []
    page.close()


@pytest.mark.parametrize("kind", ["usual", "hostile"])
@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_sticks_out(browser: Any, pages: dict[str, Path], kind: str, width: int) -> None:  # noqa: F811
    page, _ = opened(browser, pages[kind], width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        f"[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
        f"e.getBoundingClientRect().right > {width}.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    if kind == "usual" and width > 1000:  # the tables of results are whole, without scrolling
        tables = "[...document.querySelectorAll('#results h3 + .scroll')]"
        assert page.evaluate(f"{tables}.length === 2 && {tables}.every(e => e.scrollWidth <= e.clientWidth)")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser: Any, pages: dict[str, Path], scheme: str) -> None:  # noqa: F811
    page, _ = opened(browser, pages["usual"], scheme=scheme)
    rows = page.evaluate(CONTRASTS)
    assert len(rows) > 300 and {"text", "P", "TD", "H2", "LI"} <= {row[1] for row in rows}
    assert min(rows)[0] >= 4.5, min(rows)
    assert page.evaluate(FORGOTTEN_BLACK) == []
    page.close()


def test_labels_do_not_overlap(browser: Any, pages: dict[str, Path]) -> None:  # noqa: F811
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
