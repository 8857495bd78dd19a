"""Which lines each section of the report draws: JSON in, charts out; an absent or empty section draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from compat.evaluation.page.axes import Axis
from compat.evaluation.page.figures import LineChart, Rule, Series, curve, line_chart
from compat.evaluation.rows import is_number, readable_setting

STYLES = {
    "old_to_old": ("old", "square"),
    "old_to_old_corrected": ("corrected", "diamond"),
    "new_to_new": ("new", "triangle"),
    "naive": ("naive", "bar"),
    "transformed": ("bridge", "circle"),
    "transformed_uncorrected": ("uncorrected", "point"),
}
"""Class (colour and dashes) and marker of each setting: the same in every chart."""
FURTHER = (("series-a", "diamond"), ("series-b", "point"), ("series-c", "square"), ("series-d", "triangle"))
"""Those of anything else, in turn."""
MOST_BARS = 64
"""Bins of a drawn histogram; finer ones are added up."""


def cmc_chart(report: Mapping[str, Any]) -> LineChart | None:
    """Cumulative match characteristic: how often a right item is among the first k."""
    found = report.get("cmc") or {}
    depth = found.get("depth") or []
    series = _by_setting({name: (depth, hits) for name, hits in (found.get("settings") or {}).items()})
    return line_chart("Found within the first k", series, x_label="k", y_label="share of queries (CMC)", log_x=True)


def verification_charts(report: Mapping[str, Any]) -> list[LineChart]:
    """ROC, DET and precision over recall of every setting, false rates on logarithmic axes."""
    settings = (report.get("verification") or {}).get("settings") or {}
    roc = line_chart(
        "Accepted pairs (ROC)",
        _by_setting({name: _lists(found.get("roc"), "far", "tar") for name, found in settings.items()}),
        x_label="false accept rate (FAR)",
        y_label="true accept rate (TAR)",
        log_x=True,
        within=(1.0,),
    )
    det = line_chart(
        "Errors against each other (DET)",
        _by_setting({name: _lists(found.get("det"), "fmr", "fnmr") for name, found in settings.items()}),
        x_label="false match rate (FMR)",
        y_label="false non-match rate (FNMR)",
        log_x=True,
        log_y=True,
        within=(1.0,),
        least=(1.0,),
    )
    precision = line_chart(
        "Precision of the accepted pairs",
        _by_setting({n: _lists(found.get("precision_recall"), "recall", "precision") for n, found in settings.items()}),
        x_label="recall (TAR)",
        y_label="precision",
        within=(0.0, 1.0),
        least=(0.0, 1.0),
    )
    return [chart for chart in (roc, det, precision) if chart]


def histogram_charts(report: Mapping[str, Any]) -> list[LineChart]:
    """Scores of genuine and impostor pairs, a chart a setting on one scale, the old threshold where it was kept."""
    found = report.get("verification") or {}
    old = found.get("old_threshold") or {}
    kept = {"old_to_old", *(old.get("settings") or {})} if is_number(old.get("threshold")) else set()
    histograms = {name: _histogram(setting.get("histogram")) for name, setting in (found.get("settings") or {}).items()}
    ends = [edge for edges, *_ in histograms.values() if edges for edge in (edges[0], edges[-1])]
    charts = []
    for name, (edges, genuine, impostor) in histograms.items():
        chart = line_chart(
            readable_setting(name),
            [
                Series("genuine", *_steps(edges, genuine), kind="genuine", filled=True),
                Series("impostor", *_steps(edges, impostor), kind="impostor", filled=True),
            ],
            x_label="score",
            y_label="share of pairs",
            within=ends,
            least=(0,),
            rules=[Rule(old["threshold"], "old threshold", "limit", vertical=True)] if name in kept else (),
        )
        charts += [chart] if chart else []
    return charts


def open_set_chart(report: Mapping[str, Any]) -> LineChart | None:
    """How many enrolled probes are found against how many unknown ones are mistaken for somebody."""
    settings = (report.get("open_set") or {}).get("settings") or {}
    return line_chart(
        "Identified probes",
        _by_setting({name: _lists(found, "fpir", "tpir") for name, found in settings.items()}),
        x_label="false positive identification rate (FPIR)",
        y_label="true positive identification rate (TPIR)",
        log_x=True,
        within=(1.0,),
    )


def backfill_chart(report: Mapping[str, Any]) -> LineChart | None:
    """Recall@1 as more of the gallery is re-embedded, a line an order, targets as horizontal lines."""
    found = report.get("backfill") or {}
    curves = {
        str(name).replace("_", " "): ([100 * x for x in order["fraction"]], order["recall_at_1"])
        for name, order in (found.get("orders") or {}).items()
    }
    rules = [
        Rule(target["recall_at_1"], readable_setting(target["name"]), STYLES.get(target["name"], ("limit", ""))[0])
        for target in found.get("targets") or []
        if is_number(target.get("recall_at_1"))
    ]
    return line_chart(
        "Recall@1 on the way",
        _by_setting(curves),
        x_label="% of the gallery re-embedded",
        y_label="recall@1",
        rules=rules,
    )


def confidence_chart(report: Mapping[str, Any]) -> LineChart | None:
    """Recall@1 of the queries still answered as the least familiar are left out, with its interval."""
    found = report.get("confidence") or {}
    recalls = [recall or {} for recall in found.get("recall_at_1") or []]
    value, low, high = ([recall.get(key) for recall in recalls] for key in ("value", "low", "high"))
    share = [100 * x for x in found.get("abstained") or []]
    answered = Series("least familiar first", share, value, kind="bridge", marker="circle", low=low, high=high)
    rules = [Rule(value[0], "at random", "naive")] if value and is_number(value[0]) else []
    return line_chart(
        "Recall@1 of the queries answered",
        [answered],
        x_label="% of queries abstained on",
        y_label="recall@1",
        rules=rules,
    )


def training_charts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`{name, charts}` a training run, a small chart a series."""
    groups = []
    for group in report.get("training_curves") or []:
        drawn = [curve(series, str(group.get("x_label") or "step")) for series in group["series"]]
        if charts := [chart for chart in drawn if chart]:
            groups.append({"name": group["name"], "charts": charts})
    return groups


def change_marks(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each group's change with its interval as percentages of one axis around zero; None where there is none.

    Returns:
        `{"zero": x, "marks": [(value, low, high) or None, ...]}`, in the order of the groups.
    """
    changes = [row.get("change") or {} for row in (report.get("by_group") or {}).get("rows") or []]
    ends = ("value", "low", "high")
    numbers = [change[end] for change in changes for end in ends if is_number(change.get(end))]
    if not numbers:
        return None
    room = max(map(abs, numbers)) / 2  # so that both sides have a name
    axis = Axis.over([*numbers, -room, room])
    marks = [
        tuple(round(100 * axis.share(change[end]), 1) for end in ends)
        if all(is_number(change.get(end)) for end in ends)
        else None
        for change in changes
    ]
    return {"zero": round(100 * axis.share(0.0), 1), "marks": marks}


def _by_setting(curves: Mapping[str, tuple[Sequence[Any], Sequence[Any]]]) -> list[Series]:
    further = [name for name in curves if name not in STYLES]
    series = []
    for name, (x, y) in curves.items():
        kind, marker = STYLES[name] if name in STYLES else FURTHER[further.index(name) % len(FURTHER)]
        series.append(Series(readable_setting(name), x, y, kind=kind, marker=marker))
    return series


def _lists(found: Mapping[str, Any] | None, x: str, y: str) -> tuple[Sequence[Any], Sequence[Any]]:
    found = found or {}
    return found.get(x) or [], found.get(y) or []


def _histogram(found: Mapping[str, Any] | None) -> tuple[list[float], list[float], list[float]]:
    """Edges [b + 1] and shares [b] of the bins that hold anything, b at most `MOST_BARS`."""
    found = found or {}
    edges, genuine, impostor = (list(found.get(key) or []) for key in ("edges", "genuine", "impostor"))
    filled = [i for i, pair in enumerate(zip(genuine, impostor, strict=False)) if any(pair)]
    if len(edges) != len(genuine) + 1 or not filled:
        return [], [], []
    first, last = filled[0], filled[-1] + 1
    every = -(-(last - first) // MOST_BARS)
    last = min(len(genuine), first - (first - last) // every * every)  # whole bars, as far as there are bins
    edges, genuine, impostor = edges[first : last + 1], genuine[first:last], impostor[first:last]
    rough = [*edges[:-1:every], edges[-1]]
    return rough, _shares(genuine, every), _shares(impostor, every)


def _shares(counts: Sequence[float], every: int) -> list[float]:
    total = sum(counts) or 1
    return [sum(counts[at : at + every]) / total for at in range(0, len(counts), every)]


def _steps(edges: Sequence[float], heights: Sequence[float]) -> tuple[list[float], list[float]]:
    x = [edge for pair in pairwise(edges) for edge in pair]
    return x, [height for height in heights for _ in range(2)]
