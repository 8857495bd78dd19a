"""When a network's training ends, which epochs see synthetic samples, and how long its steps are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from compat.options import FitOptions

WARMUP_SHARE = 0.05
AFFINE_RATE_SCALE = 0.1
"""Of the steps of an affine part that is fitted already, where the rest of a network starts from nothing."""
PATIENCE = 8
"""Epochs without a better held-out score before training stops."""


@dataclass(frozen=True)
class TrainingSchedule:
    """The plan of a run, from its options alone.

    Attributes:
        options: `schedule`, `epochs` and `learning_rate` are read.
        batch_count: Number of batches of an epoch, which are fewer where there are no synthetic samples.
    """

    options: FitOptions
    batch_count: Callable[[int], int]

    @property
    def turn(self) -> int:
        """The first epoch that sees real samples alone, of `pretrain`; 0 where there is none."""
        return self.options.epochs // 2 if self.options.schedule == "pretrain" else 0

    def sees_synthetic(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, sees synthetic samples too."""
        return self.options.schedule == "full" or epoch < self.turn

    def finished(self, done: int, best_epoch: int) -> bool:
        """Whether a run ends after so many epochs, of which this one was best (-1 for none)."""
        if done <= self.turn:  # the half of `pretrain` with synthetic samples runs to its end
            return done >= self.options.epochs
        waited = done - 1 - max(best_epoch, self.turn - 1)
        return done >= self.options.epochs or waited >= PATIENCE

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return sum(self.batch_count(epoch) for epoch in range(self.options.epochs))

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of a step, counted from 0: up a line, then down a cosine."""
        warmup = max(1, round(WARMUP_SHARE * steps))
        if step < warmup:
            return self.options.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return self.options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
