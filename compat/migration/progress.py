"""How far long work is, said now and then."""

from __future__ import annotations

import sys
import time

_SECONDS = 5  # between two lines


class ProgressLines:
    """Now and then a line on standard error: rows, their speed, and how long the rest takes.

    Args:
        done: What happened to the rows, as in `migrated 100/200 rows`.
    """

    def __init__(self, done: str) -> None:
        self._told, self._clock = done, time.monotonic
        self._said = self._began = self._clock()
        self._first: int | None = None
        self._last = 0

    def __call__(self, done: int, rows: int) -> None:
        """Tell of so many rows of all, if it is time to."""
        now = self._clock()
        if self._first is None or done < self._last:  # it begins again from the first row
            self._first, self._began = done, now
        self._last = done
        if now - self._said > _SECONDS and done > self._first and now > self._began:
            self._said = now
            speed = (done - self._first) / (now - self._began)
            left = duration((rows - done) / speed)
            print(f"{self._told} {done}/{rows} rows, {speed:.0f} rows/s, {left} left", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words, roundly."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
