"""SVG paths of lines and markers, no longer than the eye can tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]

SMALLEST_BEND = 0.3
"""Points nearer than so many units to the line between their neighbours are not drawn: nobody can see them."""
MARKER_SIZE = 3.6
MARKERS = {
    "circle": [(0.92 * np.cos(a), 0.92 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 13)[:-1]],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -1.05), (1, 0.75), (-1, 0.75)],
    "diamond": [(0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)],
    "point": [(0, 1.05), (1, -0.75), (-1, -0.75)],
    "bar": [(-0.45, -1.1), (0.45, -1.1), (0.45, 1.1), (-0.45, 1.1)],
}
"""Corners of each marker around its middle, in marker sizes."""


def path(places: Sequence[Point]) -> str:
    """A line through points."""
    return "M" + "L".join(f"{x} {y}" for x, y in places)


def without_straight(places: Sequence[Point]) -> list[Point]:
    """The points that bend the line visibly (Douglas and Peucker 1973): a curve of 100,000 points stays small."""
    line = np.asarray(places, np.float64)
    kept = np.zeros(len(line), bool)
    kept[[0, -1]] = True
    parts = [(0, len(line) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        along, inner = line[last] - line[first], line[first + 1 : last] - line[first]
        length = float(np.hypot(*along))
        off = np.abs(inner @ (-along[1], along[0])) / length if length else np.hypot(inner[:, 0], inner[:, 1])
        furthest = int(off.argmax())
        if off[furthest] > SMALLEST_BEND:
            middle = first + 1 + furthest
            kept[middle] = True
            parts += [(first, middle), (middle, last)]
    return [places[i] for i in np.flatnonzero(kept).tolist()]


def spread(places: Sequence[Point], phase: float, count: int = 5) -> list[Point]:
    """Points along a line at even distances; lines of other phases have theirs elsewhere, so that they do not hide."""
    x, y = np.asarray(places, np.float64).T
    walked = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    at = (np.arange(count) + phase) / count * walked[-1]
    return [(round(a, 1), round(b, 1)) for a, b in zip(np.interp(at, walked, x), np.interp(at, walked, y), strict=True)]


def distance(lines: Sequence[Sequence[Point]], left: float, right: float, height: float) -> float:
    """How far the nearest of some lines, each from left to right, passes a height between two positions."""
    at = np.linspace(left, right, 20)
    gaps = []
    for line in lines:
        x, y = np.asarray(line, np.float64).T
        gaps.append(np.abs(np.interp(at, x, y, left=np.inf, right=np.inf) - height).min())
    return float(min(gaps, default=np.inf))


def marker(name: str, at: Point) -> str:
    """A marker's outline around a point; empty where there is no marker of that name."""
    corners = [(round(at[0] + MARKER_SIZE * x, 1), round(at[1] + MARKER_SIZE * y, 1)) for x, y in MARKERS.get(name, ())]
    return path(corners) + "Z" if corners else ""
