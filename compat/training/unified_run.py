"""One training of two maps into one space: its state, the steps of an epoch, and the checkpoint to go on from."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from backbones.checkpoint import tensor_digest
from backbones.encoders.inference import default_device
from compat.neighbors import unit_rows
from compat.options import FitOptions, UnifiedOptions
from compat.pairs import Pairs
from compat.training.closed_form import as_map
from compat.training.epoch_run import Diverged, EpochRun
from compat.training.schedule import AFFINE_RATE_SCALE
from compat.training.selection import HeldOutScore, judged_by
from compat.training.unified_judge import UnifiedJudge
from compat.training.unified_losses import SharedClassifier, UnifiedTerms, loss_terms, require_losses, unified_loss
from compat.training.unified_start import Start, canonical_starts
from compat.transformers.unified import UnifiedMap

IDENTITY_RATE_SCALE = 3.0
"""Of all steps where identities are learned: on real identities longer steps won, on items without labels they lost."""


class UnifiedRun(EpochRun):
    """Both maps, classifier, optimiser and position, which is all that a checkpoint holds, and what they learn from.

    Args:
        real: Pairs to train on.
        judge: Scores both maps after each epoch.
        options: Steps, width, inputs and seed.
        unified: The space's dimension and the weights of the losses.

    Attributes:
        best_maps: Of the best epoch, on the CPU.
        start: The score of the linear maps they started at.
        identities: How many the classifier tells apart; 0 without one.

    Raises:
        ValueError: If there is nothing to learn from, or a term that there is not was given a weight.
    """

    def __init__(self, real: Pairs, judge: UnifiedJudge, options: FitOptions, unified: UnifiedOptions) -> None:
        self.unified, self.judge, self.real = unified, judge, real
        self.dim = unified.dim or real.new.space.dim
        self.codes, self.identities = self._codes()
        require_losses(unified, self.identities)
        self.shrinkage, start, self.start = self._best_start(options)
        digests = [tensor_digest(linear.state_dict()) for linear in start]
        self.start_digest = " ".join(digests)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.old_map, self.new_map = (UnifiedMap.starting_at(linear, options.width) for linear in start)
        self.classifier = self._new_classifier() if self.identities else None
        self.best_maps = self._frozen()
        self.device = default_device()
        for module in self._trained().values():
            module.to(self.device)
        optimizer = torch.optim.Adam(self._parameter_groups(), lr=options.learning_rate, fused=True)
        super().__init__(options, optimizer, lambda _: -(-len(real) // options.batch_size), self.start)

    def _best_start(self, options: FitOptions) -> tuple[float, Start, HeldOutScore]:
        starts = canonical_starts(self.real, options, self.dim)
        scores = {key: self.judge.both(as_map(old), as_map(new), self.dim) for key, (old, new) in starts.items()}
        best = max(scores, key=lambda shrinkage: (scores[shrinkage].mean_reciprocal_rank, shrinkage))
        return best, starts[best], scores[best]

    def _codes(self) -> tuple[np.ndarray | None, int]:
        """Codes of what must not be told apart, and how many identities there are to learn; 0 where none repeats."""
        by_label = self.real.labels is not None and judged_by(self.judge.pairs) == "label"
        groups = self.real.labels if by_label else self.real.originals
        if groups is None:
            return None, 0
        codes = np.unique(groups, return_inverse=True)[1]
        return codes, int(codes.max()) + 1 if by_label else 0

    def _new_classifier(self) -> SharedClassifier:
        """Each identity's direction starts at the sum of its mapped embeddings, of both sides."""
        assert self.codes is not None  # identities come from them
        sums = np.zeros((self.identities, self.dim))
        apply, first = (as_map(self.old_map), as_map(self.new_map)), 0
        for sides in self.real.blocks("old-to-new"):
            codes = self.codes[first : first + len(sides[0])]
            for side, mapped in zip(sides, apply, strict=True):
                np.add.at(sums, codes, unit_rows(mapped(np.array(side))))
            first += len(codes)
        return SharedClassifier(torch.from_numpy(unit_rows(sums).astype(np.float32)))

    def _trained(self) -> dict[str, torch.nn.Module]:
        maps: dict[str, torch.nn.Module] = {"old": self.old_map, "new": self.new_map}
        return maps if self.classifier is None else maps | {"classifier": self.classifier}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        maps = (self.old_map, self.new_map)
        affine = [parameter for side in maps for parameter in side.affine.parameters()]
        rest = [parameter for side in maps for parameter in side.blocks.parameters()]
        rest += [] if self.classifier is None else [*self.classifier.parameters()]
        scale = IDENTITY_RATE_SCALE if self.identities else 1.0
        return [{"params": affine, "rate_scale": scale * AFFINE_RATE_SCALE}, {"params": rest, "rate_scale": scale}]

    def _frozen(self) -> tuple[UnifiedMap, UnifiedMap]:
        old, new = (copy.deepcopy(side).cpu().eval() for side in (self.old_map, self.new_map))
        return old, new

    def epoch(self) -> dict[str, Any]:
        """Train one epoch, judge it, and return its record.

        Raises:
            Diverged: If the loss is no longer finite.
        """
        number, started = len(self.history), time.perf_counter()
        # The sums stay where the maps are: reading them at every step would wait for the device at every step.
        sums = torch.zeros(len(UnifiedTerms._fields), dtype=torch.float64, device=self.device)
        mass, rate = 0.0, 0.0
        for batch, old, new, weights in self._batches(number):
            rate = self._set_rate()
            codes = None if self.codes is None else torch.from_numpy(self.codes[batch]).to(self.device)
            terms = unified_loss(
                self.old_map(old),
                self.new_map(new),
                self.unified,
                classifier=self.classifier,
                codes=codes,
                pair_weights=weights,
            )
            self._descend(terms.total)
            share = len(batch) if self.real.weights is None else float(self.real.weights[batch].sum())
            sums.add_(torch.stack([term.detach() for term in terms]), alpha=share)
            mass += share
        means = dict(zip(UnifiedTerms._fields, (sums.cpu() / mass).tolist(), strict=True))
        if not np.isfinite([*means.values()]).all():
            raise Diverged(
                f"the loss became {means['total']} in epoch {number + 1}; lower learning_rate "
                f"({self.options.learning_rate})"
            )
        seconds = time.perf_counter() - started
        frozen = self._frozen()
        score = self.judge.both(as_map(frozen[0]), as_map(frozen[1]), self.dim)
        if score.beats(self.best):
            self.best, self.best_epoch, self.best_maps = score, number, frozen
        record = {
            "epoch": number + 1,
            "loss": means["total"],
            **{f"{name}_loss": means[name] for name in loss_terms(self.identities)},
            "learning_rate": rate,
            "held_out_recall_at_1": score.recall_at_1,
            "held_out_reciprocal_rank": score.mean_reciprocal_rank,
            "pairs_per_second": len(self.real) / seconds,
        }
        self.history.append(record)
        return record

    def _batches(self, epoch: int) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        for batch in self.real.shuffled(self.options.batch_size, seed=self.options.seed * 100_003 + epoch):
            old, new = (torch.from_numpy(side).to(self.device) for side in self.real.take(batch, "old-to-new"))
            weights = None
            if self.real.weights is not None:
                weights = torch.from_numpy(self.real.weights[batch].astype(np.float32)).to(self.device)
            yield batch, old, new, weights

    def modules(self) -> dict[str, torch.nn.Module]:
        """Both maps and the classifier as they are, and the best maps."""
        return self._trained() | {"best_old": self.best_maps[0], "best_new": self.best_maps[1]}
