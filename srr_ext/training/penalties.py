"""Penalties under which whole channels, or single weights, become zero while a network is trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink
from torch.nn.modules.batchnorm import _NormBase

from srr_ext.channels.records import ChannelGroup, Member
from srr_ext.coupled import CoupledWeights
from srr_ext.training.config import SparseConfig
from srr_ext.transfers import to_host


class ProximalPenalty(Protocol):
    """A term of the loss that is minimised by a step of its own, after each step of the optimiser.

    Attributes
    ----------
    noun : str
        What `zeros` counts, in the plural: ``"channels"`` or ``"weights"``.
    """

    noun: ClassVar[str]

    def step(self, lr: float) -> None:
        """Take the proximal step that follows a step of the optimiser with this learning rate, in place."""
        ...

    def value(self) -> float:
        """Return what the penalty adds to the loss at present, its strength included."""
        ...

    def zeros(self) -> dict[str, tuple[int, int]]:
        """Count what is exactly zero, and out of how many, in each group or parameter under the penalty, by name."""
        ...

    def report(self) -> str:
        """Return one line that says how much is zero, of all that is under the penalty."""
        zero, of = (sum(counts) for counts in zip(*self.zeros().values(), strict=True))
        return f"{zero} of {of} {self.noun} under the penalty are zero"


class GroupLasso(ProximalPenalty):
    r"""Euclidean norms of vertices with all the weights that go with them.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups whose vertices may become zero.
    model : nn.Module
        The model that is trained; may be moved to another device at any time.
    strength : float
        Weight of the penalty, :math:`\lambda`.

    Raises
    ------
    ValueError
        If no group is left.

    Warns
    -----
    UserWarning
        If a group has weights that are not trained: it cannot become zero and is left out.

    Notes
    -----
    The penalty is :math:`\lambda \sum_j \lVert w_j \rVert_2` with the weights :math:`w_j` of vertex :math:`j` in all
    members of its group (see `srr_ext.coupled.CoupledWeights`), unweighted by their number. A step is

    .. math:: w_j \leftarrow \max\left(0, 1 - \frac{\eta \lambda}{\lVert w_j \rVert_2}\right) w_j

    with the learning rate :math:`\eta` of the optimiser's step. So a vertex becomes exactly zero, and can then be
    removed without changing the outputs.

    The original adds the sub-gradient to the loss and sets what is small to zero; that the step is proximal, and that
    the groups follow the coupling of layers, is ours. A weight between two groups (its row is a filter of one, its
    column is read from the other) belongs to a vertex of each. The proximal operator of overlapping groups has no
    closed form; the groups take their steps one after the other, in order of execution, each on what the ones before
    have left, which is ours, too. None of them undoes a zero of another. With adamw the step is the same, that is, not
    scaled by its running mean of squared gradients.

    A vertex at zero may come back: momentum can move it, and the gradient where an activation makes something of zero.
    In an ordinary chain of layers its gradient is zero as well, so it stays.

    In all, a vertex loses :math:`\lambda \sum_t \eta_t` of its norm at most; the strength has to be chosen so that this
    is several times a usual norm. Weight decay goes on beside it and makes all norms smaller, but none zero.

    References
    ----------
    Wen, Wu, Wang, Chen, Li. Learning structured sparsity in deep neural networks. NeurIPS 2016, arXiv 1608.03665.

    Yuan, Lin. Model selection and estimation in regression with grouped variables. Journal of the Royal Statistical
    Society B 68, 2006 (which weighs a group by the root of its size; this one does not).
    """

    noun: ClassVar[str] = "channels"

    def __init__(self, groups: Sequence[ChannelGroup], model: nn.Module, strength: float) -> None:
        self.strength = strength
        self._coupled = []
        for group in groups:
            coupled = CoupledWeights(group, model)
            frozen = [name for name, parameter in coupled.parameters.items() if not parameter.requires_grad]
            if frozen:
                _leave_out("group_lasso", group, f"{frozen[0]} is not trained")
            else:
                self._coupled.append(coupled)
        _require("group_lasso", self._coupled)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take the proximal step of every group, in order; see `ProximalPenalty`."""
        threshold = lr * self.strength
        if threshold == 0:
            return  # which would make NaN of a vertex at zero
        for coupled in self._coupled:
            coupled.scale_((1 - threshold / coupled.norms()).clamp_(min=0))  # 0 where the norm is 0

    def value(self) -> float:
        """Return the strength times the sum of all norms."""
        return self.strength * sum(float(norms.sum()) for norms in self._norms())

    def zeros(self) -> dict[str, tuple[int, int]]:
        """Count the vertices of each group that are zero, and all; see `ProximalPenalty`."""
        zero = self.zero_vertices()
        return {c.group.name: (zero[c.group.name], c.group.size) for c in self._coupled}

    def zero_vertices(self) -> dict[str, int]:
        """Count the vertices of each group all of whose weights are zero."""
        return {c.group.name: int((n == 0).sum()) for c, n in zip(self._coupled, self._norms(), strict=True)}

    def _norms(self) -> list[Tensor]:
        return to_host(*(coupled.norms(torch.float64) for coupled in self._coupled))


class BatchNormL1(ProximalPenalty):
    r"""Absolute values of the scales of the normalisations that follow prunable channels: network slimming.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups whose vertices may become zero.
    model : nn.Module
        The model that is trained; may be moved to another device at any time.
    strength : float
        Weight of the penalty, :math:`\lambda`.

    Raises
    ------
    ValueError
        If no group is left.

    Warns
    -----
    UserWarning
        If no normalisation with trained scales follows a group: it has none that could become zero and is left out.

    Notes
    -----
    The penalty is :math:`\lambda \sum |\gamma|` over the scales of the channels that may go; a step, with the learning
    rate :math:`\eta` of the optimiser's,

    .. math:: \gamma \leftarrow \operatorname{sign}(\gamma) \max(0, |\gamma| - \eta \lambda)

    The original adds the sub-gradient :math:`\lambda \operatorname{sign}(\gamma)`, which leaves scales near zero; the
    proximal step, which makes them exactly zero, is ours. A channel whose scale is zero still has its shift, a constant
    that is lost with it: unlike with `GroupLasso`, to remove it may change the outputs.

    References
    ----------
    Liu, Li, Shen, Huang, Yan, Zhang. Learning efficient convolutional networks through network slimming. ICCV 2017,
    arXiv 1708.06519.
    """

    noun: ClassVar[str] = "channels"

    def __init__(self, groups: Sequence[ChannelGroup], model: nn.Module, strength: float) -> None:
        self.strength = strength
        self._groups = []
        for group in groups:
            scales = [_Scales(m, model) for m in group.members if m.role == "follower" and _scaled(m, model)]
            if scales:
                self._groups.append((group, scales))
            else:
                _leave_out("bn_l1", group, "no normalisation with trained scales follows it")
        _require("bn_l1", self._groups)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take the proximal step of every scale; see `ProximalPenalty`."""
        for _, scales in self._groups:
            for scale in scales:
                scale.shrink_(lr * self.strength)

    def value(self) -> float:
        """Return the strength times the sum of the absolute values."""
        return self.strength * sum(float(s.own().double().abs().sum()) for _, scales in self._groups for s in scales)

    def zeros(self) -> dict[str, tuple[int, int]]:
        """Count the vertices of each group that are zero, and all; see `ProximalPenalty`."""
        zero = self.zero_vertices()
        return {group.name: (zero[group.name], group.size) for group, _ in self._groups}

    def zero_vertices(self) -> dict[str, int]:
        """Count the vertices of each group all of whose scales are zero."""
        counts = {}
        for group, scales in self._groups:
            scaled, alive = np.zeros((2, group.size), dtype=bool)
            for scale in scales:
                scaled[scale.vertex] = True
                alive[scale.vertex[scale.own().cpu().numpy() != 0]] = True
            counts[group.name] = int((scaled & ~alive).sum())
        return counts


class WeightL1(ProximalPenalty):
    r"""Absolute values of single weights.

    Parameters
    ----------
    tensors : mapping of str to nn.Parameter
        The parameters whose weights may become zero, each under one name; see `srr_ext.sparsity.prunable`. The model
        that they belong to may be moved to another device at any time.
    strength : float
        Weight of the penalty, :math:`\lambda`.

    Raises
    ------
    ValueError
        If no parameter is left.

    Warns
    -----
    UserWarning
        If a parameter is not trained: it is left out.

    Notes
    -----
    The penalty is :math:`\lambda \sum |w|`; a step, with the learning rate :math:`\eta` of the optimiser's,

    .. math:: w \leftarrow \operatorname{sign}(w) \max(0, |w| - \eta \lambda)

    It is the closed form of

    .. math:: \arg\min_x \tfrac{1}{2} \lVert x - w \rVert_2^2 + \eta \lambda \lVert x \rVert_1

    and makes weights exactly zero; a sub-gradient in the loss would leave them near zero. With adamw the step is the
    same, that is, not scaled by its running mean of squared gradients (ours).

    A weight at zero comes back when the optimiser moves it by more than the threshold. In all, a weight loses
    :math:`\lambda \sum_t \eta_t` at most, so the strength is to be chosen by that and the size of usual weights.

    References
    ----------
    Tibshirani. Regression shrinkage and selection via the lasso. Journal of the Royal Statistical Society B 58, 1996.

    Parikh, Boyd. Proximal algorithms. Foundations and Trends in Optimization 1, 2014.
    """

    noun: ClassVar[str] = "weights"

    def __init__(self, tensors: Mapping[str, nn.Parameter], strength: float) -> None:
        self.strength = strength
        self._tensors: dict[str, nn.Parameter] = {}
        for name, parameter in tensors.items():
            if parameter.requires_grad:
                self._tensors[name] = parameter
            else:
                warnings.warn(f"penalty l1 leaves out {name}: it is not trained", UserWarning, stacklevel=3)
        if not self._tensors:
            raise ValueError("penalty l1 has no weights to make zero: none is prunable and trained; unfreeze some")

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take the proximal step of every weight; see `ProximalPenalty`."""
        threshold = lr * self.strength
        if threshold == 0:
            return  # which would make +0 of a -0
        for parameter in self._tensors.values():
            parameter.copy_(softshrink(parameter, threshold))

    def value(self) -> float:
        """Return the strength times the sum of the absolute values."""
        sums = to_host(*(parameter.detach().abs().sum(dtype=torch.float64) for parameter in self._tensors.values()))
        return self.strength * sum(float(total) for total in sums)

    def zeros(self) -> dict[str, tuple[int, int]]:
        """Count the weights of each parameter that are zero, and all; see `ProximalPenalty`."""
        counts = to_host(*((parameter.detach() == 0).sum() for parameter in self._tensors.values()))
        return {
            name: (int(count), parameter.numel())
            for (name, parameter), count in zip(self._tensors.items(), counts, strict=True)
        }


class _Scales:
    """The scales of a normalisation that belong to vertices of one group."""

    def __init__(self, member: Member, model: nn.Module) -> None:
        self._module = model.get_submodule(member.module)
        self._channels = torch.from_numpy(np.flatnonzero(member.vertex >= 0))
        self.vertex = member.vertex[member.vertex >= 0]

    def own(self) -> Tensor:
        """Copy of the scales, one per channel in `vertex`."""
        return self._weight()[self._channels]

    def shrink_(self, threshold: float) -> None:
        """Move the scales towards zero, in place."""
        weight = self._weight()
        weight[self._channels] = softshrink(weight[self._channels], threshold)

    def _weight(self) -> Tensor:
        weight = cast(Tensor, self._module.weight).detach()
        if self._channels.device != weight.device:
            self._channels = self._channels.to(weight.device)
        return weight


def _scaled(member: Member, model: nn.Module) -> bool:
    module = model.get_submodule(member.module)
    return isinstance(module, _NormBase) and module.weight is not None and module.weight.requires_grad


def _leave_out(penalty: str, group: ChannelGroup, why: str) -> None:
    warnings.warn(f"penalty {penalty} leaves out group {group.name!r}: {why}", UserWarning, stacklevel=4)


def _require(penalty: str, penalised: Sequence[object]) -> None:
    if not penalised:
        raise ValueError(
            f"penalty {penalty} has no channels to make zero: no group of them may go, or what would have to become "
            "zero is not there or not trained; take another penalty, or streams='prune'"
        )


def make_penalty(
    config: SparseConfig,
    groups: Sequence[ChannelGroup],
    model: nn.Module,
    tensors: Mapping[str, nn.Parameter] | None = None,
) -> ProximalPenalty:
    """Make the penalty that the settings name.

    Parameters
    ----------
    config : SparseConfig
        Its ``penalty`` and ``strength`` count.
    groups : sequence of ChannelGroup
        The groups whose vertices may become zero, see `srr_ext.graph.select_groups`; l1 does not look at them.
    model : nn.Module
        The model that is trained. Give the penalty's ``step`` to `train` as ``after_step``.
    tensors : mapping of str to nn.Parameter, optional
        The parameters of the model whose weights may become zero, see `srr_ext.sparsity.prunable`. l1 needs them.

    Returns
    -------
    GroupLasso, BatchNormL1 or WeightL1

    Raises
    ------
    ValueError
        If no penalty is named, there is nothing that it could make zero, or l1 has no ``tensors``.
    """
    if config.penalty == "none":
        raise ValueError("penalty is none: name group_lasso, bn_l1 or l1")
    if config.penalty == "group_lasso":
        return GroupLasso(groups, model, config.strength)
    if config.penalty == "bn_l1":
        return BatchNormL1(groups, model, config.strength)
    if tensors is None:
        raise ValueError("tensors: penalty l1 needs the weights it may make zero; pass srr_ext.sparsity.prunable(...)")
    return WeightL1(tensors, config.strength)
