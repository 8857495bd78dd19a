"""Image networks that `backbones.train` wrote, as encoders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones.checkpoint import MODEL_FILE, load_card, load_weights, tensor_digest
from backbones.datasets.decoding import stack_images
from backbones.encoders.adabn import NormStatistics, adapt_norms, spooled_bytes
from backbones.encoders.encoder import EngineName, Precision
from backbones.encoders.image_encoder import ImageEncoder
from backbones.encoders.inference import Engine, default_device, fastest_faithful, pass_size
from backbones.encoders.preprocessing import Preprocessing, fill_up
from backbones.networks.iresnet import IResNet, build_architecture

MICRO_BATCH = 64


class ImageBackbone(ImageEncoder):
    """An `IResNet` with its preprocessing. Embeddings are the network's raw output, not normalised.

    Args:
        name: for people.
        network: with its weights.
        preprocessing: how images become its input.
        precision: which fast paths `prepare` may choose from; until it is called, plain float32 runs.
        engine: what may run the network; see `fastest_faithful`.
        micro_batch: images per pass of the network until `prepare` is called, which bounds the memory. From then on a
            pass holds `pass_size(device)` images, filled up with black ones: its kernels then round alike for any
            image in any company, so that embeddings do not depend on how many are asked for at a time.
        device: where to run; None takes the first GPU, or else the CPU.
        card: the model card.
    """

    normalized = False

    def __init__(
        self,
        name: str,
        network: IResNet,
        preprocessing: Preprocessing,
        *,
        precision: Precision = "auto",
        engine: EngineName = "torch",
        micro_batch: int = MICRO_BATCH,
        device: torch.device | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.dim = network.embedding_dim
        self.preprocessing = preprocessing
        self.fingerprint = preprocessing.fingerprint(tensor_digest(network.state_dict()))
        self.device = device or default_device()
        self.network = network.eval().to(self.device)
        self.precision = precision
        self.engine_name = engine
        self.micro_batch = micro_batch
        self.fixed_passes = False
        self.engine: Engine = self.network
        self.card = card

    @torch.inference_mode()
    def embed(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """Embed uint8 RGB images [size, size, 3] as float32 [n, dim]."""
        blocks = [np.empty((0, self.dim), dtype=np.float32)]
        for start in range(0, len(items), self.micro_batch):
            pixels = stack_images(items[start : start + self.micro_batch])
            full = fill_up(pixels, self.micro_batch) if self.fixed_passes else pixels
            embeddings = self.preprocessing.embed(self.engine, full.to(self.device))
            blocks.append(embeddings[: len(pixels)].cpu().numpy())
        return np.concatenate(blocks)

    def prepare(self, sample: Sequence[np.ndarray]) -> dict[str, Any]:
        """Choose the fastest faithful engine on real images.

        Returns:
            The engine, its precision, and its lowest cosine to the network's own float32 embeddings.
        """
        self.micro_batch, self.fixed_passes = pass_size(self.device), True
        rows = torch.arange(self.micro_batch) % min(len(sample), self.micro_batch)  # a short sample is repeated
        pixels = stack_images(sample[: self.micro_batch])[rows]
        images = self.preprocessing.normalize(pixels.to(self.device))
        self.engine, facts = fastest_faithful(
            self.network, images, precision=self.precision or "auto", engine=self.engine_name or "torch"
        )
        return facts

    def adapt_norms(self, batches: Iterable[Sequence[np.ndarray]]) -> NormStatistics:
        """Re-estimate the mean and variance of every norm on target images (AdaBN); see `backbones.encoders.adabn`.

        The fingerprint is then that of the new statistics: an adapted network has an embedding space of its own.

        Args:
            batches: uint8 RGB images [size, size, 3], the same ones in the same order each time it is iterated over.
        """
        statistics = adapt_norms(self._steps(), _Inputs(batches, self.preprocessing, self.device))
        self.fingerprint = self.preprocessing.fingerprint(tensor_digest(self.network.state_dict()))
        self.engine, self.fixed_passes = self.network, False
        return statistics

    def adaptation_bytes(self) -> int:
        """Return how much temporary disk `adapt_norms` takes for each image."""
        size = self.preprocessing.size
        passes = 2 if self.preprocessing.flip_average else 1
        return passes * spooled_bytes(self._steps(), torch.zeros(1, 3, size, size, device=self.device))

    def _steps(self) -> list[nn.Module]:
        network = self.network
        units = (unit for stage in network.stages.children() for unit in stage.children())
        return [network.stem, *units, network.head]


class _Inputs:
    """A network's inputs for images, and for their mirror images where it will see those too; iterated over anew."""

    def __init__(
        self, batches: Iterable[Sequence[np.ndarray]], preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self.batches = batches
        self.preprocessing = preprocessing
        self.device = device

    def __iter__(self) -> Iterator[Tensor]:
        for images in self.batches:
            for start in range(0, len(images), MICRO_BATCH):
                pixels = stack_images(images[start : start + MICRO_BATCH]).to(self.device)
                normalized = self.preprocessing.normalize(pixels)
                yield normalized
                if self.preprocessing.flip_average:
                    yield normalized.flip(3)


def load_image_backbone(
    arch: str,
    weights: Path,
    *,
    flip_average: bool | None = None,
    precision: Precision = "auto",
    engine: EngineName = "torch",
    micro_batch: int = MICRO_BATCH,
) -> ImageBackbone:
    """Load what `backbones.train` wrote.

    Args:
        arch: the architecture expected, a key of `ARCHITECTURES`.
        weights: `model.safetensors`, with `card.json` beside it; or the folder of both.
        flip_average: None keeps what the card says.
        precision: which fast paths `ImageBackbone.prepare` may choose from.
        engine: what may run the network.
        micro_batch: images per pass of the network, until `ImageBackbone.prepare` is called.

    Raises:
        FileNotFoundError: where weights or card are missing.
        ValueError: where the card names another architecture, or a file is damaged or does not fit.
    """
    weights = weights / MODEL_FILE if weights.is_dir() else weights
    if not weights.is_file():
        raise FileNotFoundError(f"weights {weights} not found; expected the {MODEL_FILE} that `backbones.train` wrote")
    card = load_card(weights.parent)
    if card.get("arch") != arch:
        raise ValueError(f"{weights} holds {card.get('arch')!r}, expected {arch!r}; pass --backbone {card.get('arch')}")
    try:
        preprocessing = Preprocessing.from_dict(card["preprocessing"])
        embedding_dim = int(card["embedding_dim"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the card beside {weights} lacks {error}; restore it or train again") from error
    if flip_average is not None:
        preprocessing = Preprocessing.from_dict(preprocessing.to_dict() | {"flip_average": flip_average})
    network = build_architecture(arch, embedding_dim=embedding_dim, input_size=preprocessing.size)
    load_weights(weights, network)
    return ImageBackbone(
        arch, network, preprocessing, precision=precision, engine=engine, micro_batch=micro_batch, card=card
    )
