"""One training of a network: its state, the steps of an epoch, and the checkpoint that it goes on from."""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from backbones.checkpoint import tensor_digest
from backbones.encoders.inference import default_device, multiplies_bf16
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import as_map, fit_ridge_on
from compat.training.compactness import compactness_loss, identity_centres
from compat.training.epoch_run import Diverged, EpochRun
from compat.training.interpolation import NO_SAMPLES, SyntheticSamples
from compat.training.losses import GradientNorms, compatibility_gradient, gradient_norms
from compat.training.rows import TrainingBatch, TrainingRows
from compat.training.schedule import AFFINE_RATE_SCALE
from compat.training.selection import HeldOutRetrieval, HeldOutScore
from compat.transformers import build_network
from compat.transformers.linear import LinearMap
from compat.transformers.residual_mlp import ResidualMLP


def at_raw_length(linear: LinearMap, pairs: Pairs, direction: Direction) -> LinearMap:
    """A closed form, which predicts unit vectors, as a start for a network, whose loss compares with raw ones."""
    lengths = sum(float(np.linalg.norm(target, axis=1).sum()) for _, target in pairs.blocks(direction))
    return linear.scaled(lengths / len(pairs))


def training_precision(options: FitOptions, device: torch.device) -> Literal["fp32", "bf16"]:
    """What a network is trained in: as asked for, or by `auto` bfloat16 for the convolutions of msresnet alone.

    They are most of the work of a pair there; what one layer would gain or lose is for `precision` to try.
    """
    if options.precision != "auto":
        return options.precision
    return "bf16" if options.transformer == "msresnet" and multiplies_bf16(device) else "fp32"


class NetworkRun(EpochRun):
    """Network, optimiser and position, which is all that a checkpoint holds, and what they are trained on.

    Args:
        real: Pairs to train on.
        synthetic: Which of them are mixed.
        judge: Scores the network after each epoch.
        options: Family, loss, schedule, precision.
        start: For residual_mlp: the affine map that it starts at; ridge by default.
        device: Where it is trained: by default on the first GPU where there is one.

    Raises:
        ValueError: If compactness is asked for and the pairs have no labels.
    """

    def __init__(
        self,
        real: Pairs,
        synthetic: SyntheticSamples,
        judge: HeldOutRetrieval,
        options: FitOptions,
        start: LinearMap | None,
        *,
        device: torch.device | None = None,
    ) -> None:
        self.judge, self.real = judge, real
        centres = identity_centres(real, options.direction) if options.loss.compactness_weight else None
        self._mixed = TrainingRows(real, synthetic, options.direction, centres)
        self._unmixed = TrainingRows(real, NO_SAMPLES, options.direction, centres)
        self.network = self._new_network(options, start)
        self.best_network: nn.Module = copy.deepcopy(self.network)
        self.start: HeldOutScore | None = None
        self.start_digest = ""
        if isinstance(self.network, ResidualMLP):
            self.start = judge.score(as_map(self.best_network))
            self.start_digest = tensor_digest(self.network.affine.state_dict())
        self.device = device or default_device()
        self.precision = training_precision(options, self.device)
        self.network.to(self.device)
        super().__init__(
            options,
            torch.optim.Adam(self._parameter_groups(), lr=options.learning_rate, fused=True),
            lambda epoch: self._rows_of(epoch).batch_count(options.batch_size),
            self.start or HeldOutScore(judge.kind, 0, 0, 0.0, -1.0),
        )

    def _new_network(self, options: FitOptions, start: LinearMap | None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            if options.transformer == "residual_mlp":
                return ResidualMLP.starting_at(start or self._ridge_start(options.direction), options.width)
            source, target = self.real.spaces(options.direction)
            return build_network(options.transformer, source.dim, target.dim, options.width)

    def _ridge_start(self, direction: Direction) -> LinearMap:
        return at_raw_length(fit_ridge_on(self.real, direction), self.real, direction)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if not isinstance(self.network, ResidualMLP):
            return [{"params": list(self.network.parameters()), "rate_scale": 1.0}]
        affine = list(self.network.affine.parameters())
        rest = [*self.network.hidden.parameters(), *self.network.output.parameters()]
        return [{"params": affine, "rate_scale": AFFINE_RATE_SCALE}, {"params": rest, "rate_scale": 1.0}]

    def _rows_of(self, epoch: int) -> TrainingRows:
        return self._mixed if self.schedule.sees_synthetic(epoch) else self._unmixed

    def modules(self) -> dict[str, nn.Module]:
        """The network as it is, and the best one."""
        return {"network": self.network, "best": self.best_network}

    def epoch(self) -> dict[str, Any]:
        """Train one epoch, judge it, and return its record.

        Raises:
            Diverged: If the loss is no longer finite.
        """
        number, options = len(self.history), self.options
        started = time.perf_counter()
        # The sums stay where the network is: reading them at every step would wait for the device at every step.
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        mass, seen, rate = 0.0, 0, 0.0
        norms: GradientNorms | None = None
        self.network.train()
        for batch in self._rows_of(number).batches(options.batch_size, seed=options.seed * 100_003 + number):
            rate = self._set_rate()
            source, target, weights, centres = self._on_device(batch)
            with self._autocast():
                predicted = self.network(source).float()
            if norms is None:  # one batch of an epoch shows the balance, at no cost worth naming
                norms = gradient_norms(predicted, target, options.loss, self.network.parameters(), weights)
            terms, gradient = compatibility_gradient(predicted, target, options.loss, weights)
            share = len(batch.rows) if batch.weights is None else float(batch.weights.sum())
            if centres is not None:
                compactness, pull = self._compactness(predicted, centres, weights)
                gradient += pull
                sums[2].add_(compactness, alpha=share)
            sums[:2].add_(terms, alpha=share)
            self._descend(predicted, gradient)
            mass += share
            seen += len(batch.rows)
        cosine, mse, compactness = (sums.cpu() / mass).tolist()
        weighed = options.loss
        loss = weighed.cosine_weight * cosine + weighed.mse_weight * mse + weighed.compactness_weight * compactness
        if not np.isfinite(loss):
            raise Diverged(
                f"the loss became {loss} in epoch {number + 1}; lower learning_rate ({options.learning_rate}) or "
                f"loss.mse_weight ({options.loss.mse_weight})"
            )
        seconds = time.perf_counter() - started
        score = self._judged(number)
        record = {
            "epoch": number + 1,
            "loss": loss,
            "cosine_loss": cosine,
            "squared_distance": mse,
            **({"compactness_loss": compactness} if options.loss.compactness_weight else {}),
            "cosine_gradient": norms.cosine if norms else 0.0,
            "mse_gradient": norms.mse if norms else 0.0,
            "learning_rate": rate,
            "held_out_recall_at_1": score.recall_at_1,
            "held_out_reciprocal_rank": score.mean_reciprocal_rank,
            "pairs_per_second": seen / seconds,
        }
        self.history.append(record)
        return record

    def _compactness(
        self, predicted: torch.Tensor, centres: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The unweighted term, and the gradient of the weighted one at `predicted`."""
        output = predicted.detach().requires_grad_()
        compactness = compactness_loss(output, centres, weights)
        (pull,) = torch.autograd.grad(self.options.loss.compactness_weight * compactness, output)
        return compactness.detach(), pull

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _on_device(
        self, batch: TrainingBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        source, target = self._tensor(batch.source), self._tensor(batch.target)
        weights = None if batch.weights is None else self._tensor(batch.weights)
        return source, target, weights, None if batch.centres is None else self._tensor(batch.centres)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)  # the copy runs while the next batch is read

    def _judged(self, number: int) -> HeldOutScore:
        """The score of the network as it is, in float32 on the CPU, which is kept where it is the best one."""
        frozen = copy.deepcopy(self.network).cpu()
        score = self.judge.score(as_map(frozen))
        if score.beats(self.best):
            self.best, self.best_epoch, self.best_network = score, number, frozen
        return score
