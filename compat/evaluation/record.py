"""What an evaluation found, as frozen records that turn into report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compat.evaluation.verdict import Verdict
from compat.metrics.intervals import Interval

REPORT_VERSION = 1
MEASURES = (
    *("recall_at_1", "recall_at_5", "recall_at_10", "mean_average_precision", "mean_reciprocal_rank"),
    *("precision_at_10", "ndcg_at_10"),
)
OLD, OLD_CORRECTED, NEW, NAIVE = "old_to_old", "old_to_old_corrected", "new_to_new", "naive"
SERVED = "transformed"
"""The setting of the transformer under judgement, with its hubness correction where it carries one."""
UNCORRECTED = "transformed_uncorrected"
SETTINGS = (OLD, OLD_CORRECTED, NEW, NAIVE, SERVED, UNCORRECTED)


@dataclass(frozen=True)
class Setting:
    """Measures of one setting with 95% intervals, by name; `reason` says why there are none."""

    measures: Mapping[str, Interval] | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any] | None:
        """Measures as plain values, or None."""
        return None if self.measures is None else {name: value.to_dict() for name, value in self.measures.items()}


@dataclass(frozen=True)
class Bridge:
    """One transformer's results against the same native settings; with its hubness correction, if it carries one.

    `gain_over_best` is the paired difference of its recall@1 to that of the transformer under judgement.
    """

    name: str
    family: str
    direction: str
    setting: Setting
    retention: Interval | None
    update_gain: Interval | None
    gain_over_best: Interval | None = None
    correction: Mapping[str, float | int] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All but the training curves, as plain values."""
        return {
            "name": self.name,
            "family": self.family,
            "direction": self.direction,
            "measures": self.setting.to_dict(),
            "retention": _plain(self.retention),
            "update_gain": _plain(self.update_gain),
            "gain_over_best": _plain(self.gain_over_best),
            "correction": dict(self.correction) if self.correction else None,
            "pairs": self.training.get("pairs"),
            "held_out": self.training.get("held_out"),
            "notes": list(self.training.get("notes", [])),
        }


@dataclass(frozen=True)
class CompatibilityReport:
    """What `evaluate` found. `to_dict` is report.json."""

    gallery: Mapping[str, Any]
    queries: Mapping[str, Any]
    relevance: str
    evaluated: int
    excluded: int
    groups: int
    grouped_by: str
    settings: Mapping[str, Setting]
    retention: Interval | None
    retention_reason: str
    update_gain: Interval | None
    update_gain_reason: str
    verdict: Verdict
    transformer: Bridge | None
    comparisons: tuple[Bridge, ...]
    notes: tuple[str, ...]
    analyses: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "format_version": REPORT_VERSION,
            "verdict": self.verdict.to_dict(),
            "settings": {name: self.settings[name].to_dict() for name in SETTINGS},
            "reasons": {name: self.settings[name].reason for name in SETTINGS if self.settings[name].reason},
            "retention": _plain(self.retention),
            "retention_reason": self.retention_reason,
            "update_gain": _plain(self.update_gain),
            "update_gain_reason": self.update_gain_reason,
            "relevance": self.relevance,
            "queries_evaluated": self.evaluated,
            "queries_excluded": self.excluded,
            "groups": self.groups,
            "grouped_by": self.grouped_by,
            "gallery": dict(self.gallery),
            "queries": dict(self.queries),
            "transformer": self.transformer.to_dict() if self.transformer else None,
            "comparisons": [bridge.to_dict() for bridge in self.comparisons],
            "notes": list(self.notes),
            **self.analyses,
        }


def _plain(value: Interval | None) -> dict[str, float] | None:
    return value.to_dict() if value is not None else None
