"""How good embeddings are, from arrays alone: pair accuracy, true accepts at false accepts, and recall.

Shapes: n items, d embedding dimension, p pairs.
"""

import numpy as np

BLOCK_ROWS = 1024  # bounds the memory of a similarity block at 1024 x n


def sample_pairs(labels: np.ndarray, *, limit: int = 100_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many pairs of one identity as pairs of two: all pairs of one identity where they are at most `limit`.

    Args:
        labels: [n], the identity of each item.
        limit: most pairs of either kind.
        seed: of the draw.

    Returns:
        Row numbers int64 [p, 2] and whether each pair is of one identity, bool [p].

    Raises:
        ValueError: where no two items share an identity, or all do.
    """
    identity = np.unique(labels, return_inverse=True)[1].reshape(-1)
    order = np.argsort(identity, kind="stable")
    counts = np.bincount(identity)
    pair_counts = counts * (counts - 1) // 2
    if pair_counts.sum() == 0 or len(counts) < 2:
        raise ValueError(
            f"found {len(identity)} items of {len(counts)} identities; pairs need two items of one identity and two "
            "identities; give more images"
        )
    generator = np.random.default_rng(seed)
    total = int(pair_counts.sum())
    chosen = np.arange(total) if total <= limit else generator.integers(total, size=limit)
    ends = np.cumsum(pair_counts)
    owner = np.searchsorted(ends, chosen, side="right")
    rank = chosen - (ends - pair_counts)[owner]
    # pairs (a, b) with a < b of one identity are ranked by b, then a: rank = b (b - 1) / 2 + a
    later = ((1 + np.sqrt(1 + 8 * rank)) // 2).astype(np.int64)
    earlier = rank - later * (later - 1) // 2
    start = (np.cumsum(counts) - counts)[owner]
    same = np.stack([order[start + earlier], order[start + later]], axis=1)
    different = np.empty((0, 2), dtype=np.int64)
    while len(different) < len(same):
        drawn = generator.integers(len(identity), size=(2 * len(same), 2))
        different = np.concatenate([different, drawn[identity[drawn[:, 0]] != identity[drawn[:, 1]]]])
    pairs = np.concatenate([same, different[: len(same)]])
    return pairs, np.arange(len(pairs)) < len(same)


def pair_accuracy(
    embeddings: np.ndarray, labels: np.ndarray, *, folds: int = 10, limit: int = 100_000, seed: int = 0
) -> float:
    """Return the share of pairs told right, same identity or not, by a threshold on the cosine, in [0, 1].

    Each fold is judged by the threshold that is best on the others, the protocol of Huang et al., "Labeled Faces in
    the Wild", 2007.

    Args:
        embeddings: [n, d], any norm.
        labels: [n], the identity of each row.
        folds: number of folds.
        limit: most pairs of either kind; more are sampled.
        seed: of the pairs and the folds.

    Raises:
        ValueError: where no two items share an identity, or all do.
    """
    pairs, same = sample_pairs(labels, limit=limit, seed=seed)
    fold = np.random.default_rng(seed).permutation(len(pairs)) % folds
    return fold_accuracy(pair_cosines(embeddings, pairs), same, fold)


def pair_cosines(embeddings: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair, float32 [p].

    Args:
        embeddings: [n, d], any norm.
        pairs: row numbers int64 [p, 2].
    """
    unit = _normalize(embeddings)
    blocks = [np.einsum("pd,pd->p", unit[rows[:, 0]], unit[rows[:, 1]]) for rows in _blocks(pairs, BLOCK_ROWS)]
    return np.concatenate([np.empty(0, dtype=np.float32), *blocks])


def fold_accuracy(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> float:
    """Return the share of pairs told right when each fold is judged by the threshold that is best on the others.

    Args:
        scores: [p], higher for pairs that look like one identity.
        same: bool [p], whether they are of one.
        fold: int [p], the fold of each pair; at least two folds.
    """
    right = 0
    for held_out in np.unique(fold):
        test = fold == held_out
        if not test.all():
            threshold = best_threshold(scores[~test], same[~test])
            right += int(((scores[test] >= threshold) == same[test]).sum())
    return right / len(scores)


def list_folds(pairs: int, folds: int = 10) -> np.ndarray:
    """Return the fold of each of `pairs` listed pairs, in runs of equal length (to one), int64 [p].

    Published lists, as that of Huang et al., "Labeled Faces in the Wild", 2007, store their folds one after the other.
    """
    return np.arange(pairs) * min(folds, pairs) // max(1, pairs)


def true_accept_rate(scores: np.ndarray, same: np.ndarray, false_accept_rate: float) -> float:
    """Return the share of pairs of one identity whose score is above that of all but a few pairs of two (TAR at FAR).

    The threshold is the lowest at which at most `false_accept_rate` of the pairs of two identities are accepted.

    Args:
        scores: [p].
        same: bool [p].
        false_accept_rate: from 0 to 1.

    Raises:
        ValueError: without pairs of either kind, or for a rate that these pairs cannot resolve, below one of them.
    """
    negatives = np.sort(scores[~same])[::-1]
    if not len(negatives) or not same.any():
        raise ValueError(f"found {same.sum()} pairs of one identity and {len(negatives)} of two, expected some of both")
    accepted = int(np.floor(false_accept_rate * len(negatives) + 1e-9))  # 0.001 * 3000 must be 3, not 2.9999
    if accepted < 1:
        raise ValueError(
            f"a false accept rate of {false_accept_rate} needs {int(np.ceil(1 / false_accept_rate))} pairs of two "
            f"identities, found {len(negatives)}; give more pairs or a higher rate"
        )
    # the next negative must be refused, and with it all that score no higher
    refused = negatives[accepted] if accepted < len(negatives) else -np.inf
    return float((scores[same] > refused).mean())


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """Return the threshold that tells most pairs right when `score >= threshold` means the same identity.

    Args:
        scores: [p].
        same: bool [p].
    """
    order = np.argsort(scores)
    scores, same = scores[order], same[order]
    # accepted from position k on: right are the different pairs before k and the same pairs from k on
    right = np.concatenate([[0], np.cumsum(~same)]) + np.concatenate([np.cumsum(same[::-1])[::-1], [0]])
    possible = np.concatenate([[True], scores[1:] > scores[:-1], [True]])  # equal scores fall on one side together
    cut = int(np.argmax(np.where(possible, right, -1)))
    lower = scores[cut - 1] if cut > 0 else scores[0] - 1.0
    upper = scores[cut] if cut < len(scores) else scores[-1] + 1.0
    return float((lower + upper) / 2)


def nearest_neighbor_recall(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of items whose nearest other item, by cosine, has their identity, in [0, 1].

    Items that are alone in their identity are searched among but not asked for.

    Args:
        embeddings: [n, d], any norm.
        labels: [n].

    Raises:
        ValueError: where no two items share an identity.
    """
    identity, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    identity = identity.reshape(-1)
    queries = np.flatnonzero(counts[identity] > 1)
    if len(queries) == 0:
        raise ValueError("no two items share an identity; recall needs at least two images of one identity")
    unit = _normalize(embeddings)
    right = 0
    for rows in _blocks(queries, BLOCK_ROWS):
        cosines = unit[rows] @ unit.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        right += int((identity[cosines.argmax(axis=1)] == identity[rows]).sum())
    return right / len(queries)


def _normalize(embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float32)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def _blocks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
