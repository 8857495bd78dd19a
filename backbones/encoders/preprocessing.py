"""How pixels become the input of a network."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to pixels before the network sees them; part of the embedding space.

    Attributes:
        size: height and width of the input in pixels.
        colour_order: of the three channels.
        mean: per channel, in pixel values 0 to 255, subtracted.
        std: per channel, in pixel values, divided by.
        flip_average: whether the embedding is the mean of those of the image and its mirror image.
    """

    size: int
    colour_order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    flip_average: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"preprocessing size is {self.size}, expected at least 1 pixel")
        if self.colour_order not in ("RGB", "BGR"):
            raise ValueError(f"preprocessing colour_order is {self.colour_order!r}, expected 'RGB' or 'BGR'")
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or not all(value > 0 for value in self.std):
            raise ValueError(
                f"preprocessing has mean {self.mean}, std {self.std}; expected three numbers each, std above 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold and `from_dict` reads."""
        return asdict(self) | {"mean": [float(v) for v in self.mean], "std": [float(v) for v in self.std]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Build from what `to_dict` returned.

        Raises:
            ValueError: for missing, unknown or impossible values.
        """
        try:
            fields: dict[str, Any] = {**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])}
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"preprocessing is {dict(values)}, expected size, colour_order, mean, std and flip_average ({error})"
            ) from error

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn uint8 RGB images [n, 3, size, size] into the network's input, float32 [n, 3, size, size]."""
        images = pixels.float()
        if self.colour_order == "BGR":
            images = images.flip(1)
        mean, std = images.new_tensor(self.mean), images.new_tensor(self.std)
        return (images - mean[:, None, None]) / std[:, None, None]

    def fingerprint(self, weights_digest: str) -> str:
        """Return a SHA-256 in hexadecimal over these settings and a digest of the weights: the space's identity."""
        settings = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(f"{weights_digest}\n{settings}".encode()).hexdigest()

    def embed(self, engine: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Pass uint8 RGB images [n, 3, size, size] through `engine`; return float32 [n, d], flip averaged if so set."""
        images = self.normalize(pixels)
        features = engine(images)
        if self.flip_average:
            features = (features + engine(images.flip(3))) / 2
        return features.float()


def fill_up(pixels: Tensor, count: int) -> Tensor:
    """Append black images to uint8 [n, 3, h, w] until there are `count`."""
    missing = count - len(pixels)
    if missing <= 0:
        return pixels
    return torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
