"""The tables of a report, each once: the page draws them, the exports write them as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from compat.evaluation.page.axes import power_of_ten
from compat.evaluation.rows import KINDS, is_number, readable_setting, report_rows

Style = Literal["number", "percent", "signed", "count", "rate"]

MEASURES = {
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_10": "recall@10",
    "precision_at_10": "precision@10",
    "mean_average_precision": "mAP",
    "mean_reciprocal_rank": "MRR",
    "ndcg_at_10": "nDCG@10",
}


@dataclass(frozen=True)
class Column:
    """A measure: its name in JSON, its title for people, and how its numbers are written."""

    key: str
    title: str
    style: Style = "number"


@dataclass(frozen=True)
class Line:
    """One row of a sheet. A value is a number, `{"value", "low", "high"}`, a word, or None; absent is left empty."""

    name: str
    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A table. `subject` heads the column of names."""

    title: str
    subject: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def cells(self, line: Line) -> list[tuple[str, str]]:
        """Text of each cell of a line, and that of its interval; both empty where the line says nothing of it."""
        return [
            shown(line.values[column.key], column.style) if column.key in line.values else ("", "")
            for column in self.columns
        ]

    def part(self, first: int, last: int | None = None) -> Sheet:
        """The same table with some of its lines."""
        return Sheet(self.title, self.subject, self.columns, self.lines[first:last])


def shown(value: Any, style: Style = "number") -> tuple[str, str]:
    """A value and its interval as text: `("0.912", "[0.880, 0.941]")`; a dash where there is no number."""
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, Mapping):
        return (_written(value, style) if is_number(value) else "-"), ""
    if not is_number(value.get("value")):
        return "-", ""
    ends = [value[end] for end in ("low", "high") if is_number(value.get(end))]
    unit = "" if style == "percent" else None  # 93.1% [90.2, 95.0]: the unit once
    between = f"[{', '.join(_written(end, style, unit) for end in ends)}]" if len(ends) == 2 else ""
    return _written(value["value"], style), between


def _written(number: float, style: Style, unit: str | None = None) -> str:
    if style == "percent":
        return f"{100 * number:.1f}{'%' if unit is None else unit}"
    if style == "signed":
        return f"{number:+.3f}"
    if style == "count":
        return f"{number:,.0f}"
    return rate(number) if style == "rate" else f"{number:,.3f}"


def rate(number: float) -> str:
    """An error rate that may be tiny: 2.5%, 0.01%, then 3.2·10⁻⁵."""
    if number == 0 or number >= 1e-4 * (1 - 1e-9):
        return f"{100 * number:.3g}%"
    power = math.floor(math.log10(number) + 1e-9)
    factor = f"{number / 10.0**power:.2g}"
    return power_of_ten(power) if factor == "1" else f"{factor}·{power_of_ten(power)}"


def operating_point(number: float) -> str:
    """A rate that somebody chose: 10⁻⁴ where it is a power of ten."""
    if 0 < number < 1 and abs(math.log10(number) - round(math.log10(number))) < 1e-9:
        return power_of_ten(round(math.log10(number)))
    return rate(number)


def report_sheets(report: Mapping[str, Any]) -> list[Sheet]:
    """What the exports hold: settings, bridges, groups, verification and open set, those that the report has."""
    native = (settings_sheet(report), bridges_sheet(report))
    compared = (verification_sheet(report), pair_list_sheet(report), open_set_sheet(report))
    later = (backfill_sheet(report), reranked_sheet(report), approximate_sheet(report))
    made = (*native, means_sheet(report), groups_sheet(report), *compared, old_threshold_sheet(report), *later)
    return [sheet for sheet in made if sheet]


def settings_sheet(report: Mapping[str, Any]) -> Sheet:
    """Every measure of every setting and compared transformer."""
    rows = report_rows(report)
    keys = [key for key in MEASURES if any(row.measure(key) for row in rows)] or list(MEASURES)
    columns = tuple(Column(key, MEASURES[key]) for key in keys)
    lines = tuple(Line(row.name, row.kind, {key: row.measure(key) for key in keys}) for row in rows)
    return Sheet("All measures", "setting", columns, lines)


def bridges_sheet(report: Mapping[str, Any]) -> Sheet:
    """What every transformer keeps of the old system and gains towards the new one."""
    rows = [row for row in report_rows(report) if row.bridged]
    columns = [Column("retention", "retention", "percent"), Column("update_gain", "update gain", "percent")]
    if any(row.gain_over_best for row in rows):
        columns.append(Column("gain_over_best", "recall@1 against transformed", "signed"))
    lines = []
    for row in rows:
        values = {"retention": row.retention, "update_gain": row.update_gain}
        if row.gain_over_best:
            values["gain_over_best"] = row.gain_over_best
        lines.append(Line(row.name, row.kind, values))
    return Sheet("Bridges against the native systems", "setting", tuple(columns), tuple(lines))


def groups_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """Recall@1 by group, the worst first; None where the report has no groups."""
    groups = report.get("by_group") or {}
    rows = groups.get("rows")
    if not rows:
        return None
    settings = [key for key in ("old_to_old", "transformed", "new_to_new") if any(row.get(key) for row in rows)]
    columns = [Column("queries", "queries", "count"), *(Column(key, readable_setting(key)) for key in settings)]
    columns += [Column("change", "change", "signed")] if any(row.get("change") for row in rows) else []
    lines = [
        Line(f"{row['group']}{' (few)' if row.get('small') else ''}", "", {c.key: row.get(c.key) for c in columns})
        for row in rows
    ]
    return Sheet(f"Recall@1 by {groups['column']}", str(groups["column"]), tuple(columns), tuple(lines))


def worst_group(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of the group that is called the worst, None where none is."""
    groups = report.get("by_group") or {}
    return next((row for row in groups.get("rows") or [] if row["group"] == groups.get("worst")), None)


def surely_loses(row: Mapping[str, Any]) -> bool:
    """Whether the whole interval of a group's change lies below zero; also where no change was measured."""
    change = row.get("change")
    return not change or (is_number(change.get("high")) and change["high"] < 0)


def verification_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """Equal error rate, and the share of genuine pairs accepted at each false accept rate; None without pairs."""
    settings = (report.get("verification") or {}).get("settings") or {}
    counts = (Column("genuine_pairs", "genuine pairs", "count"), Column("impostor_pairs", "impostor pairs", "count"))
    columns = (*counts, Column("equal_error_rate", "EER", "rate"))
    return _operating_sheet("Verification: same or different", settings, columns, ("tar_at_far", "tar", "far"))


def means_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """Recall@1 in a gallery of one mean vector a label; None where it was not searched."""
    found = report.get("means") or {}
    lines = [
        Line(readable_setting(name), KINDS.get(name, "other"), {"recall_at_1_of_means": value})
        for name, value in (found.get("recall_at_1") or {}).items()
    ]
    title = f"In a gallery of {found.get('labels')} means, one a label"
    return Sheet(title, "setting", (Column("recall_at_1_of_means", "recall@1"),), tuple(lines)) if lines else None


def pair_list_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """Accuracy on a list of pairs, over its folds; None without a list."""
    found = report.get("pair_list") or {}
    columns = (
        Column("listed_accuracy", "accuracy", "percent"),
        Column("listed_standard_error", "standard error", "percent"),
        Column("listed_equal_error_rate", "EER", "rate"),
    )
    lines = []
    for name, values in (found.get("settings") or {}).items():
        accuracy = values["accuracy"]
        shares = {
            "listed_accuracy": {"value": accuracy["mean"]},
            "listed_standard_error": {"value": accuracy["standard_error"]},
            "listed_equal_error_rate": values["equal_error_rate"],
        }
        lines.append(Line(readable_setting(name), KINDS.get(name, "other"), shares))
    pairs = f"{found.get('genuine_pairs')} genuine and {found.get('impostor_pairs')} impostor pairs"
    return Sheet(f"The list of {pairs}", "setting", columns, tuple(lines)) if lines else None


def open_set_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """The share of enrolled probes found at each false positive identification rate; None without unknown probes."""
    settings = (report.get("open_set") or {}).get("settings") or {}
    return _operating_sheet("Open set: known or unknown", settings, (), ("tpir_at_fpir", "tpir", "fpir"))


def _operating_sheet(
    title: str, settings: Mapping[str, Any], columns: Iterable[Column], keys: tuple[str, str, str]
) -> Sheet | None:
    listed, found, false = keys
    rates = sorted({point[false] for setting in settings.values() for point in setting.get(listed) or []}, reverse=True)
    if not rates:
        return None
    columns = (
        *columns,
        *(
            Column(f"{listed}_{r:g}", f"{found.upper()} at {false.upper()}\N{NO-BREAK SPACE}{operating_point(r)}")
            for r in rates
        ),
    )
    lines = []
    for name, setting in settings.items():
        values = {column.key: setting.get(column.key) for column in columns}
        values |= {f"{listed}_{point[false]:g}": point.get(found) for point in setting.get(listed) or []}
        lines.append(Line(readable_setting(name), KINDS.get(name, "other"), values))
    return Sheet(title, "setting", tuple(columns), tuple(lines))


def point_reasons(section: Mapping[str, Any], listed: str) -> list[str]:
    """Why some rates have no number, each reason once."""
    points = (point for setting in (section.get("settings") or {}).values() for point in setting.get(listed) or [])
    return list(dict.fromkeys(point["reason"] for point in points if point.get("reason")))


def old_threshold_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """False accepts and rejects with the old system's threshold kept, and with one set anew; None where unknown."""
    kept = (report.get("verification") or {}).get("old_threshold")
    if not kept or not kept.get("settings"):
        return None
    columns = (
        Column("far", "FAR, kept", "rate"),
        Column("frr", "FRR, kept", "rate"),
        Column("new_threshold", "threshold set anew", "number"),
        Column("new_far", "its FAR", "rate"),
        Column("new_frr", "its FRR", "rate"),
    )
    lines = []
    for name, setting in kept["settings"].items():
        again = setting.get("recalibrated") or {}
        values = {"far": setting.get("far"), "frr": setting.get("frr"), "new_threshold": again.get("threshold")}
        values |= {"new_far": again.get("far"), "new_frr": again.get("frr")}
        lines.append(Line(readable_setting(name), KINDS.get(name, "other"), values))
    return Sheet("With the old threshold", "setting", columns, tuple(lines))


def approximate_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """Approximate indexes beside exact search; None where none was tried."""
    lines = [
        Line(f"{readable_setting(row['setting'])}, {row['factory']}", KINDS.get(row["setting"], "other"), row)
        for row in report.get("approximate") or []
    ]
    columns = (Column("recall_at_1", "recall@1"), Column("agreement", "exact neighbours found", "percent"))
    return Sheet("Approximate indexes", "index", columns, tuple(lines)) if lines else None


def backfill_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """How much must be re-embedded, by order, to reach each target; None without a backfill."""
    orders = (report.get("backfill") or {}).get("orders") or {}
    named = list(dict.fromkeys(reach["target"] for order in orders.values() for reach in order.get("reaches") or []))
    columns = [Column("area", "mean recall@1")]
    columns += [Column(f"reach {name}", f"to reach {readable_setting(name)}", "percent") for name in named]
    lines = []
    for name, order in orders.items():
        reached = {f"reach {reach['target']}": reach.get("fraction") for reach in order.get("reaches") or []}
        values = {key: "never" if fraction is None else fraction for key, fraction in reached.items()}
        lines.append(Line(str(name).replace("_", " "), "", {"area": order.get("area"), **values}))
    return Sheet("Backfill", "order", tuple(columns), tuple(lines)) if lines else None


def reranked_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """Recall@1 where the old index proposes and the new model decides; None where that was not measured."""
    lines = [
        Line(f"{row['proposed_by']}, {row['candidates']:,} candidates", "", row)
        for row in (report.get("backfill") or {}).get("reranked") or []
    ]
    return Sheet("Re-ranking", "proposed by", (Column("recall_at_1", "recall@1"),), tuple(lines)) if lines else None


def confidence_sheet(report: Mapping[str, Any]) -> Sheet | None:
    """Recall@1 of the queries kept, by share abstained on; None without confidence."""
    found = report.get("confidence") or {}
    listed = (found.get(key) or [] for key in ("abstained", "threshold", "recall_at_1"))
    lines = [
        Line(f"{share:.0%}", "", {"threshold": threshold, "recall_at_1": recall})
        for share, threshold, recall in zip_longest(*listed)
        if is_number(share)
    ]
    columns = (Column("threshold", "answered up to"), Column("recall_at_1", "recall@1 of the rest"))
    return Sheet("Abstaining", "abstained", columns, tuple(lines)) if lines else None
