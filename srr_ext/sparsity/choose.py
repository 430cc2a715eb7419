"""From scores to masks: an exact number of weights stays, of the whole model, of each layer, or of each small group."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from srr_ext.sparsity.masks import Masks
from srr_ext.transfers import to_host

_PIECE = 1 << 20

Scope = Literal["global", "layerwise"] | tuple[int, int]


def parse_scope(text: str) -> Scope:
    """Read where weights compete with each other.

    Parameters
    ----------
    text : str
        ``"global"`` (all of the model), ``"layerwise"`` (those of each tensor), or ``"N:M"``, such as ``"2:4"`` (each
        group of M inputs).

    Returns
    -------
    "global", "layerwise" or tuple (N, M)
        The same.

    Raises
    ------
    ValueError
        If it is none of these, or not 1 <= N < M.
    """
    if text == "global":
        return "global"
    if text == "layerwise":
        return "layerwise"
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    if match is None:
        raise ValueError(f"scope must be global, layerwise or N:M such as 2:4, got {text!r}")
    n, m = int(match[1]), int(match[2])
    if not 1 <= n < m:
        raise ValueError(f"scope N:M keeps N of every M weights, so it wants 1 <= N < M, got {text!r}")
    return n, m


def choose(
    scores: Mapping[str, Tensor],
    alive: Masks,
    keep: int | None,
    scope: str = "global",
    *,
    transposed: Collection[str] = (),
) -> Masks:
    """Keep the weights with the largest scores among those that are still there.

    Parameters
    ----------
    scores : mapping of str to Tensor
        One number per weight, higher = keep: the tensors of ``alive``, in the same shapes, floating and finite, on any
        device.
    alive : Masks
        What is kept so far. What is not never comes back.
    keep : int or None
        How many weights stay, in [0, alive.kept]. With ``"N:M"``, whose groups settle it: that number or None.
    scope : {"global", "layerwise", "N:M"}, default "global"
        Where weights compete: in the whole model; in each tensor, which all keep the same share, see `layer_counts`; or
        in each group of M inputs, see `n_of_m`.
    transposed : collection of str, optional
        For ``"N:M"``: names of the tensors whose inputs are dimension 0, see `srr_ext.sparsity.transposed_weights`.

    Returns
    -------
    Masks
        Exactly ``keep`` weights, a part of ``alive``, with the tensors in the order of ``scores``. Among equal scores
        the first stay, in the order of tensors and then of flat indices.

    Raises
    ------
    TypeError
        If scores are not floating, or ``keep`` is no whole number.
    ValueError
        If the scope is unknown, ``keep`` is out of range, or scores are missing, of another shape, or not finite; the
        message names the tensor.

    Notes
    -----
    The threshold is found by selection, in time linear in the number of weights, not by sorting.
    """
    parsed = parse_scope(scope)
    flat = _checked(scores, alive)
    if isinstance(parsed, tuple):
        chosen = _n_of_m(flat, alive, *parsed, transposed)
        if keep is not None and keep != chosen.kept:
            raise ValueError(f"keep: with scope {scope!r} {chosen.kept} weights stay, not {keep}; leave it out")
        return chosen
    if not isinstance(keep, (int, np.integer)):
        raise TypeError(f"keep: expected the number of weights that stay, got {keep!r}")
    keep = int(keep)
    _require(keep, alive.kept)
    there = [alive[name].flatten().numpy() for name in flat]
    parts = [score.numpy() for score in flat.values()]
    if parsed == "global":
        kept = _largest(parts, there, keep)
    else:
        shares = layer_counts([len(part) for part in parts], [alive.counts[name] for name in flat], keep)
        kept = [
            mask
            for part, here, share in zip(parts, there, shares, strict=True)
            for mask in _largest([part], [here], share)
        ]
    return Masks(
        {name: torch.from_numpy(mask).reshape(alive[name].shape) for name, mask in zip(flat, kept, strict=True)}
    )


def layer_counts(sizes: Sequence[int], alive: Sequence[int], keep: int) -> list[int]:
    r"""Share a number of weights among tensors so that each keeps the same part of itself, as nearly as integers can.

    Parameters
    ----------
    sizes : sequence of int
        Weights of each tensor.
    alive : sequence of int
        How many of them are still there: none gets more.
    keep : int
        How many weights stay in all, in [0, sum(alive)].

    Returns
    -------
    list of int
        How many stay in each tensor; their sum is ``keep``.

    Raises
    ------
    ValueError
        If ``keep`` is out of range.

    Notes
    -----
    Tensor :math:`l` is due :math:`q_l = keep \cdot n_l / \sum n`. Where that is more than is there, all that is there
    stays, and the others share the rest in the same way, until no one is due more than there is. The integer parts are
    given out first, and what is left goes, one each, to the largest remainders; ties to the first tensor.
    """
    _require(keep, sum(alive))
    counts = [0] * len(sizes)
    open_ = [i for i, size in enumerate(sizes) if size]
    left = keep
    while True:
        total = sum(sizes[i] for i in open_)
        full = [i for i in open_ if left * sizes[i] > alive[i] * total]
        if not full:
            break
        for i in full:
            counts[i] = alive[i]
        left -= sum(alive[i] for i in full)
        open_ = [i for i in open_ if i not in set(full)]
    for i in open_:
        counts[i] = left * sizes[i] // total
    more = left - sum(counts[i] for i in open_)
    for i in sorted(open_, key=lambda i: -(left * sizes[i] % total))[:more]:  # stable: the first of equals
        counts[i] += 1
    return counts


def n_of_m(scores: Mapping[str, Tensor], alive: Masks, n: int, m: int, *, transposed: Collection[str] = ()) -> Masks:
    """Keep the n weights with the largest scores in every group of m consecutive inputs.

    Parameters
    ----------
    scores : mapping of str to Tensor
        As for `choose`.
    alive : Masks
        What is kept so far. What is not never comes back, so a group may keep fewer than n.
    n, m : int
        With 1 <= n < m.
    transposed : collection of str, optional
        Names of the tensors whose inputs are dimension 0 (`srr_ext.sparsity.transposed_weights`); of all others they
        are dimension 1: [out, in] and [out, in, kernel...].

    Returns
    -------
    Masks
        A part of ``alive``. Among equal scores the first stay.

    Raises
    ------
    TypeError
        If scores are not floating.
    ValueError
        If not 1 <= n < m, or scores are missing, of another shape, or not finite.

    Warns
    -----
    UserWarning
        Names tensors that m does not divide; they stay as they are.

    Notes
    -----
    For a convolution the groups are of consecutive input channels at the same position of the kernel, as NVIDIA's ASP
    has them. A grouped convolution's inputs are those of one of its groups. PyTorch's semi-structured format holds a
    linear layer's weights in 2:4 when they are float16 or bfloat16, and in 1:2 when they are float32.

    References
    ----------
    Mishra et al. Accelerating sparse deep neural networks. 2021, arXiv 2104.08378.
    """
    parse_scope(f"{n}:{m}")
    return _n_of_m(_checked(scores, alive), alive, n, m, transposed)


def _n_of_m(flat: Mapping[str, Tensor], alive: Masks, n: int, m: int, transposed: Collection[str]) -> Masks:
    kept: dict[str, Tensor] = {}
    whole: list[str] = []
    for name, values in flat.items():
        mask = alive[name]
        side = 0 if name in transposed else min(1, mask.ndim - 1)
        if mask.ndim == 0 or mask.shape[side] % m:
            kept[name] = mask
            whole.append(name)
            continue
        grouped = values.reshape(mask.shape).movedim(side, -1).unflatten(-1, (-1, m))  # [..., groups, m]
        there = mask.movedim(side, -1).unflatten(-1, (-1, m))
        ranked = grouped.masked_fill(~there, -torch.inf)
        # How many of its group come before each weight: m comparisons of n weights, and no sort.
        before = torch.zeros(ranked.shape, dtype=torch.uint8 if m < 256 else torch.int32)
        for j in range(m):
            other = ranked[..., j : j + 1]
            before += other > ranked
            before[..., j + 1 :] += other == ranked[..., j + 1 :]
        kept[name] = ((before < n) & there).flatten(-2).movedim(-1, side)
    if whole:
        warnings.warn(
            f"scope {n}:{m}: {m} does not divide the inputs of {', '.join(whole)}; left as they are", stacklevel=3
        )
    return Masks(kept)


def _require(keep: int, there: int) -> None:
    if not 0 <= keep <= there:
        raise ValueError(f"keep must be in [0, {there}], the weights that are there, got {keep}")


def _largest(scores: Sequence[np.ndarray], alive: Sequence[np.ndarray], keep: int) -> list[np.ndarray]:
    """Mask exactly ``keep`` of the living as kept: the largest, and the first of those equal to the last of them.

    Beside the scores, all of one type, there is never more in memory than one copy of them.
    """
    count = sum(int(np.count_nonzero(mask)) for mask in alive)
    if keep == 0:
        return [np.zeros_like(mask) for mask in alive]
    if keep == count:
        return list(alive)
    pool = np.empty(count, dtype=scores[0].dtype)
    filled = 0
    for values, mask in zip(scores, alive, strict=True):
        for piece in _pieces(len(values)):
            living = values[piece][mask[piece]]
            pool[filled : filled + len(living)] = living
            filled += len(living)
    pool.partition(count - keep)  # in place
    threshold = pool[count - keep]
    del pool
    kept = [(values > threshold) & mask for values, mask in zip(scores, alive, strict=True)]
    more = keep - sum(int(np.count_nonzero(mask)) for mask in kept)
    for values, mask, stay in zip(scores, alive, kept, strict=True):
        for piece in _pieces(len(values)):
            ties = np.flatnonzero((values[piece] == threshold) & mask[piece])[:more]
            stay[piece][ties] = True
            more -= len(ties)
    return kept


def _pieces(length: int) -> list[slice]:
    """Cut an array into pieces, for operations that need more memory than what they work on."""
    return [slice(begin, begin + _PIECE) for begin in range(0, length, _PIECE)]


def _checked(scores: Mapping[str, Tensor], alive: Masks) -> dict[str, Tensor]:
    """Bring scores to the CPU, flat, all in one type that NumPy has; refuse what does not fit or is not finite."""
    for name in alive:
        if name not in scores:
            raise ValueError(f"scores: there are none of {name!r}, which is masked")
    for name, score in scores.items():
        if name not in alive:
            raise ValueError(f"scores: there is no mask of {name!r}, which is scored")
        if not isinstance(score, Tensor) or not score.is_floating_point():
            what = str(score.dtype) if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"scores: expected a floating-point tensor for {name!r}, got {what}")
        if score.shape != alive[name].shape:
            raise ValueError(
                f"scores: {name!r} has scores of shape {list(score.shape)} for weights of {list(alive[name].shape)}"
            )
    flat = dict(zip(scores, to_host(*(score.detach() for score in scores.values())), strict=True))
    for name, score in flat.items():
        # The extremes are NaN if any is, and unlike isfinite they take no memory.
        if score.numel() and not all(extreme.isfinite() for extreme in score.aminmax()):
            raise ValueError(f"scores: those of {name!r} are not all finite; are its weights, or its gradients?")
    # Compared in one type, the widest: a threshold in float64 may lie between two numbers in float32.
    common = reduce(torch.promote_types, (score.dtype for score in flat.values()), torch.float32)
    return {name: score.to(common).flatten() for name, score in flat.items()}
