"""Filter graphs of all layers in one buffer: bit-packed adjacency rows, shared by the native ops and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from .transfers import to_device, to_host

WORD_BITS = 64
ZERO, NOT_FINITE = 1, 2  # FilterKind in csrc/core/threshold.h
UNPACKED_AT_ONCE = 1 << 28  # vertices squared, a byte each, where a large graph is taken apart


def words_per_row(n_filters: int) -> int:
    """Return the number of 64-bit words that hold one bit per filter."""
    return -(-n_filters // WORD_BITS)


@dataclass(frozen=True, eq=False)
class FilterGraphs:
    """One undirected graph per layer, its vertices the layer's filters.

    Attributes
    ----------
    words : Tensor of int64, shape [offsets[-1]]
        Adjacency rows of all layers, one layer after the other. Layer i is ``[n, ceil(n / 64)]`` words from
        ``offsets[i]`` on; bit ``u % 64`` of word ``u // 64`` of row ``v`` is set iff filters u and v are joined. Rows
        are symmetric, without self loops, and zero past the last filter.
    n_filters : tuple of int
        Vertices of each layer.
    kinds : Tensor of uint8, shape [sum(n_filters)], optional
        What each filter is, on the device of ``words``: 0 for one with a direction, 1 for one whose weights are all
        zero, 2 for one with a weight that is not finite; the latter two have no edge. None for graphs that were not
        made from weights.

    Raises
    ------
    ValueError
        If the sizes disagree.
    """

    words: Tensor
    n_filters: tuple[int, ...]
    kinds: Tensor | None = None

    def __post_init__(self) -> None:
        if self.words.dtype != torch.int64 or self.words.dim() != 1:
            raise ValueError(f"words must be a flat int64 tensor, got {self.words.dtype} {list(self.words.shape)}")
        if len(self.words) != self.offsets[-1]:
            raise ValueError(
                f"words must have {self.offsets[-1]} elements for layers of {self.n_filters} filters, "
                f"got {len(self.words)}"
            )
        if self.kinds is not None and (self.kinds.dtype, *self.kinds.shape) != (torch.uint8, sum(self.n_filters)):
            raise ValueError(
                f"kinds must be a uint8 tensor of {sum(self.n_filters)} elements, one per filter, got "
                f"{self.kinds.dtype} {list(self.kinds.shape)}"
            )

    @property
    def zero_filters(self) -> tuple[tuple[int, ...], ...]:
        """Indices of each layer's filters whose weights are all zero: they have no direction, so no edge.

        Empty for graphs that were not made from weights. Read from ``kinds``, which takes a transfer to the host.
        """
        if self.kinds is None:
            return tuple(() for _ in self.n_filters)
        (kinds,) = to_host(self.kinds)
        return tuple(tuple((kind == ZERO).nonzero().flatten().tolist()) for kind in kinds.split(self.n_filters))

    @property
    def offsets(self) -> tuple[int, ...]:
        """First word of each layer, and the total: ``len(self) + 1`` entries."""
        return (0, *accumulate(n * words_per_row(n) for n in self.n_filters))

    def __len__(self) -> int:
        return len(self.n_filters)

    def rows(self) -> list[Tensor]:
        """Adjacency rows of every layer, int64 [n, ceil(n / 64)] each: views of ``words``."""
        shapes = [(n, words_per_row(n)) for n in self.n_filters]
        parts = self.words.split([n * width for n, width in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @classmethod
    def from_dense(cls, matrices: Sequence[Tensor]) -> FilterGraphs:
        """Pack adjacency matrices.

        Parameters
        ----------
        matrices : sequence of Tensor of bool, shape [n, n] each
            Symmetric; the diagonal is ignored, since a self loop says nothing.

        Returns
        -------
        FilterGraphs
            One graph per matrix, on their device.

        Raises
        ------
        TypeError
            If an entry is not a tensor of bool.
        ValueError
            If a matrix is not square or not symmetric, or devices differ; the message names the index.

        Examples
        --------
        >>> path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
        >>> FilterGraphs.from_dense([path]).n_filters
        (3,)
        """
        for i, matrix in enumerate(matrices):
            if not isinstance(matrix, Tensor) or matrix.dtype != torch.bool:
                got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
                raise TypeError(f"matrices[{i}] must be a tensor of bool, got {got}")
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"matrices[{i}] must have shape [n, n], got {list(matrix.shape)}")
            if matrix.device != matrices[0].device:
                raise ValueError(f"matrices[{i}] must be on {matrices[0].device} like matrices[0], got {matrix.device}")
            if not torch.equal(matrix, matrix.T):
                raise ValueError(f"matrices[{i}] must be symmetric: a filter graph is undirected")
        packed = [pack_rows(matrix.detach().clone().fill_diagonal_(False)).flatten() for matrix in matrices]
        words = torch.cat(packed) if packed else torch.empty(0, dtype=torch.int64)
        return cls(words, tuple(len(matrix) for matrix in matrices))

    def to_dense(self, layer: int) -> Tensor:
        """Adjacency matrix of one layer.

        Parameters
        ----------
        layer : int
            Index of the layer; negative ones count from the end.

        Returns
        -------
        Tensor of bool, shape [n, n]
            On the device of ``words``.

        Raises
        ------
        IndexError
            If there is no such layer.
        """
        if not -len(self) <= layer < len(self):
            raise IndexError(f"layer must lie in 0 .. {len(self) - 1}, got {layer}")
        return unpack_rows(self.rows()[layer], self.n_filters[layer])

    def degrees(self) -> Tensor:
        """Count the neighbours of every filter.

        Returns
        -------
        Tensor of int64, shape [sum(n_filters)]
            One layer after the other, on the device of ``words``.
        """
        counts = [bit_counts(rows).sum(1) for rows in self.rows()]
        return torch.cat(counts) if counts else self.words.new_empty(0)

    def edge_density(self) -> Tensor:
        """Share of all pairs of filters that are joined.

        Returns
        -------
        Tensor of float64, shape [n_layers]
            edges / (n (n - 1) / 2), in [0, 1], on the device of ``words``; 0 for a layer of fewer than two filters.
        """
        pairs = torch.tensor([max(n * (n - 1), 1) for n in self.n_filters], dtype=torch.float64)
        return layer_sums(self.degrees(), self.n_filters).double() / to_device(pairs, self.words.device)

    def subgraphs(self, kept: Sequence[np.ndarray]) -> FilterGraphs:
        """Graphs of some of the filters alone.

        Parameters
        ----------
        kept : sequence of ndarray of int64
            For each layer, the filters that stay.

        Returns
        -------
        FilterGraphs
            Layer i has ``len(kept[i])`` filters, in the order given, on the device of ``words``.
        """
        if not self.n_filters:
            return self
        sizes = tuple(len(filters) for filters in kept)
        chosen = to_device(torch.from_numpy(np.concatenate(kept)), self.words.device).split(sizes)
        packed = []
        for rows, n, vertices in zip(self.rows(), self.n_filters, chosen, strict=True):
            at_once = max(1, UNPACKED_AT_ONCE // max(n, 1))
            packed += [pack_rows(unpack_rows(rows[some], n)[:, vertices]).flatten() for some in vertices.split(at_once)]
        kinds = None
        if self.kinds is not None:
            of_layers = zip(self.kinds.split(self.n_filters), chosen, strict=True)
            kinds = torch.cat([kind[vertices] for kind, vertices in of_layers])
        return FilterGraphs(torch.cat(packed), sizes, kinds)


def layer_sums(values: Tensor, n_filters: Sequence[int]) -> Tensor:
    """Sum integers, one per filter, over the filters of each layer: int64 [n_layers], on the device of the values."""
    sums = [part.sum() for part in values.split(list(n_filters))]
    return torch.stack(sums) if sums else values.new_empty(0, dtype=torch.int64)


def bit_counts(words: Tensor) -> Tensor:
    """Count the bits of each word, int64 of any shape: sums of neighbouring bits, pairs, fours, then all bytes."""
    counts = words - ((words >> 1) & 0x5555555555555555)
    counts = (counts & 0x3333333333333333) + ((counts >> 2) & 0x3333333333333333)
    counts = (counts + (counts >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (counts * 0x0101010101010101) >> 56  # the sum of the bytes is at most 64: the sign bit stays clear


def unpack_rows(rows: Tensor, n_filters: int) -> Tensor:
    """Adjacency rows, int64 [rows, ceil(n / 64)], as bool [rows, n]."""
    octets = rows.contiguous().view(torch.uint8).long()  # [rows, 8 ceil(n / 64)]
    bits = (octets * 0x0101010101010101) & -0x7FBFDFEFF7FBFDFF  # bit k of the octet, alone in byte k of a word
    return (bits.view(torch.uint8) != 0)[:, :n_filters]


def pack_rows(dense: Tensor) -> Tensor:
    """Rows of bool, [rows, n], as int64 words [rows, ceil(n / 64)]: bit u % 64 of word u // 64 is column u."""
    n_rows, n = dense.shape
    if n_rows == 0 or n == 0:
        return dense.new_zeros(n_rows, words_per_row(n), dtype=torch.int64)
    padded = dense.new_zeros(n_rows, words_per_row(n) * WORD_BITS)
    padded[:, :n] = dense
    octets = (padded.view(torch.int64) * 0x0102040810204080) >> 56  # eight bools, a byte each, to the bits of one byte
    return (octets & 0xFF).to(torch.uint8).view(torch.int64)
