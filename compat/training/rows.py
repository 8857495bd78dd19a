"""The rows that a network is trained on: real pairs, then synthetic ones, which are mixed when they are read."""

from __future__ import annotations

import numpy as np

from compat.options import Direction
from compat.pairs import Pairs
from compat.training.interpolation import SyntheticSamples


class TrainingRows:
    """Real pairs followed by synthetic ones, read by number."""

    def __init__(self, pairs: Pairs, synthetic: SyntheticSamples, direction: Direction) -> None:
        self._pairs, self._synthetic = pairs, synthetic
        self._direction: Direction = direction

    def __len__(self) -> int:
        return len(self._pairs) + len(self._synthetic)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and target vectors, float32 [b, d_source] and [b, d_target], of row numbers [b]; real rows first."""
        real = len(self._pairs)
        mixed = rows[rows >= real] - real
        source, target = self._pairs.take(rows[rows < real], self._direction)
        if not len(mixed):
            return source, target
        a = self._pairs.take(self._synthetic.first[mixed], self._direction)
        b = self._pairs.take(self._synthetic.second[mixed], self._direction)
        return np.concatenate([source, (a[0] + b[0]) / 2]), np.concatenate([target, (a[1] + b[1]) / 2])
