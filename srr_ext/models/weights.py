"""Read foreign checkpoints: without running code from them, and naming what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

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
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"weights: {path} cannot be read as a checkpoint ({reason})") from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"weights: {path} holds no table of tensors; save model.state_dict() or use .safetensors")
    state = {str(name): value for name, value in found.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


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
    state = read_checkpoint(path)
    check_fit(model, state, f"weights: {path}")
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"weights: {path}: {name} has values that are not finite; the training diverged")
    model.load_state_dict(state, strict=False)


def check_fit(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes with those of the network.

    Parameters
    ----------
    model : nn.Module
        The network to load into.
    state : mapping of str to Tensor
        The tensors to load.
    source : str
        Start of the error message: where the tensors come from.

    Raises
    ------
    ValueError
        Names the first tensor that is missing, too much or of another shape.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        # Older checkpoints lack this counter, which only matters when momentum is None.
        if name not in state and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{source} lacks {name}; it belongs to another architecture")
        if name in state and state[name].shape != tensor.shape:
            shapes = f"{list(state[name].shape)}, but the model's has {list(tensor.shape)}"
            raise ValueError(f"{source}: {name} has shape {shapes}; it belongs to another architecture")
    for name in state:
        if name not in expected:
            raise ValueError(f"{source} has {name}, which the model lacks; it belongs to another architecture")
