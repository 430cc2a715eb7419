"""Scores of single weights: which of them go first, and how such a score is found by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from srr_ext.criteria.base import SelectorContext
from srr_ext.inputs import detached, run
from srr_ext.measuring import differentiating, measuring, require_gradient
from srr_ext.registry import Registry


class Score(Protocol):
    """Says which weights matter; the least important go first."""

    def __call__(self, tensors: Mapping[str, Tensor], context: SelectorContext, /) -> Mapping[str, Tensor]:
        """Return for each tensor one finite number per weight, of its shape and floating, higher = keep.

        ``tensors`` are parameters of ``context.model`` by name, as `srr_ext.sparsity.prunable` finds them. They are
        read only. The result may be on any device.
        """
        ...


_registry: Registry[Score] = Registry("score", "srr_ext.scores")
register_score = _registry.register
get_score = _registry.get
available_scores = _registry.available


@register_score("magnitude")
def magnitude(tensors: Mapping[str, Tensor], context: SelectorContext) -> dict[str, Tensor]:
    r"""Absolute value.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Weights to score.
    context : SelectorContext
        Not used.

    Returns
    -------
    dict of str to Tensor
        For each tensor, the same shape, type and device, in the unit of the weights; higher = keep.

    Notes
    -----
    .. math:: s_i = |w_i|

    References
    ----------
    Han, Pool, Tran, Dally. Learning both weights and connections for efficient neural networks. NeurIPS 2015,
    arXiv 1506.02626.
    """
    return {name: tensor.detach().abs() for name, tensor in tensors.items()}


@register_score("gradient")
def gradient(tensors: Mapping[str, Tensor], context: SelectorContext) -> dict[str, Tensor]:
    r"""Absolute product of weight and gradient: how much the loss changes, to first order, without the weight.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Weights to score, parameters of the context's model.
    context : SelectorContext
        Gives the model and batches of (inputs, targets).

    Returns
    -------
    dict of str to Tensor
        For each tensor, the same shape, float32 or wider, on ``context.device``, in the unit of the loss; higher =
        keep.

    Raises
    ------
    ValueError
        If there are no calibration data, their loss has no gradient or cannot be differentiated, or the model has no
        such parameters.

    Warns
    -----
    UserWarning
        If no gradient reaches a tensor; its scores are 0.

    Notes
    -----
    .. math:: s_i = \Bigl| w_i \, \frac{1}{B} \sum_{b=1}^{B} \frac{\partial L_b}{\partial w_i} \Bigr|

    over mini-batches :math:`b` with mean loss :math:`L_b`, in evaluation mode, on a copy of the model. The mean is
    taken before the absolute value, so the size of the batches does not matter as long as they are equal. Blalock et
    al. score one mini-batch.

    References
    ----------
    Blalock, Gonzalez Ortiz, Frankle, Guttag. What is the state of neural network pruning? MLSys 2020,
    arXiv 2003.03033, appendix.

    Lee, Ajanthan, Torr. SNIP: single-shot network pruning based on connection sensitivity. ICLR 2019,
    arXiv 1810.02340.
    """
    loss = context.calibration.loss
    with measuring(context.seed):
        model = context.working_copy()
    for parameter in model.parameters():
        if parameter.is_leaf:  # copies of scripted modules hold others
            parameter.requires_grad_(False)
    weights = {}
    for name in tensors:
        try:
            weights[name] = model.get_parameter(name).requires_grad_(True)
        except AttributeError:
            raise ValueError(f"gradient: the model has no parameter {name!r}; were the tensors another's?") from None
    wide = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in weights.items()}
    totals = {name: torch.zeros_like(weight, dtype=wide[name]) for name, weight in weights.items()}
    reached: set[str] = set()
    n_batches = sum(1 for _ in context.calibration.train)
    with context.progress.stage("gradient", n_batches) as step:
        for batch in context.batches():
            with measuring(context.seed), torch.enable_grad(), differentiating():
                inputs, targets = detached(batch)
                value = loss(run(model, inputs), targets)
                require_gradient(value)
                gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            for name, found in zip(weights, gradients, strict=True):
                if found is not None:
                    reached.add(name)
                    totals[name] += found
            step()
    silent = [name for name in tensors if name not in reached]
    if silent:
        warnings.warn(f"gradient: no gradient reaches {', '.join(silent)}; its scores are 0", stacklevel=2)
    with torch.no_grad():
        return {name: totals[name].div_(n_batches).mul_(weights[name]).abs_() for name in tensors}


@register_score("random")
def random(tensors: Mapping[str, Tensor], context: SelectorContext) -> dict[str, Tensor]:
    r"""Draw uniformly at random: the control that every comparison needs.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Weights to score; only their shapes matter.
    context : SelectorContext
        Gives the seed.

    Returns
    -------
    dict of str to Tensor
        For each tensor, the same shape, float32 in [0, 1), on the CPU. The same seed and name give the same numbers
        for every machine, whatever other tensors there are; so masks of fewer and fewer weights are nested.

    Notes
    -----
    .. math:: s_i \sim U[0, 1)
    """
    return {
        name: torch.from_numpy(context.generator("weights", name).random(tuple(tensor.shape), dtype=np.float32))
        for name, tensor in tensors.items()
    }
