"""Single weights as what a method of ``srr compare`` removes: its settings, its compression, its controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from fractions import Fraction

from srr_ext.config import CompareConfig, RetrainOptions, SparsifyConfig
from srr_ext.sparsity import parse_scope

SPARSIFY = "sparsify"  # the first word of such a method, and its kind

# What such a method takes; how many weights stay is the comparison's to say.
OF_SPARSIFY = (
    "score scope schedule rate gradual retrain rewind_to classifier ignored sparse fine_tune calibration"
).split()
_WHEN = ("schedule", "rate", "gradual")


def sparse_config(config: CompareConfig, keep: float) -> SparsifyConfig:
    """Return the configuration of a cell before the settings of its method.

    Parameters
    ----------
    config : CompareConfig
        What all cells share. Training anew is called ``reinit`` here.
    keep : float
        Share of the parameters to keep, all of them counted.

    Returns
    -------
    SparsifyConfig

    Raises
    ------
    ValueError
        Shares of something else than parameters, or settings of the whole comparison that have no meaning for single
        weights; the message begins with the name of the field.
    """
    wanted = {
        "quantity": ("params", "as single weights are counted"),
        "update": ("none", "as no layer gets smaller; name it as a part of the others, ALLOCATOR+SELECTOR+UPDATE"),
        "rounds": (1, "which goes in rounds by schedule=iterative; write rounds after the others"),
    }
    for name, (value, why) in wanted.items():
        if (given := getattr(config, name)) != value:
            raise ValueError(f"{name} must be {value} where sparsify is among the methods, {why}, but is {given}")
    shared = {entry.name: getattr(config, entry.name) for entry in fields(RetrainOptions)}
    retrain = "reinit" if config.retrain == "scratch" else config.retrain
    return SparsifyConfig(**shared, ignored=config.ignored, retrain=retrain, compression=compression_of(keep))


def check_scope(config: SparsifyConfig) -> None:
    """Refuse patterns, which say themselves how many weights stay.

    Raises
    ------
    ValueError
        The scope is one, or is none at all.
    """
    if not isinstance(parse_scope(config.scope), str):
        raise ValueError(
            f"scope must be global or layerwise in a comparison, as N:M says itself how many weights stay, but is "
            f"{config.scope}"
        )


def compression_of(keep: float) -> float:
    r"""Return the compression that leaves as many parameters as a share of them.

    Parameters
    ----------
    keep : float
        Share to keep, in (0, 1]; it counts as the decimal it is written as.

    Returns
    -------
    float
        1 / keep, never rounded up. For up to a thousand million parameters :math:`P` and shares of up to six decimals
        :math:`\lfloor P / compression \rfloor = \lfloor keep \cdot P \rfloor`; for others it may be one more.

    Examples
    --------
    >>> compression_of(0.25)
    4.0
    >>> compression_of(0.3)  # 1 / 0.3 is rounded up, which would leave 2 of 10
    3.333333333333333
    """
    share, found = Fraction(repr(keep)), 1 / keep
    while Fraction(repr(found)) * share > 1:
        found = math.nextafter(found, 0.0)
    return found


def sparse_controls(settings: Mapping[str, str], epochs: str | None) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the controls of a method that removes single weights, as changes of its settings; None takes one away.

    Parameters
    ----------
    settings : mapping of str to str
        Of the method.
    epochs : str, optional
        How many more epochs than the dense network its weights are trained for, if not those of the fine-tuning.
    """
    yield "random", {"score": "random"}
    yield "uniform", {"score": None, "scope": "layerwise"}
    # New weights are masked once, as there are none to go on from, and trained for as long as both networks together.
    once: dict[str, str | None] = {key: None for key in settings if key.partition(".")[0] in (*_WHEN, "rewind_to")}
    yield "scratch", once | {"retrain": "reinit"} | ({} if epochs is None else {"fine_tune.epochs": epochs})
