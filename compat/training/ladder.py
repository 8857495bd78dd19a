"""`auto`: the best map for the pairs at hand, by retrieval of pairs that no candidate was fitted to.

First every family with a closed form searches its own settings on few queries, then the best of each meet on all
folds, with and without hubness correction. The winner is the simplest whose score is within a standard error (of their
difference on the same queries) of the best. Last a residual network may challenge it on one fold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from compat.metrics.intervals import Interval, bootstrap_means, interval
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.candidates import CLOSED_FORMS, Candidate, climb
from compat.training.closed_form import ONLY_FOLD_STRENGTH, CrossValidation, Fitted, as_map
from compat.training.gradient import at_raw_length, fit_network
from compat.training.selection import MOST_QUERIES, Distractors, HeldOutRetrieval, HeldOutScore, Ranked
from compat.training.told import OnEpoch, OnLine
from compat.transformers.linear import LinearMap

CORRECTIONS = (0.0, 0.25, 0.5)
"""Strengths tried. Stronger ones win more on the items themselves and lose on queries of another kind."""
_FAMILIES = tuple(family for family in CLOSED_FORMS if family != "identity")
_RUNNERS_UP = 3
_LEAST_JUDGES = 50
_REGRESSIONS = ("procrustes", "ridge", "shrunk", "blend", "reduced_rank")
"""Families that predict the target itself, which is what a residual network starts from."""
NETWORK_PAIRS = (1000, 200_000)
"""Fewer pairs teach a network little that the affine map it starts at does not know; more take long: ask by name."""

_BETTER = "it retrieves held-out pairs better than every closed form, beyond noise"


class Entry(NamedTuple):
    """A candidate with a strength of correction."""

    candidate: Candidate
    correction: float

    @property
    def simplicity(self) -> tuple[bool, int]:
        """Sorts the simpler first: a correction asks more of whoever serves it than any linear map."""
        return self.correction > 0, CLOSED_FORMS.index(self.candidate.family)


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: a map's score on held-out pairs, and by how much it is behind the best, both 95%."""

    family: str
    correction: float
    name: str
    score: HeldOutScore
    reciprocal_rank: Interval
    behind: Interval
    tied: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the card."""
        return {
            "name": self.name,
            "family": self.family,
            "correction": self.correction,
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
    on_candidate: OnLine | None = None,
    on_epoch: OnEpoch | None = None,
    on_note: OnLine | None = None,
) -> Fitted:
    """Choose family, settings and hubness correction, and fit them to all pairs.

    Args:
        pairs: The pairs.
        options: Direction, inputs, folds, seed; a given `correction` is kept.
        distractors: A gallery beyond the pairs: in a larger crowd maps are told apart better.
        on_candidate: Called with a line for each family searched.
        on_epoch: Called with each epoch's record of the network.
        on_note: Called with a line before something that takes long.
    """
    say = on_candidate or (lambda _: None)
    validation = CrossValidation(pairs, options, target=True, distractors=distractors)
    if not validation.possible or not any(judge.asked for judge in validation.judges):
        why = "no pair can be held out and asked for: all are of one identity, or no identity repeats within a fold"
        settings = {"strength": ONLY_FOLD_STRENGTH}
        network = validation.whole.shrunk(ONLY_FOLD_STRENGTH)
        return Fitted(network, None, settings, (f"auto took shrunk: {why}",), "shrunk", options.correction or 0.0)
    corrections = CORRECTIONS if options.correction is None else (options.correction,)
    finalists = _search(validation, corrections, say)
    ladder = _climb_off(validation, finalists, corrections)
    best = max(ladder.values(), key=lambda rung: rung.reciprocal_rank.value)
    tied = [entry for entry, rung in ladder.items() if rung.tied]
    winner = min(tied, key=lambda entry: (*entry.simplicity, ladder[entry].behind.value))
    shown = _shown(ladder, winner)
    candidate = winner.candidate
    facts: dict[str, Any] = {
        **candidate.settings(min(validation.whole.dims)),
        "chosen": ladder[winner].name,
        "why": _reason(ladder[winner], best),
    }
    fitted = Fitted(candidate.solve(validation.whole), ladder[winner].score, facts, (), candidate.family)
    fitted = fitted._replace(correction=winner.correction)
    if judge := _judge_of_networks(validation):
        start = max(
            (entry for entry in ladder if entry.candidate.family in _REGRESSIONS),
            key=lambda entry: ladder[entry].reciprocal_rank.value,
        )
        say(f"residual_mlp, from {start.candidate.describe(min(validation.whole.dims))}")
        rung, challenger = _challenge(validation, judge, winner, start.candidate, corrections, on_epoch, on_note)
        shown.append(rung)
        if rung.behind.high < 0:
            fitted = challenger._replace(facts={**challenger.facts, "chosen": rung.name, "why": _BETTER})
    shown.sort(key=lambda rung: rung.behind.value)
    return fitted._replace(facts={**fitted.facts, "ladder": [rung.to_dict() for rung in shown]})


def _judge_of_networks(validation: CrossValidation) -> HeldOutRetrieval | None:
    if not NETWORK_PAIRS[0] <= len(validation.pairs) <= NETWORK_PAIRS[1]:
        return None
    judge = validation.judge(0, most_queries=MOST_QUERIES)
    return judge if judge.asked >= _LEAST_JUDGES else None


def _challenge(
    validation: CrossValidation,
    judge: HeldOutRetrieval,
    winner: Entry,
    start: Candidate,
    corrections: tuple[float, ...],
    on_epoch: OnEpoch | None,
    on_note: OnLine | None,
) -> tuple[Rung, Fitted]:
    pairs, options = validation.pairs, replace(validation.options, transformer="residual_mlp")
    affine = start.solve(validation.without[0])
    assert isinstance(affine, LinearMap)
    affine = at_raw_length(affine, pairs, options.direction)
    fitted = fit_network(
        pairs, options, start=affine, distractors=validation.distractors, on_epoch=on_epoch, on_note=on_note
    )
    theirs = judge.rank(as_map(fitted.network), corrections)
    ours = judge.rank(as_map(winner.candidate.solve(validation.without[0])), (winner.correction,))[0]
    place = max(range(len(corrections)), key=lambda number: theirs[number].reciprocal_ranks.mean())
    ranks, correction = theirs[place], corrections[place]
    both = np.stack([ranks.reciprocal_ranks, ours.reciprocal_ranks - ranks.reciprocal_ranks], axis=1)
    draws, means = bootstrap_means(both, ranks.groups, seed=options.seed), both.mean(axis=0)
    rung = Rung(
        family="residual_mlp",
        correction=correction,
        name=f"residual_mlp (one fold){_corrected(correction)}",
        score=judge.summary([ranks]),
        reciprocal_rank=interval(float(means[0]), draws[:, 0]),
        behind=interval(float(means[1]), draws[:, 1]),
        tied=False,
    )
    return rung, fitted._replace(held_out=rung.score, family="residual_mlp", correction=correction)


def _search(validation: CrossValidation, corrections: tuple[float, ...], say: OnLine) -> list[Candidate]:
    found: dict[Candidate, float] = {}

    def score(candidate: Candidate) -> float:
        ranked = validation.rank(candidate, corrections, quick=True)
        found[candidate] = max(float(ranks.reciprocal_ranks.mean()) if len(ranks.groups) else 0.0 for ranks in ranked)
        return found[candidate]

    dims = min(validation.whole.dims)
    finalists = []
    for family in _FAMILIES:
        best = climb(family, score)
        finalists.append(best)
        say(f"{best.describe(dims)}: reciprocal rank {found[best]:.3f} on some held-out pairs")
    others = sorted(found.keys() - set(finalists), key=found.__getitem__, reverse=True)
    return finalists + others[:_RUNNERS_UP]


def _climb_off(
    validation: CrossValidation, finalists: list[Candidate], corrections: tuple[float, ...]
) -> dict[Entry, Rung]:
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
    return {
        entry: Rung(
            family=entry.candidate.family,
            correction=entry.correction,
            name=entry.candidate.describe(dims) + _corrected(entry.correction),
            score=validation.judges[0].summary([ranks]),
            reciprocal_rank=interval(float(means[place]), draws[:, place]),
            behind=interval(float(means[top] - means[place]), behind[:, place]),
            tied=bool(means[top] - means[place] <= behind[:, place].std()),
        )
        for place, (entry, ranks) in enumerate(ranked.items())
    }


def _shown(ladder: dict[Entry, Rung], winner: Entry) -> list[Rung]:
    # Of each family the best with and the best without a correction.
    best: dict[tuple[str, bool], Rung] = {}
    for rung in ladder.values():
        key = (rung.family, rung.correction > 0)
        if key not in best or rung.reciprocal_rank.value > best[key].reciprocal_rank.value:
            best[key] = rung
    return [*best.values(), *([ladder[winner]] if ladder[winner] not in best.values() else [])]


def _corrected(strength: float) -> str:
    return f" + hubness correction {strength:g}" if strength else ""


def _reason(chosen: Rung, best: Rung) -> str:
    if chosen is best:
        return "it retrieves held-out pairs best, and nothing simpler comes within a standard error of it"
    return (
        f"it is simpler than {best.name}, and within a standard error of it: {chosen.behind.value:.4f} "
        f"[{chosen.behind.low:.4f}, {chosen.behind.high:.4f}] behind in reciprocal rank"
    )
