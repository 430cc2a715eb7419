"""The documentation tells the truth: code runs, commands parse, links lead somewhere, messages exist."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from build_script import load
from torch import nn

from srr_ext import models
from srr_ext.__main__ import COMMANDS, main
from srr_ext.channels import analyze_channels
from srr_ext.cli.parsing import as_dict, parse
from srr_ext.config import (
    AnalyzeConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    PruneConfig,
    SparsifyConfig,
    TrainRunConfig,
)
from srr_ext.export import with_flag

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CONFIGS: dict[str, Any] = {
    "prune": PruneConfig,
    "train": TrainRunConfig,
    "analyze": AnalyzeConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "compare": CompareConfig,
    "sparsify": SparsifyConfig,
}
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>.*?) -->\n)?^```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S
)
PRINTS = 'title="prints"'

# Modules whose errors are not the user's: raised and caught inside, or by ops that name their argument.
UNLISTED = ("channels/probe.py", "_op_arguments.py", "bit_graphs.py", "filters.py", "ops.py")
# Messages that other packages write, or that are put together from parts: the heading, and a command that gives it.
GIVEN_BY = {
    "… is no command; there are …": ["prnue"],
    "unrecognized arguments: …": ["prune", "--bogus"],
    "… is not valid; expected …": ["prune", "--keep-params", "half"],
    "File does not exist": ["prune", "--config", "no.yaml"],
}


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    language: str
    options: str
    text: str
    mark: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["language"], m["options"].strip(), m["text"], m["mark"] or "") for m in found]


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def run_page(page: Path) -> None:
    """Run the Python blocks and the commands marked quick of a page, in order, in the current folder."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks(page):
        if block.language == "python" and not block.mark.startswith("skip: "):
            if title := re.search(r'title="(\w+\.py)"', block.options):
                Path(title[1]).write_text(block.text, encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block.text, name_of(page), "exec"), names)
            printed = output.getvalue()
        elif block.options == PRINTS:
            assert [line.rstrip() for line in printed.splitlines()] == [
                line.rstrip() for line in block.text.splitlines()
            ]
        elif block.mark == "quick":
            for program, *arguments in commands(block):
                assert program == "srr" and main(arguments) == 0, arguments


def is_slow(page: Path) -> bool:
    return any(block.mark == "quick" for block in blocks(page)) or name_of(page) in ("your-data.md", "quickstart.md")


RUNNABLE = [page for page in PAGES if any(b.language == "python" or b.mark == "quick" for b in blocks(page))]


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * is_slow(p), id=name_of(p)) for p in RUNNABLE]
)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And prints what the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where pages keep measured times
    from srr_ext.criteria import base

    monkeypatch.setattr(base._registry, "_items", dict(base._registry._items))  # pages may register a selector
    try:
        run_page(page)
    finally:
        sys.modules.pop("mynet", None)


def test_there_is_code_to_run_and_every_block_is_of_a_known_kind() -> None:
    assert len(RUNNABLE) >= 6
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("python", "sh", "text", "json", "yaml"), (name_of(page), block)
            assert block.mark in ("", "quick") or re.match(r"skip: \w", block.mark), (name_of(page), block)
        assert page.read_text(encoding="utf-8").count("\n```") == 2 * len(blocks(page)), name_of(page)


def test_every_command_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flag exists, and each value is one that it takes; `make` targets exist."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    earlier = Path("runs/digits_cnn-digits-001/config.json")
    earlier.parent.mkdir(parents=True)
    earlier.write_text(json.dumps(as_dict(PruneConfig())))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    seen = 0
    for page in PAGES:
        for block in blocks(page):
            for program, *arguments in commands(block) if block.language == "sh" else ():
                if program == "srr":
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(_Printed):
                        _parse(arguments)
                    seen += 1
                elif program == "torchrun":
                    at = arguments.index("-m")
                    _parse([arguments[at + 1].removeprefix("srr_ext."), *arguments[at + 2 :]])
                    seen += 1
                elif program == "make":
                    assert re.search(rf"^{arguments[0]}:", makefile, re.M), arguments
                else:
                    assert program in (".", "pip", "python", "tensorboard"), (name_of(page), program)
    assert seen > 15
    with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        _parse(["prune", "--no-such-flag"])


class _Printed(Exception):
    """``--print_config`` has printed and left."""


def _parse(arguments: list[str]) -> None:
    assert arguments[0] in COMMANDS and COMMANDS.keys() == CONFIGS.keys()
    name, *flags = arguments
    try:
        parse(CONFIGS[name], with_flag(flags) if name == "export" else flags, f"srr {name}")
    except SystemExit as left:
        if left.code:
            raise
        raise _Printed from left


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    from markdown.extensions.toc import slugify

    text = BLOCK.sub("", text)
    plain = (re.sub(r"[`*]", "", heading) for heading in re.findall(r"^#+ (.*)$", text, re.M))
    objects = set(re.findall(r"^::: (\S+)", text, re.M))
    return {slugify(heading, "-") for heading in plain} | objects


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    pytest.importorskip("markdown", reason="markdown comes with mkdocs, which is not installed")
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{name_of(page)}: {target}"


def test_every_page_and_figure_is_used() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", nav, re.M))
    own = {name_of(page) for page in PAGES if not name_of(page).startswith("results/")}
    assert own <= listed and all((DOCS / page).is_file() for page in listed)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for figure in (DOCS / "figures").iterdir():
        assert f"figures/{figure.name})" in text


@pytest.mark.slow
def test_the_site_builds_and_asks_nothing_of_other_servers(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    html = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(html) >= len(PAGES)
    for page in html:
        for tag in re.findall(r"<(?:script|link|img|iframe|source|object)\b[^>]*>", page):
            assert not re.search(r'\b(?:src|href|data)="(?:https?:)?//', tag) or 'rel="canonical"' in tag, tag
        assert "fonts.googleapis" not in page
    for css in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", css.read_text(encoding="utf-8")), css
    reference = (tmp_path / "reference" / "pruning.html").read_text(encoding="utf-8")
    assert 'id="srr_ext.plan.make_plan"' in reference and "keep_macs" in reference
    ops = (tmp_path / "reference" / "ops.html").read_text(encoding="utf-8")
    assert "math::" not in ops and ":math:" not in ops and '<img class="tex" alt="N_1"' in ops


TROUBLESHOOTING = DOCS / "troubleshooting.md"
HEADINGS = re.findall(r"^### `(.*)`$", TROUBLESHOOTING.read_text(encoding="utf-8"), re.M)


def pattern(node: ast.AST) -> str | None:
    """Return a string of the code with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
    return None


def sources() -> list[tuple[str, ast.Module]]:
    package = ROOT / "srr_ext"
    return [
        (path.relative_to(package).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(package.rglob("*.py"))
    ]


def matches(heading: str, message: str) -> bool:
    """Whether the constant parts of a heading are all in the message, in order."""
    position = 0
    for part in filter(None, (part.strip() for part in heading.split("…"))):
        found = message.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return True


def longest(text: str) -> int:
    return max(len(part.strip(" :;,.()'")) for part in text.split("…"))


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_message_on_the_page_exists(
    heading: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in the code, or a command gives it."""
    assert longest(heading) >= 6, "a heading without words finds anything"
    if heading in GIVEN_BY:
        monkeypatch.chdir(tmp_path)
        with contextlib.suppress(SystemExit):
            main(GIVEN_BY[heading])
        assert matches(heading, capsys.readouterr().err)
    else:
        assert any(matches(heading, text) for text in MESSAGES)


def every_string(tree: ast.Module) -> list[str]:
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [text for node in ast.walk(tree) if id(node) not in documentation and (text := pattern(node))]


MESSAGES = [text for _, tree in sources() for text in every_string(tree)]


def test_every_error_of_the_package_is_on_the_page() -> None:
    """Whoever adds a message that a user can meet adds a heading that says what to do."""
    missing, n = [], 0
    for name, tree in sources():
        if name in UNLISTED:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = [text for argument in node.exc.args if (text := pattern(argument))]
                if not texts or longest(texts[-1]) < 6:
                    continue
                n += 1
                if not any(matches(heading, texts[-1]) for heading in HEADINGS):
                    missing.append(f"srr_ext/{name}:{node.lineno}: {texts[-1]}")
    assert n > 100
    assert not missing, "docs/troubleshooting.md lacks:\n" + "\n".join(missing)


class Pinned(nn.Module):
    """Two pins whose reasons are put together from parts: a parameter per channel, and a literal size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.scale, self.head = nn.Parameter(torch.ones(1, 16, 1, 1)), nn.Linear(32 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x) * self.scale).view(-1, 2048))


def test_the_reasons_of_pins_are_those_there_are() -> None:
    """The first column of the table of pins."""
    text = (DOCS / "your-model.md").read_text(encoding="utf-8")
    table = text[text.index("| reason |") :].split("\n\n")[0]
    reasons = re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:]))
    assert len(reasons) >= 10
    given = [pin.reason for pin in analyze_channels(Pinned(), torch.randn(1, 3, 8, 8)).pins]
    for reason in reasons:
        assert any(matches(reason, message) for message in (*MESSAGES, *given)), reason


def test_no_heading_stands_twice() -> None:
    assert len(HEADINGS) == len(set(HEADINGS))


def test_the_recipes_are_those_there_are() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `(\S+)` ", text, re.M))
    assert table == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_drawing_shows_the_layer_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose numbers the page computes."""
    module = load("docs/drawings.py")
    page = next(b.text for b in blocks(DOCS / "how-it-works.md") if b.language == "python")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(page, names)
    torch.testing.assert_close(module.toy_layer(), names["weight"])
    assert str(module.GAMMAS) in page
    monkeypatch.setattr(module, "FIGURES", tmp_path)
    path = module.write("graphs", module.draw_graphs(module.toy_layer()))
    first = path.read_bytes()
    assert b"currentColor" in first and b"prefers-color-scheme:dark" in first and module.INK.encode() not in first
    assert module.write("graphs", module.draw_graphs(module.toy_layer())).read_bytes() == first


def test_the_loop_that_is_drawn_is_the_plan() -> None:
    """`removal` raises where the two differ."""
    module = load("docs/drawings.py")
    model, example = models.create("digits_cnn").eval(), torch.randn(1, 1, 8, 8)
    names, values, taken = module.removal(model, example, analyze_channels(model, example))
    assert len(names) == len(values) == 6 and set(taken) <= set(range(6)) and len(taken) > 10


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs an example in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    from srr_ext.criteria import base

    monkeypatch.setattr(base._registry, "_items", dict(base._registry._items))

    def run(name: str) -> str:
        monkeypatch.setattr(sys, "argv", [name])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_below() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names == {"prune_your_own_model.py", "compare_allocators.py", "custom_selector.py"}


@pytest.mark.slow
def test_example_own_model(example: Any) -> None:
    """Half the cost, the accuracy recovered, and the loaded network is the saved one."""
    output = example("prune_your_own_model.py")
    shares = dict(re.findall(r"^(\S+) +[\d,]+ parameters, +([\d.]+) %", output, re.M))
    assert shares["loaded"] == shares["fine-tuned"] and float(shares["fine-tuned"]) > 90
    dense, pruned = (
        int(n.replace(",", "")) for n in re.findall(r"([\d,]+) multiply-accumulates became ([\d,]+)", output)[0]
    )
    assert pruned <= dense / 2
    assert Path("runs/own/plan.json").is_file()


@pytest.mark.slow
def test_example_allocators(example: Any) -> None:
    """Four rows, every one within the budget."""
    rows = re.findall(r"^(\w+) +([\d,]+) +([\d,]+) +[\d.]+ % +[\d.]+ %$", example("compare_allocators.py"), re.M)
    assert [row[0] for row in rows] == ["srr", "uniform", "widest", "global"]
    assert all(500_000 < int(macs.replace(",", "")) <= 1_155_024 // 2 for _, macs, _ in rows)


def test_example_selector(example: Any) -> None:
    """It is known by name, and its plan is exact."""
    output = example("custom_selector.py")
    assert "peak" in output.splitlines()[0]
    assert all(float(error) < 1e-9 for error in re.findall(r"error (\S+)", output)) and "kept by both" in output
