"""Read foreign checkpoints: without running code from them, and naming what does not fit."""

from __future__ import annotations

import mmap
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from srr_ext.models.names import reason

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep the tensors


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file.

    Parameters
    ----------
    path : str or Path
        ``.safetensors``, or anything ``torch.load(weights_only=True)`` reads: a state dict, or a dict that holds one
        under ``state_dict``, ``model_state_dict`` or ``model``.

    Returns
    -------
    dict of str to Tensor
        On the CPU. A ``module.`` prefix on every name, which data parallel training leaves behind, is removed.

    Raises
    ------
    ValueError
        No such file, or one that is damaged or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            found: object = load_file(path)
        else:
            _refuse_amplifiers(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything that a program can
        raise ValueError(f"weights: {path} cannot be read as a checkpoint ({reason(error)})") from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"weights: {path} holds no table of tensors; save model.state_dict() or use .safetensors")
    for name, value in found.items():
        if (
            value.layout != torch.strided
            or value.is_meta
            or value.is_nested
            or value.is_quantized
            or value.is_complex()
        ):
            raise ValueError(f"weights: {path}: {name} is no plain tensor of numbers; save a state_dict of such")
    state = {str(name): value for name, value in found.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _refuse_amplifiers(path: Path) -> None:
    """Refuse what lets a small file fill the memory, which ``weights_only`` does not.

    That is compression, which torch.save never uses, and the byte arrays of any length that its unpickler makes.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save does not do; unpack it")
    if path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:
                raise ValueError("it asks for byte arrays, which no table of tensors holds")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy a checkpoint into a network of the same architecture.

    Parameters
    ----------
    model : nn.Module
        Changed in place, and only when everything fits.
    path : str or Path
        See :func:`read_checkpoint`.

    Raises
    ------
    ValueError
        The checkpoint cannot be read, belongs to another architecture (the first tensor that disagrees is named), or
        holds values that are not finite.
    """
    load_state(model, read_checkpoint(path), f"weights: {path}")


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, hint: str = "") -> None:
    """Copy tensors into a network, in place, and only when everything fits.

    Parameters
    ----------
    model : nn.Module
        The network.
    state : mapping of str to Tensor
        What :func:`read_checkpoint` returns.
    source : str
        Start of error messages: where the tensors come from.
    hint : str, default ""
        What explains a mismatch, for the error message.

    Raises
    ------
    ValueError
        See :func:`load_weights`.
    """
    check_fit(model, state, source, hint)
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{source}: {name} has values that are not finite; the training diverged")
    ordered = OrderedDict(state)
    # Names and shapes are today's, so the versions are too; without any, MNASNet refuses and others rename.
    ordered._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(ordered, strict=False)


def head_of(model: nn.Module) -> str | None:
    """Return the name of the last linear layer or convolution: the classifier of every network made by name."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return names[-1] if names else None


def check_fit(model: nn.Module, state: Mapping[str, Tensor], source: str, hint: str = "") -> None:
    """Compare names and shapes with those of the network.

    Parameters
    ----------
    model : nn.Module
        The network to load into.
    state : mapping of str to Tensor
        The tensors to load.
    source : str
        Start of the error message: where the tensors come from.
    hint : str, default ""
        What explains a mismatch, for the error message.

    Raises
    ------
    ValueError
        Names the first tensor that is missing, too much or of another shape; where only the classifier differs, the
        numbers of classes.
    """
    expected = model.state_dict()
    foreign = f"it belongs to another architecture{f' ({hint})' if hint else ''}"
    head = f"{head_of(model)}."
    other_head: str | None = None
    for name, tensor in expected.items():
        # Older checkpoints lack this counter, which only matters when momentum is None.
        if name not in state and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{source} lacks {name}; {foreign}")
        if name in state and state[name].shape != tensor.shape:
            if name.startswith(head) and state[name].ndim and state[name].shape[1:] == tensor.shape[1:]:
                other_head = other_head or name
                continue
            shapes = f"{list(state[name].shape)}, but the model's has {list(tensor.shape)}"
            raise ValueError(f"{source}: {name} has shape {shapes}; {foreign}")
    for name in state:
        if name not in expected:
            raise ValueError(f"{source} has {name}, which the model lacks; {foreign}")
    if other_head is not None:
        given, wanted = len(state[other_head]), len(expected[other_head])
        raise ValueError(
            f"{source}: {other_head} has {given} classes, the data {wanted}; no head is dropped silently: take a "
            f"checkpoint with {wanted} classes, or make the network with num_classes={given}, replace its head and "
            "save that"
        )
