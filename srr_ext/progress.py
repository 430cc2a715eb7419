"""Progress on a terminal as bars (stage, rate, time left), elsewhere as quiet lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import rich.progress
from rich.console import Console
from rich.table import Column

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
    """One line when a stage ends, and one now and then while it lasts: for logs and pipes.

    Parameters
    ----------
    console : rich.console.Console
        Where to write.
    every : float, default 30
        Seconds between lines of a stage that lasts.
    """

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self._console, self._every = console, every

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """See :class:`Progress`."""
        start = spoken = time.perf_counter()
        done, last = 0, ""

        def step(n: int = 1, note: str = "") -> None:
            nonlocal spoken, done, last
            done, last, now = done + n, note or last, time.perf_counter()
            if now - spoken >= self._every and 0 < done < total:
                spoken, rate = now, done / (now - start)
                self._print(f"{name}: {done} of {total}, {rate:.3g}/s, {(total - done) / rate:.0f} s left {last}")

        yield step
        self._print(f"{name}: {total} steps in {time.perf_counter() - start:.1f} s {last}")

    def _print(self, line: str) -> None:
        self._console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


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
        fixed = Column(no_wrap=True)  # on 80 columns the note takes what is left, and a second line if it has to
        columns = (
            rich.progress.TextColumn("{task.description:<13}", markup=False),
            rich.progress.BarColumn(10, table_column=fixed),
            rich.progress.MofNCompleteColumn(table_column=fixed),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=fixed),
            rich.progress.TextColumn("{task.fields[note]}", markup=False, table_column=Column()),
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
