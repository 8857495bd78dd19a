"""Which gallery rows are right for each query, and how right."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Relevance:
    """Which gallery rows are right for each query.

    Attributes:
        rows: Relevant gallery rows of all queries one after the other, int64 [r]; each query's are distinct.
        offsets: Query i has rows[offsets[i]:offsets[i + 1]], int64 [q + 1].
        excluded: A gallery row that query i must not see (its own item), or -1, int64 [q].
        grades: How relevant each of `rows` is, float64 [r] above 0; None where all are alike.
    """

    rows: np.ndarray
    offsets: np.ndarray
    excluded: np.ndarray
    grades: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        """Relevant rows of each query, int64 [q]."""
        return np.diff(self.offsets)

    @property
    def queries(self) -> np.ndarray:
        """The query number of each of `rows`, int64 [r], rising."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    @classmethod
    def by_label(cls, query_labels: np.ndarray, gallery_labels: np.ndarray, own: np.ndarray) -> Relevance:
        """Same label, the query's own item left out.

        Args:
            query_labels: Integer codes [q].
            gallery_labels: Integer codes [g].
            own: The gallery row that is the query's own item, or -1, int64 [q].
        """
        order = np.argsort(gallery_labels, kind="stable")
        ordered = gallery_labels[order]
        first = np.searchsorted(ordered, query_labels, "left")
        last = np.searchsorted(ordered, query_labels, "right")
        rows = [order[a:b][order[a:b] != o] for a, b, o in zip(first, last, own, strict=True)]
        return cls._of(rows, own)

    @classmethod
    def by_item(cls, own: np.ndarray) -> Relevance:
        """The gallery row of the same item, or -1 where there is none, int64 [q]."""
        rows = [np.array([row] if row >= 0 else [], np.int64) for row in own]
        return cls._of(rows, np.full(len(own), -1))

    @classmethod
    def by_judgement(
        cls, queries: int, query: np.ndarray, row: np.ndarray, grades: np.ndarray | None = None
    ) -> Relevance:
        """Given pairs of a query number and a relevant gallery row; a doubled pair counts once, at its highest grade.

        Args:
            queries: How many queries there are.
            query: Query numbers int64 [r].
            row: Gallery rows int64 [r].
            grades: How relevant each is, [r] above 0 (a row judged irrelevant is not given); None where all are alike.

        Raises:
            ValueError: If there is not one grade for each pair, or a grade is not a positive number.
        """
        if grades is not None:
            grades = np.asarray(grades, np.float64)
            if len(grades) != len(query):
                raise ValueError(f"found {len(grades)} grades, expected one for each of {len(query)} judgements")
            bad = np.flatnonzero(~(np.isfinite(grades) & (grades > 0)))
            if len(bad):
                raise ValueError(f"judgement {bad[0]} has grade {grades[bad[0]]}, expected a number above 0")
        order = np.lexsort((np.zeros(len(query)) if grades is None else grades, row, query))
        query, row = query[order], row[order]
        last = np.ones(len(query), bool)  # of the judgements of one pair
        last[:-1] = (query[1:] != query[:-1]) | (row[1:] != row[:-1])
        return cls(
            rows=row[last].astype(np.int64),
            offsets=np.searchsorted(query[last], np.arange(queries + 1)),
            excluded=np.full(queries, -1),
            grades=None if grades is None else grades[order][last],
        )

    def moved(self, rows: np.ndarray) -> Relevance:
        """The same relevance in a gallery that holds row i of this one as its row rows[i], int64 [g]."""
        excluded = np.where(self.excluded >= 0, rows[np.maximum(self.excluded, 0)], -1)
        return replace(self, rows=rows[self.rows], excluded=excluded)

    @classmethod
    def _of(cls, rows: list[np.ndarray], excluded: np.ndarray) -> Relevance:
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        return cls(np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64), offsets, excluded)
