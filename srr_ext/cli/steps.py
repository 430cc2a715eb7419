"""First steps that the commands share: check the settings, read the images, make the network; each blames its flag."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from srr_ext import data, models
from srr_ext.allocators import get_allocator
from srr_ext.calibration import Batch, Calibration
from srr_ext.cli.parsing import UsageError, blame, flag_of
from srr_ext.cli.running import Run, Session
from srr_ext.config import AnalyzeConfig, ModelAndData, Planning, PruneConfig, RetrainOptions, Training
from srr_ext.cost import Target
from srr_ext.criteria import get_selector
from srr_ext.data import Augment, ImageData
from srr_ext.measuring import attention_in_steps
from srr_ext.plan import PruningPlan, make_plan
from srr_ext.processes import one_by_one_on_a_node, processes
from srr_ext.retraining import Retrain
from srr_ext.surgery import apply_plan
from srr_ext.training import make_accelerator, reinitialise
from srr_ext.updates import get_update

_SEEDS = 1 << 63  # what torch's generators take
_CALIBRATION_BATCH = 64  # the mini-batch over which gradients are averaged before they are squared (taylor2019)
_TINY = 5_000_000  # multiply-accumulates per image; a CIFAR ResNet-20 has 40 million


def load_data(config: ModelAndData, session: Session, *, test_only: bool = False) -> ImageData:
    """Read the images, or blame ``--data`` or the flag that goes with it."""
    settings: dict[str, Any] = {}
    if isinstance(config, Training):
        settings = {"validation": config.validation, "augment": config.augment}
    settings |= {"seed": split_seed(config), "image_size": config.image_size, "workers": config.workers}
    settings |= {"skip_corrupt": config.skip_corrupt}

    def read() -> ImageData:
        images = data.load(
            config.data, download=config.download, test_only=test_only, progress=session.progress, **settings
        )
        if left := images.skipped:
            count = (
                f"{left.train} training and {left.test} test images" if not test_only else f"{left.test} test images"
            )
            session.say(f"left out {count} that cannot be read, the first {left.first}")
        return images

    in_turn = one_by_one_on_a_node() if config.download else nullcontext()
    with blame("--data", type(config), augment=Augment), in_turn:
        images = session.once(("images", config.data, test_only, *settings.items()), read)
    if config.skip_corrupt and isinstance(session, Run):  # for the report
        session.origin["skipped_images"] = {"train": images.skipped.train, "test": images.skipped.test}
    if isinstance(config, Training) and not images.size("train"):
        raise UsageError("--validation", f"is {config.validation}, which leaves no images for training; lower it")
    return images


def split_seed(config: ModelAndData) -> int:
    """Return what fixes which training images are held out."""
    given = config.split_seed if isinstance(config, Training) else None
    return config.seed if given is None else given


def calibration(config: RetrainOptions, images: ImageData) -> Calibration:
    """Return the images that a decision may look at; they are read when it does."""
    n_batches = max(1, config.calibration // _CALIBRATION_BATCH)
    size = min(_CALIBRATION_BATCH, config.calibration)

    def scored() -> list[Batch]:
        batches = islice(images.batches("train", size, train=True, seed=config.seed), n_batches)
        return [batch for batch in batches if len(batch[1]) == size]  # means over batches are then means over images

    def checked() -> list[Batch]:
        return list(images.batches("validation", _CALIBRATION_BATCH))

    return Calibration(ReadOnce(scored), ReadOnce(checked))


class ReadOnce:
    """Batches that are read when they are first gone through, and then held."""

    def __init__(self, read: Callable[[], list[Batch]]) -> None:
        self._read = read

    @cached_property
    def _held(self) -> list[Batch]:
        return self._read()

    def __iter__(self) -> Iterator[Batch]:
        """Go through them."""
        return iter(self._held)


def make_model(config: ModelAndData, images: ImageData, session: Session) -> nn.Module:
    """Make the network for these images and say how it was adapted, or blame ``--model`` or ``--weights``."""
    torch.manual_seed(config.seed)  # of the initial weights
    if config.weights is not None and Path(config.weights).is_dir():
        raise UsageError("--weights", f"{config.weights} is a folder; name the checkpoint file in it")
    shape: dict[str, Any] = {"in_channels": images.in_channels, "image_size": images.image_size}
    in_turn = one_by_one_on_a_node() if config.weights == "pretrained" else nullcontext()
    with blame("--model", type(config)), in_turn:
        model = models.create(config.model, len(images.classes), config.weights, **shape)
        check_fit(model.eval(), config.model, images)
    architecture = models.architecture_of(model)
    for note in architecture.notes if architecture else ():
        session.say(note)
    return model.train()


@torch.no_grad()
def check_fit(model: nn.Module, name: str, images: ImageData) -> None:
    """Raise a ValueError unless the network reads these images and scores their classes."""
    example = images.example()
    try:
        scores = model(example)
    except Exception as error:  # code of the user's own, which may raise anything
        text = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot read images {list(example.shape[1:])}: {text}") from error
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or scores.shape[1] < len(images.classes):
        raise ValueError(f"{name} does not give one score for each of {len(images.classes)} classes")
    if not scores.isfinite().all():
        raise ValueError(f"{name} gives scores that are not finite, for the first image; check its weights and layers")


def rehearse(config: Planning, model: nn.Module, images: ImageData) -> None:
    """Refuse before a long training what would be refused after it: targets out of reach, layers that do not exist.

    How far a plan can go depends on the shapes, the floors and the options, not on the weights; so the cheapest
    method shows it. A plan that is there already is tried as it is.
    """
    if isinstance(config, PruneConfig) and config.plan is not None:
        with blame("--plan"):
            apply_plan(model, given_plan(config, config.plan), images.example())
        return
    if isinstance(config, AnalyzeConfig) and config.gamma != "auto":
        return  # nothing has to be reached
    if isinstance(config, PruneConfig) and config.retrain == "scratch":
        with blame("--retrain"):
            reinitialise(model)
    options: dict[str, Any] = {"streams": config.streams, "ignored": config.ignored}
    if isinstance(config, PruneConfig):
        options |= {"floor": config.floor, "round_to": config.round_to}
    # How far a time can go is known only when it has been measured; everything else is checked all the same.
    target: dict[str, Any] = {"keep_channels": 1.0} if config.keep_latency is not None else config.target
    with blame(flag_of(next(iter(config.target))), type(config)):
        make_plan(model, images.example(), allocator="uniform", selector="random", **options, **target)


def given_plan(config: PruneConfig, path: Path) -> PruningPlan:
    """Read the plan that is to be cut by; raise a ValueError if it does not reach the target that was given with it."""
    plan = PruningPlan.load(path)
    for option, keep in config.targets.items():
        quantity = option.removeprefix("keep_")
        cost = plan.cost.get(quantity, {"dense": 1, "pruned": 1})
        if cost["pruned"] > Target(quantity, keep).limit(cost["dense"]):  # type: ignore[arg-type]  # see _check_target
            share = cost["pruned"] / cost["dense"]
            raise ValueError(f"{path} keeps {share:.4f} of the {quantity}, more than the {keep} of {flag_of(option)}")
    return plan


@contextmanager
def threads_for(model: nn.Module, images: ImageData) -> Iterator[None]:
    """Use one thread for a while if the network is tiny.

    A layer then takes microseconds, of which a second thread saves little; but where the cores are busy with other
    work, waiting for that thread at the end of every layer costs ten times as much as everything else.
    """
    with threads_for_macs(count_macs(model, images)):
        yield


@contextmanager
def threads_for_macs(macs: int) -> Iterator[None]:
    """Use one thread for a while if a network has so few multiply-accumulates that it is tiny; see `threads_for`."""
    before = torch.get_num_threads()
    if macs < _TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_macs(model: nn.Module, images: ImageData) -> int:
    """Multiply-accumulates of one image, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), attention_in_steps():
        copy.deepcopy(model).cpu().eval()(images.example())
    return counter.get_total_flops() // 2


def check_device(config: ModelAndData) -> torch.device:
    """Return the device, or blame ``--device``."""
    with blame("--device"):
        return make_accelerator(config.device).device


def check(config: ModelAndData) -> None:
    """Refuse devices, targets, methods and limits that cannot be, before any work."""
    check_device(config)
    limits = {"seed": (0 <= config.seed < _SEEDS, "at least 0 and below 2^63")}
    if isinstance(config, Training):
        if config.dense.distill:
            raise UsageError("--dense.distill", "the dense network has no teacher; --fine-tune.distill learns from it")
        limits["split_seed"] = (0 <= split_seed(config) < _SEEDS, "at least 0 and below 2^63")
        if config.shard and processes().count == 1:
            raise UsageError("--shard", "is for several processes; start them with torchrun, or leave it out")
        limits["validation"] = (0 <= config.validation < 1, "in [0, 1)")
    if isinstance(config, Planning):
        _check_target(config)
        limits["gamma"] = (config.gamma == "auto" or config.gamma > 0, "'auto' or above 0")
        limits["latency_batch"] = (config.latency_batch >= 1, "at least 1")
    if isinstance(config, RetrainOptions):
        if config.shard and config.sparse.penalty != "none":
            raise UsageError("--shard", "goes without --sparse.penalty, which needs all weights in every process")
        limits["calibration"] = (config.calibration >= 1, "at least 1")
    if isinstance(config, PruneConfig):
        check_rewinding(config, config.retrain)
        with blame("--allocator"):
            get_allocator(config.allocator)
        with blame("--selector"):
            get_selector(config.selector)
        if config.update != "none":
            with blame("--update"):
                get_update(config.update)
        if config.retrain == "scratch" and config.rounds > 1:
            raise UsageError("--retrain", "scratch goes without --rounds: there are no weights to go on from")
        if config.retrain in ("scratch", "weight-rewind") and config.update != "none":
            raise UsageError("--retrain", f"{config.retrain} goes without --update: no weight stays")
        limits["floor"] = (0 <= config.floor < 1, "in [0, 1)")
        limits["round_to"] = (config.round_to >= 1, "at least 1")
        limits["rounds"] = (config.rounds >= 1, "at least 1")
    for name, (holds, wanted) in limits.items():
        if not holds:
            raise UsageError(flag_of(name), f"must be {wanted}, but is {getattr(config, name)}")


def check_rewinding(config: RetrainOptions, retrain: Retrain) -> None:
    """Refuse rewinding to where there is nothing, or without the weights, and weights that nothing asks for."""
    with blame("--rewind-to", type(config)):
        what = config.retrain_by(retrain)
    if what.weights != "rewound":
        if config.rewind_weights is not None:
            raise UsageError("--rewind-weights", "goes with --retrain weight-rewind; nothing else rewinds weights")
    elif config.weights is not None and config.rewind_weights is None:
        raise UsageError(
            "--rewind-weights",
            f"is needed beside --weights: the checkpoint of the dense network at {what.begin} of its training, which "
            f"srr train --snapshots {what.begin} keeps; or leave --weights out, to train the network here",
        )
    elif config.weights is None and config.rewind_weights is not None:
        raise UsageError("--rewind-weights", "goes with --weights; a network that is trained here keeps its own")
    if config.rewind_to is not None and retrain not in ("lr-rewind", "weight-rewind"):
        raise UsageError("--rewind-to", f"goes with --retrain lr-rewind or weight-rewind, but that is {retrain}")


def _check_target(config: Planning) -> None:
    given = list(config.targets)
    if len(given) > 1:
        raise UsageError(flag_of(given[1]), f"goes alone, without {flag_of(given[0])}")
    for name, keep in config.target.items():
        with blame(flag_of(name)):
            Target(name.removeprefix("keep_"), keep)  # type: ignore[arg-type]  # the names are its quantities
    if isinstance(config, PruneConfig) and config.plan is not None and config.rounds > 1:
        raise UsageError("--plan", "goes without --rounds: the plan is cut at once")
