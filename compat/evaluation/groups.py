"""Recall by group of queries, the worst group first, and the queries that the bridge turns from right to wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat.evaluation.record import NEW, OLD, SERVED
from compat.metrics.flips import flips
from compat.metrics.groups import LEAST_QUERIES, Groups, highest_means, worst_first
from compat.metrics.intervals import Bootstrap, Interval

SHOWN = 50
"""The worst groups that a report lists."""
JUDGED = 1000
"""Of a column with more groups those with most queries are judged; thousands of intervals would take minutes."""
FLIPPED_ITEMS = 100


@dataclass(frozen=True)
class GroupRow:
    """Recall@1 of one group of queries.

    Attributes:
        group: Value of the column.
        queries: In the group, those with something relevant in the gallery.
        small: Whether there are fewer than can be judged well.
        recalls: Of each setting that was measured, by name.
        change: Transformed less old-to-old, paired; None where one is missing.
        retention: Transformed as a share of old-to-old; None where one is missing or old-to-old finds nothing.
    """

    group: str
    queries: int
    small: bool
    recalls: Mapping[str, Interval]
    change: Interval | None
    retention: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values; None for what was not measured."""
        recalls = {name: self.recalls[name].to_dict() if name in self.recalls else None for name in (OLD, NEW, SERVED)}
        change = self.change.to_dict() if self.change else None
        return {"group": self.group, "queries": self.queries, "small": self.small, **recalls, "change": change}


@dataclass(frozen=True)
class GroupsSection:
    """Recall@1 by the groups of one column.

    Attributes:
        column: Its name.
        rows: Groups, the worst first, at most `SHOWN`.
        worst: The group that may be called the worst; None where all groups are too small to tell.
        left_out: Groups that are not in `rows`.
    """

    column: str
    rows: tuple[GroupRow, ...]
    worst: str | None
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        rows = [row.to_dict() for row in self.rows]
        return {"column": self.column, "rows": rows, "worst": self.worst, "left_out": self.left_out}


def groups_section(
    column: str,
    values: Iterable[object],
    recalls: Mapping[str, np.ndarray],
    clusters: np.ndarray | None = None,
    *,
    least: int = LEAST_QUERIES,
    seed: int = 0,
) -> GroupsSection:
    """Recall@1 by group, the worst first: the one that surely loses most.

    Groups are judged by the upper end of the 95% interval of their change from old-to-old to transformed (of their
    recall, where only one of the two was measured): a change, because a share of what a group kept means nothing where
    it had little; the upper end, because of many groups a tiny one has the worst value by chance. A group of fewer than
    `least` queries stands behind all others and is not called the worst, unless it is surely worse than all queries
    together are, even as one of so many groups that were looked at (`highest_means`).

    Args:
        column: Name of the column of the query table.
        values: Of each query, [q]; null is a group of its own.
        recalls: Recall@1 of each query, floats [q], NaN where nothing is relevant; by setting. Those named
            `old_to_old`, `new_to_new` and `transformed` are shown.
        clusters: Codes int64 [q] of queries that are not independent of each other; None where all are.
        least: Fewer queries than this make a group small.
        seed: Of the bootstrap.

    Raises:
        ValueError: If none of the three settings is there, or lengths differ.
    """
    groups = Groups.of(values)
    names = [name for name in (OLD, NEW, SERVED) if name in recalls]
    if not names:
        raise ValueError(f"groups need one of {OLD}, {NEW} and {SERVED}, found {', '.join(recalls) or 'none'}")
    if any(recalls[name].shape != groups.codes.shape for name in names):
        raise ValueError(f"column {column!r} has {len(groups.codes)} values, expected one for each query")
    table = np.stack([recalls[name] for name in names], axis=1)
    asked = ~np.isnan(table.sum(axis=1))
    compared = OLD in names and SERVED in names
    judged_by = recalls[SERVED] - recalls[OLD] if compared else recalls[names[-1]]
    judged_by = np.where(asked, judged_by, np.nan)

    counts = np.bincount(groups.codes[asked], minlength=len(groups.names))
    largest = np.argsort(-counts, kind="stable")[:JUDGED]
    members = _members(groups.codes, asked, len(counts))
    rows = [
        _row(groups.names[code], table[members[code]], names, _of(clusters, members[code]), least, seed)
        for code in largest
        if counts[code]
    ]
    if not rows:
        return GroupsSection(column, (), None, 0)
    kept = largest[: len(rows)]
    highest = highest_means(judged_by, groups, clusters, span=2.0 if compared else 1.0)[kept]
    upper = np.array([_upper(row) for row in rows])
    named = (counts[kept] >= least) | (highest < np.nanmean(judged_by))
    order = worst_first(upper, named)
    worst = rows[order[0]].group if named[order[0]] else None
    left_out = int((counts > 0).sum()) - min(len(rows), SHOWN)
    return GroupsSection(column, tuple(rows[i] for i in order[:SHOWN]), worst, left_out)


@dataclass(frozen=True)
class FlipsSection:
    """Queries that a change of systems turns from right to wrong, and back.

    Attributes:
        negative: How many turn wrong.
        positive: How many turn right.
        negative_rate: Share of all queries that turn wrong; None without queries.
        items: Item ids of those that turn wrong, at most `FLIPPED_ITEMS`.
        before: Setting they were right in.
        after: Setting they are wrong in.
    """

    negative: int
    positive: int
    negative_rate: Interval | None
    items: tuple[str | int, ...]
    before: str
    after: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "negative": self.negative,
            "positive": self.positive,
            "negative_rate": self.negative_rate.to_dict() if self.negative_rate else None,
            "items": list(self.items),
            "before": self.before,
            "after": self.after,
        }


def flips_section(
    item_ids: Sequence[str | int],
    recalls: Mapping[str, np.ndarray],
    clusters: np.ndarray | None = None,
    *,
    before: str = OLD,
    after: str = SERVED,
    seed: int = 0,
) -> FlipsSection:
    """Which queries are right in one setting and wrong in another, by recall@1.

    Args:
        item_ids: Of the queries, [q].
        recalls: Recall@1 of each query, floats [q], NaN where nothing is relevant; by setting.
        clusters: Codes int64 [q] of queries that are not independent of each other; None where all are.
        before: Setting that is replaced.
        after: Setting that replaces it.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the settings are of other queries.
    """
    found = flips(recalls[before], recalls[after])
    rate = None
    if found.asked.any():
        flipped = found.negative[found.asked, None].astype(np.float64)
        rate = Bootstrap(flipped, _of(clusters, found.asked), seed=seed).proportion(0)
    items = tuple(item_ids[row] for row in np.flatnonzero(found.negative)[:FLIPPED_ITEMS].tolist())
    return FlipsSection(int(found.negative.sum()), int(found.positive.sum()), rate, items, before, after)


def _row(
    group: str, recalls: np.ndarray, names: Sequence[str], clusters: np.ndarray | None, least: int, seed: int
) -> GroupRow:
    bootstrap = Bootstrap(recalls, clusters, seed=seed)
    measured = {name: bootstrap.proportion(column) for column, name in enumerate(names)}
    change = retention = None
    if OLD in names and SERVED in names:
        sides = names.index(SERVED), names.index(OLD)
        change, retention = bootstrap.difference(*sides), bootstrap.ratio(*sides)
    return GroupRow(group, len(recalls), len(recalls) < least, measured, change, retention)


def _upper(row: GroupRow) -> float:
    if row.change:
        return row.change.high
    return next(row.recalls[name].high for name in (SERVED, NEW, OLD) if name in row.recalls)


def _members(codes: np.ndarray, asked: np.ndarray, groups: int) -> list[np.ndarray]:
    """Queries of each group that are asked."""
    queries = np.flatnonzero(asked)
    ordered = queries[np.argsort(codes[queries], kind="stable")]
    return np.split(ordered, np.searchsorted(codes[ordered], np.arange(1, groups)))


def _of(clusters: np.ndarray | None, some: np.ndarray) -> np.ndarray | None:
    return None if clusters is None else clusters[some]
