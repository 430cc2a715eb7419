"""Bottlenecks as a method of ``srr compare``: what may be asked for, and how one cell is run."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from torch import nn

from srr_ext import artifacts
from srr_ext.bottleneck.applying import apply_bottlenecks, save_bottlenecks
from srr_ext.bottleneck.deciding import check_reach, make_bottlenecks
from srr_ext.bottleneck.options import read_options
from srr_ext.cli import steps
from srr_ext.cli.measuring import latency_batch, measure
from srr_ext.cli.parsing import UsageError, blame
from srr_ext.cli.running import Run
from srr_ext.cli.training import epochs_after_dense, retrain
from srr_ext.config import PruneConfig
from srr_ext.data import ImageData
from srr_ext.prune import analyze, dense_network, sparse_network
from srr_ext.training.lending import lent_to


def check(config: PruneConfig) -> None:
    """Refuse settings that cannot be, before any work.

    Parameters
    ----------
    config : PruneConfig
        Of a cell; ``allocator`` is ``bottleneck``, with options.

    Raises
    ------
    UsageError
        It names the flag, except for options of the method.
    """
    steps.check(replace(config, allocator=PruneConfig.allocator))  # which knows allocators alone
    with blame(""):
        read_options(config.allocator)
    if config.keep_channels is not None:
        raise UsageError("--quantity", "bottlenecks remove no channels; compare at shares of macs or params")
    if config.update != "none":
        raise UsageError(
            "--update", "bottlenecks have none; name it as a part of the other methods, ALLOCATOR+SELECTOR+UPDATE"
        )
    if config.retrain == "weight-rewind":
        raise UsageError("--retrain", "bottlenecks are made of the weights, which weight-rewind would not keep")
    if config.rounds > 1:
        raise UsageError("--rounds", "bottlenecks are made at once; write rounds=1 after the method")


def rehearse(config: PruneConfig, network: nn.Module, images: ImageData) -> None:
    """Refuse a target out of reach, and layers that do not exist; how `steps.rehearse` does it for plans."""
    options = read_options(config.allocator)
    with blame("", PruneConfig):
        check_reach(
            network,
            images.example(),
            basis=options.basis,
            floor=options.floor,
            ignored=config.ignored,
            **config.target,
        )


def prune(config: PruneConfig, run: Run) -> dict[str, Any]:
    """Run the pipeline of `srr_ext.prune`, with layers replaced by bottlenecks in place of channels removed.

    Parameters
    ----------
    config : PruneConfig
        Everything the user decides; ``allocator`` is ``bottleneck``, with options.
    run : Run
        Receives the results and shows how far the work is.

    Returns
    -------
    dict
        The content of ``report.json``: that of `srr_ext.prune.prune`. No network is masked, so there is no
        ``surgery_error``.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    images = steps.load_data(config, run)
    dense = dense_network(config, images, run)
    network = sparse_network(config, dense, analyze(config, dense, images), images, run)
    device = steps.check_device(config)
    with blame("--methods", PruneConfig), lent_to(device, network):
        plan = make_bottlenecks(
            network,
            images.example().to(device),
            data=steps.calibration(config, images),
            ignored=config.ignored,
            seed=config.seed,
            progress=run.progress,
            **asdict(read_options(config.allocator)),
            **config.target,
        )
    small = apply_bottlenecks(network, plan)
    final = retrain(config, config.retraining, "fine-tune", small, None, dense, images, run)
    save_bottlenecks(run.folder.path, final, plan)
    decision = {
        "allocator": config.allocator,
        "selector": config.selector,
        "gamma": None,
        "distance": None,
        "target": plan.target,
        "macs": plan.cost["macs"],
        "params": plan.cost["params"],
        "surgery_error": None,
        "rounds": config.rounds,
        "update": config.update,
        "retrain": config.retrain,
        "epochs_after_dense": epochs_after_dense(config, config.retraining, images),
    }
    networks = {"dense": dense, "after_surgery": small, "final": final}
    results = measure(config, networks, decision, images, latency_batch(config, images), run)
    run.folder.write(artifacts.REPORT, results)
    return results
