"""The main job: from a network and images to a smaller network with its accuracy kept, and a report.

    python -m srr_ext.prune                              # the embedded example: handwritten digits, under a minute
    python -m srr_ext.prune --model resnet56 --weights resnet56.th --data folder:PATH --keep-macs 0.46

``prune`` below is the whole pipeline, one step a line.
"""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from srr_ext import artifacts, report
from srr_ext.channels import ChannelAnalysis, analyze_channels
from srr_ext.cli import steps
from srr_ext.cli.parsing import blame, command, flag_of
from srr_ext.cli.running import Run, run_in_folder
from srr_ext.cli.tables import make_console, result_table
from srr_ext.config import PruneConfig
from srr_ext.cost import CostModel, Target
from srr_ext.data import ImageData
from srr_ext.files import read_json
from srr_ext.graph import select_groups
from srr_ext.latency import measure_latency
from srr_ext.plan import PruningPlan, make_plan
from srr_ext.rounds import floors_of_round, join, target_of_round
from srr_ext.surgery import apply_plan, verify
from srr_ext.training import (
    SparseConfig,
    evaluate,
    evaluate_topk,
    make_accelerator,
    make_penalty,
    recalibrate_batch_norm,
    reinitialise,
)
from srr_ext.training.lending import lent_to
from srr_ext.updates import update_weights

_LATENCY_BATCH = 64
_RECALIBRATION_BATCH = 100


def prune(config: PruneConfig, run: Run) -> dict[str, Any]:
    """Run the pipeline.

    Parameters
    ----------
    config : PruneConfig
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
    dense = steps.dense_network(config, images, run)
    analysis = analyze(config, dense, images)
    network = train_sparse(config, dense, analysis, images, run)
    plan, small, final = prune_in_rounds(config, network, dense, analysis, images, run)
    batch = latency_batch(config, images)
    networks = {"dense": dense, "after_surgery": small, "final": final}
    results = measure(config, networks, describe(plan, dense, images), images, batch, run)
    run.folder.write(artifacts.REPORT, results)
    run.folder.write(artifacts.STRUCTURE, observe(dense, final, plan, analysis, images, batch, run))
    report.write(run.folder.path)
    return results


def analyze(config: PruneConfig, dense: nn.Module, images: ImageData) -> ChannelAnalysis:
    """Find which channels hang together."""
    with blame("--model", PruneConfig):
        return analyze_channels(dense, images.example(), ignored=config.ignored)


def train_sparse(
    config: PruneConfig, dense: nn.Module, analysis: ChannelAnalysis, images: ImageData, run: Run
) -> nn.Module:
    """Return a copy that was trained under a penalty; without one the network as it is."""
    if config.sparse.penalty == "none":
        return dense
    network = copy.deepcopy(dense).to(make_accelerator(config.device).device)
    with blame("--sparse.penalty", PruneConfig, sparse=SparseConfig):
        groups = select_groups(analysis, config.streams)
        penalty = make_penalty(config.sparse, groups, network)
    recipe, teacher = config.sparse, dense if config.sparse.distill else None
    steps.train_blaming("sparse", "train sparse", network, images, recipe, config, run, teacher, penalty.step)
    zeros = penalty.zero_vertices()
    run.say(f"{sum(zeros.values())} of {sum(group.size for group in groups)} channels that may go are zero after it")
    return network.cpu().eval()


def prune_in_rounds(
    config: PruneConfig,
    network: nn.Module,
    dense: nn.Module,
    analysis: ChannelAnalysis,
    images: ImageData,
    run: Run,
) -> tuple[PruningPlan, nn.Module, nn.Module]:
    """Plan, cut and fine-tune, as often as wanted; return the plan of all rounds, the last cut and the last result.

    What every round has made is saved at its end.
    """
    plan: PruningPlan | None = None
    final = network
    for number in range(1, config.rounds + 1):
        decision = decide(config, number, plan, final, analysis, images, run)
        with blame("--plan" if config.plan else flag_of(next(iter(config.target)))):
            small = apply_plan(final, decision, images.example())
        small = update(config, final, small, decision, images, run)
        stage = "fine-tune" if config.rounds == 1 else f"fine-tune {number} of {config.rounds}"
        final = fine_tune(config, stage, small, dense, images, run)
        plan = join(analysis, plan, decision) if plan else decision
        if config.rounds > 1:
            target = {option.removeprefix("keep_"): keep for option, keep in config.target.items()}
            plan = replace(plan, target=target, options=plan.options | {"floor": config.floor, "rounds": config.rounds})
        artifacts.save(run.folder.path, final, plan)
    assert plan is not None  # there is at least one round
    return plan, small, final


def decide(
    config: PruneConfig,
    number: int,
    done: PruningPlan | None,
    network: nn.Module,
    analysis: ChannelAnalysis,
    images: ImageData,
    run: Run,
) -> PruningPlan:
    """Plan which channels go in this round, or read the plan that was given."""
    if config.plan is not None:
        with blame("--plan"):
            return steps.given_plan(config, config.plan)
    option, keep = next(iter(config.target.items()))
    with blame(flag_of(option), PruneConfig), round_named(number, config.rounds), ExitStack() as stack:
        whole = Target(option.removeprefix("keep_"), keep)  # type: ignore[arg-type]  # the names are its quantities
        cost = CostModel(analysis, whole.quantity).dense
        now = done.cost[whole.quantity]["pruned"] if done else cost
        here = whole if config.rounds == 1 else target_of_round(whole, number, config.rounds, cost, now)
        target: dict[str, Any] = {option: here.keep}
        device = make_accelerator(config.device).device  # where methods that look at images need not wait long
        stack.enter_context(lent_to(device, network))
        return make_plan(
            network,
            images.example().to(device),
            allocator=config.allocator,
            selector=config.selector,
            gamma=config.gamma,
            distance=config.distance,
            streams=config.streams,
            ignored=config.ignored if done else (),
            floor=floors_of_round(config.floor, done) if done else config.floor,
            round_to=config.round_to,
            seed=config.seed,
            data=steps.calibration(config, images),
            progress=run.progress,
            analysis=None if done else analysis,
            **target,
        )


@contextmanager
def round_named(number: int, rounds: int) -> Iterator[None]:
    """Let errors name the round, as the shares in them are shares of what it began with."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"round {number} of {rounds}: {error}" if rounds > 1 else str(error)) from error


def update(
    config: PruneConfig, network: nn.Module, small: nn.Module, plan: PruningPlan, images: ImageData, run: Run
) -> nn.Module:
    """Give the weights that stay the values that ``--update`` makes of them."""
    if config.update == "none":
        return small
    data, device = steps.calibration(config, images), make_accelerator(config.device).device
    example = images.example().to(device)
    with blame("--update", PruneConfig), lent_to(device, network), lent_to(device, small):
        updated = update_weights(
            network, small, plan, example, config.update, data=data, seed=config.seed, progress=run.progress
        )
    return updated.cpu()


def fine_tune(
    config: PruneConfig,
    stage: str,
    small: nn.Module,
    dense: nn.Module,
    images: ImageData,
    run: Run,
) -> nn.Module:
    """Return a trained copy of the pruned network, or of its architecture."""
    device = make_accelerator(config.device).device
    if config.retrain == "scratch":
        with blame("--retrain"):
            final = reinitialise(small, config.seed).to(device)
        sparse = config.sparse.epochs if config.sparse.penalty != "none" else 0
        recipe = replace(config.dense, epochs=config.dense.epochs + sparse + config.fine_tune.epochs)
        steps.train_blaming("dense", "train from scratch", final, images, recipe, config, run)
        return final.cpu().eval()
    final = copy.deepcopy(small).to(device)
    calibration = images.batches("train", _RECALIBRATION_BATCH, train=True, seed=config.seed, device=device)
    with steps.threads_for(small, images):
        recalibrate_batch_norm(final, calibration, progress=run.progress)
    teacher = dense if config.fine_tune.distill else None
    steps.train_blaming("fine_tune", stage, final, images, config.fine_tune, config, run, teacher)
    return final.cpu().eval()  # where plans are made and proven


def latency_batch(config: PruneConfig, images: ImageData) -> Tensor:
    """Return the images that times are measured on."""
    return next(iter(images.batches("test", _LATENCY_BATCH)))[0].to(steps.check_device(config))


def describe(plan: PruningPlan, dense: nn.Module, images: ImageData) -> dict[str, Any]:
    """Return what the report says of the plan, and the proof that the cut network is the masked one."""
    return {
        "allocator": plan.allocator,
        "selector": plan.selector,
        "gamma": plan.gamma,
        "distance": plan.options.get("distance"),
        "target": plan.target,
        "macs": plan.cost["macs"],
        "params": plan.cost["params"],
        "surgery_error": verify(dense, plan, images.example()),
    }


def measure(
    config: PruneConfig,
    networks: dict[str, nn.Module],
    decision: dict[str, Any],
    images: ImageData,
    batch: Tensor,
    run: Run,
) -> dict[str, Any]:
    """Measure the networks on the test images, for the first and only time; return that with what was decided."""
    device = make_accelerator(config.device).device
    for network in networks.values():
        network.to(device)
    dense, final = networks["dense"], networks["final"]
    with steps.threads_for(dense, images):
        threads = torch.get_num_threads()
        with run.progress.stage("latency", 1) as step:
            latency = dict(zip(("dense", "pruned"), measure_latency([dense, final], batch), strict=True))
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
    macs, params = decision["macs"], decision["params"]
    return {
        "model": config.model,
        "data": config.data,
        **decision,
        "seed": config.seed,
        "rounds": config.rounds,
        "update": config.update,
        "retrain": config.retrain,
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
    top = evaluate_topk(network, images, "test", stage=stage, progress=run.progress)
    return top, evaluate(network, images, "validation") if images.size("validation") else None


def observe(
    dense: nn.Module,
    final: nn.Module,
    plan: PruningPlan,
    analysis: ChannelAnalysis,
    images: ImageData,
    batch: Tensor,
    run: Run,
) -> dict[str, Any]:
    """Describe the structure of both networks, for the page of the report."""
    found = report.observe(dense, final, plan, images.example(), analysis=analysis, progress=run.progress)
    with steps.threads_for(dense, images):
        return found | {"latency": report.layer_latency(dense, final, batch)}


def prune_and_show(config: PruneConfig, arguments: list[str], prog: str) -> None:
    """Prune in a new run folder and show the result."""
    steps.check(config)
    folder = run_in_folder(config, arguments, prog, prune).folder.path
    console = make_console()
    console.print(result_table(read_json(folder / artifacts.REPORT)))
    console.print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", soft_wrap=True)
    advice = f'{prog.replace("prune", "evaluate")} --run {shlex.quote(str(folder))}; srr_ext.load("{folder}")'
    console.print(f"next: open {folder / artifacts.PAGE}; {advice}", soft_wrap=True)


main = command(PruneConfig, "srr_ext.prune", prune_and_show)

if __name__ == "__main__":
    sys.exit(main())
