"""What maps are compared with: released packages as they come, and published methods written down again here.

Each is a function of unit-length pairs x [n, s] and y [n, t] and a seed that returns a function of [m, s] to [m, t];
a ValueError from it means that it refuses these pairs. Settings are the packages' defaults unless said otherwise.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

Map = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, int], Map]

RANK = 64
HIDDEN = 256
SLOW = 2_000


@dataclass(frozen=True)
class Peer:
    """A map that is not ours.

    Attributes:
        fit: Unit rows x float64 [n, s], y float64 [n, t] and a seed to a map.
        package: What must be installed for it, if anything.
        most_pairs: More pairs take it minutes; cells beyond are left out and marked, unless asked for.
    """

    fit: Fit
    package: str | None = None
    most_pairs: int | None = None

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


def centred_procrustes(x: np.ndarray, y: np.ndarray, seed: int) -> Map:  # noqa: ARG001  closed form
    """Rotation of centred rows; with unequal dimensions, the part of it that is left after padding with zeros.

    Source: Schoenemann, Psychometrika 31 (1966).
    """
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    left, _, right = np.linalg.svd((x - x_mean).T @ (y - y_mean), full_matrices=False)
    rotation = left @ right
    return lambda v: (v - x_mean) @ rotation + y_mean


def least_squares(x: np.ndarray, y: np.ndarray, seed: int) -> Map:  # noqa: ARG001  closed form
    """Affine least squares, the solution of least norm where there are fewer pairs than dimensions."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    weight = np.linalg.lstsq(x - x_mean, y - y_mean, rcond=None)[0]
    return lambda v: (v - x_mean) @ weight + y_mean


def sklearn_ridge(x: np.ndarray, y: np.ndarray, seed: int) -> Map:  # noqa: ARG001  closed form
    """Ridge with an intercept (so centred); its strength by generalised cross-validation of the squared error."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(x, y).predict


def drift_adapter_low_rank(x: np.ndarray, y: np.ndarray, seed: int) -> Map:
    """Affine map of rank 64, learned. Source: Vejendla, "Drift-Adapter", EMNLP 2025, as described there."""
    torch.manual_seed(seed)
    rank = min(RANK, x.shape[1], y.shape[1])
    return _trained(nn.Sequential(nn.Linear(x.shape[1], rank, bias=False), nn.Linear(rank, y.shape[1])), x, y, seed)


def drift_adapter_mlp(x: np.ndarray, y: np.ndarray, seed: int) -> Map:
    """x plus two layers of 256 GELU units; with unequal dimensions a learned linear map takes the place of x.

    Source: Vejendla, "Drift-Adapter", EMNLP 2025, as described there.
    """
    torch.manual_seed(seed)
    return _trained(_ResidualMlp(x.shape[1], y.shape[1]), x, y, seed)


class _ResidualMlp(nn.Module):
    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if source == target else nn.Linear(source, target, bias=False)
        self.step = nn.Sequential(nn.Linear(source, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, target))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.skip(vectors) + self.step(vectors)


def _trained(
    network: nn.Module, x: np.ndarray, y: np.ndarray, seed: int, *, batch: int = 256, most_steps: int = 4_000
) -> Map:
    """AdamW on the mean squared error; the weights of least held-out error, on a tenth of the pairs, are kept.

    The error is taken each epoch, or each 20 steps where epochs are shorter, and ten without a gain end it.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(x))
    held = max(1, len(x) // 10)
    xs, ys = (torch.from_numpy(a[order].astype(np.float32)) for a in (x, y))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    steps_between = max(20, (len(x) - held) // batch)
    best, waited, kept = np.inf, 0, {}
    for step in range(most_steps):
        rows = torch.from_numpy(generator.integers(held, len(x), size=min(batch, len(x) - held)))
        optimizer.zero_grad()
        nn.functional.mse_loss(network(xs[rows]), ys[rows]).backward()
        optimizer.step()
        if (step + 1) % steps_between == 0:
            with torch.no_grad():
                error = float(nn.functional.mse_loss(network(xs[:held]), ys[:held]))
            waited = 0 if error < best else waited + 1
            if error < best:
                best, kept = error, {name: tensor.clone() for name, tensor in network.state_dict().items()}
            if waited == 10:
                break
    network.load_state_dict(kept)

    def apply(vectors: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(vectors.astype(np.float32))).numpy()

    return apply


class _Released(Protocol):
    def fit(self, x: np.ndarray, y: np.ndarray, /) -> object: ...

    def transform(self, v: np.ndarray, /) -> np.ndarray: ...


def _released(make: Callable[[int], _Released]) -> Fit:
    """A package's object behind the one interface. Its advice on the number of pairs is not what is measured here."""

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Map:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = make(seed)
            made.fit(x, y)
        return made.transform

    return fit


def _isotrieve(name: str, **settings: int) -> Fit:
    def make(seed: int) -> _Released:
        import isotrieve.mapping  # pyright: ignore[reportMissingImports]  the extra `bench`

        return getattr(isotrieve.mapping, name)(seed=seed, **settings)

    return _released(make)


def _vectormigrate(name: str, *, seeded: bool = False, **settings: int) -> Fit:
    def make(seed: int) -> _Released:
        import vectormigrate  # pyright: ignore[reportMissingImports]  the extra `bench`

        return getattr(vectormigrate, name)(**settings, **({"seed": seed} if seeded else {}))

    return _released(make)


PEERS: dict[str, Peer] = {
    "centred Procrustes": Peer(centred_procrustes),
    "least squares": Peer(least_squares),
    "sklearn RidgeCV": Peer(sklearn_ridge, "sklearn"),
    "Drift-Adapter low rank": Peer(drift_adapter_low_rank),
    "Drift-Adapter MLP": Peer(drift_adapter_mlp),
    "isotrieve Ridge": Peer(_isotrieve("RidgeMapping"), "isotrieve"),
    "isotrieve Procrustes": Peer(_isotrieve("OrthogonalProcrustesMapping"), "isotrieve"),
    "isotrieve ProcrustesDiag": Peer(_isotrieve("ProcrustesDiagMapping"), "isotrieve"),
    "isotrieve LowRankAffine": Peer(_isotrieve("LowRankAffineMapping", rank=RANK), "isotrieve", SLOW),
    "isotrieve ResidualMLP": Peer(_isotrieve("ResidualMLPMapping"), "isotrieve", SLOW),
    "vectormigrate Procrustes": Peer(_vectormigrate("OrthogonalProcrustesAdapter"), "vectormigrate"),
    "vectormigrate affine": Peer(_vectormigrate("LowRankAffineAdapter"), "vectormigrate"),
    "vectormigrate low rank": Peer(_vectormigrate("LowRankAffineAdapter", rank=RANK), "vectormigrate"),
    "vectormigrate MLP": Peer(_vectormigrate("ResidualMLPAdapter", seeded=True), "vectormigrate", SLOW),
}
"""isotrieve's ContrastiveMapping is left out: its simplex search over every weight needs tens of gigabytes here."""
