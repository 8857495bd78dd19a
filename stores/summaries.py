"""Summaries of more vectors and labels than fit in memory: how long the vectors are, how many rows the labels have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from stores.space import NORM_TOLERANCE

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LABELS_AT_ONCE = 500_000
"""Different labels that are counted in one reading of the files; where there are more, they are read several times."""

_SHIFT = 12  # leaves float32's exponent and 11 bits of its fraction: norms in one bin differ by 1 part in 2,048 at most
_SAFE_SQUARES = (1e-30, 1e30)  # sums of squares outside may have under- or overflowed


@dataclass(frozen=True)
class NormSummary:
    """Lengths of vectors.

    Attributes:
        rows: Vectors looked at.
        minimum: Smallest finite length; None where no vector is finite.
        maximum: Largest finite length.
        quantiles: Lengths by share, such as `0.5`, to within 1 part in 2,048.
        unit_length: Vectors of length 1 within `NORM_TOLERANCE`.
        unit_length_share: The same as a share of `rows`.
        zero: Vectors of zeros, which have no direction.
        not_finite: Vectors that hold NaN or infinity.
    """

    rows: int
    minimum: float | None
    maximum: float | None
    quantiles: dict[str, float]
    unit_length: int
    unit_length_share: float
    zero: int
    not_finite: int


class Norms:
    """Lengths gathered in bins of one relative width. A bin answers with the mean of what fell into it."""

    def __init__(self) -> None:
        self.rows = 0
        self._unit = self._zero = self._not_finite = 0
        self._minimum, self._maximum = np.inf, 0.0
        self._counts = np.zeros(1 << (31 - _SHIFT), np.int64)  # a length has no sign bit
        self._sums = np.zeros(1 << (31 - _SHIFT), np.float64)

    def add(self, vectors: np.ndarray) -> None:
        """Take in vectors, float32 [n, d]."""
        norms = _lengths(vectors)
        self.rows += len(norms)
        norms = norms[np.isfinite(norms)]
        self._not_finite += len(vectors) - len(norms)
        if not len(norms):
            return
        self._unit += int(np.count_nonzero(np.abs(norms - 1.0) <= NORM_TOLERANCE))
        self._zero += int(np.count_nonzero(norms == 0))
        self._minimum = min(self._minimum, float(norms.min()))
        self._maximum = max(self._maximum, float(norms.max()))
        clipped = np.minimum(norms, np.finfo(np.float32).max).astype(np.float32)
        bins, places = np.unique(clipped.view(np.uint32) >> _SHIFT, return_inverse=True)
        self._counts[bins] += np.bincount(places)
        self._sums[bins] += np.bincount(places, weights=norms)

    def summary(self) -> NormSummary | None:
        """What was taken in; None for nothing."""
        if not self.rows:
            return None
        finite = self.rows > self._not_finite
        return NormSummary(
            rows=self.rows,
            minimum=self._minimum if finite else None,
            maximum=self._maximum if finite else None,
            quantiles=self._quantiles() if finite else {},
            unit_length=self._unit,
            unit_length_share=self._unit / self.rows,
            zero=self._zero,
            not_finite=self._not_finite,
        )

    def _quantiles(self) -> dict[str, float]:
        bins = np.flatnonzero(self._counts)
        means = self._sums[bins] / self._counts[bins]
        ends = np.cumsum(self._counts[bins])
        ranks = np.array(QUANTILES) * (ends[-1] - 1)
        lower, upper = (means[np.searchsorted(ends, rank, side="right")] for rank in (np.floor(ranks), np.ceil(ranks)))
        values = np.clip(lower + (ranks % 1) * (upper - lower), self._minimum, self._maximum)
        return {str(share): float(value) for share, value in zip(QUANTILES, values, strict=True)}


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths of float32 [n, d] vectors, float64 [n], also of those whose squares float32 cannot hold."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)
    least, most = _SAFE_SQUARES
    odd = np.flatnonzero(~((squares >= least) & (squares <= most)))
    squares[odd] = np.square(vectors[odd], dtype=np.float64).sum(axis=1)
    return np.sqrt(squares)


@dataclass(frozen=True)
class LabelHistogram:
    """How many rows the labels have.

    Attributes:
        labels: Different labels.
        unlabelled: Rows without one.
        minimum: Rows of the rarest label; None where there is no label.
        median: Rows of the label in the middle.
        maximum: Rows of the commonest label.
        largest: The commonest labels with their rows, ties in the order of the labels as text.
    """

    labels: int
    unlabelled: int
    minimum: int | None
    median: float | None
    maximum: int | None
    largest: tuple[tuple[str | int, int], ...]


def label_histogram(files: Sequence[Path], column: str, *, largest: int) -> LabelHistogram | None:
    """Count the values of a column, in memory bounded by `LABELS_AT_ONCE` however many there are.

    Args:
        files: Parquet files that have the column, all of one type.
        column: Its name.
        largest: How many of the commonest values to name.

    Returns:
        The histogram; None for values that have no order, such as lists.
    """
    values, unlabelled, top = 0, 0, []
    sizes: Counter[int] = Counter()
    shares = [(0, 1)]  # of the values' hashes: the remainder and the divisor
    while shares:
        remainder, divisor = shares.pop()
        counted = _count(files, column, remainder, divisor)
        if counted is None:
            return None
        counts, absent = counted
        if counts is None:  # too many different values: half of them, then the others
            shares += [(remainder, 2 * divisor), (remainder + divisor, 2 * divisor)]
            continue
        unlabelled = absent  # counted anew in each reading
        values += len(counts)
        by_size = counts["rows"].value_counts(name="labels")
        sizes.update(dict(zip(by_size["rows"].to_list(), by_size["labels"].to_list(), strict=True)))
        commonest = counts.sort(pl.col("rows"), pl.col("value").cast(pl.String), descending=[True, False])
        top = sorted([*top, *commonest.head(largest).rows()], key=lambda entry: (-entry[1], str(entry[0])))[:largest]
    if not values:
        return LabelHistogram(0, unlabelled, None, None, None, ())
    return LabelHistogram(values, unlabelled, min(sizes), _median(sizes), max(sizes), tuple(top))


def _count(files: Sequence[Path], column: str, remainder: int, divisor: int) -> tuple[pl.DataFrame | None, int] | None:
    """Rows by value, of the values whose hash leaves the remainder, or None in its place where they are too many."""
    counts = pl.DataFrame(schema={"value": pl.String, "rows": pl.Int64})
    gathered: list[pl.DataFrame] = []
    absent = waiting = 0
    for values in _columns(files, column):
        if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
            return None
        if not values.dtype.is_integer():
            values = values.cast(pl.String)
        absent += values.null_count()
        values = values.drop_nulls()
        chosen = values.filter(values.hash() % divisor == remainder) if divisor > 1 else values
        gathered.append(chosen.value_counts(name="rows").select("value", pl.col("rows").cast(pl.Int64)))
        waiting += len(gathered[-1])
        if waiting > LABELS_AT_ONCE:
            counts = _merged(gathered)
            gathered, waiting = [counts], len(counts)
            if waiting > LABELS_AT_ONCE // 2:
                return None, absent
    return (_merged(gathered) if gathered else counts), absent


def _columns(files: Sequence[Path], column: str) -> Iterator[pl.Series]:
    for file in files:
        yield pl.read_parquet(file, columns=[column])[column].alias("value")


def _merged(counts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(counts).group_by("value").agg(pl.col("rows").sum())


def _median(sizes: Counter[int]) -> float:
    ordered = sorted(sizes.items())
    ends = np.cumsum([labels for _, labels in ordered])
    middle = [ordered[np.searchsorted(ends, rank, side="right")][0] for rank in ((ends[-1] - 1) // 2, ends[-1] // 2)]
    return sum(middle) / 2
