"""Open-set identification: a probe is searched for in a gallery that may not hold its identity.

A mated probe has an item of its identity in the gallery, its own left out; an unknown probe has none. A search that
returns whoever scores at least a threshold makes a false positive where an unknown probe's best score reaches it. FPIR
is the share of unknown probes that do. TPIR is the share of mated probes whose best mate both reaches the threshold and
is among the first `rank` items. Ties go against the probe: an item of another identity that scores as high as the mate,
to within `TIE`, comes before it.

Source: ISO/IEC 19795-1:2021; Grother and Ngan, "Face Recognition Vendor Test", NIST Interagency Report 8009, 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from compat.metrics.score_histogram import OnPairs
from compat.metrics.score_tiles import score_tiles
from compat.metrics.verification import ErrorCurve
from compat.neighbors import Rows
from stores.space import Similarity

TIE = np.float32(1e-6)
"""Scores closer than this are tied: the product of equal vectors differs by a rounding with their place."""


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """What searching for each probe found.

    Attributes:
        mate: Score of its best mate, float32 [q]; -inf where it has none, which makes the probe unknown.
        top: Best score of an item of another identity, float32 [q]; -inf where there is none.
        bar: What a mate must exceed to be among the first `rank` items, float32 [q]: the score of the rank-th best item
            of another identity, or -inf where there are fewer.
    """

    mate: np.ndarray
    top: np.ndarray
    bar: np.ndarray

    @property
    def unknown(self) -> np.ndarray:
        """Whether a probe has no mate in the gallery, bool [q]."""
        return self.mate == -np.inf

    @property
    def identified(self) -> np.ndarray:
        """Whether a mate is among the first items, whatever the threshold, bool [q]."""
        return ~self.unknown & (self.mate - TIE > self.bar)

    @property
    def decisive(self) -> np.ndarray:
        """The highest threshold that a probe counts at, float32 [q]: positive at or below it, -inf for never."""
        return np.where(self.unknown, self.top, np.where(self.identified, self.mate, -np.inf))

    def curve(self) -> ErrorCurve:
        """FPIR as `far` and TPIR as `tar` by threshold: mated probes are its genuine pairs, unknown ones impostors.

        Raises:
            ValueError: If there is no mated or no unknown probe.
        """
        scores, unknown = self.decisive, self.unknown
        if unknown.all() or not unknown.any():
            raise ValueError(
                f"found {int((~unknown).sum())} mated and {int(unknown.sum())} unknown probes, expected both; "
                "withhold some identities from the gallery"
            )
        whole = ErrorCurve.of_scores(scores, ~unknown)
        reached = whole.thresholds > -np.inf  # no threshold lets in who was never found
        return ErrorCurve(
            whole.thresholds[reached],
            whole.genuine_accepted[reached],
            whole.impostor_accepted[reached],
            whole.genuine_pairs,
            whole.impostor_pairs,
        )

    def resampled_tpir(self, weights: np.ndarray, fpirs: np.ndarray) -> np.ndarray:
        """TPIR at each FPIR if probes counted as often as weighted; every draw finds its own thresholds.

        Args:
            weights: Times a probe is drawn, floats [draws, q].
            fpirs: Target false positive rates [f].

        Returns:
            float64 [draws, f]; NaN where a draw holds no mated or no unknown probe.
        """
        order = np.argsort(-self.decisive, kind="stable")
        scores, unknown = self.decisive[order], self.unknown[order]
        last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True) & (scores > -np.inf))
        weights = weights[:, order]
        unknowns, mated = weights[:, unknown].sum(axis=1), weights[:, ~unknown].sum(axis=1)
        positive = np.pad(np.cumsum(weights * unknown, axis=1)[:, last], ((0, 0), (1, 0)))
        right = np.pad(np.cumsum(weights * ~unknown, axis=1)[:, last], ((0, 0), (1, 0)))
        whole = (unknowns > 0) & (mated > 0)
        tpir = np.empty((len(weights), len(fpirs)))
        for column, fpir in enumerate(fpirs):
            allowed = fpir * unknowns * (1 + 1e-12)  # a whole number may come out a rounding too small
            lowest = (positive <= allowed[:, None]).sum(axis=1) - 1
            reached = right[np.arange(len(right)), lowest]
            tpir[:, column] = np.where(whole, reached / np.maximum(mated, 1), np.nan)
        return tpir


def withheld_identities(
    query_labels: np.ndarray, gallery_labels: np.ndarray, *, share: float = 0.5, seed: int = 0
) -> np.ndarray:
    """Which gallery rows stay when a share of the probes' identities is taken out whole, bool [g].

    Args:
        query_labels: Integer codes [q].
        gallery_labels: Integer codes [g].
        share: Of the identities that are both in the gallery and asked for; at least one goes and one stays.
        seed: The same seed takes out the same identities.

    Raises:
        ValueError: If fewer than two identities are in both.
    """
    shared = np.intersect1d(query_labels, gallery_labels)
    if len(shared) < 2:
        raise ValueError(f"found {len(shared)} identities both in the gallery and asked for, expected at least two")
    size = int(np.clip(round(share * len(shared)), 1, len(shared) - 1))
    return ~np.isin(gallery_labels, np.random.default_rng(seed).choice(shared, size, replace=False))


def search_probes(
    probes: np.ndarray,
    gallery: Rows,
    probe_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray,
    *,
    enrolled: np.ndarray | None = None,
    similarity: Similarity = "cosine",
    rank: int = 1,
    on_pairs: OnPairs | None = None,
) -> ProbeScores:
    """Search for every probe in the gallery, in blocks.

    Args:
        probes: Floats [q, d].
        gallery: [g, d].
        probe_labels: Integer codes [q].
        gallery_labels: Integer codes [g].
        own: The gallery row that is the probe's own item, left out of its search, or -1, int64 [q].
        enrolled: Whether a gallery row takes part, bool [g]; None takes all.
        similarity: What items are ranked by.
        rank: A mate counts as found among so many first items.
        on_pairs: Called after each tile with pairs scored and all pairs.

    Raises:
        ValueError: If sizes do not fit, a value is not finite, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank counts from 1, found {rank}")
    mate = torch.full((len(probes),), -torch.inf)
    others = torch.full((len(probes), rank), -torch.inf)
    tiles = score_tiles(probes, gallery, probe_labels, gallery_labels, own, similarity=similarity, kept=enrolled)
    done, pairs = 0, len(probes) * (len(gallery) if enrolled is None else int(enrolled.sum()))
    for tile in tiles:
        rows, flat = torch.from_numpy(tile.queries), tile.scores.view(-1)
        of = rows[torch.div(tile.genuine, tile.scores.shape[1], rounding_mode="floor")]
        mate.scatter_reduce_(0, of, flat[tile.genuine], "amax")
        flat[tile.genuine] = -torch.inf
        flat[tile.left_out] = -torch.inf
        best = torch.topk(tile.scores, min(rank, tile.scores.shape[1]), dim=1).values
        others[rows] = torch.topk(torch.cat([others[rows], best], dim=1), rank, dim=1).values
        done += tile.scores.numel()
        if on_pairs:
            on_pairs(done, pairs)
    return ProbeScores(mate.numpy(), others[:, 0].numpy(), others[:, -1].numpy())
