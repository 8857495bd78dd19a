"""How new queries search a gallery through a transformer: which vectors the index holds, and how queries enter it.

Every search, score and copy of a gallery is made of these, so that what is reported is what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from compat.neighbors import Rows
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.hubness import lift_gallery, lift_queries
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

SEARCH = "search"
"""The provenance entry of a gallery written with a correction: whose queries search it, and in what form."""
BLOCK_ROWS = 4096

OnRows = Callable[[int, int], None]
FindOffsets = Callable[[np.ndarray, Iterable[str | int]], np.ndarray]


@dataclass(frozen=True)
class MappedRows:
    """A gallery seen through a transformer, mapped block by block."""

    gallery: Rows
    transformer: Transformer

    def __len__(self) -> int:
        return len(self.gallery)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Mapped vectors start..stop-1, float32 [stop - start, target.dim]."""
        return self.transformer.transform(self.gallery.rows(start, stop))


@dataclass(frozen=True)
class LiftedRows:
    """Gallery vectors with their offsets, float32 [g], in one extra dimension; lifted block by block."""

    gallery: Rows
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.gallery)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Lifted vectors start..stop-1, float32 [stop - start, d + 1]."""
        return lift_gallery(self.gallery.rows(start, stop), self.offsets[start:stop])


def served_rows(gallery: EmbeddingStore, transformer: Transformer, *, on_rows: OnRows | None = None) -> Rows:
    """The old model's gallery as new queries search it: vectors of `transformer.served_space`, made as they are read.

    With a correction the offsets are found now, block by block, unless the transformer brings those of this gallery.

    Args:
        gallery: The old model's gallery.
        transformer: Maps this gallery, or queries to it.
        on_rows: Called with (rows whose offset is found, rows in all).
    """
    mapped = MappedRows(gallery, transformer) if transformer.direction == "old-to-new" else gallery
    if transformer.correction is None:
        return mapped
    offsets = transformer.known_offsets(gallery.digest(), len(gallery)) if transformer.correction.galleries else None
    if offsets is None:
        offsets = _offsets(mapped, gallery.items["item_id"], transformer.correction.offsets, on_rows)
    return LiftedRows(mapped, offsets)


def corrected_old_rows(gallery: EmbeddingStore, transformer: Transformer, *, on_rows: OnRows | None = None) -> Rows:
    """The old gallery for old queries, corrected as the transformer corrects it for new ones, [g, d_old + 1].

    Raises:
        ValueError: If the transformer carries no correction.
    """
    correction = transformer.correction
    if correction is None:
        raise ValueError("the transformer carries no hubness correction; fit one with --correction 0.5")
    return LiftedRows(gallery, _offsets(gallery, gallery.items["item_id"], correction.old_offsets, on_rows))


def corrected_new_rows(gallery: Rows, item_ids: pl.Series, transformer: Transformer) -> LiftedRows:
    """Re-embedded items [g, d_new] as they join a gallery that an old-to-new transformer mapped and corrected.

    Raises:
        ValueError: If the transformer carries no correction, or maps queries: then they meet in another space.
    """
    if transformer.correction is None or transformer.direction != "old-to-new":
        raise ValueError("re-embedded items join a corrected gallery only where an old-to-new transformer made it")
    return LiftedRows(gallery, _offsets(gallery, item_ids, transformer.correction.offsets, None))


def _offsets(rows: Rows, ids: pl.Series, find: FindOffsets, on_rows: OnRows | None) -> np.ndarray:
    offsets = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(rows))
        offsets[start:stop] = find(rows.rows(start, stop), ids[start:stop])
        if on_rows:
            on_rows(stop, len(rows))
    return offsets


@dataclass(frozen=True)
class QueryForm:
    """What becomes of a raw query before it searches an index.

    Attributes:
        space: Space of raw queries.
        transformer: The map they go through, or None.
        lifted: Whether they are scaled to unit length and given a 1 for the extra dimension.
    """

    space: EmbeddingSpace
    transformer: Transformer | None
    lifted: bool

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Raw queries, floats [q, space.dim], as the index takes them.

        Raises:
            ValueError: If the dimension is wrong.
        """
        if self.transformer is not None:
            return self.transformer.serve_queries(queries)
        if self.lifted and (queries.ndim != 2 or queries.shape[1] != self.space.dim):
            raise ValueError(f"queries have shape {list(queries.shape)}, expected [q, {self.space.dim}]: {self.space}")
        return lift_queries(queries) if self.lifted else queries


def search_record(transformer: Transformer) -> dict[str, Any]:
    """The provenance entry `SEARCH` of a gallery written with this transformer's correction."""
    mapped = "mapped by the transformer, " if transformer.direction == "new-to-old" else ""
    return {
        "query_space": transformer.query_space.to_dict(),
        "direction": transformer.direction,
        "queries": f"{mapped}scaled to unit length, with a 1 appended",
        "similarity": transformer.served_space.similarity,
    }


def is_migrated(provenance: Mapping[str, Any]) -> bool:
    """Whether a gallery came through a transformer; a copy keeps the origin, however often it was copied."""
    return _origin(provenance, "transformer") is not None


def is_lifted(gallery: EmbeddingStore) -> bool:
    """Whether a gallery was written with a correction, for queries with a 1 appended."""
    return gallery.space.similarity == "inner_product" and _origin(gallery.provenance, SEARCH) is not None


def query_form(gallery: EmbeddingStore, transformer: Transformer | None = None) -> QueryForm:
    """How queries enter an index of a gallery written by `compat.migrate`, or of one as it is.

    Args:
        gallery: In the space that is searched, its correction (if any) written into it.
        transformer: The one it was written with. It is needed where queries are mapped.

    Raises:
        WrongSpace: If the transformer is another, or missing where it is needed.
    """
    record = _origin(gallery.provenance, SEARCH) if is_lifted(gallery) else None
    if transformer is not None:
        if transformer.served_space != gallery.space:
            raise WrongSpace(
                f"{gallery.path} is in {gallery.space}, this transformer serves {transformer.served_space}; "
                "use the transformer it was migrated with"
            )
        return QueryForm(transformer.query_space, transformer, True)
    if record is None:
        return QueryForm(gallery.space, None, False)
    space = EmbeddingSpace.from_dict(record["query_space"])
    if record["direction"] == "new-to-old":
        raise WrongSpace(
            f"queries in {space} reach {gallery.path} through the transformer that it was migrated with; pass that one"
        )
    return QueryForm(space, None, True)


def _origin(provenance: Mapping[str, Any], key: str) -> Any | None:
    if key in provenance:
        return provenance[key]
    source = provenance.get("source_provenance")
    return _origin(source, key) if isinstance(source, Mapping) else None
