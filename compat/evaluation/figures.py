"""Where the marks of the report's charts lie. The template draws them as SVG, so the page needs no script for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compat.evaluation.table import Kind, Row, is_number


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


@dataclass(frozen=True)
class Dot:
    """A value and the ends of its interval, as percentages of the axis; `number` and `interval` are their text."""

    name: str
    kind: Kind
    value: float
    ends: tuple[float, float] | None
    number: str
    interval: str


@dataclass(frozen=True)
class IntervalChart:
    """Dots under each other on one axis. `references` are vertical lines: percentage and kind."""

    ticks: list[tuple[float, str]]
    references: list[tuple[float, Kind]]
    dots: list[Dot]


def interval_chart(rows: Sequence[Row], measure: str = "recall_at_1") -> IntervalChart | None:
    """One measure of all rows that have it, native rows also as reference lines; None where no row has it."""
    found = [(row, value) for row in rows if (value := row.measure(measure)) is not None]
    if not found:
        return None
    ends = ("value", "low", "high")
    axis = Axis.over([value[end] for _, value in found for end in ends if is_number(value.get(end))])

    def place(number: float) -> float:
        return round(100 * axis.share(number), 2)

    dots = []
    for row, value in found:
        between = [value[end] for end in ("low", "high") if is_number(value.get(end))]
        known = len(between) == 2
        dots.append(
            Dot(
                name=row.name,
                kind=row.kind,
                value=place(value["value"]),
                ends=(place(between[0]), place(between[1])) if known else None,
                number=f"{value['value']:.3f}",
                interval=f"[{between[0]:.3f}, {between[1]:.3f}]" if known else "",
            )
        )
    ticks = [(round(100 * share, 2), label) for share, label in axis.ticks]
    return IntervalChart(ticks, [(dot.value, dot.kind) for dot in dots if dot.kind in ("old", "new")], dots)


@dataclass(frozen=True)
class Curve:
    """One series over time, in units of a drawing `width` wide and `height` high. `path` is an SVG path."""

    name: str
    x_label: str
    path: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    last: str

    width, height = 300, 170
    left, right, top, bottom = 48, 288, 8, 132


def curve(series: Mapping[str, Any], x_label: str) -> Curve | None:
    """A chart of one series with its own scale; None where it has no number.

    A missing value is passed over: accuracy is often measured in some epochs only.
    """
    points = [(x, y) for x, y in zip(series["x"], series["y"], strict=False) if is_number(x) and is_number(y)]
    if not points:
        return None
    across = Axis.over([x for x, _ in points], tight=True)
    up = Axis.over([y for _, y in points], ticks=4)

    def left(share: float) -> float:
        return round(Curve.left + share * (Curve.right - Curve.left), 1)

    def down(share: float) -> float:
        return round(Curve.bottom - share * (Curve.bottom - Curve.top), 1)

    places = [f"{left(across.share(x))} {down(up.share(y))}" for x, y in points]
    return Curve(
        name=str(series["name"]),
        x_label=x_label,
        path=f"M{places[0]}L" + "L".join(places),  # the first twice, so that a single point is a dot
        x_ticks=[(left(share), label) for share, label in across.ticks],
        y_ticks=[(down(share), label) for share, label in up.ticks],
        last=f"{points[-1][1]:.4g} at {x_label} {points[-1][0]:g}",
    )
