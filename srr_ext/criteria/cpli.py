"""Channels without which the next layers' outputs can still be put together: LASSO over input channels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.channels.records import NO_VERTEX, ChannelGroup, Member
from srr_ext.criteria.base import SelectorContext, register_selector
from srr_ext.patches import Sample, is_sampled, samples, weight_blocks

_FIRST_ALPHA = 1e-3  # relative to the outputs' energy; doubled until too few channels are left
_HALVINGS = 60
_CHUNK = 2**22  # responses at a time, 32 MiB in float64
_HELD = 2**28  # bytes of samples at a time


@dataclass(frozen=True)
class CPLI:
    r"""LASSO over the input channels of the layers that read a group, guided by the loss: CPLI-style.

    Parameters
    ----------
    mu : float, default 1
        Weight of the loss's gradient; with 0 every output entry counts the same.
    epsilon : float, default 0.01
        What an output feature counts that the next layers' selection has removed, in [0, 1]; ours. With 1 nothing is
        known of later layers.
    positions : int, default 10
        Sampled output positions per image and layer, as in the parent; 0 for all.
    entries : int, default 262144
        At most about this many sampled output entries (positions times output features) per layer, spread evenly over
        the batches. The time for a group of n vertices is proportional to entries * n * n; ours (the parent's code
        solves on 400 positions of a layer).
    relative : bool, default True
        Whether G is measured in units of its root mean square over the layer's sampled entries, so that ``mu`` means
        the same for every loss, layer and network; ours. Without, G is the derivative as it is, which in wide layers is
        so small that only a ``mu`` of thousands has an effect.

    Raises
    ------
    ValueError
        If an option is out of range.

    Warns
    -----
    UserWarning
        If no layer that reads a group could be sampled; norms of the group's filters are its importance then.

    Notes
    -----
    For a layer with weights :math:`W`, :math:`z_{sj,i} = x_{s,i} \cdot W_{j,i}` is what input channel :math:`i` adds to
    output feature :math:`j` at sampled position :math:`s`, and :math:`y` the sum over the group's channels, so without
    the bias. Then

    .. math:: \beta = \arg\min \frac{1}{2 E} \sum_{sj} w_{sj}^2 \Big(y_{sj} - \sum_i \beta_i z_{sj,i}\Big)^2
              + \alpha \lVert\beta\rVert_1, \qquad w_{sj} = f_j \sqrt{1 + \mu G_{sj}^2}

    with :math:`G` the derivative of the image's loss by :math:`y_{sj}`, :math:`f_j` 1 for output features that stay and
    ``epsilon`` for those that the selection of later groups has removed. With :math:`\mu = 0` and :math:`f = 1` this is
    He et al.'s problem (registered as ``he2017``), whose penalty is :math:`\alpha E / (S n)` for S positions and n
    features. As there, channels are not divided by their norms and coefficients may be negative.

    Before counts are known, a vertex's importance is the largest :math:`\alpha` at which its coefficient is not zero,
    with :math:`f = 1`. When they are, groups are gone through from the output backwards; :math:`\alpha` is doubled and
    then bisected until :math:`c' \le` non-zero coefficients :math:`\le 1.1 c'`, and exactly :math:`c'` stay: those with
    the largest :math:`|\beta_i| \lVert z_i \rVert`.

    Ours: unknowns are vertices, so a vertex's channels share a coefficient; where several layers read a group their
    rows are stacked, each layer's divided by its own weighted output energy :math:`E` (outputs without bias), so that
    none outweighs the others; inputs are the dense model's, as later layers are chosen first (in He et al. they are
    those of the network pruned so far, which here the weight update ``reconstruct`` sees); no intercept, as in He et
    al.'s formula (their code fits one for all features together); where an output belongs to a group not chosen yet, as
    in a residual stream that began earlier, f = 1.

    References
    ----------
    Guo, Ouyang, Xu. Channel pruning guided by classification loss and feature importance. AAAI 2020, arXiv 2003.06757
    (the two ideas; its exact objective could not be read, so this is our version).
    He, Zhang, Sun. Channel pruning for accelerating very deep neural networks. ICCV 2017, arXiv 1707.06168.
    """

    mu: float = 1.0
    epsilon: float = 0.01
    positions: int = 10
    entries: int = 2**18
    relative: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        if not (math.isfinite(self.mu) and self.mu >= 0):
            raise ValueError(f"mu must be finite and at least 0, got {self.mu}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon must be in [0, 1], got {self.epsilon}")
        if self.positions < 0:
            raise ValueError(f"positions must be at least 0 (all of them), got {self.positions}")
        if self.entries < 1:
            raise ValueError(f"entries must be at least 1, got {self.entries}")

    def __call__(self, groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
        """Return the largest penalty that each vertex survives; see `Selector`."""
        answers: dict[str, Tensor] = {}
        for group, gram in self._grams(groups, context, {}):
            answers[group.name] = _unsampled(group, context) if gram is None else torch.from_numpy(lasso(gram).entry)
        return [answers[group.name] for group in groups]

    def given_counts(
        self, groups: Sequence[ChannelGroup], counts: Sequence[int], context: SelectorContext
    ) -> list[Tensor]:
        """Choose exactly ``counts[i]`` vertices of ``groups[i]``; see `CountedSelector`."""
        wanted = {group.name: count for group, count in zip(groups, counts, strict=True)}
        removed: dict[str, np.ndarray] = {}  # features of modules that are gone, bool [n_out]
        answers = {group.name: torch.ones(group.size, dtype=torch.float64) for group in groups}
        pruned = [group for group in reversed(groups) if wanted[group.name] < group.size]
        for group, gram in self._grams(pruned, context, removed):
            if gram is None:
                score = _unsampled(group, context).cpu().numpy()
                kept = np.argsort(score, kind="stable")[group.size - wanted[group.name] :]
            else:
                path = lasso(gram)
                score, kept = path.entry, choose(path, gram, wanted[group.name])
            scale = score.max()
            answer = score / (scale if scale > 0 else 1.0)
            answer[kept] += 2.0
            answers[group.name] = torch.from_numpy(answer)
            gone = np.ones(group.size + 1, dtype=bool)
            gone[kept] = gone[NO_VERTEX] = False  # the last one is for channels of other groups
            for member in group.members:
                if member.side == "out":
                    before = removed.get(member.module, np.zeros(len(member.vertex), dtype=bool))
                    removed[member.module] = before | gone[member.vertex]
        return [answers[group.name] for group in groups]

    def _grams(
        self, groups: Sequence[ChannelGroup], context: SelectorContext, removed: dict[str, np.ndarray]
    ) -> Iterator[tuple[ChannelGroup, np.ndarray | None]]:
        """Give the Gram matrix of each group's problem, [size, size], in the order of the groups.

        ``removed`` is read when a group's turn comes. None where nothing could be sampled.
        """
        model = context.working_copy()
        for wave in self._waves(groups, model, context):
            names = list(dict.fromkeys(member.module for group in wave for member in _readers(group, model)))
            found = self._sample(model, names, context)
            for group in wave:
                gram = self._gram(group, model, found, removed)
                yield group, None if gram is None else gram.cpu().numpy()

    def _waves(
        self, groups: Sequence[ChannelGroup], model: nn.Module, context: SelectorContext
    ) -> Iterator[list[ChannelGroup]]:
        """Divide the groups so that the samples of each part fit into memory."""
        images = sum(len(targets) for _, targets in context.calibration.train)
        wave: list[ChannelGroup] = []
        held = 0
        for group in groups:
            size = 0
            for member in _readers(group, model):
                n_groups, n_out, n_in, kernel = weight_blocks(model.get_submodule(member.module)).shape
                most = self.entries // (n_groups * n_out)
                rows = min(most, images * self.positions) if self.positions else most
                size += rows * n_groups * (n_in * kernel + 2 * n_out) * 4
            if wave and held + size > _HELD:
                yield wave
                wave, held = [], 0
            wave.append(group)
            held += size
        if wave:
            yield wave

    def _sample(self, model: nn.Module, names: Sequence[str], context: SelectorContext) -> dict[str, list[Sample]]:
        """Sample layers on all batches, with as many entries as wanted in all."""
        total = sum(1 for _ in context.calibration.train)
        found: dict[str, list[Sample]] = {name: [] for name in names}
        with context.progress.stage("sample", total) as step:
            parts = samples(
                model, names, context, self.positions, entries=-(-self.entries // total), gradients=self.mu > 0,
                after_batch=step,
            )  # fmt: skip
            for part in parts:
                for name, calls in part.items():
                    found[name] += calls
        return found

    def _gram(
        self, group: ChannelGroup, model: nn.Module, found: dict[str, list[Sample]], removed: dict[str, np.ndarray]
    ) -> Tensor | None:
        """Add up the problems of all layers that read a group, each over its energy."""
        total: Tensor | None = None
        for member in _readers(group, model):
            module, calls = model.get_submodule(member.module), found[member.module]
            gone = torch.from_numpy(removed.get(member.module, np.zeros(1, dtype=bool)))
            factors = 1.0 - (1.0 - self.epsilon) * gone.double()
            gram, energy = response_gram(module, member, group.size, calls, self._weights(calls, factors))
            if energy > 0:
                total = gram / energy if total is None else total + gram / energy
        return total

    def _weights(self, calls: Sequence[Sample], factors: Tensor) -> list[Tensor]:
        """Weights of the entries of each call, float64 [rows, n_out]."""
        return [factors.to(part.device) * torch.sqrt(1.0 + self.mu * part) for part in self._squares(calls)]

    def _squares(self, calls: Sequence[Sample]) -> list[Tensor]:
        """Return G^2 for each call."""
        squares = [
            torch.zeros_like(call.outputs, dtype=torch.float64)
            if call.gradients is None or self.mu == 0
            else call.gradients.double() ** 2
            for call in calls
        ]
        entries = sum(part.numel() for part in squares)
        mean = float(sum(part.sum() for part in squares)) / max(entries, 1)
        return [part / mean for part in squares] if self.relative and mean > 0 else squares


@dataclass(frozen=True, eq=False)
class LassoPath:
    """All solutions of a LASSO problem; between two knots coefficients change linearly.

    Attributes
    ----------
    alphas : ndarray of float64, shape [knots]
        Penalties, decreasing.
    coefficients : ndarray of float64, shape [knots, n]
        The solutions there.
    """

    alphas: np.ndarray
    coefficients: np.ndarray

    @property
    def entry(self) -> np.ndarray:
        """For each coefficient the largest penalty below which it is not zero, [n]; 0 for those that always are."""
        nonzero = self.coefficients != 0
        first = np.where(nonzero.any(0), nonzero.argmax(0), 0)  # it leaves zero at the knot before
        return np.where(nonzero.any(0), self.alphas[np.maximum(first - 1, 0)], 0.0)

    def at(self, alpha: float) -> np.ndarray:
        """Coefficients at one penalty, [n]."""
        after = int(np.searchsorted(-self.alphas, -alpha, side="left"))  # the first knot with a penalty <= alpha
        if after == 0:
            return np.zeros(self.coefficients.shape[1])
        if after == len(self.alphas):
            return self.coefficients[-1]
        high, low = self.alphas[after - 1], self.alphas[after]
        share = (high - alpha) / (high - low)
        return (1 - share) * self.coefficients[after - 1] + share * self.coefficients[after]


def lasso(gram: np.ndarray) -> LassoPath:
    r"""Solve :math:`\min_\beta \frac12 (1 - \beta)^T A (1 - \beta) + \alpha |\beta|_1` for every :math:`\alpha`.

    Parameters
    ----------
    gram : ndarray of float64, shape [n, n]
        :math:`A`. As the target is the sum of the columns, its products with them are the row sums.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    with warnings.catch_warnings():
        # Said of columns that others make up exactly, such as equal channels. They stay at zero, which is right.
        warnings.simplefilter("ignore", ConvergenceWarning)
        alphas, _, coefficients = lars_path_gram(gram.sum(1), gram, n_samples=1, max_iter=8 * len(gram), method="lasso")
    return LassoPath(alphas, coefficients.T)


def choose(path: LassoPath, gram: np.ndarray, count: int) -> np.ndarray:
    """Choose vertices by a LASSO path: the penalty by doubling and bisection, then the strongest.

    Parameters
    ----------
    path : LassoPath
        The solutions.
    gram : ndarray, shape [n, n]
        The problem.
    count : int
        How many to choose.

    Returns
    -------
    ndarray of int64, shape [count]
        Ascending. Where fewer coefficients than wanted are ever non-zero (the others are made up of them, or dead),
        those that would explain most alone follow, ties to the lowest index.
    """
    low, high = 0.0, _FIRST_ALPHA
    while np.count_nonzero(path.at(high)) >= count:
        high *= 2
    alpha = high
    for _ in range(_HALVINGS):
        alpha = (low + high) / 2
        left = np.count_nonzero(path.at(alpha))
        if left > 1.1 * count:
            low = alpha
        elif left < count:
            high = alpha
        else:
            break
    else:
        alpha = low  # the number of non-zero coefficients jumps over those wanted: rather too many
    norms = np.sqrt(np.diag(gram).clip(0))
    strength = np.abs(path.at(alpha)) * norms
    alone = np.divide(np.abs(gram.sum(1)), norms, out=np.zeros_like(norms), where=norms > 0)
    order = np.lexsort((np.arange(len(gram)), -alone, -strength))
    return np.sort(order[:count])


def response_gram(
    module: nn.Module, member: Member, size: int, calls: Sequence[Sample], weights: Sequence[Tensor]
) -> tuple[Tensor, float]:
    r"""Multiply what each two vertices add to a layer's outputs, and sum over the sampled entries.

    Parameters
    ----------
    module : nn.Module
        The layer.
    member : Member
        Its input side in the group.
    size : int
        Vertices of the group.
    calls : sequence of Sample
        What was sampled.
    weights : sequence of Tensor, shape [rows, n_out]
        Weights of the entries, for each call.

    Returns
    -------
    gram : Tensor of float64, shape [size, size]
        :math:`\sum w^2 z_u z_v`.
    energy : float
        :math:`\sum w^2 y^2`, with the whole outputs y, without bias.
    """
    blocks = weight_blocks(module).double()
    n_groups, n_out, n_in, _ = blocks.shape
    gram = blocks.new_zeros(size, size)
    energy = 0.0
    bias = module.bias.detach().double() if isinstance(module.bias, Tensor) else 0.0
    for sample, weight in zip(calls, weights, strict=True):
        energy += float(((weight * (sample.outputs.double() - bias)) ** 2).sum())
        for number in range(n_groups):
            channels, real = _by_vertex(member.vertex[number * n_in : (number + 1) * n_in], size, blocks.device)
            filters = (blocks[number][:, channels] * real[..., None]).flatten(2).permute(1, 2, 0)  # [size, part, n_out]
            step = max(1, _CHUNK // (size * max(n_out, filters.shape[1])))
            rows = sample.patches[:, number * n_in : (number + 1) * n_in]
            entry_weights = weight[:, number * n_out : (number + 1) * n_out]
            for start in range(0, len(rows), step):
                patches = rows[start : start + step, channels].double().flatten(2).transpose(0, 1)
                responses = (patches @ filters * entry_weights[start : start + step]).flatten(1)  # [size, rows * n_out]
                gram += responses @ responses.T
    return gram, energy


def _by_vertex(vertex: np.ndarray, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Channels of each vertex, int64 [size, most], and which of them are real; the others are channel 0."""
    owned = np.flatnonzero(vertex != NO_VERTEX)
    owned = owned[np.argsort(vertex[owned], kind="stable")]
    counts = np.bincount(vertex[owned], minlength=size)
    place = np.arange(len(owned)) - (np.cumsum(counts) - counts)[vertex[owned]]
    channels = np.zeros((size, max(1, int(counts.max(initial=0)))), dtype=np.int64)
    real = np.zeros(channels.shape, dtype=bool)
    channels[vertex[owned], place], real[vertex[owned], place] = owned, True
    return torch.from_numpy(channels).to(device), torch.from_numpy(real).to(device)


def _readers(group: ChannelGroup, model: nn.Module) -> list[Member]:
    """Layers that read a group and can be sampled."""
    consumers = [member for member in group.members if member.role == "consumer"]
    return [member for member in consumers if is_sampled(model.get_submodule(member.module))]


def _unsampled(group: ChannelGroup, context: SelectorContext) -> Tensor:
    """Score a group of which nothing was sampled: norms of its filters, the largest 1."""
    warnings.warn(
        f"group {group.name!r}: none of the layers that read it gave any output on the calibration data; its channels "
        "are chosen by the norm of their filters instead",
        stacklevel=2,
    )
    norms = context.filters(group).norm(dim=1)
    return norms / norms.max().clamp(min=torch.finfo(norms.dtype).tiny)


cpli = register_selector("cpli")(CPLI())
he2017 = register_selector("he2017")(CPLI(mu=0.0, epsilon=1.0))
