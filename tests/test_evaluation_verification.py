"""Sections of one-to-one and open-set figures: what is planted is found, and the intervals hold the truth."""

import json

import numpy as np
import polars as pl
import pytest
from planted import plant
from scipy.stats import t

from compat.evaluation.openset import open_set_section
from compat.evaluation.pair_list import PairList
from compat.evaluation.reached import Reached, identity_draws, reached_at
from compat.evaluation.searched import Searched
from compat.evaluation.verification import verification_section
from compat.metrics.intervals import Interval
from compat.metrics.score_histogram import ScoreHistogram
from compat.metrics.verification import ErrorCurve
from compat.neighbors import ArrayRows

NOWHERE = np.full(90, -1)


def settings():
    """A world of two models, a good map between them, and one to a single point; its labels."""
    world = plant(30, 8, 24, 24, noise=0.45)
    turn = np.linalg.lstsq(world.new, world.old, rcond=None)[0]
    of_query = np.arange(len(world.old)) % 8 < 3
    old, new = world.old[~of_query], world.new[~of_query]
    asked = world.new[of_query]
    moved = np.random.default_rng(0).permutation(len(new))
    elsewhere = np.empty_like(new)
    elsewhere[moved] = new
    found = {
        "old_to_old": Searched(world.old[of_query], ArrayRows(old), "cosine"),
        "new_to_new": Searched(asked, ArrayRows(elsewhere), "cosine", moved),
        "naive": Searched(asked, ArrayRows(old), "cosine"),
        "transformed": Searched(asked @ turn, ArrayRows(old), "cosine"),
        "constant": Searched(np.ones_like(asked), ArrayRows(np.ones_like(old)), "cosine"),
        "scaled": Searched(3 * asked @ turn, ArrayRows(old), "inner_product"),
    }
    return found, world.labels[of_query], world.labels[~of_query]


def share(reached: Reached) -> Interval:
    assert reached.share is not None
    return reached.share


def exact(searched, query_labels, labels):
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (searched.queries, searched.gallery.rows(0, len(labels)))
    ]
    return ErrorCurve.of_scores((unit[0] @ unit[1].T).ravel(), (query_labels[:, None] == labels).ravel())


def accepts_alike(curve, threshold, other):
    """Whether nearly no score lies between two thresholds."""
    points = curve.at_threshold(threshold), curve.at_threshold(other)
    return np.allclose([points[0].far, points[0].frr], [points[1].far, points[1].frr], atol=3e-3, rtol=0.1)


def test_every_setting_is_measured_on_the_same_pairs():
    found, query_labels, labels = settings()
    done = []
    section = verification_section(
        found, query_labels, labels, NOWHERE, fars=(0.1, 1e-2, 1e-3, 1e-6), on_pairs=lambda *told: done.append(told)
    )
    assert list(section.settings) == list(found)
    assert done[-1] == (6 * 90 * 150, 6 * 90 * 150)
    assert [done[i] < done[i + 1] for i in range(len(done) - 1)] == [True] * (len(done) - 1)
    for name in ("old_to_old", "naive", "transformed"):
        setting, truth = section.settings[name], exact(found[name], query_labels, labels)
        assert (setting.genuine_pairs, setting.impostor_pairs) == (90 * 5, 90 * 145)
        assert setting.equal_error_rate == pytest.approx(truth.equal_error_rate(), abs=1e-3)
        for reached in setting.tar_at_far[:3]:
            assert share(reached).value == pytest.approx(truth.at_far(reached.rate).tar, abs=5e-3)
            assert accepts_alike(truth, reached.threshold, truth.at_far(reached.rate).threshold)
            assert share(reached).low <= share(reached).value <= share(reached).high
            assert share(reached).low < share(reached).high
        assert (setting.tar_at_far[3].share, setting.tar_at_far[3].threshold) == (None, None)
        assert setting.tar_at_far[3].reason == "a rate of 1e-06 needs at least 1,000,000 impostor pairs, found 13,050"
    errors = {name: setting.equal_error_rate for name, setting in section.settings.items()}
    assert errors["new_to_new"] < 0.1  # its gallery is in another order
    assert errors["old_to_old"] < 0.1
    assert errors["transformed"] < 0.15 < 0.35 < errors["naive"]
    assert errors["constant"] == pytest.approx(0.5)
    stuck = section.settings["constant"].tar_at_far[0]
    assert (share(stuck).value, stuck.threshold) == (0, None)
    assert "tie at the highest score" in stuck.reason
    same = verification_section(found, query_labels, labels, NOWHERE, fars=(0.1, 1e-2, 1e-3, 1e-6))
    assert json.dumps(same.to_dict()) == json.dumps(section.to_dict())


def test_the_old_threshold_is_judged_in_every_setting():
    found, query_labels, labels = settings()
    section = verification_section(found, query_labels, labels, NOWHERE)
    assert section.reason == ""
    assert section.old_threshold is not None
    told = section.old_threshold.to_dict()
    assert told["far"] == 1e-3
    old = exact(found["old_to_old"], query_labels, labels).at_far(1e-3)
    assert accepts_alike(exact(found["old_to_old"], query_labels, labels), told["threshold"], old.threshold)
    assert list(told["settings"]) == list(found)
    bridged = exact(found["transformed"], query_labels, labels)
    kept = told["settings"]["transformed"]
    assert kept["far"] == pytest.approx(bridged.at_threshold(told["threshold"]).far, abs=1e-4)
    assert kept["frr"] == pytest.approx(bridged.at_threshold(told["threshold"]).frr, abs=3e-3)
    assert kept["recalibrated"]["far"] <= 1e-3
    assert told["settings"]["constant"]["recalibrated"] == {"threshold": None, "far": 0, "frr": 1}
    assert told["settings"]["constant"]["far"] == 1  # all score 1
    without = verification_section({"naive": found["naive"]}, query_labels, labels, NOWHERE)
    assert without.old_threshold is None
    assert "needs old-to-old scores" in without.reason
    old = found["old_to_old"]
    few = {"old_to_old": Searched(old.queries, ArrayRows(old.gallery.rows(0, 8)), "cosine")}
    section = verification_section(few, query_labels, labels[:8], NOWHERE)  # 720 pairs
    assert section.old_threshold is not None
    assert section.old_threshold.far == 1e-2
    section = verification_section(few, query_labels, labels[:8], NOWHERE, fars=(1e-4,))
    assert section.old_threshold is None
    assert "needs at least 1,000 impostor pairs" in section.reason


def test_the_record_is_plain_and_complete():
    found, query_labels, labels = settings()
    section = verification_section(found, query_labels, labels, NOWHERE).to_dict()
    assert list(section) == ["settings", "old_threshold", "reason"]
    setting = json.loads(json.dumps(section, allow_nan=False))["settings"]["transformed"]
    assert list(setting) == [
        "genuine_pairs", "impostor_pairs", "equal_error_rate", "tar_at_far",
        "roc", "det", "precision_recall", "histogram",
    ]  # fmt: skip
    assert list(setting["tar_at_far"][0]) == ["far", "tar", "threshold", "reason"]
    assert len(setting["roc"]["far"]) == len(setting["roc"]["tar"]) == len(setting["det"]["fnmr"]) <= 200
    bars = setting["histogram"]
    assert len(bars["edges"]) == len(bars["genuine"]) + 1
    assert sum(bars["genuine"]) == pytest.approx(1)
    found, query_labels, labels = settings()
    section = json.loads(json.dumps(open_set_section(found, query_labels, labels, NOWHERE).to_dict(), allow_nan=False))
    assert list(section)[:4] == ["unknown_probes", "mated_probes", "withheld", "settings"]
    assert list(section["settings"]["naive"]) == ["fpir", "tpir", "tpir_at_fpir"]
    assert list(section["settings"]["naive"]["tpir_at_fpir"][0]) == ["fpir", "tpir", "threshold", "reason"]


def test_open_set_with_identities_taken_out_and_with_unknown_ones():
    found, query_labels, labels = settings()
    section = open_set_section(found, query_labels, labels, NOWHERE, withheld=0.4)
    assert (section.withheld, section.unknown_probes, section.mated_probes) == (True, 36, 54)
    reached = {name: setting.tpir_at_fpir[0] for name, setting in section.settings.items()}
    assert share(reached["old_to_old"]).value > 0.8
    assert share(reached["new_to_new"]).value > 0.8
    assert share(reached["transformed"]).value > 0.7
    assert share(reached["naive"]).value < 0.2
    assert share(reached["constant"]).value == 0
    assert (
        section.settings["naive"].tpir_at_fpir[1].reason == "a rate of 0.01 needs at least 100 unknown probes, found 36"
    )
    stranger = np.where(query_labels < 4, query_labels + 1000, query_labels)
    section = open_set_section(found, stranger, labels, NOWHERE)
    assert (section.withheld, section.unknown_probes, section.mated_probes) == (False, 12, 78)


def test_without_pairs_of_both_kinds_the_reason_is_told():
    found, query_labels, labels = settings()
    for other, said in (
        (labels + 1000, "found 0 genuine and 13500 impostor"),
        (0 * labels, "found 13500 genuine and 0"),
    ):
        section = verification_section(found, 0 * query_labels, other, NOWHERE)
        assert said in section.reason
        assert section.to_dict()["settings"] == {}
        probes = open_set_section(found, 0 * query_labels, other, NOWHERE)
        assert "mated and" in probes.reason
        assert probes.to_dict()["settings"] == {}


@pytest.mark.parametrize("truth", [0.5, 0.95])
def test_intervals_of_tar_hold_the_truth_about_that_often(truth):
    # An identity's pairs share a shift; the threshold is found from few impostor pairs in every sample.
    far, covered, naive, runs = 0.01, 0, 0, 150
    z = {0.01: 2.3263479, 0.5: 0.0, 0.95: 1.6448536}
    identity = np.repeat(np.arange(120), 5)
    for run in range(runs):
        generator = np.random.default_rng(run)
        shared = generator.normal(size=120)[identity]
        genuine = z[far] + z[truth] + 0.6 * shared + 0.8 * generator.normal(size=600)
        impostor = generator.normal(size=(600, 5)).ravel()
        scores = np.concatenate([genuine, impostor]) / 8
        same = np.arange(3600) < 600
        groups = (generator.permutation(120) % 50)[np.concatenate([identity, np.repeat(identity, 5)])]
        histogram = ScoreHistogram.of_scores(scores, same, groups=groups, bins=2048)
        draws = histogram.resampled_tar(identity_draws(generator, 50, 300), np.array([far]))[:, 0]
        found = share(reached_at(histogram.curve(), far, draws, 120, 50, "impostor pairs"))
        covered += found.low <= truth <= found.high
        alone = np.sqrt(found.value * (1 - found.value) / 600) * 1.96
        naive += abs(found.value - truth) <= alone
    assert 0.90 <= covered / runs <= 0.99
    assert naive / runs < 0.85  # what taking pairs for independent and the threshold for known would promise


def test_an_interval_does_not_shrink_to_a_point():
    curve = ErrorCurve.of_scores(np.concatenate([np.full(500, 2.0), np.zeros(500)]), np.arange(1000) < 500)
    found = share(reached_at(curve, 0.01, np.ones(100), 100, 50, "impostor pairs"))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 / (1 + t.ppf(0.975, 49) ** 2 / 100), rel=1e-4)
    few = share(reached_at(curve, 0.01, np.full(100, np.nan), 4, 4, "impostor pairs"))
    assert few.low == pytest.approx(1 / (1 + t.ppf(0.975, 3) ** 2 / 4), rel=5e-3)


def test_a_table_of_pairs_is_looked_up():
    vectors = np.eye(4)[[0, 0, 1, 2]] + 0.1
    ids = pl.Series(["a", "b", "c", "d"])
    table = pl.DataFrame(
        {"item_id_a": ["a", "c", "b"], "item_id_b": ["b", "d", "d"], "same": [1, 0, 0], "fold": [0, 1, 1]}
    )
    pairs = PairList.of_table(table, ids)
    assert pairs.rows.tolist() == [0, 2, 1]
    assert pairs.others.tolist() == [1, 3, 3]
    assert pairs.same.tolist() == [True, False, False]
    assert np.array_equal(pairs.folds if pairs.folds is not None else [], [0, 1, 1])
    assert pairs.scores(vectors) == pytest.approx([1, 0.24 / 1.24, 0.24 / 1.24])
    assert PairList.of_table(table.select("item_id_a", "item_id_b", pl.col("same").cast(bool)), ids).folds is None
    across = PairList.of_table(table, ids, pl.Series(["d", "b"]))
    assert across.others.tolist() == [1, 0, 0]
    for broken, message in (
        (table.drop("same"), "a list of pairs needs item_id_a, item_id_b, same; found no same"),
        (table.with_columns(same=pl.Series([1, 2, 0])), "same is 1 or 0, true or false, found 2"),
        (table.with_columns(item_id_b=pl.Series(["b", "x", "d"])), "1 of 3 item_id_b are unknown, for example 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            PairList.of_table(broken, ids)
