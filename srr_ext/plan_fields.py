"""What the fields of a plan file may hold; a file may come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

WIDEST = 1 << 31  # channels of a layer; what a file may claim


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_counts(value: Any, whole: str, part: str) -> bool:
    """Whether a value says how many there were and are: 0 < part <= whole."""
    right = _maps(value, _is_int) and value.keys() == {whole, part}
    return right and 0 < value[part] <= value[whole] < 1 << 63


def _maps(value: Any, entry: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(entry(item) for item in value.values())


def _is_width(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else (0, 0)
    return all(side is None or (_is_int(side) and 0 < side < WIDEST) for side in sides)


FIELDS: dict[str, Callable[[Any], bool]] = {  # what each field of a plan file may hold
    "layers": lambda value: isinstance(value, dict),
    "allocator": lambda value: isinstance(value, str),
    "selector": lambda value: isinstance(value, str),
    "target": lambda value: _maps(value, _is_number),
    "gamma": lambda value: value is None or _is_number(value),
    "seed": _is_int,
    "options": lambda value: isinstance(value, dict),
    "groups": lambda value: _maps(value, lambda sizes: _is_counts(sizes, "size", "kept")),
    "cost": lambda value: _maps(value, lambda counts: _is_counts(counts, "dense", "pruned")),
    "widths": lambda value: _maps(value, _is_width),
    "info": lambda value: isinstance(value, dict),
    "fingerprint": lambda value: isinstance(value, str),
}
