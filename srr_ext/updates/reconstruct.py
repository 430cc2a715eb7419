"""Weights under which the layers of a pruned network put together what the dense network computed: least squares."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srr_ext.copying import copy_model
from srr_ext.criteria import SelectorContext
from srr_ext.layers import channels_of
from srr_ext.patches import Sample, is_sampled, samples, set_weight_blocks, weight_blocks
from srr_ext.plan import PruningPlan
from srr_ext.updates.base import register_update

_HELD = 2**28  # bytes of the dense network's outputs at a time


@dataclass(frozen=True)
class Reconstruction:
    r"""Refit every layer that lost inputs, in order of execution, to the dense network's outputs.

    Parameters
    ----------
    mu : float, default 0
        Weight of the loss's gradient; 0 is ordinary least squares. Otherwise every output feature has a regression of
        its own: the time grows by the number of features, and a layer's samples are held in memory.
    positions : int, default 10
        Sampled output positions per image and layer, as in the parent; 0 for all.
    ridge : float, default 1e-4
        Added to the eigenvalues of the normal equations, as a share of their mean: what the rows hardly show, such as a
        channel that is active on one image, is left nearly as the plain cut left it, where least squares would fit huge
        weights to it. Ours (the parent's code has a ridge towards zero, as an option); 0 is ordinary least squares.
    relative : bool, default True
        Whether G is measured in units of its root mean square over the layer's sampled entries; see `CPLI`.

    Raises
    ------
    ValueError
        If an option is out of range; when called, if there are no images, or ``pruned`` does not fit the plan.

    Warns
    -----
    UserWarning
        If a layer that lost inputs cannot be refitted, and keeps its weights: its weight is computed from other
        parameters or shared with another module, or the model never calls it.

    Notes
    -----
    With rows :math:`x_s` of the pruned network's inputs (all layers before being refitted already, a one added for the
    bias where the layer has one), dense outputs :math:`y_{sj}` of the features that stay and the cut layer's weights
    :math:`W`,

    .. math:: W'_j = W_j + \arg\min_\Delta \sum_s (1 + \mu G_{sj}^2)
              \big(y_{sj} - (W_j + \Delta) \cdot x_s\big)^2

    Without ``ridge`` the smallest such correction is taken: directions in which the sampled rows do not vary keep the
    weights of the plain cut. Where the rows determine the weights that is ordinary least squares. "Do not vary" is a
    matter of numerical rank: eigenvalues of the normal equations count as zero that are below the largest times the
    square of ten times the resolution of the weights' dtype (or times the number of unknowns times that of float64, in
    which all is computed). With fewer rows than unknowns the equations are solved in the space of the rows. Grouped
    convolutions are one regression per convolution group. A depthwise convolution loses inputs only together with
    outputs and is refitted as well, to what it did before.

    Whether an output feature matters to later layers (:math:`f_j` of `CPLI`) plays no part: features are regressions
    independent of each other, and those that do not stay have none.

    References
    ----------
    He, Zhang, Sun. Channel pruning for accelerating very deep neural networks. ICCV 2017, arXiv 1707.06168.
    Guo, Ouyang, Xu. Channel pruning guided by classification loss and feature importance. AAAI 2020, arXiv 2003.06757
    (the gradient; the form of the weights is ours).
    """

    mu: float = 0.0
    positions: int = 10
    ridge: float = 1e-4
    relative: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("mu", "ridge"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if self.positions < 0:
            raise ValueError(f"positions must be at least 0 (all of them), got {self.positions}")

    def __call__(self, pruned: nn.Module, plan: PruningPlan, context: SelectorContext) -> nn.Module:
        """Return a copy of ``pruned`` with refitted weights; see `Update`."""
        dense = context.working_copy()
        result = copy_model(pruned)
        work = copy_model(pruned).to(context.device).eval()
        order = self._order(dense, work, plan, context)
        with context.progress.stage("reconstruct", len(order)) as step:
            for wave in self._waves(order):
                wanted = self._dense(wave, dense, plan, context)
                for name in wave:
                    blocks, bias = self._refit(name, work, wanted.pop(name), context)
                    for model in (work, result):
                        set_weight_blocks(model.get_submodule(name), blocks, bias)
                    step(note=name)
        return result

    def _order(
        self, dense: nn.Module, work: nn.Module, plan: PruningPlan, context: SelectorContext
    ) -> list[tuple[str, int]]:
        """List the layers to refit in the order in which they run, with the bytes of their dense outputs."""
        batches = sum(1 for _ in context.calibration.train)
        names = [name for name, layer in plan.layers.items() if layer.in_ is not None and _is_refitted(name, work)]
        for name in names:
            found, left = channels_of(work.get_submodule(name), "in"), len(plan.layers[name].in_ or ())
            if found != left:
                raise ValueError(
                    f"pruned: layer {name!r} has {found} inputs where the plan leaves {left}; pass what apply_plan "
                    "made of the model by this plan"
                )
        if not names:
            return []
        with closing(samples(dense, names, context, self.positions, patches=False)) as parts:
            first = next(parts, {})
        for name in names:
            if name not in first:
                _warn(name, "the model did not call it")
        copies = 2 if self.mu else 1
        return [
            (name, batches * copies * sum(sample.outputs.nbytes for sample in calls)) for name, calls in first.items()
        ]

    def _waves(self, order: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
        """Divide the layers so that the dense network's outputs of each part fit into memory."""
        wave: list[str] = []
        held = 0
        for name, size in order:
            if wave and held + size > _HELD:
                yield wave
                wave, held = [], 0
            wave.append(name)
            held += size
        if wave:
            yield wave

    def _dense(
        self, names: Sequence[str], dense: nn.Module, plan: PruningPlan, context: SelectorContext
    ) -> dict[str, list[list[Sample]]]:
        """Sample the dense network's outputs: for each layer and batch, its calls, with the features that stay."""
        kept = {name: plan.layers[name].out for name in names}
        found: dict[str, list[list[Sample]]] = {name: [] for name in names}
        for part in samples(dense, names, context, self.positions, patches=False, gradients=self.mu > 0):
            for name in names:
                found[name].append([_features(sample, kept[name]) for sample in part.get(name, [])])
        return found

    def _refit(
        self, name: str, work: nn.Module, wanted: Sequence[Sequence[Sample]], context: SelectorContext
    ) -> tuple[Tensor, Tensor | None]:
        """Return new weights of a layer, as `weight_blocks` gives them, and its new bias."""
        module: Any = work.get_submodule(name)
        blocks = weight_blocks(module).double()
        n_groups, n_out, n_in, kernel = blocks.shape
        before = blocks.flatten(2).transpose(1, 2)  # [groups, unknowns, n_out]
        bias = module.bias
        if bias is not None:
            before = torch.cat([before, bias.detach().double().view(n_groups, 1, n_out)], 1)
        regression = Regression(before, torch.finfo(module.weight.dtype).eps, self.ridge)
        calls = [{name: len(batch)} for batch in wanted]
        scale = self._gradient_scale(wanted)
        for batch, part in zip(wanted, samples(work, [name], context, self.positions, calls=calls), strict=True):
            for target, sample in zip(batch, part.get(name, []), strict=True):
                rows = sample.patches.unflatten(1, (n_groups, n_in)).flatten(2).transpose(0, 1)
                if not bool(rows.isfinite().all()) or not bool(target.outputs.isfinite().all()):
                    raise ValueError(
                        f"data: layer {name!r} meets numbers that are not finite, so that there is nothing to fit; "
                        "check the images, and the weights of both networks"
                    )
                if bias is not None:
                    rows = torch.cat([rows, rows.new_ones(n_groups, rows.shape[1], 1)], 2)
                squares = None
                if self.mu > 0:  # outputs that the loss does not depend on have no gradient
                    gradients = target.outputs * 0 if target.gradients is None else target.gradients
                    squares = _by_group(1.0 + self.mu * scale * gradients.double() ** 2, n_groups)
                regression.add(rows, _by_group(target.outputs, n_groups), squares)
        after = regression.solve()
        weights = after[:, : n_in * kernel].transpose(1, 2).unflatten(2, (n_in, kernel))
        return weights, None if bias is None else after[:, -1].flatten()

    def _gradient_scale(self, wanted: Sequence[Sequence[Sample]]) -> float:
        """Return what squares of the gradient are multiplied by: one over their mean, if they are relative."""
        parts = [sample.gradients for batch in wanted for sample in batch if sample.gradients is not None]
        total = sum(float((part.double() ** 2).sum()) for part in parts)
        return sum(part.numel() for part in parts) / total if self.relative and total > 0 else 1.0


class Regression:
    """Least squares for a correction of weights, over rows that come in parts.

    Parameters
    ----------
    before : Tensor of float64, shape [groups, unknowns, features]
        The weights to correct; each group is a problem of its own.
    eps : float
        Relative resolution of the numbers in the rows.
    ridge : float
        Added to the eigenvalues of the normal equations, as a share of their mean.
    """

    def __init__(self, before: Tensor, eps: float, ridge: float = 0.0) -> None:
        self._before, self._ridge = before, ridge
        unknowns = before.shape[1]
        # Eigenvalues are squares: what the numbers resolve counts squared, beside rounding in the products themselves.
        self._tolerance = max(unknowns * torch.finfo(torch.float64).eps, (10 * eps) ** 2)
        self._rows: list[Tensor] = []  # [groups, rows, unknowns]
        self._left: list[Tensor] = []  # [groups, rows, features]: what the weights before leave unexplained
        self._squares: list[Tensor] = []
        self._gram: Tensor | None = None
        self._cross = torch.zeros_like(before)

    def add(self, rows: Tensor, targets: Tensor, squares: Tensor | None = None) -> None:
        """Add rows [groups, rows, unknowns], what they are to give [groups, rows, features], and weights of those."""
        self._rows.append(rows)
        self._left.append(targets.double() - rows.double() @ self._before)
        if squares is not None:
            self._squares.append(squares)
        elif self._gram is not None or sum(part.shape[1] for part in self._rows) >= self._before.shape[1]:
            self._fold()

    def solve(self) -> Tensor:
        """Return the corrected weights, [groups, unknowns, features]."""
        if self._gram is not None:
            return self._before + self._by_gram(self._gram, self._cross)
        if not self._rows:
            return self._before
        rows, left = torch.cat(self._rows, 1), torch.cat(self._left, 1)
        if not self._squares:
            return self._before + self._by_rows(rows.double(), left)
        roots = torch.cat(self._squares, 1).sqrt()
        corrections = []
        for root, one in zip(roots.split(1, 2), left.split(1, 2), strict=True):
            weighted = rows.double() * root
            if weighted.shape[1] < weighted.shape[2]:
                corrections.append(self._by_rows(weighted, one * root))
            else:
                corrections.append(self._by_gram(weighted.mT @ weighted, weighted.mT @ (one * root)))
        return self._before + torch.cat(corrections, 2)

    def _fold(self) -> None:
        """Add the rows at hand to the normal equations."""
        for rows, left in zip(self._rows, self._left, strict=True):
            rows = rows.double()
            gram = rows.mT @ rows
            self._gram = gram if self._gram is None else self._gram.add_(gram)
            self._cross += rows.mT @ left
        self._rows, self._left = [], []

    def _by_gram(self, gram: Tensor, cross: Tensor) -> Tensor:
        """Solve the normal equations."""
        dead = gram.diagonal(dim1=1, dim2=2) == 0  # nothing depends on them; they need not spoil the rank
        mean = gram.diagonal(dim1=1, dim2=2).mean(1)
        return self._invert(gram + torch.diag_embed(torch.where(dead, mean[:, None], 0.0)), cross, mean)

    def _by_rows(self, rows: Tensor, left: Tensor) -> Tensor:
        """Solve in the space of the rows, of which there are fewer than unknowns."""
        mean = rows.square().sum((1, 2)) / rows.shape[2]
        return rows.mT @ self._invert(rows @ rows.mT, left, mean)

    def _invert(self, matrix: Tensor, right: Tensor, mean: Tensor) -> Tensor:
        """Apply the pseudo-inverse of symmetric matrices [groups, n, n], plus a ridge in units of ``mean`` [groups]."""
        unit = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        matrix = matrix + self._ridge * mean[:, None, None] * unit
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed.any()):
            # The trace is at least the largest eigenvalue, that of the inverse at least one over the smallest.
            largest = matrix.diagonal(dim1=1, dim2=2).sum(1)
            smallest = 1 / torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).sum(1)
            if bool((smallest > self._tolerance * largest).all()):
                return torch.cholesky_solve(right, factor)
        values, vectors = torch.linalg.eigh(matrix)
        resolved = values > self._tolerance * values[:, -1:]
        inverse = torch.where(resolved, 1 / values.where(resolved, torch.ones_like(values)), 0.0)
        return vectors @ (inverse[..., None] * (vectors.mT @ right))


def _by_group(values: Tensor, groups: int) -> Tensor:
    """From [rows, n_out] to [groups, rows, n_out / groups]."""
    return values.unflatten(1, (groups, -1)).transpose(0, 1)


def _features(sample: Sample, kept: tuple[int, ...] | None) -> Sample:
    """Leave only some output features of a sample."""
    if kept is None:
        return sample
    index = torch.tensor(kept, device=sample.outputs.device)
    gradients = None if sample.gradients is None else sample.gradients[:, index]
    return Sample(sample.patches, sample.outputs[:, index], gradients)


def _is_refitted(name: str, work: nn.Module) -> bool:
    """Whether a layer's weights can be changed alone; warn if not."""
    module = work.get_submodule(name)
    holders = Counter(id(p) for m in work.modules() for p in m.parameters(recurse=False))
    if not is_sampled(module):
        _warn(name, f"there is no least squares for a {type(module).__name__}")
    elif "weight" not in module._parameters:
        _warn(name, "its weight is computed from other parameters")
    elif any(holders[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
        _warn(name, "it shares its weights with another module")
    else:
        return True
    return False


def _warn(name: str, reason: str) -> None:
    warnings.warn(f"layer {name!r} lost inputs and keeps the weights of the plain cut: {reason}", stacklevel=2)


reconstruct = register_update("reconstruct")(Reconstruction())
