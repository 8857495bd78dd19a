"""The item table of an open store, read a part at a time, so that a pass over a store holds little of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import polars as pl

from stores.chunks import DamagedStore
from stores.commit import ItemPart
from stores.item_parts import PART_ROWS, read_part, read_part_rows, verify_part

_Read = TypeVar("_Read")

ROWS_IN_MEMORY = 4 * PART_ROWS
"""A table of at most this many rows is read whole at its first use."""


class ItemTable:
    """The first `rows` rows of some parts.

    Args:
        folder: Where the parts are.
        parts: Their files in order.
        rows: Rows of the table, all of those of the parts or fewer.
        newest: Gives the parts as they are now: a writer merges small ones, which keeps the rows that were there.
    """

    def __init__(
        self, folder: Path, parts: tuple[ItemPart, ...], rows: int, newest: Callable[[], tuple[ItemPart, ...]]
    ) -> None:
        self._folder = folder
        self._rows = rows
        self._newest = newest
        self._whole: pl.DataFrame | None = None
        self._use(parts)

    def __len__(self) -> int:
        return self._rows

    def whole(self) -> pl.DataFrame:
        """All rows, kept in memory from now on.

        Raises:
            DamagedStore: If a part is missing or was altered.
        """
        if self._whole is None:
            parts = self._retried(lambda: [read_part(self._folder, part) for part in self._parts])
            empty = pl.DataFrame(schema={"item_id": pl.String})
            self._whole = pl.concat(parts).head(self._rows) if parts else empty
        return self._whole

    def slice(self, start: int, stop: int) -> pl.DataFrame:
        """Rows start..stop-1.

        Raises:
            DamagedStore: If a part is missing or was altered.
        """
        if self._whole is not None or self._rows <= ROWS_IN_MEMORY:
            return self.whole()[start:stop]
        return self._retried(lambda: pl.concat(list(self._pieces(start, stop))))

    def _pieces(self, start: int, stop: int) -> Iterator[pl.DataFrame]:
        number = bisect_right(self._starts, start) - 1
        while number < len(self._parts) and (first := self._starts[number]) < max(stop, start + 1):
            part = self._parts[number]
            low, high = max(start - first, 0), min(stop - first, part.rows)
            if low == 0 and self._current != number:  # whoever begins with a part will go on with it
                self._current, self._table = number, read_part(self._folder, part)
                self._verified.add(number)
            if self._current == number:
                yield self._table[low:high]
            else:
                if number not in self._verified:
                    verify_part(self._folder, part)
                    self._verified.add(number)
                yield read_part_rows(self._folder, part, low, high)
            number += 1

    def _use(self, parts: tuple[ItemPart, ...]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(part.rows for part in parts)][:-1]
        self._verified: set[int] = set()
        self._current = -1
        self._table = pl.DataFrame()

    def _retried(self, read: Callable[[], _Read]) -> _Read:
        while True:
            try:
                return read()
            except DamagedStore:
                newest = self._newest()
                if newest == self._parts:
                    raise
                self._use(newest)
