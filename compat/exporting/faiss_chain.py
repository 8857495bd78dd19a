"""A linear map as FAISS transforms, so that an index of the old model's vectors takes the new model's as they are.

FAISS applies each transform to a whole vector in float32: lengths have to be between 1e-15 and 1e15.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compat.exporting.arrays import ArrayMap

LINEAR_KINDS = ("identity", "linear", "mlp")
"""Kinds of `ArrayMap` that FAISS can express; its mlp is one fully connected layer."""


def transform_chain(mapped: ArrayMap, *, unit: bool) -> list[Any]:
    """Transforms (`faiss.VectorTransform`) that do what the map does, in the order in which they are applied.

    Args:
        mapped: Of a kind in `LINEAR_KINDS`. A served one ends with the 1 that is appended.
        unit: Whether what comes out is scaled to unit length; a served one is anyway.

    Raises:
        ValueError: If the map is of another kind.
    """
    import faiss

    if mapped.kind not in LINEAR_KINDS:
        raise ValueError(f"FAISS has transforms for maps of kind {', '.join(LINEAR_KINDS)}, found {mapped.kind}")
    source, target, tensors = mapped.source_dim, mapped.target_dim, mapped.tensors
    chain: list[Any] = []
    if mapped.kind == "identity":
        if source != target:
            chain.append(_resized(source, target))
    else:
        if mapped.kind == "linear":
            chain.append(faiss.NormalizationTransform(source, 2.0))
            if tensors["centre"].any():
                chain += [_shift(-tensors["centre"]), faiss.NormalizationTransform(source, 2.0)]
        chain.append(_linear(tensors["weight"], tensors["bias"]))
    if unit or mapped.unit or mapped.served:
        chain.append(faiss.NormalizationTransform(target, 2.0))
    if mapped.served:
        # A dimension of zeros, and then a 1 in it: cheaper than a matrix [t + 1, t], and the same.
        chain.append(_resized(target, target + 1))
        chain.append(_shift(np.eye(target + 1, dtype=np.float32)[target]))
    return chain


def over_index(chain: list[Any], index: Any) -> Any:
    """An `faiss.IndexPreTransform` of a chain over an index, which it refers to and does not copy."""
    import faiss

    whole = faiss.IndexPreTransform(index)
    for transform in reversed(chain):
        whole.prepend_transform(transform)
    return whole


def _resized(source: int, target: int) -> Any:
    """The first components as they are, cut off or padded with zeros."""
    import faiss

    make: Any = faiss.RemapDimensionsTransform  # its type knows of a table of components alone
    return make(source, target, False)


def _shift(by: np.ndarray) -> Any:
    import faiss

    transform = faiss.CenteringTransform(len(by))
    faiss.copy_array_to_vector(np.ascontiguousarray(-by, np.float32), transform.mean)
    transform.is_trained = True
    return transform


def _linear(weight: np.ndarray, bias: np.ndarray) -> Any:
    import faiss

    transform = faiss.LinearTransform(weight.shape[0], weight.shape[1], True)
    faiss.copy_array_to_vector(np.ascontiguousarray(weight.T, np.float32).ravel(), transform.A)
    faiss.copy_array_to_vector(np.ascontiguousarray(bias, np.float32), transform.b)
    transform.is_trained = True
    return transform
