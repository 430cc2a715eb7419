"""Things found by name: selectors and allocators of this package, and those other packages offer as entry points.

A name may set options of what it names: ``global:normalise=l2``, with a comma between several. It may also be that of
something that is registered nowhere: ``package.module:function``.
"""

from __future__ import annotations

import difflib
import importlib
import string
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_type_hints

T = TypeVar("T")

_RESERVED = ":,=+"  # separate names from options and from each other


class Registry(Generic[T]):
    """Names and what they stand for.

    Parameters
    ----------
    kind : str
        What is registered, as error messages call it ("selector").
    entry_point_group : str
        Group under which installed packages offer their own. An entry point is imported when its name is asked for,
        so a broken plugin disturbs only those who use it.
    """

    def __init__(self, kind: str, entry_point_group: str) -> None:
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under ``name``.

        Raises
        ------
        TypeError
            If the name is not a string, as in ``@register`` without a call.
        ValueError
            If the name is empty, taken, or holds a sign that is not part of a name.
        """
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind} is registered by name, got {name!r}: write @register_{self.kind}('name')")
        if not name:
            raise ValueError(f"name of a {self.kind} must not be empty")
        if not set(name).isdisjoint(_RESERVED + string.whitespace):
            raise ValueError(f"name of a {self.kind} must be without {' '.join(_RESERVED)} and spaces, got {name!r}")

        def decorate(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is taken by {self._items[name]!r}: choose another name")
            self._items[name] = item
            return item

        return decorate

    def available(self) -> list[str]:
        """Every name, sorted: registered ones and entry points of installed packages."""
        return sorted({*self._items, *(point.name for point in entry_points(group=self.entry_point_group))})

    def get(self, item: str | T) -> T:
        """Return what ``item`` names, with the options it sets; anything callable that is no name is returned as it is.

        What is registered nowhere is named ``package.module:function``, with ``:key=value`` after it for options.

        Raises
        ------
        TypeError
            If ``item`` is neither a name nor callable, or an entry point gives something that is not callable.
        ValueError
            If nothing has that name (the message lists the nearest names), several packages claim it, or it sets an
            option that does not exist or a value that does not fit.
        """
        if not isinstance(item, str):
            if not callable(item):
                raise TypeError(f"{self.kind} must be a name or a callable, got {type(item).__name__}")
            return item
        name, colon, options = item.partition(":")
        first, _, rest = options.partition(":")
        if colon and "=" not in first and name not in self.available():  # package.module:function
            name, colon, options = f"{name}:{first}", ":" if rest else "", rest
        if name not in self._items:
            self._items[name] = self._load(name)
        return with_options(self._items[name], options, self.kind, name) if colon else self._items[name]

    def _load(self, name: str) -> T:
        if ":" in name:
            return self._import(name)
        points = list(entry_points(group=self.entry_point_group, name=name))
        if not points:
            available = self.available()
            near = ", ".join(difflib.get_close_matches(name, available, n=3)) or "none"
            raise ValueError(f"no {self.kind} is called {name!r}; nearest: {near}; all: {', '.join(available)}")
        if len({point.value for point in points}) > 1:
            claims = ", ".join(point.value for point in points)
            raise ValueError(f"{self.kind} {name!r} is claimed by several packages ({claims}): uninstall all but one")
        item: T = points[0].load()
        if not callable(item):
            raise TypeError(f"entry point {points[0].value} must be a callable {self.kind}, got {type(item).__name__}")
        return item

    def _import(self, name: str) -> T:
        """Import ``package.module:function``."""
        module, _, attribute = name.partition(":")
        try:
            item: T = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{self.kind} {name!r} cannot be imported from here: {error}") from error
        if not callable(item):
            raise TypeError(f"{name} must be a callable {self.kind}, got {type(item).__name__}")
        return item


def with_options(plain: T, text: str, kind: str, name: str) -> T:
    """Return what a name stands for with other options.

    Parameters
    ----------
    plain : object
        What it stands for; only an instance of a dataclass has options.
    text : str
        ``key=value``, with a comma between several.
    kind, name : str
        What it is and is called, for messages.

    Raises
    ------
    ValueError
        An option that does not exist, is set twice, or does not take that value.
    """
    item: Any = plain
    known = [entry.name for entry in fields(item)] if is_dataclass(item) and not isinstance(item, type) else []
    kinds = get_type_hints(type(item)) if known else {}
    values: dict[str, Any] = {}
    for setting in text.split(","):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if key not in known or not equals:
            wanted = ", ".join(f"{option}=..." for option in known) or "none"
            raise ValueError(f"{kind} {name!r} has no option {setting!r}; its options: {wanted}")
        if key in values:
            raise ValueError(f"{kind} {name!r}: option {key!r} is set twice")
        values[key] = _read(value, kinds[key], f"option {key!r} of {kind} {name!r}")
    changed: T = replace(item, **values)
    return changed


def _read(text: str, kind: Any, what: str) -> Any:
    """Turn the text of an option into a value of its type."""
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{what} must be true or false, got {text!r}")
        return text == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{what} must be a number of type {kind.__name__}, got {text!r}") from None
    return text  # a string or one of several words, which the dataclass itself checks
