"""What a stranger might put into a file: values that no field expects, pickles that run code, headers that lie."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("SRR_FUZZ", "0"))  # of `make fuzz`; 0: a few, the same in every run


def fuzz(quick: int) -> Callable[[Any], Any]:
    """Return hypothesis settings: ``quick`` examples, always the same ones, or as many others as `make fuzz` wants."""
    return settings(
        max_examples=EXAMPLES or quick,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


SCALARS = st.sampled_from(
    [None, True, -1, 0, 1, 7, 10**12, 2**63, 10**400, -(10**30), 0.5, 1e308, float("inf"), float("nan"), "", "x",
     "a.b:c", "../../etc/passwd", "/dev/zero", "\x1b[2J\n", "\ud800", "\u00e9" * 50, "0" * 3000]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List where a value can be replaced: itself, and all that it holds."""
    found = [path]
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        found += [place for key, item in inner for place in places(item, (*path, key))]
    return found


def changed(value: Any, path: tuple[Any, ...], new: Any, *, remove: bool = False) -> Any:
    """Return a copy in which the value at a place is another, or is not there."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if remove and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new, remove=remove)
    return copy


@st.composite
def mutations(draw: st.DrawFn, value: Any) -> Any:
    """Draw a value in which one to three parts were replaced, removed or added."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(value)))
        value = changed(value, place, draw(VALUES), remove=draw(st.booleans()))
        if isinstance(value, dict) and draw(st.booleans()):
            value = {**value, draw(st.text(max_size=5)): draw(VALUES)}
    return value


def texts(value: Any) -> st.SearchStrategy[str]:
    """Draw JSON text: of such a value, or cut short, or with letters exchanged, or none at all."""
    whole = json.dumps(value)
    cut = st.integers(0, len(whole)).map(lambda n: whole[:n])
    letter = st.tuples(st.integers(0, len(whole) - 1), st.characters())
    torn = letter.map(lambda drawn: whole[: drawn[0]] + drawn[1] + whole[drawn[0] + 1 :])
    deep = st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, '{"layers":' + "[" * 990 + "]" * 990 + "}"])
    return mutations(value).map(json.dumps) | cut | torn | deep | st.text(max_size=20)


class Payload:
    """A pickle of it makes a file, if anything unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickles(marker: Path) -> dict[str, Callable[[Path], object]]:
    """Return what writes such a pickle in every form in which weights come."""
    state = {"weight": torch.zeros(2), "extra": Payload(marker)}
    return {
        "pickle": lambda path: path.write_bytes(pickle.dumps(Payload(marker))),
        "text": lambda path: path.write_bytes(pickle.dumps(Payload(marker), protocol=0)),
        "zip": lambda path: torch.save(state, path),
        "legacy": lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
    }


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


LIARS = {
    "10^12 floats in 4 bytes": safetensors({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, b"0000"),
    "a product that overflows": safetensors({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}),
    "10^12 rows of nothing": safetensors({"a": {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}}),
    "beyond the file": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [10**12, 10**12 + 4]}}),
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header that nests": safetensors(b'{"a":' * 50_000),
    "nothing": b"",
    "no tensor": safetensors({}),
}
