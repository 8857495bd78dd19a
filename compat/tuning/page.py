"""The page of a study: one file that needs no network, script or server, drawn from study.json and the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import compat.evaluation.page
from compat.evaluation.page.figures import SMALL, WIDE, Frame, LineChart
from compat.tuning.options import RANGES
from compat.tuning.scatter import Points, scatter

RANK = "held-out reciprocal rank"
FULL = Frame(960, 300, 50, 948, 30, 250)
"""As wide as the page."""
ROOM_BELOW = 1.5
"""How far below the worst complete trial or ridge, in ranges of the complete trials, a chart still goes."""

Row = Mapping[str, Any]


def render_study(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The page of a study.

    Args:
        record: What study.json holds.
        rows: The trials, as trials.csv has them.
    """
    from jinja2 import Environment, FileSystemLoader

    folders = [Path(__file__).parent, *compat.evaluation.page.__path__]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["value"] = readable
    complete = [row for row in rows if row["state"] == "complete"]
    best = max((row["importance"] for row in _bars(record)), default=0.0)
    return environment.get_template("study.html.jinja").render(
        record=record,
        history=history_chart(record, rows),
        slices=slice_charts(record, rows),
        costs=cost_charts(record, rows),
        bars=_bars(record),
        most=best,
        best_row=next((row for row in complete if row["trial"] == record["best"]["trial"]), {}),
        nothing_learned=[row["trial"] for row in complete if row["learned_nothing"]],
        drawn=[name for name, values in record["space"]["values"].items() if len(values) > 1],
        ranges=RANGES,
    )


def history_chart(record: Mapping[str, Any], rows: Sequence[Row]) -> LineChart | None:
    """Every trial in its turn, and the best so far."""
    best_x, best_y = [], []
    for row in rows:
        if row["state"] == "complete" and (not best_y or row["value"] > best_y[-1]):
            best_x.append(row["trial"])
            best_y.append(row["value"])
    so_far = Points("best so far", best_x, best_y, "plain", joined=True)
    return scatter(
        "All trials",
        [so_far, *_trials(rows, "trial")],
        x_label="trial",
        y_label=RANK,
        frame=FULL,
        level=_ridge(record),
        floor=_floor(record, rows),
        note=_about_level(record),
    )


def slice_charts(record: Mapping[str, Any], rows: Sequence[Row]) -> list[LineChart]:
    """The value over each parameter that was drawn."""
    charts = []
    for name, values in record["space"]["values"].items():
        having = [row for row in rows if row.get(name) is not None]
        if len(values) < 2 or not having:
            continue
        chart = scatter(
            name.replace("_", " "),
            _trials(having, name),
            x_label="",
            y_label="",
            frame=SMALL,
            level=_ridge(record),
            floor=_floor(record, rows),
            log_x=name in RANGES,
            categories=() if name in RANGES else values,
        )
        charts += [chart] if chart else []
    return charts


def cost_charts(record: Mapping[str, Any], rows: Sequence[Row]) -> list[LineChart]:
    """The value over what a trial cost: seconds, and pairs a second."""
    charts = []
    fast = [{**row, "thousand_pairs_per_second": (row["pairs_per_second"] or 0) / 1000} for row in rows]
    for title, name, label in (
        ("Accuracy against time", "seconds", "seconds of a trial"),
        ("Accuracy against speed", "thousand_pairs_per_second", "thousand pairs a second"),
    ):
        complete = [row for row in fast if row["state"] == "complete" and row.get(name)]
        chart = scatter(
            title,
            _trials(complete, name),
            x_label=label,
            y_label=RANK,
            frame=WIDE,
            level=_ridge(record),
            floor=_floor(record, rows),
            log_x=True,
            note="dashed: ridge",
        )
        charts += [chart] if chart else []
    return charts


def readable(value: Any) -> str:
    """A value of an option in a few letters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _trials(rows: Sequence[Row], name: str) -> list[Points]:
    pruned = [row for row in rows if row["state"] == "pruned" and row["last_value"] is not None]
    complete = [row for row in rows if row["state"] == "complete"]

    def points(title: str, chosen: Sequence[Row], height: str, kind: str, shape: str) -> Points:
        return Points(title, [row[name] for row in chosen], [row[height] for row in chosen], kind, shape)

    return [
        points("pruned, at its last epoch", pruned, "last_value", "naive", "bar"),
        points("complete", complete, "value", "bridge", "circle"),
    ]


def _ridge(record: Mapping[str, Any]) -> float:
    return record["ridge"]["mean_reciprocal_rank"]


def _about_level(record: Mapping[str, Any]) -> str:
    return f"dashed: ridge, a plain linear map, {_ridge(record):.4f}"


def _floor(record: Mapping[str, Any], rows: Sequence[Row]) -> float:
    """The lowest height drawn: one diverged or early pruned trial must not press all others together."""
    values = [row["value"] for row in rows if row["state"] == "complete"] + [_ridge(record)]
    low, high = min(values), max(values)
    lowest = low - max(ROOM_BELOW * (high - low), 0.02)
    below = [row["last_value"] for row in rows if row["state"] == "pruned" and row["last_value"] is not None]
    return max(0.0, min([low, *(max(lowest, value) for value in below)]))


def _bars(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    shares = record["importances"]["shares"]
    return [{"name": name, "importance": share} for name, share in sorted(shares.items(), key=lambda item: -item[1])]
