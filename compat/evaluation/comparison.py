"""Settings measured on the same queries: means with intervals, and paired comparisons between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from compat.evaluation.record import MEASURES, Setting
from compat.metrics.intervals import RESAMPLES, Bootstrap, Interval
from compat.metrics.relevance import Relevance

RECALL = MEASURES[0]


class Comparison:
    """Every setting's measures and how they differ, all from the same draws of identities, or of queries.

    Args:
        measured: For each setting the measures of every query, floats [q, m] between 0 and 1.
        clusters: Codes int64 [q] of queries that are not independent of each other; None where all are.
        measures: Names of the m columns.
        resamples: Draws of the bootstrap.
        seed: Of the bootstrap.
    """

    def __init__(
        self,
        measured: Mapping[str, np.ndarray],
        clusters: np.ndarray | None = None,
        *,
        measures: Sequence[str] = MEASURES,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self._measured, self._clusters = dict(measured), clusters
        self._measures, self._resamples, self._seed = tuple(measures), resamples, seed
        self._first = {name: i * len(self._measures) for i, name in enumerate(measured)}

    def subset(self, mask: np.ndarray) -> Comparison:
        """The same comparison for some of the queries.

        Args:
            mask: Which, bool [q].
        """
        return Comparison(
            {name: values[mask] for name, values in self._measured.items()},
            None if self._clusters is None else self._clusters[mask],
            measures=self._measures,
            resamples=self._resamples,
            seed=self._seed,
        )

    @property
    def queries(self) -> int:
        """How many queries are compared."""
        return self._bootstrap.queries

    @property
    def groups(self) -> int:
        """How many identities they are of, or queries where there are no labels."""
        return self._bootstrap.groups

    @property
    def unit(self) -> str:
        """What is drawn: identities or queries."""
        return "queries" if self._clusters is None else "identities"

    def setting(self, name: str, reason: str = "") -> Setting:
        """A setting's measures, or the reason why there are none."""
        if name not in self._first:
            return Setting(None, reason)
        return Setting({measure: self._bootstrap.proportion(self._column(name, measure)) for measure in self._measures})

    def difference(self, name: str, over: str, measure: str = RECALL) -> Interval | None:
        """A measure in one setting less the same in another; None where one of them was not measured."""
        if not self._has(name, over):
            return None
        return self._bootstrap.difference(self._column(name, measure), self._column(over, measure))

    def ratio(self, name: str, over: str, measure: str = RECALL) -> Interval | None:
        """A measure in one setting as a share of the same in another; None where that is 0 or missing."""
        if not self._has(name, over):
            return None
        return self._bootstrap.ratio(self._column(name, measure), self._column(over, measure))

    def gain(self, name: str, over: str) -> Interval | None:
        """Difference in recall@1 between two settings."""
        return self.difference(name, over)

    def retention(self, name: str) -> Interval | None:
        """Share of old-to-old recall@1 that a setting keeps; None where old-to-old finds nothing."""
        return self.ratio(name, "old_to_old")

    def update_gain(self, name: str) -> Interval | None:
        """Share of the new model's gain in recall@1 that a setting reaches; None where no gain is sure."""
        if not self._has(name, "old_to_old", "new_to_new"):
            return None
        return self._bootstrap.share(*(self._column(n, RECALL) for n in (name, "old_to_old", "new_to_new")))

    @cached_property
    def _bootstrap(self) -> Bootstrap:
        joined = np.concatenate(list(self._measured.values()), axis=1)
        return Bootstrap(joined, self._clusters, resamples=self._resamples, seed=self._seed)

    def _has(self, *names: str) -> bool:
        return all(name in self._first for name in names)

    def _column(self, name: str, measure: str) -> int:
        return self._first[name] + self._measures.index(measure)


def constant_answer(relevance: Relevance) -> float:
    """Recall@1 of the one gallery item that answers most queries, given to all of them: what needs no model at all.

    A map that sends every query to one place finds this at most; so does one that was fitted to noise, nearly.
    """
    asked = int((relevance.counts > 0).sum())
    return float(np.bincount(relevance.rows).max() / asked) if asked else 0.0
