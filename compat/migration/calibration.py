"""Scores of bridged items beside native ones, where results of the two halves of a gallery are merged.

A cosine across a map and a cosine within the new model's space say different things, and a hubness correction takes
something off the first kind. Measured on real pairs (`benchmarks/bench_mixed.py`), less is more: where there is a
correction, the mean score of pairs that do not belong together is made the same on both sides by a shift, and the
spread is left alone; where there is none, scores are merged as they are. To match spreads, or false match rates as
biometrics does, lost recall@1: a bridged item is found less surely, and a scale that hides it lets impostors of the
bridged half win. Nothing needs labels.
"""

from __future__ import annotations

import numpy as np

from compat.metrics.sides import Calibration, Side, score_blocks
from compat.neighbors import ArrayRows, take_rows
from compat.transformers.artefact import Transformer

LEAST_ITEMS = 20
MOST_ITEMS = 1000


def shift_between(bridged: Side, native: Side) -> Calibration:
    """The shift that gives bridged scores of different items the mean of native ones.

    Args:
        bridged: n items as queries through the bridge, and the same n items as its gallery holds them.
        native: The same items and queries in the new model's space.

    Raises:
        ValueError: If there are fewer than `LEAST_ITEMS` items, or the sides do not fit each other.
    """
    count = len(bridged.queries)
    if count < LEAST_ITEMS:
        raise ValueError(f"{count} items are too few to calibrate scores by, expected {LEAST_ITEMS} or more")
    total = 0.0
    for rows, start, (old, new) in score_blocks([bridged, native]):
        gap = new.astype(np.float64) - old
        own = np.arange(max(rows.start, start), min(rows.stop, start + gap.shape[1]))  # an item with itself
        total += float(gap.sum() - gap[own - rows.start, own - start].sum())
    return Calibration(1.0, total / (count * (count - 1)))


def calibrated(transformer: Transformer | None, bridged: Side, native: Side, *, seed: int = 0) -> Calibration:
    """What becomes of bridged scores before they are merged with native ones, as it was measured to be best.

    Args:
        transformer: The bridge; None where the bridged half was migrated, and with nothing taken off its scores.
        bridged: Items that both halves know, as queries and as the bridged half holds them; see `shift_between`.
        native: The same items in the new model's space.
        seed: Of the sample of `MOST_ITEMS` that is taken of more.

    Raises:
        ValueError: As `shift_between`.
    """
    if transformer is None or transformer.correction is None:
        return Calibration()
    rows = np.arange(len(bridged.queries))
    if len(rows) > MOST_ITEMS:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), MOST_ITEMS, replace=False))
    return shift_between(*(_taken(side, rows) for side in (bridged, native)))


def _taken(side: Side, rows: np.ndarray) -> Side:
    return Side(side.queries[rows], ArrayRows(take_rows(side.gallery, rows)), side.similarity)
