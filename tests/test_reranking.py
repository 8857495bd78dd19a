"""Re-ranking against a literal walk through both steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.metrics import sides
from compat.metrics.relevance import Relevance
from compat.metrics.reranking import reranked_recall
from compat.metrics.retrieval import TIE, relevant_ranks
from compat.metrics.sides import Side
from compat.neighbors import ArrayRows
from stores.space import Similarity


def side(queries, gallery, similarity: Similarity = "cosine"):
    return Side(queries, ArrayRows(gallery), similarity)


def slow_recall(proposed, ranked, relevance, depth):
    """0 or 1 for each query from two tables of scores [q, g]."""
    recalls = []
    for i in range(len(proposed)):
        relevant = set(relevance.rows[relevance.offsets[i] : relevance.offsets[i + 1]].tolist())
        if not relevant:
            recalls.append(np.nan)
            continue
        seen = [row for row in range(proposed.shape[1]) if row != relevance.excluded[i]]
        # A relevant row is behind every irrelevant one within a tie; equals go by what hurts.
        key = {row: proposed[i, row] - (TIE * 1.001 if row in relevant else 0) for row in seen}
        candidates = sorted(seen, key=lambda row: (-key[row], ranked[i, row] * (1 if row in relevant else -1)))[:depth]
        right = max((ranked[i, row] for row in candidates if row in relevant), default=-np.inf)
        wrong = max((ranked[i, row] for row in candidates if row not in relevant), default=-np.inf)
        recalls.append(float(right - TIE > wrong))
    return recalls


@st.composite
def problems(draw):
    """Small whole numbers, whose products are exact: ties are ties, to the last bit."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, rows, asked = draw(st.integers(1, 4)), draw(st.integers(1, 25)), draw(st.integers(1, 7))
    vectors = [generator.integers(-2, 3, size=(n, dim)).astype(np.float32) for n in (asked, rows, asked, rows)]
    own = np.where(generator.random(asked) < 0.5, generator.integers(rows, size=asked), -1)
    labels, query_labels = generator.integers(6, size=rows), generator.integers(7, size=asked)
    return *vectors, Relevance.by_label(query_labels, labels, own)


@settings(max_examples=150, deadline=None)
@given(problem=problems(), block=st.integers(1, 30), several=st.integers(1, 5))
def test_re_ranking_follows_the_definition_in_blocks_of_any_size(problem, block, several):
    old_queries, old, new_queries, new, relevance = problem
    proposing, ranking = (
        side(queries, gallery, "inner_product") for queries, gallery in ((old_queries, old), (new_queries, new))
    )
    depths = (1, 3, 10, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "GALLERY_ROWS", block)
        patch.setattr(sides, "QUERY_ROWS", several)
        found = reranked_recall(proposing, ranking, relevance, depths)
    for depth in depths:
        expected = slow_recall(old_queries @ old.T, new_queries @ new.T, relevance, depth)
        np.testing.assert_array_equal(found[depth], expected)


def test_ends():
    generator = np.random.default_rng(0)
    labels, query_labels = np.repeat(np.arange(30), 6), np.repeat(np.arange(30), 2)
    people = generator.normal(size=(30, 8))

    def seen(of, noise):
        return people[of] + noise * generator.normal(size=(len(of), 8))

    old, new = (side(seen(query_labels, noise), seen(labels, noise)) for noise in (1.1, 0.7))
    relevance = Relevance.by_label(query_labels, labels, np.full(60, -1))

    def recall(one):
        ranks = relevant_ranks(one.queries, one.gallery, relevance)
        return np.minimum.reduceat(ranks, relevance.offsets[:-1]) == 1

    found = reranked_recall(old, new, relevance, (1, 20, 180, 1000))
    np.testing.assert_array_equal(found[1], recall(old))  # one candidate is what the old index finds
    np.testing.assert_array_equal(found[180], recall(new))  # all candidates are what the new model finds
    np.testing.assert_array_equal(found[1000], found[180])
    # What neither model finds alone is found by neither: both must have it near.
    assert found[20].mean() > found[1].mean() + 0.1


def test_an_index_of_one_point_proposes_nothing_relevant():
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(40, 4))
    constant = Side(np.ones((40, 4)), ArrayRows(np.ones((40, 4))))
    relevance = Relevance.by_item(np.arange(40))
    found = reranked_recall(constant, side(vectors, vectors), relevance, (39, 40))
    assert not found[39].any()
    assert found[40].all()


def test_what_does_not_fit_is_refused():
    one = side(np.ones((2, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="numbers of candidates must be at least 1, found \\[0, 10\\]"):
        reranked_recall(one, one, Relevance.by_item(np.array([0, 1])), (0, 10))
    with pytest.raises(ValueError, match="relevance is for 1 queries, found 2"):
        reranked_recall(one, one, Relevance.by_item(np.array([0])))
