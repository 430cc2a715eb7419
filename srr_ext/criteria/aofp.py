"""Approximated oracle filter pruning: how much the next layer notices when a random half of the filters is masked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.channels.records import ChannelGroup, Member
from srr_ext.criteria.base import SelectorContext, register_selector
from srr_ext.criteria.gates import channel_dim, direct_norms
from srr_ext.inputs import detached, first_argument, run
from srr_ext.measuring import measuring
from srr_ext.transfers import to_device, to_host


@dataclass(frozen=True)
class AOFP:
    r"""Search for the filters whose absence the next layer notices least, by halving.

    In every step a random half of the search space is masked, and the damage is measured where the channels are read
    next. After ``steps`` of them the half of the filters that did the least damage on average is the new search space,
    and so on until one filter is left. Filters that leave the search space earlier matter more.

    Parameters
    ----------
    steps : int, default 32
        Masks per halving; they take turns over the batches of the calibration data. The authors draw 1000, one per
        mini-batch of 64, while they go on training.
    halvings : int, default 64
        Stop after this many, at the latest when every search space is a single filter, which the default never cuts
        short. 1 is the cheap form, registered as ``aofp_one_pass``: the mean damage of the random halves that a filter
        was in, of the whole layer.

    Raises
    ------
    ValueError
        If an option is below 1; when called, if there are no calibration data.

    Warns
    -----
    UserWarning
        When called, if no layer that reads a group runs; the group's scores are 0.

    Notes
    -----
    The damage of masking a set of vertices in one batch is

    .. math:: t = \sum_k \lVert y_k - y'_k \rVert^2 \Big/ \sum_k \lVert y_k \rVert^2

    over the layers that read the group; :math:`y_k` is the output of such a layer, behind the normalisation that reads
    it directly and before anything else, an addition say, and :math:`y'_k` the same with the masked channels of its
    input at zero. Everything before is unmasked, and normalisation uses its running statistics. Layers that lose
    channels with the group themselves (depthwise convolutions) pass them on and are not counted.

    A vertex's damage is the mean over the masks it was in during the last halving it took part in. The importance of
    all vertices of a group has the order (halving in which it left, latest first; damage; equal in both, equal in
    importance). It is the damage, raised where that order demands to the next number above the importance of the
    vertex before: finite, in the unit of the damage, and of exactly that order. A vertex that was never masked in a
    halving leaves the search space with the largest damage of that halving.

    The paper prunes a search space as soon as the worst of the half to be kept has a damage below a threshold (0.01 in
    the authors' code for CIFAR-10), masks it for good, trains on and begins again. Here how many go is the allocator's
    matter, and one search ranks all filters (ours).

    References
    ----------
    Ding, Ding, Guo, Han, Yan. Approximated oracle filter pruning for destructive CNN width optimization. ICML 2019,
    arXiv 1905.04748.
    """

    steps: int = 32
    halvings: int = 64

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("steps", "halvings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
        """Return the importance of every vertex, float64 [group.size], on the CPU; see `Selector`."""
        n_batches = sum(1 for _ in context.calibration.train) or 1  # none is refused when they are gone through
        searches = [_Search(group, context.generator("aofp", group.name)) for group in groups]
        rounds = min(self.halvings, max((group.size.bit_length() - 1 for group in groups), default=0))
        with ExitStack() as hooks, context.progress.stage("aofp", rounds * min(self.steps, n_batches)) as step:
            bench = _Bench(groups, context)
            hooks.callback(bench.close)
            for halving in range(rounds):
                active = [search for search in searches if len(search.space) > 1]
                masks = {search.group.name: search.draw(self.steps) for search in active}
                damage = {name: np.zeros(self.steps) for name in masks}
                turn = halving * self.steps  # go on where the last halving stopped
                for position, batch in enumerate(context.batches()):
                    mine = [s for s in range(self.steps) if (turn + s) % n_batches == position]
                    if mine:
                        measured = bench.damage(batch, {name: [m[s] for s in mine] for name, m in masks.items()})
                        for name, values in measured.items():
                            damage[name][mine] = values
                        step(note=f"halving {halving + 1} of {rounds}")
                for search in active:
                    search.halve(masks[search.group.name], damage[search.group.name])
        unread = [group.name for group in groups if group.size > 1 and group.name not in bench.read]
        if unread:
            warnings.warn(f"aofp: no layer that reads group {', '.join(unread)} runs; its scores are 0", stacklevel=2)
        return [torch.from_numpy(ordered_importance(search.left, search.damage)) for search in searches]


class _Search:
    """The search in one group.

    Attributes
    ----------
    space : ndarray of int64
        Vertices among which the least important is still looked for.
    left : ndarray of int64, shape [group.size]
        How many halvings each vertex stayed through.
    damage : ndarray of float64, shape [group.size]
        Mean damage in the last halving that each vertex took part in.
    """

    def __init__(self, group: ChannelGroup, generator: np.random.Generator) -> None:
        self.group, self._generator = group, generator
        self.space = np.arange(group.size)
        self.left = np.zeros(group.size, dtype=np.int64)
        self.damage = np.zeros(group.size)

    def draw(self, steps: int) -> np.ndarray:
        """Draw random halves of the space, rounded down, as masks: bool [steps, group.size], true where masked."""
        masks = np.zeros((steps, self.group.size), dtype=bool)
        for mask in masks:
            mask[self._generator.choice(self.space, len(self.space) // 2, replace=False)] = True
        return masks

    def halve(self, masks: np.ndarray, damage: np.ndarray) -> None:
        """Keep the half of the space, rounded down, with the least mean damage; ties keep the lowest index."""
        inside = masks[:, self.space]  # [steps, len(space)]
        times = inside.sum(0)
        mean = np.where(inside, damage[:, None], 0).sum(0) / np.maximum(times, 1)
        unknown = times == 0
        self.damage[self.space] = np.where(unknown, mean.max(), mean)
        order = np.lexsort((self.space, mean, unknown))  # the last key counts most
        self.space = np.sort(self.space[order[: len(self.space) // 2]])
        self.left[self.space] += 1


def ordered_importance(left: np.ndarray, damage: np.ndarray) -> np.ndarray:
    """Make one number of two: fewer halvings survived matter more, then more damage.

    Parameters
    ----------
    left : ndarray of int64, shape [n]
        How many halvings each vertex stayed in the search for.
    damage : ndarray of float64, shape [n]
        Its damage.

    Returns
    -------
    ndarray of float64, shape [n]
        The damage, raised where needed, from the least important up, to the next number above that of the vertex
        before. Vertices equal in both have equal importance.
    """
    order = np.lexsort((damage, -left))
    importance = np.zeros(len(left))
    before, value = None, -np.inf
    for vertex in order.tolist():
        key = (left[vertex], damage[vertex])
        if key != before:
            before, value = key, max(damage[vertex], np.nextafter(value, np.inf))
        importance[vertex] = value
    return importance


@dataclass
class _Sums:
    """Sums of squares over the layers that read a group, for one batch."""

    gone: np.ndarray  # masks, bool [masks, group.size]
    differences: Tensor  # float64 [masks]
    base: Tensor  # float64 []


@dataclass
class _Bench:
    """Runs the model and measures, at every layer that reads a group, what its masks change there."""

    groups: Sequence[ChannelGroup]
    context: SelectorContext
    read: set[str] = field(default_factory=set)  # names of the groups whose readers ran

    def __post_init__(self) -> None:
        """Hang the measurement into a copy of the model."""
        readers: dict[str, list[tuple[ChannelGroup, Member]]] = {}
        for group in self.groups:
            passing = {member.module for member in group.members if member.role == "follower"}
            for member in group.members:
                if member.role == "consumer" and member.module not in passing:
                    readers.setdefault(member.module, []).append((group, member))
        norms = direct_norms(self.context, readers)
        self._sums: dict[str, _Sums] = {}
        self._hooks = ExitStack()
        with measuring(self.context.seed):
            self._model = self.context.working_copy()
        for name, members in readers.items():
            module = self._model.get_submodule(name)
            # A layer that runs several times, before different normalisations, is measured in front of them.
            behind = {self._model.get_submodule(norm) if norm else None for norm in norms[name]}
            norm = behind.pop() if len(behind) == 1 else None
            hook = self._measure(members, norm)
            self._hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

    def close(self) -> None:
        """Take the hooks out again."""
        self._hooks.close()

    def damage(self, batch: Any, masks: dict[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the damage in one batch of each mask of each group, by the group's name."""
        with measuring(self.context.seed), torch.no_grad():
            zero = torch.zeros((), dtype=torch.float64, device=self.context.device)
            self._sums = {
                name: _Sums(np.stack(rows), zero.repeat(len(rows)), zero.clone()) for name, rows in masks.items()
            }
            run(self._model, detached(batch[0]))
        # Nothing is read where all outputs are zero: then the differences, zero too, stand for themselves.
        ratios = [sums.differences / torch.where(sums.base > 0, sums.base, 1) for sums in self._sums.values()]
        return {name: ratio.numpy() for name, ratio in zip(self._sums, to_host(*ratios), strict=True)}

    def _measure(self, members: Sequence[tuple[ChannelGroup, Member]], norm: nn.Module | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            x = first_argument(args, kwargs)
            rest = {key: value for key, value in kwargs.items() if key != "input"}

            def respond(read: Tensor) -> Tensor:  # by `forward`, so that no hook is run
                made: Tensor = module.forward(read, *args[1:], **rest)
                return made if norm is None else norm.forward(made)

            shape = [1] * x.ndim
            dim = channel_dim(module, x)
            shape[dim] = x.shape[dim]
            concerned = [(group, member) for group, member in members if group.name in self._sums]
            self.read |= {group.name for group, _ in concerned}
            base = respond(x) if concerned else x
            for group, member in concerned:
                sums = self._sums[group.name]
                sums.base += _squares(base)
                padded = np.pad(~sums.gone, ((0, 0), (0, 1)), constant_values=True)  # NO_VERTEX is the last: it stays
                stays = to_device(torch.from_numpy(padded[:, member.vertex]), x.device)
                for i, mask in enumerate(stays):
                    sums.differences[i] += _squares(base - respond(x * mask.view(shape)))

        return hook


def _squares(values: Tensor) -> Tensor:
    """Sum of squares, float64 []."""
    return torch.linalg.vector_norm(values, dtype=torch.float64).square()


aofp = register_selector("aofp")(AOFP())
aofp_one_pass = register_selector("aofp_one_pass")(AOFP(steps=64, halvings=1))
