"""Methods from outside the package: by entry point of an installed one, or named as module:function."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import srr_ext
from srr_ext import data
from srr_ext.cli.parsing import make_parser
from srr_ext.config import PruneConfig
from srr_ext.criteria import base

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the page's module as a package of that name would be."""
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r'```python title="peak_selector.py"\n(.*?)```', page, re.DOTALL)
    points = re.search(r'\[project.entry-points."(srr_ext.selectors)"\]\n(\w+) = "(.*)"', page)
    assert code and points
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 15
    (tmp_path / "peak_selector.py").write_text(code[1], encoding="utf-8")
    info = tmp_path / "peak_selector-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peak-selector\nVersion: 0.1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{points[1]}]\n{points[2]} = {points[3]}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(base._registry, "_items", dict(base._registry._items))


@pytest.mark.usefixtures("installed")
def test_a_selector_of_an_installed_package_is_one_of_them() -> None:
    """It is listed, shown in the help, and makes the plan that its function makes."""
    assert "peak" in srr_ext.available_selectors()
    shown = " ".join(make_parser(PruneConfig, "srr prune").format_help().split())
    assert re.search(r"There are: [^.]*\bpeak\b[^.]*\.", shown)
    model = srr_ext.models.create("digits_cnn")
    example = data.load("digits").example()
    plans = {
        selector: srr_ext.make_plan(model, example, selector=selector, keep_macs=0.5)
        for selector in ("peak", "peak_selector:peak", "l1")
    }
    assert plans["peak"].layers == plans["peak_selector:peak"].layers != plans["l1"].layers
    assert plans["peak"].selector == "peak"


@pytest.mark.usefixtures("installed")
def test_a_name_that_is_nowhere_says_so() -> None:
    with pytest.raises(ValueError, match="'peak_selector:pique' cannot be imported"):
        srr_ext.criteria.get_selector("peak_selector:pique")
    with pytest.raises(ValueError, match="'nowhere:peak' cannot be imported"):
        srr_ext.criteria.get_selector("nowhere:peak")
    with pytest.raises(ValueError, match=r"'global' has no option 'l2'; its options: normalise="):
        srr_ext.allocators.get_allocator("global:l2")
