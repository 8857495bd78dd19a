"""Transformers of every family with weights drawn at random, so that nothing has to be trained."""

import numpy as np
import torch

from compat.neighbors import unit_rows
from compat.options import Direction
from compat.transformers import build_network
from compat.transformers.artefact import Transformer
from compat.transformers.hubness import HubnessCorrection
from stores.space import EmbeddingSpace


def drawn_map(
    family: str,
    source_dim: int,
    target_dim: int,
    *,
    normalized: bool = False,
    corrected: bool = False,
    direction: Direction = "new-to-old",
    centred: bool = True,
    width: int | None = None,
) -> Transformer:
    """A transformer whose every weight, bias, centre and running mean is drawn, running variances in 0.5..1.5."""
    generator = torch.Generator().manual_seed(source_dim * 1000 + target_dim)
    network = build_network(family, source_dim, target_dim, width).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_var" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.dtype == torch.float32:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 / source_dim**0.5)
            if name.endswith("centre") and not centred:
                tensor.zero_()
    source = EmbeddingSpace("new", None, source_dim, False)
    target = EmbeddingSpace("old", None, target_dim, normalized)
    correction = None
    if corrected:
        drawn = np.random.default_rng(0)
        gallery_dim = target_dim if direction == "new-to-old" else source_dim
        bank, old_bank = (unit_rows(drawn.normal(size=(20, dim))) for dim in (target_dim, gallery_dim))
        correction = HubnessCorrection(0.5, bank, old_bank, np.empty(0, np.uint64))
    return Transformer(family, direction, source, target, network, correction=correction)
