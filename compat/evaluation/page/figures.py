"""Where the marks of the report's charts lie. The template draws them as SVG, so the page needs no script for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compat.evaluation.page.axes import Axis, LogAxis, Scale
from compat.evaluation.page.paths import Point, distance, marker, path, spread, without_straight
from compat.evaluation.rows import Kind, Row, is_number

LABEL_HEIGHT = 14
"""Labels of horizontal lines stay so many units apart."""
LETTER_WIDTH = 7


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
class Frame:
    """Size of a drawing and of the field inside it that lines are drawn in, in units of the drawing."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float


WIDE = Frame(460, 300, 50, 448, 30, 250)
SMALL = Frame(300, 170, 48, 288, 8, 132)


@dataclass(frozen=True)
class Series:
    """Numbers to draw as one line; a missing one is passed over, for example accuracy measured in some epochs only.

    Attributes:
        name: What people read.
        x: Positions [n].
        y: Heights [n].
        kind: The class that gives the line its colour and dashes.
        marker: A shape that tells the line from others without colour; none if empty.
        low: Lower edge of a band around the line [n], or empty.
        high: Its upper edge.
        filled: Whether the area under the line is tinted.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[Any]
    kind: str = "plain"
    marker: str = ""
    low: Sequence[Any] = ()
    high: Sequence[Any] = ()
    filled: bool = False


@dataclass(frozen=True)
class Rule:
    """A straight line across the field with a label: horizontal at a height, or vertical at a position."""

    at: float
    label: str
    kind: str
    vertical: bool = False


@dataclass(frozen=True)
class DrawnLine:
    """A line as SVG paths: the line, its markers, the band around it or the area under it, and its key's marker."""

    name: str
    kind: str
    path: str
    markers: str
    band: str
    key: str


@dataclass(frozen=True)
class DrawnRule:
    """Ends of a rule, and where its label stands; `anchor` is SVG's text-anchor."""

    label: str
    kind: str
    ends: tuple[float, float, float, float]
    text: Point
    anchor: str


@dataclass(frozen=True)
class LineChart:
    """Lines in one field, in units of its frame."""

    title: str
    x_label: str
    y_label: str
    frame: Frame
    lines: list[DrawnLine]
    rules: list[DrawnRule]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_minor: list[float] = field(default_factory=list)
    y_minor: list[float] = field(default_factory=list)
    note: str = ""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    frame: Frame = WIDE,
    rules: Sequence[Rule] = (),
    log_x: bool = False,
    log_y: bool = False,
    within: Sequence[float] = (),
    least: Sequence[float] = (),
    note: str = "",
) -> LineChart | None:
    """Several lines on one pair of axes; None where no series has a number.

    Args:
        title: What people read above it.
        series: The lines; a point that is missing, or at most 0 on a logarithmic axis, is passed over.
        x_label: Title of the horizontal axis.
        y_label: Title of the vertical one.
        frame: Size.
        rules: Straight lines across the field; the axes reach to them.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical one is.
        within: Positions that the horizontal axis must reach, so that charts side by side compare.
        least: Heights that the vertical axis must reach, for example 0 under a histogram.
        note: A line for the caption.
    """
    drawn = [(one, points) for one in series if (points := _points(one.x, one.y, log_x, log_y))]
    if not drawn:
        return None
    x_values = [x for _, points in drawn for x, _ in points] + list(within)
    x_values += [rule.at for rule in rules if rule.vertical and (rule.at > 0 or not log_x)]
    y_values = [y for _, points in drawn for _, y in points] + list(least)
    y_values += [rule.at for rule in rules if not rule.vertical and (rule.at > 0 or not log_y)]
    y_values += [y for one, _ in drawn for y in (*one.low, *one.high) if is_number(y) and (y > 0 or not log_y)]
    across = LogAxis.over(x_values) if log_x else Axis.over(x_values, tight=True)
    up = LogAxis.over(y_values) if log_y else Axis.over(y_values, ticks=4 if frame is SMALL else 5)
    field_ = _Field(frame, across, up)
    lines = []
    for i, (one, points) in enumerate(drawn):
        places = field_.places(points)
        lines.append(
            DrawnLine(
                name=one.name,
                kind=one.kind,
                path=path([places[0], *without_straight(places)]),  # the first twice: a single point is a dot
                markers="".join(marker(one.marker, at) for at in spread(places, (i + 0.5) / len(drawn))),
                band=field_.band(one, points, log_x, log_y),
                key=marker(one.marker, (16, 6)),
            )
        )
    return LineChart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        frame=frame,
        lines=lines,
        rules=field_.rules(
            [field_.places(points) for _, points in drawn],
            [rule for rule in rules if rule.at > 0 or not (log_x if rule.vertical else log_y)],
        ),
        x_ticks=[(field_.left(share), label) for share, label in across.ticks],
        y_ticks=[(field_.down(share), label) for share, label in up.ticks],
        x_minor=[field_.left(share) for share in across.minor_ticks],
        y_minor=[field_.down(share) for share in up.minor_ticks],
        note=note,
    )


def curve(series: Mapping[str, Any], x_label: str) -> LineChart | None:
    """A small chart of one series over time with its own scale; None where it has no number."""
    points = _points(series["x"], series["y"], log_x=False, log_y=False)
    if not points:
        return None
    note = f"{points[-1][1]:.4g} at {x_label} {points[-1][0]:g}"
    name = str(series["name"])
    return line_chart(name, [Series(name, series["x"], series["y"])], x_label=x_label, frame=SMALL, note=note)


@dataclass(frozen=True)
class _Field:
    frame: Frame
    across: Scale
    up: Scale

    def left(self, share: float) -> float:
        return round(self.frame.left + share * (self.frame.right - self.frame.left), 1)

    def down(self, share: float) -> float:
        return round(self.frame.bottom - share * (self.frame.bottom - self.frame.top), 1)

    def places(self, points: Sequence[Point]) -> list[Point]:
        return [(self.left(self.across.share(x)), self.down(self.up.share(y))) for x, y in points]

    def band(self, one: Series, points: Sequence[Point], log_x: bool, log_y: bool) -> str:
        if one.filled:
            places, floor = self.places(points), self.frame.bottom
            return path([(places[0][0], floor), *without_straight(places), (places[-1][0], floor)]) + "Z"
        low, high = (_points(one.x, edge, log_x, log_y) for edge in (one.low, one.high))
        return path([*self.places(high), *reversed(self.places(low))]) + "Z" if low and high else ""

    def rules(self, lines: Sequence[Sequence[Point]], rules: Sequence[Rule]) -> list[DrawnRule]:
        """Rules with their labels, those of horizontal ones at the end where the lines leave more room."""
        frame, drawn = self.frame, []
        for rule in rules:
            if rule.vertical:
                x = self.left(self.across.share(rule.at))
                late = x > (frame.left + frame.right) / 2
                text = (x - 5, frame.top + 10) if late else (x + 5, frame.top + 10)
                ends = (x, frame.top, x, frame.bottom)
                drawn.append(DrawnRule(rule.label, rule.kind, ends, text, "end" if late else "start"))
        last = float("-inf")
        for rule in sorted((rule for rule in rules if not rule.vertical), key=lambda rule: -rule.at):
            y = self.down(self.up.share(rule.at))
            # Above its line, or below it where another label stands there.
            height = y - 5 if y - 5 >= last + LABEL_HEIGHT else max(y + 13, last + LABEL_HEIGHT)
            last = height
            ends = (frame.left, y, frame.right, y)
            wide = LETTER_WIDTH * len(rule.label)
            at_left = distance(lines, frame.left, frame.left + wide, height - 4)
            if at_left > distance(lines, frame.right - wide, frame.right, height - 4):
                drawn.append(DrawnRule(rule.label, rule.kind, ends, (frame.left + 6, height), "start"))
            else:
                drawn.append(DrawnRule(rule.label, rule.kind, ends, (frame.right - 4, height), "end"))
        return drawn


def _points(x: Sequence[Any], y: Sequence[Any], log_x: bool, log_y: bool) -> list[Point]:
    found = [
        (a, b)
        for a, b in zip(x, y, strict=False)
        if is_number(a) and is_number(b) and (a > 0 or not log_x) and (b > 0 or not log_y)
    ]
    return found[::-1] if found and found[0][0] > found[-1][0] else found
