"""The rows of a report, one a setting or compared transformer, and the table of them that a terminal shows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

Kind = Literal["old", "corrected", "new", "naive", "bridge", "other"]

WIDTH = 120
"""Characters in a line where there is no terminal to ask."""
NAMES = {
    "old_to_old": "old to old",
    "old_to_old_corrected": "old to old, corrected",
    "new_to_new": "new to new",
    "naive": "naive",
    "transformed": "transformed",
    "transformed_uncorrected": "transformed, uncorrected",
}
KINDS: dict[str, Kind] = {
    "old_to_old": "old",
    "old_to_old_corrected": "corrected",
    "new_to_new": "new",
    "naive": "naive",
    "transformed": "bridge",
}
CORRECTION = (
    "corrected: the hubness correction takes a share of each gallery vector's mean similarity to the training queries "
    "nearest to it off its score, so that vectors near to every query do not crowd out the right ones; this is in the "
    "figure of transformed because it is served, in one more dimension of the index"
)
"""What the hubness correction is, in one sentence."""
COLUMNS = {
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_10": "recall@10",
    "mean_average_precision": "mAP",
    "mean_reciprocal_rank": "MRR",
}
TERMINAL_COLUMNS = ("recall_at_1", "recall_at_5", "mean_average_precision")


@dataclass(frozen=True)
class Row:
    """What one way of searching scored.

    Attributes:
        name: What people read.
        kind: Whether the row is native to a model, the old one with a correction, naive, the transformer under
            judgement, or another way to bridge.
        measures: `{"value", "low", "high"}` by measure; None where the setting could not be formed.
        reason: Why it could not.
        retention: Share of old-to-old recall@1 kept; None where unknown.
        update_gain: Share of the new model's gain reached; None where unknown.
        bridged: Whether retention and update gain mean anything for this row.
    """

    name: str
    kind: Kind
    measures: Mapping[str, Any] | None
    reason: str = ""
    retention: Mapping[str, Any] | None = None
    update_gain: Mapping[str, Any] | None = None
    bridged: bool = False

    def measure(self, name: str) -> Mapping[str, Any] | None:
        """One measure, or None where there is no number."""
        found = (self.measures or {}).get(name)
        return found if found and is_number(found.get("value")) else None


def is_number(value: Any) -> bool:
    """Whether value is a finite number; NaN, None and words are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def report_rows(report: Mapping[str, Any]) -> list[Row]:
    """The rows of report.json: native settings, naive, the transformer, then the others, the best first."""
    settings, reasons = report["settings"], report.get("reasons") or {}
    served = _described(report.get("transformer")) + (", corrected" if is_corrected(report) else "")
    rows = []
    for key, name in NAMES.items():
        measures = settings.get(key)
        if key in ("transformed_uncorrected", "old_to_old_corrected") and measures is None:
            continue  # without a correction the row would say nothing
        bridged = key == "transformed"
        rows.append(
            Row(
                name=f"{name}: {served}" if bridged and measures else name,
                kind=KINDS.get(key, "other"),
                measures=measures,
                reason=reasons.get(key, ""),
                retention=report.get("retention") if bridged else None,
                update_gain=report.get("update_gain") if bridged else None,
                bridged=bridged,
            )
        )
    others = [_compared(bridge) for bridge in report.get("comparisons") or []]
    return rows + sorted(others, key=lambda row: -(row.measure("recall_at_1") or {"value": -1})["value"])


def is_corrected(report: Mapping[str, Any]) -> bool:
    """Whether the figure of `transformed` has a hubness correction in it."""
    return report["settings"].get("transformed_uncorrected") is not None


def row_reasons(report: Mapping[str, Any]) -> list[str]:
    """A line for each row or number that is missing, with why."""
    lines = [f"{row.name}: {row.reason}" for row in report_rows(report) if row.measures is None and row.reason]
    for key, name in (("retention", "retention"), ("update_gain", "update gain")):
        if report.get(key) is None and (reason := report.get(f"{key}_reason")):
            for setting, readable in sorted(NAMES.items(), reverse=True):  # the longer before what it begins with
                reason = reason.replace(setting, readable)
            lines.append(f"{name}: {reason}")
    return lines


def format_table(report: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """The report for a terminal, plain text without colour: the table, what is missing and why, notes, the verdict."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("setting")
    for column in TERMINAL_COLUMNS:
        table.add_column(COLUMNS[column], no_wrap=True)
    table.add_column("retention", justify="right", vertical="top")
    table.add_column("update\ngain", justify="right")
    for row in report_rows(report):
        cells = [row.name, *(_with_interval(row.measure(column)) for column in TERMINAL_COLUMNS)]
        cells += [percent(value) if row.bridged else "" for value in (row.retention, row.update_gain)]
        # Names come from outside: as Text they are never read as markup.
        table.add_row(*(Text(cell) for cell in cells))
    page = StringIO()
    Console(file=page, width=width, color_system=None, force_terminal=False).print(table)
    lines = [line.rstrip() for line in page.getvalue().splitlines()]
    remarks = [*([CORRECTION] if is_corrected(report) else []), *row_reasons(report)]
    if remarks := [*remarks, *map(str, report.get("notes") or [])]:
        lines += ["", *(_wrapped(f"- {remark}", width, indent="  ") for remark in remarks)]
    decision = str(report["verdict"]["decision"]).replace("_", " ")
    lines += ["", _wrapped(f"Verdict: {decision}. {report['verdict']['reason']}", width)]
    return "\n".join(lines) + "\n"


def print_table(report: Mapping[str, Any]) -> None:
    """Print `format_table` to standard output, as wide as the terminal where there is a narrow one."""
    from rich.console import Console

    console = Console()
    print(format_table(report, width=min(console.width, WIDTH) if console.is_terminal else WIDTH), end="")


def percent(value: Mapping[str, Any] | None) -> str:
    """The value of an interval as a percentage, `-` for none."""
    return f"{value['value']:.1%}" if value and is_number(value.get("value")) else "-"


def _with_interval(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    ends = (value.get("low"), value.get("high"))
    return f"{value['value']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if all(map(is_number, ends)) else "")


def _described(bridge: Mapping[str, Any] | None) -> str:
    return f"{bridge['family']}, {bridge['direction']}" if bridge else "migrated gallery"


def _compared(bridge: Mapping[str, Any]) -> Row:
    named = bridge["name"] != _described(bridge)
    name = f"{bridge['name']} ({_described(bridge)})" if named else bridge["name"]
    return Row(
        name=f"{name}, corrected" if bridge.get("correction") else name,
        kind="other",
        measures=bridge.get("measures"),
        retention=bridge.get("retention"),
        update_gain=bridge.get("update_gain"),
        bridged=True,
    )


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
