"""Charts: marks lie where the numbers say, ticks are sound, and lines differ in more than colour."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_report import plant_report

from compat.evaluation.page.axes import LogAxis, power_of_ten
from compat.evaluation.page.charts import (
    STYLES,
    backfill_chart,
    change_marks,
    cmc_chart,
    confidence_chart,
    histogram_charts,
    open_set_chart,
    verification_charts,
)
from compat.evaluation.page.figures import LETTER_WIDTH, WIDE, Rule, Series, line_chart
from compat.evaluation.page.paths import MARKERS, SMALLEST_BEND, distance, without_straight


def numbers(path):
    return np.array(re.findall(r"-?\d+\.?\d*", path), float).reshape(-1, 2)


def value_at(place, ticks, log):
    """What an axis says at a place, read from its first and last tick alone."""
    (a, low), (b, high) = ticks[0], ticks[-1]
    low, high = (parsed(text) for text in (low, high))
    share = (place - a) / (b - a)
    return low * (high / low) ** share if log else low + share * (high - low)


def parsed(text):
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    power = re.fullmatch("10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    return 10.0 ** int(power[1].translate(digits)) if power else float(text)


@given(st.floats(1e-12, 1e12), st.floats(1.0, 1e12))
def test_a_logarithmic_axis_labels_two_to_eight_values_where_they_lie(low, ratio):
    axis = LogAxis.over([low, low * ratio])
    assert axis.share(axis.low) == pytest.approx(0)
    assert axis.share(axis.high) == pytest.approx(1)
    assert 2 <= len(axis.ticks) <= 8
    assert len({label for _, label in axis.ticks}) == len(axis.ticks) or ratio < 1.02
    for share, label in axis.ticks:
        assert axis.share(parsed(label)) == pytest.approx(share, abs=0.01 if ratio > 2 else np.inf)
    assert all(0 <= share <= 1 for share in axis.minor_ticks)


def test_powers_are_written_as_people_write_them():
    assert [power_of_ten(power) for power in (-12, -1, 0, 1, 3)] == ["10⁻¹²", "10⁻¹", "1", "10", "1000"]


@pytest.mark.parametrize("log", [False, True])
def test_a_line_passes_through_its_points(log):
    x, y = [0.001, 0.01, 0.1, 1.0], [0.2, 0.9, 0.3, 0.8]
    chart = line_chart("t", [Series("one", x, y)], x_label="x", y_label="y", log_x=log)
    assert chart
    drawn = numbers(chart.lines[0].path)[1:]  # the first is there twice
    read = [(value_at(a, chart.x_ticks, log), value_at(b, chart.y_ticks, False)) for a, b in drawn]
    assert np.allclose(read, np.column_stack([x, y]), rtol=0.01, atol=0.002)


def test_lines_are_thinned_without_being_seen():
    t = np.linspace(0, 12, 5000)
    places = list(zip(50 + 30 * t, 140 + 90 * np.sin(t), strict=True))
    kept = np.array(without_straight(places))
    assert len(kept) < 120
    off = np.interp(50 + 30 * t, kept[:, 0], kept[:, 1]) - (140 + 90 * np.sin(t))
    assert (np.abs(off) / np.hypot(1, 3 * np.cos(t))).max() < 1.1 * SMALLEST_BEND  # across the line, which is steep
    assert without_straight(places[:1]) == places[:1]
    steps = [(0.0, 0.0), (1.0, 0.0), (1.0, 5.0), (2.0, 5.0), (2.0, 0.0)]
    assert without_straight(steps) == steps


def test_what_a_logarithm_does_not_know_is_passed_over():
    chart = line_chart("t", [Series("s", [0, 1e-3, 1], [0.1, 0, 0.5])], x_label="x", log_x=True, log_y=True)
    assert chart
    assert len(numbers(chart.lines[0].path)) == 2
    assert line_chart("t", [Series("s", [0, 1], [None, float("nan")])], x_label="x") is None
    rules = [Rule(0.0, "never", "limit", vertical=True), Rule(0.3, "here", "limit")]
    chart = line_chart("t", [Series("s", [1e-3, 1], [0.1, 0.5])], x_label="x", log_x=True, rules=rules)
    assert chart
    assert [rule.label for rule in chart.rules] == ["here"]


def test_a_falling_line_is_the_same_line_either_way():
    there = line_chart("t", [Series("s", [1, 2, 3], [3, 1, 2], marker="circle")], x_label="x")
    back = line_chart("t", [Series("s", [3, 2, 1], [2, 1, 3], marker="circle")], x_label="x")
    assert there == back


def test_a_band_holds_its_line():
    chart = confidence_chart(plant_report())
    assert chart
    band, line = numbers(chart.lines[0].band), numbers(chart.lines[0].path)
    upper, lower = band[: len(band) // 2], band[len(band) // 2 :][::-1]
    assert len(upper) == 11
    for edge, sign in ((upper, 1), (lower, -1)):
        assert (sign * (np.interp(edge[:, 0], line[:, 0], line[:, 1]) - edge[:, 1]) > 5).all()


def test_labels_of_near_targets_do_not_cover_each_other_nor_the_line():
    rules = [Rule(0.80, "first", "old"), Rule(0.801, "second", "new"), Rule(0.802, "third", "limit")]
    chart = line_chart("t", [Series("s", [0, 1], [0.5, 0.81])], x_label="x", rules=rules)
    assert chart
    heights = sorted(rule.text[1] for rule in chart.rules)
    assert np.diff(heights).min() >= 14
    for rule in chart.rules:
        assert rule.anchor == "start"  # the line climbs to the right, so the room is on the left
        assert rule.ends[0] == WIDE.left
    assert distance([[(0.0, 0.0), (100.0, 100.0)]], 60, 60 + LETTER_WIDTH, 0) == pytest.approx(60, abs=1)
    assert distance([], 0, 1, 0) == np.inf


def test_settings_look_alike_in_every_chart_and_differ_without_colour():
    report = plant_report()
    looks = {}
    for chart in (cmc_chart(report), *verification_charts(report), open_set_chart(report)):
        assert chart
        for line in chart.lines:
            assert looks.setdefault(line.name, (line.kind, line.key)) == (line.kind, line.key)
            assert line.markers.count("M") == 5
    assert len({key for _, key in looks.values()}) == 4
    assert {marker for _, marker in STYLES.values()} <= set(MARKERS)
    backfill = backfill_chart(report)
    assert backfill
    assert len({line.key for line in backfill.lines}) == len({line.kind for line in backfill.lines}) == 3
    assert [rule.label for rule in backfill.rules] == ["99% of new to new", "old to old"]


def test_a_histogram_keeps_its_shares_and_marks_the_old_threshold_where_it_was_kept():
    report = plant_report()
    edges = np.linspace(-1, 1, 1001)
    genuine = np.zeros(1000)
    genuine[700:900] = 5
    report["verification"]["settings"] = {
        "old_to_old": {"histogram": {"edges": edges.tolist(), "genuine": genuine.tolist(), "impostor": [2] * 1000}},
        "new_to_new": {"histogram": {"edges": edges.tolist(), "genuine": genuine.tolist(), "impostor": [0] * 1000}},
        "empty": {"histogram": {"edges": [0, 1], "genuine": [0], "impostor": [0]}},
        "none": {},
    }
    old, new = histogram_charts(report)
    assert [len(chart.rules) for chart in (old, new)] == [1, 0]
    assert value_at(old.rules[0].ends[0], old.x_ticks, log=False) == pytest.approx(0.391, abs=0.005)
    for line in old.lines:
        drawn = numbers(line.path)[1:]
        x = np.array([value_at(at, old.x_ticks, log=False) for at in drawn[:, 0]])
        heights = np.array([value_at(at, old.y_ticks, log=False) for at in drawn[:, 1]])
        area = np.sum((heights[1:] + heights[:-1]) / 2 * np.diff(x))
        assert area == pytest.approx(16 * 2 / 1000, rel=0.05)  # a share of 1 in bars of 16 bins
    assert old.x_ticks == new.x_ticks


def test_changes_are_drawn_around_zero():
    marks = change_marks(plant_report())
    assert marks
    for row, mark in zip(plant_report()["by_group"]["rows"], marks["marks"], strict=True):
        assert (mark[0] < marks["zero"]) == (row["change"]["value"] < 0)
        assert mark[1] < mark[0] < mark[2]
    assert change_marks({"by_group": {"rows": [{"group": "a", "change": None}]}}) is None
    assert change_marks({}) is None
