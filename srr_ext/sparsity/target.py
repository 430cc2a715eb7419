"""How many weights stay for a compression ratio or a density, in exact integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from torch import Tensor, nn


def weights_to_keep(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    compression: float | None = None,
    density: float | None = None,
) -> int:
    r"""Count the prunable weights that may stay.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    tensors : mapping of str to Tensor
        Its prunable parameters, by name; see `srr_ext.sparsity.prunable`.
    compression : float, optional
        All parameters of the model divided by those that stay, at least 1.
    density : float, optional
        Share of the prunable weights that stays, in (0, 1].

    Returns
    -------
    int
        The largest number that meets the target, at least 1.

    Raises
    ------
    TypeError
        If the target is no number.
    ValueError
        If not exactly one target is given, it is out of range, not even one prunable weight may stay (the message
        names what can be reached), or a tensor is no parameter of the model.

    Notes
    -----
    With :math:`P` parameters, each shared one once, :math:`p` of them prunable,

    .. math:: keep = \lfloor P / compression \rfloor - (P - p), \qquad keep = \lfloor density \cdot p \rfloor

    Both count as the decimals they are written as: 0.7 of 10 is 7.

    References
    ----------
    Blalock, Gonzalez Ortiz, Frankle, Guttag. What is the state of neural network pruning? MLSys 2020,
    arXiv 2003.03033 (compression ratio).
    """
    given = {name: value for name, value in (("compression", compression), ("density", density)) if value is not None}
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"compression, density: give exactly one of them, got {got}")
    ((name, value),) = given.items()
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    total, dense = _counts(model, tensors)
    if density is not None:
        if not 0 < density <= 1:
            raise ValueError(
                f"density is the share of the prunable weights to keep and must be in (0, 1], got {density}"
            )
        keep = math.floor(_as_written(density) * dense)
        if keep < 1:
            raise ValueError(f"density {density} leaves none of the {dense} prunable weights; 1/{dense} is the least")
        return keep
    if not (math.isfinite(value) and value >= 1):
        raise ValueError(f"compression is all parameters over those that stay and must be at least 1, got {value}")
    keep = math.floor(total / _as_written(value)) - (total - dense)
    if keep < 1:
        most = math.floor(Fraction(100 * total, total - dense + 1)) / 100
        raise ValueError(
            f"compression {value} is out of reach: {total - dense} of the {total} parameters are not prunable, so "
            f"{most} is the most; let the classifier lose weights too, or ignore less"
        )
    return keep


def _counts(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count all parameters of the model, and the prunable ones."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise ValueError(f"tensors: {name!r} is no parameter of the model of shape {list(tensor.shape)}")
    distinct = {id(parameters[name]): parameters[name].numel() for name in tensors}
    return sum(parameter.numel() for parameter in model.parameters()), sum(distinct.values())


def _as_written(number: float) -> Fraction:
    return Fraction(repr(float(number)))
