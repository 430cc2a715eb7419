"""A stand-in for an accelerator: tensors that claim to be elsewhere, and a watch over what the host reads of them.

Their values lie on the CPU, where everything is computed; their device is "meta", which needs no hardware. Whatever
makes the host wait for a device (reading a number, copying to the CPU, shapes that depend on values) is counted if
`srr_ext.transfers` does it, and an error otherwise. So is mixing them with tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from srr_ext import transfers

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten
READS = {  # what makes the host wait: a number, a truth, a shape that depends on values
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.item.default, aten.equal.default,
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
}  # fmt: skip
UPLOADS = {aten._to_copy.default, aten.copy_.default}


class Elsewhere(Tensor):
    """A tensor on the stand-in device."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Elsewhere:
        self = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        self.value = value
        return self

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{op} on the device outside of Watch")


class Watch(TorchDispatchMode):
    """Computes on the device, and counts what the host reads.

    Attributes
    ----------
    waits : int
        How often the host waited for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.reading = False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        inside = [isinstance(x, Elsewhere) for x in tensors]
        target = kwargs.get("device", CPU if not tensors else None)
        new = not tensors and torch.device(target or CPU) == DEVICE
        if not any(inside) and not new and (target is None or torch.device(target) != DEVICE):
            return op(*args, **kwargs)
        to_cpu = op is aten._to_copy.default and target is not None and torch.device(target) == CPU
        if op in READS or to_cpu:
            assert self.reading and to_cpu, f"{op} makes the host wait for the device, past srr_ext.transfers"
        if any(isinstance(x, Tensor) and x.dtype == torch.bool for x in _indices(op, args)):
            raise AssertionError("an index of bool has as many elements as its values say: the host has to wait")
        if op not in UPLOADS:
            lonely = [x for x, there in zip(tensors, inside, strict=True) if not there and x.dim() > 0]
            assert not lonely or new, f"{op} mixes tensors of the CPU and of the device"
        if "device" in kwargs:
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        result = op(*_unwrapped(args), **_unwrapped(kwargs))
        return result if to_cpu else tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, result)


def _indices(op: Any, args: Any) -> list[Any]:
    return list(args[1]) if op.name().startswith(("aten::index.", "aten::index_put")) else []


def _unwrapped(tree: Any) -> Any:
    return tree_map(lambda x: x.value if isinstance(x, Elsewhere) else x, tree)


def moved(model: nn.Module) -> nn.Module:
    """Take a model's parameters to the device, in place."""
    with Watch():
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(Elsewhere(parameter.detach()), requires_grad=False))
    return model


@contextmanager
def watched() -> Iterator[Watch]:
    """Compute on the device, and count in ``waits`` how often `srr_ext.transfers` fetches something from it."""
    watch, fetch = Watch(), transfers._fetch

    def counted(tensors: list[Tensor]) -> list[Tensor]:
        if tensors[0].device != DEVICE:
            return fetch(tensors)
        watch.waits += 1
        watch.reading = True
        try:
            return fetch(tensors)
        finally:
            watch.reading = False

    with pytest.MonkeyPatch.context() as patch, watch:
        patch.setattr(transfers, "_fetch", counted)
        yield watch
