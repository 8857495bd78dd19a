"""A gallery of per-label means against means computed anew for each query."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.metrics import label_means as module
from compat.metrics.label_means import label_means, mean_ranks
from compat.metrics.retrieval import TIE, ArrayRows, retrieval_scores


def unit(vectors):
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def slow_ranks(queries, query_labels, gallery, labels, own, similarity):
    """Rank of each query's label among means that never hold the query's own item; NaN where there is none."""
    form = unit if similarity == "cosine" else np.asarray
    found = []
    for query, label, mine in zip(form(queries), query_labels, own, strict=True):
        scores = {}
        for other in set(labels.tolist()):
            # Only the right label's mean leaves the own item out; alone in its label, it hides the label.
            rows = [row for row in range(len(labels)) if labels[row] == other and (other != label or row != mine)]
            if rows and rows != [mine]:
                scores[other] = query @ form(np.mean(form(gallery[rows]), axis=0))
        if label in scores:
            found.append(1 + sum(s >= scores[label] - TIE for other, s in scores.items() if other != label))
        else:
            found.append(np.nan)
    return found


@given(seed=st.integers(0, 2**32), similarity=st.sampled_from(["cosine", "inner_product"]), block=st.integers(1, 30))
def test_the_own_item_is_never_in_the_mean_that_is_found(seed, similarity, block):
    generator = np.random.default_rng(seed)
    rows, asked, dim = generator.integers(1, 25), generator.integers(1, 9), generator.integers(2, 6)
    gallery, queries = generator.normal(size=(rows, dim)), generator.normal(size=(asked, dim))
    labels = generator.integers(generator.integers(1, 8), size=rows)
    own = np.where(generator.random(asked) < 0.6, generator.integers(rows, size=asked), -1)
    queries[own >= 0] = gallery[own[own >= 0]]
    query_labels = np.where(own >= 0, labels[own], generator.integers(9, size=asked))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GALLERY_ROWS", block)
        ranks, relevance = mean_ranks(queries, query_labels, ArrayRows(gallery), labels, own, similarity=similarity)
    first = 1 / retrieval_scores(ranks, relevance).reciprocal_rank
    np.testing.assert_array_equal(first, slow_ranks(queries, query_labels, gallery, labels, own, similarity))


def test_a_query_would_find_itself_in_its_own_mean():
    gallery = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0, 1], [0.5, 0, 1]])
    labels = np.array([0, 0, 1, 1])
    # With itself, its label's mean is at cosine 0.71; without, at 0, behind the other label's 0.45.
    for own, rank in ((-1, 1), (0, 2)):
        found, _ = mean_ranks(gallery[:1], labels[:1], ArrayRows(gallery), labels, np.array([own]))
        assert found.tolist() == [rank]


def test_means_are_of_directions_under_the_cosine():
    gallery = np.array([[8.0, 0], [0, 2], [3, 3]])
    means = label_means(ArrayRows(gallery), np.array([5, 5, 2]))
    assert means.labels.tolist() == [2, 5]
    assert means.sizes.tolist() == [1, 2]
    np.testing.assert_allclose(means.rows, [[0.5**0.5, 0.5**0.5], [0.5, 0.5]], rtol=1e-6)
    plain = label_means(ArrayRows(gallery), np.array([5, 5, 2]), "inner_product")
    np.testing.assert_allclose(plain.rows, [[3, 3], [4, 1]])


def test_a_label_for_each_row_is_needed():
    with pytest.raises(ValueError, match="found 1 labels, 2 rows"):
        label_means(ArrayRows(np.ones((2, 2))), np.array([0]))
    with pytest.raises(ValueError, match="gallery row 1 holds NaN"):
        label_means(ArrayRows(np.array([[1.0], [np.nan]])), np.array([0, 0]))
