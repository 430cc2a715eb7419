"""Names that set options, and names of what is registered nowhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from srr_ext.allocators import GlobalRanking, get_allocator, global_ranking
from srr_ext.registry import Registry

Method = Callable[..., Any]


@dataclass(frozen=True)
class Threshold:
    """A method with an option of every kind."""

    share: float = 0.5
    steps: int = 3
    signed: bool = False
    by: Literal["mean", "max"] = "mean"
    label: str = field(default="")

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self.share}")

    def __call__(self) -> float:
        return self.share


@pytest.fixture
def registry() -> Registry[Method]:
    made: Registry[Method] = Registry("method", "srr_ext.tests")
    made.register("threshold")(Threshold())
    made.register("plain")(lambda: 0.0)
    return made


def test_a_name_sets_options_of_their_types(registry: Registry[Method]) -> None:
    wanted = Threshold(0.25, 7, True, "max", "a b")
    assert registry.get("threshold:share=0.25,steps=7,signed=true,by=max,label=a b") == wanted
    assert registry.get("threshold: share = 1e-1 , signed = false") == Threshold(0.1)
    assert registry.get("threshold:steps=4") == Threshold(steps=4)


def test_options_leave_what_is_registered_as_it_is(registry: Registry[Method]) -> None:
    plain = registry.get("threshold")
    assert registry.get("threshold:share=1") == Threshold(1.0)
    assert registry.get("threshold") is plain == Threshold()
    assert registry.available() == ["plain", "threshold"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "threshold:shares=1",
            "method 'threshold' has no option 'shares=1'; its options: share=..., steps=..., signed=",
        ),
        ("threshold:share=", "option 'share' of method 'threshold' must be a number of type float, got ''"),
        ("threshold:share=half", "option 'share' of method 'threshold' must be a number of type float, got 'half'"),
        ("threshold:share=2", r"share must be in \[0, 1\], got 2.0"),
        ("threshold:steps=1.5", "option 'steps' of method 'threshold' must be a number of type int, got '1.5'"),
        ("threshold:signed=yes", "option 'signed' of method 'threshold' must be true or false, got 'yes'"),
        ("threshold:share=1,,steps=2", "has no option ''"),
        ("threshold:share=1,steps", "has no option 'steps'"),
        ("threshold:", "has no option ''"),
        ("plain:share=1", "method 'plain' has no option 'share=1'; its options: none"),
        ("treshold:share=1", "no method is called 'treshold'; nearest: threshold"),
    ],
)
def test_options_that_do_not_fit_are_refused(registry: Registry[Method], name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.get(name)


@pytest.mark.parametrize("name", ["a:b", "a=b", "a,b", "a+b", "a b", "a\n"])
def test_names_hold_no_sign_that_separates(registry: Registry[Method], name: str) -> None:
    with pytest.raises(ValueError, match="name of a method must be without : , = "):
        registry.register(name)


def test_what_is_registered_nowhere_is_imported(
    registry: Registry[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With options, too; what cannot be imported is said, and names that are known come first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    (tmp_path / "my_methods.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Own:\n    k: int = 1\n    def __call__(self): return self.k\n"
        "own = Own()\nconstant = 3\n"
    )
    assert registry.get("my_methods:own")() == 1
    assert registry.get("my_methods:own:k=5")() == 5
    with pytest.raises(ValueError, match=r"has no option 'j=5'; its options: k=\.\.\."):
        registry.get("my_methods:own:j=5")
    with pytest.raises(ValueError, match=r"'my_methods:other' cannot be imported from here: .*other"):
        registry.get("my_methods:other")
    with pytest.raises(ValueError, match="'no_such:own' cannot be imported from here: No module named 'no_such'"):
        registry.get("no_such:own")
    with pytest.raises(TypeError, match="my_methods:constant must be a callable method, got int"):
        registry.get("my_methods:constant")
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)


def test_the_allocator_global_is_one_of_these() -> None:
    assert get_allocator("global:normalise=none") == GlobalRanking(normalise="none")
    assert get_allocator("global") is global_ranking
    with pytest.raises(ValueError, match="normalise must be"):
        get_allocator("global:normalise=nothing")
