"""Families of maps from one embedding space to another. `TRANSFORMERS` names them all."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from compat.transformers.linear import IdentityMap, LinearMap
from compat.transformers.mlp import MLP
from compat.transformers.msresnet import MSResNet
from compat.transformers.residual_mlp import ResidualMLP
from compat.transformers.unified import UnifiedMap

TRANSFORMERS = {
    "identity": IdentityMap,
    "procrustes": LinearMap,
    "ridge": LinearMap,
    "shrunk": LinearMap,
    "whitened": LinearMap,
    "reduced_rank": LinearMap,
    "blend": LinearMap,
    "mlp": MLP,
    "residual_mlp": ResidualMLP,
    "msresnet": MSResNet,
    "unified": UnifiedMap,
}
"""The network behind each family; each is made from `(source_dim, target_dim)` and maps [n, source] to [n, target]."""

SIZED = ("residual_mlp", "unified")
"""Families whose networks may have any width; others have none."""

PAIRED = ("unified",)
"""Families of two maps that are trained together and meet in a space of their own; each is saved and used alone."""

CHOICES = ("auto", *(family for family in TRANSFORMERS if family not in PAIRED))
"""What may be asked for where one map is wanted: a family, or the best of them for the pairs at hand."""


def known_family(family: str, choices: Iterable[str] = TRANSFORMERS) -> str:
    """The family itself.

    Raises:
        ValueError: If there is no such family, or it is no choice here; the message lists those there are.
    """
    if family in PAIRED and family not in choices:
        raise ValueError(
            f"{family} is two maps, found where one is expected: fit both with compat.training.unified.fit_unified or "
            f"compat.train_transformer, or choose one of {', '.join(choices)}"
        )
    if family not in choices:
        raise ValueError(f"unknown transformer {family!r}; choose one of {', '.join(choices)}")
    return family


def build_network(family: str, source_dim: int, target_dim: int, width: int | None = None) -> nn.Module:
    """A new network of a family, from [n, source_dim] to [n, target_dim]; the usual width where none is given.

    Raises:
        ValueError: If there is no such family, or a width is given to one that has none.
    """
    network = TRANSFORMERS[known_family(family)]
    if width is None:
        return network(source_dim, target_dim)
    if family not in SIZED:
        raise ValueError(f"{family} has no width; leave it out, or choose one of {', '.join(SIZED)}")
    return network(source_dim, target_dim, width)
