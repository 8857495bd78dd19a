"""The best configuration beside ridge, asked for pairs that neither of them was chosen or stopped by.

Everything that a study chooses it chooses by some folds: the trials by one, the best of them by others, and the epoch
that is kept by the fold of each training. What is left is divided; each part is held out in turn, the network is
trained and ridge's strength chosen on the rest, by a fold within it, and both are asked for the part. So is the whole
of the choice left out of the figure (Cawley and Talbot, "On over-fitting in model selection and subsequent selection
bias in performance evaluation", JMLR 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from compat.metrics.intervals import Bootstrap
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import as_map
from compat.training.epoch_run import Diverged
from compat.training.fit import fit_transformer
from compat.training.selection import HeldOutRetrieval, identity_folds
from compat.tuning.baseline import TooFew, fit_ridges
from compat.tuning.pace import say
from compat.tuning.trials import Work, reached

Verdict = Literal["better", "not told apart", "worse", "not compared"]
NOTHING_LEFT = "too few pairs to hold some out that nothing was chosen by"


@dataclass(frozen=True)
class Contest:
    """A network and ridge on the same queries.

    Attributes:
        queries: How many.
        network: Reciprocal rank of the network.
        ridge: That of ridge.
        difference: The network less ridge, `value`, `low` and `high` of its 95% interval, paired by query, identities
            drawn together; None where there was no query.
        parts: Of each part that was held out: seed, queries, network, ridge, ridge's strength, and whether the network
            came back as the affine map that it started at.
    """

    queries: int
    network: float
    ridge: float
    difference: dict[str, float] | None
    parts: list[dict[str, Any]]

    @property
    def verdict(self) -> Verdict:
        """What the network is beside ridge."""
        if self.difference is None:
            return "not compared"
        if self.difference["low"] > 0:
            return "better"
        return "worse" if self.difference["high"] < 0 else "not told apart"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the verdict as plain values."""
        return asdict(self) | {"verdict": self.verdict}

    def sentence(self, best: str) -> str:
        """What was found and what to do, in words, `best` being the network's name."""
        if self.difference is None:
            return f"{best}, was not compared with ridge: {NOTHING_LEFT}"
        difference = "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**self.difference)
        found = (
            f"on {self.queries} queries that nothing was chosen by, {best}, reaches a reciprocal rank of "
            f"{self.network:.4f}, a plain linear map (ridge) {self.ridge:.4f}: {difference}"
        )
        kept = sum(part["kept_start"] for part in self.parts)
        if kept:
            found += f" ({kept} of {len(self.parts)} times it learned nothing and stayed the affine map it starts at)"
        if self.verdict == "better":
            return found
        how = "the two are not told apart, and ridge is simpler" if self.verdict == "not told apart" else "ridge wins"
        return f"{found}; {how}: use --transformer ridge"


def parts_of(pairs: Pairs, options: FitOptions, chosen_by: Sequence[int], reports: int) -> list[np.ndarray]:
    """Numbers of pairs, int64 [m] for each part, that are in no fold that a choice was made by.

    Args:
        pairs: All pairs.
        options: Their folds.
        chosen_by: The seeds by whose first folds something was chosen.
        reports: Most parts; none is larger than a fold, but for rounding.
    """
    left = np.ones(len(pairs), bool)
    for seed in chosen_by:
        left &= identity_folds(pairs, options.folds, seed=seed) != 0
    rows = np.flatnonzero(left)
    if not len(rows):
        return []
    count = max(reports, math.ceil(options.folds * len(rows) / len(pairs)))
    parts = identity_folds(pairs.select(rows), count, seed=options.seed)
    return [rows[parts == part] for part in range(min(reports, parts.max() + 1))]


def against_ridge(
    job: Work, best: FitOptions, *, judgings: int, reports: int, on_part: Callable[[str], None]
) -> Contest:
    """The best configuration and ridge on pairs that neither was chosen by.

    Args:
        job: What the study is about.
        best: The configuration.
        judgings: By how many seeds after the study's own it was named.
        reports: How many parts are held out.
        on_part: Called with a line for each.
    """
    seed = job.fixed.seed
    parts = parts_of(job.pairs, job.fixed, range(seed, seed + judgings + 1), reports)
    told: list[dict[str, Any]] = []
    ranks, groups = [np.empty((0, 2))], [np.empty(0, np.int64)]
    for number, held_out in enumerate(parts, start=seed + judgings + 1):
        judge = HeldOutRetrieval(job.pairs, held_out, best.direction, seed=number, distractors=job.gallery)
        rest = np.ones(len(job.pairs), bool)
        rest[held_out] = False
        seen, options = job.pairs.select(np.flatnonzero(rest)), replace(best, seed=number)
        try:
            ridges = fit_ridges(seen, options, job.gallery)
        except TooFew:
            continue
        if not judge.asked:
            continue
        ridge = judge.rank(ridges.map_of(ridges.best))[0]
        try:
            fitted = fit_transformer(seen, options, gallery=job.gallery, on_note=say)
            network = judge.rank(as_map(fitted.network))[0].reciprocal_ranks
            kept_start = reached(fitted.training).start is not None
        except Diverged:
            network, kept_start = np.zeros_like(ridge.reciprocal_ranks), False
        ranks.append(np.stack([network, ridge.reciprocal_ranks], axis=1))
        groups.append(ridge.groups)
        part = {
            "seed": number,
            "queries": len(network),
            "network": float(network.mean()),
            "ridge": float(ridge.reciprocal_ranks.mean()),
            "strength": ridges.best,
            "kept_start": kept_start,
        }
        told.append(part)
        on_part(
            f"held out {len(told)}  {part['network']:.4f} on {part['queries']} queries that nothing was chosen by, "
            f"ridge {part['ridge']:.4f}"
        )
    values, clusters = np.concatenate(ranks), np.concatenate(groups)
    if not len(values):
        return Contest(0, 0.0, 0.0, None, told)
    bootstrap = Bootstrap(values, clusters, seed=seed)
    network, ridge = bootstrap.means.tolist()
    return Contest(len(values), network, ridge, bootstrap.difference(0, 1).to_dict(), told)
