"""The space a vector lives in, so that vectors of two models are never compared by mistake."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

Similarity = Literal["cosine", "inner_product"]

NORM_TOLERANCE = 1e-3
"""Norms this close to 1 count as unit length."""


@dataclass(frozen=True, eq=False)
class EmbeddingSpace:
    """Which model and preprocessing a set of vectors came from. Two spaces are equal only if vectors are comparable.

    Args:
        name: What people call the model, for example `iresnet18`.
        fingerprint: Digest over the model's weights and its preprocessing, or None for arrays of unknown origin.
        dim: Length of a vector.
        normalized: Whether all vectors have unit length.
        similarity: How vectors are compared at search: by `cosine`, or by `inner_product` where lengths tell something.

    Raises:
        ValueError: If the name is empty, dim is not positive or the similarity is unknown.
    """

    name: str
    fingerprint: str | None
    dim: int
    normalized: bool
    similarity: Similarity = "cosine"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("an embedding space needs a name, found ''; pass the model's name (--space-name)")
        if self.dim < 1:
            raise ValueError(f"an embedding space needs dim >= 1, found {self.dim}")
        if self.similarity not in get_args(Similarity):
            known = " or ".join(get_args(Similarity))
            raise ValueError(f"an embedding space is compared by {known}, found {self.similarity!r}")

    def _identity(self) -> tuple[object, ...]:
        # A fingerprint settles the question; without one the name is all there is to go by.
        model = ("fingerprint", self.fingerprint) if self.fingerprint else ("name", self.name)
        return (*model, self.dim, self.normalized, self.similarity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmbeddingSpace) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __str__(self) -> str:
        digest = f" {self.fingerprint[:8]}" if self.fingerprint else ""
        compared = ", by inner product" if self.similarity == "inner_product" else ""
        return f"{self.name}{digest} ({self.dim}-D{', normalized' if self.normalized else ''}{compared})"

    def to_dict(self) -> dict[str, Any]:
        """The space as plain JSON values; cosine, which almost every space is compared by, goes without saying."""
        fields = asdict(self)
        if self.similarity == "cosine":
            del fields["similarity"]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> EmbeddingSpace:
        """The inverse of `to_dict`.

        Raises:
            ValueError: If a field is missing, unknown or of the wrong type.
        """
        kinds = {"name": str, "fingerprint": (str, type(None)), "dim": int, "normalized": bool}
        if not isinstance(fields, dict) or fields.keys() - {"similarity"} != kinds.keys():
            raise ValueError(
                f"an embedding space has the fields {', '.join(kinds)} and perhaps similarity; found {sorted(fields)}"
            )
        for key, kind in kinds.items():
            if not isinstance(fields[key], kind):
                raise ValueError(f"field {key!r} of an embedding space has the wrong type: {fields[key]!r}")
        return cls(**fields)


def is_normalized(vectors: np.ndarray) -> bool:
    """Whether every row of vectors, float [n, d], has unit length within `NORM_TOLERANCE`. True for no rows."""
    with np.errstate(over="ignore", invalid="ignore"):  # whatever overflows is no unit vector
        norms = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1)
    return bool(np.all(np.abs(norms - 1.0) <= NORM_TOLERANCE))
