"""Which weights stay: exact booleans beside the model, with no hook or parametrisation in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from srr_ext.files import DamagedFile, existing, parse_json, replace_file

_FORMAT = "srr_ext masks 1"


class Masks(Mapping[str, Tensor]):
    """A boolean tensor for each prunable parameter, by its name in the model; True = kept.

    Masks never change. They may be given to a training as they are: :meth:`apply` and :meth:`apply_to_gradients` are
    all it needs.

    Parameters
    ----------
    masks : mapping of str to Tensor of bool
        Copied to the CPU. Do not write into the tensors that ``masks[name]`` gives.

    Attributes
    ----------
    total : int
        Number of weights the masks speak of.
    kept : int
        Number of those that stay.
    counts : dict of str to int
        How many stay in each tensor.

    Raises
    ------
    TypeError
        If a name is no string or a mask no boolean tensor.
    ValueError
        If there is none.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(name, str):
                raise TypeError(f"masks: expected the name of a parameter, got {name!r}")
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                what = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"masks: expected a boolean tensor for {name!r}, got {what}")
        if not any(mask.numel() for mask in masks.values()):
            raise ValueError("masks: there is no weight to mask")
        self._masks = {
            name: mask.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, mask in masks.items()
        }
        self.counts = {name: int(mask.count_nonzero()) for name, mask in self._masks.items()}
        self.kept = sum(self.counts.values())
        self.total = sum(mask.numel() for mask in self._masks.values())
        self._gone: dict[tuple[str, torch.device, tuple[int, ...]], Tensor] = {}  # where masked, as tensors lie

    @classmethod
    def ones(cls, tensors: Mapping[str, Tensor]) -> Masks:
        """Masks that keep every weight of these tensors."""
        return cls({name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in tensors.items()})

    @classmethod
    def nonzero(cls, tensors: Mapping[str, Tensor]) -> Masks:
        """Masks that keep what is not exactly zero now, for networks that have been made sparse in another way."""
        return cls({name: tensor.detach() != 0 for name, tensor in tensors.items()})

    @property
    def density(self) -> float:
        """Share of the weights that stays."""
        return self.kept / self.total

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks(keep {self.kept:,} of {self.total:,} weights in {len(self)} tensors)"

    def same_as(self, other: Mapping[str, Tensor]) -> bool:
        """Whether other masks keep the same weights of the same tensors, in whatever order these come."""
        return self.keys() == other.keys() and all(torch.equal(mask, other[name]) for name, mask in self.items())

    def __eq__(self, other: object) -> bool:
        return self.same_as(other) if isinstance(other, Masks) else NotImplemented

    def check(self, model: nn.Module) -> None:
        """See that the masks fit a model.

        Raises
        ------
        ValueError
            Names the first tensor that the model does not have, or has in another shape.
        """
        for name in self:
            self._parameter(model, name)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set masked weights to exactly 0, in place, whatever they were: NaN and infinity too.

        Parameters
        ----------
        model : nn.Module
            On any device, in any memory format.

        Raises
        ------
        ValueError
            If the masks do not fit the model; see `check`.
        """
        for name in self:
            parameter = self._parameter(model, name)
            parameter.masked_fill_(self._masked(name, parameter), 0)

    @torch.no_grad()
    def apply_to_gradients(self, model: nn.Module) -> None:
        """Set the gradients of masked weights to exactly 0, in place, where there are gradients; see `apply`."""
        for name in self:
            gradient = self._parameter(model, name).grad
            if gradient is not None:
                gradient.masked_fill_(self._masked(name, gradient), 0)

    @torch.no_grad()
    def zeros_in(self, model: nn.Module) -> bool:
        """Whether every masked weight is exactly 0 in the model.

        Raises
        ------
        ValueError
            If the masks do not fit the model; see `check`.
        """
        parameters = {name: self._parameter(model, name) for name in self}
        return not any(((p != 0) & self._masked(name, p)).any() for name, p in parameters.items())

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the same masks give the same bytes.

        Parameters
        ----------
        path : str or Path
            Its name; a file that is there is replaced at once.
        """
        # The order of tensors decides between equal scores. It goes into the only entry of the metadata, because
        # safetensors sorts tensors and keeps entries in no order.
        metadata = {"format": f"{_FORMAT} {json.dumps(list(self))}"}
        replace_file(Path(path), lambda temporary: save_file(self._masks, temporary, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Masks:
        """Read what :meth:`save` has written.

        Raises
        ------
        ValueError
            The file is missing, damaged, or something else.
        """
        path = existing(Path(path))
        try:
            with safe_open(path, framework="pt") as file:
                about = (file.metadata() or {}).get("format", "")
                if not about.startswith(f"{_FORMAT} "):
                    raise DamagedFile(f"{path} is no file of masks; srr_ext.sparsity.Masks.save writes them")
                order = parse_json(about.removeprefix(_FORMAT))
                masks = {name: file.get_tensor(name) for name in order}
                complete = sorted(order) == sorted(file.keys())
            if not complete or not all(_clean(mask) for mask in masks.values()):
                raise TypeError("it holds other tensors than the masks it names")
            return cls(masks)
        except DamagedFile:
            raise
        except (SafetensorError, TypeError, ValueError) as error:
            raise DamagedFile(f"{path} is damaged ({error})") from error

    def _parameter(self, model: nn.Module, name: str) -> Tensor:
        try:
            parameter = model.get_parameter(name)
        except AttributeError:
            raise ValueError(f"masks: the model has no parameter {name!r}; were they made for another one?") from None
        if parameter.shape != self._masks[name].shape:
            raise ValueError(
                f"masks: {name!r} is masked as {list(self._masks[name].shape)}, but the model has "
                f"{list(parameter.shape)}; were they made for another one?"
            )
        return parameter

    def _masked(self, name: str, like: Tensor) -> Tensor:
        """Where a tensor is masked, on its device and in its memory format; made once for each."""
        key = (name, like.device, like.stride())
        if key not in self._gone:
            self._gone[key] = torch.empty_like(like, dtype=torch.bool).copy_(self._masks[name]).logical_not_()
        return self._gone[key]


def _clean(mask: Tensor) -> bool:
    """Whether a boolean tensor of a file holds nothing but 0 and 1."""
    return mask.dtype == torch.bool and (mask.numel() == 0 or int(mask.view(torch.uint8).max()) <= 1)
