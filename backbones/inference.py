"""Fast inference that is allowed only where it changes nothing that matters.

Shapes: b batch, h and w pixels, d embedding dimension.
"""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

Engine = Callable[[Tensor], Tensor]
Precision = Literal["auto", "bf16", "fp32"]


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Return a copy for inference whose norms are merged into the convolutions and projections that feed them.

    Only neighbours in a `Sequential` are merged, where the norm is known to be the layer's single reader. A norm in
    front of a convolution stays: the convolution pads with zeros, which the norm would have shifted, so merging it
    would be wrong along the border.
    """
    network = copy.deepcopy(network).eval()
    for sequence in network.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for first, second in zip(range(len(sequence)), range(1, len(sequence)), strict=False):
            layer, norm = sequence[first], sequence[second]
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[first], sequence[second] = fuse_conv_bn_eval(layer, norm), nn.Identity()
            elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
                sequence[first], sequence[second] = fuse_linear_bn_eval(layer, norm), nn.Identity()
    return network


def bf16_engine(folded: nn.Module) -> Engine:
    """Return a function from float32 images [b, 3, h, w] to float32 [b, d] that computes in bfloat16.

    Norms keep float32 statistics: the mean of a large activation does not fit in bfloat16's eight bits.
    """
    network = copy.deepcopy(folded).to(dtype=torch.bfloat16, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for copied, original in zip(network.modules(), folded.modules(), strict=True):
        if isinstance(copied, nn.BatchNorm1d | nn.BatchNorm2d):
            copied.float().load_state_dict(original.state_dict())

    def embed(images: Tensor) -> Tensor:
        return network(images.to(dtype=torch.bfloat16, memory_format=torch.channels_last)).float()

    return embed


def fp32_engine(folded: nn.Module) -> Engine:
    """Return a function from float32 images [b, 3, h, w] to float32 [b, d] on a channels-last copy of the network."""
    network = copy.deepcopy(folded).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return lambda images: network(images.contiguous(memory_format=torch.channels_last))


def multiplies_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bfloat16 natively; elsewhere it is emulated and slower than float32.

    The capability decides, not a timing, which could fall out differently on the next run.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@torch.inference_mode()
def fastest_faithful(
    network: nn.Module,
    sample: Tensor,
    minimum_cosine: float = 0.999,
    *,
    precision: Precision = "auto",
) -> tuple[Engine, dict[str, object]]:
    """Choose the fastest way to run `network` whose embeddings of `sample` are those of float32.

    Tried in this order: bfloat16 with folded norms (where the device multiplies it natively, or where asked for),
    float32 with folded norms, and the network as it is.

    Args:
        network: in evaluation mode; it is not changed.
        sample: float32 [b, 3, h, w], real inputs: random ones do not reach the activations that real ones do.
        minimum_cosine: least cosine that any row of the sample must reach.
        precision: fp32 leaves bfloat16 out; bf16 tries it on any device.

    Returns:
        The engine, and the facts of the choice: `precision` (bf16-folded, fp32-folded or fp32) and `minimum_cosine`,
        the lowest over the sample.

    Raises:
        ValueError: for an empty sample, or where the network's own float32 embeddings are not finite.
    """
    if len(sample) == 0:
        raise ValueError("the sample is empty, expected at least one image; give readable images")
    reference = network(sample)
    if not torch.isfinite(reference).all():
        raise ValueError("the network's float32 embeddings are not finite; its weights are unusable, train it again")
    folded = fold_batchnorm(network)
    candidates: dict[str, Callable[[nn.Module], Engine]] = {"fp32-folded": fp32_engine}
    if precision == "bf16" or (precision == "auto" and multiplies_bf16(sample.device)):
        candidates = {"bf16-folded": bf16_engine} | candidates
    for name, build in candidates.items():
        engine = build(folded)
        lowest = float(F.cosine_similarity(engine(sample), reference).min())
        if lowest >= minimum_cosine:  # false for NaN
            return engine, {"precision": name, "minimum_cosine": lowest}
    return network, {"precision": "fp32", "minimum_cosine": 1.0}
