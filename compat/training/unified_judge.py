"""Judging two maps together on pairs they were not fitted to: queries through one, the gallery through the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compat.options import Direction
from compat.pairs import Pairs
from compat.training.selection import Distractors, HeldOutRetrieval, HeldOutScore, Map
from compat.vectors import Vectors
from stores.space import EmbeddingSpace


@dataclass(frozen=True)
class MappedVectors:
    """Vectors seen through a map, mapped when they are read.

    Attributes:
        vectors: What goes in.
        apply: float32 [n, d_in] to [n, d_out].
        space: Of what comes out.
    """

    vectors: Vectors
    apply: Map
    space: EmbeddingSpace

    @property
    def chunk_rows(self) -> int:
        """Rows that lie together."""
        return self.vectors.chunk_rows

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Mapped vectors of row numbers [b], float32 [b, d_out]."""
        return self.apply(self.vectors.take(rows))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Mapped vectors start..stop-1, float32 [stop - start, d_out]."""
        return self.apply(np.array(self.vectors.rows(start, stop)))

    def digest(self) -> str:
        """Of what goes in, which with the space tells what comes out."""
        return f"{self.vectors.digest()} {self.space.fingerprint}"


class UnifiedJudge:
    """Held-out pairs, for two maps at once and for maps of a single direction, which the same queries are asked of.

    Args:
        pairs: All pairs.
        held_out: Numbers of those that the maps were not fitted to, int64 [h].
        seed: Chooses the samples where there are many.
        gallery: Old vectors beyond the pairs, or None.
    """

    def __init__(self, pairs: Pairs, held_out: np.ndarray, *, seed: int, gallery: Distractors | None = None) -> None:
        self.pairs, self._held_out, self._seed, self._gallery = pairs, held_out, seed, gallery
        self._unmapped: dict[Direction, HeldOutRetrieval] = {}

    def both(self, old_map: Map, new_map: Map, dim: int) -> HeldOutScore:
        """Queries through the new map, the gallery through the old one, into a space of `dim` dimensions."""
        seen = replace(self.pairs, old=MappedVectors(self.pairs.old, old_map, EmbeddingSpace("met", None, dim, False)))
        gallery = self._gallery
        if gallery is not None:
            gallery = gallery._replace(vectors=old_map(np.array(gallery.vectors, dtype=np.float32)))
        return self._of(seen, "new-to-old", gallery).score(new_map)

    def single(self, direction: Direction, apply: Map, corrections: Sequence[float]) -> list[HeldOutScore]:
        """One side through a map, the other as it is, for each strength of hubness correction."""
        if direction not in self._unmapped:
            self._unmapped[direction] = self._of(self.pairs, direction, self._gallery)
        judge = self._unmapped[direction]
        return [judge.summary([ranked]) for ranked in judge.rank(apply, corrections)]

    def _of(self, pairs: Pairs, direction: Direction, gallery: Distractors | None) -> HeldOutRetrieval:
        return HeldOutRetrieval(pairs, self._held_out, direction, seed=self._seed, distractors=gallery)
