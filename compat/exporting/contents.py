"""What a transformer's map is made of, as the arrays that every export starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from compat.exporting.arrays import FORMAT_VERSION, ArrayMap
from compat.transformers.artefact import Transformer
from compat.transformers.linear import IdentityMap, LinearMap
from compat.transformers.mlp import MLP
from compat.transformers.residual_mlp import ResidualMLP
from compat.transformers.unified import UnifiedMap


def is_array_map(transformer: Transformer) -> bool:
    """Whether `array_map` can say what the map is."""
    return isinstance(transformer.network, IdentityMap | LinearMap | MLP | ResidualMLP | UnifiedMap)


def export_card(transformer: Transformer, *, served: bool) -> dict[str, Any]:
    """What an exported file says of itself, JSON values."""
    served = served and transformer.correction is not None
    return {
        "format_version": FORMAT_VERSION,
        "family": transformer.family,
        "direction": transformer.direction,
        "source": transformer.source.to_dict(),
        "target": transformer.target.to_dict(),
        "digest": transformer.digest(),
        "unit": transformer.target.normalized or served,
        "served": served,
    }


def array_map(transformer: Transformer, *, served: bool = False) -> ArrayMap:
    """The map as arrays that share no memory with it.

    Args:
        transformer: Of any family but those of convolutions.
        served: Whether a query comes out as an index with the transformer's hubness correction takes it.

    Raises:
        ValueError: If the map is of another kind.
    """
    network = transformer.network
    if isinstance(network, IdentityMap):
        kind, tensors = "identity", {}
    elif isinstance(network, LinearMap):
        kind, tensors = "linear", _linear(network)
    elif isinstance(network, MLP):
        kind, tensors = "mlp", {"weight": _array(network.layer.weight.T), "bias": _array(network.layer.bias)}
    elif isinstance(network, ResidualMLP):
        kind = "residual_mlp"
        tensors = _linear(network.affine) | {
            "hidden_weight": _array(network.hidden.weight.T),
            "hidden_bias": _array(network.hidden.bias),
            "output_weight": _array(network.output.weight.T),
        }
    elif isinstance(network, UnifiedMap):
        kind, tensors = "unified", _linear(network.affine) | _blocks(network)
    else:
        raise ValueError(f"{transformer.family} is not made of matrices alone; export it with --format onnx")
    return ArrayMap(tensors, {"kind": kind, **export_card(transformer, served=served)})


def require_served(transformer: Transformer) -> None:
    """Make sure that the map can be exported as an index with the transformer's hubness correction takes queries.

    Raises:
        ValueError: If it has no correction, or maps the gallery.
    """
    if transformer.correction is None:
        raise ValueError(
            "this transformer has no hubness correction, so --serve would change nothing; leave it out, or fit a "
            "transformer with --correction above 0"
        )
    if transformer.direction == "old-to-new":
        raise ValueError(
            "this transformer maps the gallery (old-to-new), and a hubness correction is a number of each item, which "
            "no file of the map can hold; leave --serve out; compat.migrate, or "
            "compat.transform --serve gallery, writes the items"
        )


def _linear(network: LinearMap) -> dict[str, np.ndarray]:
    return {
        "weight": _array(network.affine.weight.T),
        "bias": _array(network.affine.bias),
        "centre": _array(network.centre),
    }


def _blocks(network: UnifiedMap) -> dict[str, np.ndarray]:
    state = network.state_dict()
    arrays = {}
    for number in range(len(network.blocks)):
        arrays[f"hidden_weight_{number}"] = _array(state[f"blocks.{number}.hidden.weight"].T)
        arrays[f"hidden_bias_{number}"] = _array(state[f"blocks.{number}.hidden.bias"])
        arrays[f"output_weight_{number}"] = _array(state[f"blocks.{number}.output.weight"].T)
    return arrays


def _array(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy(), np.float32, order="C")
