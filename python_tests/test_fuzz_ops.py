"""Ops from many Python threads at once: the same answers, and other threads go on while one computes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import every_op
import pytest
import torch
from every_op import evaluate, random_words
from torch import Tensor

from srr_ext import _native

pytestmark = pytest.mark.skipif(
    _native.build_info()["build"] == "none", reason="srr_ext was built without the native library"
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> object:
    """Let the threads of the test be the only ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_eight_threads_get_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ops, on layers that hold zeros and NaN, of every type; all start together."""
    monkeypatch.setattr(every_op, "WIDE", 600)
    monkeypatch.setattr(every_op, "WIDEST", 900)
    expected = evaluate(CPU)
    barrier = threading.Barrier(8)

    def work(_: int) -> list[Tensor]:
        torch.set_num_threads(1)
        barrier.wait()
        return evaluate(CPU)

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(work, range(8)):
            assert all(torch.equal(one, other) for one, other in zip(answers, expected, strict=True))


def calls() -> dict[str, Callable[[], object]]:
    """Return a call of every op that takes a while."""
    ops = torch.ops.srr_ext
    weights = [torch.randn(3000, 4608)]
    n, layers = 1500, 60
    words = random_words(n, 3 / n, 1).repeat(layers)
    order = torch.arange(n).flip(0).repeat(layers)
    return {
        "filter_graphs": lambda: ops.filter_graphs(weights, [0.02]),
        "components": lambda: ops.components(words, [n] * layers),
        "covering": lambda: ops.covering(words, [n] * layers, 2),
        "trajectories": lambda: ops.trajectories(words, [n] * layers, order, [5] * layers, 0.35, 0.65),
    }


class Counter(threading.Thread):
    """Counts as often as it gets the interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.go_on, self.begun = 0, True, threading.Event()

    def run(self) -> None:
        self.begun.set()
        while self.go_on:
            self.count += 1
            time.sleep(0)  # gives the interpreter back, and waits for it


@pytest.mark.parametrize("name", ["filter_graphs", "components", "covering", "trajectories"])
def test_python_goes_on_while_an_op_computes(name: str) -> None:
    """A thread counts meanwhile, as often as it gets the interpreter.

    Threads take the interpreter from each other only after half a minute here, so that another one counts between the
    begin and the end of a call only if the call lets go of it. Let go for a moment, it would count to one or two.
    """
    call = calls()[name]
    call()
    during: list[int] = []
    for _ in range(20):  # on a busy machine the counting thread may not get a core at once
        counter, interval = Counter(), sys.getswitchinterval()
        counter.start()
        counter.begun.wait()
        sys.setswitchinterval(30)
        try:
            before = counter.count
            call()
            during.append(counter.count - before)
        finally:
            sys.setswitchinterval(interval)
            counter.go_on = False
            counter.join()
        if during[-1] >= 20:
            return
    raise AssertionError(f"{name} kept the interpreter: others went on by {during} steps")
