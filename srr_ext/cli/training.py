"""The trainings that the commands share: of the dense network, under a penalty, and after pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from srr_ext import artifacts, models
from srr_ext.channels.records import ChannelGroup
from srr_ext.cli import steps
from srr_ext.cli.parsing import UsageError, blame, flag_of
from srr_ext.cli.running import Run, Session
from srr_ext.config import ModelAndData, RetrainOptions, Training
from srr_ext.data import ImageData
from srr_ext.files import DamagedFile
from srr_ext.plan import fingerprint
from srr_ext.processes import processes
from srr_ext.retraining import Moment, Retraining
from srr_ext.training import (
    AfterStep,
    Snapshots,
    SparseConfig,
    Stateful,
    TrainConfig,
    WeightMasks,
    make_accelerator,
    make_penalty,
    recalibrate_batch_norm,
    reinitialise,
    train,
)

_RECALIBRATION_BATCH = 100


@dataclass(frozen=True)
class Extras:
    """What a training may have beside its recipe; see `srr_ext.training.train`."""

    teacher: nn.Module | None = None
    after_step: AfterStep | None = None
    masks: WeightMasks | None = None
    begin: int = 0
    stateful: Mapping[str, Stateful] | None = None


def train_blaming(
    group: str,
    stage: str,
    model: nn.Module,
    images: ImageData,
    recipe: TrainConfig,
    config: ModelAndData,
    session: Session,
    extras: Extras = Extras(),
) -> None:
    """Train in place; what goes wrong is blamed on this group of flags, a divergence on its learning rate."""
    how: dict[str, Any] = {"device": config.device, "seed": config.seed, "stage": stage, **vars(extras)}
    how |= {"keeper": session.keeper(stage), "shard": isinstance(config, Training) and config.shard}
    try:
        with steps.threads_for(model, images), blame(flag_of(group), type(config), **{group: TrainConfig}):
            train(model, images, recipe, **how, progress=session.progress, log=session.log)
        session.processes.agree(f"weights after {stage!r}", fingerprint(model).encode())
    except FloatingPointError as error:
        raise UsageError(flag_of(f"{group}.lr"), str(error)) from error


def dense_network(
    config: Training,
    images: ImageData,
    session: Session,
    rehearse: Callable[[Any, nn.Module, ImageData], None] | None,
    what: Retraining | None = None,
) -> nn.Module:
    """Make the network and train it, unless it comes with weights or is there; return it in evaluation mode.

    Parameters
    ----------
    config : Training
        Everything the user decides.
    images : ImageData
        To train on.
    session : Session
        Shows how far the work is.
    rehearse : callable, optional
        ``(config, network, images)``: refuses before the training what would be refused after it.
    what : Retraining, optional
        What is trained after pruning; the weights that it goes back to are kept, too.
    """
    moments = [what.begin] if what is not None and what.weights == "rewound" and config.weights is None else []
    if what is not None and what.group == "dense":
        per_epoch = steps_per_epoch(images, config.dense)
        check_moments({str(what.begin): what.begin.step(per_epoch)}, per_epoch * what.recipe.epochs, "--rewind-to")
    model = steps.make_model(config, images, session)
    if rehearse is not None:
        rehearse(config, model.eval(), images)
    if config.weights is None:
        train_dense(config, model, images, session, moments)
    return model.eval()


def train_dense(
    config: Training, model: nn.Module, images: ImageData, session: Session, moments: Iterable[Moment] = ()
) -> None:
    """Train a network in place by the recipe of the dense one, and keep it, with what it was at some moments.

    One that was kept before this run was stopped is taken as it is.
    """
    if (kept := session.kept_dense()) is not None:
        with blame("--resume"):
            models.load_weights(model, kept)
        return
    per_epoch = steps_per_epoch(images, config.dense)
    wanted = {str(moment): moment.step(per_epoch) for moment in moments}
    check_moments(wanted, per_epoch * config.dense.epochs, "--snapshots")
    if config.shard and wanted:
        raise UsageError("--shard", "goes without snapshots, which need all weights in every process")
    snapshots = Snapshots(model, wanted.values())
    extras = Extras(after_step=snapshots.after_step, stateful={"snapshots": snapshots}) if wanted else Extras()
    train_blaming("dense", "train dense", model, images, config.dense, config, session, extras)
    session.keep_dense(model, {name: snapshots.states[step] for name, step in wanted.items()})


def check_moments(wanted: Mapping[str, int], n_steps: int, flag: str) -> None:
    """Refuse moments after the end of a training, before it begins, and blame a flag."""
    for name, step in wanted.items():
        if step > n_steps:
            raise UsageError(flag, f"there is no moment {name} in a training of {n_steps} steps; name an earlier one")


def steps_per_epoch(images: ImageData, recipe: TrainConfig) -> int:
    """Count the steps that an epoch of a recipe has."""
    return len(images.batches("train", recipe.batch_size, train=True).divided(processes()))


def rewound_network(config: RetrainOptions, what: Retraining, dense: nn.Module, run: Run) -> nn.Module | None:
    """Return the dense network as it was at the moment to rewind to; None if no weights are rewound."""
    if what.weights != "rewound":
        return None
    earlier = copy.deepcopy(dense)
    path = config.rewind_weights or run.folder.path / artifacts.snapshot_name(what.begin)
    with blame("--rewind-weights"):
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder; name the checkpoint file in it")
        models.load_weights(earlier, path)
    return earlier


def train_sparse(
    config: RetrainOptions,
    dense: nn.Module,
    groups: tuple[ChannelGroup, ...],
    find_weights: Callable[[nn.Module], Mapping[str, nn.Parameter]],
    images: ImageData,
    run: Run,
) -> nn.Module:
    """Return a copy that was trained under a penalty on groups or weights; without one the network as it is."""
    if config.sparse.penalty == "none" or run.finished("round"):  # after which nobody asks for it
        return dense
    if done := run.finished("sparse"):
        return filled(dense, done.tensors)
    network = copy.deepcopy(dense).to(make_accelerator(config.device).device)
    with blame("--sparse.penalty", type(config), sparse=SparseConfig):
        tensors = find_weights(network) if config.sparse.penalty == "l1" else None
        penalty = make_penalty(config.sparse, groups, network, tensors)
    extras = Extras(teacher=dense if config.sparse.distill else None, after_step=penalty.step)
    train_blaming("sparse", "train sparse", network, images, config.sparse, config, run, extras)
    run.say(penalty.report())
    run.commit("sparse", tensors=network.state_dict())
    return network.cpu().eval()


def filled(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with other weights."""
    other = copy.deepcopy(network)
    try:
        other.load_state_dict(dict(state))
    except RuntimeError as error:
        raise DamagedFile(f"the checkpoint is of another network ({error}); begin the run anew") from error
    return other


def stored(**networks: nn.Module) -> dict[str, Tensor]:
    """Return the weights of several networks as one table, for a checkpoint."""
    return {f"{key}:{name}": tensor for key, net in networks.items() for name, tensor in net.state_dict().items()}


def part(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """Return from such a table what belongs to one network."""
    start = f"{key}:"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def retrain(
    config: RetrainOptions,
    what: Retraining,
    stage: str,
    pruned: nn.Module,
    rewound: nn.Module | None,
    dense: nn.Module,
    images: ImageData,
    run: Run,
    extras_for: Callable[[nn.Module], Extras] | None = None,
) -> nn.Module:
    """Return a trained copy of the pruned network, of it as it was earlier, or of its architecture.

    Parameters
    ----------
    config : RetrainOptions
        Everything the user decides.
    what : Retraining
        Which weights, which recipe, from when on.
    stage : str
        What the training is called where weights are kept or rewound.
    pruned, rewound : nn.Module
        The pruned network, and the network of the earlier weights pruned likewise, where these are asked for.
    dense : nn.Module
        The teacher, where the recipe wants one.
    images : ImageData
        To train on.
    run : Run
        Shows how far the work is.
    extras_for : callable, optional
        Makes what else the training has, masks say, of the network that is trained.
    """
    device = make_accelerator(config.device).device
    if what.weights == "new":
        stage = "train from scratch"
        with blame("--retrain"):
            final = reinitialise(pruned, config.seed).to(device)
    elif what.weights == "rewound":
        assert rewound is not None
        final = copy.deepcopy(rewound).to(device)
    else:
        final = copy.deepcopy(pruned).to(device)
        here = run.processes
        calibration = images.batches("train", _RECALIBRATION_BATCH, train=True, seed=config.seed, device=device)
        with steps.threads_for(pruned, images), blame("--data"):
            recalibrate_batch_norm(final, calibration.divided(here), progress=run.progress, processes=here)
    begin = what.begin.step(steps_per_epoch(images, what.recipe))
    extras = Extras() if extras_for is None else extras_for(final)
    extras = replace(extras, teacher=dense if what.recipe.distill else None, begin=begin)
    train_blaming(what.group, stage, final, images, what.recipe, config, run, extras)
    return final.cpu().eval()  # where plans are made and proven


def epochs_after_dense(config: RetrainOptions, what: Retraining, images: ImageData, rounds: int = 1) -> float:
    """Count the epochs between the dense network and the result; a training anew stands for that of both."""
    sparse = config.sparse.epochs if config.sparse.penalty != "none" else 0
    if what.weights == "new":
        return float(what.recipe.epochs - config.dense.epochs)
    return sparse + rounds * what.epochs(steps_per_epoch(images, what.recipe))


@contextmanager
def round_named(number: int, rounds: int) -> Iterator[None]:
    """Let errors name the round, as the shares in them are shares of what it began with."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"round {number} of {rounds}: {error}" if rounds > 1 else str(error)) from error
