"""`auto`: the best map for the pairs at hand, by retrieval of pairs that no candidate was fitted to.

First every family searches its own settings on few queries, then the best of each meet on all folds, with and without
hubness correction. The winner is the simplest whose score is within noise of the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from compat.metrics.intervals import Interval, bootstrap_means, interval
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.candidates import CLOSED_FORMS, Candidate, climb
from compat.training.closed_form import ONLY_FOLD_STRENGTH, CrossValidation, Fitted, as_map
from compat.training.selection import Distractors, HeldOutScore, Ranked

CORRECTIONS = (0.0, 0.25, 0.5)
"""Strengths tried. Stronger ones win more on the items themselves and lose on queries of another kind."""
_FAMILIES = tuple(family for family in CLOSED_FORMS if family != "identity")
_QUICK_FOLDS = 2
_QUICK = {"most_queries": 500, "most_distractors": 4000, "most_bank": 1500}
_RUNNERS_UP = 3

OnCandidate = Callable[[str], None]


class Entry(NamedTuple):
    """A candidate with a strength of correction."""

    candidate: Candidate
    correction: float

    def describe(self, dims: int) -> str:
        """One line."""
        corrected = f" + hubness correction {self.correction:g}" if self.correction else ""
        return self.candidate.describe(dims) + corrected

    @property
    def simplicity(self) -> tuple[bool, int]:
        """Sorts the simpler first: a correction asks more of whoever serves it than any linear map."""
        return self.correction > 0, CLOSED_FORMS.index(self.candidate.family)


@dataclass(frozen=True)
class Rung:
    """One entry of the ladder: its score on held-out pairs, and by how much it is behind the best, both 95%."""

    entry: Entry
    name: str
    score: HeldOutScore
    reciprocal_rank: Interval
    behind: Interval
    tied: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the card."""
        return {
            "name": self.name,
            "family": self.entry.candidate.family,
            "correction": self.entry.correction,
            "recall_at_1": self.score.recall_at_1,
            "mean_reciprocal_rank": self.reciprocal_rank.to_dict(),
            "behind_the_best": self.behind.to_dict(),
            "tied": self.tied,
        }


def fit_best(
    pairs: Pairs,
    options: FitOptions,
    *,
    distractors: Distractors | None = None,
    on_candidate: OnCandidate | None = None,
) -> Fitted:
    """Choose family, settings and hubness correction, and fit them to all pairs.

    Args:
        pairs: The pairs.
        options: Direction, inputs, folds, seed; a given `correction` is kept.
        distractors: A gallery beyond the pairs: in a larger crowd maps are told apart better.
        on_candidate: Called with a line for each family searched.
    """
    say = on_candidate or (lambda _: None)
    validation = CrossValidation(pairs, options, target=True, distractors=distractors)
    if not validation.possible:
        why = "nothing can be held out to choose by: all pairs are of one identity"
        settings = {"strength": ONLY_FOLD_STRENGTH}
        network = validation.whole.shrunk(ONLY_FOLD_STRENGTH)
        return Fitted(network, None, settings, (f"auto took shrunk: {why}",), "shrunk", options.correction or 0.0)
    corrections = CORRECTIONS if options.correction is None else (options.correction,)
    finalists = _search(validation, corrections, say)
    ladder = _climb_off(validation, finalists, corrections)
    best = max(ladder, key=lambda rung: rung.reciprocal_rank.value)
    chosen = min((rung for rung in ladder if rung.tied), key=lambda rung: (*rung.entry.simplicity, rung.behind.value))
    why = _reason(chosen, best)
    dims = min(validation.whole.dims)
    candidate, correction = chosen.entry
    shown = sorted(_shown(ladder, chosen), key=lambda rung: -rung.reciprocal_rank.value)
    facts = {
        **candidate.settings(dims),
        "ladder": [rung.to_dict() for rung in shown],
        "chosen": chosen.name,
        "why": why,
    }
    return Fitted(candidate.solve(validation.whole), chosen.score, facts, (), candidate.family, correction)


def _search(validation: CrossValidation, corrections: tuple[float, ...], say: OnCandidate) -> list[Candidate]:
    folds = range(min(_QUICK_FOLDS, len(validation.without)))
    judges = [validation.judge(fold, **_QUICK) for fold in folds]
    found: dict[Candidate, float] = {}

    def score(candidate: Candidate) -> float:
        ranked = [
            judge.rank(as_map(candidate.solve(validation.without[fold])), corrections)
            for fold, judge in zip(folds, judges, strict=True)
        ]
        means = [np.concatenate([r.reciprocal_ranks for r in column]).mean() for column in zip(*ranked, strict=True)]
        found[candidate] = float(max(means, default=0.0))
        return found[candidate]

    dims = min(validation.whole.dims)
    finalists = []
    for family in _FAMILIES:
        best = climb(family, score)
        finalists.append(best)
        say(f"{best.describe(dims)}: reciprocal rank {found[best]:.3f} on some held-out pairs")
    others = sorted(found.keys() - set(finalists), key=found.__getitem__, reverse=True)
    return finalists + others[:_RUNNERS_UP]


def _climb_off(validation: CrossValidation, finalists: list[Candidate], corrections: tuple[float, ...]) -> list[Rung]:
    ranked: dict[Entry, Ranked] = {}
    for candidate in finalists:
        for correction, ranks in zip(corrections, validation.rank(candidate, corrections), strict=True):
            ranked[Entry(candidate, correction)] = ranks
    scores = np.stack([ranks.reciprocal_ranks for ranks in ranked.values()], axis=1)
    groups = next(iter(ranked.values())).groups
    means, draws = scores.mean(axis=0), bootstrap_means(scores, groups, seed=validation.options.seed)
    top = int(means.argmax())
    behind = draws[:, [top]] - draws
    dims = min(validation.whole.dims)
    return [
        Rung(
            entry=entry,
            name=entry.describe(dims),
            score=validation.judges[0].summary([ranks]),
            reciprocal_rank=interval(float(means[place]), draws[:, place]),
            behind=interval(float(means[top] - means[place]), behind[:, place]),
            tied=bool(means[top] - means[place] <= behind[:, place].std()),
        )
        for place, (entry, ranks) in enumerate(ranked.items())
    ]


def _shown(ladder: list[Rung], chosen: Rung) -> list[Rung]:
    # Of each family the best with and the best without a correction.
    best: dict[tuple[str, bool], Rung] = {}
    for rung in ladder:
        key = (rung.entry.candidate.family, rung.entry.correction > 0)
        if key not in best or rung.reciprocal_rank.value > best[key].reciprocal_rank.value:
            best[key] = rung
    return [*best.values(), *([chosen] if chosen not in best.values() else [])]


def _reason(chosen: Rung, best: Rung) -> str:
    if chosen is best:
        return "it retrieves held-out pairs best, and nothing simpler comes within noise of it"
    return (
        f"it is simpler than {best.name}, and within noise of it: {chosen.behind.value:.4f} "
        f"[{chosen.behind.low:.4f}, {chosen.behind.high:.4f}] behind in reciprocal rank"
    )
