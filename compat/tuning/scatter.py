"""Charts of trials as points. They are the line charts of the report's page, with a marker at every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compat.evaluation.page.axes import Axis, LogAxis, Scale
from compat.evaluation.page.figures import LETTER_WIDTH, DrawnLine, DrawnRule, Frame, LineChart
from compat.evaluation.page.paths import Point, marker, path

TICKS_UP = 4
"""Steps that a vertical axis is divided into, at most."""


@dataclass(frozen=True)
class Points:
    """Some trials.

    Attributes:
        name: What people read.
        x: Positions [n], or names of categories.
        y: Heights [n].
        kind: The class that gives them their colour.
        marker: Their shape; none if empty.
        joined: Whether a line of steps joins them, which stays at a height until the next.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    kind: str
    marker: str = "circle"
    joined: bool = False


@dataclass(frozen=True)
class Categories:
    """A scale of names, side by side."""

    names: Sequence[Any]
    minor_ticks: list[float] = field(default_factory=list)

    def share(self, value: Any) -> float:
        """The middle of a name's place."""
        return (list(self.names).index(value) + 0.5) / len(self.names)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Share and label of each name."""
        return [(self.share(name), str(name)) for name in self.names]


@dataclass(frozen=True)
class _Padded:
    """Another scale with room at both ends, so that no marker is cut."""

    inner: Scale
    room: float

    def share(self, value: float) -> float:
        return self._within(self.inner.share(value))

    def _within(self, share: float) -> float:
        return self.room + (1 - 2 * self.room) * share

    @property
    def ticks(self) -> list[tuple[float, str]]:
        return [(self._within(share), label) for share, label in self.inner.ticks]

    @property
    def minor_ticks(self) -> list[float]:
        return [self._within(share) for share in self.inner.minor_ticks]


def scatter(
    title: str,
    points: Sequence[Points],
    *,
    x_label: str,
    y_label: str,
    frame: Frame,
    level: float,
    floor: float,
    log_x: bool = False,
    categories: Sequence[Any] = (),
    note: str = "",
) -> LineChart | None:
    """Points in one field; None where there are none.

    Args:
        title: What people read above it.
        points: What to draw, the last on top.
        x_label: Title of the horizontal axis.
        y_label: Title of the vertical one.
        frame: Size.
        level: A height to draw a line at; the note says what it is, since points would hide a label.
        floor: Lower points are drawn at this height, at the lower edge.
        log_x: Whether the horizontal axis is logarithmic.
        categories: Names along the horizontal axis, where it is one of names.
        note: A line for the caption.
    """
    points = [each for each in points if len(each.x)]
    if not points:
        return None
    heights = [max(y, floor) for each in points for y in each.y] + [level]
    up = Axis.over([*heights, floor], ticks=TICKS_UP)
    positions = [x for each in points for x in each.x]
    if categories:
        across: Scale = Categories(categories)
    else:
        across = _Padded(LogAxis.over(positions) if log_x else _linear(positions), 0.03)

    def along(share: float) -> float:
        return round(frame.left + share * (frame.right - frame.left), 1)

    def place(x: Any, y: float) -> Point:
        return along(across.share(x)), round(frame.bottom - up.share(max(y, floor)) * (frame.bottom - frame.top), 1)

    down = place(positions[0], level)[1]
    return LineChart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        frame=frame,
        lines=[_drawn(each, [place(x, y) for x, y in zip(each.x, each.y, strict=True)], frame) for each in points],
        rules=[DrawnRule("", "limit", (frame.left, down, frame.right, down), (frame.right, down), "end")],
        x_ticks=_apart([(along(share), label) for share, label in across.ticks]),
        y_ticks=[(round(frame.bottom - share * (frame.bottom - frame.top), 1), label) for share, label in up.ticks],
        x_minor=[along(share) for share in across.minor_ticks],
        note=note,
    )


def _linear(positions: Sequence[float]) -> Axis:
    axis = Axis.over(positions, tight=True)
    whole = all(isinstance(x, int) for x in positions)  # there is no trial 0.2
    return replace(axis, step=max(1.0, axis.step)) if whole else axis


def _drawn(points: Points, places: Sequence[Point], frame: Frame) -> DrawnLine:
    if not points.joined:
        markers = "".join(marker(points.marker, at) for at in places)
        return DrawnLine(points.name, points.kind, "", markers, "", marker(points.marker, (16, 6)))
    steps = [places[0]]
    for at in places[1:]:
        steps += [(at[0], steps[-1][1]), at]
    return DrawnLine(points.name, points.kind, path([*steps, (frame.right, steps[-1][1])]), "", "", "")


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks whose labels do not run into the one before, the first and those after it."""
    kept: list[tuple[float, str]] = []
    for at, label in ticks:
        if not kept or at - kept[-1][0] > LETTER_WIDTH * (len(label) + len(kept[-1][1])) / 2 + LETTER_WIDTH:
            kept.append((at, label))
    return kept
