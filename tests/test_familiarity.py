"""What a map knows of its queries: distances, learned failure, percentiles among pairs that nothing was fitted to."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from planted import plant
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from compat.neighbors import unit_rows
from compat.pairs import Pairs, Source, merge_pairs
from compat.training import familiarity as fitting
from compat.training.familiarity import discrimination, fit_familiarity, logistic_weights
from compat.transformers import familiarity as module
from compat.transformers.familiarity import Familiarity, Percentiles, PrincipalAxes

DIRECTIONS = ("new-to-old", "old-to-new")


def clouds(count, dim=16, seed=0, shift=0.0):
    """Directions that vary along some axes more than along others, raw lengths far from 1."""
    generator = np.random.default_rng(seed)
    drawn = generator.normal(size=(count, dim)) * np.linspace(2, 0.2, dim) + 1 + shift * (-1.0) ** np.arange(dim)
    return (drawn * generator.uniform(3, 9, size=(count, 1))).astype(np.float32)


def planted_failures(count, seed=0, dim=12):
    """Items whose first coordinate says how much noise the new model adds: the noisier, the harder to find."""
    generator = np.random.default_rng(seed)
    old = generator.normal(size=(count, dim))
    old[:, 0] = generator.uniform(0, 4, count)
    new = old + np.exp(old[:, :1] - 3.0) * generator.normal(size=old.shape)
    new[:, 0] = old[:, 0]
    return old.astype(np.float32), new.astype(np.float32)


def test_the_distance_is_that_of_an_independent_covariance(monkeypatch):
    vectors, queries = clouds(500), clouds(40, seed=1)
    units = unit_rows(vectors).astype(np.float64)
    reference = EmpiricalCovariance().fit(units)
    covariance = reference.covariance_ + module.SHRINKAGE * np.trace(reference.covariance_) / 16 * np.eye(16)
    away = unit_rows(queries) - units.mean(axis=0)
    expected = np.einsum("qi,ij,qj->q", away, np.linalg.inv(covariance), away)
    features = PrincipalAxes.of(vectors).features(queries)
    np.testing.assert_allclose(np.exp(features[:, -2]), expected, rtol=1e-3)
    np.testing.assert_allclose(np.exp(features[:, -1]), (away**2).sum(axis=1), rtol=1e-3)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    np.testing.assert_allclose(PrincipalAxes.of(vectors).features(queries), features, atol=1e-5)
    monkeypatch.setattr(module, "MOST_AXES", 5)  # what lies off the axes counts by its mean variance
    values, axes = np.linalg.eigh(reference.covariance_)
    penalty = module.SHRINKAGE * values.mean()
    along = (away @ axes) ** 2
    expected = (along[:, -5:] / (values[-5:] + penalty)).sum(axis=1)
    expected += along[:, :-5].sum(axis=1) / (values[:-5].mean() + penalty)
    np.testing.assert_allclose(np.exp(PrincipalAxes.of(vectors).features(queries)[:, -2]), expected, rtol=1e-3)


def test_weights_count_as_repetitions():
    vectors = clouds(60)
    weights = np.random.default_rng(0).integers(1, 4, 60)
    weighted, repeated = PrincipalAxes.of(vectors, weights), PrincipalAxes.of(np.repeat(vectors, weights, axis=0))
    np.testing.assert_allclose(
        weighted.features(clouds(20, seed=1))[:, -2:], repeated.features(clouds(20, seed=1))[:, -2:], atol=1e-3
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_regression_is_that_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(300, 6)) * [1, 1, 1, 5, 0.1, 1] + 3
    features[:, 5] = 2.0  # says nothing
    positive = generator.uniform(size=300) < 1 / (1 + np.exp(-(features[:, 0] - features[:, 1] + 1)))
    found = logistic_weights(features, positive, np.full(6, 4.0))
    standard = (features[:, :5] - features[:, :5].mean(axis=0)) / features[:, :5].std(axis=0)
    expected = LogisticRegression(C=1 / 4, tol=1e-10, max_iter=1000).fit(standard, positive)
    np.testing.assert_allclose(
        features @ found[:-1] + found[-1], expected.decision_function(standard), rtol=1e-3, atol=1e-4
    )
    heavy = logistic_weights(features, positive, np.array([1e6, 4, 4, 4, 4, 4]))
    assert abs(heavy[0]) < 1e-3 < abs(found[0])


def test_regression_of_separable_outcomes_is_finite():
    features = np.arange(20.0)[:, None]
    weights = logistic_weights(features, features[:, 0] > 9, np.array([1.0]))
    assert np.isfinite(weights).all()
    assert weights[0] > 0


@pytest.mark.parametrize("seed", range(3))
def test_discrimination_is_the_area_under_the_roc_curve(seed):
    generator = np.random.default_rng(seed)
    scores, positive = generator.integers(0, 6, 80).astype(float), generator.uniform(size=80) < 0.3
    assert discrimination(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert discrimination(scores, np.zeros(80, bool)) is None


def test_percentiles_rise_strictly_and_stay_between_0_and_1():
    held_out = np.random.default_rng(0).normal(size=5000)
    percentiles = Percentiles.of(held_out)
    assert len(percentiles.levels) == module.LEVELS
    asked = np.linspace(-50, 50, 4001)
    found = percentiles(asked)
    assert (np.diff(found) > 0).all()
    assert 0 < found[0] < 1e-3 < 1 - 1e-3 < found[-1] < 1
    expected = (held_out[None, :] < asked[1900:2100, None]).mean(axis=1)
    np.testing.assert_allclose(found[1900:2100], expected, atol=2e-3)
    same = Percentiles.of(np.zeros(30))(np.array([-1.0, 0.0, 1.0]))
    assert 0 < same[0] < same[1] < same[2] < 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_planted_failures_are_foreseen_and_percentiles_hold_for_new_queries(direction):
    old, new = planted_failures(4000)
    familiarity = fit_familiarity(Pairs.from_arrays(old, new), direction)
    assert familiarity is not None
    assert (familiarity.score, familiarity.dim) == ("predicted failure", 12)
    calibration = familiarity.calibration
    assert calibration.pairs == calibration.independent == 1000
    assert calibration.discrimination is not None
    assert calibration.accuracy is not None
    assert calibration.discrimination > 0.65
    assert calibration.accuracy[0] > calibration.accuracy[-1] + 0.25
    assert np.mean(calibration.accuracy) == pytest.approx(calibration.recall_at_1, abs=1e-9)
    fresh_old, fresh = planted_failures(4000, seed=1)
    for percentiles in (familiarity.strangeness(fresh), familiarity.novelty(fresh)):
        assert percentiles.dtype == np.float64
        for level in (0.1, 0.5, 0.9, 0.95):
            assert (percentiles > level).mean() == pytest.approx(1 - level, abs=0.04)
    assert np.corrcoef(familiarity.strangeness(fresh), fresh_old[:, 0])[0, 1] > 0.5
    np.testing.assert_allclose(familiarity.strangeness(fresh[:50] * 7), familiarity.strangeness(fresh[:50]), atol=1e-4)


@pytest.mark.parametrize("easy", [True, False])
def test_where_all_or_none_are_found_it_is_learned_which_are_hard(monkeypatch, easy):
    old, new = planted_failures(2000)
    margins = fitting._margins
    shift = 10.0 if easy else -10.0
    monkeypatch.setattr(fitting, "_margins", lambda *details: margins(*details) + shift)
    familiarity = fit_familiarity(Pairs.from_arrays(old, new), "new-to-old")
    assert familiarity is not None
    assert familiarity.score == "predicted failure"
    assert familiarity.calibration.recall_at_1 == float(easy)
    fresh_old, fresh = planted_failures(2000, seed=1)
    assert np.corrcoef(familiarity.strangeness(fresh), fresh_old[:, 0])[0, 1] > 0.5


def test_vectors_of_another_kind_are_stranger_than_all_that_was_fitted():
    old, new = planted_failures(2000)
    familiarity = fit_familiarity(Pairs.from_arrays(old, new), "new-to-old")
    assert familiarity is not None
    alien = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    alien[:, 0] = -6  # the first coordinate says easy
    assert (familiarity.strangeness(alien) > 0.998).all()
    assert len(np.unique(familiarity.strangeness(alien))) == 50


def test_the_same_seed_gives_the_same_and_another_gives_another():
    pairs = Pairs.from_arrays(*planted_failures(1000))
    queries = planted_failures(50, seed=1)[1]
    found = [fit_familiarity(pairs, "new-to-old", seed=seed) for seed in (0, 0, 1)]
    values = [familiarity.strangeness(queries) for familiarity in found if familiarity is not None]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.allclose(values[0], values[2])


def test_no_identity_is_on_both_sides_of_the_calibration(monkeypatch):
    world = plant(identities=200, samples=5, old_dim=10, new_dim=10, noise=0.6)
    pairs = Pairs.from_arrays(world.old, world.new, world.labels)
    seen = {}

    def all_alike(_pairs, fitted, asked, _direction):
        seen.update(fitted=fitted, asked=asked)
        return np.ones(len(asked))

    monkeypatch.setattr(fitting, "_margins", all_alike)
    familiarity = fit_familiarity(pairs, "new-to-old")
    assert familiarity is not None
    assert not set(world.labels[seen["fitted"]]) & set(world.labels[seen["asked"]])
    assert familiarity.calibration.independent == 50
    assert familiarity.calibration.pairs == 250
    assert familiarity.score == "Mahalanobis distance"  # nothing is harder, so nothing can be learned
    np.testing.assert_array_equal(familiarity.strangeness(world.new), familiarity.novelty(world.new))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("labelled", [False, True])
def test_what_counts_as_found_is_what_a_slow_search_says(direction, labelled):
    world = plant(identities=30, samples=4, old_dim=9, new_dim=12, noise=1.2)
    labels = np.append(world.labels[:-1], 99) if labelled else None  # 99 has one sample
    pairs = Pairs.from_arrays(world.old, world.new, labels)
    fitted, asked = np.arange(0, 80), np.arange(60, 120)
    apply = fitting.fit_ridge_on(pairs.select(fitted), direction, fitting.STRENGTH).folded(unit=True)
    queries = unit_rows(apply(world.new) if direction == "new-to-old" else world.new)
    gallery = unit_rows(world.old if direction == "new-to-old" else apply(world.old))
    expected = []
    for query in asked:
        best, name = -np.inf, None
        alone = labels is None or (labels == labels[query]).sum() == 1
        for row in range(120):
            score = float(queries[query] @ gallery[row])
            if (alone or row != query) and score > best:
                best, name = score, row if labels is None else labels[row]
        expected.append(name == (query if labels is None else labels[query]))
    found = fitting._margins(pairs, fitted, asked, direction) > 0
    assert 0 < sum(expected) < len(expected)
    np.testing.assert_array_equal(found, expected)


def test_query_like_pairs_are_what_others_are_compared_with():
    documents, queries = clouds(3000), clouds(400, seed=1, shift=1.0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0].astype(np.float32)
    alone = Pairs.from_arrays(documents @ turn, documents)
    both = merge_pairs([Source(alone), Source(Pairs.from_arrays(queries @ turn, queries), query_like=True)])
    today = clouds(500, seed=2, shift=1.0)
    unprepared, prepared = fit_familiarity(alone, "new-to-old"), fit_familiarity(both, "new-to-old")
    assert unprepared is not None
    assert prepared is not None
    assert prepared.calibration.pairs < 150
    assert (unprepared.novelty(today) > 0.95).mean() > 0.4
    assert (prepared.novelty(today) > 0.95).mean() < 0.12


@pytest.mark.parametrize("labels", [None, "identities", "one"])
def test_many_pairs_are_sampled_by_whole_identities_and_query_like_ones_kept(monkeypatch, labels):
    monkeypatch.setattr(fitting, "MOST_PAIRS", 400)
    count = 5000
    codes = {None: None, "identities": np.arange(count) // 5, "one": np.zeros(count, np.int64)}[labels]
    pairs = Pairs.from_arrays(np.ones((count, 3)), np.ones((count, 3)), codes)
    rows = fitting._sample(pairs, seed=0)
    assert len(np.unique(rows)) == len(rows) <= 800
    if labels == "identities":
        assert (np.unique(rows // 5, return_counts=True)[1] == 5).all()
    like = np.zeros(count, bool)
    like[::50] = True
    rows = fitting._sample(replace(pairs, query_like=like), seed=0)
    assert like[rows].sum() == 100
    assert len(rows) <= 600


def test_too_few_pairs_or_one_identity_tell_nothing():
    old, new = planted_failures(60)
    assert fit_familiarity(Pairs.from_arrays(old, new), "new-to-old") is None
    old, new = planted_failures(300)
    assert fit_familiarity(Pairs.from_arrays(old, new, np.zeros(300, np.int64)), "new-to-old") is None


def test_vectors_all_alike_give_finite_percentiles():
    ones = np.ones((200, 5), np.float32)
    familiarity = fit_familiarity(Pairs.from_arrays(ones, ones), "new-to-old")
    assert familiarity is not None
    assert np.isfinite(familiarity.strangeness(np.random.default_rng(0).normal(size=(9, 5)))).all()


def test_it_comes_back_from_tensors_and_damage_is_noticed():
    old, new = planted_failures(1000)
    familiarity = fit_familiarity(Pairs.from_arrays(old, new), "new-to-old")
    assert familiarity is not None
    loaded = Familiarity.from_tensors(familiarity.to_dict(), familiarity.tensors())
    np.testing.assert_array_equal(loaded.strangeness(new), familiarity.strangeness(new))
    np.testing.assert_array_equal(loaded.novelty(new), familiarity.novelty(new))
    assert loaded.to_dict() == familiarity.to_dict()
    assert pl.DataFrame([familiarity.to_dict()]).height == 1  # plain values
    tensors = familiarity.tensors()
    with pytest.raises(ValueError, match="familiarity is damaged"):
        Familiarity.from_tensors(familiarity.to_dict(), tensors | {"mean": tensors["mean"][:-1]})
    with pytest.raises(ValueError, match="familiarity is damaged"):
        Familiarity.from_tensors(familiarity.to_dict(), tensors | {"weights": tensors["weights"][:-1]})
