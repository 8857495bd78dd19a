"""Scales of a chart: where a value lies along one, and which ticks people read it by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MOST_DECADES = 7
"""A logarithmic axis labels at most about so many powers of ten."""
MOST_FINE_DECADES = 4
"""With more powers of ten, ticks between them would run into each other."""
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Scale(Protocol):
    """What a chart needs to know of an axis."""

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1."""
        ...

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Share and label of each tick."""
        ...

    @property
    def minor_ticks(self) -> list[float]:
        """Shares of ticks without a label."""
        ...


@dataclass(frozen=True)
class Axis:
    """A linear scale with ticks at multiples of 1, 2 or 5."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float], *, ticks: int = 5, tight: bool = False) -> Axis:
        """An axis that holds all values [n >= 1]; its ends lie on ticks, unless it is tight."""
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            room = abs(low) / 10 or 0.5
            low, high = low - room, high + room
        power = 10 ** math.floor(math.log10((high - low) / ticks))
        step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= ticks)
        if not tight:
            # The small number keeps 0.7 from being floored to 0.6 because 0.7 / 0.1 is 6.999...
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high, step)

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Share and label of each tick."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        places = max(0, -math.floor(math.log10(self.step) + 1e-9))
        values = [number * self.step for number in range(first, last + 1)]
        readable = places <= 4 and max(map(abs, values), default=0) < 1e6
        return [(self.share(value), f"{value:.{places}f}" if readable else f"{value:.3g}") for value in values]

    @property
    def minor_ticks(self) -> list[float]:
        """None: the labelled ticks are near enough to each other."""
        return []


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic scale; its ends are the smallest and largest value, its ticks powers of ten."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> LogAxis:
        """An axis that holds all values [n >= 1], each above 0."""
        low, high = min(values), max(values)
        if high / low < 1 + 1e-9:
            low, high = low / 2, high * 2
        return cls(low, high)

    def share(self, value: float) -> float:
        """How far along the axis a value above 0 lies, 0 to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Share and label of each tick: powers of ten, also their 2 and 5 fold where there are fewer than three."""
        first, last = self._powers
        if last - first >= 2:
            every = math.ceil((last - first + 1) / MOST_DECADES)
            # Counted from the upper end: a rate of 1 is where people begin to read.
            powers = range(last, first - 1, -every)
            return [(self.share(10.0**power), power_of_ten(power)) for power in reversed(powers)]
        values = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
        inside = [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        if len(inside) < 2:
            inside = [self.low, self.high]
        return [(self.share(value), f"{value:.3g}") for value in inside]

    @property
    def minor_ticks(self) -> list[float]:
        """Shares of 2 to 9 times each power of ten, which show that the scale is logarithmic; of few decades only."""
        first, last = self._powers
        if not 2 <= last - first <= MOST_FINE_DECADES:
            return []
        values = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in range(2, 10)]
        return [self.share(value) for value in values if self.low <= value <= self.high]

    @property
    def _powers(self) -> tuple[int, int]:
        return math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)


def power_of_ten(power: int) -> str:
    """10⁻³ for -3, 10⁴ for 4, and in full what is short: 1, 10, 100, 1000."""
    return str(10**power) if 0 <= power <= 3 else "10" + str(power).translate(SUPERSCRIPT)
