"""Open-set identification against loops over probes and thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.metrics import score_tiles
from compat.metrics.openset import ProbeScores, search_probes, withheld_identities
from compat.neighbors import ArrayRows


def problem(seed, probes=25, rows=31, identities=8, dim=3):
    """Vectors of whole numbers, so that many scores tie; some probes are gallery items, some identities unknown."""
    generator = np.random.default_rng(seed)
    gallery = generator.integers(-2, 3, size=(rows, dim)).astype(float)
    labels = generator.integers(identities, size=rows)
    own = np.where(np.arange(probes) % 4 == 0, generator.permutation(rows)[:probes], -1)
    probe_labels = np.where(own >= 0, labels[own], generator.integers(identities + 4, size=probes))
    queries = np.where(own[:, None] >= 0, gallery[own], generator.integers(-2, 3, size=(probes, dim)))
    return queries, gallery, probe_labels, labels, own


def slow_rates(queries, gallery, probe_labels, labels, own, enrolled, rank, threshold):
    """FPIR and TPIR at a threshold, from the sorted candidate list of every probe; ties put a mate last."""
    positive, unknown, right, mated = 0, 0, 0, 0
    for i, query in enumerate(queries):
        listed = [
            (float(query @ gallery[j]), labels[j] == probe_labels[i])
            for j in range(len(gallery))
            if enrolled[j] and j != own[i]
        ]
        listed.sort(key=lambda found: (-found[0], found[1]))
        if any(mate for _, mate in listed):
            mated += 1
            right += any(mate and score >= threshold for score, mate in listed[:rank])
        else:
            unknown += 1
            positive += listed[0][0] >= threshold
    return positive / unknown, right / mated


@given(seed=st.integers(0, 2**32), rank=st.sampled_from([1, 2, 5]), some=st.booleans())
def test_rates_at_every_threshold_are_those_of_a_loop(seed, rank, some):
    queries, gallery, probe_labels, labels, own = problem(seed)
    enrolled = np.random.default_rng(seed).random(31) < (0.7 if some else 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_tiles, "TILE_GALLERY", 9)
        patch.setattr(score_tiles, "TILE_QUERIES", 4)
        found = search_probes(
            queries,
            ArrayRows(gallery),
            probe_labels,
            labels,
            own,
            enrolled=enrolled,
            similarity="inner_product",
            rank=rank,
        )
    if found.unknown.all() or not found.unknown.any():
        with pytest.raises(ValueError, match=r"mated and .* unknown probes, expected both"):
            found.curve()
        return
    curve = found.curve()
    for i, threshold in enumerate(curve.thresholds):
        expected = slow_rates(queries, gallery, probe_labels, labels, own, enrolled, rank, threshold)
        assert (curve.far[i], curve.tar[i]) == pytest.approx(expected)
    lowest = slow_rates(queries, gallery, probe_labels, labels, own, enrolled, rank, -1e9)
    assert (curve.far[-1], curve.tar[-1]) == pytest.approx(lowest)  # nothing is gained below the last threshold


def test_a_worked_example():
    # Mated probes at 0.9 (found), 0.8 (behind another), 0.6 (found); unknown ones reach 0.7 and 0.5.
    mate = np.array([0.9, 0.8, 0.6, -np.inf, -np.inf], np.float32)
    other = np.array([0.1, 0.85, 0.2, 0.7, 0.5], np.float32)
    found = ProbeScores(mate, other, other)
    assert found.unknown.tolist() == [False, False, False, True, True]
    assert found.identified.tolist() == [True, False, True, False, False]
    curve = found.curve()
    assert curve.thresholds.tolist() == pytest.approx([np.inf, 0.9, 0.7, 0.6, 0.5])
    assert curve.tar.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert curve.far.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.at_far(0.5).tar == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="needs at least 10"):
        curve.at_far(0.1)


def test_a_map_to_one_point_identifies_nobody():
    generator = np.random.default_rng(0)
    gallery, probes = np.tile(generator.normal(size=(1, 64)), (300, 1)), generator.normal(size=(90, 64))
    found = search_probes(probes, ArrayRows(gallery), np.arange(90), np.arange(300) % 60, np.full(90, -1))
    assert found.unknown.sum() == 30
    assert not found.identified.any()
    assert found.curve().at_far(1.0).tar == 0


def test_draws_are_those_of_repeated_probes():
    generator = np.random.default_rng(1)
    queries, gallery, probe_labels, labels, own = problem(4, probes=31)
    found = search_probes(queries, ArrayRows(gallery), probe_labels, labels, own, similarity="inner_product")
    weights = generator.multinomial(31, np.full(31, 1 / 31), size=30).astype(float)
    fpirs = [1.0, 0.6, 0.4]
    drawn = found.resampled_tpir(weights, np.array(fpirs))
    for times, row in zip(weights.astype(int), drawn, strict=True):
        again = np.repeat(np.arange(31), times)
        curve = ProbeScores(found.mate[again], found.top[again], found.bar[again]).curve()
        assert row.tolist() == pytest.approx([curve.at_far(fpir).tar for fpir in fpirs])
    assert np.isnan(found.resampled_tpir(np.where(found.unknown, 0.0, 1.0)[None], np.array(fpirs))).all()


def test_whole_identities_are_withheld():
    generator = np.random.default_rng(2)
    query_labels, labels = generator.integers(40, size=200), generator.integers(10, 60, size=300)
    stays = withheld_identities(query_labels, labels, share=0.3, seed=5)
    gone = np.unique(labels[~stays])
    assert not np.isin(labels[stays], gone).any()
    assert len(gone) == 9  # of the 30 identities in both
    assert np.isin(gone, query_labels).all()
    np.testing.assert_array_equal(stays, withheld_identities(query_labels, labels, share=0.3, seed=5))
    assert (stays != withheld_identities(query_labels, labels, share=0.3, seed=6)).any()
    assert len(np.unique(labels[~withheld_identities(query_labels, labels, share=0)])) == 1
    with pytest.raises(ValueError, match="found 1 identities both in the gallery and asked for"):
        withheld_identities(np.array([1, 1]), np.array([1, 2]))


def test_a_rank_counts_from_one():
    with pytest.raises(ValueError, match="rank counts from 1, found 0"):
        search_probes(np.ones((1, 2)), ArrayRows(np.ones((1, 2))), np.zeros(1), np.zeros(1), np.full(1, -1), rank=0)
