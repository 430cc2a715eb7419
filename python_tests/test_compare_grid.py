"""The grid of a comparison: methods read from text, controls, cells and their configurations."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srr_ext.cli import steps
from srr_ext.cli.parsing import parse
from srr_ext.cli.running import Session
from srr_ext.cli.training import epochs_after_dense, steps_per_epoch
from srr_ext.comparison import running
from srr_ext.comparison.grid import (
    Method,
    _file_name,
    cell_config,
    make_cells,
    make_methods,
    parse_method,
    usual_epochs,
)
from srr_ext.comparison.kinds import KINDS
from srr_ext.config import CompareConfig, PruneConfig
from srr_ext.progress import silent
from srr_ext.training import SparseConfig, TrainConfig

TWO = CompareConfig(methods=("srr", "uniform+fpgm"), keep=(0.5, 0.25), seeds=(0, 1))


def settings(text: str, config: CompareConfig = TWO) -> PruneConfig:
    made = cell_config(config, parse_method(text), 0.5, 1, "net.th")
    assert isinstance(made, PruneConfig)
    return made


@pytest.mark.parametrize(
    ("text", "label", "names"),
    [
        ("srr", "srr", {"allocator": "srr"}),
        ("srr+l2", "srr+l2", {"allocator": "srr", "selector": "l2"}),
        (
            "  global:normalise=l2+fpgm+reconstruct ",
            "global:normalise=l2+fpgm+reconstruct",
            {"allocator": "global:normalise=l2", "selector": "fpgm", "update": "reconstruct"},
        ),
        (
            "srr  distance=euclidean as=SRR gamma=0.1",
            "SRR",
            {"allocator": "srr", "distance": "euclidean", "gamma": "0.1"},
        ),
        ("srr sparse.penalty=bn_l1", "srr sparse.penalty=bn_l1", {"allocator": "srr", "sparse.penalty": "bn_l1"}),
        ("srr round-to=8 'as=two words'", "two words", {"allocator": "srr", "round_to": "8"}),
    ],
)
def test_a_method_is_read(text: str, label: str, names: dict[str, str]) -> None:
    method = parse_method(text)
    assert (method.label, method.settings, method.role) == (label, names, "method")
    assert "as=" not in method.text and parse_method(method.text).settings == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with ALLOCATOR"),
        ("distance=rms", "must begin with ALLOCATOR"),
        ("srr++x", "must be ALLOCATOR"),
        ("srr+a+b+c", "must be ALLOCATOR"),
        ("srr 'l1", "open quotation mark"),
        ("srr l1", "'l1' must be KEY=VALUE"),
        ("srr gamma=", "'gamma=' must be KEY=VALUE"),
        ("srr gamma=1 gamma=2", "gamma is there twice"),
        ("srr selector=l2", "write selector as a part"),
        *(
            (f"srr {key}=1", f"{key} is the same for all")
            for key in ("seed", "dense.lr", "keep_macs", "weights", "rewind_weights")
        ),
    ],
)
def test_text_that_is_no_method_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)


def test_settings_are_typed_and_nested_ones_leave_their_neighbours() -> None:
    """Each type that a setting has, the defaults of the comparison beside it."""
    config = replace(TWO, fine_tune=TrainConfig(epochs=7), floor=0.2)
    cell = settings("srr+l2 gamma=0.25 round_to=8 ignored=a.b,c fine_tune.lr=0.01 fine_tune.nesterov=false", config)
    assert (cell.allocator, cell.selector, cell.gamma, cell.round_to) == ("srr", "l2", 0.25, 8)
    assert cell.ignored == ("a.b", "c") and cell.floor == 0.2
    assert cell.fine_tune == TrainConfig(epochs=7, lr=0.01, nesterov=False)
    assert settings("srr gamma=auto").gamma == "auto" and settings("srr gamma=2").gamma == 2.0
    # Some values are valid together only.
    step = settings("srr fine_tune.schedule=step fine_tune.milestones=3,5").fine_tune
    assert (step.schedule, step.milestones) == ("step", (3.0, 5.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("srr gama=1", "no setting gama"),
        ("srr fine_tune=1", "no setting fine_tune"),
        ("srr gamma.x=1", "no setting gamma.x"),
        ("srr fine_tune.speed=1", "no setting speed"),
        ("srr round_to=1.5", "'1.5' is not a value that round_to takes"),
        ("srr distance=l2", "'l2' is not a value that distance takes"),
        ("srr fine_tune.lr=-1", "lr must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        settings(text)
    assert text in str(error.value)


def test_cells_differ_in_method_share_and_seed_alone() -> None:
    """The images held out, the dense network and the trainings are the same for all."""
    config = replace(TWO, seed=5, fine_tune=TrainConfig(epochs=3, lr=0.02), quantity="params")
    cells = make_cells(config, "dense.safetensors")
    methods, controls = 2 * 2 * 2, 3 * 2 * 2 + 2
    assert len(cells) == methods + controls and len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.config.split_seed == 5 and cell.config.seed == cell.seed in (0, 1)
        assert cell.config.targets == {"keep_params": cell.keep}
        assert cell.config.weights == "dense.safetensors" and cell.config.fine_tune == config.fine_tune
        changed = {
            f.name for f in fields(PruneConfig) if getattr(cell.config, f.name) != getattr(PruneConfig(), f.name)
        }
        allowed = {"weights", "seed", "split_seed", "keep_params", "fine_tune", "allocator", "selector", "retrain"}
        assert changed <= allowed
    given = make_cells(replace(config, split_seed=9), None)
    assert {cell.config.split_seed for cell in given} == {9}


def test_the_controls_are_what_they_are_called() -> None:
    controls = {method.label: method for method in make_methods(TWO) if method.role == "control"}
    assert set(controls) == {"random", "uniform", "scratch", "dense-longer"}
    configs = {label: cell_config(TWO, method, 0.5, 0, None) for label, method in controls.items()}
    names = {label: (config.allocator, config.selector, config.retrain) for label, config in configs.items()}
    assert names == {
        "random": ("uniform", "random", "finetune"),
        "uniform": ("uniform", "l1", "finetune"),
        "scratch": ("srr", "l1", "scratch"),
        "dense-longer": ("uniform", "l1", "finetune"),
    }
    longer = [cell for cell in make_cells(TWO, None) if cell.method.label == "dense-longer"]
    assert [(cell.keep, cell.seed) for cell in longer] == [(1.0, 0), (1.0, 1)]
    assert [method.label for method in make_methods(replace(TWO, controls=False))] == ["srr", "uniform+fpgm"]


def test_scratch_follows_the_first_method_and_trains_as_long() -> None:
    """New weights cannot go on in rounds: all epochs in one."""
    config = replace(TWO, methods=("widest+l2 rounds=3", "srr"), fine_tune=TrainConfig(epochs=4))
    scratch = next(cell for cell in make_cells(config, None) if cell.method.label == "scratch")
    assert (scratch.config.allocator, scratch.config.selector, scratch.config.rounds) == ("widest", "l2", 1)
    assert scratch.config.fine_tune.epochs == 12 and scratch.method.text.startswith("widest+l2 ")
    assert cell_config(config, parse_method(scratch.method.text), 0.5, 0, None) == replace(
        scratch.config, keep_macs=0.5
    )


def test_controls_that_are_listed_are_not_repeated() -> None:
    config = replace(TWO, methods=("uniform+random", "uniform as=half", "uniform+random retrain=scratch"))
    labels = [method.label for method in make_methods(config)]
    assert labels == ["uniform+random", "half", "uniform+random retrain=scratch", "dense-longer"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("srr", "srr+l1 as=again"), "is the same method as 'srr'"),
        (("srr", "srr distance=rms"), "is the same method as 'srr'"),
        (("srr as=x", "widest as=x"), "'x' is the name of two methods"),
        (("srr as=random",), "'random' is the name of a control"),
        (("srr as=dense-longer",), "'dense-longer' is the name of a control"),
    ],
)
def test_what_is_there_twice_is_refused(methods: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_methods(replace(TWO, methods=methods))


def test_a_cell_keeps_its_name_when_the_grid_grows() -> None:
    larger = replace(TWO, methods=(*TWO.methods, "srr+l2"), keep=(0.75, 0.5, 0.25), seeds=(7, 0, 1))
    before = {cell.name: cell for cell in make_cells(TWO, None)}
    after = {cell.name: cell for cell in make_cells(larger, None)}
    assert before.keys() < after.keys() and all(after[name] == cell for name, cell in before.items())


@given(st.sets(st.text(min_size=1), min_size=2, max_size=6))
def test_any_labels_give_file_names_of_their_own(labels: set[str]) -> None:
    """Also where capitals do not count."""
    names = [_file_name(label) for label in labels]
    assert len({name.lower() for name in names}) == len(labels)
    assert all(re.fullmatch(r"[a-z0-9+.-]{1,67}", name) for name in names)


def test_epochs_that_others_do_not_have_are_told() -> None:
    """A penalty is trained with; rounds train again; rewinding takes what is left of the dense training."""
    dense, fine_tune = TrainConfig(epochs=9, batch_size=64), TrainConfig(epochs=4)
    config = replace(TWO, dense=dense, fine_tune=fine_tune, sparse=SparseConfig(epochs=6), controls=False)
    extra = {
        "srr": 0,
        "srr+l2 sparse.penalty=group_lasso": 6,
        "widest rounds=3": 8,
        "widest fine_tune.epochs=5": 1,
        "widest retrain=scratch": 0,
        "widest retrain=lr-rewind": 0,
        "widest retrain=lr-rewind rewind_to=3ep rounds=2": 8,
        "widest retrain=weight-rewind rewind_to=0.5ep": 4.5,
        "widest retrain=lr-rewind rewind_to=20it": 9 - 20 / 18 - 4,
    }
    cells = make_cells(replace(config, methods=tuple(extra), keep=(0.5,), seeds=(0,)), None)
    images = steps.load_data(cells[0].config, Session(silent(), print))
    assert steps_per_epoch(images, dense) == 18
    for cell, wanted in zip(cells, extra.values(), strict=True):
        assert isinstance(cell.config, PruneConfig) and cell.usual_epochs == 4
        found = epochs_after_dense(cell.config, cell.config.retraining, images, cell.config.rounds)
        assert found - cell.usual_epochs == pytest.approx(wanted), cell.method


@pytest.mark.parametrize(
    ("settings", "usual"),
    [
        ({}, 4),
        ({"rounds": 3}, 12),
        ({"sparse": SparseConfig(epochs=6, penalty="bn_l1")}, 10),
        ({"retrain": "scratch"}, 4),
        ({"retrain": "lr-rewind"}, 4),
        ({"retrain": "weight-rewind", "rewind_to": "2.5ep", "rounds": 2}, 13),
        ({"retrain": "lr-rewind", "rewind_to": "0.4ep"}, 8.6),
        ({"retrain": "lr-rewind", "rewind_to": "1it"}, 4),
    ],
)
def test_what_all_methods_share_takes_no_extra_epochs(settings: dict[str, Any], usual: float) -> None:
    """Whole numbers are integers, as tables and files show them."""
    config = replace(TWO, dense=TrainConfig(epochs=9), fine_tune=TrainConfig(epochs=4), **settings)
    assert usual_epochs(config) == usual and isinstance(usual_epochs(config), type(usual))
    assert {cell.usual_epochs for cell in make_cells(replace(config, controls=False), None)} == {usual}


def test_the_record_says_what_a_cell_is() -> None:
    (cell,) = make_cells(CompareConfig(methods=("srr+l2 gamma=1 as=A",), keep=(0.5,), seeds=(3,), controls=False), None)
    assert cell.record("macs") == {
        "method": "A",
        "text": "srr+l2 gamma=1",
        "role": "method",
        "quantity": "macs",
        "keep": 0.5,
        "seed": 3,
        "settings": {"allocator": "srr", "selector": "l2", "gamma": "1"},
        "usual_epochs": 20,
    }


def test_flags_and_recipes_say_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("methods: [srr, 'srr+l2 gamma=1']\nkeep: [0.5]\nseeds: [4, 5]\nfine_tune: {epochs: 3}\n")
    flags = ["--methods", "srr", "srr+l2 gamma=1", "--keep", "0.5", "--seeds", "4", "5", "--epochs", "3"]
    assert parse(CompareConfig, ["--config", str(recipe)], "x") == parse(CompareConfig, flags, "x")


def test_methods_are_values() -> None:
    assert parse_method("srr") == Method("srr", "srr", {"allocator": "srr"})


RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("compare-*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_all_of_it_exists(path: Path) -> None:
    """All names are known, every cell is one that can be, and the file says what is published and what is ours."""
    config = parse(CompareConfig, ["--config", str(path), "--device", "cpu"], "x")
    cells = make_cells(config, config.weights)
    for cell in cells:
        KINDS[cell.method.kind].check(cell.config)
    text = " ".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    assert f"srr compare --config recipes/{path.name}" in text and "ours" in text


def test_the_embedded_recipe_has_a_grid_and_all_controls() -> None:
    """Six methods at three shares with two seeds."""
    path = next(path for path in RECIPES if path.stem == "compare-digits")
    cells = make_cells(parse(CompareConfig, ["--config", str(path)], "x"), None)
    assert Counter(cell.method.role for cell in cells) == {"method": 6 * 3 * 2, "control": 3 * 3 * 2 + 2}


@pytest.mark.parametrize(
    "settings", [{"methods": ("uniform+cpli+reconstruct", "uniform+l1")}, {"update": "reconstruct"}]
)
def test_a_method_with_an_update_has_its_control_from_scratch(settings: dict[str, Any]) -> None:
    """Nothing of an update would be left, so the control goes without; every cell is one that can be."""
    config = CompareConfig(**settings)
    scratch = next(method for method in make_methods(config) if method.label == "scratch")
    assert scratch.settings["update"] == "none"
    for cell in make_cells(config, "dense.safetensors"):
        steps.check(cell.config)


def test_a_sign_in_a_number_separates_nothing() -> None:
    method = parse_method("uniform+cpli:mu=1e+2+reconstruct")
    assert method.settings == {"allocator": "uniform", "selector": "cpli:mu=1e+2", "update": "reconstruct"}


def test_cells_that_leave_the_grid_are_hidden_and_come_back(tmp_path: Path) -> None:
    """A control that became a method under another name must not count twice; no finished cell is lost."""
    for name in ("srr", "uniform", ".other.7.partial"):
        (tmp_path / "cells" / name).mkdir(parents=True)

    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "cells").iterdir())

    running._set_aside(tmp_path, {"srr"})
    assert names() == [".other.7.partial", ".uniform.aside", "srr"]
    running._set_aside(tmp_path, {"srr", "uniform"})
    assert names() == [".other.7.partial", "srr", "uniform"]
