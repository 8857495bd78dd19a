"""Drift: no alarm where nothing has changed, however many queries; an alarm where something has."""

import json
from dataclasses import replace

import numpy as np
import pytest
from planted import open_store, space

from compat.evaluation.drift import distance_to_uniform, drift_report, kolmogorov_p_value
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.familiarity import fit_familiarity
from compat.training.fit import fit_transformer
from compat.transformers.artefact import WrongSpace, load_transformer

DIM = 12
TURN = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))[0]


def drawn(count, seed, shift=0.0, samples=1):
    generator = np.random.default_rng(seed)
    items = np.repeat(generator.normal(size=(count // samples, DIM)), samples, axis=0) * np.linspace(2, 0.3, DIM) + 1
    return (items + shift * (-1.0) ** np.arange(DIM) + 0.05 * generator.normal(size=items.shape)).astype(np.float32)


def fitted(count=1200, seed=0, direction: Direction = "new-to-old", labels=None, samples=1):
    new = drawn(count, seed, samples=samples)
    spaces = {"old_space": space("old", DIM), "new_space": space("new", DIM)}
    pairs = Pairs.from_arrays((new @ TURN).astype(np.float32), new, labels, **spaces)
    return fit_transformer(pairs, FitOptions(transformer="ridge", strength=0.1, direction=direction))


@pytest.fixture(scope="module")
def transformer():
    return fitted()


def today(path, vectors, **details):
    return open_store(path, vectors, name="new", **details)


def test_queries_like_the_fitted_ones_are_as_fitted_and_moved_ones_are_not(tmp_path, transformer):
    same = drift_report(transformer, today(tmp_path / "same", drawn(800, 1)))
    assert (same.verdict, same.queries, same.expected_share) == ("as_fitted", 800, pytest.approx(0.05))
    assert same.strange_share.low < same.strange_share.value < 0.09
    assert "the map still fits" in same.reason
    moved = drift_report(transformer, today(tmp_path / "moved", drawn(800, 2, shift=1.5)))
    assert moved.verdict == "drifted"
    assert moved.p_value < 1e-6
    assert moved.strange_share.low > 0.1
    assert "--more" in moved.reason
    assert "compat.sample" in moved.reason
    found = moved.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        *("queries", "expected_share", "strange_share", "statistic", "p_value", "verdict", "reason", "strangest")
    }
    assert found["strange_share"].keys() == {"value", "low", "high"}


def test_a_tenth_of_strange_queries_is_noticed_and_they_are_named(tmp_path, transformer):
    vectors = drawn(1000, 3)
    vectors[::8] = np.random.default_rng(0).normal(size=(125, DIM)) * 5 - 9
    report = drift_report(transformer, today(tmp_path / "s", vectors, ids=range(1000)))
    assert report.verdict == "drifted"
    assert len(report.strangest) == 20
    assert all(item % 8 == 0 for item in report.strangest)
    novelty = transformer.familiarity.novelty(vectors)
    assert novelty[list(report.strangest)].tolist() == sorted(novelty, reverse=True)[:20]


def test_false_alarms_are_rare_whatever_the_number_of_queries_and_pairs():
    alarms = {}
    for count, queries in ((400, 100), (400, 20_000), (2400, 500), (2400, 20_000)):
        verdicts = []
        for seed in range(25):
            familiarity = fit_familiarity(Pairs.from_arrays(drawn(count, seed), drawn(count, seed)), "new-to-old")
            assert familiarity is not None
            novelty = familiarity.novelty(drawn(queries, 1000 + seed))
            held_out = familiarity.calibration.independent
            statistic = distance_to_uniform(novelty)
            verdicts.append(kolmogorov_p_value(statistic, queries * held_out / (queries + held_out)) < 0.05)
        alarms[count, queries] = sum(verdicts)
    # Before the size of the effect is asked for: 1.25 of 25 expected, 5 or more by chance once in a hundred times.
    assert max(alarms.values()) <= 4, alarms
    assert sum(alarms.values()) <= 10, alarms


def test_a_small_drift_is_no_drift_however_many_queries_show_it(tmp_path):
    transformer = fitted(8000)
    report = drift_report(transformer, today(tmp_path / "s", drawn(60_000, 5, shift=0.2), chunk_rows=8192))
    assert report.p_value < 0.01
    assert report.statistic < 0.1
    assert report.verdict == "as_fitted"


def test_identities_count_once(tmp_path):
    labels = np.arange(1200) // 8
    transformer = fitted(labels=labels, samples=8)
    assert transformer.familiarity is not None
    assert transformer.familiarity.calibration.independent < 60
    verdicts = []
    for seed in range(12):
        store = today(tmp_path / str(seed), drawn(800, 50 + seed, samples=8), labels=np.arange(800) // 8)
        verdicts.append(drift_report(transformer, store).verdict)
    assert verdicts.count("drifted") <= 2
    few = today(tmp_path / "few", drawn(200, 70, samples=8), labels=np.arange(200) // 8)
    assert drift_report(transformer, few).verdict == "too_few"
    nulls = today(tmp_path / "null", drawn(200, 71), labels=[None] * 100 + ["a"] * 100)
    assert drift_report(transformer, nulls).verdict != "too_few"


def test_too_few_queries_wrong_spaces_and_maps_that_do_not_know(tmp_path, transformer):
    few = drift_report(transformer, today(tmp_path / "few", drawn(30, 6, shift=9.0)))
    assert few.verdict == "too_few"
    assert few.reason.startswith("30 independent queries tell too little")
    with pytest.raises(WrongSpace, match=r"are in old \(12-D.*expected new"):
        drift_report(transformer, open_store(tmp_path / "old", drawn(60, 7)))
    with pytest.raises(ValueError, match="does not know which queries are strange"):
        drift_report(replace(transformer, familiarity=None), today(tmp_path / "a", drawn(60, 8)))
    with pytest.raises(ValueError, match="holds no queries"):
        drift_report(transformer, today(tmp_path / "none", drawn(0, 8)))


def test_an_old_to_new_map_judges_the_new_models_queries_too(tmp_path):
    forth = fitted(direction="old-to-new")
    forth.save(tmp_path / "map")
    store = today(tmp_path / "moved", drawn(300, 2, shift=1.5))
    report = drift_report(load_transformer(tmp_path / "map"), store)
    assert report == drift_report(forth, store)
    assert report.verdict == "drifted"


def test_the_statistic_is_the_largest_gap_between_step_functions():
    for seed in range(5):
        values = np.random.default_rng(seed).beta(1, 1.5, 40)
        grid = np.concatenate([values, values - 1e-9, np.linspace(0, 1, 2001)])
        slow = np.abs((values[None, :] <= grid[:, None]).mean(axis=1) - grid).max()
        assert distance_to_uniform(values) == pytest.approx(slow, abs=1e-6)
    assert distance_to_uniform(np.full(3, 0.5)) == 0.5


def test_p_values_are_those_of_simulation_and_of_tables():
    assert kolmogorov_p_value(1.3581 / 1000, 1e6) == pytest.approx(0.05, abs=2e-4)
    assert kolmogorov_p_value(1.6276 / 1000, 1e6) == pytest.approx(0.01, abs=1e-4)
    assert kolmogorov_p_value(0.0, 100) == 1
    assert kolmogorov_p_value(1.0, 1e4) == 0
    generator = np.random.default_rng(0)
    for count in (50, 200):
        found = [kolmogorov_p_value(distance_to_uniform(generator.uniform(size=count)), count) for _ in range(2000)]
        for level in (0.05, 0.2, 0.5):
            assert np.mean(np.array(found) < level) == pytest.approx(level, abs=0.03)


def test_strangeness_needs_queries_of_the_right_dimension(transformer):
    strangeness = transformer.strangeness(drawn(40, 9))
    assert strangeness.shape == (40,)
    assert ((strangeness > 0) & (strangeness < 1)).all()
    for wrong in (drawn(4, 9)[:, :5], drawn(4, 9)[0]):
        with pytest.raises(ValueError, match=r"expected \[q, 12\]: new"):
            transformer.strangeness(wrong)
    assert strangeness.max() - strangeness.min() > 0.3  # it tells them apart
