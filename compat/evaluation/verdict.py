"""What to do with the gallery, decided from measured recall and its uncertainty."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from compat.metrics.intervals import Interval
from compat.options import Direction

Decision = Literal[
    "keep_old", "bridge_queries", "migrate_gallery", "bridge_and_backfill", "re_embed", "not_enough_evidence"
]

TOLERATED_LOSS = 0.02
"""A bridge whose interval reaches no further below old-to-old recall@1 counts as keeping its accuracy."""
RETENTION_FLOOR = 0.90
"""Below this share of the old system's recall@1 a bridge is not worth serving, even while one re-embeds."""
FEWEST_GROUPS = 10
"""Fewer independent identities (or queries, without labels) than this say nothing that a bootstrap could bound."""


@dataclass(frozen=True)
class Evidence:
    """Recall@1 of the settings that could be formed, and paired comparisons between them.

    Attributes:
        direction: Which side the transformer maps; None when the gallery came migrated.
        old_to_old: Old queries, old gallery.
        new_to_new: New queries, re-embedded gallery.
        transformed: The bridge, as served.
        retention: transformed / old_to_old.
        bridge_gain: transformed - old_to_old.
        model_gain: new_to_new - old_to_old.
        groups: Independent identities, or queries where there are no labels.
    """

    direction: Direction | None
    old_to_old: Interval | None
    new_to_new: Interval | None
    transformed: Interval | None
    retention: Interval | None
    bridge_gain: Interval | None
    model_gain: Interval | None
    groups: int


@dataclass(frozen=True)
class Verdict:
    """A decision and the sentence that justifies it."""

    decision: Decision
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Both by name."""
        return asdict(self)


def decide(evidence: Evidence) -> Verdict:
    """The decision that the evidence supports; where it supports none, what is missing."""
    e = evidence
    if e.transformed is None:
        return Verdict("not_enough_evidence", "No transformer was evaluated; pass --transformer to judge a bridge.")
    if e.old_to_old is not None and e.old_to_old.value == 0:
        return Verdict(
            "not_enough_evidence",
            "The old system itself finds nothing at all: queries, gallery, ids or judgements do not belong together.",
        )
    if e.old_to_old is None or e.retention is None or e.bridge_gain is None:
        return Verdict(
            "not_enough_evidence",
            f"The bridge finds the right item first for {_percent(e.transformed)} of queries, but the old system's own "
            "accuracy is unknown; evaluate the old gallery with --transformer and --old-queries, the same "
            "queries through the old model.",
        )
    if e.groups < FEWEST_GROUPS:
        return Verdict(
            "not_enough_evidence",
            f"Only {e.groups} independent identities or queries were evaluated; {FEWEST_GROUPS} is the least that "
            "bounds anything, some hundreds are better.",
        )
    kept = f"keeps {_percent(e.retention)} of the old system's recall@1"
    against = f"{e.transformed.value:.3f} against {e.old_to_old.value:.3f}"
    if e.model_gain is not None and e.model_gain.high < 0:
        return Verdict(
            "keep_old",
            f"The new model is worse than the old one on these queries (recall@1 {e.new_to_new} against "
            f"{e.old_to_old}); there is nothing to upgrade to.",
        )
    if e.bridge_gain.low >= -TOLERATED_LOSS:
        if e.direction == "new-to-old":
            return Verdict(
                "bridge_queries", f"Mapping new queries into the old gallery {kept} ({against}): serve the bridge."
            )
        return Verdict("migrate_gallery", f"The migrated gallery {kept} ({against}): switch to it.")
    if e.retention.low >= RETENTION_FLOOR:
        return Verdict(
            "bridge_and_backfill",
            f"The bridge {kept} ({against}): good enough to serve at once, and worth replacing by re-embedded items "
            "as their originals can be had.",
        )
    if e.retention.high < RETENTION_FLOOR:
        return Verdict(
            "re_embed",
            f"The bridge {kept} ({against}), too little to serve: re-embed the gallery, or stay with the old model "
            "where the originals are gone.",
        )
    return Verdict(
        "not_enough_evidence",
        f"The bridge {kept} ({against}); that interval spans the limit of {RETENTION_FLOOR:.0%}: evaluate more "
        "identities or queries.",
    )


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} (95% interval {interval.low:.1%} to {interval.high:.1%})"
