"""What the commands measure in the end: accuracy on the test images, for the only time, and latency."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from srr_ext.cli import steps
from srr_ext.cli.running import Run
from srr_ext.config import Planning, RetrainOptions
from srr_ext.data import ImageData
from srr_ext.latency import measure_latency
from srr_ext.latency_table.cost import DEFAULT_BATCH, with_batch
from srr_ext.training import evaluate, evaluate_topk, make_accelerator


def latency_batch(config: RetrainOptions, images: ImageData) -> Tensor:
    """Return the images that times are measured on; fewer are repeated where so many were asked for."""
    size = config.latency_batch if isinstance(config, Planning) else DEFAULT_BATCH
    batch = next(iter(images.batches("test", size)))[0].to(steps.check_device(config))
    return with_batch(batch, size) if isinstance(config, Planning) else batch


def measure(
    config: RetrainOptions,
    networks: dict[str, nn.Module],
    decision: dict[str, Any],
    images: ImageData,
    batch: Tensor,
    run: Run,
) -> dict[str, Any]:
    """Measure the networks on the test images, for the first and only time; return that with what was decided.

    Parameters
    ----------
    config : RetrainOptions
        Everything the user decides.
    networks : dict of str to nn.Module
        ``dense``, ``after_surgery`` and ``final``; left on the device of the run.
    decision : dict
        ``macs`` and ``params``, each ``dense`` and ``pruned``, and whatever else the report says of the method.
    images : ImageData
        Its test images count.
    batch : Tensor
        To take times with.
    run : Run
        Shows how far the work is.

    Returns
    -------
    dict
        The content of ``report.json``.
    """
    device = make_accelerator(config.device).device
    for network in networks.values():
        network.to(device)
    dense, final = networks["dense"], networks["final"]
    with steps.threads_for(dense, images):
        threads = torch.get_num_threads()
        with run.progress.stage("latency", 1) as step:
            taken = run.processes.from_first(lambda: measure_latency([dense, final], batch, seconds=run.seconds))
            latency = dict(zip(("dense", "pruned"), taken, strict=True))
            step()
        accuracy, validation = {}, {}
        for name, network in networks.items():
            # The dense network of a checkpoint is the same for all runs of a comparison.
            measured = partial(evaluate_on_both, name, network, images, run)
            shared = name == "dense" and config.weights is not None
            of_dense = ("accuracy", config.model, config.weights, config.data)
            accuracy[name], held_out = run.once(of_dense, measured) if shared else measured()
            if held_out is not None:  # to compare the curves of the training with
                validation[name] = held_out
    if aim := decision.get("latency_target"):
        reached = latency["pruned"] / latency["dense"]
        aim = aim | {"measured": reached, "measured_to_wanted": reached / aim["wanted"]}
        decision = decision | {"latency_target": aim}
    macs, params = decision["macs"], decision["params"]
    return {
        "model": config.model,
        "data": config.data,
        **decision,
        "seed": config.seed,
        "penalty": config.sparse.penalty,
        "compression_ratio": params["dense"] / params["pruned"],
        "speed_up": {
            "theoretical": macs["dense"] / macs["pruned"],
            "measured": latency["dense"] / latency["pruned"],
        },
        "latency_ms": latency | {"batch_size": len(batch), "device": device.type, "threads": threads},
        **{k: {name: found[k] for name, found in accuracy.items()} for k in accuracy["dense"]},
        "validation_top1": validation,
        "n_test_images": images.size("test"),
        **run.origin,
    }


def evaluate_on_both(
    name: str, network: nn.Module, images: ImageData, run: Run
) -> tuple[dict[str, float], float | None]:
    """Return the accuracy on the test images, and that on the validation images, if there are any."""
    stage = f"test {name.removeprefix('after_')}"
    top = evaluate_topk(network, images, "test", stage=stage, progress=run.progress, processes=run.processes)
    held_out = images.size("validation")
    return top, evaluate(network, images, "validation", processes=run.processes) if held_out else None
