"""Scores of more pairs than memory holds, as counts in bins: 10^10 pairs in the memory of a few tiles.

**What is exact.** Bins have one width, a power of two, so every score falls into its bin without rounding, and the
counts of pairs at or above a bin's edge are those of the scores themselves. FAR and TAR at a threshold that is an edge
are exact, and thresholds found here are edges. **What is not.** A threshold is found at the lowest edge that satisfies
what is asked. It lies at most one width above the highest score that must be rejected, so at most the pairs of one
bin are rejected that the exact threshold would accept: TAR and FAR are never above the exact ones, and below them by
at most that bin's share. The width for cosines is 2^-15 = 0.00003. Scores themselves are float32 products, which differ
from exact ones by about 1e-7 times the length of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from compat.metrics.score_tiles import TILE_QUERIES, ScoreTile, score_tiles
from compat.metrics.verification import ErrorCurve
from compat.neighbors import ArrayRows, Rows
from stores.space import Similarity

WIDTH = 2.0**-15
"""Of a bin, as long as no more than `MOST_BINS` are needed."""
MOST_BINS = 2**18
_READ_ROWS = 8192

OnPairs = Callable[[int, int], None]
"""Called with pairs scored so far and all pairs."""


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Genuine and impostor pairs by score, in bins of one width over [-span, span], by group of queries.

    Attributes:
        span: Largest score in size that has a bin of its own, a power of two; scores beyond it count in the outermost.
        counts: int64 [groups, 2, bins]: impostor pairs, then genuine ones. A group's highest bin includes `span`.
    """

    span: float
    counts: np.ndarray

    @classmethod
    def empty(cls, span: float = 1.0, *, groups: int = 1, bins: int | None = None) -> ScoreHistogram:
        """No pairs yet.

        Args:
            span: A power of two; 1 for cosines.
            groups: Of queries, counted apart.
            bins: A power of two; unless given, enough for bins of `WIDTH`, and at most `MOST_BINS`.

        Raises:
            ValueError: If span or bins is not a power of two.
        """
        bins = min(int(2 * span / WIDTH), MOST_BINS) if bins is None else bins
        if np.frexp(span)[0] != 0.5 or bins < 2 or bins & (bins - 1):
            raise ValueError(f"span and bins must be powers of two, found {span} and {bins}")
        return cls(span, np.zeros((groups, 2, bins), np.int64))

    @classmethod
    def of_scores(
        cls,
        scores: np.ndarray,
        same: np.ndarray,
        *,
        groups: np.ndarray | None = None,
        span: float = 1.0,
        bins: int | None = None,
    ) -> ScoreHistogram:
        """Counts of scores at hand.

        Args:
            scores: Floats [p].
            same: Whether a pair is of one identity, bool [p].
            groups: The group of each pair, codes from 0, int64 [p]; None is one group.
            span: See `empty`.
            bins: See `empty`.

        Raises:
            ValueError: If a score is not a number.
        """
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers; leave them out")
        of = np.zeros(len(scores), np.int64) if groups is None else groups
        found = cls.empty(span, groups=int(of.max(initial=0)) + 1, bins=bins)
        at = np.clip(np.floor(np.asarray(scores, np.float64) / found.width), -found.bins // 2, found.bins // 2 - 1)
        np.add.at(found.counts, (of, np.asarray(same, np.int64), at.astype(np.int64) + found.bins // 2), 1)
        return found

    @property
    def bins(self) -> int:
        """Number of bins."""
        return self.counts.shape[2]

    @property
    def width(self) -> float:
        """Of a bin: the largest error of a threshold."""
        return 2 * self.span / self.bins

    @property
    def genuine_pairs(self) -> int:
        """Genuine pairs counted."""
        return int(self.counts[:, 1].sum())

    @property
    def impostor_pairs(self) -> int:
        """Impostor pairs counted."""
        return int(self.counts[:, 0].sum())

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """The pairs of both, for work that was split.

        Raises:
            ValueError: If bins or groups differ.
        """
        if (self.span, self.counts.shape) != (other.span, other.counts.shape):
            raise ValueError(
                f"histograms differ: spans {self.span} and {other.span}, counts of shape {list(self.counts.shape)} and "
                f"{list(other.counts.shape)}; count both with the same bins and groups"
            )
        return ScoreHistogram(self.span, self.counts + other.counts)

    def add(self, tile: ScoreTile, group: int = 0) -> None:
        """Count a tile's pairs; its scores are used up."""
        half, bins = self.bins // 2, self.bins
        # Scaling by a power of two is exact, and so is adding to whole numbers this small.
        places = tile.scores.mul_(1 / self.width).floor_().clamp_(-half, half - 1).add_(half)
        kinds = places.to(torch.int32).view(-1)
        kinds[tile.genuine] += bins
        kinds[tile.left_out] = 2 * bins
        counted = torch.bincount(kinds, minlength=2 * bins + 1)[: 2 * bins]
        self.counts[group] += counted.view(2, bins).numpy()

    def curve(self) -> ErrorCurve:
        """What each edge accepts.

        Raises:
            ValueError: If there are no genuine or no impostor pairs.
        """
        impostor, genuine = self.counts.sum(axis=0)[:, ::-1].cumsum(axis=1)
        edges = self.span - self.width * np.arange(1, self.bins + 1)
        return ErrorCurve(
            thresholds=np.concatenate([[np.inf], edges]),
            genuine_accepted=np.concatenate([[0], genuine]),
            impostor_accepted=np.concatenate([[0], impostor]),
            genuine_pairs=int(genuine[-1]),
            impostor_pairs=int(impostor[-1]),
        )

    def resampled_tar(self, weights: np.ndarray, fars: np.ndarray) -> np.ndarray:
        """TAR at each FAR if groups counted as often as weighted; every draw finds its own thresholds.

        Args:
            weights: Times a group is drawn, floats [draws, groups].
            fars: Target false accept rates [f].

        Returns:
            float64 [draws, f]; NaN where a draw holds no genuine or no impostor pair.
        """
        accepted = np.zeros((2, self.bins + 1, len(self.counts)))  # by pairs at or above an edge
        accepted[:, :-1] = self.counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1].transpose(1, 2, 0)
        impostors, genuines = weights @ accepted[0, 0], weights @ accepted[1, 0]
        tar = np.full((len(weights), len(fars)), np.nan)
        whole = (impostors > 0) & (genuines > 0)
        weights = weights[whole]
        for column, far in enumerate(fars):
            low, high = np.zeros(len(weights), np.int64), np.full(len(weights), self.bins)
            while (low < high).any():  # the lowest edge with a rate of at most far
                middle = (low + high) // 2
                allowed = far * impostors[whole] * (1 + 1e-12)  # a whole number may come out a rounding too small
                enough = np.einsum("dg,dg->d", weights, accepted[0, middle]) <= allowed
                low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
            tar[whole, column] = np.einsum("dg,dg->d", weights, accepted[1, high]) / genuines[whole]
        return tar

    def shares(self, bars: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For drawing: at most `bars` bars over the scores that occur, and the share of either kind in each.

        Returns:
            Edges float64 [b + 1], shares of genuine pairs [b] and of impostor pairs [b]; each sums to 1, or to 0 where
            there are none.
        """
        impostor, genuine = self.counts.sum(axis=0)
        filled = np.flatnonzero(impostor + genuine)
        if not len(filled):
            return np.array([-self.span, self.span]), np.zeros(1), np.zeros(1)
        first, bins_each = int(filled[0]), -(-int(filled[-1] - filled[0] + 1) // bars)
        starts = np.arange(first, int(filled[-1]) + 1, bins_each)
        edges = self.width * np.append(starts, starts[-1] + bins_each) - self.span
        genuine, impostor = (np.add.reduceat(c, starts) / max(int(c.sum()), 1) for c in (genuine, impostor))
        return edges, genuine, impostor


def score_span(queries: Rows, gallery: Rows, similarity: Similarity) -> float:
    """A power of two that no score of these vectors exceeds: 1 for cosines, else from the longest vector of each."""
    if similarity == "cosine":
        return 1.0
    bound = _longest(queries) * _longest(gallery)
    return float(2.0 ** np.ceil(np.log2(bound))) if 0 < bound < np.inf else 1.0


def _longest(rows: Rows) -> float:
    blocks = (rows.rows(a, min(a + _READ_ROWS, len(rows))) for a in range(0, len(rows), _READ_ROWS))
    squares = (np.einsum("ij,ij->i", block, block, dtype=np.float64).max() for block in blocks)
    return float(np.sqrt(max(squares, default=0.0)))


def cross_histogram(
    queries: np.ndarray,
    gallery: Rows,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray,
    *,
    similarity: Similarity = "cosine",
    groups: np.ndarray | None = None,
    on_pairs: OnPairs | None = None,
) -> ScoreHistogram:
    """Scores of every query with every gallery row but its own item.

    Args:
        queries: Floats [q, d].
        gallery: [g, d], read once, in blocks.
        query_labels: Integer codes [q]; a pair of equal codes is genuine.
        gallery_labels: Integer codes [g].
        own: The gallery row that is the query's own item, or -1, int64 [q].
        similarity: What is compared: the cosine, or the plain inner product.
        groups: Codes from 0 of queries that are counted apart, int64 [q]; None is one group.
        on_pairs: Called after each tile.

    Raises:
        ValueError: If sizes do not fit, or a value is not finite.
    """
    of = np.zeros(len(queries), np.int64) if groups is None else groups
    span = score_span(ArrayRows(queries), gallery, similarity)
    found = ScoreHistogram.empty(span, groups=int(of.max(initial=0)) + 1)
    parts = [
        rows[a : a + TILE_QUERIES]
        for rows in (np.flatnonzero(of == code) for code in range(len(found.counts)))
        for a in range(0, len(rows), TILE_QUERIES)
    ]
    tiles = score_tiles(queries, gallery, query_labels, gallery_labels, own, similarity=similarity, parts=parts)
    pairs = len(queries) * len(gallery)
    for tile, done in _counted(tiles):
        found.add(tile, int(of[tile.queries[0]]))
        if on_pairs:
            on_pairs(done, pairs)
    return found


def within_histogram(
    rows: Rows, labels: np.ndarray, *, similarity: Similarity = "cosine", on_pairs: OnPairs | None = None
) -> ScoreHistogram:
    """Scores of every two rows of one set, each pair once and no row with itself; only blocks are in memory.

    Args:
        rows: [n, d].
        labels: Integer codes [n].
        similarity: See `cross_histogram`.
        on_pairs: See `cross_histogram`.
    """
    starts = range(0, len(rows), _READ_ROWS)
    found = ScoreHistogram.empty(score_span(rows, rows, similarity))
    pairs, before = len(rows) * (len(rows) - 1) // 2, 0
    for start in starts:
        mine = np.arange(start, min(start + _READ_ROWS, len(rows)))
        block = rows.rows(start, int(mine[-1]) + 1)
        tiles = score_tiles(
            block, rows, labels[mine], labels, mine, similarity=similarity, first_row=start, later_only=True
        )
        for tile, done in _counted(tiles):
            found.add(tile)
            if on_pairs:
                on_pairs(before + done, pairs)
        before += int((len(rows) - 1 - mine).sum())
    return found


def _counted(tiles: Iterator[ScoreTile]) -> Iterator[tuple[ScoreTile, int]]:
    done = 0
    for tile in tiles:
        done += tile.scores.numel() - len(tile.left_out)
        yield tile, done
