"""How a path is timed: checked, warmed up, then in turns with ours, so that both meet the same other work."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from floors import Floor, seconds, synchronize

LEAST_ROUNDS, MOST_ROUNDS = 3, 25
SHORT = 0.1  # seconds: what is shorter finds its data in the caches, and is called once more before it is timed
BACK_TO_BACK = 20
NO_WORK = Floor(0, "B/s")
ON_HOST = {"ours_cpu", "scipy", "networkx", "scipy_networkx", "reference"}  # paths that no device speeds up
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Part of the work, for a path that would not finish the whole.

    Attributes
    ----------
    factor : float
        The whole work over that of the part.
    rule : str
        How the part was chosen and what the factor follows.
    """

    factor: float
    rule: str

    def __str__(self) -> str:
        return f"{self.rule}: x {self.factor:.3g}"


@dataclass
class Race:
    """Timer of one row of the table: one path of a stage on a network.

    Attributes
    ----------
    benchmark : BenchmarkFixture
        pytest-benchmark's.
    device : torch.device
        Where ours and the peers compute.
    path : str
        The path; those of `ON_HOST` compute on the CPU whatever the device.
    quick : bool
        Few rounds.
    record : dict
        What is written beside the timing.
    floor : Floor
        Of the stage on this network.
    warm_s : float, optional
        Seconds of the path's first call.
    """

    benchmark: Any
    device: torch.device
    path: str
    quick: bool
    record: dict[str, object] = field(default_factory=dict)
    floor: Floor = NO_WORK
    warm_s: float | None = None

    def enter(self, stage: str, network: str, floor: Floor, sizes: dict[str, int]) -> None:
        """Say what is computed: the row's stage and network, its floor, and sizes for the record."""
        self.floor = floor
        self.record = {"stage": stage, "network": network, "path": self.path, **sizes}

    def answer(self, function: Callable[[], T]) -> T:
        """Call the path for the first time, and return what it gives, to be checked. It is then warm."""
        kept: list[T] = []
        self.warm_s = seconds(lambda: kept.append(function()), self.device)
        return kept[0]

    def run(
        self, function: Callable[[], object], ours: Callable[[], object] | None = None, part: Part | None = None
    ) -> None:
        """Time the path, and record it.

        Parameters
        ----------
        function : callable
            The path, checked.
        ours : callable, optional
            What it is compared with, on the whole work; None if the path is ours.
        part : Part, optional
            What of the whole work ``function`` does; all by default.
        """
        where = torch.device("cpu") if self.path in ON_HOST else self.device
        enabled = self.benchmark.enabled
        rates = self.floor.sample(where) if enabled else []
        turn = [self.warm_s] if self.warm_s is not None else []
        turn += [seconds(f, self.device) for f in (function, ours)[len(turn) :] if f is not None and enabled]
        timed_ours: list[float] = []

        def synchronized() -> None:
            function()
            synchronize(self.device)

        def setup() -> None:
            if not enabled:
                return
            if ours is not None:
                if turn[1] < SHORT:
                    ours()
                timed_ours.append(seconds(ours, self.device))
            if turn[0] < SHORT:
                function()
            synchronize(self.device)

        self.benchmark.pedantic(synchronized, setup=setup, rounds=self._rounds(sum(turn)))
        if not enabled:
            return
        rates += self.floor.sample(where)
        times = [(part.factor if part else 1.0) * t for t in self.benchmark.stats.stats.data]
        against = timed_ours or times
        self.benchmark.extra_info.update(
            self.record,
            seconds=statistics.median(times),
            ours_s=statistics.median(against),
            ratio=statistics.median(a / b for a, b in zip(times, against, strict=True)),
            extrapolated=str(part or ""),
            rounds=len(times),
            device=where.type,
            threads=torch.get_num_threads(),
            **self.floor.record(rates),
        )
        if self.path == "ours" and self.device.type == "cuda":
            many = seconds(lambda: [function() for _ in range(BACK_TO_BACK)], self.device)
            self.benchmark.extra_info["back_to_back_s"] = many / BACK_TO_BACK

    def _rounds(self, one: float) -> int:
        budget, long = (0.3, 1.0) if self.quick else (3.0, 10.0)
        return 1 if one > long else max(LEAST_ROUNDS, min(MOST_ROUNDS, int(budget / max(one, 1e-9))))
