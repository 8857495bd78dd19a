"""Training the networks: Adam on batches of pairs, stopped by retrieval of pairs held out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import Fitted, as_map, fit_ridge_on
from compat.training.epoch_run import stopping_folds
from compat.training.interpolation import plan_synthetic
from compat.training.losses import GradientNorms, imbalance
from compat.training.network_run import NetworkRun, at_raw_length
from compat.training.rows import FORM
from compat.training.selection import Distractors, HeldOutRetrieval, HeldOutScore
from compat.training.told import OnEpoch, OnLine
from compat.transformers.linear import LinearMap

__all__ = ["at_raw_length", "fit_network"]


def fit_network(
    pairs: Pairs,
    options: FitOptions,
    *,
    start: LinearMap | None = None,
    distractors: Distractors | None = None,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
    on_note: OnLine | None = None,
) -> Fitted:
    """Train mlp, msresnet or residual_mlp on all folds but one; keep the epoch that retrieves that fold best.

    A residual_mlp starts at an affine map, which is judged first: where no epoch retrieves better, that map is what
    comes back, as a network whose residual is zero.

    Vectors are streamed: in memory are a few numbers of 4 or 8 bytes for each pair, the vectors of a few batches, and
    what the judge keeps of the held-out fold, which is bounded.

    Args:
        pairs: Real pairs; `weights` of theirs say how much each counts in the loss.
        options: Loss weights, synthetic identities, schedule, steps, precision.
        start: For residual_mlp: an affine map fitted to the training folds alone, which predicts targets at their raw
            length. Ridge by default.
        distractors: A gallery beyond the pairs, for the held-out fold to be found in.
        checkpoint: A file to go on from and to write after each epoch; the result is that of an uninterrupted run.
        on_epoch: Called with each epoch's record: losses, gradients of their weighted terms, learning rate, held-out
            scores, pairs per second.
        on_note: Told in a line before something that takes long.

    Returns:
        The best network; its facts hold the records of all epochs and the precision trained in.

    Raises:
        ValueError: If the pairs cannot be divided, compactness is asked for and they have no labels, the loss becomes
            NaN, or the checkpoint is of another run.
    """
    folds = stopping_folds(pairs, options, options.transformer)
    held_out = np.flatnonzero(folds == 0)
    judge = HeldOutRetrieval(pairs, held_out, options.direction, seed=options.seed, distractors=distractors)
    real = pairs.select(np.flatnonzero(folds != 0))
    synthetic = plan_synthetic(real, options.interpolation, options.direction, seed=options.seed, say=on_note)
    training = NetworkRun(real, synthetic, judge, options, start)
    training.finish(
        checkpoint,
        lambda: {
            "options": asdict(options),
            "pairs": pairs.fingerprint(),
            "start": training.start_digest,
            "precision": training.precision,
            "batches": FORM,
        },
        on_epoch,
    )
    facts: dict[str, Any] = {
        "epochs": training.history,
        "best_epoch": training.best_epoch,
        "precision": training.precision,
    }
    if options.interpolation.pairing != "none":
        facts["synthetic"] = {"samples": len(synthetic), "rate": synthetic.rate}
    if training.start is not None:
        facts |= {"start": training.start.to_dict(), "returned_start": training.best_epoch < 0}
    linear = judge.score(as_map(fit_ridge_on(real, options.direction)))
    facts["linear_baseline"] = linear.to_dict()
    notes = (
        synthetic.note,
        _about_terms(pairs, training, options),
        _about_compactness(training, options),
        _about_lines(linear, training, options),
    )
    return Fitted(training.best_network, training.best, facts, tuple(note for note in notes if note))


def _about_terms(pairs: Pairs, training: NetworkRun, options: FitOptions) -> str:
    if all(space.normalized for space in pairs.spaces(options.direction)):
        return "both sides are normalised: the cosine and the squared distance are one loss, their weights void"
    norms = [[record["cosine_gradient"], record["mse_gradient"]] for record in training.history]
    return imbalance(GradientNorms(*np.median(norms, axis=0).tolist()), options.loss)


def _about_compactness(training: NetworkRun, options: FitOptions) -> str:
    if not options.loss.compactness_weight or training.best_epoch == len(training.history) - 1:
        return ""
    return (
        f"of {len(training.history)} epochs the one that retrieves single items best is kept "
        f"({training.best_epoch + 1}); a later one may serve a gallery of means better, which compactness is for"
    )


def _about_lines(linear: HeldOutScore, training: NetworkRun, options: FitOptions) -> str:
    if training.start is not None and training.best_epoch < 0:
        return (
            f"the learned residual added nothing on the held-out pairs in {len(training.history)} epochs (reciprocal "
            f"rank {training.start.mean_reciprocal_rank:.3f} without it); the affine map is what is saved"
        )
    if linear.mean_reciprocal_rank < training.best.mean_reciprocal_rank:
        return ""
    return (
        f"a plain linear map is at least as good on the held-out pairs (ridge: reciprocal rank "
        f"{linear.mean_reciprocal_rank:.3f}, {options.transformer}: {training.best.mean_reciprocal_rank:.3f}); "
        "use --transformer ridge"
    )
