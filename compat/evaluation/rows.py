"""The rows of a report: one a setting or compared transformer, with the names people read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

Kind = Literal["old", "corrected", "new", "naive", "bridge", "other"]

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
    "transformed_uncorrected": "other",
}
CORRECTION = (
    "corrected: the hubness correction takes a share of each gallery vector's mean similarity to the training queries "
    "nearest to it off its score, so that vectors near to every query do not crowd out the right ones; this is in the "
    "figure of transformed because it is served, in one more dimension of the index"
)
"""What the hubness correction is, in one sentence."""


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
        gain_over_best: Recall@1 less that of the transformer under judgement, on the same queries; None where unknown.
        bridged: Whether retention and update gain mean anything for this row.
    """

    name: str
    kind: Kind
    measures: Mapping[str, Any] | None
    reason: str = ""
    retention: Mapping[str, Any] | None = None
    update_gain: Mapping[str, Any] | None = None
    gain_over_best: Mapping[str, Any] | None = None
    bridged: bool = False

    def measure(self, name: str) -> Mapping[str, Any] | None:
        """One measure, or None where there is no number."""
        found = (self.measures or {}).get(name)
        return found if found and is_number(found.get("value")) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether value is a finite number; NaN, None and words are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def readable_setting(text: Any) -> str:
    """Text with settings in it named as people read them: `99% of new_to_new` is 99% of new to new."""
    text = str(text)
    for key in sorted(NAMES, reverse=True):  # the longer before what it begins with
        text = text.replace(key, NAMES[key])
    return text


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
                kind=KINDS[key],
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
            lines.append(f"{name}: {readable_setting(reason)}")
    return lines


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
        gain_over_best=bridge.get("gain_over_best"),
        bridged=True,
    )
