"""Which items of a gallery to embed with the other model too, so that a map fitted to few pairs is as good as can be.

A ridge fitted to the picked items is uncertain by x^T A^-1 x about a row x, where A is the sum of x x^T over the picked
rows plus the penalty. The picks are those that bring the mean of this over the whole gallery down, taken greedily. Only
the old vectors enter: no label, no new vector. Rows are scaled to unit length and centred, as the maps do.

Source: Yu, Bi and Tresp, "Active learning via transductive experimental design", ICML 2006, sequential design.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from compat.metrics.retrieval import Rows
from compat.neighbors import unit_rows

BLOCK_ROWS = 8192
CANDIDATES = 50_000
STRENGTH = 0.3
"""Penalty planned for, in units of the mean variance of a dimension, as `compat.transformers.linear` counts it."""


class Picked(NamedTuple):
    """Row numbers, rising, int64 [wanted], and the mean uncertainty they leave as a share of what random picks do."""

    rows: np.ndarray
    uncertainty: float


def pick_rows(vectors: Rows, wanted: int, *, candidates: int = CANDIDATES, seed: int = 0) -> Picked:
    """Pick the rows of a gallery that a linear map learns most from.

    Memory holds one block, the candidates and two matrices [d, d]; time grows with wanted * candidates * d.

    Args:
        vectors: The gallery in the old model's space, [n, d] of any norms, read once in blocks of `BLOCK_ROWS`. Rows of
            zeros are never picked.
        wanted: How many rows to pick.
        candidates: Rows that may be picked, drawn at random where the gallery has more; the uncertainty is that of the
            whole gallery all the same.
        seed: Draws the candidates, and the random picks that the uncertainty is compared with.

    Raises:
        ValueError: If fewer than `wanted` rows or candidates can be picked, or `wanted` or `seed` is out of range.
    """
    if wanted < 1 or seed < 0:
        raise ValueError(f"expected at least 1 row to pick and a seed of 0 or more, found {wanted} and seed {seed}")
    if candidates < wanted:
        raise ValueError(f"{candidates} candidates are too few to pick {wanted} rows of; raise candidates")
    generator = np.random.default_rng(seed)
    rows, x, mean, covariance = _gather(vectors, candidates, generator)
    if len(rows) < wanted:
        raise ValueError(f"{len(rows)} rows can be picked (not all zeros), expected {wanted} or more; ask for fewer")
    x -= mean.astype(np.float32)
    variance = np.trace(covariance)
    # Equal rows leave nothing to choose by: any penalty above zero will do.
    penalty = wanted * STRENGTH * (variance / len(mean) if variance > 0 else 1.0)
    taken = greedy_design(x, covariance, penalty, wanted)
    lots = generator.permutation(len(rows))[:wanted]
    left, left_by_lots = (mean_uncertainty(x[some], covariance, penalty) for some in (taken, lots))
    return Picked(np.sort(rows[taken]), left / left_by_lots if left_by_lots > 0 else 1.0)


def greedy_design(x: np.ndarray, covariance: np.ndarray, penalty: float, wanted: int) -> np.ndarray:
    """Rows that, each taken after those before, leave the least `mean_uncertainty`.

    Args:
        x: Candidates, centred, float32 [m, d].
        covariance: Of the whole gallery, float64 [d, d].
        penalty: Of the ridge, in units of the sum of x x^T.
        wanted: How many, at most m.

    Returns:
        Distinct row numbers in the order they were taken, int64 [wanted].
    """
    inverse = np.eye(len(covariance)) / penalty
    # With A^-1 the inverse: x^T A^-1 x and x^T A^-1 C A^-1 x of every candidate, kept up to date by one product a step.
    # Taking x lowers trace(C A^-1) by the second over 1 + the first.
    squares = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    leverage = squares / penalty
    gain = np.einsum("ij,ij->i", x @ covariance.astype(np.float32), x, dtype=np.float64) / penalty**2
    value = np.empty(len(x))
    taken = np.empty(wanted, np.int64)
    free = np.ones(len(x), dtype=bool)
    for step in range(wanted):
        np.divide(gain, 1.0 + leverage, out=value)
        best = int(np.where(free, value, -np.inf).argmax())
        taken[step] = best
        free[best] = False
        pulled = inverse @ x[best]
        spread = covariance @ pulled
        shrink = 1.0 / (1.0 + x[best] @ pulled)
        along, across = (x @ np.stack([pulled, inverse @ spread], axis=1).astype(np.float32)).T.astype(np.float64)
        leverage -= shrink * along**2
        gain += shrink * along * (shrink * along * (pulled @ spread) - 2.0 * across)
        inverse -= shrink * np.outer(pulled, pulled)
    return taken


def mean_uncertainty(picked: np.ndarray, covariance: np.ndarray, penalty: float) -> float:
    """Mean of x^T A^-1 x over a gallery of this covariance [d, d], for a ridge on the centred rows `picked` [n, d]."""
    picked = picked.astype(np.float64)
    information = picked.T @ picked + penalty * np.eye(len(covariance))
    return float(np.trace(np.linalg.solve(information, covariance)))


def _gather(
    vectors: Rows, candidates: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # Row numbers and unit rows of the candidates, and mean and covariance of all rows that are not zeros.
    count = len(vectors)
    drawn = np.sort(generator.choice(count, candidates, replace=False)) if candidates < count else np.arange(count)
    rows, kept = [np.empty(0, np.int64)], []
    seen, total, products = 0, np.zeros(1), np.zeros((1, 1))
    for start in range(0, count, BLOCK_ROWS):
        block = unit_rows(vectors.rows(start, min(start + BLOCK_ROWS, count)))
        filled = np.any(block, axis=1)
        seen += int(filled.sum())
        total = total + block.sum(axis=0, dtype=np.float64)
        products = products + block.T @ block
        here = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, start + len(block))]
        here = here[filled[here - start]]
        rows.append(here)
        kept.append(block[here - start])
    mean = total / max(seen, 1)
    covariance = products / max(seen, 1) - np.outer(mean, mean)
    return np.concatenate(rows), np.concatenate(kept) if kept else np.empty((0, 1), np.float32), mean, covariance
