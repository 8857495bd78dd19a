"""What a network costs, counted and as published.

A multiply-add is one multiplication and one addition; FLOPs here are twice the multiply-adds. Counted are convolutions
and matrix products, as torch's own counter does; norms, activations and sums are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.networks.iresnet import build_architecture

PUBLISHED_SIZE = 112
"""Side of the images, in pixels, that published figures hold for."""


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """The cost of one network for one image.

    Attributes:
        name: of the architecture.
        input_size: side of the image, in pixels.
        parameters: how many numbers are learnt.
        multiply_adds: of one image.
    """

    name: str
    input_size: int
    parameters: int
    multiply_adds: int

    @property
    def flops(self) -> int:
        """Multiplications and additions counted separately: 2 x multiply-adds."""
        return 2 * self.multiply_adds


@dataclass(frozen=True, kw_only=True)
class PublishedCost:
    """A figure that others report, for images of `PUBLISHED_SIZE` pixels.

    Attributes:
        source: where.
        operations: in units of 10^9.
        unit: whether those are multiply-adds, or multiplications and additions counted separately (FLOPs).
        parameters: in units of 10^6, where reported.
    """

    source: str
    operations: float
    unit: Literal["multiply-adds", "FLOPs"]
    parameters: float | None = None

    def operations_difference(self, cost: NetworkCost) -> float:
        """Return our count over the published one, less 1."""
        counted = cost.flops if self.unit == "FLOPs" else cost.multiply_adds
        return counted / (self.operations * 1e9) - 1.0

    def parameters_difference(self, cost: NetworkCost) -> float | None:
        """Return our count over the published one, less 1; None where none is published."""
        return None if self.parameters is None else cost.parameters / (self.parameters * 1e6) - 1.0


# The 6.330 G of ResNet50 are ours to the last digit once norms count as two operations per element and slopes as one.
# The model zoo counts parameters after folding: those of ours are then 34.130 and 65.132 million.
PUBLISHED: Mapping[str, tuple[PublishedCost, ...]] = {
    "iresnet34": (
        PublishedCost(
            source="Open Model Zoo, face-recognition-resnet34-arcface (LResNet34E-IR of InsightFace)",
            parameters=34.129,
            operations=8.934,
            unit="FLOPs",
        ),
    ),
    "iresnet50": (
        PublishedCost(
            source="a report on ArcFace backbones that compares ResNet50 and EfficientNet-B3",
            parameters=43.590,
            operations=6.330,
            unit="multiply-adds",
        ),
    ),
    "iresnet100": (
        PublishedCost(
            source='Liu et al., "Towards Flops-constrained Face Recognition", ICCV workshops 2019 (R100)',
            operations=24.22,
            unit="FLOPs",
        ),
        PublishedCost(
            source="Open Model Zoo, face-recognition-resnet100-arcface (LResNet100E-IR of InsightFace)",
            parameters=65.131,
            operations=24.209,
            unit="FLOPs",
        ),
    ),
    "irse100": (PublishedCost(source="README of cavaface.pytorch (IR-SE-100)", operations=24.18, unit="FLOPs"),),
}


def network_cost(name: str, *, input_size: int = PUBLISHED_SIZE, embedding_dim: int = 512) -> NetworkCost:
    """Count the cost of an architecture without making its weights: on torch's meta device, in seconds.

    Raises:
        ValueError: for an unknown name or too small an input size; see `build_architecture`.
    """
    with torch.device("meta"):
        network = build_architecture(name, embedding_dim=embedding_dim, input_size=input_size).eval()
        image = torch.empty(1, 3, input_size, input_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return NetworkCost(
        name=name,
        input_size=input_size,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
    )
