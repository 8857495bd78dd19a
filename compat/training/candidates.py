"""The closed forms as points of a search: a family and its settings, on grids that go on wherever the edge wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compat.training.solutions import Solutions
from compat.transformers.linear import IdentityMap, LinearMap

Score = Callable[["Candidate"], float]

_LEAST_STEP, _MOST_STEP = -14, 8  # strengths 1e-7 to 1e4: beyond, a map is least squares, or says nothing
_EIGHTHS = range(1, 8)
_STRENGTHS = tuple((step,) for step in range(-6, 3, 2))
_SHARES = tuple((step, eighths) for step in (-2, 0) for eighths in (2, 4, 6))
_STARTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "identity": ((),),
    "procrustes": ((),),
    "ridge": _STRENGTHS,
    "shrunk": _STRENGTHS,
    "blend": _SHARES,
    "reduced_rank": _SHARES,
    "whitened": ((-3, -3), (-2, -2), (-1, -1), (0, 0), (1, 1), (0, 1), (-4, 2), (-2, 3)),
}
CLOSED_FORMS = tuple(_STARTS)
"""Families with a closed form, the simplest first."""


@dataclass(frozen=True)
class Candidate:
    """A closed form with its settings.

    Attributes:
        family: One of `CLOSED_FORMS`.
        steps: Places on the family's grids. The first is of the strength, 10^(step / 2); the second of the whitening,
            likewise, or of the share or the rank, in eighths.
    """

    family: str
    steps: tuple[int, ...] = ()

    @property
    def strength(self) -> float:
        """The penalty, in units of the mean variance along a dimension."""
        return 10 ** (self.steps[0] / 2)

    def settings(self, dims: int) -> dict[str, Any]:
        """What the steps stand for, by name; `dims` is the smaller dimension of the two spaces."""
        if not self.steps:
            return {}
        names: dict[str, dict[str, float]] = {
            "blend": {"share": self.steps[-1] / 8},
            "reduced_rank": {"rank": max(1, dims * self.steps[-1] // 8)},
            "whitened": {"whitening": 10 ** (self.steps[-1] / 2)},
        }
        return {"strength": self.strength, **names.get(self.family, {})}

    def describe(self, dims: int) -> str:
        """The family and its settings on one line."""
        return " ".join([self.family, *(f"{name}={value:.3g}" for name, value in self.settings(dims).items())])

    def solve(self, solutions: Solutions) -> LinearMap | IdentityMap:
        """The map, for one set of pairs."""
        return solve(self.family, solutions, **self.settings(min(solutions.dims)))

    def neighbours(self) -> list[Candidate]:
        """The candidates one step away along each grid."""
        near = []
        for place in range(len(self.steps)):
            for change in (-1, 1):
                step = self.steps[place] + change
                in_eighths = place == 1 and self.family in ("blend", "reduced_rank")
                if step in _EIGHTHS if in_eighths else _LEAST_STEP <= step <= _MOST_STEP:
                    near.append(Candidate(self.family, (*self.steps[:place], step, *self.steps[place + 1 :])))
        return near


def solve(
    family: str,
    solutions: Solutions,
    *,
    strength: float = 1.0,
    share: float = 0.5,
    rank: int = 1,
    whitening: float = 1.0,
) -> LinearMap | IdentityMap:
    """The map of a family; settings that it does not have are not looked at."""
    forms: dict[str, Callable[[], LinearMap | IdentityMap]] = {
        "identity": lambda: IdentityMap(*solutions.dims),
        "procrustes": solutions.procrustes,
        "ridge": lambda: solutions.ridge(strength),
        "shrunk": lambda: solutions.shrunk(strength),
        "blend": lambda: solutions.blend(share, strength),
        "reduced_rank": lambda: solutions.reduced_rank(rank, strength),
        "whitened": lambda: solutions.whitened(strength, whitening),
    }
    return forms[family]()


def climb(family: str, score: Score) -> Candidate:
    """The candidate of a family with the highest score, from the best start step by step to the best neighbour.

    Args:
        family: One of `CLOSED_FORMS`.
        score: Higher is better; asked once for each candidate.
    """
    known: dict[Candidate, float] = {}

    def best_of(candidates: list[Candidate]) -> Candidate:
        for candidate in candidates:
            if candidate not in known:
                known[candidate] = score(candidate)
        return max(candidates, key=lambda candidate: (known[candidate], candidate.steps))  # of equals the tamer

    best = best_of([Candidate(family, steps) for steps in _STARTS[family]])
    while (better := best_of([best, *best.neighbours()])) != best:
        best = better
    return best
