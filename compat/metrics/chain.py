"""Compatibility over a chain of models, each replacing the one before, whose galleries stay searchable."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from compat.metrics.intervals import Interval

Ties = Literal["not_compatible", "compatible"]


@dataclass(frozen=True)
class ChainCompatibility:
    """How well the models of a chain search each other's galleries.

    Attributes:
        average_compatibility: Share of the pairs (later model, earlier gallery) that meet the criterion.
        average_accuracy: Mean accuracy over those pairs and over every model in its own gallery.
        ties: How equal accuracies were counted.
    """

    average_compatibility: float
    average_accuracy: float
    ties: Ties

    def to_dict(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


def chain_compatibility(accuracy: np.ndarray, *, ties: Ties = "not_compatible") -> ChainCompatibility:
    """Average compatibility and average accuracy of n models in the order in which they came.

    The pair of a model i with an earlier one j is compatible if M[i, j] > M[j, j]: the later queries do better in the
    earlier gallery than the earlier ones did. An equal accuracy is no gain, so by default it does not count; published
    code counts it now one way, now the other, so say which.

    Args:
        accuracy: M, floats [n, n]: accuracy of the queries of model i in the gallery of model j. What is above the
            diagonal (earlier queries, later galleries) is not looked at and may be NaN.
        ties: Whether M[i, j] = M[j, j] is `not_compatible` (the default) or `compatible`.

    Raises:
        ValueError: If M is not square, is of fewer than two models or lacks an entry that is needed.

    Source: average compatibility and average multi-model accuracy of Biondi et al., "CoReS: Compatible Representations
    via Stationarity", IEEE TPAMI 45 (2023), after the criterion of Shen et al. (`meets_criterion`).

    Example:
        >>> chain_compatibility(np.array([[0.6, np.nan], [0.7, 0.8]])).average_compatibility
        1.0
    """
    accuracy = np.asarray(accuracy, np.float64)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or len(accuracy) < 2:
        raise ValueError(
            f"accuracies have shape {list(accuracy.shape)}, expected [n, n] of n >= 2 models: queries by galleries"
        )
    if ties not in get_args(Ties):
        raise ValueError(f"ties must be one of {', '.join(get_args(Ties))}, found {ties!r}")
    needed = accuracy[np.tril_indices(len(accuracy))]
    if not np.isfinite(needed).all():
        i, j = np.argwhere(~np.isfinite(np.tril(accuracy)))[0]
        raise ValueError(
            f"accuracy of queries of model {i} in the gallery of model {j} is {accuracy[i, j]}; every pair of a model "
            "with itself and with an earlier one is needed"
        )
    later, earlier = np.tril_indices(len(accuracy), -1)
    crossed, own = accuracy[later, earlier], accuracy[earlier, earlier]
    met = crossed >= own if ties == "compatible" else crossed > own
    return ChainCompatibility(float(met.mean()), float(needed.mean()), ties)


@dataclass(frozen=True)
class Criterion:
    """Whether a new model may search an old gallery.

    Attributes:
        new_to_old: Accuracy of new queries (mapped or compatible) in the old gallery.
        old_to_old: Accuracy of old queries there.
        met: Whether the first is higher.
        difference: First less second with its interval, over the same queries, where it was given.
        sure: Whether that interval leaves the answer beyond doubt; None without one.
    """

    new_to_old: float
    old_to_old: float
    met: bool
    difference: Interval | None
    sure: bool | None

    def to_dict(self) -> dict[str, Any]:
        """By name, as plain values."""
        return asdict(self)


def meets_criterion(new_to_old: float, old_to_old: float, difference: Interval | None = None) -> Criterion:
    """The empirical compatibility criterion M(new, old gallery) > M(old, old gallery); an equal accuracy fails it.

    Args:
        new_to_old: Accuracy of new queries in the old gallery.
        old_to_old: Accuracy of old queries there.
        difference: Of the two over the same queries, with its interval.

    Raises:
        ValueError: If an accuracy is NaN.

    Source: Shen et al., "Towards backward-compatible representation learning", CVPR 2020.
    """
    if np.isnan(new_to_old) or np.isnan(old_to_old):
        raise ValueError(f"the criterion compares two accuracies, found {new_to_old} and {old_to_old}")
    met = bool(new_to_old > old_to_old)
    sure = None if difference is None else (difference.low > 0 if met else difference.high <= 0)
    return Criterion(float(new_to_old), float(old_to_old), met, difference, sure)
