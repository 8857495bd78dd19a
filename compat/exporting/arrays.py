"""A transformer as plain arrays in one .npz file, read and applied with NumPy alone.

This module imports nothing but NumPy and the standard library, so that it can be copied to where queries are served.

    from compat.exporting.arrays import load_map
    mapped = load_map("map.npz")(queries)

The usual map, of kind `linear`, needs not even that:

    import numpy as np
    map_ = np.load("map.npz")
    x = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    x = x - map_["centre"]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    mapped = x @ map_["weight"] + map_["bias"]
    mapped = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)  # where `unit` is true in the card

`bytes(map_["card"])` is JSON: kind, family, direction, spaces, the transformer's digest, `unit` and `served`.

Shapes: n vectors, source dimension s, target dimension t, hidden units h.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1
UNIFIED_BLOCKS = 2
SHAPES: dict[str, dict[str, str]] = {
    "identity": {},
    "linear": {"weight": "st", "bias": "t", "centre": "s"},
    "mlp": {"weight": "st", "bias": "t"},
    "residual_mlp": {
        "weight": "st",
        "bias": "t",
        "centre": "s",
        "hidden_weight": "sh",
        "hidden_bias": "h",
        "output_weight": "ht",
    },
    "unified": {
        "weight": "st",
        "bias": "t",
        "centre": "s",
        **{
            f"{name}_{block}": letters
            for block in range(UNIFIED_BLOCKS)
            for name, letters in (("hidden_weight", "th"), ("hidden_bias", "h"), ("output_weight", "ht"))
        },
    },
}
"""The arrays of each kind of map and their shapes."""
HIDDEN_KINDS = ("residual_mlp", "unified")
"""Kinds with hidden units."""

_BLOCK_ROWS = 4096
_LEAST_SQUARE, _MOST_SQUARE = 1e-30, 1e30
"""Sums of squares within these are sound in float32."""
_EPS = float(np.finfo(np.float32).eps)
_SHORTEST = np.float32(1e-12)
"""Vectors shorter than this are not brought to unit length before hidden units see them."""
# Abramowitz and Stegun, "Handbook of Mathematical Functions", formula 7.1.26
_ERF_RATE = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


class ArrayMap:
    """A map from [n, s] to [n, t] held as arrays.

    Attributes:
        kind: One of `SHAPES`: the formula.
        tensors: float32 arrays by name, as `SHAPES` says.
        card: JSON values: family, direction, spaces, the transformer's digest.
        source_dim: s.
        target_dim: t.
        unit: Whether what comes out is scaled to unit length.
        served: Whether a 1 is appended to that, for an index that carries a hubness correction.

    Args:
        tensors: The arrays, floats.
        card: What `card` is, with kind, unit and served.

    Raises:
        ValueError: If an array is missing, not needed, of another shape than the card says, or not finite.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> None:
        self.card = dict(card)
        try:
            self.kind = str(card["kind"])
            self.source_dim, self.target_dim = int(card["source"]["dim"]), int(card["target"]["dim"])
            self.unit, self.served = bool(card["unit"]), bool(card["served"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the card of the map lacks {error}; export the transformer again") from None
        if self.kind not in SHAPES:
            raise ValueError(f"the map is of kind {self.kind!r}, expected one of {', '.join(SHAPES)}")
        if set(tensors) != set(SHAPES[self.kind]):
            raise ValueError(
                f"a {self.kind} map has the arrays {', '.join(SHAPES[self.kind]) or 'none'}, found "
                f"{', '.join(sorted(tensors)) or 'none'}; export the transformer again"
            )
        sizes = {"s": self.source_dim, "t": self.target_dim}
        for name, letters in SHAPES[self.kind].items():
            array = tensors[name]
            if "h" in letters and array.ndim == len(letters):
                sizes.setdefault("h", array.shape[letters.index("h")])
            expected = [sizes.get(letter, 0) for letter in letters]
            if list(array.shape) != expected or array.dtype.kind != "f":
                raise ValueError(
                    f"the array {name} is {array.dtype} {list(array.shape)}, expected floats {expected}; "
                    "export the transformer again"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"the array {name} holds NaN or infinity; export the transformer again")
        self.tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
        if "centre" in self.tensors:
            centre = self.tensors["centre"]
            self._mapped_centre = centre @ self.tensors["weight"]
            self._spread = float(centre @ centre)

    @property
    def output_dim(self) -> int:
        """Length of what comes out: t, and one more where a 1 is appended."""
        return self.target_dim + self.served

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Map vectors, floats [n, s], to a new float32 [n, output_dim].

        Raises:
            ValueError: If the shape is another.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.source_dim:
            raise ValueError(f"vectors have shape {list(vectors.shape)}, expected [n, {self.source_dim}]")
        if len(vectors) <= _BLOCK_ROWS:
            return self._apply(vectors)
        out = np.empty((len(vectors), self.output_dim), np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            out[start : start + _BLOCK_ROWS] = self._apply(vectors[start : start + _BLOCK_ROWS])
        return out

    def _apply(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if len(vectors) == 1 and self.kind == "linear":
            return self._map_one(vectors[0])
        if self.kind == "identity":
            kept = vectors[:, : self.target_dim]
            mapped = np.zeros((len(vectors), self.target_dim), np.float32)
            mapped[:, : kept.shape[1]] = kept
        elif self.kind == "mlp":
            mapped = vectors @ self.tensors["weight"]
            mapped += self.tensors["bias"]
        else:
            mapped = self._affine(vectors)
        if self.kind == "residual_mlp":
            lengths = np.maximum(_lengths(vectors, zero=0.0), _SHORTEST)
            scaled = vectors * (np.float32(math.sqrt(self.source_dim)) / lengths)[:, None]
            hidden = scaled @ self.tensors["hidden_weight"] + self.tensors["hidden_bias"]
            mapped += gelu(hidden) @ self.tensors["output_weight"]
        elif self.kind == "unified":
            lengths = np.maximum(_lengths(mapped, zero=0.0), _SHORTEST)
            mapped *= (np.float32(math.sqrt(self.target_dim)) / lengths)[:, None]
            for block in range(UNIFIED_BLOCKS):
                hidden = mapped @ self.tensors[f"hidden_weight_{block}"] + self.tensors[f"hidden_bias_{block}"]
                mapped += gelu(hidden) @ self.tensors[f"output_weight_{block}"]
        if self.unit or self.served:
            mapped *= (1.0 / _lengths(mapped))[:, None]
        if self.served:
            mapped = np.concatenate([mapped, np.ones((len(mapped), 1), np.float32)], axis=1)
        return mapped

    def _affine(self, vectors: np.ndarray) -> np.ndarray:
        # W (u - c) / |u - c| + b, where u = x / |x| and |u - c|^2 = 1 - 2 u c + |c|^2
        directions = vectors * (1.0 / _lengths(vectors))[:, None]
        mapped = directions @ self.tensors["weight"]
        if self._spread:
            along = directions @ self.tensors["centre"]
            mapped -= self._mapped_centre
            mapped *= (1.0 / np.sqrt(np.maximum(1.0 - 2.0 * along + np.float32(self._spread), _EPS)))[:, None]
        mapped += self.tensors["bias"]
        return mapped

    def _map_one(self, vector: np.ndarray) -> np.ndarray:
        """The same for one vector [s]: what costs a block nothing would cost it more than the product."""
        direction = vector * np.float32(1.0 / _length(vector))
        mapped = direction @ self.tensors["weight"]
        if self._spread:
            square = 1.0 - 2.0 * float(direction @ self.tensors["centre"]) + self._spread
            mapped -= self._mapped_centre
            mapped *= np.float32(1.0 / math.sqrt(max(square, _EPS)))
        mapped += self.tensors["bias"]
        if self.unit or self.served:
            mapped *= np.float32(1.0 / _length(mapped))
        if self.served:
            mapped = np.append(mapped, np.float32(1.0))
        return mapped[None, :]


def load_map(path: str | Path) -> ArrayMap:
    """Read a file that `python -m compat.export --format numpy` wrote. Nothing in it is unpickled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds other arrays than a map has, or is of a later format version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no map at {path}; python -m compat.export --format numpy writes one")
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > path.stat().st_size for m in members):
                raise ValueError("its arrays are compressed, which those of a map are not")
            # read() compares each member's checksum
            arrays = {m.filename.removesuffix(".npy"): _parsed(file.read(m)) for m in members}
        card = json.loads(arrays.pop("card").tobytes())
        version = card["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ValueError(f"its format version is {version}, this release reads up to {FORMAT_VERSION}; update it")
        return ArrayMap(arrays, card)
    except (ValueError, KeyError, TypeError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the map {path} cannot be read: {reason}") from None


def _parsed(content: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def gelu(values: np.ndarray) -> np.ndarray:
    """X (1 + erf(x / sqrt 2)) / 2 of any shape, float32 (Hendrycks and Gimpel, 2016)."""
    return (0.5 * values * (1.0 + erf(values * np.float32(math.sqrt(0.5))))).astype(np.float32, copy=False)


def erf(values: np.ndarray) -> np.ndarray:
    """The error function to 1.5e-7, of any shape and of the type of `values`.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", formula 7.1.26.
    """
    size = np.abs(values)
    t = 1.0 / (1.0 + _ERF_RATE * size)
    series = np.zeros_like(t)
    for factor in _ERF:
        series = (series + factor) * t
    return np.copysign(1.0 - series * np.exp(-size * size), values)


def _lengths(vectors: np.ndarray, zero: float = 1.0) -> np.ndarray:
    """Norms of rows, float32 [n]; `zero` for a row of zeros."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if not (squares.min(initial=1.0) > _LEAST_SQUARE and squares.max(initial=1.0) < _MOST_SQUARE):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        squares[squares == 0] = zero
    return np.sqrt(squares).astype(np.float32)


def _length(vector: np.ndarray) -> float:
    """Norm of a vector [d]; 1 where it is zero."""
    square = float(vector @ vector)
    if not _LEAST_SQUARE < square < _MOST_SQUARE:
        square = float(np.square(vector, dtype=np.float64).sum())
    return math.sqrt(square) or 1.0
