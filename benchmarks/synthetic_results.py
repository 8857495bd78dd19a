"""What cells of bench_synthetic found, by map, setting and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from synthetic_cells import CORRECTED, OK, PLAIN, VOID
from synthetic_plan import Cell, Map, Setting
from synthetic_scores import Estimate, Hits, difference, parse

Record = dict[str, Any]


class Results:
    """The cells that are there.

    Args:
        load: A result by name, or None where it is not there.
        settings: Which there are.
        seeds: 0, 1, ... below this.
        labels: The character of each query, integer codes [q].
    """

    def __init__(
        self, load: Callable[[str], Record | None], settings: Sequence[Setting], seeds: int, labels: np.ndarray
    ) -> None:
        self.settings, self.labels = settings, labels
        self._load, self._seeds = load, seeds
        self._known: dict[str, Record | None] = {}

    def load(self, name: str) -> Record | None:
        """A result, read once."""
        if name not in self._known:
            self._known[name] = self._load(name)
        return self._known[name]

    def records(self, setting: Setting, of: Map) -> dict[int, Record]:
        """Those of a map, void ones included, by seed."""
        found = {seed: self.load(Cell(setting, seed, of).name) for seed in range(self._seeds)}
        return {seed: record for seed, record in found.items() if record is not None}

    def is_void(self, setting: Setting, of: Map) -> bool:
        """Whether cells are there and none of them got a synthetic sample."""
        records = self.records(setting, of)
        return bool(records) and all(record["status"] == VOID for record in records.values())

    def hits(
        self,
        of: Map,
        settings: Sequence[Setting] | None = None,
        *,
        search: str = PLAIN,
        gallery: str = "items",
    ) -> Hits:
        """What a map's cells found; void ones found nothing and are left out."""
        found = {}
        for setting in self.settings if settings is None else settings:
            records = {seed: each for seed, each in self.records(setting, of).items() if each["status"] == OK}
            here = {
                s: parse(each["scores"][search][gallery]) for s, each in records.items() if search in each["scores"]
            }
            if here:
                found[str(setting)] = here
        return found

    def less(self, one: Hits, other: Hits, *, comparisons: int = 1) -> Estimate | None:
        """The first less the second."""
        return difference(one, other, self.labels, comparisons=comparisons)


__all__ = ["CORRECTED", "PLAIN", "Results"]
