"""Measure how much each direction matters, and cut all layers off at one quantile."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.bottleneck.applying import apply_bottlenecks
from srr_ext.bottleneck.candidates import Candidate, find_candidates, measured_cost
from srr_ext.bottleneck.layer import Basis, Replaceable, rotated
from srr_ext.bottleneck.options import DEFAULT_FLOOR, Options
from srr_ext.bottleneck.plan import BottleneckPlan, Ranks
from srr_ext.calibration import Batch, Calibration
from srr_ext.cost import Target
from srr_ext.criteria.base import SelectorContext
from srr_ext.criteria.kfac import Factors, Labels, kfac_factors
from srr_ext.plan import fingerprint
from srr_ext.progress import Progress


def make_bottlenecks(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Calibration | Iterable[Batch],
    keep_macs: float | None = None,
    keep_params: float | None = None,
    basis: Basis = "channels",
    labels: Labels = "sampled",
    floor: float = DEFAULT_FLOOR,
    ignored: Iterable[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> BottleneckPlan:
    r"""Decide which layers become bottlenecks, and of which ranks. The model is not touched.

    Parameters
    ----------
    model : nn.Module
        The dense model. Ungrouped convolutions and linear layers can be replaced, save the last layer it calls.
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass; MACs are counted for them.
    data : Calibration or iterable of (inputs, targets)
        Images to measure on.
    keep_macs, keep_params : float, optional
        Share to keep, in (0, 1]; exactly one of them. The rotations count.
    basis : {"channels", "patches"}, default "channels"
        Whether directions of the input mix channels, and the core has the kernel (the authors' code: 1x1, k x k, 1x1),
        or mix all weights of a filter, and the first rotation has the kernel (K-FAC's own factor: k x k, 1x1, 1x1).
    labels : {"sampled", "given", "all"}, default "sampled"
        Whose gradients are squared, see `srr_ext.criteria.kfac.fisher_pass`.
    floor : float, default 0.03
        Share of each layer's directions, on either side, that stays whatever the target, in [0, 1); one always does.
    ignored : iterable of str
        Layers to leave as they are.
    seed : int, default 0
        Same inputs and seed, same plan, byte for byte.
    progress : Progress, optional
        Where long stages report; silent by default.

    Returns
    -------
    BottleneckPlan
        Apply it with `apply_bottlenecks`. Layers that were not replaced are in ``left``, with the reason.

    Raises
    ------
    TypeError, ValueError
        If an option is wrong, no layer can be replaced, or the target is out of reach; the message says what is within
        reach.

    Notes
    -----
    With :math:`A = Q_A \Lambda_A Q_A^T` and :math:`G = Q_G \Lambda_G Q_G^T`, the factors of
    `srr_ext.criteria.kfac.kfac_factors`,

    .. math:: W^* = Q_G^T W Q_A, \qquad D_{ij} = (W^*_{ij})^2 \, d_{G,i} \, d_{A,j}.

    Rows and columns of :math:`D` (summed over the places of the kernel where directions mix channels) sum to the damage
    of losing a direction of the output and of the input. The sums of all layers form one pool, and all below one
    quantile of it fall, ties in order of layers, found by bisection: the fewest with which the target is met. A layer
    whose bottleneck would not be smaller in the quantity of the target stays as it is. (The authors count parameters
    there, and choose the quantile itself instead of a target. Biases, which they treat as one more input, stay here.)

    References
    ----------
    Wang, Grosse, Fidler, Zhang. EigenDamage: structured pruning in the Kronecker-factored eigenbasis. ICML 2019, arXiv
    1905.05934.
    """
    target = Target.choose(keep_macs, keep_params)
    Options(basis, labels, floor)  # checks them
    candidates, left = find_candidates(model, example_inputs, ignored)
    context = SelectorContext(model, example_inputs, seed, data=Calibration.of(data), progress=progress)
    factors = kfac_factors(context, [c.name for c in candidates], labels=labels, channels=basis == "channels")
    left |= {c.name: "no gradient of the loss reaches it" for c in candidates if c.name not in factors}
    candidates = [c for c in candidates if c.name in factors]
    if not candidates:
        raise ValueError(f"no layer of the model can be replaced: {_reasons(left)}")
    with context.progress.stage("eigenbases", len(candidates)) as step:
        spectra = []
        for candidate in candidates:
            weight = cast(Replaceable, model.get_submodule(candidate.name)).weight.to(context.device)
            spectra.append(_spectrum(weight, factors.pop(candidate.name), basis))
            step()
    dense = measured_cost(model, example_inputs)
    pool = _Pool(candidates, spectra, basis, floor, target, dense)
    fallen = pool.settle()
    replaced = {c.name: (c, s, kept) for c, s, kept in pool.bottlenecks(fallen)}
    left |= {c.name: "a bottleneck is no smaller" for c in candidates if c.name not in replaced}
    plan = BottleneckPlan(
        layers={name: Ranks(len(ins), len(outs)) for name, (_, _, (ins, outs)) in replaced.items()},
        left={name: left[name] for name, _ in model.named_modules() if name in left},
        basis=basis,
        target={target.quantity: float(target.keep)},
        floor=float(floor),
        labels=labels,
        quantile=fallen / len(pool),
        threshold=pool.threshold(fallen),
        seed=seed,
        widths={name: [c.n_out, c.n_in] for name, (c, _, _) in replaced.items()},
        fingerprint=fingerprint(model),
        bases={
            name: (s.base_in[:, ins].clone(), s.base_out[:, outs].clone())
            for name, (_, s, (ins, outs)) in replaced.items()
        },
    )
    try:
        pruned = measured_cost(apply_bottlenecks(model, plan), example_inputs)
    except ValueError as error:
        raise ValueError(
            f"ignored: name the layers whose weights the model reads itself; with bottlenecks, {error}"
        ) from error
    if pruned[target.quantity] != pool.cost(fallen):
        raise ValueError(
            f"the network costs {pruned[target.quantity]} {target.quantity} with bottlenecks instead of "
            f"{pool.cost(fallen)}; does it choose its path at random or by the data?"
        )
    return replace(plan, cost={q: {"dense": dense[q], "pruned": pruned[q]} for q in dense})


def bottleneck_network(
    model: nn.Module,
    example_inputs: Any,
    data: Calibration | Iterable[Batch],
    *,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Replace layers by bottlenecks: `make_bottlenecks`, then `apply_bottlenecks`.

    Parameters
    ----------
    model, example_inputs, data, keep_macs, keep_params, seed, progress
        See `make_bottlenecks`.
    **options
        Its other options.

    Returns
    -------
    network : nn.Module
        A copy of the model with bottlenecks.
    record : dict
        What a report says of it: ``macs`` and ``params``, each ``{"dense", "pruned"}``, ``target``, ``replaced`` (layer
        to its ranks of inputs and outputs), ``left`` (layer to the reason), ``basis``, ``labels``, ``quantile``,
        ``seed``.

    Raises
    ------
    TypeError, ValueError
        See `make_bottlenecks`.
    """
    plan = make_bottlenecks(
        model,
        example_inputs,
        data=data,
        keep_macs=keep_macs,
        keep_params=keep_params,
        seed=seed,
        progress=progress,
        **options,
    )
    return apply_bottlenecks(model, plan), plan.record()


def check_reach(
    model: nn.Module,
    example_inputs: Any,
    *,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    basis: Basis = "channels",
    floor: float = DEFAULT_FLOOR,
    ignored: Iterable[str] = (),
) -> None:
    """Refuse a target that is out of reach, by shapes alone: without images, factors and trained weights.

    Parameters
    ----------
    model, example_inputs, keep_macs, keep_params, basis, floor, ignored
        See `make_bottlenecks`.

    Raises
    ------
    TypeError, ValueError
        See `make_bottlenecks`.
    """
    target = Target.choose(keep_macs, keep_params)
    Options(basis, floor=floor)  # checks them
    candidates, left = find_candidates(model, example_inputs, ignored)
    if not candidates:
        raise ValueError(f"no layer of the model can be replaced: {_reasons(left)}")
    unknown = torch.empty(0)
    spectra = [
        _Spectrum(unknown, unknown, np.zeros(c.n_in * (c.kernel if basis == "patches" else 1)), np.zeros(c.n_out))
        for c in candidates
    ]
    _Pool(candidates, spectra, basis, floor, target, measured_cost(model, example_inputs)).settle()


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Directions of a layer, by eigenvalue ascending, and the damage of losing each."""

    base_in: Tensor  # float64 [d, d]
    base_out: Tensor  # float64 [n_out, n_out]
    damage_in: np.ndarray  # float64 [d]
    damage_out: np.ndarray  # float64 [n_out]


def _spectrum(weight: Tensor, factors: Factors, basis: Basis) -> _Spectrum:
    values_in, base_in = _eigen(factors.a[0])
    values_out, base_out = _eigen(factors.g[0])
    star = rotated(weight, base_in, base_out, basis)  # [n_out, d, kernel]
    damage = star.square().sum(2) * values_out[:, None] * values_in
    return _Spectrum(base_in, base_out, damage.sum(0).cpu().numpy(), damage.sum(1).cpu().numpy())


def _eigen(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none negative, and eigenvectors, whose largest element is positive on every machine."""
    values, vectors = torch.linalg.eigh((moments + moments.T) / 2)
    largest = vectors.abs().argmax(0, keepdim=True)
    return values.clamp(min=0), vectors * vectors.gather(0, largest).sign()


class _Pool:
    """All directions of all layers in the order in which they fall, and what is left of the model then."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        spectra: Sequence[_Spectrum],
        basis: Basis,
        floor: float,
        target: Target,
        dense: dict[str, int],
    ) -> None:
        self._candidates, self._spectra, self._basis = candidates, spectra, basis
        self._target, self._dense = target, dense[target.quantity]
        sides = [side for spectrum in spectra for side in (spectrum.damage_in, spectrum.damage_out)]
        self._damage = np.concatenate(sides)
        self._ends = np.cumsum([len(side) for side in sides])
        held = np.concatenate([_held(side, Fraction(repr(float(floor)))) for side in sides])
        order = np.argsort(self._damage, kind="stable")
        self._order = order[~held[order]]

    def __len__(self) -> int:
        return len(self._damage)

    def settle(self) -> int:
        """Return how many directions have to fall."""
        limit = self._target.limit(self._dense)
        low, high = 0, len(self._order)
        if self.cost(high) > limit:
            reached = self.cost(high)
            raise ValueError(
                f"{self._target.option}={self._target.keep} is out of reach: with every layer at its floor, {reached} "
                f"of {self._dense} {self._target.quantity} ({reached / self._dense:.4f}) are left, rotations included. "
                "Ask for more than that, or widen what may go: a lower floor, fewer ignored layers"
            )
        while low < high:  # the cost never rises as directions fall
            middle = (low + high) // 2
            if self.cost(middle) <= limit:
                high = middle
            else:
                low = middle + 1
        return low

    def cost(self, fallen: int) -> int:
        """Cost of the model when the first ``fallen`` directions have fallen."""
        saved = 0
        for candidate, _, (ins, outs) in self.bottlenecks(fallen):
            saved += self._of(candidate.dense) - self._of(candidate.replaced(len(ins), len(outs), self._basis))
        return self._dense - saved

    def bottlenecks(self, fallen: int) -> list[tuple[Candidate, _Spectrum, tuple[np.ndarray, np.ndarray]]]:
        """Layers that are smaller as bottlenecks, with the directions of inputs and outputs that they keep."""
        stays = np.ones(len(self), dtype=bool)
        stays[self._order[:fallen]] = False
        sides = [np.flatnonzero(side)[::-1].copy() for side in np.split(stays, self._ends[:-1])]  # largest first
        found = []
        for i, (candidate, spectrum) in enumerate(zip(self._candidates, self._spectra, strict=True)):
            ins, outs = sides[2 * i : 2 * i + 2]
            if self._of(candidate.replaced(len(ins), len(outs), self._basis)) < self._of(candidate.dense):
                found.append((candidate, spectrum, (ins, outs)))
        return found

    def threshold(self, fallen: int) -> float:
        """Return the largest damage of a direction that fell."""
        return float(self._damage[self._order[fallen - 1]]) if fallen else 0.0

    def _of(self, cost: dict[str, int]) -> int:
        return cost[self._target.quantity]


def _held(damage: np.ndarray, share: Fraction) -> np.ndarray:
    """Mask of the directions that stay in any case: the ``share`` that would do most damage, at least one."""
    held = np.zeros(len(damage), dtype=bool)
    held[np.argsort(damage, kind="stable")[len(damage) - max(1, math.ceil(share * len(damage))) :]] = True
    return held


def _reasons(left: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "it has no convolution or linear layer"
