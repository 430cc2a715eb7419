"""All that a training needs to go on from the end of an epoch as if it had never been stopped, as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from srr_ext.processes import processes
from srr_ext.training.sharding import like, whole


class Keeper(Protocol):
    """Where a training leaves what it needs to go on, and finds it again."""

    def load(self) -> Mapping[str, Tensor] | None:
        """Return what was saved last; None for a training that begins."""
        ...

    def save(self, tensors: Mapping[str, Tensor], /) -> None:
        """Save the state after an epoch: all of it, or, if this is stopped on the way, the one before stays."""
        ...


class Stateful(Protocol):
    """What changes beside the network while it is trained: masks that grow, say."""

    def state(self) -> Mapping[str, Tensor]:
        """Return it as tensors."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], /) -> None:
        """Take it back."""
        ...


def state_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
    scaler: torch.amp.GradScaler | None,
    others: Mapping[str, Stateful],
    done: int,
) -> dict[str, Tensor]:
    """Return the state of a training as tensors, on whatever device they are.

    Parameters
    ----------
    model : nn.Module
        The network that is trained.
    optimizer : torch.optim.Optimizer
        Its optimiser; its state must be tensors and numbers.
    averaged : AveragedModel, optional
        The moving average of the weights.
    scaler : GradScaler, optional
        Of the loss in fp16.
    others : mapping of str to Stateful
        What else changes.
    done : int
        Steps of the recipe that are done.

    Returns
    -------
    dict of str to Tensor
        Also the random state of the CPU and of every GPU; of several processes those of each, one after the other, with
        that of the GPU it uses. All of them have to call this.
    """
    tensors = {"done": torch.tensor(done)}
    tensors |= {f"random:{name}": processes().gather(state) for name, state in _random_state().items()}
    tensors |= _named("model", {name: whole(value) for name, value in model.state_dict().items()})
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer:{index}:{name}": torch.as_tensor(whole(value)) for name, value in entry.items()}
    if averaged is not None:
        tensors |= _named("average", averaged.state_dict())
    if scaler is not None:
        tensors |= _named("scaler", {name: torch.tensor(value) for name, value in scaler.state_dict().items()})
    for key, other in others.items():
        tensors |= _named(key, other.state())
    return tensors


@torch.no_grad()
def restore(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
    scaler: torch.amp.GradScaler | None,
    others: Mapping[str, Stateful],
) -> int:
    """Take back what `state_of` returned; return the steps that are done.

    Raises
    ------
    ValueError
        The state is of another training.
    """
    try:
        saved = _part(tensors, "model")
        mine = {name: value for name, value in model.state_dict().items() if name in saved}
        model.load_state_dict({name: like(value, mine.get(name, value)) for name, value in saved.items()})
        if averaged is not None:
            averaged.load_state_dict(_part(tensors, "average"))
        if scaler is not None:
            scaler.load_state_dict({name: value.item() for name, value in _part(tensors, "scaler").items()})
        for key, other in others.items():
            other.restore(_part(tensors, key))
        _restore_optimizer(optimizer, _part(tensors, "optimizer"))
        _set_random_state(_part(tensors, "random"))
        return int(tensors["done"])
    except (KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"the saved state is of another training ({str(error).splitlines()[0]})") from error


def _random_state() -> dict[str, Tensor]:
    """Return the states of the generators that this process draws from."""
    states = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_initialized():
        alone = processes().count == 1
        used = torch.cuda.get_rng_state_all() if alone else [torch.cuda.get_rng_state()]
        states |= {str(index): state for index, state in enumerate(used)}
    return states


def _set_random_state(tensors: dict[str, Tensor]) -> None:
    here = processes()
    if any(len(every) != here.count for every in tensors.values()):
        raise ValueError(f"the saved state is that of another number of processes than {here.count}; start as many")
    # Copied, as torch reads a generator's state from the begin of its storage, and may crash on that of another.
    mine = {name: every[here.rank].clone() for name, every in tensors.items()}
    torch.random.set_rng_state(mine.pop("cpu"))
    gpus = [mine[str(index)] for index in range(len(mine))]
    if here.count == 1 and gpus:
        torch.cuda.set_rng_state_all(gpus)
    elif gpus:
        torch.cuda.set_rng_state(gpus[0])


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Any]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition(":")
        parameter = parameters[int(index)]
        if tensor.numel() > 1 and tensor.shape != parameter.shape:
            raise RuntimeError(f"{key} of parameter {index} has shape {list(tensor.shape)}")
        if tensor.shape == parameter.shape:  # in the memory format in which the optimiser would make it
            tensor = torch.empty_like(parameter).copy_(like(tensor, parameter))
        entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": entries})


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}:{name}": tensor for name, tensor in tensors.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}:"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
