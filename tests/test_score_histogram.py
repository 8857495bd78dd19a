"""Counts in bins against the scores themselves: exact at the edges, and one width off at most between them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.metrics import score_histogram, score_tiles
from compat.metrics.score_histogram import ScoreHistogram, cross_histogram, score_span, within_histogram
from compat.metrics.score_tiles import score_tiles as tiles_of
from compat.metrics.verification import ErrorCurve
from compat.neighbors import ArrayRows


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of a few rows, so that small problems have edges everywhere."""
    monkeypatch.setattr(score_tiles, "TILE_GALLERY", 7)
    monkeypatch.setattr(score_histogram, "TILE_QUERIES", 4)
    monkeypatch.setattr(score_tiles, "TILE_QUERIES", 4)
    monkeypatch.setattr(score_histogram, "_READ_ROWS", 10)


def problem(seed=0, queries=23, rows=40, identities=6, dim=5):
    """Vectors of quarters, whose products have no rounding; some queries are gallery items."""
    generator = np.random.default_rng(seed)
    gallery = generator.integers(-6, 7, size=(rows, dim)) / 4
    labels = generator.integers(identities, size=rows)
    own = np.where(np.arange(queries) % 3 == 0, generator.permutation(rows)[:queries], -1)
    query_labels = np.where(own >= 0, labels[own], generator.integers(identities + 2, size=queries))
    vectors = np.where(own[:, None] >= 0, gallery[own], generator.integers(-6, 7, size=(queries, dim)) / 4)
    return vectors, gallery, query_labels, labels, own


def slow_pairs(queries, gallery, query_labels, labels, own):
    """Scores and flags of every pair that counts, and its query."""
    found = [
        (float(q @ g), query_labels[i] == labels[j], i)
        for i, q in enumerate(queries)
        for j, g in enumerate(gallery)
        if own[i] != j
    ]
    scores, same, query = zip(*found, strict=True)
    return np.array(scores), np.array(same), np.array(query)


@given(seed=st.integers(0, 2**32), bins=st.sampled_from([16, 64, 1024]))
def test_every_edge_accepts_exactly_the_scores_at_or_above_it(seed, bins):
    generator = np.random.default_rng(seed)
    scores = np.clip(generator.normal(size=300) / 2, -1, 1)
    scores[:40] = np.round(scores[:40] * 8) / 8  # some on edges
    same = generator.random(300) < 0.3
    curve = ScoreHistogram.of_scores(scores, same, bins=bins).curve()
    assert len(curve.thresholds) == bins + 1
    for i, edge in enumerate(curve.thresholds):
        assert curve.genuine_accepted[i] == sum(scores[same] >= edge)
        assert curve.impostor_accepted[i] == sum(scores[~same] >= edge)


@given(seed=st.integers(0, 2**32), bins=st.sampled_from([16, 256, 65536]), far=st.floats(0.01, 0.9))
def test_the_stated_error_of_thresholds_and_rates(seed, bins, far):
    generator = np.random.default_rng(seed)
    same = generator.random(400) < 0.5
    scores = np.clip(generator.normal(size=400) / 4 + 0.3 * same, -1, 1)
    histogram = ScoreHistogram.of_scores(scores, same, bins=bins)
    exact, found = ErrorCurve.of_scores(scores, same).at_far(far), histogram.curve().at_far(far)
    rejected = scores[~same & (scores < exact.threshold)].max()  # what must stay out
    assert rejected < found.threshold <= rejected + histogram.width
    in_bin = (scores >= found.threshold - histogram.width) & (scores < found.threshold)
    assert 0 <= exact.far - found.far <= np.mean(in_bin[~same]) + 1e-12
    assert 0 <= exact.tar - found.tar <= np.mean(in_bin[same]) + 1e-12
    assert found.far == np.mean(scores[~same] >= found.threshold)
    assert found.tar == pytest.approx(np.mean(scores[same] >= found.threshold))


@pytest.mark.parametrize("seed", range(4))
def test_streamed_pairs_are_counted_like_those_of_a_loop(small_tiles, seed):
    queries, gallery, query_labels, labels, own = problem(seed)
    groups = np.arange(23) % 3
    done = []
    found = cross_histogram(
        queries,
        ArrayRows(gallery),
        query_labels,
        labels,
        own,
        similarity="inner_product",
        groups=groups,
        on_pairs=lambda *told: done.append(told),
    )
    scores, same, query = slow_pairs(queries, gallery, query_labels, labels, own)
    expected = ScoreHistogram.of_scores(scores, same, groups=groups[query], span=found.span)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert np.abs(scores).max() <= found.span
    assert (found.genuine_pairs, found.impostor_pairs) == (same.sum(), (~same).sum())
    assert found.genuine_pairs > 0
    assert done[-1] == (len(scores), 23 * 40)


@pytest.mark.parametrize("rows", [1, 2, 10, 11, 37])
def test_pairs_within_a_set_are_counted_once(small_tiles, rows):
    _, gallery, _, labels, _ = problem(1, queries=min(23, rows), rows=rows)
    done = []
    found = within_histogram(
        ArrayRows(gallery), labels, similarity="inner_product", on_pairs=lambda *told: done.append(told)
    )
    pairs = [(gallery[i] @ gallery[j], labels[i] == labels[j]) for i in range(rows) for j in range(i)]
    scores, same = np.array(pairs).reshape(-1, 2).T
    np.testing.assert_array_equal(
        found.counts, ScoreHistogram.of_scores(scores, same.astype(bool), span=found.span).counts
    )
    assert done[-1] == (len(pairs), len(pairs))


def test_cosines_of_many_rows_agree_with_exact_ones():
    generator = np.random.default_rng(5)
    people = generator.normal(size=(60, 32))
    query_labels, labels = generator.integers(60, size=700), generator.integers(60, size=9000)
    queries, gallery = (people[who] + 1.2 * generator.normal(size=(len(who), 32)) for who in (query_labels, labels))
    gallery[17], labels[17] = queries[3] * 5, query_labels[3]  # a cosine of 1, perhaps a rounding more
    found = cross_histogram(queries, ArrayRows(gallery), query_labels, labels, np.full(700, -1))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    exact = ErrorCurve.of_scores((unit[0] @ unit[1].T).ravel(), (query_labels[:, None] == labels).ravel())
    assert found.counts[0, 1, -1] >= 1
    assert (found.genuine_pairs, found.impostor_pairs) == (exact.genuine_pairs, exact.impostor_pairs)
    for far in (1e-6, 1e-4, 1e-3, 1e-2, 0.5):
        mine, theirs = found.curve().at_far(far), exact.at_far(far)
        assert mine.threshold == pytest.approx(theirs.threshold, abs=found.width + 1e-6)
        assert mine.tar == pytest.approx(theirs.tar, abs=2e-4)
        assert theirs.far * 0.999 - 2e-6 <= mine.far <= far
    assert found.curve().equal_error_rate() == pytest.approx(exact.equal_error_rate(), abs=2e-4)


def test_rows_that_are_not_there_are_not_scored(small_tiles):
    queries, gallery, query_labels, labels, own = problem(3)
    kept = np.arange(40) % 3 > 0
    kept[7:14] = False  # a whole block
    seen = set()
    for tile in tiles_of(queries, ArrayRows(gallery), query_labels, labels, own, kept=kept, similarity="inner_product"):
        columns = tile.scores.shape[1]
        for place in tile.genuine.tolist():
            score = float(tile.scores.view(-1)[place])
            seen.add((int(tile.queries[place // columns]), score))
    expected = {
        (i, float(queries[i] @ gallery[j]))
        for i in range(23)
        for j in np.flatnonzero(kept)
        if query_labels[i] == labels[j] and own[i] != j
    }
    assert seen == expected


def test_draws_of_groups_are_those_of_repeated_pairs():
    generator = np.random.default_rng(6)
    same = generator.random(3000) < 0.4
    scores = np.clip(generator.normal(size=3000) / 5 + 0.3 * same, -1, 1)
    groups = generator.integers(8, size=3000)
    histogram = ScoreHistogram.of_scores(scores, same, groups=groups, bins=512)
    weights = generator.multinomial(8, np.full(8, 1 / 8), size=20).astype(float)
    fars = [0.5, 0.1, 0.01]
    found = histogram.resampled_tar(weights, np.array(fars))
    for draw, row in zip(weights, found, strict=True):
        pairs = np.repeat(np.arange(3000), draw[groups].astype(int))
        curve = ScoreHistogram.of_scores(scores[pairs], same[pairs], bins=512).curve()
        assert row.tolist() == pytest.approx([curve.at_far(far).tar for far in fars])
    np.testing.assert_allclose(
        histogram.resampled_tar(np.ones((1, 8)), np.array(fars))[0],
        [histogram.curve().at_far(far).tar for far in fars],
    )
    assert np.isnan(histogram.resampled_tar(np.zeros((1, 8)), np.array(fars))).all()


def test_bars_for_drawing_hold_every_pair():
    generator = np.random.default_rng(7)
    same = generator.random(5000) < 0.2
    scores = np.clip(generator.normal(size=5000) / 20 + 0.3 * same, -1, 1)
    edges, genuine, impostor = ScoreHistogram.of_scores(scores, same).shares(100)
    assert len(genuine) == len(impostor) == len(edges) - 1
    assert 50 < len(genuine) <= 100
    np.testing.assert_allclose(genuine, np.histogram(scores[same], edges)[0] / same.sum())
    np.testing.assert_allclose(impostor, np.histogram(scores[~same], edges)[0] / (~same).sum())
    assert ScoreHistogram.empty().shares()[1].tolist() == [0]


def test_work_may_be_split():
    scores, same = np.linspace(-1, 1, 100), np.arange(100) > 60
    whole = ScoreHistogram.of_scores(scores, same)
    parts = ScoreHistogram.of_scores(scores[:50], same[:50]) + ScoreHistogram.of_scores(scores[50:], same[50:])
    np.testing.assert_array_equal(whole.counts, parts.counts)
    with pytest.raises(ValueError, match=r"histograms differ: spans 1.0 and 2.0"):
        _ = whole + ScoreHistogram.empty(2.0)


def test_the_bins_hold_every_score_of_the_vectors():
    queries, gallery = np.array([[3.0, 0], [0, 1]]), np.array([[0, 2.0], [5, 0], [0, 0]])
    assert score_span(ArrayRows(queries), ArrayRows(gallery), "cosine") == 1
    assert score_span(ArrayRows(queries), ArrayRows(gallery), "inner_product") == 16
    assert score_span(ArrayRows(queries), ArrayRows(0 * gallery), "inner_product") == 1
    assert ScoreHistogram.empty().width == ScoreHistogram.empty(2.0).width == 2**-15
    assert ScoreHistogram.empty(1024.0).bins == 2**18
    for span, bins in ((1.5, None), (1.0, 100)):
        with pytest.raises(ValueError, match="must be powers of two"):
            ScoreHistogram.empty(span, bins=bins)


def test_what_cannot_be_counted_is_one_clear_line():
    queries, gallery, query_labels, labels, own = problem()
    broken = gallery.copy()
    broken[11, 2] = np.nan
    with pytest.raises(ValueError, match="gallery row 11 holds NaN or infinity"):
        cross_histogram(queries, ArrayRows(broken), query_labels, labels, own)
    with pytest.raises(ValueError, match="query row 0 holds NaN or infinity"):
        cross_histogram(np.full_like(queries, 1e300), ArrayRows(gallery), query_labels, labels, own)
    with pytest.raises(ValueError, match="queries are 4-D, the gallery 5-D"):
        cross_histogram(queries[:, :4], ArrayRows(gallery), query_labels, labels, own)
    with pytest.raises(ValueError, match="found 39 gallery labels for 40 vectors"):
        cross_histogram(queries, ArrayRows(gallery), query_labels, labels[:-1], own)
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers"):
        ScoreHistogram.of_scores(np.array([np.nan, 0]), np.array([True, False]))
    with pytest.raises(ValueError, match="found 0 genuine and 0 impostor pairs"):
        cross_histogram(queries, ArrayRows(gallery[:0]), query_labels, labels[:0], own).curve()
