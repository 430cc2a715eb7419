"""Progress on a terminal as bars (stage, rate, time left), elsewhere as one quiet line per stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import rich.progress
from rich.console import Console

Step = Callable[..., None]


class Progress(Protocol):
    """Shows how far a long stage has come."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Step]:
        """Open a stage of ``total`` steps: ``with progress.stage("decode", n) as step: step()``.

        ``step(n=1, note="")`` says that n more steps are done, and what to show beside them.
        """


class Silent:
    """Shows nothing; the default of every library function."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """See :class:`Progress`."""
        yield lambda n=1, note="": None


class Lines:
    """One line when a stage ends: for logs and pipes.

    Parameters
    ----------
    console : rich.console.Console
        Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """See :class:`Progress`."""
        start, last = time.perf_counter(), ""

        def step(n: int = 1, note: str = "") -> None:
            nonlocal last
            last = note or last

        yield step
        seconds = time.perf_counter() - start
        self._console.print(f"{name}: {total} steps in {seconds:.1f} s {last}".rstrip(), highlight=False, markup=False)


class Bars:
    """Live bars with rate and time left, for a terminal.

    Parameters
    ----------
    console : rich.console.Console
        Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """See :class:`Progress`."""
        columns = (
            rich.progress.TextColumn("{task.description:<28}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}", markup=False),
        )
        with rich.progress.Progress(*columns, console=self._console) as bars:
            task = bars.add_task(name, total=total, rate="", note="")

            def step(n: int = 1, note: str = "") -> None:
                speed = bars.tasks[0].speed
                rate = f"{speed:,.0f}/s" if speed and speed >= 10 else f"{speed:.2f}/s" if speed else ""
                bars.update(task, advance=n, rate=rate)
                if note:
                    bars.update(task, note=note)

            yield step


def silent() -> Progress:
    """Return a progress that shows nothing."""
    return Silent()


def on(console: Console) -> Progress:
    """Return bars for a terminal and lines for everything else.

    Parameters
    ----------
    console : rich.console.Console

    Returns
    -------
    Progress
    """
    return Bars(console) if console.is_terminal else Lines(console)
