"""The face of an encoder: read an item, embed a batch, say which embedding space the result lies in."""

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.checkpoint import MODEL_FILE, load_card, load_weights, tensor_digest
from backbones.images import IMAGE_SUFFIXES, read_image
from backbones.inference import Engine, Precision, fastest_faithful
from backbones.iresnet import ARCHITECTURES, IResNet, build_architecture
from backbones.preprocessing import Preprocessing, stack_images

MICRO_BATCH = 64


class Backbone(ABC):
    """Any encoder of any modality. Subclass it and pass `--backbone module:function` to use your own.

    Attributes:
        name: for people.
        fingerprint: hexadecimal SHA-256 over weights and preprocessing; vectors are comparable only where it is equal.
        dim: dimension of the embeddings.
        normalized: whether they have unit length.
        suffixes: of the files `read` understands, lower case with the dot.
    """

    name: str
    fingerprint: str
    dim: int
    normalized: bool
    suffixes: frozenset[str]

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Decode one item; a ValueError says that this one cannot be read. Called from several threads."""

    @abstractmethod
    def embed(self, items: Sequence[Any]) -> np.ndarray:
        """Return the embeddings of what `read` returned, float32 [n, dim], in the same order."""

    def prepare(self, sample: Sequence[Any]) -> dict[str, Any]:
        """Get ready to embed many items like these; return facts that belong into the record of the run."""
        del sample
        return {}


class ImageBackbone(Backbone):
    """An `IResNet` with its preprocessing. Embeddings are the network's raw output, not normalised.

    Args:
        name: for people.
        network: with its weights.
        preprocessing: how images become its input.
        precision: which fast paths `prepare` may choose from; until it is called, plain float32 runs.
        micro_batch: images per pass of the network, which bounds the memory.
        device: where to run; None takes the first GPU, or else the CPU.
    """

    normalized = False
    suffixes = IMAGE_SUFFIXES

    def __init__(
        self,
        name: str,
        network: IResNet,
        preprocessing: Preprocessing,
        *,
        precision: Precision = "auto",
        micro_batch: int = MICRO_BATCH,
        device: torch.device | None = None,
    ) -> None:
        self.name = name
        self.dim = network.embedding_dim
        self.preprocessing = preprocessing
        self.fingerprint = preprocessing.fingerprint(tensor_digest(network.state_dict()))
        self.device = device or default_device()
        self.network = network.eval().to(self.device)
        self.precision: Precision = precision
        self.micro_batch = micro_batch
        self.engine: Engine = self.network

    def read(self, path: Path) -> np.ndarray:
        """Return an image file as uint8 RGB [size, size, 3]; UnreadableImage where that fails."""
        return read_image(path, self.preprocessing.size)

    @torch.inference_mode()
    def embed(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """Embed uint8 RGB images [size, size, 3] as float32 [n, dim]."""
        blocks = [np.empty((0, self.dim), dtype=np.float32)]
        for start in range(0, len(items), self.micro_batch):
            pixels = stack_images(items[start : start + self.micro_batch]).to(self.device)
            blocks.append(self.preprocessing.embed(self.engine, pixels).cpu().numpy())
        return np.concatenate(blocks)

    def prepare(self, sample: Sequence[np.ndarray]) -> dict[str, Any]:
        """Choose the fastest faithful engine on real images; return its precision and lowest cosine to float32."""
        images = self.preprocessing.normalize(stack_images(sample[: self.micro_batch]).to(self.device))
        self.engine, facts = fastest_faithful(self.network, images, precision=self.precision)
        return facts


def default_device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_image_backbone(
    arch: str,
    weights: Path,
    *,
    flip_average: bool | None = None,
    precision: Precision = "auto",
    micro_batch: int = MICRO_BATCH,
) -> ImageBackbone:
    """Load what `backbones.train` wrote.

    Args:
        arch: the architecture expected, a key of `ARCHITECTURES`.
        weights: `model.safetensors`, with `card.json` beside it; or the folder of both.
        flip_average: None keeps what the card says.
        precision: which fast paths `ImageBackbone.prepare` may choose from.
        micro_batch: images per pass of the network.

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
        shape = {"embedding_dim": int(card["embedding_dim"]), "input_size": preprocessing.size}
    except (KeyError, TypeError) as error:
        raise ValueError(f"the card beside {weights} lacks {error}; restore it or train again") from error
    if flip_average is not None:
        preprocessing = Preprocessing.from_dict(preprocessing.to_dict() | {"flip_average": flip_average})
    network = build_architecture(arch, **shape)
    load_weights(weights, network)
    return ImageBackbone(arch, network, preprocessing, precision=precision, micro_batch=micro_batch)


def load_backbone(
    spec: str,
    *,
    weights: Path | None = None,
    flip_average: bool | None = None,
    precision: Precision = "auto",
    micro_batch: int = MICRO_BATCH,
    preprocessing: Mapping[str, Any] | None = None,
) -> Backbone:
    """Load the backbone that `spec` names.

    Args:
        spec: a built-in architecture; `onnx:FILE`; or `module:function`, called without arguments, or with `weights`
            where they are given, and looked for in the working directory too.
        weights: needed by a built-in architecture.
        flip_average: None keeps what card or metadata say.
        precision: see `ImageBackbone`.
        micro_batch: images per pass of the network.
        preprocessing: of an ONNX model, fields of `Preprocessing` that override its metadata.

    Raises:
        ValueError: for a `spec` of another form, a module or function that is not there, or one that returns something
            else; and as `load_image_backbone` and `OnnxBackbone`.
    """
    kind, _, rest = spec.partition(":")
    if spec in ARCHITECTURES:
        if weights is None:
            raise ValueError(f"backbone {spec} needs weights; pass --weights DIR/{MODEL_FILE}")
        return load_image_backbone(
            spec, weights, flip_average=flip_average, precision=precision, micro_batch=micro_batch
        )
    if kind == "onnx" and rest:
        from backbones.onnx_backbone import OnnxBackbone  # onnxruntime is an extra

        overrides = dict(preprocessing or {}) | ({} if flip_average is None else {"flip_average": flip_average})
        return OnnxBackbone(Path(rest), preprocessing=overrides, micro_batch=micro_batch)
    if kind and rest:
        return _load_from_module(kind, rest, weights)
    raise ValueError(
        f"unknown backbone {spec!r}, expected one of {', '.join(ARCHITECTURES)}, onnx:FILE, or module:function"
    )


def _load_from_module(module_name: str, function_name: str, weights: Path | None) -> Backbone:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise  # the module is there, something it imports is not
        raise ValueError(
            f"backbone module {module_name!r} not found; run from its folder or install it "
            f"(built in are {', '.join(ARCHITECTURES)})"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"module {module_name!r} has no function {function_name!r}; give one that returns a Backbone")
    try:
        backbone = function() if weights is None else function(weights)
    except TypeError as error:
        arguments = "no arguments" if weights is None else "the path of the weights"
        raise ValueError(f"{module_name}:{function_name} cannot be called with {arguments} ({error})") from error
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"{module_name}:{function_name} returned {type(backbone).__name__}, expected a subclass of "
            "backbones.backbone.Backbone"
        )
    return backbone
