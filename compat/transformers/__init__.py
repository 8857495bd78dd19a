"""Families of maps from one embedding space to another. `TRANSFORMERS` names them all."""

from __future__ import annotations

from compat.transformers.linear import IdentityMap, LinearMap
from compat.transformers.mlp import MLP
from compat.transformers.msresnet import MSResNet

TRANSFORMERS = {
    "identity": IdentityMap,
    "procrustes": LinearMap,
    "ridge": LinearMap,
    "mlp": MLP,
    "msresnet": MSResNet,
}
"""The network behind each family; each is made from `(source_dim, target_dim)` and maps [n, source] to [n, target]."""


def known_family(family: str) -> str:
    """The family itself.

    Raises:
        ValueError: If there is no such family; the message lists those there are.
    """
    if family not in TRANSFORMERS:
        raise ValueError(f"unknown transformer {family!r}; choose one of {', '.join(TRANSFORMERS)}")
    return family
