"""The groups of a report: a planted bad group is named, and no tiny group by chance."""

import json

import numpy as np
import pytest

from compat.evaluation.groups import FLIPPED_ITEMS, JUDGED, SHOWN, flips_section, groups_section
from compat.metrics.groups import NONE
from compat.metrics.intervals import Bootstrap


def planted(sizes, chances, *, seed=0):
    """Groups g0, g1, ... of those sizes; the old system is right 8 times in 10, the bridge by each group's chance."""
    generator = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    mixed = generator.permutation(len(codes))
    codes = codes[mixed]
    draws = generator.random(len(codes))
    recalls = {
        "old_to_old": (draws < 0.8).astype(float),
        "new_to_new": np.ones(len(codes)),
        "transformed": (draws < np.asarray(chances)[codes]).astype(float),
    }
    return [f"g{code}" for code in codes], recalls, codes


def test_a_planted_bad_group_is_the_worst_and_its_row_says_so():
    values, recalls, codes = planted([300, 200, 250, 6], [0.78, 0.5, 0.76, 0.7])
    section = groups_section("light", values, recalls).to_dict()
    assert (section["column"], section["worst"], section["left_out"]) == ("light", "g1", 0)
    assert section["rows"][0]["group"] == "g1"
    assert section["rows"][-1]["group"] == "g3"  # small, and not surely worse
    assert [row["small"] for row in section["rows"]] == [False, False, False, True]
    row = section["rows"][0]
    mine = codes == 1
    assert row["queries"] == 200
    for name in recalls:
        assert row[name]["value"] == pytest.approx(recalls[name][mine].mean())
    change = (recalls["transformed"] - recalls["old_to_old"])[mine]
    assert row["change"]["value"] == pytest.approx(change.mean())
    assert row["change"]["low"] < change.mean() < row["change"]["high"] < -0.2
    table = np.stack([recalls["old_to_old"][mine], recalls["transformed"][mine]], axis=1)
    assert row["change"] == pytest.approx(Bootstrap(table).difference(1, 0).to_dict(), abs=0.01)
    assert set(row) == {"group", "queries", "small", "old_to_old", "new_to_new", "transformed", "change"}
    json.dumps(section, allow_nan=False)


def test_retention_of_a_group_is_at_hand_for_the_verdict():
    values, recalls, codes = planted([300, 200], [0.78, 0.5])
    worst = groups_section("light", values, recalls).rows[0]
    share = recalls["transformed"][codes == 1].mean() / recalls["old_to_old"][codes == 1].mean()
    assert worst.retention is not None
    assert worst.retention.value == pytest.approx(share)
    assert worst.retention.low < share < worst.retention.high < 0.8


def test_no_tiny_group_is_named_by_chance():
    named = by_value = 0
    for seed in range(25):
        sizes = [400, 400, *[4] * 30]
        values, recalls, codes = planted(sizes, [0.7] * 32, seed=seed)
        named += groups_section("c", values, recalls).worst not in ("g0", "g1")
        change = recalls["transformed"] - recalls["old_to_old"]
        by_value += np.argmin([change[codes == code].mean() for code in range(32)]) > 1
    assert by_value > 22  # whoever goes by the lowest value is wrong nearly always
    assert named == 0


def test_a_small_group_is_named_where_its_loss_is_beyond_doubt():
    values, recalls, _ = planted([1000, 19], [0.8, 0.0])
    section = groups_section("c", values, recalls)
    assert section.worst == "g1"
    assert section.rows[0].small
    only = [recall[np.array(values) == "g1"][:5] for recall in recalls.values()]
    tiny = groups_section("c", ["g1"] * 5, dict(zip(recalls, only, strict=True)))
    assert tiny.worst is None
    assert tiny.rows[0].group == "g1"


def test_queries_of_one_identity_count_as_one_where_the_worst_is_sought():
    values, recalls, _ = planted([1000, 19], [0.8, 0.0])
    everyone = np.arange(1019)
    everyone[np.array(values) == "g1"] = 0  # all of the small group are one person
    assert groups_section("c", values, recalls, everyone).worst == "g0"


def test_what_is_missing_is_none_and_unanswered_queries_are_left_out():
    values, recalls, _ = planted([50, 40], [0.8, 0.2])
    recalls = {name: np.append(recall, [np.nan, np.nan, 1.0]) for name, recall in recalls.items()}
    section = groups_section("c", [*values, "nobody", "g0", None], {"transformed": recalls["transformed"]}).to_dict()
    rows = {row["group"]: row for row in section["rows"]}
    assert set(rows) == {"g0", "g1", NONE}  # nobody's only query has no answer
    assert rows["g0"]["queries"] == 50
    assert rows["g0"]["old_to_old"] is rows["g0"]["new_to_new"] is rows["g0"]["change"] is None
    assert rows["g1"]["transformed"]["value"] < 0.5
    assert section["worst"] == "g1"  # by recall, where there is nothing to compare with
    empty = groups_section("c", ["a"], {"old_to_old": np.array([np.nan])})
    assert (empty.rows, empty.worst, empty.left_out) == ((), None, 0)


def test_of_many_groups_the_worst_are_shown_and_the_rest_counted():
    sizes = [30] * 70
    values, recalls, _ = planted(sizes, [0.8] * 69 + [0.1])
    section = groups_section("c", values, recalls)
    assert len(section.rows) == SHOWN
    assert section.left_out == 20
    assert section.worst == section.rows[0].group == "g69"
    many = JUDGED + 3
    one_each = groups_section("id", [str(i) for i in range(many)], {"transformed": np.ones(many)})
    assert len(one_each.rows) == SHOWN
    assert one_each.left_out == many - SHOWN


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="groups need one of old_to_old, new_to_new and transformed, found naive"):
        groups_section("c", ["a"], {"naive": np.ones(1)})
    with pytest.raises(ValueError, match="column 'c' has 2 values, expected one for each query"):
        groups_section("c", ["a", "b"], {"transformed": np.ones(3)})


def test_flips_are_told_with_their_items():
    before = np.array([1, 1, 0, 1, np.nan, 1.0])
    after = np.array([0, 1, 1, 0, np.nan, 1.0])
    found = flips_section([f"i{row}" for row in range(6)], {"old_to_old": before, "transformed": after}).to_dict()
    assert found["items"] == ["i0", "i3"]
    assert (found["negative"], found["positive"]) == (2, 1)
    assert found["negative_rate"]["value"] == pytest.approx(2 / 5)
    assert found["negative_rate"]["low"] < 2 / 5 < found["negative_rate"]["high"]
    assert (found["before"], found["after"]) == ("old_to_old", "transformed")
    many = flips_section(list(range(500)), {"old_to_old": np.ones(500), "transformed": np.zeros(500)})
    assert many.negative == 500
    assert many.items == tuple(range(FLIPPED_ITEMS))
    assert flips_section(
        ["a"], {"a": np.array([np.nan]), "b": np.array([np.nan])}, before="a", after="b"
    ).to_dict() == {
        "negative": 0,
        "positive": 0,
        "negative_rate": None,
        "items": [],
        "before": "a",
        "after": "b",
    }
