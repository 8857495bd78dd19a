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


@dataclass(frozen=True)
class MigrationCheck:
    """Rows present in the same order, and the lowest cosine between a sample recomputed now and what was written."""

    rows: int
    sampled: int
    lowest_cosine: float

    def __str__(self) -> str:
        recomputed = f"{self.sampled} vectors recomputed, lowest cosine {self.lowest_cosine:.6f}"
        return f"checked: {self.rows} ids in order, {recomputed}"


def verify_migration(
    source: GallerySource, transformer: Transformer, target: GallerySource, *, sample: int = SAMPLE_ROWS
) -> MigrationCheck:
    """Compare every id in order, and recompute an even sample of the vectors.

    Raises:
        ValueError: If rows, ids or a sampled vector differ.
    """
    if len(source) != len(target):
        raise ValueError(f"the migrated gallery has {len(target)} rows, its source {len(source)}; migrate again")
    lowest, sampled, first = 1.0, 0, 0
    step = max(1, len(source) // sample)
    for theirs, ours in zip(source.scan(4096), target.scan(4096), strict=True):
        if not theirs.items["item_id"].equals(ours.items["item_id"]):
            raise ValueError(
                f"the ids of rows {first} to {first + len(theirs.items)} differ from the source's; migrate again"
            )
        chosen = np.arange(-first % step, len(theirs.vectors), step)
        if len(chosen):
            wanted = unit_rows(transformer.transform(theirs.vectors[chosen]))
            cosines = np.sum(wanted * unit_rows(ours.vectors[chosen]), axis=1)
            lowest, sampled = min(lowest, float(cosines.min())), sampled + len(chosen)
        first += len(theirs.items)
    if lowest < LEAST_COSINE:
        raise ValueError(
            f"a recomputed vector has cosine {lowest:.6f} to the migrated one, expected {LEAST_COSINE}; migrate again"
        )
    return MigrationCheck(first, sampled, lowest)
