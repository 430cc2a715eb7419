"""Run a masked network in the sparse formats that torch has, and measure whether that is any faster.

A masked network is an ordinary one whose weights have zeros, and needs no format of its own. These copies are for
running: they compute the same from weights without the zeros, and are made anew from the plain network when needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from srr_ext.copying import copy_model
from srr_ext.latency import measure_latency

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN = (nn.Linear, *_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ROWS = 32  # inputs of one product: oneMKL's takes least time for each at 32 columns, with its operand still in a cache


class CsrWeight(nn.Module):
    """A matrix in compressed rows, with an optional bias: what `CsrLinear` and `CsrConv` share.

    It is kept as three dense tensors, because torch neither copies nor casts modules that hold a sparse one. Indices
    have 32 bits, as oneMKL reads them; torch would convert wider ones at every call.

    Parameters
    ----------
    weight : Tensor
        Sparse CSR matrix [n_filters, fan_in].
    bias : Tensor, optional
        One number for each filter.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        self.register_buffer("crow_indices", weight.crow_indices().int())
        self.register_buffer("col_indices", weight.col_indices().int())
        self.register_buffer("values", weight.values().detach())
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> Tensor:
        """The sparse CSR matrix, over the same memory."""
        parts = (self.crow_indices, self.col_indices, self.values)
        return torch.sparse_csr_tensor(*parts, self.shape, check_invariants=False)

    def extra_repr(self) -> str:
        """Shape and density, for printing."""
        n_filters, fan_in = self.shape
        return f"{n_filters} x {fan_in}, {self.values.numel() / max(1, n_filters * fan_in):.2%} nonzero"


class CsrLinear(CsrWeight):
    """A linear layer from its nonzero weights; the same outputs as the `nn.Linear` it is made from."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(_csr(layer.weight), layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, [..., n_filters], for an input [..., fan_in]."""
        weight = self.weight
        # W x^T, a few rows at a time: from x W^T, as F.linear has it, torch takes several times as long. One row is a
        # vector, for which oneMKL has a product of its own.
        rows = input.reshape(-1, self.shape[1])
        products = [(weight @ some[0])[None] if len(some) == 1 else (weight @ some.T).T for some in rows.split(_ROWS)]
        out = torch.cat(products)
        out = out if self.bias is None else out + self.bias
        return out.view(*input.shape[:-1], self.shape[0])


class CsrConv(CsrWeight):
    """A convolution from its nonzero weights; the same outputs as the `nn.Conv1d`, 2d or 3d it is made from.

    The matrix is applied to the patches of one image after another (im2col). The filters of a grouped convolution read
    the columns of their own channels, so the zeros between the groups are left out like all others.
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__(_csr(layer.weight.flatten(1), layer.groups), layer.bias)
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.pads = _pads(layer)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, [N, n_filters, size...], for an input [N, channels, size...]; N may be missing."""
        batch = input if input.ndim == len(self.kernel_size) + 2 else input[None]
        padded = F.pad(batch, self.pads, self.padding_mode)
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        sizes = [(n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, self.stride, strict=True)]
        weight = self.weight
        out = padded.new_empty(len(padded), self.shape[0], int(torch.Size(sizes).numel()))  # [N, n_filters, positions]
        for image, result in zip(padded, out, strict=True):
            result.copy_(weight @ self._patches(image, sizes))
        out = out if self.bias is None else out + self.bias[:, None]
        out = out.view(len(batch), self.shape[0], *sizes)
        return out if batch is input else out[0]

    def _patches(self, image: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return what the filters meet at each position, [channels * kernel, positions], of one [channels, size...]."""
        channels, *steps = image.stride()
        taps = [step * d for step, d in zip(steps, self.dilation, strict=True)]
        hops = [step * s for step, s in zip(steps, self.stride, strict=True)]
        patches = image.as_strided((len(image), *self.kernel_size, *sizes), (channels, *taps, *hops))
        return patches.reshape(self.shape[1], -1)


def to_csr(model: nn.Module, *, below: float = 1.0) -> tuple[nn.Module, tuple[str, ...], dict[str, str]]:
    """Copy a model so that its layers with zeros compute with sparse CSR weights.

    Parameters
    ----------
    model : nn.Module
        The masked model, plain weights with zeros; it is left as it was.
    below : float, default 1.0
        Only layers of which a smaller share is nonzero are converted: with few zeros, dense products are faster.

    Returns
    -------
    model : nn.Module
        The copy, for inference: on the CPU in float32 and float64, on CUDA in what cuSPARSE multiplies. Its sparse
        weights do not learn. Outputs are the same up to rounding.
    converted : tuple of str
        Names of the layers that compute from sparse weights.
    left : dict of str to str
        Why each other linear layer or convolution stayed as it was.
    """

    def convert(layer: nn.Module) -> nn.Module | str:
        if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
            return f"a {type(layer).__name__} has no form with CSR weights"
        share = int(layer.weight.count_nonzero()) / max(1, layer.weight.numel())
        if share == 1:
            return "it has no zeros"
        if share >= below:
            return f"{share:.3g} of its weights are nonzero, which is not below {below}"
        sparse = CsrLinear(layer) if isinstance(layer, nn.Linear) else CsrConv(layer)
        tried = _try("CSR matrices", lambda: sparse.weight @ layer.weight.new_zeros(sparse.shape[1], 1))
        return tried if isinstance(tried, str) else sparse

    return _converted(model, convert)


def to_semi_structured(model: nn.Module) -> tuple[nn.Module, tuple[str, ...], dict[str, str]]:
    """Copy a model so that its 2:4 sparse linear layers compute with torch's semi-structured weights.

    Parameters
    ----------
    model : nn.Module
        The masked model, on a CUDA device and in half precision; it is left as it was.

    Returns
    -------
    model : nn.Module
        The copy, for inference.
    converted : tuple of str
        Names of the linear layers whose weights are semi-structured: those with at most two nonzeros in every four
        consecutive inputs, of a shape and type that torch takes.
    left : dict of str to str
        Why each other linear layer or convolution stayed as it was; on a CPU that is every one.
    """

    def convert(layer: nn.Module) -> nn.Module | str:
        if not isinstance(layer, nn.Linear):
            return f"a {type(layer).__name__} has no form with semi-structured weights"
        if not is_two_of_four(layer.weight):
            return "its weights are not 2:4 sparse along the inputs"
        weight, bias = layer.weight.detach().contiguous(), layer.bias

        def compress() -> Tensor:
            made = torch.sparse.to_sparse_semi_structured(weight)
            F.linear(weight.new_zeros(1, weight.shape[1]), made, bias)
            return made

        made = _try("semi-structured matrices", compress)
        if isinstance(made, str):
            return made
        layer.weight = nn.Parameter(made, requires_grad=False)
        return layer

    return _converted(model, convert)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether of every four consecutive inputs of a matrix [n_filters, fan_in] at most two have a nonzero weight."""
    if weight.ndim != 2 or weight.shape[1] % 4:
        return False
    return not bool((weight.detach().unflatten(1, (-1, 4)).count_nonzero(-1) > 2).any())


class FormatLatency(TypedDict):
    """Milliseconds of a batch in each form, side by side; None where ``why_not`` says why there is none."""

    dense: float
    pruned: float
    csr: float | None
    dense_half: float | None
    semi_structured: float | None
    layers: dict[str, int]
    why_not: dict[str, str]


def format_latency(dense: nn.Module, masked: nn.Module, images: Tensor, *, seconds: float = 2.0) -> FormatLatency:
    """Time a batch through a dense network, its masked version, and that in every sparse format that runs here.

    Parameters
    ----------
    dense, masked : nn.Module
        The network before and after, on the device of ``images``; both are left as they were.
    images : Tensor
        One batch.
    seconds : float, default 2.0
        Time to spend in all, see `srr_ext.latency.measure_latency`.

    Returns
    -------
    dict
        Milliseconds of the fastest round: ``dense``; ``pruned``, the masked network with its zeros in place; ``csr``,
        see `to_csr`; and on a GPU in half precision, which this format asks for, ``semi_structured``, see
        `to_semi_structured`, with ``dense_half``, the dense network in the same precision, to compare it with.
        ``layers``: how many layers were converted for each format. ``why_not``: for each time that is None, the reason.
    """
    csr, csr_layers, csr_left = to_csr(masked)
    half, half_layers, half_left = to_semi_structured(copy_model(masked).half() if images.is_cuda else masked)
    forms = {"dense": dense, "pruned": masked}
    why_not = {}
    if csr_layers:
        forms["csr"] = csr
    else:
        why_not["csr"] = _summary(csr_left)
    if half_layers:
        forms |= {"dense_half": _InHalf(copy_model(dense).half()), "semi_structured": _InHalf(half)}
    else:
        why_not["semi_structured"] = _summary(half_left)
        why_not["dense_half"] = "there is nothing to compare with it"
    taken = dict(zip(forms, measure_latency(list(forms.values()), images, seconds=seconds), strict=True))
    return {
        "dense": taken["dense"],
        "pruned": taken["pruned"],
        "csr": taken.get("csr"),
        "dense_half": taken.get("dense_half"),
        "semi_structured": taken.get("semi_structured"),
        "layers": {"csr": len(csr_layers), "semi_structured": len(half_layers)},
        "why_not": why_not,
    }


class _InHalf(nn.Module):
    """Give a network in half precision the images of one in single precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.half())


def _converted(
    model: nn.Module, convert: Callable[[nn.Module], nn.Module | str]
) -> tuple[nn.Module, tuple[str, ...], dict[str, str]]:
    """Copy a model and replace every linear layer and convolution; ``convert`` may say why one stays."""
    twin = copy_model(model)
    made: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}
    names: list[str] = []
    # A layer that several modules own is replaced in each of them, and named once.
    for path, layer in list(twin.named_modules(remove_duplicate=False)):
        if not isinstance(layer, (nn.Linear, _ConvNd)):
            continue
        if layer not in made:
            parent = twin.get_submodule(path.rpartition(".")[0]) if path else None
            result = _not_plain(layer, parent) or convert(layer)
            if isinstance(result, str):
                left[path], made[layer] = result, layer
            else:
                names.append(path)
                made[layer] = result.train(layer.training)
        if path:
            twin.set_submodule(path, made[layer])
        else:
            twin = made[layer]
    return twin, tuple(names), left


def _not_plain(layer: nn.Module, parent: nn.Module | None) -> str:
    """Say what a layer does besides applying its weight, or who else reads that; nothing if neither."""
    if type(layer) not in _PLAIN or "forward" in vars(layer):
        return f"a {type(layer).__name__} computes in a way of its own"
    if isinstance(parent, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        return f"the {type(parent).__name__} around it reads its weight itself"
    if "weight" not in layer._parameters:
        return "its weight is computed anew in every pass"
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        return "it has hooks, which would be lost"
    return ""


def _try(what: str, function: Callable[[], Tensor]) -> Tensor | str:
    """Do what torch may not have for a device, type or shape, and pass on what it says of that."""
    try:
        with torch.no_grad():
            return function()
    except RuntimeError as error:
        return f"torch runs no {what} like it: {str(error).splitlines()[0]}"


def _csr(matrix: Tensor, groups: int = 1) -> Tensor:
    """Return a matrix [n_filters, fan_in] in CSR form, its rows in ``groups`` blocks: [n_filters, groups * fan_in]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        sparse = matrix.detach().to_sparse_csr()
    n_filters, fan_in = matrix.shape
    per_row = sparse.crow_indices().diff()
    group = torch.arange(n_filters, device=matrix.device) // (n_filters // groups)
    columns = sparse.col_indices() + (group * fan_in).repeat_interleave(per_row)
    parts = (sparse.crow_indices(), columns, sparse.values())
    return torch.sparse_csr_tensor(*parts, (n_filters, groups * fan_in), check_invariants=False)


def _pads(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Return the padding of a convolution as `F.pad` wants it: before and after, the last dimension first."""
    sides: list[tuple[int, int]] = []
    for d, k, padding in zip(layer.dilation, layer.kernel_size, _per_dimension(layer), strict=True):
        total = d * (k - 1) if padding is None else 2 * padding
        sides.append((total // 2, total - total // 2))  # "same" puts the odd one behind
    return [pad for side in reversed(sides) for pad in side]


def _per_dimension(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Sequence[int | None]:
    """Return the padding on each side of each dimension; None for as much as leaves the size the same."""
    if isinstance(layer.padding, str):
        return [None if layer.padding == "same" else 0] * len(layer.kernel_size)
    return layer.padding


def _summary(left: dict[str, str]) -> str:
    """Say in one line why no layer was converted."""
    if not left:
        return "the network has no linear layer or convolution"
    name, reason = next(iter(left.items()))
    return f"{name or 'the network'}: {reason}" + (f" (and {len(left) - 1} more layers)" if len(left) > 1 else "")
