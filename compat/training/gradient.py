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

from backbones.checkpoint import load_training_state, save_training_state
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import Fitted, as_map, fit_ridge_on
from compat.training.interpolation import NO_SAMPLES, TrainingRows, plan_synthetic
from compat.training.losses import compatibility_loss
from compat.training.selection import HeldOutRetrieval, HeldOutScore, identity_folds
from compat.transformers import TRANSFORMERS

WARMUP_SHARE = 0.05
PATIENCE = 8  # epochs without a better held-out score before training stops

OnEpoch = Callable[[dict[str, Any]], None]


def fit_network(
    pairs: Pairs, options: FitOptions, *, checkpoint: Path | None = None, on_epoch: OnEpoch | None = None
) -> Fitted:
    """Train mlp or msresnet on all folds but one; keep the epoch that retrieves that fold best.

    Args:
        pairs: Real pairs.
        options: Loss weights, synthetic identities, schedule, steps.
        checkpoint: A file to go on from and to write after each epoch; the result is that of an uninterrupted run.
        on_epoch: Called with each epoch's record: losses, learning rate, held-out scores, pairs per second.

    Raises:
        ValueError: If the pairs cannot be divided, the loss becomes NaN, or the checkpoint is of another run.
    """
    folds = identity_folds(pairs, options.folds, seed=options.seed)
    if folds.max() < 1:
        raise ValueError(
            f"{options.transformer} stops early by pairs held out, but all {len(pairs)} pairs are of one identity; "
            "give more identities, or use --transformer ridge"
        )
    judge = HeldOutRetrieval(pairs, np.flatnonzero(folds == 0), options.direction, seed=options.seed)
    real = pairs.select(np.flatnonzero(folds != 0))
    synthetic = plan_synthetic(real, options.interpolation, options.direction, seed=options.seed)
    training = _Training(real, synthetic, judge, options)
    run = {"options": asdict(options), "pairs": pairs.fingerprint()} if checkpoint is not None else {}
    if checkpoint is not None and checkpoint.exists():
        training.resume(checkpoint, run)
    while not training.finished:
        record = training.epoch()
        if on_epoch:
            on_epoch(record)
        if checkpoint is not None:
            training.save(checkpoint, run)
    facts: dict[str, Any] = {"epochs": training.history, "best_epoch": training.best_epoch}
    notes = [note for note in (synthetic.note,) if note]
    if options.interpolation.pairing != "none":
        facts["synthetic"] = {"samples": len(synthetic), "rate": synthetic.rate}
    if all(space.normalized for space in pairs.spaces(options.direction)):
        notes.append("both sides are normalised: the cosine and the squared distance are one loss, their weights void")
    linear = judge.score(as_map(fit_ridge_on(real, options.direction)))
    facts["linear_baseline"] = linear.to_dict()
    if linear.mean_reciprocal_rank >= training.best.mean_reciprocal_rank:
        notes.append(
            f"a plain linear map is at least as good on the held-out pairs (ridge: reciprocal rank "
            f"{linear.mean_reciprocal_rank:.3f}, {options.transformer}: {training.best.mean_reciprocal_rank:.3f}); "
            "use --transformer ridge"
        )
    return Fitted(training.best_network, training.best, facts, tuple(notes))


class _Training:
    """One run: network, optimiser and position, which is all that a checkpoint holds."""

    def __init__(self, real: Pairs, synthetic: Any, judge: HeldOutRetrieval, options: FitOptions) -> None:
        self.options, self.judge = options, judge
        self.rows = TrainingRows(real, synthetic, options.direction)
        self.rows_real = TrainingRows(real, NO_SAMPLES, options.direction)
        self.real = real
        source, target = real.spaces(options.direction)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.network = TRANSFORMERS[options.transformer](source.dim, target.dim)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network.to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.learning_rate, fused=True)
        self.best_network: nn.Module = copy.deepcopy(self.network).cpu()
        self.best = HeldOutScore(judge.kind, 0, 0, 0.0, -1.0)
        self.best_epoch = -1
        self.history: list[dict[str, Any]] = []
        self.steps = sum(self._batch_count(epoch) for epoch in range(options.epochs))
        self.step = 0

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
        sums, seen, rate = np.zeros(3), 0, 0.0
        rows = self._rows_of(number)
        self.network.train()
        for batch in self._batches(rows, number):
            rate = self._learning_rate()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            source, target = (torch.from_numpy(side).to(self.device) for side in rows.take(batch))
            terms = compatibility_loss(self.network(source), target, self.options.loss)
            self.optimizer.zero_grad()
            terms.total.backward()
            self.optimizer.step()
            self.step += 1
            sums += np.array([float(term.detach()) for term in terms]) * len(batch)
            seen += len(batch)
        if not np.isfinite(sums).all():
            raise ValueError(
                f"the loss became {sums[0] / seen} in epoch {number + 1}; lower learning_rate "
                f"({self.options.learning_rate}) or loss.mse_weight ({self.options.loss.mse_weight})"
            )
        seconds = time.perf_counter() - started
        frozen = copy.deepcopy(self.network).cpu()
        score = self.judge.score(as_map(frozen))
        if score.mean_reciprocal_rank > self.best.mean_reciprocal_rank:
            self.best, self.best_epoch, self.best_network = score, number, frozen
        loss, cosine, mse = (sums / seen).tolist()
        record = {
            "epoch": number + 1,
            "loss": loss,
            "cosine_loss": cosine,
            "squared_distance": mse,
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
