"""Training two maps together, old to unified and new to unified, stopped by retrieval of pairs held out."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compat.neighbors import unit_rows
from compat.options import Direction, FitOptions, InterpolationOptions, LossWeights, UnifiedOptions
from compat.pairs import Pairs
from compat.training.candidates import solve
from compat.training.closed_form import as_map, fold_moments, prepare, require_finite
from compat.training.epoch_run import stopping_folds
from compat.training.familiarity import fit_familiarity
from compat.training.selection import Distractors
from compat.training.solutions import Solutions
from compat.training.told import OnEpoch, flattery
from compat.training.unified_judge import MappedVectors, UnifiedJudge
from compat.training.unified_run import UnifiedRun
from compat.training.unified_start import SHRINKAGES
from compat.transformers.artefact import Transformer
from compat.transformers.unified import UnifiedMap, unified_space

STRENGTHS = SHRINKAGES
"""As many penalties for the maps of one direction as for the start of both."""
WHITENINGS = (0.1, 1.0)
SINGLES: dict[str, list[dict[str, Any]]] = {
    "ridge": [{"strength": strength} for strength in STRENGTHS],
    "whitened": [{"strength": strength, "whitening": white} for strength in STRENGTHS for white in WHITENINGS],
}
"""Maps of one direction that the pair of maps is compared with, each the best of these settings."""
SINGLE_CORRECTIONS = (0.0, 0.5)
"""Hubness corrections that each is tried with, as `auto` would."""
DOUBTFUL_LEAD = 0.02
"""A smaller lead in reciprocal rank may come of choosing the epoch on the pairs that it is measured on."""


class UnifiedTransformers(NamedTuple):
    """Two maps into one space: `old` maps the gallery (old-to-new), `new` maps queries and new items (new-to-old)."""

    old: Transformer
    new: Transformer


def fit_unified(
    pairs: Pairs,
    options: FitOptions | None = None,
    unified: UnifiedOptions | None = None,
    *,
    gallery: Distractors | None = None,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> UnifiedTransformers:
    """Train a unified transformer on all folds but one; keep the epoch that retrieves that fold best.

    Both maps start at the canonical axes of the training folds (`compat.training.unified_start`), which are judged
    first: where no epoch retrieves better, they are what comes back. A held-out query goes through the new map, the
    gallery it must find itself in through the old one.

    Args:
        pairs: The same items embedded by both models. Where labels repeat, identities are learned; without, items.
        options: Steps, width, inputs, folds and seed; `direction` is that of each half.
        unified: The space's dimension and the weights of the losses.
        gallery: Old vectors beyond the pairs, among which held-out pairs must be found too.
        checkpoint: A file to go on from and to write after each epoch; the result is that of an uninterrupted run.
        on_epoch: Called with each epoch's record: losses, learning rate, held-out scores, pairs per second.

    Returns:
        The two halves. `training["held_out"]` of both is their retrieval together, in the best epoch on those pairs,
        and so flattered a little; `training["single_direction"]` that of single maps, in their best settings on them;
        `training["notes"]` what the user should know, for example that a map of a single direction did as well.

    Raises:
        ValueError: If an option does not apply, the pairs cannot be divided or hold NaN, the loss becomes NaN, or the
            checkpoint is of another run.

    Source: Wang et al., "Unified representation learning for cross model compatibility", BMVC 2020.
    """
    options, unified = options or FitOptions(transformer="unified"), unified or UnifiedOptions()
    require_unified_options(options)
    if not len(pairs):
        raise ValueError("a unified transformer cannot be fitted to 0 pairs; give some of two identities at least")
    require_finite(pairs)
    folds = stopping_folds(pairs, options, "unified")
    real = pairs.select(np.flatnonzero(folds != 0))
    judge = UnifiedJudge(pairs, np.flatnonzero(folds == 0), seed=options.seed, gallery=gallery)
    training = UnifiedRun(real, judge, options, unified)
    fingerprint = pairs.fingerprint()
    chosen = {"options": asdict(options), "unified": asdict(unified)}
    training.finish(checkpoint, lambda: {**chosen, "pairs": fingerprint, "start": training.start_digest}, on_epoch)
    singles = _single_directions(real, judge, options)
    record = {
        **chosen,
        "pairs": len(pairs),
        "pairs_fingerprint": fingerprint,
        "held_out": training.best.to_dict(),
        "identities": training.identities,
        "epochs": training.history,
        "best_epoch": training.best_epoch,
        "start": training.start.to_dict() | {"shrinkage": training.shrinkage},
        "returned_start": training.best_epoch < 0,
        "single_direction": {single.name: score for single, score in singles.items()},
        "notes": _notes(pairs, training, singles),
    }
    return _halves(pairs, *training.best_maps, record, seed=options.seed)


def require_unified_options(options: FitOptions) -> None:
    """Make sure that no option was given that a unified transformer does not have.

    Raises:
        ValueError: If one was.
    """
    found = {
        "correction": bool(options.correction),
        "direction": options.direction != FitOptions.direction,
        "interpolation.pairing": options.interpolation != InterpolationOptions(),
        "loss": options.loss != LossWeights(),
        "schedule": options.schedule != "full",
        "strength": options.strength is not None,
        "precision": options.precision == "bf16",
    }
    if given := [name for name, is_given in found.items() if is_given]:
        raise ValueError(
            f"unified has no {' nor '.join(given)}; leave that out (it maps both ways, its losses are weighed by "
            "--unified.*, and it is trained in fp32 on real pairs)"
        )


def _halves(
    pairs: Pairs, old_map: UnifiedMap, new_map: UnifiedMap, training: dict[str, Any], *, seed: int
) -> UnifiedTransformers:
    old, new = pairs.old.space, pairs.new.space
    space = unified_space(old, new, old_map, new_map)
    # Who searches through the new map brings raw new vectors, who searches a mapped gallery brings mapped ones.
    mapped = replace(pairs, new=MappedVectors(pairs.new, lambda rows: unit_rows(as_map(new_map)(rows)), space))
    directions: tuple[Direction, Direction] = ("old-to-new", "new-to-old")
    known = [fit_familiarity(side, way, seed=seed) for side, way in zip((mapped, pairs), directions, strict=True)]
    return UnifiedTransformers(
        Transformer("unified", directions[0], old, space, old_map, {**training, "half": "old"}, familiarity=known[0]),
        Transformer("unified", directions[1], new, space, new_map, {**training, "half": "new"}, familiarity=known[1]),
    )


class _Single(NamedTuple):
    """A map of one direction that the user could have instead."""

    family: str
    direction: Direction
    correction: float

    @property
    def name(self) -> str:
        corrected = f" + hubness correction {self.correction:g}" if self.correction else ""
        return f"{self.family} {self.direction}{corrected}"

    @property
    def wanted(self) -> str:
        corrected = f" --correction {self.correction:g}" if self.correction else ""
        return f"--transformer {self.family} --direction {self.direction}{corrected}"


def _single_directions(real: Pairs, judge: UnifiedJudge, options: FitOptions) -> dict[_Single, dict[str, Any]]:
    """Scores of linear maps of one direction, fitted to the same folds, in the settings that the judge likes best."""
    found: dict[_Single, dict[str, Any]] = {}
    ways: tuple[Direction, Direction] = ("new-to-old", "old-to-new")
    for direction in ways:
        preparation = prepare(real, replace(options, direction=direction))
        moments = fold_moments(real, np.zeros(len(real), np.int64), direction, preparation, target=True)[0]
        solutions = Solutions(moments, preparation)
        for family, choices in SINGLES.items():
            for settings in choices:
                apply = as_map(solve(family, solutions, **settings))
                scores = judge.single(direction, apply, SINGLE_CORRECTIONS)
                for correction, score in zip(SINGLE_CORRECTIONS, scores, strict=True):
                    single = _Single(family, direction, correction)
                    record = score.to_dict() | {"settings": settings}
                    best = found.setdefault(single, record)
                    if score.mean_reciprocal_rank > best["mean_reciprocal_rank"]:
                        found[single] = record
    return found


def _notes(pairs: Pairs, training: UnifiedRun, singles: dict[_Single, dict[str, Any]]) -> list[str]:
    notes = []
    best, score = max(singles.items(), key=lambda item: item[1]["mean_reciprocal_rank"])
    rank = score["mean_reciprocal_rank"]
    if rank >= training.best.mean_reciprocal_rank:
        notes.append(
            f"a single-direction map is at least as good on the held-out pairs ({best.name}: reciprocal rank "
            f"{rank:.3f}, unified: {training.best.mean_reciprocal_rank:.3f}); unless both models are to share one "
            f"gallery, use {best.wanted}"
        )
    elif training.best.mean_reciprocal_rank - rank < DOUBTFUL_LEAD:
        notes.append(
            f"unified leads the best single-direction map by little ({training.best.mean_reciprocal_rank:.3f} against "
            f"{rank:.3f} of {best.name}): {flattery(len(training.history))}"
        )
    if training.best_epoch < 0:
        notes.append(
            f"training added nothing on the held-out pairs in {len(training.history)} epochs (reciprocal rank "
            f"{training.start.mean_reciprocal_rank:.3f} without it); the linear maps it started at are what is saved"
        )
    if not training.identities:
        why = "the pairs have no labels" if pairs.labels is None else "hardly any label repeats"
        notes.append(f"{why}: the two maps learned to tell items apart, not identities")
    if len(pairs) < max(pairs.old.space.dim, pairs.new.space.dim):
        notes.append(
            f"{len(pairs)} pairs are few for {max(pairs.old.space.dim, pairs.new.space.dim)} dimensions; more pairs "
            "are the surest improvement"
        )
    return notes
