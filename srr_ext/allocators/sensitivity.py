"""How much accuracy each group alone costs, measured; the group that costs least loses the next vertex."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.calibration import Batch
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target
from srr_ext.files import cache_folder, read_json, write_json
from srr_ext.inputs import detached, run
from srr_ext.layers import channels_of, kept_positions, zero_outputs
from srr_ext.measuring import measuring

CACHE_VERSION = 1


@dataclass(frozen=True)
class Sensitivity:
    r"""Remove next what costs least accuracy on validation images, measured for each group alone.

    Parameters
    ----------
    rates : int, default 6
        At how many numbers of removals each group is measured, evenly spread up to the most that may go.
    images : int, default 2000
        How many validation images to look at, in whole batches from the first on; 0 for all. Each measurement is a pass
        over them, and there are rates times groups.
    cache : bool, default True
        Keep measurements in ``$XDG_CACHE_HOME/srr_ext`` (``~/.cache/srr_ext`` without that variable), in a file named
        after all they depend on, and read them from there. Another target, say, measures nothing.

    Raises
    ------
    ValueError
        If ``rates`` is below 1 or ``images`` below 0; when called, if there are no validation images, the model gives
        no class scores, or the target is out of reach.
    TypeError
        If ``rates`` or ``images`` is not an integer, or ``cache`` not a bool.

    Warns
    -----
    UserWarning
        If a file of the cache is damaged, which is measured again, or the cache cannot be written.

    Notes
    -----
    With the :math:`k` least important vertices of group :math:`l` at zero, and all others as they are, the accuracy is
    :math:`a_l(k)`; :math:`a(0)` with all of them. The drop :math:`a(0) - a_l(k)` is interpolated linearly between the
    measured :math:`k` and 0, and made monotone by its running maximum, because accuracy goes up and down by chance:
    :math:`D_l`. The next vertex goes from the group with the least :math:`D_l(k + 1)`, so that at the end every group
    has been pruned until its own drop is about the same (or to its floor). Zeroing filters with their biases and their
    normalisation is exactly what removing them does.

    ``info`` has ``accuracy`` (percent, dense), ``images``, ``drop`` (the largest :math:`D_l` of what goes) and
    ``groups``: for each name, ``removed`` and the ``accuracy`` measured there.

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf. Pruning filters for efficient ConvNets. ICLR 2017, arXiv 1608.08710, section
    3.2; Han, Pool, Tran, Dally. Learning both weights and connections for efficient neural networks. NIPS 2015,
    arXiv 1506.02626. Both set thresholds by hand from such curves; to take the least drop next is ours.
    """

    rates: int = 6
    images: int = 2000
    cache: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        for name, value, least in (("rates", self.rates, 1), ("images", self.images, 0)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not isinstance(self.cache, bool):
            raise TypeError(f"cache must be true or false, got {self.cache!r}")

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
    ) -> Allocation:
        """Return the vertices kept per group, and what was measured; see `Allocator`."""
        points = [_points(schedule.limit, self.rates) for schedule in context.schedules]
        found = self._cached(groups, points, context) if self.cache else self._measured(groups, points, context)
        drops = []
        for group, removed, schedule in zip(groups, points, context.schedules, strict=True):
            measured = found["accuracy"] - np.array(found["groups"][group.name]["accuracy"])
            monotone = np.maximum.accumulate([0.0, *measured])
            drops.append(np.interp(np.arange(1, schedule.limit + 1), [0, *removed], monotone))
        counts = merge(groups, [-drop for drop in drops], cost, target, context)
        gone = [group.size - count for group, count in zip(groups, counts, strict=True)]
        largest = max((float(drop[k - 1]) for drop, k in zip(drops, gone, strict=True) if k), default=0.0)
        return Allocation(tuple(counts), {**found, "drop": largest})

    def _batches(self, context: AllocatorContext) -> Iterator[Batch]:
        """Go through the first validation images, on the device."""
        seen = 0
        for inputs, targets in context.validation_batches():
            yield inputs, targets
            seen += len(targets)
            if 0 < self.images <= seen:
                break

    def _measured(
        self, groups: Sequence[ChannelGroup], points: Sequence[Sequence[int]], context: AllocatorContext
    ) -> dict[str, Any]:
        """Measure the accuracy without pruning, and with each group alone pruned to each of its points."""
        model = context.working_copy()
        modules = dict(model.named_modules())
        n_images = sum(len(targets) for _, targets in self._batches(context))
        found: dict[str, Any] = {}
        with context.progress.stage("sensitivity", 1 + sum(map(len, points))) as step:
            dense = _accuracy(model, self._batches(context), context.seed)
            step(note=f"{dense:.2f} %")
            for group, schedule, removed in zip(groups, context.schedules, points, strict=True):
                accuracies = []
                producers_and_followers = {m.module for m in group.members if m.side == "out"}
                before = [p for name in producers_and_followers for p in modules[name].parameters(recurse=False)]
                saved = [parameter.detach().clone() for parameter in before]
                for k in removed:
                    kept = {group.name: schedule.kept(group.size - k)}
                    for (name, side), stay in kept_positions([group], kept).items():
                        if side == "out" and not isinstance(modules[name], nn.PReLU):  # any slope keeps zero at zero
                            width = channels_of(modules[name], "out") or 0
                            zero_outputs(modules[name], np.setdiff1d(np.arange(width), stay))
                    accuracies.append(_accuracy(model, self._batches(context), context.seed))
                    step(note=group.name)
                for parameter, value in zip(before, saved, strict=True):
                    parameter.data.copy_(value)
                found[group.name] = {"removed": list(removed), "accuracy": accuracies}
        return {"accuracy": dense, "images": n_images, "groups": found}

    def _cached(
        self, groups: Sequence[ChannelGroup], points: Sequence[Sequence[int]], context: AllocatorContext
    ) -> dict[str, Any]:
        """Read from the cache what was measured, or measure and put it there."""
        key = self._key(groups, points, context)
        try:
            path = cache_folder() / "sensitivity" / f"{key}.json"
        except RuntimeError as error:  # no home folder
            warnings.warn(f"the cache cannot be written ({error}); set XDG_CACHE_HOME", stacklevel=5)
            return self._measured(groups, points, context)
        if path.is_file():
            try:
                return _checked(read_json(path), key, groups, points)
            except (ValueError, OSError) as error:
                warnings.warn(f"{path} is no whole record ({error}); it is measured again", stacklevel=5)
        found = self._measured(groups, points, context)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"version": CACHE_VERSION, "key": key, "found": found})
        except OSError as error:
            warnings.warn(
                f"the cache cannot be written ({error}); set XDG_CACHE_HOME to a folder of yours", stacklevel=5
            )
        return found

    def _key(self, groups: Sequence[ChannelGroup], points: Sequence[Sequence[int]], context: AllocatorContext) -> str:
        """Return a digest of all that the measurements depend on: model, images, vertices, numbers to remove."""
        from srr_ext.plan import fingerprint  # which imports the allocators

        digest = hashlib.sha256()
        architecture = f"{type(context.model).__module__}.{type(context.model).__qualname__}\n{context.model!r}"
        setting = [CACHE_VERSION, fingerprint(context.model), architecture, torch.__version__, context.device.type]
        digest.update(json.dumps(setting).encode())
        for group, schedule, removed in zip(groups, context.schedules, points, strict=True):
            members = [(member.module, member.side, member.vertex.tolist()) for member in group.members]
            content = [group.name, members, schedule.order[: schedule.limit].tolist(), list(removed)]
            digest.update(json.dumps(content).encode())
        for batch in self._batches(context):
            for leaf in tree_leaves(batch):
                if isinstance(leaf, Tensor):
                    data = leaf.detach().cpu().contiguous()
                    digest.update(f"{data.dtype} {tuple(data.shape)}\n".encode())
                    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
                else:
                    digest.update(f"{leaf!r}\n".encode())
        return digest.hexdigest()


def _points(limit: int, rates: int) -> list[int]:
    """Numbers of removals to measure at: increasing, the last one all that may go."""
    return sorted({max(1, round(limit * j / rates)) for j in range(1, rates + 1)}) if limit else []


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Iterator[Batch], seed: int) -> float:
    """Share of targets that the highest score hits, in percent."""
    right, total = None, 0
    for inputs, targets in batches:
        with measuring(seed):
            scores = run(model, detached(inputs))
        if not isinstance(scores, Tensor) or scores.ndim < 2 or scores.argmax(1).shape != targets.shape:
            given = f"a tensor {list(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise ValueError(
                f"allocator: sensitivity measures accuracy, so the model must give scores [b, n_classes] for targets "
                f"[b], got {given} for targets {list(targets.shape)}"
            )
        hits = (scores.argmax(1) == targets).sum()
        right, total = hits if right is None else right + hits, total + targets.numel()
    return 100 * int(right) / total if right is not None else 0.0


def _checked(record: Any, key: str, groups: Sequence[ChannelGroup], points: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return what a cache file holds, if it is what was asked for."""
    try:
        found = record["found"]
        whole = record["version"] == CACHE_VERSION and record["key"] == key
        numbers = [found["accuracy"], found["images"]]
        for group, removed in zip(groups, points, strict=True):
            entry = found["groups"][group.name]
            numbers += entry["accuracy"]
            whole &= entry["removed"] == list(removed) and len(entry["accuracy"]) == len(removed)
        whole &= all(type(number) in (int, float) for number in numbers)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record of sensitivities: {error!r}") from error
    if not whole:
        raise ValueError("not the record its name says")
    return found


sensitivity = register_allocator("sensitivity")(Sensitivity())
