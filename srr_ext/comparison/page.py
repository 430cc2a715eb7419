"""What a comparison leaves to look at: one page without scripts and requests, Markdown, tables and figures as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srr_ext.artifacts import PAGE
from srr_ext.comparison import sections
from srr_ext.comparison.checklist import warnings
from srr_ext.comparison.records import Comparison
from srr_ext.comparison.results import CSV, JSON, as_csv, as_json, load
from srr_ext.files import replace_file, write_json, write_text
from srr_ext.report.templates import HERE, template

MARKDOWN, FIGURES = "comparison.md", "figures"
_LOCAL = ("output", "executor", "jobs")  # where and how it ran, which others decide for themselves


def write(folder: Path) -> None:
    """Write all results of a comparison from its cells.

    Parameters
    ----------
    folder : Path
        Holds ``config.json``, ``cells/`` and, each optional, ``failed/`` and ``latency.json``. It receives
        ``comparison.csv``, ``comparison.json``, ``comparison.md``, ``report.html`` and, in ``figures/``, PNG files.
        Each is replaced at once; the same cells give the same bytes. Figures that are no longer made are removed.

    Raises
    ------
    ValueError
        A file is missing or damaged; the message names it.
    """
    folder = Path(folder)
    comparison = load(folder)
    curves = sections.curves(comparison)
    shares = {}
    for place, keep in enumerate(comparison.keeps, 1):
        shares[f"keep-{keep:g}"] = (keep, *sections.seeds(comparison, keep, f"keep{place}"))
    pictures = {name: png for name, (_, png) in curves.items() if png}
    pictures |= {name: png for name, (_, _, png) in shares.items()}
    page = _render(comparison, curves, shares)
    write_text(folder / CSV, _encodable(as_csv(comparison.rows)))
    write_json(folder / JSON, as_json(comparison))
    write_text(folder / MARKDOWN, _encodable(sections.markdown(comparison)))
    _write_figures(folder / FIGURES, pictures)
    write_text(folder / PAGE, page)


def recipe(config: Mapping[str, Any]) -> str:
    """Return a configuration as YAML, without what only matters to the machine it ran on."""
    import yaml

    kept = {name: value for name, value in config.items() if name not in _LOCAL}
    text: str = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100)
    return text


def _render(comparison: Comparison, curves: Mapping[str, Any], shares: Mapping[str, Any]) -> str:
    here = Path(__file__).parent
    content: dict[str, Any] = {
        "title": sections.title(comparison),
        "story": sections.story(comparison),
        "warnings": warnings(comparison),
        "failures": sections.failures(comparison),
        "recipe": recipe(comparison.config),
        "command": "srr compare --config compare.yaml",
        "files": (CSV, JSON, MARKDOWN),
        "shares": [],
    }
    if comparison.rows:
        content |= {
            "compared": sections.compared(comparison),
            "methods": sections.methods(comparison),
            "quantity": sections.QUANTITIES[comparison.rows[0].quantity],
            "curves": [
                (f"Top-1 accuracy against {name}", picture)
                for (name, _), (picture, _) in zip(sections.COSTS.values(), curves.values(), strict=True)
            ],
            "shares": [
                {"keep": f"{keep:g}", "table": sections.results(comparison, keep), "picture": picture}
                for keep, picture, _ in shares.values()
            ],
            "sparse": sections.SPARSE_NOTE if "weights" in comparison.what_goes else "",
            "longer": any(row.extra_epochs for row in comparison.rows),
            "claims": sections.claims(comparison),
        }
    css = "".join((place / "page.css").read_text(encoding="utf-8") for place in (HERE, here))
    return _encodable(template("page.html.j2", here).render(css=css, **content))


def _write_figures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    wanted = {f"{name}.png": content for name, content in pictures.items()}
    for name, content in wanted.items():
        replace_file(folder / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
    for path in folder.glob("*.png"):
        if path.name not in wanted:
            path.unlink()


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
