"""The soak: that it does its jobs, that what fails is seen and can be repeated, and that memory that grows is."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soak
import soak_jobs
import torch
from torch import nn

import srr_ext

RECORD = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "soak-cpu.json"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give the threads back that a soak takes one of, and let it find little garbage to go through."""
    before = torch.get_num_threads()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


def seeds_of(name: str, n: int = 1, start: int = 0) -> list[int]:
    """Return the first seeds whose job has this name."""
    found: list[int] = []
    while len(found) < n:
        if soak_jobs.case(start)[0] == name:
            found.append(start)
        start += 1
    return found


@pytest.mark.parametrize("name", soak_jobs.JOBS)
def test_every_job_can_be_done_and_repeated(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Or is refused as promised, which few are."""
    done = 0
    for seed in seeds_of(name, 6, 1000):
        try:
            done += soak_jobs.run_case(seed) == name
        except soak_jobs.Refused as refused:
            assert str(refused) in soak_jobs.REFUSALS
        if done:
            break
    assert done and soak.main(["--repeat", str(seed)]) == 0
    assert f"job {seed}: {name}" in capsys.readouterr().out


def test_a_soak_writes_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "soak.json"
    assert soak.main(["--jobs", "12", "--first", "5000", "--output", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["jobs"] == 12 == sum(record["done"].values()) + sum(record["refused"].values())
    assert record["first_seed"] == 5000 and record["failures"] == record["problems"] == []
    assert record["command"][-6:] == ["--jobs", "12", "--first", "5000", "--output", str(path)]
    assert len(record["memory"]["samples"]) == 1 and record["memory"]["growth_percent_per_1000_jobs"] is None
    assert "12 jobs in" in capsys.readouterr().out


def wrong(model: nn.Module, plan: Any, example: Any) -> nn.Module:
    """Cut, and get one weight wrong by a millionth."""
    small = srr_ext.cut(model, plan)
    with torch.no_grad():
        next(small.parameters()).view(-1)[0] += 1e-6
    return small


def test_wrong_surgery_fails_with_a_seed_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the oracle, as the package's own check is what is wrong here."""
    (seed,) = seeds_of("cut anything")
    monkeypatch.setattr(srr_ext, "apply_plan", wrong)
    path = tmp_path / "soak.json"
    assert soak.main(["--jobs", "1", "--first", str(seed), "--output", str(path)]) == 1
    (failure,) = json.loads(path.read_text())["failures"]
    assert failure["seed"] == seed and failure["job"] == "cut anything" and "relative error" in failure["error"]
    assert f"again with make soak SEED={seed}" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="the oracle finds a relative error"):
        soak.main(["--repeat", str(seed)])
    monkeypatch.undo()
    assert soak.main(["--repeat", str(seed)]) == 0


def test_a_refusal_that_nothing_promises_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("today not")

    monkeypatch.setattr(srr_ext, "make_plan", refuse)
    found, _ = soak.run(seeds_of("prune")[0], lambda jobs, _: jobs >= 1)
    assert [failure["error"] for failure in found.failures] == ["ValueError: today not"]
    assert soak.problems(found)


def test_a_soak_that_tries_little_fails() -> None:
    empty = soak.Soak(0)
    assert soak.problems(empty) == ["no job was done"]
    empty.done["prune"], empty.refused["out of reach"] = 10, 11
    assert soak.problems(empty) == ["11 of 21 jobs were refused, so that little was tried"]
    empty.done["prune"] = 12
    assert soak.problems(empty) == []


@pytest.mark.parametrize(("kept", "fails"), [(0, False), (100_000, True)])
def test_memory_that_every_job_keeps_is_seen(monkeypatch: pytest.MonkeyPatch, kept: int, fails: bool) -> None:
    """A tenth of a megabyte each; jobs that keep nothing, though they take as much for a while, grow by nothing."""
    leak: list[bytearray] = []

    def job(_: int) -> str:
        taken = bytearray(os.urandom(1000) * 200)
        if kept:
            leak.append(taken[:kept])
        return "job"

    monkeypatch.setattr(soak_jobs, "run_case", job)
    monkeypatch.setattr(soak, "EVERY", 10)
    found, _ = soak.run(0, lambda jobs, _: jobs >= 900)
    slope = soak.growth(found.memory)
    assert slope is not None and (slope > 3 if fails else abs(slope) < 0.5), slope
    assert bool(soak.problems(found)) == fails


@pytest.mark.parametrize("per_job", [-3000.0, 0.0, 400.0, 60_000.0])
def test_growth_is_that_of_the_line_under_noise_and_outliers(per_job: float) -> None:
    """The first half may be anything; a fifth of the rest, too."""
    rng = np.random.default_rng(1)
    jobs = np.arange(0, 6000, 25)
    sizes = 500e6 + per_job * jobs + rng.normal(0, 1e6, len(jobs))
    sizes[: len(jobs) // 2] *= rng.uniform(0.2, 1, len(jobs) // 2)
    odd = rng.choice(np.arange(len(jobs) // 2, len(jobs)), len(jobs) // 10, replace=False)
    sizes[odd] += rng.uniform(0, 300e6, len(odd))
    found = soak.growth([(int(job), int(size)) for job, size in zip(jobs, sizes, strict=True)])
    wanted = 100 * 1000 * per_job / np.median(sizes[len(jobs) // 2 :])
    assert found == pytest.approx(wanted, abs=0.25)


def dies() -> None:
    os._exit(0)


def raises() -> None:
    raise ValueError("something is wrong")


@pytest.mark.parametrize(
    ("work", "message"),
    [(raises, "something is wrong"), (dies, "ended without a word"), (lambda: time.sleep(60), "nothing came of it in")],
    ids=["raises", "dies", "hangs"],
)
def test_what_goes_wrong_in_a_child_is_raised(
    work: Callable[[], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_jobs, "PATIENCE", 2)
    soak_jobs.in_a_child(lambda: None)
    with pytest.raises(AssertionError, match=message):
        soak_jobs.in_a_child(work)


def test_the_record_is_of_half_an_hour_without_a_failure() -> None:
    record = json.loads(RECORD.read_text())
    assert record["seconds"] >= 1800 and record["failures"] == record["problems"] == []
    memory = record["memory"]
    assert soak.growth(memory["samples"]) is not None and memory["growth_percent_per_1000_jobs"] < soak.LIMIT
    assert {*record["done"]} == {*soak_jobs.JOBS} and record["refused"].keys() <= {*soak_jobs.REFUSALS}
