"""Unstructured pruning: from a network and images to one with few weights that are not zero, and a report.

    python -m srr_ext.sparsify                           # the embedded example, a quarter of the parameters left
    python -m srr_ext.sparsify --compression 10 --schedule iterative --retrain lr-rewind --epochs 10
    python -m srr_ext.sparsify --resume runs/x           # goes on with a run that was stopped, at whatever moment

The lottery ticket is ``--schedule iterative --retrain weight-rewind --rewind-to 0ep``. ``sparsify`` below is the whole
pipeline, one step a line.
"""

from __future__ import annotations

import copy
import shlex
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from srr_ext import artifacts
from srr_ext.channels import analyze_channels
from srr_ext.cli import steps, training
from srr_ext.cli.measuring import latency_batch, measure
from srr_ext.cli.parsing import UsageError, blame, command
from srr_ext.cli.running import Run, code_flag, run_or_resume
from srr_ext.cli.tables import make_console, sparse_table
from srr_ext.cli.training import (
    epochs_after_dense,
    filled,
    part,
    retrain,
    rewound_network,
    steps_per_epoch,
    train_sparse,
)
from srr_ext.config import SparsifyConfig
from srr_ext.criteria import SelectorContext
from srr_ext.data import ImageData
from srr_ext.files import read_json, write_json
from srr_ext.graph import select_groups
from srr_ext.models import architecture_of
from srr_ext.plan import fingerprint
from srr_ext.report import sparse_page
from srr_ext.sparsity import (
    Gradual,
    GradualPruning,
    Masks,
    choose,
    format_latency,
    get_score,
    gradual_steps,
    iterative_counts,
    parse_scope,
    prunable,
    sparse_cost,
    transposed_weights,
    weights_to_keep,
)
from srr_ext.training import make_accelerator, reinitialise
from srr_ext.training.lending import lent_to

_FEWEST = 4  # events of gradual pruning: it begins at the first, and what goes at fewer than three more goes at once


def sparsify(config: SparsifyConfig, run: Run) -> dict[str, Any]:
    """Run the pipeline.

    Parameters
    ----------
    config : SparsifyConfig
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
    network = sparse_network(config, dense, images, run)
    made, rounds = prune_in_rounds(config, network, rewound, dense, images, run)
    run.write(lambda folder: save(folder, made))
    results = measured(config, dense, made, rounds, images, run)
    run.write(lambda folder: report(folder, results))
    return results


@dataclass(frozen=True, eq=False)
class Sparse:
    """What pruning has made.

    Attributes
    ----------
    masks : Masks
        Which weights stay.
    pruned, final : nn.Module
        The network when the last weights had gone, and after it was trained again. For weights that went on the way of
        a training, the former is the network before it, without them.
    """

    masks: Masks
    pruned: nn.Module
    final: nn.Module


def dense_network(config: SparsifyConfig, images: ImageData, run: Run) -> nn.Module:
    """Make the dense network, and train it unless it comes with weights or is there."""
    return training.dense_network(config, images, run, rehearse, config.retraining)


def rehearse(config: SparsifyConfig, network: nn.Module, images: ImageData) -> None:
    """Refuse before a long training what would be refused after it: targets out of reach, layers that do not exist."""
    tensors = find_weights(config, images, network)
    if config.masks is not None:
        given_masks(config, network, images)
    elif not is_given(config):
        weights_left(config, network, tensors)
    elif config.masks is None:
        pattern_fits(config, network, tensors)
    if config.schedule == "gradual":
        removals(config, images)
    if config.retrain == "reinit":
        with blame("--retrain"):
            reinitialise(network)


def pattern_fits(config: SparsifyConfig, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a pattern that no tensor takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tensors that do not, which comes later
        masks = choose(tensors, Masks.ones(tensors), None, config.scope, transposed=transposed_weights(network))
    if masks.kept == masks.total:
        raise UsageError("--scope", f"{config.scope} divides the inputs of no layer, so that nothing would go")


def find_weights(config: SparsifyConfig, images: ImageData, network: nn.Module) -> dict[str, nn.Parameter]:
    """Find the tensors whose weights may go."""
    with blame("--model", SparsifyConfig):
        return prunable(network, images.example(), classifier=config.classifier, ignored=config.ignored)


def weights_left(config: SparsifyConfig, network: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    """Count the weights that the target leaves."""
    with blame("--density" if config.density is not None else "--compression", SparsifyConfig):
        return weights_to_keep(network, tensors, **config.target)


def given_masks(config: SparsifyConfig, network: nn.Module, images: ImageData) -> Masks:
    """Read the masks of another run."""
    assert config.masks is not None
    with blame("--masks"):
        masks = Masks.load(config.masks)
        masks.check(network)
        may_go = prunable(network, images.example(), classifier=True)
        if others := [name for name in masks if name not in may_go]:
            raise ValueError(f"{config.masks} masks {others[0]}, of which no single weights go")
    return masks


def sparse_network(config: SparsifyConfig, dense: nn.Module, images: ImageData, run: Run) -> nn.Module:
    """Return the network that was trained under a penalty; the dense one without a penalty."""
    if config.sparse.penalty == "none":
        return dense
    with blame("--model", SparsifyConfig):
        groups = select_groups(analyze_channels(dense, images.example(), ignored=config.ignored))
    return train_sparse(config, dense, groups, partial(find_weights, config, images), images, run)


def prune_in_rounds(
    config: SparsifyConfig,
    network: nn.Module,
    rewound: nn.Module | None,
    dense: nn.Module,
    images: ImageData,
    run: Run,
) -> tuple[Sparse, int]:
    """Remove weights and train again, as often as wanted; return the result and the number of rounds.

    A run that was stopped goes on after the last round that it has finished.
    """
    counts = rounds_of(config, network, images)
    first, made = 0, Sparse(Masks.ones(find_weights(config, images, network)), network, network)
    if done := run.finished("round"):
        first, made = done.number, read(done.tensors, made.masks, network)
    for number, count in enumerate(counts[first:], first + 1):
        stage = "retrain" if len(counts) == 1 else f"retrain {number} of {len(counts)}"
        once = prune_gradually if config.schedule == "gradual" else prune_at_once
        made = once(config, made, count, stage, rewound, dense, images, run)
        run.commit("round", number, stored(made))
    return made, len(counts)


def rounds_of(config: SparsifyConfig, network: nn.Module, images: ImageData) -> tuple[int | None, ...]:
    """Return how many weights each round leaves; None where given masks or a pattern say it."""
    if is_given(config):
        return (None,)
    tensors = find_weights(config, images, network)
    keep = weights_left(config, network, tensors)
    if config.schedule != "iterative":
        return (keep,)
    with blame("--rate", SparsifyConfig):
        return iterative_counts(sum(tensor.numel() for tensor in tensors.values()), keep, config.rate)


def prune_at_once(
    config: SparsifyConfig,
    made: Sparse,
    count: int | None,
    stage: str,
    rewound: nn.Module | None,
    dense: nn.Module,
    images: ImageData,
    run: Run,
) -> Sparse:
    """Remove weights, then train what is left."""
    masks = decide(config, made, count, images, run)
    run.processes.agree("masks", fingerprint(masked(made.final, masks)).encode())
    pruned, earlier = masked(made.final, masks), masked(rewound, masks) if rewound else None

    def keep_zeros(network: nn.Module) -> training.Extras:
        return training.Extras(masks=masks)

    final = retrain(config, config.retraining, stage, pruned, earlier, dense, images, run, keep_zeros)
    return Sparse(masks, pruned, final)


def prune_gradually(
    config: SparsifyConfig,
    made: Sparse,
    count: int | None,
    stage: str,
    rewound: nn.Module | None,
    dense: nn.Module,
    images: ImageData,
    run: Run,
) -> Sparse:
    """Remove weights on the way of a training."""
    assert count is not None
    what, growing = config.retraining, list[GradualPruning]()
    begin = what.begin.step(steps_per_epoch(images, what.recipe))
    data, score = steps.calibration(config, images), get_score(config.score)

    def context(network: nn.Module) -> SelectorContext:
        return SelectorContext(network, images.example(), config.seed, data=data)

    def prune_on_the_way(network: nn.Module) -> training.Extras:
        events = removals(config, images)
        growing.append(GradualPruning(network, made.masks, count, score, config.scope, events, context, begin=begin))
        return training.Extras(after_step=growing[0].step, masks=growing[0], stateful={"gradual": growing[0]})

    final = retrain(config, what, stage, made.final, rewound, dense, images, run, prune_on_the_way)
    return Sparse(growing[0].masks, masked(made.final, growing[0].masks), final)


def removals(config: SparsifyConfig, images: ImageData) -> list[int]:
    """Return at which steps of the recipe weights go gradually: from the first on, at all that follow."""
    what = config.retraining
    per_epoch = steps_per_epoch(images, what.recipe)
    with blame("--schedule"):
        found = gradual_steps(config.gradual, what.begin.step(per_epoch), what.recipe.epochs * per_epoch)
    if len(found) < _FEWEST:
        taken = what.recipe.epochs * per_epoch - found[0]
        raise UsageError(
            "--gradual.every",
            f"is {config.gradual.every}, so that of {taken} steps weights go after {len(found) - 1}; lower it, give "
            "the training more epochs, or prune at once",
        )
    return found


def decide(config: SparsifyConfig, made: Sparse, count: int | None, images: ImageData, run: Run) -> Masks:
    """Choose the weights that stay, or read the masks that were given."""
    if config.masks is not None:
        return given_masks(config, made.final, images)
    device = make_accelerator(config.device).device  # where scores that look at images need not wait long
    with blame("--score", SparsifyConfig), lent_to(device, made.final):
        data, example = steps.calibration(config, images), images.example().to(device)
        context = SelectorContext(made.final, example, config.seed, data=data, progress=run.progress)
        tensors = {name: made.final.get_parameter(name).detach() for name in made.masks}
        scores = get_score(config.score)(tensors, context)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            masks = choose(scores, made.masks, count, config.scope, transposed=transposed_weights(made.final))
        for warning in told:
            run.say(str(warning.message))
        return masks


def masked(network: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy without the weights that go."""
    other = copy.deepcopy(network)
    masks.apply(other)
    return other


def stored(made: Sparse) -> dict[str, Tensor]:
    """Return what `read` makes a result of."""
    masks = {f"masks:{name}": mask for name, mask in made.masks.items()}
    return masks | training.stored(pruned=made.pruned, final=made.final)


def read(tensors: Mapping[str, Tensor], masks: Masks, network: nn.Module) -> Sparse:
    """Make a result of the tensors of a checkpoint; other masks give the order of theirs."""
    with blame("--resume"):
        found = Masks({name: tensors[f"masks:{name}"] for name in masks})
        found.check(network)
        pruned, final = (filled(network, part(tensors, key)) for key in ("pruned", "final"))
    return Sparse(found, pruned, final)


def describe(config: SparsifyConfig, dense: nn.Module, made: Sparse, rounds: int, images: ImageData) -> dict[str, Any]:
    """Return what the report says of the method and of what it has left."""
    return {
        "allocator": "sparsify",  # the report of every method names these two
        "selector": "given" if config.masks else config.score,
        "scope": "given" if config.masks else config.scope,
        "schedule": "given" if config.masks else config.schedule,
        "removals": len(removals(config, images)) - 1 if config.schedule == "gradual" else rounds,
        "target": {} if is_given(config) else config.target,
        **sparse_cost(dense, made.masks, images.example()),
        "density": made.masks.density,
        "layers": {
            name: {"kept": int(mask.sum()), "dense": mask.numel(), "shape": list(mask.shape)}
            for name, mask in made.masks.items()
        },
        "rounds": rounds,
        "update": "none",
        "retrain": config.retrain,
        "epochs_after_dense": epochs_after_dense(config, config.retraining, images, rounds),
    }


def is_given(config: SparsifyConfig) -> bool:
    """Whether given masks or a pattern, not a target, say how much is left."""
    return config.masks is not None or not isinstance(parse_scope(config.scope), str)


def measured(
    config: SparsifyConfig, dense: nn.Module, made: Sparse, rounds: int, images: ImageData, run: Run
) -> dict[str, Any]:
    """Measure accuracy, and the latency in every form that torch can compute sparse layers in."""
    batch = latency_batch(config, images)
    networks = {"dense": dense, "after_surgery": made.pruned, "final": made.final}
    results = measure(config, networks, describe(config, dense, made, rounds, images), images, batch, run)
    with steps.threads_for(dense, images):
        taken = partial(format_latency, dense, made.final, batch, seconds=run.seconds)
        return results | {"formats": run.processes.from_first(taken)}


def save(folder: Path, made: Sparse) -> None:
    """Write the network and its masks."""
    artifacts.write_architecture(folder, architecture_of(made.final))
    artifacts.write_tensors(folder / artifacts.WEIGHTS, made.final)
    made.masks.save(folder / artifacts.MASKS)


def report(folder: Path, results: dict[str, Any]) -> None:
    """Write what was found, as data and as a page."""
    write_json(folder / artifacts.REPORT, results)
    sparse_page.write(folder)


def check(config: SparsifyConfig) -> None:
    """Refuse settings that cannot be, before any work.

    Raises
    ------
    UsageError
        It names the flag.
    """
    steps.check(config)
    with blame("--score"):
        get_score(config.score)
    with blame("--scope"):
        pattern = not isinstance(parse_scope(config.scope), str)
    if config.compression is not None and config.density is not None:
        raise UsageError("--density", "goes alone, without --compression")
    if (pattern or config.masks is not None) and (config.compression is not None or config.density is not None):
        flag = "--density" if config.density is not None else "--compression"
        given = "--masks" if config.masks is not None else f"--scope {config.scope}"
        raise UsageError(flag, f"goes without {given}, which says how many weights stay")
    if (pattern or config.masks is not None) and config.schedule != "one-shot":
        raise UsageError("--schedule", f"must be one-shot where masks or a pattern are given, but is {config.schedule}")
    if config.masks is not None and (config.score, config.scope) != (SparsifyConfig.score, SparsifyConfig.scope):
        raise UsageError("--masks", "goes without --score and --scope, which say how masks are chosen")
    if config.schedule == "iterative" and config.retrain == "reinit":
        raise UsageError(
            "--retrain",
            "reinit goes without --schedule iterative: there are no weights to go on from; the control of a lottery "
            "ticket is --masks RUN/masks.safetensors --retrain reinit",
        )
    if not 0 < config.rate <= 1:
        raise UsageError("--rate", f"must be in (0, 1], but is {config.rate}")
    if config.rate != SparsifyConfig.rate and config.schedule != "iterative":
        raise UsageError("--rate", f"goes with --schedule iterative, but that is {config.schedule}")
    if config.gradual != Gradual() and config.schedule != "gradual":
        raise UsageError("--gradual", f"goes with --schedule gradual, but that is {config.schedule}")
    steps.check_rewinding(config, "scratch" if config.retrain == "reinit" else config.retrain)
    if config.shard:
        raise UsageError("--shard", "goes without srr sparsify, whose masks need all weights in every process")


def sparsify_and_show(config: SparsifyConfig, arguments: list[str], prog: str) -> None:
    """Sparsify in a new run folder, or go on in one, and show the result."""
    run = run_or_resume(config, arguments, prog, check, sparsify)
    if not run.processes.first:
        return
    folder = run.folder.path
    console = make_console()
    console.print(sparse_table(read_json(folder / artifacts.REPORT)))
    console.print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", soft_wrap=True)
    code = code_flag(folder)
    read = f'srr_ext.load("{folder}"{", model=..." if code else ""})'
    advice = f"{prog.replace('sparsify', 'evaluate')} --run {shlex.quote(str(folder))}{code}; {read}"
    console.print(f"next: open {folder / artifacts.PAGE}; {advice}", soft_wrap=True)


main = command(SparsifyConfig, "srr_ext.sparsify", sparsify_and_show, by_many=True)

if __name__ == "__main__":
    sys.exit(main())
