"""Filter information entropy: a layer whose filters are little different from each other loses more of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target
from srr_ext.filters import channel_weights

Weights = Literal["trained", "random"]


def afie_of(weight: Tensor) -> float:
    r"""Average filter information entropy of a layer.

    Parameters
    ----------
    weight : Tensor, shape [n_filters, n_in, ...]
        Of a convolution or a linear layer; what follows the first two dimensions is the kernel.

    Returns
    -------
    float
        In nats per filter, from 0 to :math:`\ln(\min(n_{in}, N)) / N`; 0 if there is only one singular value.

    Raises
    ------
    ValueError
        If the weight has fewer than two dimensions, is empty, or holds infinity or NaN.

    Notes
    -----
    With :math:`M` the mean of the weight over kernel positions (inputs by filters) and :math:`s_i` its singular values,

    .. math:: z_i = \frac{s_i - \min s}{\max s - \min s}, \quad q = \mathrm{softmax}(z), \quad
        K = -\sum_i q_i \ln q_i, \quad \mathrm{AFIE} = K / N.

    Where all singular values are equal, :math:`z` is 0/0 and :math:`q` is taken to be uniform (ours). As :math:`z` lies
    in [0, 1], :math:`q` is never far from uniform, and AFIE is nearly :math:`\ln(\min(n_{in}, N)) / N` whatever the
    weights are (ours): compare with ``weights="random"`` of `Afie`.

    References
    ----------
    Lu et al. Average filter information entropy. AAAI 2024, arXiv 2208.06660.
    """
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"weight must be [n_filters, n_in, ...] and not empty, got shape {list(weight.shape)}")
    if not bool(weight.isfinite().all()):
        raise ValueError("weight must be finite, got infinity or NaN")
    mean = weight.detach().double().flatten(2).mean(2) if weight.ndim > 2 else weight.detach().double()
    values = torch.linalg.svdvals(mean)  # a matrix and its transpose have the same
    spread = values.max() - values.min()
    rounding = values.max() * max(mean.shape) * torch.finfo(mean.dtype).eps
    equal = bool(spread <= rounding)
    q = torch.softmax(torch.zeros_like(values) if equal else (values - values.min()) / spread, 0)
    return float(-(q * q.log()).sum()) / len(weight) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Afie:
    r"""Remove shares that are in inverse proportion to the average filter information entropy of the layers.

    Parameters
    ----------
    weights : {"trained", "random"}, default "trained"
        Whether entropies are those of the model's weights, or, as an ablation, of the same architecture with weights
        drawn anew by the plan's seed: then nothing of what was learnt has a say.
    exempt_stem : bool, default True
        Leave the first convolution of the model out (ours): its few input channels alone make its entropy the least of
        all, and it would be pruned hardest. Where it shares its channels with other layers, those decide.

    Raises
    ------
    ValueError
        If ``weights`` is anything else; when called, if a weight is not finite, weights are to be random and a module
        cannot be initialised, or the target is out of reach.
    TypeError
        If ``exempt_stem`` is not a bool.

    Warns
    -----
    UserWarning
        If a group has entropy 0, which no share is in inverse proportion to: its filters read one channel each. It is
        left whole (ours).

    Notes
    -----
    The share of group :math:`l` that goes is, with its entropy from `afie_of`,

    .. math:: \lambda_l = \lambda_{min} \frac{\max_m \mathrm{AFIE}_m}{\mathrm{AFIE}_l},

    with the largest share each group may lose (``floor``) as a bound, and :math:`\lambda_{min}` such that the target is
    met: what groups at their bound cannot give, the others do. So the group with the least
    :math:`\mathrm{AFIE}_l (k + 1) / N_l` loses the next vertex, its (k + 1)-th. The paper's target is a share of the
    weights, :math:`\sum_l \lambda_l p_l = \lambda^* p^*`; here it is the plan's. A coupled group has the mean entropy
    of its producers, weighted by their numbers of filters (ours). Which filters of a layer go the paper leaves open.

    ``info`` has ``weights``, ``exempt`` (names of groups left whole) and ``afie`` (entropy by name of group).

    References
    ----------
    Lu et al. Average filter information entropy. AAAI 2024, arXiv 2208.06660.
    """

    weights: Weights = "trained"
    exempt_stem: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        if self.weights not in get_args(Weights):
            raise ValueError(f"weights must be one of {', '.join(get_args(Weights))}, got {self.weights!r}")
        if not isinstance(self.exempt_stem, bool):
            raise TypeError(f"exempt_stem must be true or false, got {self.exempt_stem!r}")

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
    ) -> Allocation:
        """Return the vertices kept per group, and their entropies; see `Allocator`."""
        model = self._model(context)
        stem = _first_convolution(cost) if self.exempt_stem else None
        entropies, exempt = [], []
        for group in groups:
            counted = [member.module for member in group.producers if member.module != stem]
            entropies.append(_entropy(counted or [group.producers[0].module], model))
            if not counted:
                exempt.append(group.name)
            elif entropies[-1] == 0:
                exempt.append(group.name)
                warnings.warn(
                    f"group {group.name!r} has filter information entropy 0, each filter reading one channel: it stays "
                    "whole",
                    stacklevel=4,  # this function, decide, make_plan, whoever called it
                )
        priorities = [
            np.full(group.size, -math.inf)
            if group.name in exempt
            else -entropy * np.arange(1, group.size + 1) / group.size
            for group, entropy in zip(groups, entropies, strict=True)
        ]
        info: dict[str, Any] = {
            "weights": self.weights,
            "exempt": exempt,
            "afie": {group.name: entropy for group, entropy in zip(groups, entropies, strict=True)},
        }
        return Allocation(tuple(merge(groups, priorities, cost, target, context)), info)

    def _model(self, context: AllocatorContext) -> nn.Module:
        """Return the model whose weights are measured."""
        if self.weights == "trained":
            return context.model
        from srr_ext.training import reinitialise  # imports what training needs

        return reinitialise(context.model, context.seed)


def _first_convolution(cost: CostModel) -> str | None:
    """Name of the convolution that runs first; None if there is none."""
    layers = cost.analysis.layers.values()
    return next((layer.name for layer in layers if layer.kind in ("conv", "conv_transpose")), None)


def _entropy(producers: Sequence[str], model: nn.Module) -> float:
    """Mean entropy of layers, weighted by their numbers of filters."""
    total, filters = 0.0, 0
    for name in producers:
        module = model.get_submodule(name)
        rows = channel_weights(module)  # [n_filters, fan_in]: also of transposed convolutions
        kernel = math.prod(getattr(module, "kernel_size", ()))
        try:
            total += len(rows) * afie_of(rows.unflatten(1, (-1, kernel)))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}: check the weights") from None
        filters += len(rows)
    return total / filters


afie = register_allocator("afie")(Afie())
