"""The main job: from a network and images to a smaller network with its accuracy kept, and a report.

    python -m srr_ext.prune                              # the embedded example: handwritten digits, under a minute
    python -m srr_ext.prune --model resnet56 --weights resnet56.th --data folder:PATH --keep-macs 0.46

``prune`` below is the whole pipeline, one step a line.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srr_ext import artifacts, report
from srr_ext.channels import ChannelAnalysis, analyze_channels
from srr_ext.cli import steps, training
from srr_ext.cli.measuring import latency_batch, measure
from srr_ext.cli.parsing import blame, command, flag_of
from srr_ext.cli.running import Run, code_flag, run_or_resume
from srr_ext.cli.tables import make_console, result_table
from srr_ext.cli.training import (
    epochs_after_dense,
    filled,
    part,
    retrain,
    rewound_network,
    round_named,
    train_sparse,
)
from srr_ext.config import PruneConfig
from srr_ext.cost import CostModel, Target
from srr_ext.data import ImageData
from srr_ext.files import read_json, write_json
from srr_ext.graph import select_groups
from srr_ext.plan import PruningPlan, make_plan
from srr_ext.rounds import floors_of_round, join, target_of_round
from srr_ext.sparsity import prunable
from srr_ext.surgery import apply_plan, cut, verify
from srr_ext.training import make_accelerator
from srr_ext.training.lending import lent_to
from srr_ext.updates import update_weights

_ANY = 1 << 40  # a first round's cost, of which only a share is asked for


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
    dense = dense_network(config, images, run)
    rewound = rewound_network(config, config.retraining, dense, run)
    analysis = analyze(config, dense, images)
    network = sparse_network(config, dense, analysis, images, run)
    plan, small, final = prune_in_rounds(config, network, rewound, dense, analysis, images, run)
    batch = latency_batch(config, images)
    networks = {"dense": dense, "after_surgery": small, "final": final}
    results = measure(config, networks, describe(config, plan, dense, images), images, batch, run)

    def put(folder: Path) -> None:
        write_json(folder / artifacts.REPORT, results)
        write_json(folder / artifacts.STRUCTURE, observe(dense, final, plan, analysis, images, batch, run))
        report.write(folder)

    run.write(put)
    return results


def dense_network(config: PruneConfig, images: ImageData, run: Run) -> nn.Module:
    """Make the dense network, and train it unless it comes with weights."""
    checked = config.weights is None or config.rounds > 1 or config.retrain == "scratch"
    return training.dense_network(config, images, run, steps.rehearse if checked else None, config.retraining)


def analyze(config: PruneConfig, dense: nn.Module, images: ImageData) -> ChannelAnalysis:
    """Find which channels hang together."""
    with blame("--model", PruneConfig):
        return analyze_channels(dense, images.example(), ignored=config.ignored)


def sparse_network(
    config: PruneConfig, dense: nn.Module, analysis: ChannelAnalysis, images: ImageData, run: Run
) -> nn.Module:
    """Return the network that was trained under a penalty; the dense one without a penalty."""

    def find_weights(network: nn.Module) -> dict[str, nn.Parameter]:
        return prunable(network, images.example(), ignored=config.ignored)

    return train_sparse(config, dense, select_groups(analysis, config.streams), find_weights, images, run)


def prune_in_rounds(
    config: PruneConfig,
    network: nn.Module,
    rewound: nn.Module | None,
    dense: nn.Module,
    analysis: ChannelAnalysis,
    images: ImageData,
    run: Run,
) -> tuple[PruningPlan, nn.Module, nn.Module]:
    """Plan, cut and train again, as often as wanted; return the plan of all rounds, the last cut and the last result.

    What every round has made is saved at its end.
    """
    plan: PruningPlan | None = None
    finished, small, final = 0, network, network
    if done := run.finished("round"):
        finished = done.number
        plan, small, final = read(done.tensors, dense)
    for number in range(finished + 1, config.rounds + 1):
        decision = decide(config, number, plan, final, analysis, images, run)
        run.processes.agree("plan", decision.to_json().encode())
        with blame("--plan" if config.plan else flag_of(next(iter(config.target)))):
            small = apply_plan(final, decision, images.example())
        small = update(config, final, small, decision, images, run)
        plan = join(analysis, plan, decision) if plan else decision
        earlier = apply_plan(rewound, plan, images.example()) if rewound else None
        what = config.retraining
        stage = "fine-tune" if what.group == "fine_tune" else "retrain"
        stage = stage if config.rounds == 1 else f"{stage} {number} of {config.rounds}"
        final = retrain(config, what, stage, small, earlier, dense, images, run)
        if config.rounds > 1:
            target = {option.removeprefix("keep_"): keep for option, keep in config.target.items()}
            plan = replace(plan, target=target, options=plan.options | {"floor": config.floor, "rounds": config.rounds})
        run.write(partial(artifacts.save, model=final, plan=plan))
        run.commit("round", number, stored(plan, small, final))
    assert plan is not None  # there is at least one round
    return plan, small, final


def stored(plan: PruningPlan, small: nn.Module, final: nn.Module) -> dict[str, Tensor]:
    """Return what `read` makes a result of."""
    text = torch.frombuffer(bytearray(plan.to_json(), "utf-8"), dtype=torch.uint8)
    return {"plan": text} | training.stored(small=small, final=final)


def read(tensors: Mapping[str, Tensor], dense: nn.Module) -> tuple[PruningPlan, nn.Module, nn.Module]:
    """Make a result of the tensors of a checkpoint."""
    with blame("--resume"):
        plan = PruningPlan.from_json(bytes(tensors["plan"].numpy()).decode("utf-8"))
        small, final = (filled(cut(dense, plan), part(tensors, key)) for key in ("small", "final"))
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
        cost = _ANY if whole.quantity == "latency" else CostModel(analysis, whole.quantity).dense
        before = done.cost[whole.quantity] if done else {"dense": cost, "pruned": cost}
        here = whole
        if config.rounds > 1:
            here = target_of_round(whole, number, config.rounds, before["dense"], before["pruned"])
        target: dict[str, Any] = {option: here.keep}
        device = make_accelerator(config.device).device  # where methods that look at images need not wait long
        stack.enter_context(lent_to(device, network))

        def plan() -> PruningPlan:
            return make_plan(
                network,
                images.example().to(device),
                allocator=config.allocator,
                selector=config.selector,
                latency_batch=config.latency_batch,
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

        if whole.quantity != "latency":
            return plan()
        macs = CostModel(analysis, "macs").dense
        with steps.threads_for_macs(macs):  # as when the result is measured; no two processes measure the same times
            return PruningPlan.from_json(run.processes.from_first(lambda: plan().to_json()))


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


def describe(config: PruneConfig, plan: PruningPlan, dense: nn.Module, images: ImageData) -> dict[str, Any]:
    """Return what the report says of the plan, and the proof that the cut network is the masked one."""
    return {
        "allocator": plan.allocator,
        "selector": plan.selector,
        "gamma": plan.gamma,
        "distance": plan.options.get("distance"),
        "target": plan.target,
        "macs": plan.cost["macs"],
        "params": plan.cost["params"],
        **(latency_target(plan) if config.plan is None else {}),
        "surgery_error": verify(dense, plan, images.example()),
        "rounds": config.rounds,
        "update": config.update,
        "retrain": config.retrain,
        "epochs_after_dense": epochs_after_dense(config, config.retraining, images, config.rounds),
    }


def latency_target(plan: PruningPlan) -> dict[str, Any]:
    """Return what a plan with a target in time says of it: shares of the dense network's time, over all rounds."""
    records = [said["latency"] for said in plan.info.get("rounds", [plan.info]) if "latency" in said]
    if not records or "latency" not in plan.target:
        return {}
    shares = {
        name: math.prod(record[f"{name}_ms"]["pruned"] / record[f"{name}_ms"]["dense"] for record in records)
        for name in ("predicted", "measured")
    }
    return {
        "latency_target": {
            "wanted": plan.target["latency"],
            "predicted": shares["predicted"],
            "measured_when_planned": shares["measured"],
            "batch_size": records[-1]["batch_size"],
            "table": records[-1]["table"],
        }
    }


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
        return found | {"latency": report.layer_latency(dense, final, batch, seconds=run.seconds)}


def prune_and_show(config: PruneConfig, arguments: list[str], prog: str) -> None:
    """Prune in a new run folder, or go on in one, and show the result."""
    run = run_or_resume(config, arguments, prog, steps.check, prune)
    if not run.processes.first:
        return
    folder = run.folder.path
    console = make_console()
    console.print(result_table(read_json(folder / artifacts.REPORT)))
    console.print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", soft_wrap=True)
    code = code_flag(folder)
    read = f'srr_ext.load("{folder}"{", model=..." if code else ""})'
    advice = f"{prog.replace('prune', 'evaluate')} --run {shlex.quote(str(folder))}{code}; {read}"
    console.print(f"next: open {folder / artifacts.PAGE}; {advice}", soft_wrap=True)


main = command(PruneConfig, "srr_ext.prune", prune_and_show, by_many=True)

if __name__ == "__main__":
    sys.exit(main())
