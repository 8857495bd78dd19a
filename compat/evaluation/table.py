"""What a terminal shows of a report: the table, the lines that matter beside it, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from io import StringIO
from typing import Any

from compat.evaluation.rows import CORRECTION, is_corrected, is_number, readable_setting, report_rows, row_reasons
from compat.evaluation.sheets import MEASURES, operating_point, shown, surely_loses, worst_group

WIDTH = 120
"""Characters in a line where there is no terminal to ask."""
USUAL_FAR = 1e-3
COLUMNS = ("recall_at_1", "recall_at_5", "mean_average_precision")


def format_table(report: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """The report for a terminal, plain text without colour: the table, what is missing and why, notes, the verdict."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("setting")
    for column in COLUMNS:
        table.add_column(MEASURES[column], no_wrap=True)
    table.add_column("retention", justify="right", vertical="top")
    table.add_column("update\ngain", justify="right")
    for row in report_rows(report):
        cells = [row.name, *(_number(row.measure(column)) for column in COLUMNS)]
        cells += [shown(value, "percent")[0] if row.bridged else "" for value in (row.retention, row.update_gain)]
        # Names come from outside: as Text they are never read as markup.
        table.add_row(*(Text(cell) for cell in cells))
    page = StringIO()
    Console(file=page, width=width, color_system=None, force_terminal=False).print(table)
    lines = [line.rstrip() for line in page.getvalue().splitlines()]
    if findings := [line for finding in FINDINGS if (line := finding(report))]:
        lines += ["", *(_wrapped(line, width, indent="  ") for line in findings)]
    remarks = [*([CORRECTION] if is_corrected(report) else []), *row_reasons(report)]
    if remarks := [*remarks, *map(str, report.get("notes") or [])]:
        lines += ["", *(_wrapped(f"- {remark}", width, indent="  ") for remark in remarks)]
    verdict = report["verdict"]
    decision = str(verdict["decision"]).replace("_", " ")
    lines += ["", _wrapped(f"Verdict: {decision}. {verdict['reason']}", width)]
    if verdict.get("needed") and verdict["needed"] not in verdict["reason"]:
        lines += [_wrapped(f"To settle it: {verdict['needed']}", width)]
    return "\n".join(lines) + "\n"


def print_table(report: Mapping[str, Any]) -> None:
    """Print `format_table` to standard output, as wide as the terminal where there is a narrow one."""
    from rich.console import Console

    console = Console()
    print(format_table(report, width=min(console.width, WIDTH) if console.is_terminal else WIDTH), end="")


def _worst_group(report: Mapping[str, Any]) -> str:
    groups = report.get("by_group") or {}
    rows = groups.get("rows")
    if not rows:
        return ""
    row = worst_group(report)
    if row is None:
        return f"Worst group: no {groups['column']} has queries enough to be called the worst"
    before, after = (shown(row.get(key))[0] for key in ("old_to_old", "transformed"))
    few = ", few" if row.get("small") else ""
    change = _number(row.get("change"), "signed")
    first = "Worst group" if surely_loses(row) else "No group surely loses; the worst"
    return (
        f"{first}: {groups['column']} {row['group']} ({row['queries']:,} queries{few}), "
        f"recall@1 {before} before, {after} after, change {change}"
    )


def _means(report: Mapping[str, Any]) -> str:
    found = (report.get("means") or {}).get("recall_at_1") or {}
    listed = ", ".join(f"{readable_setting(name)} {shown(value)[0]}" for name, value in found.items())
    return f"Gallery of means, recall@1: {listed}" if listed else ""


def _verification(report: Mapping[str, Any]) -> str:
    """TAR at one FAR that every setting can tell of: the usual one, or else the lowest."""
    settings = (report.get("verification") or {}).get("settings") or {}
    points = {
        name: {point["far"]: point["tar"] for point in setting["tar_at_far"] if point.get("tar")}
        for name, setting in settings.items()
    }
    common = set.intersection(*map(set, points.values())) if points else set()
    if not common:
        return ""
    far = USUAL_FAR if USUAL_FAR in common else min(common)
    listed = ", ".join(f"{readable_setting(name)} {shown(found[far])[0]}" for name, found in points.items())
    return f"Verification, TAR at FAR {operating_point(far)}: {listed}"


def _pair_list(report: Mapping[str, Any]) -> str:
    settings = (report.get("pair_list") or {}).get("settings") or {}
    found = {readable_setting(name): values["accuracy"]["mean"] for name, values in settings.items()}
    listed = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in found.items())
    return f"Accuracy on the list of pairs: {listed}" if listed else ""


def _approximate(report: Mapping[str, Any]) -> str:
    rows = [row for row in report.get("approximate") or [] if row["setting"] == "transformed"]
    listed = ", ".join(
        f"{row['factory']} recall@1 {shown(row['recall_at_1'])[0]} ({row['agreement']:.0%} of the exact neighbours)"
        for row in rows
    )
    return f"Approximate indexes, transformed: {listed}" if listed else ""


def _flips(report: Mapping[str, Any]) -> str:
    flips = report.get("flips") or {}
    if not is_number(flips.get("negative")):
        return ""
    share = f" ({_number(flips.get('negative_rate'), 'percent')} of all)" if flips.get("negative_rate") else ""
    settings = f"{readable_setting(flips['before'])} to {readable_setting(flips['after'])}"
    return f"Flips, {settings}: {flips['negative']:,} turn wrong{share}, {flips['positive']:,} turn right"


def _confidence(report: Mapping[str, Any]) -> str:
    found = report.get("confidence") or {}
    return f"Confidence: {found['reason']}" if found.get("reason") else ""


def _drift(report: Mapping[str, Any]) -> str:
    found = report.get("drift") or {}
    return f"Drift: {str(found['verdict']).replace('_', ' ')}. {found['reason']}" if found.get("verdict") else ""


def _number(value: Mapping[str, Any] | None, style: Any = "number") -> str:
    return " ".join(shown(value, style)).strip()


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


FINDINGS = (_worst_group, _flips, _means, _verification, _pair_list, _approximate, _confidence, _drift)
