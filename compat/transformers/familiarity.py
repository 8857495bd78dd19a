"""How strange a query is to a map, and how likely the map fails it, told from the new model's raw vector alone.

Two numbers, both percentiles among pairs that nothing here was fitted to (so 0.95 is beyond 95% of them):

- novelty: the Mahalanobis distance of the query's direction to the directions that the map was fitted to. It asks
  whether the query is of their kind at all, and is what drift is told by.
- strangeness: the chance that the bridged search fails, by a logistic regression on held-out pairs. It asks whether to
  answer. Distance alone would not do: degraded faces gather near the mean, so the hardest queries are often the least
  novel ones (`benchmarks/results/confidence.md`).

What is kept are a mean, principal axes and weights, no pair's own vector.

Sources: Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
NeurIPS 2018 (the distance); Corbière et al., "Addressing failure prediction by learning model confidence", NeurIPS 2019
(learning failure from held-out outcomes); Laxhammar and Falkman, "Inductive conformal anomaly detection", 2015
(percentiles among pairs held out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from compat.neighbors import unit_rows

MOST_AXES = 256
SHRINKAGE = 0.1
"""Added to every variance, in units of the mean variance, so that axes that hardly vary do not decide."""
LEVELS = 1000
_BLOCK_ROWS = 4096
_TINY = 1e-12


class Percentiles:
    """Where a score stands among held-out ones, in (0, 1) and rising strictly, beyond the ends as well.

    Args:
        levels: Their quantiles, float64 [l] in rising order, at (i + 0.5) / l.
    """

    def __init__(self, levels: np.ndarray) -> None:
        self.levels = levels
        self._scale = max(float(levels[-1] - levels[0]), _TINY)

    @classmethod
    def of(cls, scores: np.ndarray) -> Percentiles:
        """From held-out scores [m]: at most `LEVELS` quantiles of them are kept."""
        count = min(LEVELS, len(scores))
        return cls(np.quantile(scores, (np.arange(count) + 0.5) / count))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Percentiles of scores [q], float64 [q]."""
        levels, edge = self.levels, 0.5 / len(self.levels)
        inside = np.interp(scores, levels, (np.arange(len(levels)) + 0.5) / len(levels))
        below, above = (np.maximum(side, 0) / self._scale for side in (levels[0] - scores, scores - levels[-1]))
        # An order beyond the ends, so that abstaining can still tell the strangest from the very strange.
        return inside + edge * (above / (1 + above)) - edge * (below / (1 + below))


class PrincipalAxes(NamedTuple):
    """A Gaussian of directions, spherical off its principal axes.

    Attributes:
        mean: float32 [d].
        axes: Of unit length, as columns, the widest first, float32 [d, r].
        variances: Along each axis, shrunk, float32 [r].
        rest: Mean variance off the axes, shrunk.
    """

    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    rest: float

    @classmethod
    def of(cls, vectors: np.ndarray, weights: np.ndarray | None = None) -> PrincipalAxes:
        """From raw vectors, floats [n, d], whose lengths do not matter, and how much each counts [n]."""
        units = unit_rows(vectors)
        mean = np.average(units, axis=0, weights=weights).astype(np.float32)
        counts = 1.0 if weights is None else (weights / weights.mean()).astype(np.float32)[:, None]
        centred = units - mean
        values, axes = np.linalg.eigh((centred.T @ (centred * counts) / len(centred)).astype(np.float64))
        values = np.maximum(values, 0.0)
        penalty = SHRINKAGE * float(values.mean()) + _TINY
        kept = min(MOST_AXES, len(mean), max(1, len(units) - 1))
        rest = float(values[: len(mean) - kept].mean()) if kept < len(mean) else 0.0
        axes, values = np.ascontiguousarray(axes[:, ::-1][:, :kept], np.float32), values[::-1][:kept]
        return cls(mean, axes, (values + penalty).astype(np.float32), rest + penalty)

    def features(self, vectors: np.ndarray) -> np.ndarray:
        """Whitened coordinates, log squared Mahalanobis distance and log squared distance, float32 [q, r + 2]."""
        out = np.empty((len(vectors), len(self.variances) + 2), np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            centred = unit_rows(vectors[start : start + _BLOCK_ROWS]) - self.mean
            along = (torch.from_numpy(centred) @ torch.from_numpy(self.axes)).numpy()
            squared = np.einsum("ij,ij->i", centred, centred)
            off = np.maximum(squared - np.einsum("ij,ij->i", along, along), 0.0)
            whitened = along / np.sqrt(self.variances)
            distance = np.einsum("ij,ij->i", whitened, whitened) + off / self.rest
            block = out[start : start + len(centred)]
            block[:, :-2], block[:, -2], block[:, -1] = whitened, np.log(distance + _TINY), np.log(squared + _TINY)
        return out


@dataclass(frozen=True)
class Calibration:
    """What the percentiles rest on.

    Attributes:
        pairs: Held-out pairs that percentiles are taken among.
        independent: Identities among them; pairs where there are no labels.
        recall_at_1: Their recall@1 through a map fitted to others.
        accuracy: recall@1 of those in each fifth of strangeness, the least strange first; None where not known.
        discrimination: Chance that a failed one (where next to none or all fail, one hard to find) is stranger than
            another: the area under the ROC curve. None where not known.
    """

    pairs: int
    independent: int
    recall_at_1: float | None = None
    accuracy: tuple[float, ...] | None = None
    discrimination: float | None = None


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What a map knows of the queries it was fitted for, in the new model's space.

    Attributes:
        axes: Of the directions of the pairs' new vectors.
        novelty_levels: Quantiles of held-out log distances, float64 [l].
        weights: Of the features, the constant's last, float64 [r + 3]; None where held-out pairs could not teach
            failure, then strangeness is novelty.
        strangeness_levels: Quantiles of held-out log odds of failure, or None.
        calibration: What the percentiles rest on.
    """

    axes: PrincipalAxes
    novelty_levels: np.ndarray
    weights: np.ndarray | None
    strangeness_levels: np.ndarray | None
    calibration: Calibration

    @property
    def dim(self) -> int:
        """Dimension of the new model's vectors."""
        return len(self.axes.mean)

    @property
    def score(self) -> str:
        """What strangeness is."""
        return "Mahalanobis distance" if self.weights is None else "predicted failure"

    def novelty(self, queries: np.ndarray) -> np.ndarray:
        """Share of held-out pairs that lie nearer to what the map was fitted to, float64 [q] in 0..1.

        Args:
            queries: The new model's raw vectors, floats [q, d_new].
        """
        return Percentiles(self.novelty_levels)(self.axes.features(queries)[:, -2].astype(np.float64))

    def strangeness(self, queries: np.ndarray) -> np.ndarray:
        """Share of held-out pairs that were likelier to be found, float64 [q] in 0..1: abstain on the highest.

        Args:
            queries: The new model's raw vectors, floats [q, d_new].
        """
        if self.weights is None or self.strangeness_levels is None:
            return self.novelty(queries)
        features = self.axes.features(queries)
        distance = features[:, -2].astype(np.float64)
        strangeness = Percentiles(self.strangeness_levels)(log_odds(features, self.weights))
        # Out there the regression knows nothing, and a vector of another kind altogether may look easy to it.
        beyond = distance > self.novelty_levels[-1]
        return np.where(beyond, np.maximum(strangeness, Percentiles(self.novelty_levels)(distance)), strangeness)

    def to_dict(self) -> dict[str, Any]:
        """What is not in `tensors`, as plain values."""
        calibration = asdict(self.calibration)
        accuracy = self.calibration.accuracy
        return {"score": self.score, **calibration, "accuracy": None if accuracy is None else list(accuracy)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is saved in a file."""
        arrays = {
            "mean": self.axes.mean,
            "axes": self.axes.axes,
            "variances": self.axes.variances,
            "rest": np.array([self.axes.rest]),
            "novelty_levels": self.novelty_levels,
        }
        if self.weights is not None and self.strangeness_levels is not None:
            arrays |= {"weights": self.weights, "strangeness_levels": self.strangeness_levels}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Familiarity:
        """The inverse of `to_dict` and `tensors`.

        Raises:
            ValueError: If the tensors do not fit each other.
        """
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        mean, axes, variances = (arrays[name] for name in ("mean", "axes", "variances"))
        weights, levels = arrays.get("weights"), arrays.get("strangeness_levels")
        if axes.shape != (*mean.shape, *variances.shape) or (weights is not None and len(weights) != axes.shape[1] + 3):
            raise ValueError(f"the familiarity is damaged: mean {mean.shape}, axes {axes.shape}")
        known = {name: fields[name] for name in ("pairs", "independent", "recall_at_1", "discrimination")}
        accuracy = fields["accuracy"]
        calibration = Calibration(**known, accuracy=None if accuracy is None else tuple(accuracy))
        principal = PrincipalAxes(mean, axes, variances, float(arrays["rest"][0]))
        return cls(principal, arrays["novelty_levels"], weights, levels, calibration)


def log_odds(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Log odds of failure of features [q, f] under weights [f + 1], the constant last: float64 [q]."""
    return features @ weights[:-1].astype(np.float64) + float(weights[-1])
