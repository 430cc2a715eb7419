"""Measures operations and networks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from srr_ext.inputs import run, tensors_in
from srr_ext.latency import measure_latency, settle_memory, undisturbed_clock
from srr_ext.latency_table.operations import Operation
from srr_ext.measuring import measuring

_ROUNDS = 3  # of an operation, at least
_ENOUGH_NS = 20_000_000  # then no more after this time
_AGREE = 1.05  # until the two fastest are as near as this
_MOST = 6  # but no longer than so many times _ENOUGH_NS
_PASSES = (5, 12)  # of a network, at least: fewer of a slow one,
_PATIENCE = 15.0  # so that they take about so many seconds


class Stopwatch(Protocol):
    """Says how long something takes; tests put another one in its place."""

    def operation(self, operation: Operation) -> int | None:
        """Return the nanoseconds of one call; None if the operation cannot be called by itself."""

    def networks(self, models: Sequence[nn.Module], inputs: Any) -> list[int]:
        """Return the nanoseconds of one forward pass of each, taken in turns."""


class TorchStopwatch:
    """The real one.

    Parameters
    ----------
    seconds : float, default 2.0
        For every comparison of networks.

    Notes
    -----
    Of several runs the fastest counts, as other work on the machine only ever adds time; the clock is
    `srr_ext.latency.undisturbed_clock`. An operation whose two fastest
    runs are not within 5 % of each other is run more often. On a GPU ten calls are given at once, and divided by.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds = seconds

    def operation(self, operation: Operation) -> int | None:
        """Time one operation, on tensors of its own; see `Stopwatch`."""
        with measuring(0), torch.inference_mode():
            return self._operation(operation)

    def _operation(self, operation: Operation) -> int | None:
        cuda = operation.device.type == "cuda"
        calls = 10 if cuda else 1
        try:
            args, kwargs = operation.arguments()
            operation.operator(*args, **kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError):  # it needs what others made: an index, say
            return None
        settle_memory()
        clock = undisturbed_clock(operation.device)
        taken: list[int] = []
        begin = time.perf_counter_ns()
        while True:
            if cuda:
                torch.cuda.synchronize(operation.device)
            start = clock()
            for _ in range(calls):
                operation.operator(*args, **kwargs)
            if cuda:
                torch.cuda.synchronize(operation.device)
            taken.append(round(1e9 * (clock() - start)) // calls)
            spent = time.perf_counter_ns() - begin
            if len(taken) < _ROUNDS or spent < _ENOUGH_NS:
                continue
            first, second = sorted(taken)[:2]
            if second <= _AGREE * first or spent > _MOST * _ENOUGH_NS:
                return max(1, first)

    def networks(self, models: Sequence[nn.Module], inputs: Any) -> list[int]:
        """Time networks in turns; see `srr_ext.latency.measure_latency`."""
        device = next((tensor.device for tensor in tensors_in(inputs)), torch.device("cpu"))
        with measuring(0):
            begin = time.perf_counter()
            for model in models:
                run(model, inputs)
            fewest, usual = _PASSES
            rounds = max(fewest, min(usual, int(_PATIENCE / (time.perf_counter() - begin))))
            clock = undisturbed_clock(device)
            taken = measure_latency(models, inputs, seconds=self._seconds, rounds=rounds, clock=clock)
        return [max(1, round(1e6 * ms)) for ms in taken]
