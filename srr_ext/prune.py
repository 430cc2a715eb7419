"""The main job: from a network and images to a smaller network with its accuracy kept, and a report.

    python -m srr_ext.prune                              # the embedded example: handwritten digits, under a minute
    python -m srr_ext.prune --model resnet56 --weights resnet56.th --data folder:PATH --keep-macs 0.46

``prune`` below is the whole pipeline, one step a line.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from srr_ext import artifacts
from srr_ext.artifacts import RunFolder
from srr_ext.cli import steps
from srr_ext.cli.parsing import UsageError, as_dict, blame, flag_of, parse, run_command
from srr_ext.cli.tables import make_console, result_table
from srr_ext.config import PruneConfig
from srr_ext.data import ImageData
from srr_ext.latency import measure_latency
from srr_ext.plan import PruningPlan, make_plan
from srr_ext.progress import Progress, on
from srr_ext.surgery import apply_plan, verify
from srr_ext.training import evaluate, make_accelerator, recalibrate_batch_norm

_LATENCY_BATCH = 64
_RECALIBRATION_BATCH = 100


def prune(config: PruneConfig, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Run the pipeline.

    Parameters
    ----------
    config : PruneConfig
        Everything the user decides.
    folder : RunFolder
        Receives the results.
    progress : Progress
        Shows how far the work is.

    Returns
    -------
    dict
        The content of ``report.json``.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    images = steps.load_data(config, progress)
    dense = steps.dense_network(config, images, progress, folder.log)
    if config.weights is None:
        folder.write_weights(artifacts.DENSE, dense)
    plan = decide(config, dense, images, progress)
    small = apply_plan(dense, plan, images.example())
    error = verify(dense, plan, images.example())
    final = fine_tune(config, small, images, progress, folder)
    artifacts.save(folder.path, final, plan)
    networks = {"dense": dense, "after_surgery": small, "final": final}
    report = measure(config, images, networks, plan, error, progress)
    folder.write(artifacts.REPORT, report)
    return report


def decide(config: PruneConfig, dense: nn.Module, images: ImageData, progress: Progress) -> PruningPlan:
    """Plan which channels go."""
    with blame(flag_of(next(iter(config.target))), PruneConfig):
        return make_plan(
            dense,
            images.example(),
            allocator=config.allocator,
            selector=config.selector,
            gamma=config.gamma,
            streams=config.streams,
            ignored=config.ignored,
            floor=config.floor,
            round_to=config.round_to,
            seed=config.seed,
            progress=progress,
            **config.target,
        )


def fine_tune(
    config: PruneConfig, small: nn.Module, images: ImageData, progress: Progress, folder: RunFolder
) -> nn.Module:
    """Return a trained copy of the pruned network."""
    device = make_accelerator(config.device).device
    final = copy.deepcopy(small).to(device)
    calibration = images.batches("train", _RECALIBRATION_BATCH, train=True, seed=config.seed, device=device)
    with steps.threads_for(small, images):
        recalibrate_batch_norm(final, calibration, progress=progress)
    steps.train_blaming("--fine-tune", final, images, config.fine_tune, config, progress, folder.log)
    return final.eval()


def measure(
    config: PruneConfig,
    images: ImageData,
    networks: dict[str, nn.Module],
    plan: PruningPlan,
    error: float,
    progress: Progress,
) -> dict[str, Any]:
    """Measure the networks on the test images, for the first and only time."""
    device = make_accelerator(config.device).device
    for network in networks.values():
        network.to(device)
    dense, final = networks["dense"], networks["final"]
    sample, _ = next(iter(images.batches("test", _LATENCY_BATCH, device=device)))
    with steps.threads_for(dense, images):
        threads = torch.get_num_threads()
        with progress.stage("latency", 1) as step:
            latency = dict(zip(("dense", "pruned"), measure_latency([dense, final], sample), strict=True))
            step()
        top1 = {
            name: evaluate(network, images, "test", stage=f"test {name.removeprefix('after_')}", progress=progress)
            for name, network in networks.items()
        }
    macs, params = plan.cost["macs"], plan.cost["params"]
    return {
        "model": config.model,
        "data": config.data,
        "allocator": plan.allocator,
        "selector": plan.selector,
        "gamma": plan.gamma,
        "seed": config.seed,
        "target": plan.target,
        "macs": macs,
        "params": params,
        "compression_ratio": params["dense"] / params["pruned"],
        "speed_up": {
            "theoretical": macs["dense"] / macs["pruned"],
            "measured": latency["dense"] / latency["pruned"],
        },
        "latency_ms": latency | {"batch_size": len(sample), "device": device.type, "threads": threads},
        "top1": top1,
        "n_test_images": len(images.test),
        "surgery_error": error,
    }


def stopped(folder: RunFolder) -> str:
    """Say what a run that was stopped leaves behind, and what to do with it."""
    names = sorted(path.name for path in folder.path.iterdir())
    advice = "delete it to use the name again"
    if artifacts.WEIGHTS in names:
        advice = f"the pruned network is whole, srr evaluate --run {folder.path} measures it"
    elif artifacts.DENSE in names:
        advice = f"--weights {folder.path / artifacts.DENSE} with a new --output skips the training"
    return f"{folder.path} holds {', '.join(names)}; {advice}"


def main(argv: Sequence[str] | None = None, prog: str = "python -m srr_ext.prune") -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; default those of the process.
    prog : str
        Name of the command in messages.

    Returns
    -------
    int
        Exit code.
    """

    def command() -> None:
        config = parse(PruneConfig, argv, prog)
        steps.check(config)
        with blame("--output"):
            folder = RunFolder(config.output, f"{config.model}-{config.data}")
        folder.write(artifacts.CONFIG, as_dict(config) | {"output": None})  # repeating a run needs a new folder
        try:
            report = prune(config, folder, on(make_console(stderr=True)))
        except UsageError:
            folder.discard()
            raise
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(stopped(folder)) from stop
        console = make_console()
        console.print(result_table(report))
        console.print(f"{folder.path}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}")
        evaluation = prog.replace("prune", "evaluate")
        console.print(f'next: {evaluation} --run {folder.path}, or srr_ext.load("{folder.path}") in Python')

    return run_command(command, prog)


if __name__ == "__main__":
    sys.exit(main())
