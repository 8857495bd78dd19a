"""What bench_training compares: the engine, the best bare loop over tensors in memory, and the loop people write."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from compat.options import FitOptions, LossWeights, Precision
from compat.pairs import Pairs
from compat.training.closed_form import as_map
from compat.training.interpolation import NO_SAMPLES, SyntheticSamples
from compat.training.network_run import NetworkRun
from compat.training.selection import HeldOutRetrieval, HeldOutScore
from compat.transformers.mlp import MLP

ITEMS_OF_ONE = 10
"""Items of each identity in the stores written here."""
WEIGHTS = LossWeights()


def tensors_of(pairs: Pairs, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All sources and targets, in memory."""
    blocks = list(pairs.blocks("new-to-old"))
    source, target = (torch.from_numpy(np.concatenate([block[side] for block in blocks])) for side in (0, 1))
    return source.to(device), target.to(device)


def bare_epoch(source: torch.Tensor, target: torch.Tensor, batch: int) -> float:
    """One epoch of the best loop one writes by hand: rows of a permutation, one set of products for both terms."""
    network = MLP(source.shape[1], target.shape[1]).to(source.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    total = torch.zeros((), device=source.device)
    for rows in torch.randperm(len(source), device=source.device).split(batch):
        x, y = source.index_select(0, rows), target.index_select(0, rows)
        p = network(x)
        dot, length, wanted = (p * y).sum(dim=1), (p * p).sum(dim=1), (y * y).sum(dim=1)
        cosine, squared = 1 - dot / (length * wanted).sqrt(), length - 2 * dot + wanted
        loss = WEIGHTS.cosine_weight * cosine.mean() + WEIGHTS.mse_weight * squared.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return float(total)


class RowsOfPairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs row by row, as most training code has them."""

    def __init__(self, source: np.ndarray, target: np.ndarray) -> None:
        self._source, self._target = source, target

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self._source[row]), torch.from_numpy(self._target[row])


def loader_epoch(source: np.ndarray, target: np.ndarray, batch: int, device: torch.device) -> float:
    """One epoch as it is mostly written: a DataLoader over rows, both terms by torch's functions, Adam as it comes."""
    network = MLP(source.shape[1], target.shape[1]).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    total = 0.0
    for rows, wanted in DataLoader(RowsOfPairs(source, target), batch_size=batch, shuffle=True):
        x, y = rows.to(device), wanted.to(device)
        p = network(x)
        cosine = (1 - functional.cosine_similarity(p, y, dim=1)).mean()
        loss = WEIGHTS.cosine_weight * cosine + WEIGHTS.mse_weight * (p - y).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


class NoJudge(HeldOutRetrieval):
    """A judge that asks nothing, so that an epoch is its steps alone."""

    def __init__(self) -> None:
        self.kind = "item"

    def score(self, transform: object, correction: float = 0.0) -> HeldOutScore:  # noqa: ARG002  the judge's interface
        return HeldOutScore("item", 0, 0, 0.0, 0.0)


def engine(
    pairs: Pairs,
    batch: int,
    device: torch.device,
    *,
    synthetic: SyntheticSamples = NO_SAMPLES,
    precision: Precision = "fp32",
) -> NetworkRun:
    """A run of mlp whose `epoch` trains one epoch."""
    options = FitOptions(transformer="mlp", batch_size=batch, precision=precision)
    return NetworkRun(pairs, synthetic, NoJudge(), options, None, device=device)


def anywhere(pairs: int, rate: float) -> SyntheticSamples:
    """Synthetic rows whose parents lie anywhere, which is the slowest case."""
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, pairs, (2, round(rate * pairs)))
    return SyntheticSamples(first, second, np.zeros_like(first), rate)


def recall_at_1(network: nn.Module, queries: np.ndarray, gallery: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether the nearest of a gallery (by cosine) to each mapped query is a right one, float64 [q].

    `wanted` is bool [q, g].
    """
    mapped = torch.from_numpy(as_map(network)(queries))
    found = (functional.normalize(mapped) @ functional.normalize(torch.from_numpy(gallery)).T).argmax(dim=1).numpy()
    return wanted[np.arange(len(found)), found].astype(np.float64)
