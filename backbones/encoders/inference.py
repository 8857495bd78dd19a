"""Fast inference that is allowed only where it changes nothing that matters.

Shapes: b batch, h and w pixels, d embedding dimension.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from backbones.encoders.encoder import EngineName, Precision
from backbones.encoders.openvino import PRECISIONS, OpenvinoEngine, is_installed

Engine = Callable[[Tensor], Tensor]
Runner = TypeVar("Runner")
MINIMUM_COSINE = 0.999  # of every embedding of the sample to float32's


def first_faithful(
    reference: Tensor, candidates: Iterable[tuple[str, Runner, Tensor]], minimum_cosine: float = MINIMUM_COSINE
) -> tuple[str, Runner, float] | None:
    """Return the first candidate whose embeddings are those of float32, or None: the one guard of every fast path.

    Args:
        reference: float32 embeddings of a sample, [b, ...].
        candidates: name, what runs it, and its embeddings of the same sample; taken one after the other as needed.
        minimum_cosine: least cosine that any row must reach.

    Returns:
        The candidate's name, what runs it, and its lowest cosine.
    """
    for name, runner, found in candidates:
        lowest = float(F.cosine_similarity(found.flatten(1), reference.flatten(1)).min())
        if lowest >= minimum_cosine:  # false for NaN
            return name, runner, min(lowest, 1.0)
    return None


def default_device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pass_size(device: torch.device) -> int:
    """Return how many images a pass of an extraction holds: enough to be fast, whatever the size of the images."""
    return 256 if device.type == "cuda" else 32


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


@torch.no_grad()  # tensors made in inference mode could not be exported to OpenVINO
def fastest_faithful(
    network: nn.Module,
    sample: Tensor,
    minimum_cosine: float = MINIMUM_COSINE,
    *,
    precision: Precision = "auto",
    engine: EngineName = "torch",
) -> tuple[Engine, dict[str, object]]:
    """Choose the fastest way to run `network` whose embeddings of `sample` are those of float32.

    Tried in this order: OpenVINO in bfloat16 and in float32 (where `engine` allows it), then torch in bfloat16 with
    folded norms, in float32 with folded norms, and the network as it is. Bfloat16 is tried where the device multiplies
    it natively, or where it is asked for.

    Args:
        network: in evaluation mode; it is not changed.
        sample: float32 [b, 3, h, w], real inputs: random ones do not reach the activations that real ones do. An
            engine of OpenVINO takes b images at a time and no other number.
        minimum_cosine: least cosine that any row of the sample must reach.
        precision: fp32 leaves bfloat16 out; bf16 tries it on any device.
        engine: torch; openvino, with torch where OpenVINO's embeddings are not those of float32; or auto, which is
            openvino where that is installed and the device is a CPU.

    Returns:
        The engine, and the facts of the choice: `engine` (torch or openvino), `precision` (openvino-bf16,
        openvino-fp32, bf16-folded, fp32-folded or fp32) and `minimum_cosine`, the lowest over the sample.

    Raises:
        ImportError: where OpenVINO is asked for and not installed.
        ValueError: for an empty sample, where the network's own float32 embeddings are not finite, or where OpenVINO is
            asked for on another device than a CPU.
    """
    if len(sample) == 0:
        raise ValueError("the sample is empty, expected at least one image; give readable images")
    reference = network(sample)
    if not torch.isfinite(reference).all():
        raise ValueError("the network's float32 embeddings are not finite; its weights are unusable, train it again")
    folded = fold_batchnorm(network)
    bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(sample.device))
    names = [name for name in PRECISIONS if bf16 or name != "openvino-bf16"]
    names = [*(names if _takes_openvino(engine, sample.device) else []), *(["bf16-folded"] if bf16 else [])]

    def candidates() -> Iterator[tuple[str, Engine, Tensor]]:
        for name in [*names, "fp32-folded"]:
            if name in PRECISIONS:
                candidate: Engine = OpenvinoEngine(folded, sample, name)
            else:
                candidate = bf16_engine(folded) if name == "bf16-folded" else fp32_engine(folded)
            yield name, candidate, candidate(sample)

    chosen = first_faithful(reference, candidates(), minimum_cosine)
    if chosen is None:
        return network, {"engine": "torch", "precision": "fp32", "minimum_cosine": 1.0}
    name, candidate, lowest = chosen
    runs = "openvino" if name in PRECISIONS else "torch"
    return candidate, {"engine": runs, "precision": name, "minimum_cosine": lowest}


def _takes_openvino(engine: EngineName, device: torch.device) -> bool:
    if engine == "auto":
        return device.type == "cpu" and is_installed()
    if engine == "openvino" and device.type != "cpu":
        raise ValueError(f"OpenVINO runs on the CPU, the network is on {device}; use --engine torch")
    return engine == "openvino"
