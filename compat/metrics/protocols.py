"""Published ways of testing one-to-one comparison: lists of pairs in ten folds, and templates of several images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compat.neighbors import comparable_rows, unit_rows
from stores.space import Similarity

FOLDS = 10
_BLOCK_ROWS = 8192


def pair_scores(
    left: np.ndarray, right: np.ndarray, rows: np.ndarray, others: np.ndarray, *, similarity: Similarity = "cosine"
) -> np.ndarray:
    """Similarity of listed pairs, float32 [p].

    Args:
        left: Vectors of the first of each pair, floats [n, d].
        right: Vectors of the second, floats [m, d]; the same array where both are of one set.
        rows: Row numbers in `left`, int64 [p].
        others: Row numbers in `right`, int64 [p].
        similarity: The cosine, or the plain inner product.
    """
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        a, b = comparable_rows(left[rows[part]], similarity), comparable_rows(right[others[part]], similarity)
        scores[part] = np.einsum("pd,pd->p", a, b)
    return scores


@dataclass(frozen=True)
class FoldAccuracy:
    """Share of pairs told right in each fold, by the threshold that is best on the others.

    Attributes:
        accuracies: One a fold, each in [0, 1].
        thresholds: The threshold each fold was judged by.
    """

    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return float(np.mean(self.accuracies))

    @property
    def standard_error(self) -> float:
        """Standard deviation between folds over the root of their number, as published beside the mean."""
        return float(np.std(self.accuracies, ddof=1) / np.sqrt(len(self.accuracies)))

    def to_dict(self) -> dict[str, object]:
        """Mean, standard error, accuracies and thresholds."""
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "accuracies": list(self.accuracies),
            "thresholds": list(self.thresholds),
        }


def fold_accuracy(scores: np.ndarray, same: np.ndarray, folds: np.ndarray | None = None) -> FoldAccuracy:
    """Accuracy on pair lists: each fold judged by the threshold that tells most pairs of the others right.

    A pair is accepted when its score is at least the threshold. Thresholds tried lie halfway between neighbouring
    scores, and at the ends; of equally good ones the highest is taken.

    Args:
        scores: Floats [p].
        same: Whether a pair is of one identity, bool [p].
        folds: The fold of each pair, any codes [p]; None cuts the list, in its order, into ten equal parts.

    Raises:
        ValueError: If lengths differ, a score is not a number, or there are fewer than two folds.

    Source: Huang et al., "Labeled Faces in the Wild", University of Massachusetts 07-49, 2007.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    if folds is None:
        folds = np.arange(len(scores)) * FOLDS // max(len(scores), 1)
    if not len(scores) == len(same) == len(folds):
        raise ValueError(f"found {len(scores)} scores, {len(same)} flags and {len(folds)} folds; expected one per pair")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers; leave them out")
    codes = np.unique(folds)
    if len(codes) < 2:
        raise ValueError(f"found {len(codes)} folds of {len(scores)} pairs, expected at least two; give more pairs")
    accuracies, thresholds = [], []
    for code in codes:
        test = folds == code
        threshold = _best_threshold(scores[~test], same[~test])
        accuracies.append(float(np.mean((scores[test] >= threshold) == same[test])))
        thresholds.append(threshold)
    return FoldAccuracy(tuple(accuracies), tuple(thresholds))


def _best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    values, places = np.unique(scores, return_inverse=True)
    genuine = np.bincount(places[same], minlength=len(values))
    impostor = np.bincount(places[~same], minlength=len(values))
    # Right when the first i values are rejected: impostor pairs below, genuine pairs from there on.
    right = np.concatenate([[0], np.cumsum(impostor)]) + same.sum() - np.concatenate([[0], np.cumsum(genuine)])
    best = len(values) - int(np.argmax(right[::-1]))
    if best == 0:
        return float(values[0])
    if best == len(values):
        return float(np.nextafter(values[-1], np.inf))
    middle = (values[best - 1] + values[best]) / 2
    return float(middle if middle > values[best - 1] else values[best])


@dataclass(frozen=True, eq=False)
class Templates:
    """One vector for each set of images.

    Attributes:
        vectors: Unit length, float32 [t, d].
        ids: Template ids in order of first appearance [t].
    """

    vectors: np.ndarray
    ids: np.ndarray


def templates(vectors: np.ndarray, template_ids: np.ndarray, media_ids: np.ndarray | None = None) -> Templates:
    """Mean of each template's media means, scaled to unit length: a long video then weighs no more than a photograph.

    Args:
        vectors: Floats [n, d], taken as they are; scale them to unit length first where lengths mean nothing.
        template_ids: The template of each vector [n].
        media_ids: The photograph or video each vector is from [n]; None lets every vector count the same.

    Raises:
        ValueError: If lengths differ.

    Source: Whitelam et al., "IARPA Janus Benchmark-B Face Dataset", CVPR Workshops 2017.
    """
    media = np.arange(len(vectors)) if media_ids is None else np.unique(media_ids, return_inverse=True)[1]
    if not len(vectors) == len(template_ids) == len(media):
        raise ValueError(f"found {len(vectors)} vectors, {len(template_ids)} template ids and {len(media)} media ids")
    _, first, codes = np.unique(template_ids, return_index=True, return_inverse=True)
    ranks = np.argsort(np.argsort(first))  # of a template by its first row
    members = np.unique(np.stack([ranks[codes], media], axis=1), axis=0, return_inverse=True)
    media_means = _means(np.asarray(vectors, np.float64), members[1].reshape(-1), len(members[0]))
    means = _means(media_means, members[0][:, 0], len(first))
    return Templates(unit_rows(means), np.asarray(template_ids)[np.sort(first)])


def _means(vectors: np.ndarray, codes: np.ndarray, groups: int) -> np.ndarray:
    sums = np.zeros((groups, vectors.shape[1]))
    np.add.at(sums, codes, vectors)
    return sums / np.bincount(codes, minlength=groups)[:, None]
