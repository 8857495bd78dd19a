"""All pairs of queries and gallery rows, scored tile by tile, with what kind of pair each one is.

Rows that share a label are few among all pairs, so their places in a tile are found from sorted labels and not by
comparing every pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compat.neighbors import Rows, comparable_rows, require_finite
from stores.space import Similarity

TILE_QUERIES = 256
TILE_GALLERY = 8192


@dataclass(frozen=True, eq=False)
class ScoreTile:
    """The scores of some queries against some gallery rows.

    Attributes:
        queries: Query row numbers, int64 [b].
        scores: float32 [b, c], overwritten by the next tile.
        genuine: Places in the flattened scores of pairs of one label, int64 [m]; left-out pairs are not among them.
        left_out: Places of pairs that do not count: a query and its own item, int64 [o].
    """

    queries: np.ndarray
    scores: torch.Tensor
    genuine: torch.Tensor
    left_out: torch.Tensor


def score_tiles(
    queries: np.ndarray,
    gallery: Rows,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray,
    *,
    similarity: Similarity = "cosine",
    parts: Sequence[np.ndarray] | None = None,
    kept: np.ndarray | None = None,
    first_row: int = 0,
    later_only: bool = False,
) -> Iterator[ScoreTile]:
    """Every query against every gallery row, each pair in one tile; the gallery is read once, in blocks.

    Args:
        queries: Floats [q, d].
        gallery: [g, d].
        query_labels: Integer codes [q].
        gallery_labels: Integer codes [g].
        own: The gallery row that is the query's own item, or -1, int64 [q].
        similarity: What is compared: the cosine, or the plain inner product.
        parts: Query row numbers that go into one tile together; unless given, runs of `TILE_QUERIES`.
        kept: Whether a gallery row is there at all, bool [g]; None keeps all.
        first_row: Gallery rows before it are not read.
        later_only: Leave out every gallery row up to the query's own, so that a set against itself has each pair once.

    Raises:
        ValueError: If sizes do not fit, or a value is not finite.
    """
    for what, found, expected in (
        ("query labels", len(query_labels), len(queries)),
        ("own rows", len(own), len(queries)),
        ("gallery labels", len(gallery_labels), len(gallery)),
    ):
        if found != expected:
            raise ValueError(f"found {found} {what} for {expected} vectors, expected one for each")
    left = torch.from_numpy(_comparable(queries, similarity, "query", 0))
    if parts is None:
        parts = [np.arange(a, min(a + TILE_QUERIES, len(queries))) for a in range(0, len(queries), TILE_QUERIES)]
    most = max(map(len, parts), default=0)
    buffer = torch.empty(most * TILE_GALLERY, dtype=torch.float32)
    for start in range(first_row, len(gallery), TILE_GALLERY):
        rows = np.arange(start, min(start + TILE_GALLERY, len(gallery)))
        block = _comparable(gallery.rows(start, int(rows[-1]) + 1), similarity, "gallery", start)
        if block.shape[1] != queries.shape[1]:
            raise ValueError(f"queries are {queries.shape[1]}-D, the gallery {block.shape[1]}-D")
        if kept is not None:
            block, rows = block[kept[rows]], rows[kept[rows]]
        if not len(rows):
            continue
        right = torch.from_numpy(block).T
        mates = _Mates(gallery_labels[rows])
        for part in parts:
            scores = buffer[: len(part) * len(rows)].view(len(part), len(rows))
            torch.mm(left[part], right, out=scores)
            mine = own[part]
            genuine = mates.places(query_labels[part])
            query, column = np.divmod(genuine, len(rows))
            if later_only:
                genuine = genuine[rows[column] > mine[query]]
                left_out = np.flatnonzero(rows[None, :] <= mine[:, None]) if rows[0] <= mine.max() else _NOWHERE
            else:
                genuine = genuine[rows[column] != mine[query]]
                at = np.minimum(np.searchsorted(rows, mine), len(rows) - 1)
                hit = np.flatnonzero(rows[at] == mine)
                left_out = hit * len(rows) + at[hit]
            yield ScoreTile(part, scores, torch.from_numpy(genuine), torch.from_numpy(left_out))


_NOWHERE = np.empty(0, np.int64)


class _Mates:
    """Where in a tile the pairs of one label are."""

    def __init__(self, labels: np.ndarray) -> None:
        self._order = np.argsort(labels, kind="stable")
        self._sorted = labels[self._order]

    def places(self, query_labels: np.ndarray) -> np.ndarray:
        """Flat places in a tile [b, c] for query labels [b] and these labels [c], int64 [m]."""
        first = np.searchsorted(self._sorted, query_labels, "left")
        counts = np.searchsorted(self._sorted, query_labels, "right") - first
        query = np.repeat(np.arange(len(query_labels)), counts)
        within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        return query * len(self._order) + self._order[first[query] + within]


def _comparable(vectors: np.ndarray, similarity: Similarity, role: str, start: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is told below
        vectors = np.asarray(vectors, np.float32)
    require_finite(vectors, role, start)
    return np.require(comparable_rows(vectors, similarity), np.float32, ["C", "W"])  # torch warns of read-only memory
