"""The page of a study: every trial is drawn once, in its place, and nothing is asked of a network."""

import re

from compat.tuning.page import cost_charts, history_chart, render_study, slice_charts
from compat.tuning.scatter import Points, scatter

FRAME_BOTTOM = 250


def row(number, value, *, state="complete", **more):
    of_state = {"value": value, "last_value": value} if state == "complete" else {"value": None, "last_value": value}
    given = {"seconds": 1.0 + number, "pairs_per_second": 1000.0 * (number + 1), "epochs": 4, "pairing": "none"}
    more = {"learned_nothing": False} | more
    return {"trial": number, "state": state, **of_state, **given, "learning_rate": 10.0 ** (number % 3 - 4), **more}


ROWS = [row(0, 0.7), row(1, 0.6, state="pruned"), row(2, 0.9, pairing="<i>"), row(3, 0.0, state="pruned"), row(4, 0.8)]


def contest(verdict):
    difference = {"value": 0.1, "low": 0.05, "high": 0.15}
    return {
        "queries": 321,
        "network": 0.8642,
        "ridge": 0.7531,
        "difference": difference,
        "parts": [],
        "verdict": verdict,
    }


def record(**changes):
    best = {"trial": 2, "config": "abc", "value": 0.9, "elsewhere": [0.88], "judged": 0.88}
    found = {
        "format_version": 1,
        "storage": "postgresql://ada:***@host/base",
        "family": "mlp",
        "direction": "new-to-old",
        "pairs": {"count": 1200, "fingerprint": "0" * 32, "old": "<old>", "new": "new", "labelled": True},
        "space": {"values": {"learning_rate": [1e-4, 1e-2], "pairing": ["none", "<i>"]}, "left_out": ["width: none"]},
        "trials": {"wanted": 3, "complete": 3, "pruned": 2},
        "best": best,
        "finalists": [best],
        "ridge": {"strength": 1.0, "recall_at_1": 0.7, "mean_reciprocal_rank": 0.75},
        "against_ridge": contest("better"),
        "sentence": "the best mlp, trial 2",
        "importances": {"shares": {"learning_rate": 0.6, "pairing": 0.0}, "note": "rate"},
    }
    return found | changes


def places(drawn):
    """Middles of the markers of a path."""
    outlines = [re.findall(r"(-?[\d.]+) (-?[\d.]+)", outline) for outline in drawn.split("Z") if outline]
    corners = [[(float(x), float(y)) for x, y in outline] for outline in outlines]
    return [((min(x for x, _ in c) + max(x for x, _ in c)) / 2, sum(y for _, y in c) / len(c)) for c in corners]


def test_every_trial_is_drawn_once_and_the_best_so_far_rises():
    chart = history_chart(record(), ROWS)
    assert chart is not None
    best, pruned, complete = chart.lines
    assert [len(places(line.markers)) for line in (pruned, complete)] == [2, 3]
    heights = [y for _, y in places(complete.markers)]
    assert heights[1] < heights[2] < heights[0]  # SVG counts from the top
    ends = [float(y) for _, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", best.path)]
    assert ends == sorted(ends, reverse=True)
    # A pruned trial of 0 would press the others together: it lies on the lower edge instead.
    lowest = max(y for _, y in places(pruned.markers))
    assert abs(lowest - FRAME_BOTTOM) < 1
    assert chart.y_ticks[0][1] not in ("0", "0.0")


def test_slices_show_parameters_that_were_drawn_on_their_own_scale():
    rate, pairing = slice_charts(record(), ROWS)
    assert [label for _, label in pairing.x_ticks] == ["none", "<i>"]
    assert sum(len(places(line.markers)) for line in rate.lines) == len(ROWS)
    x = {round(at) for line in rate.lines for at, _ in places(line.markers)}
    assert len(x) == 3
    low, middle, high = sorted(x)
    assert abs((high - middle) - (middle - low)) <= 2  # 1e-4, 1e-3 and 1e-2: even on a logarithmic scale
    without = [each | {"learning_rate": None} for each in ROWS]
    assert [chart.title for chart in slice_charts(record(), without)] == ["pairing"]


def test_costs_are_of_complete_trials_alone():
    for chart in cost_charts(record(), ROWS):
        assert [len(places(line.markers)) for line in chart.lines] == [3]


def test_labels_of_ticks_do_not_run_into_each_other():
    from compat.evaluation.page.figures import SMALL

    points = Points("all", [10.0**-k for k in range(3)], [0.1, 0.2, 0.3], "plain")
    chart = scatter("", [points], x_label="", y_label="", frame=SMALL, level=0.2, floor=0.1, log_x=True)
    assert chart is not None
    for (left, a), (right, b) in zip(chart.x_ticks, chart.x_ticks[1:], strict=False):
        assert right - left > 7 * (len(a) + len(b)) / 2
    assert scatter("", [], x_label="", y_label="", frame=SMALL, level=0.2, floor=0.1) is None


def test_the_page_is_one_file_and_trusts_no_name():
    page = render_study(record(), ROWS)
    assert "<i>" not in page
    assert "&lt;i&gt;" in page
    assert "&lt;old&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<script|src=", page)
    assert "Trial 2 is the best" in page
    assert "60%" in page
    assert "width: none" in page


def test_the_page_tells_what_was_chosen_by_from_what_was_held_out():
    page = render_study(record(), ROWS)
    assert "from 1 other seed and" in page
    assert "Held out are 321 queries that nothing was chosen by" in page
    assert "0.8642" in page
    assert "0.7531" in page
    assert "Learned nothing" not in page
    assert "A plain linear map does better" in render_study(record(against_ridge=contest("worse")), ROWS)
    idle = [each | {"learned_nothing": each["trial"] in (0, 4)} for each in ROWS]
    assert "trials 0, 4. Their value" in render_study(record(), idle)


def test_trials_are_counted_in_whole_numbers():
    for count in (1, 2, 3):
        chart = history_chart(record(), ROWS[:count])
        assert chart is not None
        assert [label for _, label in chart.x_ticks] == [str(number) for number in range(count)]


def test_what_is_missing_is_left_out_of_the_page():
    alone = record(
        importances={"shares": {}, "note": "1 complete trials tell nothing of importances"},
        against_ridge=contest("not told apart"),
    )
    page = render_study(alone, [row(2, 0.9)])
    assert "tell nothing of importances" in page
    assert "A plain linear map does as well" in page
    assert "Test split" not in page
