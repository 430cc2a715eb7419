"""The options of bottlenecks, and their name where methods are texts: ``bottleneck:basis=patches,floor=0.1``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from srr_ext.bottleneck.layer import Basis
from srr_ext.criteria.kfac import Labels
from srr_ext.registry import with_options

NAME = "bottleneck"
DEFAULT_FLOOR = 0.03  # the authors' one-pass runs remove at most 97 % of a layer's directions


@dataclass(frozen=True)
class Options:
    """How bottlenecks are made, whatever their target.

    Attributes
    ----------
    basis, labels, floor
        See `srr_ext.bottleneck.make_bottlenecks`.

    Raises
    ------
    TypeError, ValueError
        If one is not among what `make_bottlenecks` takes.
    """

    basis: Basis = "channels"
    labels: Labels = "sampled"
    floor: float = DEFAULT_FLOOR

    def __post_init__(self) -> None:
        """Check the options."""
        if self.basis not in get_args(Basis):
            raise ValueError(f"basis must be one of {', '.join(get_args(Basis))}, got {self.basis!r}")
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {', '.join(get_args(Labels))}, got {self.labels!r}")
        if isinstance(self.floor, bool) or not isinstance(self.floor, (int, float)):
            raise TypeError(f"floor must be a number in [0, 1), got {self.floor!r}")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor is a share of each layer's directions and must be in [0, 1), got {self.floor}")


def is_bottleneck(method: str) -> bool:
    """Whether the text of a method names this one."""
    return method.partition(":")[0] == NAME


def read_options(method: str) -> Options:
    """Read ``bottleneck:key=value,key=value``.

    Raises
    ------
    ValueError
        An option that does not exist, is set twice, or does not take that value.
    """
    _, colon, text = method.partition(":")
    return with_options(Options(), text, "method", NAME) if colon else Options()
