"""How far two outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def relative_error(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest finite magnitude, each output by its own scale.

    Infinite if shapes differ, and where nothing is proven: by NaN, or because there is no number to compare.
    """
    if [value.shape for value in wanted] != [value.shape for value in found]:
        return float("inf")
    return max((_of_one(a, b) for a, b in zip(wanted, found, strict=True) if a.numel()), default=float("inf"))


def _of_one(wanted: Tensor, found: Tensor) -> float:
    wanted, found = _as_real(wanted), _as_real(found)
    difference = torch.where(wanted == found, 0.0, (wanted - found).abs())  # equal infinities agree
    worst = float(difference.max())
    scale = float(torch.where(wanted.isfinite(), wanted, 0.0).abs().max())
    return float("inf") if not math.isfinite(worst) else worst / scale if scale else worst


def _as_real(value: Tensor) -> Tensor:
    return (torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).double()
