"""From the settings of a comparison to its cells: a method, a share to keep and a seed each."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

from srr_ext.artifacts import snapshot_name
from srr_ext.bottleneck.options import is_bottleneck
from srr_ext.comparison.sparse_cells import OF_SPARSIFY, SPARSIFY, check_scope, sparse_config, sparse_controls
from srr_ext.config import CompareConfig, PruneConfig, PruneOptions, SparsifyConfig

C = TypeVar("C", PruneConfig, SparsifyConfig)
Role = Literal["method", "control"]

# What every cell shares, so that its result tells of the method alone; and what the text of a method says by itself.
_SHARED = (
    "model weights data image_size download workers skip_corrupt device seed validation split_seed augment dense plan "
    "output keep_macs keep_params keep_channels keep_latency latency_batch rewind_weights resume shard"
).split()
_SAID = ("allocator", "selector", "update")

# What bottlenecks take; they have no plan, and so nothing else that says how to make one.
_OF_BOTTLENECKS = "fine_tune sparse calibration ignored retrain rewind_to rounds".split()
_SELECTOR_OF_BOTTLENECKS = "eigendamage"  # for the record

REWINDS = ("lr-rewind", "weight-rewind")
DENSE_LONGER = "dense-longer"  # the control that loses no channel, so that it has one target of its own


@dataclass(frozen=True)
class Method:
    """A way to prune.

    Attributes
    ----------
    label : str
        What the results call it.
    text : str
        What it was read from, without its label.
    settings : dict of str to str
        Settings of ``srr prune``, or of ``srr sparsify``, dotted where they are nested, that differ from those of the
        comparison.
    role : {"method", "control"}
        What is compared, or what it is compared with.
    kind : str
        What checks, runs and loads it, a key of ``srr_ext.comparison.kinds.KINDS``.
    """

    label: str
    text: str
    settings: dict[str, str] = field(default_factory=dict)
    role: Role = "method"
    kind: str = "prune"


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes
    ----------
    name : str
        Of its folder; the same whatever else is in the grid.
    method : Method
    keep : float
        Share to keep.
    seed : int
    config : PruneConfig or SparsifyConfig
        All that it takes to repeat it.
    usual_epochs : float
        Epochs from the dense network to the result with the settings that all methods share.
    """

    name: str
    method: Method
    keep: float
    seed: int
    config: PruneConfig | SparsifyConfig
    usual_epochs: float

    def record(self, quantity: str) -> dict[str, Any]:
        """Return what ``cell.json`` says: ``method`` is its label."""
        method = self.method
        return {
            "method": method.label,
            "text": method.text,
            "role": method.role,
            "quantity": quantity,
            "keep": self.keep,
            "seed": self.seed,
            "settings": method.settings,
            "usual_epochs": self.usual_epochs,
        }


def parse_method(text: str) -> Method:
    """Read a method.

    Parameters
    ----------
    text : str
        ``ALLOCATOR[+SELECTOR[+UPDATE]] [KEY=VALUE ...]``, each name with options as in ``global:normalise=l2``. A key
        is a setting of ``srr prune``, dotted where it is nested, or ``as``: the label, by default the text itself.
        In place of all three names ``bottleneck``, with options, or ``sparsify``, with settings of ``srr sparsify``.

    Returns
    -------
    Method
        Its names and values are not checked yet: `cell_config` does it.

    Raises
    ------
    ValueError
        No method, a word without ``=``, or a key that is shared by all methods or not for this one.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} has an open quotation mark") from error
    if not words or "=" in words[0].partition(":")[0]:
        raise ValueError(f"{text!r} must begin with ALLOCATOR[+SELECTOR[+UPDATE]], as in 'srr+l1'")
    kind, settings = _read_names(words[0])
    label = ""
    for word in words[1:]:
        key, equals, value = word.partition("=")
        key = key.replace("-", "_")
        if not equals or not value:
            raise ValueError(f"{text!r}: {word!r} must be KEY=VALUE, as in distance=euclidean")
        if key == "as":
            label = value
        elif key.partition(".")[0] in _SHARED:
            raise ValueError(f"{text!r}: {key} is the same for all methods of a comparison; set it for all")
        elif key in _SAID and kind != SPARSIFY:
            raise ValueError(f"{text!r}: write {key} as a part of ALLOCATOR+SELECTOR+UPDATE, not as a setting")
        elif key in settings:
            raise ValueError(f"{text!r}: {key} is there twice")
        elif kind == "bottleneck" and key.partition(".")[0] not in _OF_BOTTLENECKS:
            raise ValueError(
                f"{text!r}: {key} is no setting of bottlenecks, which take {', '.join(_OF_BOTTLENECKS)}, and options "
                "as in bottleneck:basis=patches,labels=given,floor=0.05"
            )
        elif kind == SPARSIFY and key.partition(".")[0] not in OF_SPARSIFY:
            raise ValueError(
                f"{text!r}: {key} is no setting of sparsify in a comparison, which takes {', '.join(OF_SPARSIFY)}; how "
                "much stays is said by --keep"
            )
        else:
            settings[key] = value
    plain = shlex.join(word for word in words if not word.startswith("as="))
    return Method(label or plain, plain, settings, kind=kind)


def _read_names(word: str) -> tuple[str, dict[str, str]]:
    """Return the kind of a method that begins with a word, and what the word says of its settings."""
    names = re.split(r"\+(?![0-9])", word)  # the sign in 1e+2 separates nothing
    if len(names) > len(_SAID) or not all(names):
        raise ValueError(f"{word!r} must be ALLOCATOR[+SELECTOR[+UPDATE]], as in 'srr+l1'")
    if names[0].partition(":")[0] == SPARSIFY:
        if word != SPARSIFY:
            raise ValueError(f"{word!r}: sparsify goes alone; settings come after it, as in 'sparsify score=gradient'")
        return SPARSIFY, {}
    if not is_bottleneck(names[0]):
        return "prune", dict(zip(_SAID, names, strict=False))
    if len(names) > 1:
        raise ValueError(f"{word!r}: bottleneck goes alone, without selector and update; it removes no channels")
    return "bottleneck", {"allocator": word}


def make_methods(config: CompareConfig) -> list[Method]:
    """Return the methods, then the controls that are not among them.

    Raises
    ------
    ValueError
        A method or a label that is there twice, or a text that is none.
    """
    methods = [parse_method(text) for text in config.methods]
    taken: dict[str, Method] = {}
    for method in methods:
        twin = next((other for other in taken.values() if _same(config, method, other)), None)
        if twin is not None:
            raise ValueError(f"{method.text!r} is the same method as {twin.text!r}; leave one out")
        if method.label == DENSE_LONGER:
            raise ValueError(f"{method.label!r} is the name of a control; give the method another by as=NAME")
        if method.label in taken:
            raise ValueError(f"{method.label!r} is the name of two methods; give one another by as=NAME")
        taken[method.label] = method
    for control in _controls(config, methods[0]) if config.controls else ():
        if not any(_same(config, control, method) for method in methods):
            if control.label in taken:
                raise ValueError(f"{control.label!r} is the name of a control; give the method another by as=NAME")
            methods.append(control)
    return methods


def make_cells(config: CompareConfig, weights: str | None) -> list[Cell]:
    """Return the grid, one seed after the other, so that one of all methods is there as soon as can be.

    Parameters
    ----------
    config : CompareConfig
        Everything the user decides.
    weights : str, optional
        Checkpoint of the dense network.

    Raises
    ------
    ValueError
        A method that cannot be, or is there twice; the message names it.
    """
    cells, methods, usual = [], make_methods(config), usual_epochs(config)
    for seed in config.seeds:
        for method in methods:
            for keep in (1.0,) if method.label == DENSE_LONGER and method.role == "control" else config.keep:
                settings = cell_config(config, method, keep, seed, weights)
                name = f"{_file_name(method.label)}_{config.quantity}{keep!r}_seed{seed}"
                cells.append(Cell(name, method, keep, seed, settings, usual))
    return cells


def cell_config(
    config: CompareConfig, method: Method, keep: float, seed: int, weights: str | None
) -> PruneConfig | SparsifyConfig:
    """Return the configuration of one cell.

    Raises
    ------
    ValueError
        A setting that does not exist or a value that it does not take.
    """
    own: dict[str, Any] = {"weights": weights, "seed": seed}
    own["split_seed"] = config.seed if config.split_seed is None else config.split_seed
    if method.kind == SPARSIFY:
        plain: PruneConfig | SparsifyConfig = replace(sparse_config(config, keep), **own)
    else:
        shared = {entry.name: getattr(config, entry.name) for entry in fields(PruneOptions)}
        if method.kind == "bottleneck":
            shared["selector"] = _SELECTOR_OF_BOTTLENECKS
        plain = PruneConfig(**shared | own | {f"keep_{config.quantity}": keep})
    try:
        made = _with_settings(plain, method.settings, "sparsify" if method.kind == SPARSIFY else "prune")
        if isinstance(made, SparsifyConfig):
            check_scope(made)
        return _rewinding(config, method, made)
    except ValueError as error:
        raise ValueError(f"{method.text!r}: {error}") from error


def _rewinding(config: CompareConfig, method: Method, made: C) -> C:
    """Give a cell the moment and the weights to rewind to that the comparison has, if it rewinds."""
    if made.retrain not in REWINDS:  # the moment is that of the others
        return replace(made, rewind_to=made.rewind_to if "rewind_to" in method.settings else None, rewind_weights=None)
    begin, weights = made.retraining.begin, None
    if made.retrain == "weight-rewind" and config.weights is not None:
        weights = config.rewind_weights
    elif made.retrain == "weight-rewind" and made.weights is not None:  # trained here, with all that is wanted of it
        weights = str(Path(made.weights).with_name(snapshot_name(begin)))
    return replace(made, rewind_weights=weights)


def _controls(config: CompareConfig, first: Method) -> Iterator[Method]:
    """Yield what shows whether a method is worth its trouble, trained as it is."""
    its = cell_config(config, first, config.keep[0], config.seeds[0], None)
    # New weights are trained once, for as long as the first method is in all of its rounds, if their number is known.
    rounds = its.rounds if isinstance(its, PruneConfig) else 1
    whole = math.ceil(rounds * _epochs_of_round(its))
    epochs = str(whole) if whole != its.fine_tune.epochs else None
    if isinstance(its, SparsifyConfig):
        for label, changes in sparse_controls(first.settings, epochs):
            yield _control(label, first, changes)
    else:
        keys = () if its.retrain == "scratch" else ("retrain", "rewind_to")
        trained = {key: first.settings[key] for key in keys if key in first.settings}
        yield _control("random", parse_method("uniform+random"), trained)
        yield _control("uniform", parse_method("uniform+l1"), trained)
        anew: dict[str, str | None] = {"retrain": "scratch", "rewind_to": None}
        if its.update != "none":  # of which nothing would be left
            anew |= {"selector": its.selector, "update": "none"}
        if rounds > 1:
            anew["rounds"] = "1"
        yield _control("scratch", first, anew if epochs is None else anew | {"fine_tune.epochs": epochs})
    nothing: dict[str, str | None] = {} if config.sparse.penalty == "none" else {"sparse.penalty": "none"}
    if its.retrain in REWINDS:  # weights rewound would be trained to the dense network once more
        nothing |= {"retrain": "lr-rewind", "rewind_to": first.settings.get("rewind_to")}
    elif config.retrain != "finetune":
        nothing["retrain"] = "finetune"
    yield _control(DENSE_LONGER, parse_method("uniform+l1"), nothing)


def _control(label: str, base: Method, changes: Mapping[str, str | None]) -> Method:
    """Make a control of a method and other settings; None takes one away."""
    merged = {**base.settings, **changes}
    settings = {key: value for key, value in merged.items() if value is not None}
    names = "+".join(settings[name] for name in _SAID if name in settings) or base.kind
    rest = [f"{key}={value}" for key, value in settings.items() if key not in _SAID]
    return Method(label, shlex.join([names, *rest]), settings, "control", base.kind)


def _same(config: CompareConfig, one: Method, other: Method) -> bool:
    """Whether two methods do the same, whatever they are called."""
    if DENSE_LONGER in (one.label, other.label):  # the only one that differs by its target
        return one.label == other.label
    first, second = (cell_config(config, method, 0.5, 0, None) for method in (one, other))
    return one.kind == other.kind and first == second


def usual_epochs(config: CompareConfig) -> float:
    """Count the epochs from the dense network to the result with the settings that all methods share."""
    sparse = 0 if config.sparse.penalty == "none" else config.sparse.epochs
    return as_count(sparse + config.rounds * _epochs_of_round(config))


def as_count(number: float | Fraction) -> float:
    """Return a number of epochs: an integer if it is one, else rounded so that equal ones are."""
    rounded = round(float(number), 6)
    return int(rounded) if rounded == int(rounded) else rounded


def _epochs_of_round(config: PruneOptions | SparsifyConfig) -> Fraction:
    """Count the epochs of one training after pruning; rewinding to a step counts as fine-tuning.

    How many steps an epoch has is known with the images alone.
    """
    if config.retrain in REWINDS and (begin := config.retraining.begin).unit == "ep":
        return config.dense.epochs - begin.count
    return Fraction(config.fine_tune.epochs)


def _file_name(label: str) -> str:
    """Return a name that any file system takes, another one for every label."""
    plain = re.sub(r"[^a-z0-9+.-]+", "-", label.lower())[:60].lstrip(".-")
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def _with_settings(config: Any, settings: Mapping[str, str], command: str) -> Any:
    """Return the configuration with other values, given as text."""
    kinds = get_type_hints(type(config))
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, str]] = {}
    for key, text in settings.items():
        head, dot, rest = key.partition(".")
        if head not in kinds or bool(dot) != is_dataclass(getattr(config, head, None)):
            raise ValueError(f"srr {command} has no setting {key}; srr {command} --help lists them, as --{key}")
        if dot:
            nested.setdefault(head, {})[rest] = text
        else:
            values[key] = _read(key, text, kinds[key])
    for head, inner in nested.items():
        values[head] = _with_settings(getattr(config, head), inner, command)
    return replace(config, **values)


@cache  # as every cell has the same few
def _read(key: str, text: str, kind: Any) -> Any:
    """Turn the text of a setting into a value of its type."""
    from jsonargparse import ArgumentError, ArgumentParser

    if get_origin(kind) is tuple and not text.startswith("["):
        text = f"[{text}]"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        return parser.parse_args([f"--value={text}"]).value
    except ArgumentError as error:
        raise ValueError(f"{text!r} is not a value that {key} takes") from error
