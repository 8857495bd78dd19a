"""What to do with the gallery, decided from measured recall and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compat.metrics.intervals import Interval
from compat.options import Direction, VerdictLimits

Decision = Literal[
    "keep_old", "bridge_queries", "migrate_gallery", "bridge_and_backfill", "re_embed", "not_enough_evidence"
]
MOST_TIMES = 100
"""More than so many times the queries at hand is no advice; the reason then says that the answer is on the edge."""


@dataclass(frozen=True)
class WorstGroup:
    """The group of queries that a bridge serves worst.

    Attributes:
        name: Column and value, as it is told.
        retention: Share of the old recall@1 that the group keeps.
    """

    name: str
    retention: Interval


@dataclass(frozen=True)
class BackfillStages:
    """Recall@1 as a rising share of the gallery is re-embedded behind the bridge.

    Attributes:
        fractions: Rising from 0 to 1, [n].
        recall_at_1: At each of them, [n].
        target: Old-to-old recall@1 on the same queries, which may be a sample; None where it was not measured.
        order: What is re-embedded first, for example `per identity`.
    """

    fractions: tuple[float, ...]
    recall_at_1: tuple[float, ...]
    target: float | None = None
    order: str = ""

    def first(self, target: float, limits: VerdictLimits, rows: int | None) -> float:
        """The share to re-embed first.

        With costs, the one of greatest net value; without, the least from which the curve stays at `target`, or at its
        own last value where it never gets there.
        """
        if limits.priced and rows:
            worth = [
                limits.worth(r) - limits.cost(rows * f) for f, r in zip(self.fractions, self.recall_at_1, strict=True)
            ]
            return self.fractions[worth.index(max(worth))]
        wanted = min(target if self.target is None else self.target, self.recall_at_1[-1])
        below = [i for i, recall in enumerate(self.recall_at_1) if recall < wanted]
        return self.fractions[below[-1] + 1 if below else 0]


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
        unit: What those are called.
        constant_answer: Recall@1 of the best single answer to every query, which no map is needed for.
        gallery_rows: Items that re-embedding would take.
        worst_group: Where accuracy was measured by group.
        backfill: Where a curve was measured.
    """

    direction: Direction | None
    old_to_old: Interval | None
    new_to_new: Interval | None
    transformed: Interval | None
    retention: Interval | None
    bridge_gain: Interval | None
    model_gain: Interval | None
    groups: int
    unit: str = "identities or queries"
    constant_answer: float = 0.0
    gallery_rows: int | None = None
    worst_group: WorstGroup | None = None
    backfill: BackfillStages | None = None


@dataclass(frozen=True)
class Verdict:
    """A decision and the sentence that justifies it.

    Attributes:
        decision: What to do.
        reason: Why.
        needed: How much more evidence would settle it, where that is what is missing.
        backfill_first: Share of the gallery to re-embed first, where a curve says.
        limits: What it was judged by.
    """

    decision: Decision
    reason: str
    needed: str = ""
    backfill_first: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """By name; what is needed and the share to re-embed only where there are such."""
        optional = {"needed": self.needed, "backfill_first": self.backfill_first}
        present = {name: value for name, value in optional.items() if value not in ("", None)}
        return {"decision": self.decision, "reason": self.reason, **present, "limits": dict(self.limits)}


def decide(evidence: Evidence, limits: VerdictLimits | None = None) -> Verdict:
    """The decision that the evidence supports; where it supports none, what is missing and about how much of it.

    In this order:

    1. Without a bridge, the old system's own recall, enough groups, or an old system that beats the best constant
       answer, there is not enough evidence.
    2. A new model that is surely worse than the old: keep the old one; a bridge cannot carry what is not there.
    3. The bridge is served (`bridge_queries` or `migrate_gallery`) if it surely beats the constant answer, keeps the
       floor of retention as measured and the assured share without doubt, and surely loses no more recall than is
       tolerated; `bridge_and_backfill` if it may lose more than that (unless no part of re-embedding is worth its
       price), if a group is surely below its own floor, or if re-embedding the rest pays.
    4. Retention surely below the floor, or a bridge no better than the constant answer: do not serve it. `re_embed`, if
       the new model is surely better, or unmeasured; else `keep_old`, because re-embedding costs and is not shown to
       gain. Likewise if the gain is worth less than its price.
    5. What is left is an interval that spans a limit: not enough evidence.

    Update gain decides nothing: it is a share of the new model's gain, and where both models are at their ceiling there
    is none to share. Retention with its interval decides there as elsewhere.
    """
    limits = limits or VerdictLimits()
    found = _decide(evidence, limits)
    return Verdict(found.decision, found.reason, found.needed, found.backfill_first, asdict(limits))


def _decide(e: Evidence, limits: VerdictLimits) -> Verdict:
    if e.transformed is None:
        return _missing("No transformer was evaluated; pass --transformer to judge a bridge.")
    if e.old_to_old is not None and e.old_to_old.value == 0:
        return _missing(
            "The old system itself finds nothing at all: queries, gallery, ids or judgements do not belong together."
        )
    if e.old_to_old is None or e.retention is None or e.bridge_gain is None:
        return _missing(
            f"The bridge finds the right item first for {_percent(e.transformed)} of queries, but the old system's own "
            "accuracy is unknown; evaluate the old gallery with --transformer and --old-queries, the same "
            "queries through the old model."
        )
    if e.groups < limits.fewest_groups:
        return _missing(
            f"Only {e.groups} independent {e.unit} were evaluated; {limits.fewest_groups} is the least that bounds "
            "anything, some hundreds are better.",
            f"at least {limits.fewest_groups} {e.unit}",
        )
    kept = f"keeps {_percent(e.retention)} of the old system's recall@1"
    against = f"{e.transformed.value:.3f} against {e.old_to_old.value:.3f}"
    if e.model_gain is not None and e.model_gain.high < 0:
        return Verdict(
            "keep_old",
            f"The new model is worse than the old one on these queries (recall@1 {e.new_to_new} against "
            f"{e.old_to_old}); there is nothing to upgrade to.",
        )
    if e.old_to_old.low <= e.constant_answer:
        needed = _more(e, e.old_to_old.value - e.constant_answer, e.old_to_old.value - e.old_to_old.low)
        return _missing(
            f"The old system (recall@1 {e.old_to_old}) is not surely better than giving every query the same item "
            f"({e.constant_answer:.3f}), so keeping its accuracy would show nothing: evaluate harder queries, or "
            f"{needed}.",
            needed,
        )
    informed = e.transformed.low > e.constant_answer
    good = e.retention.value >= limits.retention_floor
    if informed and good and e.retention.low >= limits.retention_assured:
        return _serve(e, limits, e.bridge_gain, f"{kept} ({against})")
    if e.retention.high < limits.retention_floor or e.transformed.high <= e.constant_answer:
        return _refuse(e, limits, f"The bridge {kept} ({against}), too little to serve")
    if not informed:
        limit, gap = e.constant_answer, e.transformed.value - e.constant_answer
        width = e.transformed.value - e.transformed.low
        spans = f"it is not surely better than giving every query the same item ({limit:.3f})"
    else:
        limit = limits.retention_assured if good else limits.retention_floor
        gap = abs(e.retention.value - limit)
        width = e.retention.value - e.retention.low if good else e.retention.high - e.retention.value
        spans = f"that interval spans the limit of {limit:.0%}"
    needed = _more(e, gap, width)
    return _missing(f"The bridge {kept} ({against}); {spans}: evaluate {needed}.", needed)


def _serve(e: Evidence, limits: VerdictLimits, gain: Interval, kept: str) -> Verdict:
    """The bridge is good enough to serve: alone, or while items are re-embedded behind it."""
    assert e.old_to_old is not None
    assert e.transformed is not None
    share = e.backfill.first(e.old_to_old.value, limits, e.gallery_rows) if e.backfill else None
    order = f" ({e.backfill.order})" if e.backfill and e.backfill.order else ""
    first = f" Begin with the first {share:.0%} of the gallery{order}." if share else ""
    worst = e.worst_group
    if worst and worst.retention.high < limits.worst_group_floor:
        return Verdict(
            "bridge_and_backfill",
            f"The bridge {kept}, but {worst.name} keeps only {_percent(worst.retention)}: serve it, and re-embed that "
            f"group first.{first}",
            backfill_first=share,
        )
    alone, unpaid = gain.low >= -limits.tolerated_loss, _unpaid(e, limits, share)
    if not alone and not unpaid:
        lost = gain.value + limits.tolerated_loss  # how far the measured loss is from what is tolerated
        needed = _more(e, lost, gain.value - gain.low) if lost > 0 else ""
        why = f"and {needed} would tell whether it can stand alone" if needed else "worth replacing"
        return Verdict(
            "bridge_and_backfill",
            f"The bridge {kept}: good enough to serve at once, {why}; re-embed items as their originals can be had."
            f"{first}",
            needed,
            backfill_first=share,
        )
    if alone and e.new_to_new and e.gallery_rows and limits.priced:
        left, price = e.new_to_new.value - e.transformed.value, limits.cost(e.gallery_rows)
        if limits.worth(left) > price and e.model_gain and e.model_gain.low > 0:
            return Verdict(
                "bridge_and_backfill",
                f"The bridge {kept}: serve it, and re-embed behind it, for the {left:.3f} of recall@1 still to be had "
                f"are worth {limits.worth(left):,.0f} and cost {price:,.0f}.{first}",
                backfill_first=share,
            )
    if e.direction == "new-to-old":
        reason = f"Mapping new queries into the old gallery {kept}: serve the bridge."
        return Verdict("bridge_queries", reason + unpaid)
    return Verdict("migrate_gallery", f"The migrated gallery {kept}: switch to it.{unpaid}")


def _unpaid(e: Evidence, limits: VerdictLimits, share: float | None) -> str:
    """Why no part of the gallery is worth re-embedding at its price; empty where some is, or no price is known."""
    if not (limits.priced and e.new_to_new and e.transformed and e.gallery_rows):
        return ""
    left, price = e.new_to_new.value - e.transformed.value, limits.cost(e.gallery_rows)
    if share or (share is None and limits.worth(left) > price):
        return ""
    return (
        f" Re-embedding is not worth its price: {left:+.3f} of recall@1 are worth {limits.worth(left):,.0f} and cost "
        f"{price:,.0f}."
    )


def _refuse(e: Evidence, limits: VerdictLimits, kept: str) -> Verdict:
    """The bridge is not good enough: re-embed, if that is shown or hoped to gain; else stay."""
    gain = e.model_gain
    if gain is None:
        return Verdict(
            "re_embed",
            f"{kept}: re-embed the gallery, or stay with the old model where the originals are gone. What re-embedding "
            "gains was not measured; --new-gallery would show it.",
        )
    if gain.low <= 0:
        needed = _more(e, gain.value, gain.value - gain.low) if gain.value > 0 else ""
        shown = f", unless {needed} show one" if needed else ""
        return Verdict(
            "keep_old",
            f"{kept}, and re-embedding is not shown to gain anything (recall@1 {_signed(gain)}): keep the old model"
            f"{shown}.",
            needed,
        )
    if limits.priced and e.gallery_rows and limits.worth(gain.value) < limits.cost(e.gallery_rows):
        return Verdict(
            "keep_old",
            f"{kept}, and re-embedding costs {limits.cost(e.gallery_rows):,.0f} for a gain in recall@1 of "
            f"{_signed(gain)}, worth {limits.worth(gain.value):,.0f}: keep the old model.",
        )
    return Verdict(
        "re_embed",
        f"{kept}: re-embed the gallery (recall@1 {_signed(gain)}), or stay with the old model where the originals are "
        "gone.",
    )


def _missing(reason: str, needed: str = "") -> Verdict:
    return Verdict("not_enough_evidence", reason, needed)


def _more(e: Evidence, gap: float, width: float) -> str:
    """About how many groups would make the interval's arm as short as the distance to the limit, to two digits.

    Widths shrink with the square root of the number of groups.
    """
    times = (width / gap) ** 2 if gap else math.inf
    if times > MOST_TIMES:
        return f"more than {MOST_TIMES * e.groups:,} {e.unit} in all, for it is on the limit"
    needed = max(times * e.groups, e.groups + 1.0)
    unit = 10 ** max(math.floor(math.log10(needed)) - 1, 0)
    return f"about {math.ceil(needed / unit) * unit:,} {e.unit} in all"


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} (95% interval {interval.low:.1%} to {interval.high:.1%})"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
