"""Scores of bridged items beside native ones, where results of the two halves of a gallery are merged.

A cosine across a map and a cosine within the new model's space say different things, and a hubness correction takes
something off the first kind. What is done about it was chosen by recall@1 on real pairs (`benchmarks/bench_mixed.py`).
Where there is a correction, a shift makes the mean score of pairs that do not belong together the same on both sides
and leaves their spread alone: it gained on identities and on texts, in both directions. Where there is none, scores are
merged as they are: no other way gained more than chance. To match false match rates, as biometrics does, can be better
on texts with a correction and is much worse on identities: a bridged item is found less surely, and a scale that hides
it lets impostors of the bridged half win. Nothing needs labels.
"""

from __future__ import annotations

import numpy as np

from compat.metrics.sides import Calibration, Side, score_blocks

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
