"""Things found by name: selectors and allocators of this package, and those other packages offer as entry points."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

T = TypeVar("T")


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
            If the name is empty or taken.
        """
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind} is registered by name, got {name!r}: write @register_{self.kind}('name')")
        if not name:
            raise ValueError(f"name of a {self.kind} must not be empty")

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
        """Return what ``item`` names; anything callable that is no name is returned as it is.

        Raises
        ------
        TypeError
            If ``item`` is neither a name nor callable, or an entry point gives something that is not callable.
        ValueError
            If nothing has that name (the message lists the nearest names), or several packages claim it.
        """
        if not isinstance(item, str):
            if not callable(item):
                raise TypeError(f"{self.kind} must be a name or a callable, got {type(item).__name__}")
            return item
        if item not in self._items:
            self._items[item] = self._load(item)
        return self._items[item]

    def _load(self, name: str) -> T:
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
