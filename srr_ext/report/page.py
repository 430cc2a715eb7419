"""The page of a run: ``report.html``, one file that explains itself, without scripts and without requests."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from srr_ext.artifacts import CONFIG, LOG, PAGE, PLAN, REPORT, STRUCTURE
from srr_ext.files import existing, read_json, write_text
from srr_ext.report import sections
from srr_ext.report.templates import HERE, template


def write(folder: str | Path) -> Path:
    """Write ``report.html`` from what else is in a run folder.

    Parameters
    ----------
    folder : str or Path
        Holds ``report.json`` and, each optional, ``structure.json`` (what `observe` returned, with the result of
        `layer_latency` under ``latency``), ``plan.json``, ``config.json`` and ``log.jsonl``. The page says what is
        missing.

    Returns
    -------
    Path
        The page. The same files give the same bytes.

    Raises
    ------
    ValueError
        If ``report.json`` is missing or one of the files is damaged; the message names it.
    """
    folder = Path(folder)
    report = read_mapping(existing(folder / REPORT))
    structure, plan, config = (
        read_mapping(folder / name) if (folder / name).is_file() else {} for name in (STRUCTURE, PLAN, CONFIG)
    )
    log = read_log(folder / LOG)
    try:
        content = {
            "title": sections.title(report),
            "story": sections.story(report, log),
            "summary": sections.summary(report),
            "test_size": sections.test_size(report),
            "command": command_line(report, config),
            "redundancy": sections.redundancy(structure),
            "curves": sections.curves(structure),
            "widths": sections.widths(structure),
            "training": sections.training(log, report),
            "cost": sections.cost(structure),
            "graphs": sections.graphs(structure),
            "pins": sections.pins(structure),
            "settings": list(flat_settings(config)),
            "environment": list(flat_settings(report.get("environment") or {})),
            "method": [(name, _plain(plan[name])) for name in _METHOD if name in plan],
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{folder}: its JSON files are not those of a run ({type(error).__name__}: {error})"
        ) from error
    css = (HERE / "page.css").read_text(encoding="utf-8")
    html = template("page.html.j2").render(css=css, **content)
    write_text(folder / PAGE, html.encode("utf-8", "replace").decode("utf-8"))
    return folder / PAGE


_METHOD = ("allocator", "selector", "target", "gamma", "seed", "fingerprint")  # of a plan


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the training records of ``log.jsonl``; none if the file is missing. Lines without an epoch are left out.

    Raises
    ------
    ValueError
        If a line is not JSON.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is damaged ({error})") from error
        if isinstance(record, dict) and "stage" in record and "epoch" in record:
            records.append(record)
    return records


def command_line(report: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Say how to repeat the run.

    Parameters
    ----------
    report : mapping
        Its ``command``, a list of arguments, is taken as it is.
    config : mapping
        Else the flags are those of its settings that differ from the defaults.

    Returns
    -------
    tuple of str and bool, or None
        The command, quoted for a shell, and whether it is the one that was given; None if neither says.
    """
    if report.get("command"):
        return shlex.join(map(str, report["command"])), True
    if not config:
        return None
    from srr_ext.cli.parsing import as_dict, flag_of
    from srr_ext.config import PruneConfig

    defaults = dict(_settings(as_dict(PruneConfig())))
    words = ["srr", "prune"]
    for name, value in _settings(config):
        if name == "output" or value is None or (name in defaults and defaults[name] == value):
            continue
        if isinstance(value, bool):
            words.append(flag_of(name) if value else flag_of(f"no_{name}"))
        else:
            words += [flag_of(name), *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words), False


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, but holds {content!r:.60}")
    return content


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def flat_settings(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List settings, nested ones by names with a dot, as they are printed."""
    return ((name, _plain(value)) for name, value in _settings(values))


def _plain(value: Any) -> str:
    """Write a setting as its reader would."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)
