"""Single weights and rewinding in ``srr compare``: how methods are written, controls, and what is refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused
from comparing import save_weights
from hypothesis import example, given
from hypothesis import strategies as st

from srr_ext import models
from srr_ext.cli.parsing import as_dict, parse
from srr_ext.comparison.grid import Method, cell_config, make_cells, make_methods, parse_method
from srr_ext.comparison.kinds import KINDS
from srr_ext.comparison.rewinding import moments
from srr_ext.comparison.sparse_cells import OF_SPARSIFY, compression_of
from srr_ext.config import CompareConfig, SparsifyConfig
from srr_ext.cost import Target
from srr_ext.sparsity import prunable, weights_to_keep
from srr_ext.sparsity.schedule import Gradual
from srr_ext.training import SparseConfig, TrainConfig

WR = "sparsify retrain=weight-rewind"
SMALL = CompareConfig(
    methods=("sparsify retrain=lr-rewind", WR, "srr"),
    quantity="params",
    keep=(0.5, 0.3),
    seeds=(0, 1),
    dense=TrainConfig(epochs=6),
    fine_tune=TrainConfig(epochs=2),
)


def settings(text: str, config: CompareConfig = SMALL, weights: str | None = "dense/dense.safetensors") -> Any:
    return cell_config(config, parse_method(text), 0.5, 1, weights)


def controls(config: CompareConfig) -> dict[str, Method]:
    return {method.label: method for method in make_methods(config) if method.role == "control"}


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


# --- how methods are written


def test_the_method_is_read() -> None:
    """Its kind and its settings; names that only begin like it are allocators."""
    assert parse_method("sparsify") == Method("sparsify", "sparsify", {}, kind="sparsify")
    text = "sparsify score=gradient schedule=gradual gradual.every=5 rewind-to=3ep retrain=lr-rewind as=G"
    method = parse_method(text)
    assert (method.label, method.kind, method.text) == ("G", "sparsify", text[:-5].replace("rewind_to", "rewind-to"))
    wanted = {"score": "gradient", "schedule": "gradual", "gradual.every": "5", "rewind_to": "3ep"}
    assert method.settings == wanted | {"retrain": "lr-rewind"}
    assert parse_method("sparsifying").kind == "prune"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsify+l1", "'sparsify+l1': sparsify goes alone; settings come after it"),
        ("sparsify:score=gradient", "sparsify goes alone"),
        *(
            (f"sparsify {key}=1", f"{key} is no setting of sparsify in a comparison, which takes score, scope")
            for key in ("density", "compression", "masks", "floor", "selector", "update", "rounds")
        ),
        *(
            (f"sparsify {key}=1", f"{key} is the same for all")
            for key in ("seed", "dense.lr", "rewind_weights", "resume")
        ),
        ("sparsify score", "'score' must be KEY=VALUE"),
        ("sparsify rate=1 rate=2", "rate is there twice"),
    ],
)
def test_text_that_is_no_such_method_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_method(text)


def test_every_setting_that_is_named_exists() -> None:
    assert set(OF_SPARSIFY) <= {entry.name for entry in fields(SparsifyConfig)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsify scope=2:4", "scope must be global or layerwise in a comparison"),
        ("sparsify scope=wide", "scope must be global, layerwise or N:M"),
        ("sparsify rate=x", "'x' is not a value that rate takes"),
        ("sparsify gradual.speed=1", "srr sparsify has no setting speed; srr sparsify --help"),
        ("sparsify gradual.every=0", "every must be at least 1"),
        ("sparsify retrain=scratch", "'scratch' is not a value that retrain takes"),
        ("sparsify retrain=weight-rewind rewind_to=7ep", "rewind_to must be within the 6 epochs of the dense network"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        settings(text)
    assert text in str(error.value)


def test_a_cell_has_all_that_its_method_says_and_all_that_others_share() -> None:
    config = replace(SMALL, seed=5, ignored=("stem",), calibration=128, sparse=SparseConfig(epochs=3), floor=0.3)
    cell = settings(
        "sparsify score=gradient schedule=gradual gradual.end=0.75 fine_tune.lr=0.5 classifier=true", config
    )
    assert cell == SparsifyConfig(
        weights="dense/dense.safetensors", seed=1, split_seed=5, dense=config.dense, calibration=128,
        sparse=config.sparse, fine_tune=TrainConfig(epochs=2, lr=0.5), compression=2.0, score="gradient",
        schedule="gradual", gradual=Gradual(end=0.75), classifier=True, ignored=("stem",),
    )  # fmt: skip
    anew = replace(config, retrain="scratch")
    assert settings("sparsify", anew).retrain == "reinit" and settings("srr", anew).retrain == "scratch"
    again = parse(SparsifyConfig, [], "x")
    assert as_dict(settings("sparsify", CompareConfig(quantity="params"), None)) == as_dict(
        replace(again, seed=1, split_seed=0, compression=2.0)
    )


@given(st.integers(1, 10**6), st.integers(0, 6), st.integers(1, 10**9))
@example(3, 1, 10)
@example(7, 1, 10**9)
def test_a_share_and_its_compression_leave_the_same_number(numerator: int, digits: int, total: int) -> None:
    """With both read as decimals; one too many or too few would show in a float's last digit."""
    keep = min(numerator, 10**digits) / 10**digits
    compression = compression_of(keep)
    assert compression >= 1
    left = math.floor(total / Fraction(repr(compression)))
    assert left == Target("params", keep).limit(total)


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.7, 0.3, 0.1, 0.03125, 1 / 3, 1 / 7])
def test_the_parameters_that_stay_are_exactly_the_share(keep: float) -> None:
    """Of a real network; to one weight for the decimals of a fraction that has none."""
    net = models.create("digits_cnn").eval()
    tensors = prunable(net, torch.zeros(1, 1, 8, 8))
    total = sum(parameter.numel() for parameter in net.parameters())
    few = len(repr(keep)) <= 8
    gone = sum(t.numel() for t in tensors.values()) - weights_to_keep(net, tensors, compression=compression_of(keep))
    assert abs(total - gone - Target("params", keep).limit(total)) <= (0 if few else 1)


# --- controls


def test_the_controls_of_a_method_that_removes_weights() -> None:
    """Each differs from it in one thing: choice, layers, weights; and the dense network is trained on likewise."""
    first = "sparsify score=gradient schedule=iterative rate=0.4 retrain=weight-rewind rewind_to=1ep as=first"
    found = controls(replace(SMALL, methods=(first,)))
    assert {label: method.text for label, method in found.items()} == {
        "random": "sparsify score=random schedule=iterative rate=0.4 retrain=weight-rewind rewind_to=1ep",
        "uniform": "sparsify schedule=iterative rate=0.4 retrain=weight-rewind rewind_to=1ep scope=layerwise",
        "scratch": "sparsify score=gradient retrain=reinit fine_tune.epochs=5",
        "dense-longer": "uniform+l1 retrain=lr-rewind rewind_to=1ep",
    }
    config = replace(SMALL, methods=(first,))
    for method in found.values():
        assert cell_config(config, method, 0.5, 1, None) == settings(method.text, config, None)
    for cell in make_cells(config, None):
        KINDS[cell.method.kind].check(cell.config)


def test_controls_that_are_listed_are_not_repeated() -> None:
    texts = (
        "sparsify",
        "sparsify score=random as=chance",
        "sparsify scope=layerwise",
        "sparsify retrain=reinit as=new",
    )
    assert [method.label for method in make_methods(replace(SMALL, methods=texts))] == [
        "sparsify", "chance", "sparsify scope=layerwise", "new", "dense-longer",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="is the same method as 'sparsify'"):
        make_methods(replace(SMALL, methods=("sparsify", "sparsify score=magnitude as=again")))


@pytest.mark.parametrize("own", [True, False])
def test_the_controls_of_channels_that_are_rewound(own: bool) -> None:
    """All are trained as the first method is, be that its own setting or that of all."""
    rewound = {"retrain": "weight-rewind", "rewind_to": "1ep"}
    text = "srr retrain=weight-rewind rewind_to=1ep" if own else "srr"
    config = replace(SMALL, methods=(text,), **({} if own else rewound))  # type: ignore[arg-type]
    configs = {label: settings(method.text, config) for label, method in controls(config).items()}
    for label in ("random", "uniform"):
        assert (configs[label].retrain, configs[label].rewind_to) == ("weight-rewind", "1ep")
        assert configs[label].rewind_weights == "dense/dense-1ep.safetensors"
    assert (configs["scratch"].retrain, configs["scratch"].rewind_to) == ("scratch", None)
    assert configs["scratch"].fine_tune.epochs == 5, "as long as the dense training and what is repeated of it"
    assert (configs["dense-longer"].retrain, configs["dense-longer"].rewind_to) == ("lr-rewind", "1ep")
    for cell in make_cells(config, None):
        KINDS[cell.method.kind].check(cell.config)


# --- rewinding


def test_each_cell_is_told_which_weights_to_rewind_to() -> None:
    """Beside a dense network that is trained here; another's come with it; what does not rewind gets neither."""
    texts = (WR, "srr retrain=weight-rewind rewind_to=0.5ep", "sparsify retrain=lr-rewind", "sparsify")
    found = {text: settings(text) for text in texts}
    assert {text: cell.rewind_weights for text, cell in found.items()} == {
        texts[0]: "dense/dense-4ep.safetensors",
        texts[1]: "dense/dense-0.5ep.safetensors",
        texts[2]: None,
        texts[3]: None,
    }
    assert settings(WR, weights=None).rewind_weights is None
    given = replace(SMALL, weights="net.th", rewind_weights="early.th", rewind_to="30it")
    cells = {text: settings(text, given, "net.th") for text in texts}
    assert [cell.rewind_weights for cell in cells.values()] == ["early.th", "early.th", None, None]
    assert [cell.rewind_to for cell in cells.values()] == ["30it", "0.5ep", "30it", None]
    assert moments(make_cells(replace(SMALL, methods=texts), None)) == ("4ep", "0.5ep")
    assert moments(make_cells(replace(SMALL, methods=texts[2:]), None)) == ()


REWINDING = ("--device", "cpu", "--quantity", "params", "--keep", "0.5", "--methods")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((WR, "--quantity", "macs"), "--quantity: must be params where sparsify is among the methods"),
        (("sparsify", "--quantity", "channels"), "--quantity: must be params where sparsify"),
        (("sparsify", "--update", "reconstruct"), "--update: must be none where sparsify is among the methods"),
        (("sparsify", "--rounds", "2"), "--rounds: must be 1 where sparsify is among the methods"),
        (("sparsify scope=2:4",), "--methods: 'sparsify scope=2:4': scope must be global or layerwise"),
        (("sparsify masks=x",), "--methods: 'sparsify masks=x': masks is no setting of sparsify"),
        (("sparsify score=x",), "--methods: 'sparsify score=x': --score: no score is called 'x'"),
        (("sparsify rate=2",), "--methods: 'sparsify rate=2': --rate: must be in (0, 1]"),
        (
            ("sparsify schedule=iterative", "--retrain", "scratch"),
            "--methods: 'sparsify schedule=iterative': --retrain: ",
        ),
        (("sparsify rewind_to=1ep",), "--methods: 'sparsify rewind_to=1ep': --rewind-to: goes with --retrain"),
        (("sparsify ignored=nowhere",), "--keep: 'sparsify ignored=nowhere' at 0.5: "),
        (("sparsify", "--keep", "0.5", "0.001"), "--keep: 'sparsify' at 0.001: compression 1000.0 is out of reach"),
        (("sparsify", "--rewind-to", "1ep"), "--rewind-to: is 1ep, but no method that rewinds leaves the moment to it"),
        ((WR, "--rewind-to", "21ep"), f"--methods: '{WR}': rewind_to must be within the 20 epochs of the dense"),
        ((f"{WR} rewind_to=21ep",), f"--methods: '{WR} rewind_to=21ep': rewind_to must be within the 20 epochs"),
        ((WR, "--epochs", "21"), f"--methods: '{WR}': rewind_to must be given: 21 epochs after pruning are more"),
        ((WR + " rewind_to=9999it",), f"--methods: '{WR} rewind_to=9999it': there is no moment 9999it"),
        (("srr retrain=lr-rewind rewind_to=9999it",), "--methods: 'srr retrain=lr-rewind rewind_to=9999it': there is"),
        ((WR, "--weights", "net.th"), f"--methods: '{WR}': --rewind-weights: is needed beside --weights"),
        ((WR, "--rewind-weights", "net.th"), "--rewind-weights: goes with --weights; a network that is trained here"),
        (
            ("sparsify", "--weights", "net.th", "--rewind-weights", "net.th"),
            "--rewind-weights: is the network at one moment of its training, but no method rewinds weights",
        ),
        (
            (WR, f"{WR} rewind_to=3ep", "--weights", "net.th", "--rewind-weights", "net.th"),
            "--rewind-weights: is the network at one moment of its training, but methods rewind weights to 0ep and 3ep",
        ),
        ((WR, "--weights", "net.th", "--rewind-weights", "nowhere.th"), "--rewind-weights: "),
        ((WR, "--weights", "net.th", "--rewind-weights", "."), "--rewind-weights: . is a folder"),
        (("sparsify", "bottleneck", "--launcher", "env"), "--launcher: starts srr prune, which does not know 'bottlen"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    flags: tuple[str, ...], line: str, in_empty_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag is named, and the method where it is one of them; nothing is written."""
    save_weights(Path("net.th"))
    found = refused(capsys, "compare", *REWINDING, *flags, "--output", "grid")
    assert found.startswith(line) and not Path("grid").exists()


def test_a_moment_that_the_dense_training_did_not_keep_is_refused(
    in_empty_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison that goes on with a method more; those whose weights are there go on."""
    folder, more = Path("grid"), f"{WR} rewind_to=2ep"
    config = parse(CompareConfig, [*REWINDING, WR], "x")
    (folder / "dense").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(as_dict(config)))
    (folder / "dense" / "dense-0ep.safetensors").touch()
    before = sorted(folder.rglob("*"))
    found = refused(capsys, "compare", *REWINDING, WR, more, "--output", "grid")
    wanted = f"--methods: '{more}' rewinds weights to 2ep, which were not kept when grid/dense was trained; name a new"
    assert found.startswith(wanted) and sorted(folder.rglob("*")) == before
    found = refused(capsys, "compare", *REWINDING, WR, "sparsify scope=no", "--output", "grid")
    assert "scope must be" in found
