"""The k best rows of each query while a gallery goes by: scored fast and roughly first, the promising ones precisely.

A matrix product gives rough scores together with a bound on their error. A row whose rough score, the error added,
falls short of the k-th best so far cannot be among the k best; the few others are scored one by one. So the answer does
not depend on the precision of the product: bfloat16 where the processor multiplies it faster, else float32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from compat.neighbors.rows import comparable_rows, require_finite
from stores.space import Similarity

_PRODUCT = 2**24
"""Rough scores held at a time."""
_WIDEST = 32
"""Rough scores looked at together: if the highest is too low, all of them are."""
_ENOUGH_QUERIES = 64
"""From so many on, rounding a block to bfloat16 costs less than it saves."""
_AT_ONCE = 2**20
"""Coordinates rounded, or multiplied for precise scores, at a time: what stays in a cache."""
_UNIT = 2.0**-24
"""Half the distance between 1 and the next float32."""


@dataclass(frozen=True)
class _Rounded:
    """Vectors [n, d] in the precision of a product, their lengths [n] and how far rounding moved each, both float32."""

    vectors: torch.Tensor
    lengths: torch.Tensor
    moved: torch.Tensor

    @classmethod
    def to(cls, dtype: torch.dtype, vectors: torch.Tensor) -> _Rounded:
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        if dtype == torch.float32:
            # The product may be allowed to round its factors, to bfloat16 at worst.
            highest = torch.get_float32_matmul_precision() == "highest"
            return cls(vectors, lengths, lengths * (0.0 if highest else 2.0**-8))
        rounded, moved = torch.empty_like(vectors, dtype=dtype), torch.empty_like(lengths)
        at_once = max(1, _AT_ONCE // vectors.shape[1])
        for some in (slice(start, start + at_once) for start in range(0, len(vectors), at_once)):
            rounded[some] = vectors[some]
            moved[some] = torch.linalg.vector_norm(vectors[some] - rounded[some].float(), dim=1)
        return cls(rounded, lengths, moved)


class BestRows:
    """The k best rows so far of each query, while blocks of a gallery go by in rising order of their rows.

    Args:
        queries: Floats [q, d].
        dim: Length of the gallery's vectors.
        k: Rows wanted.
        rows: Rows in the gallery; no more are kept.
        similarity: What is compared; the blocks must be comparable by inner product already.

    Raises:
        ValueError: If dimensions differ, a query holds NaN, the gallery is empty or k is not positive.
    """

    def __init__(self, queries: np.ndarray, dim: int, k: int, rows: int, similarity: Similarity) -> None:
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise ValueError(f"queries are {list(queries.shape)}, expected [q, {dim}] as the gallery has")
        if not rows or k < 1:
            raise ValueError(f"a search needs a gallery and k >= 1, found {rows} rows and k={k}")
        require_finite(queries, "query")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._queries = _tensor(comparable_rows(queries, similarity), self._device)
        # Not on a GPU: there a product of bfloat16 may also be summed in bfloat16, beyond any useful bound.
        coarse = self._device.type == "cpu" and len(queries) >= _ENOUGH_QUERIES and _bfloat16_is_faster()
        self._rough = torch.bfloat16 if coarse else torch.float32
        self._rounded = {dtype: _Rounded.to(dtype, self._queries) for dtype in {self._rough, torch.float32}}
        self._k = min(k, rows)
        self._scores = torch.full((len(queries), self._k), -torch.inf, device=self._device)
        self._rows = torch.full((len(queries), self._k), -1, device=self._device)
        self._product = torch.empty(0)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [q, k] and rows int64 [q, k], best first."""
        return self._scores.cpu().numpy(), self._rows.cpu().numpy()

    def look(self, block: np.ndarray, first: int) -> None:
        """Take a block, finite float32 [n, d], whose rows are numbered from `first`."""
        width = _WIDEST
        while width > 1 and len(block) // width < 4 * self._k:
            width //= 2
        whole = len(block) - len(block) % width
        vectors = _tensor(block, self._device)
        self._look(vectors[:whole], first, width)
        self._look(vectors[whole:], first + whole, 1)

    def _look(self, block: torch.Tensor, first: int, width: int) -> None:
        if not len(block):
            return
        rounded = _Rounded.to(self._rough, block)
        batch = max(1, _budget(self._device) // len(block))
        for start in range(0, len(self._queries), batch):
            mine = slice(start, min(start + batch, len(self._queries)))
            self._compare(mine, block, rounded, first, width)

    def _compare(self, mine: slice, block: torch.Tensor, rounded: _Rounded, first: int, width: int) -> None:
        asked = mine.stop - mine.start
        queries, columns = self._promising(mine, rounded, width)
        if queries is None or columns is None:  # too many: a finer product, then fewer queries at a time
            if rounded.vectors.dtype != torch.float32:
                self._compare(mine, block, _Rounded.to(torch.float32, block), first, width)
            else:
                middle = mine.start + asked // 2
                self._compare(slice(mine.start, middle), block, rounded, first, width)
                self._compare(slice(middle, mine.stop), block, rounded, first, width)
            return
        order = torch.argsort(queries * len(block) + columns)
        queries, columns = queries[order] + mine.start, columns[order]
        scores = self._precise(queries, block, columns)
        better = scores > self._scores[queries, -1]  # an equal one loses to the lower rows that are there
        self._enter(queries[better], scores[better], columns[better] + first)

    def _promising(
        self, mine: slice, rounded: _Rounded, width: int
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Pairs of a query (from 0) and a column that may be among its k best; nothing where they are too many."""
        asked, rows = mine.stop - mine.start, len(rounded.vectors)
        dtype = rounded.vectors.dtype
        product = self._buffer(asked * rows, dtype).view(asked, rows)
        mine_rounded = self._rounded[dtype]
        torch.mm(mine_rounded.vectors[mine], rounded.vectors.T, out=product)
        grouped = product.view(asked, width, rows // width)
        highest = grouped.amax(dim=1) if width > 1 else product
        error = self._error(mine_rounded.lengths[mine], mine_rounded.moved[mine], rounded)
        known = self._scores[mine, -1]
        if highest.shape[1] >= self._k and bool(torch.isinf(known).any()):
            # k groups reach this high, so k rows do, up to what rounding the product and its factors may feign.
            kth = highest.topk(self._k, dim=1).values[:, -1].float()
            known = torch.maximum(known, kth - 2.0**-7 * kth.abs() - error)
        # Rounding keeps order: a score of at least this, rounded, is at least this, rounded.
        least = (known - error).to(dtype)
        query, group = (highest >= least[:, None]).nonzero(as_tuple=True)
        if dtype != torch.float32:
            too_many = len(query) > 8 * self._k * asked
        else:
            too_many = asked > 1 and len(query) * width > _PRODUCT // 4
        if too_many:
            return None, None
        if width == 1:
            return query, group
        hit, place = (grouped[query, :, group] >= least[query, None]).nonzero(as_tuple=True)
        return query[hit], place * (rows // width) + group[hit]

    def _error(self, lengths: torch.Tensor, moved: torch.Tensor, rounded: _Rounded) -> torch.Tensor:
        """How far a rough score can be from the precise one, for each query [b], before the product is rounded.

        q.g - q'.g' = q.(g - g') + (q - q').g', each at most the product of lengths; the sum of d products in float32
        adds d half units of their lengths at most, in whatever order; doubled, for the precise score's own rounding.
        """
        longest, most_moved = rounded.lengths.max(), rounded.moved.max()
        factors = lengths * most_moved + moved * (longest + most_moved)
        summed = 2 * (rounded.vectors.shape[1] + 4) * _UNIT * (lengths + moved) * (longest + most_moved)
        return 1.001 * (factors + summed)  # the lengths are rounded too

    def _precise(self, queries: torch.Tensor, block: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        scores = torch.empty(len(queries), device=self._device)
        chunk = max(1, _AT_ONCE // block.shape[1])
        for start in range(0, len(queries), chunk):
            pairs = slice(start, start + chunk)
            products = self._queries[queries[pairs]] * block[columns[pairs]]
            scores[pairs] = products.sum(dim=1, dtype=torch.float64).float()
        return scores

    def _enter(self, queries: torch.Tensor, scores: torch.Tensor, rows: torch.Tensor) -> None:
        """Let rows compete with those that are there; they come in rising order for each query."""
        if not len(queries):
            return
        touched, queries = torch.unique(queries, return_inverse=True)
        held = torch.arange(len(touched), device=self._device).repeat_interleave(self._k)
        query = torch.cat([held, queries])
        score = torch.cat([self._scores[touched].flatten(), scores])
        row = torch.cat([self._rows[touched].flatten(), rows])
        order = torch.argsort(score, descending=True, stable=True)
        order = order[torch.argsort(query[order], stable=True)]
        counts = torch.bincount(query, minlength=len(touched))
        places = (counts.cumsum(0) - counts)[:, None] + torch.arange(self._k, device=self._device)
        best = order[places]
        self._scores[touched], self._rows[touched] = score[best], row[best]

    def _buffer(self, numbers: int, dtype: torch.dtype) -> torch.Tensor:
        # One piece of memory for all products: fresh pages for each would cost as much as the product itself.
        if self._product.dtype != dtype or len(self._product) < numbers:
            self._product = torch.empty(numbers, dtype=dtype, device=self._device)
        return self._product[:numbers]


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _budget(device: torch.device) -> int:
    """Rough scores that fit in memory at a time."""
    if device.type != "cuda":
        return _PRODUCT
    free, _ = torch.cuda.mem_get_info(device)
    return max(_PRODUCT, min(2**29, free // 32))


@cache
def _bfloat16_is_faster() -> bool:
    """Whether this processor multiplies bfloat16 matrices clearly faster than float32; the answers are the same."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        queries, block = torch.ones(256, 256, dtype=dtype), torch.ones(2048, 256, dtype=dtype)
        turns = []
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(queries, block.T)
            turns.append(time.perf_counter() - started)
        seconds[dtype] = min(turns)
    return 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]
