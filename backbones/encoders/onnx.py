"""Encoders in ONNX files: of images, of texts, or of arrays, run by onnxruntime or OpenVINO.

What a file encodes is told by its inputs: float32 [n, 3, height, width] are images, int64 [n, tokens] called
`input_ids` is text, any other float32 [n, ...] is arrays from `.npy` files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.datasets.decoding import stack_images
from backbones.encoders.encoder import Backbone, EngineName, Precision
from backbones.encoders.image_encoder import ImageEncoder
from backbones.encoders.images import MICRO_BATCH
from backbones.encoders.inference import pass_size
from backbones.encoders.onnx_model import CARD_KEY, METADATA_KEY, OnnxModel, Run, fastest_faithful_run
from backbones.encoders.preprocessing import Preprocessing, fill_up


def load_onnx(
    path: Path,
    *,
    preprocessing: Mapping[str, Any] | None = None,
    precision: Precision = "auto",
    engine: EngineName = "torch",
    micro_batch: int = MICRO_BATCH,
) -> Backbone:
    """Load an ONNX model as the encoder that its inputs say it is.

    Args:
        path: the model.
        preprocessing: of images, fields of `Preprocessing` that override the metadata's.
        precision: see `fastest_faithful_run`.
        engine: see `fastest_faithful_run`.
        micro_batch: items per pass, until `Backbone.prepare` is called.

    Raises:
        ImportError: where onnxruntime, or for texts tokenizers, is not installed.
        FileNotFoundError: where there is no such file.
        ValueError: where it cannot be loaded, its inputs are of another kind, its preprocessing is unknown, or one is
            given for a model of something else than images.
    """
    model = OnnxModel(path)
    kind, shape = next(iter(model.inputs.values()))
    of_texts = "input_ids" in model.inputs
    of_images = len(shape) == 4 and shape[1] == 3
    of_arrays = len(model.inputs) == 1 and kind == "tensor(float)" and len(shape) > 1 and not of_images
    if preprocessing and (of_texts or of_arrays):
        raise ValueError(f"{path} takes no images, so {', '.join(preprocessing)} of images do nothing; leave them out")
    if of_texts:
        from backbones.encoders.texts import OnnxTextEncoder

        return OnnxTextEncoder(model, precision=precision, engine=engine)
    if of_arrays:
        return OnnxArrayBackbone(model, precision=precision, engine=engine, micro_batch=micro_batch)
    return OnnxBackbone(model, preprocessing=preprocessing, precision=precision, engine=engine, micro_batch=micro_batch)


class _OneInput(Backbone):
    """What encoders of images and of arrays share: one float32 input, passes of a fixed size."""

    normalized = False

    def __init__(self, model: OnnxModel, *, precision: Precision, engine: EngineName, micro_batch: int) -> None:
        self.model = model
        self.name = model.path.stem
        self.input_name = next(iter(model.inputs))
        self.shape = model.inputs[self.input_name][1]
        self.precision = precision
        self.engine_name = engine
        self.fixed_batch = isinstance(self.shape[0], int)
        self.micro_batch = int(self.shape[0]) if self.fixed_batch else micro_batch
        self.run: Run = model.run
        self.card = model.facts(CARD_KEY) or None

    def prepare_on(self, values: np.ndarray) -> dict[str, Any]:
        """Fix the size of a pass and choose the engine on real inputs [b, ...]."""
        self.micro_batch = self.micro_batch if self.fixed_batch else pass_size(torch.device("cpu"))
        self.fixed_batch = True
        rows = np.arange(self.micro_batch) % len(values)
        self.run, facts = fastest_faithful_run(
            self.model,
            {self.input_name: values[rows]},
            precision=self.precision or "auto",
            engine=self.engine_name or "torch",
        )
        return facts

    def run_pass(self, values: np.ndarray) -> np.ndarray:
        """Run at most `micro_batch` inputs, filled up where a pass has a fixed size."""
        missing = self.micro_batch - len(values) if self.fixed_batch else 0
        full = values
        if missing:
            full = np.concatenate([values, np.zeros((missing, *values.shape[1:]), dtype=values.dtype)])
        output = self.run({self.input_name: full})
        if len(output) != len(full):
            raise ValueError(f"{self.model.path} gives {len(output)} outputs for {len(full)} items, expected one each")
        return output[: len(values)].reshape(len(values), -1)


class OnnxBackbone(ImageEncoder, _OneInput):
    """An ONNX model of images: one float32 input [n, 3, size, size], the embedding [n, dim] as its first output.

    Its preprocessing stands in the metadata property `preprocessing`, JSON with the fields of `Preprocessing`; what
    `backbones.export` writes has it. The arguments override single fields, and the size may come from the input's
    shape. Mean and std have no default: models differ, and a wrong guess gives embeddings that look right and search
    badly.

    Args:
        model: the model, or the path of its file.
        preprocessing: fields that override the metadata's.
        precision: see `fastest_faithful_run`.
        engine: see `fastest_faithful_run`.
        micro_batch: images per pass; a model of fixed batch size gets its own.

    Raises:
        ValueError: where its input is of another kind, or its preprocessing is unknown; and as `OnnxModel`.
    """

    def __init__(
        self,
        model: OnnxModel | Path,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        precision: Precision = "auto",
        engine: EngineName = "torch",
        micro_batch: int = MICRO_BATCH,
    ) -> None:
        model = OnnxModel(model) if isinstance(model, Path) else model
        super().__init__(model, precision=precision, engine=engine, micro_batch=micro_batch)
        kind = model.inputs[self.input_name][0]
        if len(model.inputs) != 1 or kind != "tensor(float)" or len(self.shape) != 4 or self.shape[1] != 3:
            found = ", ".join(f"{name}: {kind} {shape}" for name, (kind, shape) in model.inputs.items())
            raise ValueError(
                f"{model.path} takes {found}; expected one float32 input, [n, 3, height, width] for images, or int64 "
                "inputs input_ids and attention_mask for texts"
            )
        self.preprocessing = _preprocessing(model, self.shape, preprocessing or {})
        self.fingerprint = self.preprocessing.fingerprint(model.digest)
        size = self.preprocessing.size
        self.dim = self._run(torch.zeros(1, 3, size, size)).shape[1]

    def prepare(self, sample: Sequence[np.ndarray]) -> dict[str, Any]:
        """Choose the engine on real images; return it, its precision and its lowest cosine to onnxruntime's."""
        return self.prepare_on(self.preprocessing.normalize(stack_images(sample)).contiguous().numpy())

    def embed(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """Embed uint8 RGB images [size, size, 3] as float32 [n, dim]."""
        blocks = [np.empty((0, self.dim), dtype=np.float32)]
        for start in range(0, len(items), self.micro_batch):
            pixels = stack_images(items[start : start + self.micro_batch])
            full = fill_up(pixels, self.micro_batch) if self.fixed_batch else pixels
            blocks.append(self.preprocessing.embed(self._run, full)[: len(pixels)].numpy())
        return np.concatenate(blocks)

    def _run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.run_pass(images.contiguous().numpy()))


class OnnxArrayBackbone(_OneInput):
    """An ONNX model of anything that is an array: one float32 input [n, ...], the embedding as its first output.

    The items are `.npy` files, one array each, in the very form the model takes. The fingerprint is the file's digest:
    there is no preprocessing here.

    Args:
        model: the model.
        precision: see `fastest_faithful_run`.
        engine: see `fastest_faithful_run`.
        micro_batch: items per pass; a model of fixed batch size gets its own.
    """

    suffixes = frozenset({".npy"})

    def __init__(self, model: OnnxModel, *, precision: Precision, engine: EngineName, micro_batch: int) -> None:
        super().__init__(model, precision=precision, engine=engine, micro_batch=micro_batch)
        self.fingerprint = model.digest
        free = [length for length in self.shape[1:] if not isinstance(length, int)]
        if free:
            raise ValueError(
                f"{model.path} takes {self.shape}, whose lengths {', '.join(map(str, free))} are open; expected fixed "
                "ones but for the first, or a module:function that knows them"
            )
        self.dim = self.run_pass(np.zeros((1, *self.shape[1:]), dtype=np.float32)).shape[1]

    def read(self, path: Path) -> np.ndarray:
        """Return the array of an .npy file as float32; ValueError where it is damaged or not of the model's shape."""
        try:
            # mapped, so that its true shape is known before any of it is read
            array = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError):
            raise
        except Exception as error:  # the header is parsed as Python, with whatever errors that has
            raise ValueError(
                f"{path} is no .npy file ({type(error).__name__} in its header); write it again"
            ) from error
        if list(array.shape) != self.shape[1:] or array.dtype.kind not in "fiu":
            raise ValueError(f"{path} holds {array.dtype} {list(array.shape)}, expected numbers {self.shape[1:]}")
        return np.asarray(array, dtype=np.float32)

    def prepare(self, sample: Sequence[np.ndarray]) -> dict[str, Any]:
        """Choose the engine on real arrays; return it, its precision and its lowest cosine to onnxruntime's."""
        return self.prepare_on(np.stack(sample))

    def embed(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """Embed float32 arrays as float32 [n, dim]."""
        starts = range(0, len(items), self.micro_batch)
        blocks = [self.run_pass(np.stack(items[start : start + self.micro_batch])) for start in starts]
        return np.concatenate([np.empty((0, self.dim), dtype=np.float32), *blocks])


def _preprocessing(model: OnnxModel, shape: Sequence[Any], overrides: Mapping[str, Any]) -> Preprocessing:
    """Join the input's shape, the metadata and the arguments; the later win."""
    values: dict[str, Any] = {"size": shape[2]} if isinstance(shape[2], int) else {}
    values = {"flip_average": False} | values | model.facts(METADATA_KEY) | dict(overrides)
    missing = [name for name in ("size", "mean", "std") if name not in values]
    if missing:
        raise ValueError(
            f"the preprocessing of {model.path} is unknown: {', '.join(missing)} found neither in its metadata "
            f"property {METADATA_KEY} nor in the options; give it by "
            f"{', '.join(f'--preprocessing.{name}' for name in missing)} (ArcFace models: mean 127.5, std 127.5)"
        )
    return Preprocessing.from_dict(values)
