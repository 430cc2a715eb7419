"""Train a dense network: from a name or a checkpoint, and images, to a run folder that holds it.

    python -m srr_ext.train --model resnet20 --data cifar10 --epochs 160 --lr 0.1
    python -m srr_ext.prune --model resnet20 --data cifar10 --weights runs/resnet20-cifar10-001/dense.safetensors

``prune`` trains the network by itself where no weights are given; training it apart serves many runs of ``prune``.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

from torch import nn

from srr_ext import artifacts
from srr_ext.cli import steps
from srr_ext.cli.parsing import blame, command, flag_of
from srr_ext.cli.running import Run, run_or_resume
from srr_ext.cli.tables import make_console, training_table
from srr_ext.cli.training import train_dense
from srr_ext.config import TrainRunConfig
from srr_ext.data import ImageData
from srr_ext.files import read_json, write_json
from srr_ext.retraining import Moment
from srr_ext.training import evaluate_topk


def train(config: TrainRunConfig, run: Run) -> dict[str, Any]:
    """Run the pipeline.

    Parameters
    ----------
    config : TrainRunConfig
        Everything the user decides.
    run : Run
        Receives the results and shows how far the work is.

    Returns
    -------
    dict
        The content of ``report.json``.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    images = steps.load_data(config, run)
    network = steps.make_model(config, images, run)
    with blame("--snapshots"):
        moments = [Moment.read(text) for text in config.snapshots]
    train_dense(config, network, images, run, moments)
    results = measure(config, network, images, run)
    run.write(lambda folder: write_json(folder / artifacts.REPORT, results))
    return results


def measure(config: TrainRunConfig, network: nn.Module, images: ImageData, run: Run) -> dict[str, Any]:
    """Measure the network on the test images, for the first and only time."""
    network.to(steps.check_device(config))
    with steps.threads_for(network, images):
        accuracy = evaluate_topk(network, images, "test", stage="test", progress=run.progress, processes=run.processes)
    return {
        "model": config.model,
        "data": config.data,
        "seed": config.seed,
        "macs": steps.count_macs(network, images),
        "params": sum(parameter.numel() for parameter in network.parameters()),
        **accuracy,
        "n_test_images": images.size("test"),
        **run.origin,
    }


def train_and_show(config: TrainRunConfig, arguments: list[str], prog: str) -> None:
    """Train in a new run folder, or go on in one, and show the result."""
    run = run_or_resume(config, arguments, prog, steps.check, train)
    if not run.processes.first:
        return
    folder = run.folder.path
    console = make_console()
    console.print(training_table(read_json(folder / artifacts.REPORT)))
    flags = ["--model", config.model, *same_images(config), "--weights", str(folder / artifacts.DENSE)]
    console.print(f"next: {prog.replace('train', 'prune')} {shlex.join(flags)}", soft_wrap=True)


def same_images(config: TrainRunConfig) -> list[str]:
    """Return the flags with which another command gets the same images, in the same splits."""
    flags = ["--data", config.data]
    for name in ("image_size", "skip_corrupt", "seed", "validation"):
        value = getattr(config, name)
        if value != getattr(TrainRunConfig, name):
            flags += [flag_of(name)] if value is True else [flag_of(name), str(value)]
    return flags


main = command(TrainRunConfig, "srr_ext.train", train_and_show, by_many=True)

if __name__ == "__main__":
    sys.exit(main())
