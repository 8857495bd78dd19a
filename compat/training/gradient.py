"""Training the networks: Adam on batches of pairs, stopped by retrieval of pairs held out."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backbones.checkpoint import load_training_state, save_training_state, tensor_digest
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import Fitted, as_map, fit_ridge_on
from compat.training.interpolation import NO_SAMPLES, SyntheticSamples, plan_synthetic
from compat.training.losses import GradientNorms, compatibility_loss, gradient_norms, imbalance
from compat.training.rows import TrainingRows
from compat.training.selection import Distractors, HeldOutRetrieval, HeldOutScore, identity_folds
from compat.transformers import build_network
from compat.transformers.linear import LinearMap
from compat.transformers.residual_mlp import ResidualMLP

WARMUP_SHARE = 0.05
PATIENCE = 8  # epochs without a better held-out score before training stops

AFFINE_RATE_SCALE = 0.1  # the affine part of a residual_mlp is fitted already, the rest starts from nothing

OnEpoch = Callable[[dict[str, Any]], None]


def fit_network(
    pairs: Pairs,
    options: FitOptions,
    *,
    start: LinearMap | None = None,
    distractors: Distractors | None = None,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Fitted:
    """Train mlp, msresnet or residual_mlp on all folds but one; keep the epoch that retrieves that fold best.

    A residual_mlp starts at an affine map, which is judged first: where no epoch retrieves better, that map is what
    comes back, as a network whose residual is zero.

    Args:
        pairs: Real pairs; `weights` of theirs say how much each counts in the loss.
        options: Loss weights, synthetic identities, schedule, steps.
        start: For residual_mlp: an affine map fitted to the training folds alone, which predicts targets at their raw
            length. Ridge by default.
        distractors: A gallery beyond the pairs, for the held-out fold to be found in.
        checkpoint: A file to go on from and to write after each epoch; the result is that of an uninterrupted run.
        on_epoch: Called with each epoch's record: losses, gradients of their weighted terms, learning rate, held-out
            scores, pairs per second.

    Raises:
        ValueError: If the pairs cannot be divided, the loss becomes NaN, or the checkpoint is of another run.
    """
    folds = identity_folds(pairs, options.folds, seed=options.seed)
    if folds.max() < 1:
        raise ValueError(
            f"{options.transformer} stops early by pairs held out, but all {len(pairs)} pairs are of one identity; "
            "give more identities, or use --transformer ridge"
        )
    held_out = np.flatnonzero(folds == 0)
    judge = HeldOutRetrieval(pairs, held_out, options.direction, seed=options.seed, distractors=distractors)
    real = pairs.select(np.flatnonzero(folds != 0))
    synthetic = plan_synthetic(real, options.interpolation, options.direction, seed=options.seed)
    training = _Training(real, synthetic, judge, options, start)
    run: dict[str, Any] = {}
    if checkpoint is not None:
        run = {"options": asdict(options), "pairs": pairs.fingerprint(), "start": training.start_digest}
    if checkpoint is not None and checkpoint.exists():
        training.resume(checkpoint, run)
    while not training.finished:
        record = training.epoch()
        if on_epoch:
            on_epoch(record)
        if checkpoint is not None:
            training.save(checkpoint, run)
    facts: dict[str, Any] = {"epochs": training.history, "best_epoch": training.best_epoch}
    if options.interpolation.pairing != "none":
        facts["synthetic"] = {"samples": len(synthetic), "rate": synthetic.rate}
    if training.start is not None:
        facts |= {"start": training.start.to_dict(), "returned_start": training.best_epoch < 0}
    linear = judge.score(as_map(fit_ridge_on(real, options.direction)))
    facts["linear_baseline"] = linear.to_dict()
    notes = (synthetic.note, _about_terms(pairs, training, options), _about_lines(linear, training, options))
    return Fitted(training.best_network, training.best, facts, tuple(note for note in notes if note))


def _about_terms(pairs: Pairs, training: _Training, options: FitOptions) -> str:
    if all(space.normalized for space in pairs.spaces(options.direction)):
        return "both sides are normalised: the cosine and the squared distance are one loss, their weights void"
    norms = [[record["cosine_gradient"], record["mse_gradient"]] for record in training.history]
    return imbalance(GradientNorms(*np.median(norms, axis=0).tolist()), options.loss)


def _about_lines(linear: HeldOutScore, training: _Training, options: FitOptions) -> str:
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


def at_raw_length(linear: LinearMap, pairs: Pairs, direction: Direction) -> LinearMap:
    """A closed form, which predicts unit vectors, as a start for a network, whose loss compares with raw ones."""
    lengths = sum(float(np.linalg.norm(target, axis=1).sum()) for _, target in pairs.blocks(direction))
    return linear.scaled(lengths / len(pairs))


class _Training:
    """One run: network, optimiser and position, which is all that a checkpoint holds."""

    def __init__(
        self,
        real: Pairs,
        synthetic: SyntheticSamples,
        judge: HeldOutRetrieval,
        options: FitOptions,
        start: LinearMap | None,
    ) -> None:
        self.options, self.judge = options, judge
        self.rows = TrainingRows(real, synthetic, options.direction)
        self.rows_real = TrainingRows(real, NO_SAMPLES, options.direction)
        self.real = real
        self.weights = _row_weights(real, synthetic)
        self.network = self._new_network(start)
        self.best_network: nn.Module = copy.deepcopy(self.network)
        self.best, self.best_epoch = HeldOutScore(judge.kind, 0, 0, 0.0, -1.0), -1
        self.start: HeldOutScore | None = None
        self.start_digest = ""
        if isinstance(self.network, ResidualMLP):
            self.best = self.start = judge.score(as_map(self.best_network))
            self.start_digest = tensor_digest(self.network.affine.state_dict())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network.to(self.device)
        self.optimizer = torch.optim.Adam(self._parameter_groups(), lr=options.learning_rate, fused=True)
        self.history: list[dict[str, Any]] = []
        self.steps = sum(self._batch_count(epoch) for epoch in range(options.epochs))
        self.step = 0

    def _new_network(self, start: LinearMap | None) -> nn.Module:
        options = self.options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            if options.transformer == "residual_mlp":
                return ResidualMLP.starting_at(start or self._ridge_start(), options.width)
            source, target = self.real.spaces(options.direction)
            return build_network(options.transformer, source.dim, target.dim, options.width)

    def _ridge_start(self) -> LinearMap:
        direction = self.options.direction
        return at_raw_length(fit_ridge_on(self.real, direction), self.real, direction)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if not isinstance(self.network, ResidualMLP):
            return [{"params": list(self.network.parameters()), "rate_scale": 1.0}]
        affine = list(self.network.affine.parameters())
        rest = [*self.network.hidden.parameters(), *self.network.output.parameters()]
        return [{"params": affine, "rate_scale": AFFINE_RATE_SCALE}, {"params": rest, "rate_scale": 1.0}]

    @property
    def finished(self) -> bool:
        done = len(self.history)
        if done <= self._turn:  # the half of `pretrain` with synthetic samples runs to its end
            return done >= self.options.epochs
        waited = done - 1 - max(self.best_epoch, self._turn - 1)
        return done >= self.options.epochs or waited >= PATIENCE

    @property
    def _turn(self) -> int:
        return self.options.epochs // 2 if self.options.schedule == "pretrain" else 0

    def _rows_of(self, epoch: int) -> TrainingRows:
        return self.rows_real if self.options.schedule == "pretrain" and epoch >= self._turn else self.rows

    def epoch(self) -> dict[str, Any]:
        """Train one epoch, judge it, and return its record."""
        number = len(self.history)
        started = time.perf_counter()
        sums, mass, seen, rate = np.zeros(3), 0.0, 0, 0.0
        norms: GradientNorms | None = None
        rows = self._rows_of(number)
        self.network.train()
        for batch in self._batches(rows, number):
            rate = self._learning_rate()
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["rate_scale"]
            source, target = (torch.from_numpy(side).to(self.device) for side in rows.take(batch))
            weights = None if self.weights is None else torch.from_numpy(self.weights[batch]).to(self.device)
            predicted = self.network(source)
            if norms is None:  # one batch of an epoch shows the balance, at no cost worth naming
                norms = gradient_norms(predicted, target, self.options.loss, self.network.parameters(), weights)
            terms = compatibility_loss(predicted, target, self.options.loss, weights)
            self.optimizer.zero_grad()
            terms.total.backward()
            self.optimizer.step()
            self.step += 1
            share = len(batch) if weights is None else float(weights.sum())
            sums += np.array([float(term.detach()) for term in terms]) * share
            mass += share
            seen += len(batch)
        if not np.isfinite(sums).all():
            raise ValueError(
                f"the loss became {sums[0] / mass} in epoch {number + 1}; lower learning_rate "
                f"({self.options.learning_rate}) or loss.mse_weight ({self.options.loss.mse_weight})"
            )
        seconds = time.perf_counter() - started
        frozen = copy.deepcopy(self.network).cpu()
        score = self.judge.score(as_map(frozen))
        if score.mean_reciprocal_rank > self.best.mean_reciprocal_rank:
            self.best, self.best_epoch, self.best_network = score, number, frozen
        loss, cosine, mse = (sums / mass).tolist()
        record = {
            "epoch": number + 1,
            "loss": loss,
            "cosine_loss": cosine,
            "squared_distance": mse,
            "cosine_gradient": norms.cosine if norms else 0.0,
            "mse_gradient": norms.mse if norms else 0.0,
            "learning_rate": rate,
            "held_out_recall_at_1": score.recall_at_1,
            "held_out_reciprocal_rank": score.mean_reciprocal_rank,
            "pairs_per_second": seen / seconds,
        }
        self.history.append(record)
        return record

    def _batches(self, rows: TrainingRows, epoch: int) -> Iterator[np.ndarray]:
        # Real rows stream in the store's own order, mixed within a buffer; each batch gets its share of synthetic ones.
        synthetic = len(rows) - len(self.real)
        seed = self.options.seed * 100_003 + epoch
        mixed = len(self.real) + np.random.default_rng(seed).permutation(synthetic)
        extra = np.array_split(mixed, self._batch_count(epoch))
        for number, batch in enumerate(self.real.shuffled(self._real_share(epoch), seed=seed)):
            yield np.concatenate([batch, extra[number]])

    def _real_share(self, epoch: int) -> int:
        return max(1, self.options.batch_size * len(self.real) // len(self._rows_of(epoch)))

    def _batch_count(self, epoch: int) -> int:
        return -(-len(self.real) // self._real_share(epoch))

    def _learning_rate(self) -> float:
        warmup = max(1, round(WARMUP_SHARE * self.steps))
        if self.step < warmup:
            return self.options.learning_rate * (self.step + 1) / warmup
        progress = (self.step - warmup) / max(1, self.steps - warmup)
        return self.options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def save(self, path: Path, run: dict[str, Any]) -> None:
        """Write everything needed to go on."""
        save_training_state(
            path,
            modules={"network": self.network, "best": self.best_network},
            optimizer=self.optimizer,
            generators={},
            progress={
                "run": run,
                "step": self.step,
                "history": self.history,
                "best": self.best.to_dict(),
                "best_epoch": self.best_epoch,
            },
        )

    def resume(self, path: Path, run: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same run."""
        modules = {"network": self.network, "best": self.best_network}
        progress = load_training_state(path, modules=modules, optimizer=self.optimizer, generators={})
        if progress["run"] != run:
            raise ValueError(f"{path} is of a run with other options or pairs; remove it or name another --out")
        self.step, self.history = progress["step"], progress["history"]
        self.best, self.best_epoch = HeldOutScore(**progress["best"]), progress["best_epoch"]


def _row_weights(real: Pairs, synthetic: SyntheticSamples) -> np.ndarray | None:
    """How much each of `TrainingRows` counts, float32; a synthetic sample as much as its two parents on average."""
    weights = real.weights
    if weights is None:
        return None
    mixed = (weights[synthetic.first] + weights[synthetic.second]) / 2
    return np.concatenate([weights, mixed]).astype(np.float32)
