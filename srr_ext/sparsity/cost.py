"""What masks leave: multiply-accumulates and parameters, in exact integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from srr_ext.copying import copy_model
from srr_ext.inputs import detached, run
from srr_ext.measuring import attention_in_steps, measuring
from srr_ext.sparsity.masks import Masks

# Products in which every entry of an operand is used equally often; what else torch counts, attention, reads no weight.
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution}


def sparse_cost(model: nn.Module, masks: Masks, example_inputs: Any) -> dict[str, dict[str, int]]:
    r"""Count the multiply-accumulates and parameters of a model, dense and with the weights that masks keep.

    Parameters
    ----------
    model : nn.Module
        The model; its weights play no part. It is copied and left as it was.
    masks : Masks
        Kept weights of some of its parameters; all others count in full.
    example_inputs : Tensor, tuple or dict
        Input of one forward pass; MACs are those of this input, so give one image.

    Returns
    -------
    dict
        ``{"macs": {"dense", "pruned"}, "params": {"dense", "pruned"}}``, integers. Dense over pruned parameters is the
        compression ratio, dense over pruned MACs the theoretical speed-up.

    Raises
    ------
    ValueError
        If the masks do not fit the model; the first tensor that disagrees is named.

    Notes
    -----
    Every product that torch counts with a weight :math:`w` of mask :math:`m` as operand (matrix products, convolutions,
    transposed ones) uses each entry equally often, at :math:`p` positions: padding counts, as in torch's own counter.

    .. math:: MACs = MACs_{dense} - \sum_{products} p \, |\{i : m_i = 0\}|

    A layer called twice counts twice, a shared weight wherever it is used, and a part of a weight with its part of the
    mask. Products without a weight, such as attention's, stay in both numbers, and so do those with something computed
    from a weight, such as a standardised one. A parameter that several layers share is one parameter.

    References
    ----------
    D. Blalock et al., What is the state of neural network pruning?, MLSys 2020.
    """
    masks.check(model)
    twin = copy_model(model).eval()
    kept = _kept_entries(twin, masks)
    params = sum(p.numel() for p in twin.parameters())
    counter = FlopCounterMode(display=False)
    with measuring(0), torch.no_grad(), attention_in_steps(), counter, _Savings(counter, kept) as savings:
        run(twin, detached(example_inputs))
    macs = counter.get_total_flops() // 2
    gone = sum(int((~entries).sum()) for entries in kept.values())
    return {
        "macs": {"dense": macs, "pruned": macs - savings.macs},
        "params": {"dense": params, "pruned": params - gone},
    }


def _kept_entries(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Which entries of each masked storage stay, in the order of memory, by the storage's address.

    Shared parameters, views and memory formats then need no care: a tensor's mask lies where the tensor lies.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept: dict[int, Tensor] = {}
    for name, mask in masks.items():
        weight = parameters[name]
        storage = weight.untyped_storage()
        entries = torch.ones(storage.nbytes() // weight.element_size(), dtype=torch.bool)
        entries = kept.setdefault(storage.data_ptr(), entries)
        entries.as_strided(weight.shape, weight.stride(), weight.storage_offset()).logical_and_(mask.cpu())
    return kept


class _Savings(TorchDispatchMode):
    """Adds up the multiply-accumulates of masked weights, inside a counter of all."""

    def __init__(self, counter: FlopCounterMode, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.macs = 0
        self._counter, self._kept = counter, kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        macs = (self._counter.get_total_flops() - before) // 2
        if macs and func.overloadpacket in _PRODUCTS:
            factors = args[1:3] if func.overloadpacket in (_aten.addmm, _aten.baddbmm) else args[:2]
            # Of two masked weights multiplied with each other, the one that saves more.
            self.macs += max(self._gone(factor) * macs // factor.numel() for factor in factors)
        return out

    def _gone(self, operand: Tensor) -> int:
        """Masked entries of an operand; an entry that it repeats counts each time."""
        entries = self._kept.get(operand.untyped_storage().data_ptr())
        if entries is None:
            return 0
        return int((~entries.as_strided(operand.shape, operand.stride(), operand.storage_offset())).sum())
