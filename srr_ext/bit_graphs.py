"""Filter graphs of all layers in one buffer: bit-packed adjacency rows, shared by the native ops and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

WORD_BITS = 64


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
    zero_filters : tuple of tuple of int
        Indices of each layer's filters whose weights are all zero: they have no direction, so no edge. Empty for
        graphs that were not made from weights.

    Raises
    ------
    ValueError
        If the sizes disagree.
    """

    words: Tensor
    n_filters: tuple[int, ...]
    zero_filters: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.words.dtype != torch.int64 or self.words.dim() != 1:
            raise ValueError(f"words must be a flat int64 tensor, got {self.words.dtype} {list(self.words.shape)}")
        if len(self.words) != self.offsets[-1]:
            raise ValueError(
                f"words must have {self.offsets[-1]} elements for layers of {self.n_filters} filters, "
                f"got {len(self.words)}"
            )
        if not self.zero_filters:
            object.__setattr__(self, "zero_filters", tuple(() for _ in self.n_filters))
        if len(self.zero_filters) != len(self.n_filters):
            raise ValueError(
                f"zero_filters must have one entry per layer ({len(self.n_filters)}), got {len(self.zero_filters)}"
            )

    @property
    def offsets(self) -> tuple[int, ...]:
        """First word of each layer, and the total: ``len(self) + 1`` entries."""
        return (0, *accumulate(n * words_per_row(n) for n in self.n_filters))

    def __len__(self) -> int:
        return len(self.n_filters)

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
            One graph per matrix, on the CPU.

        Raises
        ------
        TypeError
            If an entry is not a tensor of bool.
        ValueError
            If a matrix is not square or not symmetric; the message names its index.

        Examples
        --------
        >>> path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
        >>> FilterGraphs.from_dense([path]).n_filters
        (3,)
        """
        packed = []
        for i, matrix in enumerate(matrices):
            if not isinstance(matrix, Tensor) or matrix.dtype != torch.bool:
                got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
                raise TypeError(f"matrices[{i}] must be a tensor of bool, got {got}")
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"matrices[{i}] must have shape [n, n], got {list(matrix.shape)}")
            dense = matrix.detach().cpu().numpy()
            if not np.array_equal(dense, dense.T):
                raise ValueError(f"matrices[{i}] must be symmetric: a filter graph is undirected")
            packed.append(_pack_rows(dense & ~np.eye(len(dense), dtype=bool)))
        words = np.concatenate([*packed, np.empty(0, dtype="<u8")]).astype(np.uint64).view(np.int64)
        return cls(torch.from_numpy(words), tuple(len(matrix) for matrix in matrices))

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
        return torch.from_numpy(self._dense(layer % len(self))).to(self.words.device)

    def edge_density(self) -> Tensor:
        """Share of all pairs of filters that are joined.

        Returns
        -------
        Tensor of float64, shape [n_layers]
            edges / (n (n - 1) / 2), in [0, 1]; 0 for a layer of fewer than two filters.
        """
        joined = [int(self._dense(i).sum()) for i in range(len(self))]
        pairs = [max(n * (n - 1), 1) for n in self.n_filters]
        return torch.tensor([a / b for a, b in zip(joined, pairs, strict=True)], dtype=torch.float64)

    def _dense(self, layer: int) -> np.ndarray:
        n = self.n_filters[layer]
        rows = self.words[self.offsets[layer] : self.offsets[layer + 1]].cpu().numpy().astype("<i8", copy=False)
        octets = rows.view(np.uint8).reshape(n, 8 * words_per_row(n))
        return np.unpackbits(octets, axis=1, count=n, bitorder="little").astype(bool)


def _pack_rows(dense: np.ndarray) -> np.ndarray:
    """Rows of bool [n, n] as little-endian 64-bit words, flat [n * ceil(n / 64)]."""
    n = len(dense)
    octets = np.zeros((n, 8 * words_per_row(n)), dtype=np.uint8)
    bits = np.packbits(dense, axis=1, bitorder="little")
    octets[:, : bits.shape[1]] = bits
    return octets.reshape(-1).view("<u8")
