"""What trainings in epochs share, whatever they train: when they end, the steps' length, and the checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backbones.checkpoint import load_training_state, save_training_state
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.schedule import TrainingSchedule
from compat.training.selection import HeldOutScore, identity_folds
from compat.training.told import OnEpoch


class Diverged(ValueError):
    """The loss of a network is no longer a finite number."""


class EpochRun(ABC):
    """A training that goes on, epoch by epoch, until no later one is better.

    Args:
        options: Epochs, learning rate and schedule.
        optimizer: Its groups of parameters have a `rate_scale` each.
        batch_count: Number of batches of an epoch, counted from 0.
        best: The score of what is there before the first epoch.

    Attributes:
        best: The score of the best epoch.
        best_epoch: Counted from 0; -1 where none was better than the start.
        history: The records of the epochs.
    """

    def __init__(
        self,
        options: FitOptions,
        optimizer: torch.optim.Optimizer,
        batch_count: Callable[[int], int],
        best: HeldOutScore,
    ) -> None:
        self.options, self.optimizer = options, optimizer
        self.best, self.best_epoch = best, -1
        self.history: list[dict[str, Any]] = []
        self.schedule = TrainingSchedule(options, batch_count)
        self._steps, self._step = self.schedule.steps, 0

    @abstractmethod
    def epoch(self) -> dict[str, Any]:
        """Train one epoch, judge it, and return its record.

        Raises:
            Diverged: If the loss is no longer finite.
        """

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """All modules that a checkpoint holds, the best ones among them, by name."""

    @property
    def finished(self) -> bool:
        """Whether no epoch is left, or the last ones were no better."""
        return self.schedule.finished(len(self.history), self.best_epoch)

    def finish(
        self, checkpoint: Path | None, made_of: Callable[[], Mapping[str, Any]], on_epoch: OnEpoch | None
    ) -> None:
        """Train to the end.

        Args:
            checkpoint: A file to go on from and to write after each epoch, or None.
            made_of: Gives what a run must have been made of to be gone on with, as JSON values; not asked without a
                checkpoint.
            on_epoch: Called with each epoch's record.

        Raises:
            Diverged: If the loss is no longer finite.
            ValueError: If the checkpoint is of another run, or damaged.
        """
        run = {} if checkpoint is None else dict(made_of())
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint, run)
        while not self.finished:
            record = self.epoch()
            if on_epoch:
                on_epoch(record)
            if checkpoint is not None:
                self._save(checkpoint, run)

    def _set_rate(self) -> float:
        """Give the optimiser the rate of the step to come, and return it."""
        rate = self.schedule.learning_rate(self._step, self._steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        return rate

    def _descend(self, output: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
        """Take a step down from a loss, or from an output whose gradient is given."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # the optimiser's zero_grad does so too, within a record for the profiler
        output.backward(gradient)
        self.optimizer.step()
        self._step += 1

    def _save(self, path: Path, run: dict[str, Any]) -> None:
        progress = {
            "run": run,
            "step": self._step,
            "history": self.history,
            "best": self.best.to_dict(),
            "best_epoch": self.best_epoch,
        }
        save_training_state(path, modules=self.modules(), optimizer=self.optimizer, generators={}, progress=progress)

    def _resume(self, path: Path, run: dict[str, Any]) -> None:
        progress = load_training_state(path, modules=self.modules(), optimizer=self.optimizer, generators={})
        if progress["run"] != run:
            raise ValueError(f"{path} is of a run with other options or pairs; remove it or name another --out")
        self._step, self.history = progress["step"], progress["history"]
        self.best, self.best_epoch = HeldOutScore(**progress["best"]), progress["best_epoch"]


def stopping_folds(pairs: Pairs, options: FitOptions, family: str) -> np.ndarray:
    """The fold of each pair, int64 [n]; fold 0 is held out, and says when a training stops.

    Raises:
        ValueError: If nothing can be held out.
    """
    folds = identity_folds(pairs, options.folds, seed=options.seed)
    if folds.max() < 1:
        raise ValueError(
            f"{family} stops early by pairs held out, but all {len(pairs)} pairs are of one identity; "
            "give more identities, or use --transformer ridge"
        )
    return folds
