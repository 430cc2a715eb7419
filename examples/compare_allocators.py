"""Four allocators with one budget, one checkpoint and one recipe: ``python compare_allocators.py``.

On the embedded digits: a sketch of a fair comparison, in seconds on a CPU. One seed and a few epochs rank nothing; the
guide's page on comparing methods says what is missing here.
"""

from __future__ import annotations

import sys

import torch

import srr_ext
from srr_ext import data, models
from srr_ext.training import TrainConfig, evaluate, recalibrate_batch_norm, train

ALLOCATORS = ("srr", "uniform", "widest", "global")


def main(keep_macs: float = 0.5, epochs: int = 3, seed: int = 0) -> None:
    """Train one dense network, prune it four times, print a table."""
    torch.manual_seed(seed)
    images = data.load("digits", seed=seed)
    dense = models.create("digits_cnn")
    train(dense, images, TrainConfig(epochs=6), seed=seed)
    top1 = evaluate(dense, images, "validation")
    print(f"dense: validation {top1:.2f} %; every row below keeps {keep_macs:g} of its MACs")
    print(f"{'allocator':<11}{'MACs':>10}{'parameters':>12}{'after surgery':>15}{'fine-tuned':>12}")
    for allocator in ALLOCATORS:
        plan = srr_ext.make_plan(dense, images.example(), allocator=allocator, keep_macs=keep_macs, seed=seed)
        small = srr_ext.apply_plan(dense, plan, images.example())
        before = evaluate(small, images, "validation")
        recalibrate_batch_norm(small, images.batches("train", 100, train=True, seed=seed))
        train(small, images, TrainConfig(epochs=epochs), seed=seed)
        after = evaluate(small, images, "validation")  # choices are made on validation images, never on the test's
        macs, params = (plan.cost[quantity]["pruned"] for quantity in ("macs", "params"))
        print(f"{allocator:<11}{macs:>10,}{params:>12,}{before:>13.2f} %{after:>10.2f} %")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.5)
