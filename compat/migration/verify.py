"""Checking a migrated gallery against its source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compat.neighbors import unit_rows
from compat.transformers.artefact import Transformer
from stores.galleries.gallery import GallerySource

SAMPLE_ROWS = 1024
LEAST_COSINE = 0.99999
"""A target may keep unit vectors and norms apart, which costs rounding, never direction."""
MOST_DIFFERENCE = 1e-4
"""Of a number in a row compared by inner product, where length counts: products in other blocks round differently."""


@dataclass(frozen=True)
class MigrationCheck:
    """Rows present in the same order, and how a sample recomputed now compares with what was written.

    Attributes:
        rows: Ids compared.
        sampled: Vectors recomputed.
        lowest_cosine: Between a recomputed vector and the written one; None where they are compared by inner product.
        largest_difference: Between their numbers; None where they are compared by cosine.
    """

    rows: int
    sampled: int
    lowest_cosine: float | None = None
    largest_difference: float | None = None

    def __str__(self) -> str:
        if self.lowest_cosine is not None:
            found = f"lowest cosine {self.lowest_cosine:.6f}"
        else:
            found = f"largest difference {self.largest_difference:.1e}"
        return f"checked: {self.rows} ids in order, {self.sampled} vectors recomputed, {found}"


def verify_migration(
    source: GallerySource,
    transformer: Transformer,
    target: GallerySource,
    *,
    sample: int = SAMPLE_ROWS,
    offsets: np.ndarray | None = None,
) -> MigrationCheck:
    """Compare every id in order, and recompute an even sample of the vectors.

    Args:
        source: What was migrated.
        transformer: With the correction that was written, and with no other.
        target: What came of it.
        sample: Vectors to recompute, or a few more.
        offsets: The correction's offsets float32 [rows of source] where they were known beforehand.

    Raises:
        ValueError: If rows, ids or a sampled vector differ.
    """
    by_cosine = transformer.served_space.similarity == "cosine"
    if len(source) != len(target):
        raise ValueError(f"the migrated gallery has {len(target)} rows, its source {len(source)}; migrate again")
    lowest, furthest, sampled, first = 1.0, 0.0, 0, 0
    step = max(1, len(source) // sample)
    for theirs, ours in zip(source.scan(4096), target.scan(4096), strict=True):
        if not theirs.items["item_id"].equals(ours.items["item_id"]):
            raise ValueError(
                f"the ids of rows {first} to {first + len(theirs.items)} differ from the source's; migrate again"
            )
        chosen = np.arange(-first % step, len(theirs.vectors), step)
        if len(chosen):
            ids = theirs.items["item_id"].gather(chosen)
            known = None if offsets is None else offsets[first + chosen]
            wanted, found = transformer.serve_gallery(theirs.vectors[chosen], ids, offsets=known), ours.vectors[chosen]
            if by_cosine:
                lowest = min(lowest, float(np.sum(unit_rows(wanted) * unit_rows(found), axis=1).min()))
            else:
                furthest = max(furthest, float(np.abs(wanted - found).max()))
            sampled += len(chosen)
        first += len(theirs.items)
    if lowest < LEAST_COSINE:
        raise ValueError(
            f"a recomputed vector has cosine {lowest:.6f} to the migrated one, expected {LEAST_COSINE}; migrate again"
        )
    if furthest > MOST_DIFFERENCE:
        raise ValueError(
            f"a recomputed vector differs by {furthest:.1e} from the migrated one, expected {MOST_DIFFERENCE} at most; "
            "migrate again"
        )
    return MigrationCheck(first, sampled, lowest) if by_cosine else MigrationCheck(first, sampled, None, furthest)
