"""Weights divided among processes: the training is that with whole weights, and plans are made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_data import random_data, small_net

from srr_ext.training import TrainConfig, train

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What so many processes have found."""
    path, here = tmp_path_factory.mktemp("sharding") / "found.json", Path(__file__).parent
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)}
    done = subprocess.run(
        [*launch, str(here / "sharding_worker.py"), str(path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {"count": request.param, **json.loads(path.read_text())}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_training_is_that_of_whole_weights(found: dict[str, Any], optimizer: str) -> None:
    """Up to the order of sums; and the caller's parameters are the same objects."""
    assert found[optimizer] < (2e-6 if optimizer == "sgd" else 2e-4)
    assert found[f"{optimizer} same parameters"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_goes_on_bit_for_bit(found: dict[str, Any], optimizer: str) -> None:
    """From the state after the first epoch, saved in one piece."""
    assert found[f"{optimizer} resumed"] == 0


def test_each_process_holds_its_share(found: dict[str, Any]) -> None:
    """Layers are divided by their first dimension, so that shares of small ones differ."""
    assert found["held"] < 1.35 * found["of"] / found["count"]


def test_plans_are_made_of_divided_weights(found: dict[str, Any]) -> None:
    """Divided here or by torch alone, they give the plan of the whole network, in all processes."""
    assert found["plan own"] and found["plan torch"]
    assert found["cut own"] < 1e-9 and found["cut torch"] < 1e-9


def test_what_needs_whole_weights_is_refused(found: dict[str, Any]) -> None:
    """And so is another network, and a process that is alone."""
    assert found["with masks"].startswith("shard goes without masks")
    assert found["with ema"].startswith("shard goes without ema")
    assert found["other network"].startswith("source is another network than model")
    with pytest.raises(ValueError, match="shard is for several processes"):
        train(small_net(), random_data(), TrainConfig(epochs=1), device="cpu", shard=True)
