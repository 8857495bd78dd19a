"""Image encoders in ONNX files, run by onnxruntime."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.backbone import MICRO_BATCH, Backbone
from backbones.images import IMAGE_SUFFIXES, read_image
from backbones.preprocessing import Preprocessing, stack_images

METADATA_KEY = "preprocessing"


class OnnxBackbone(Backbone):
    """An ONNX model in one file: one float32 input [n, 3, size, size], the embedding [n, dim] as its first output.

    Its preprocessing stands in the metadata property `preprocessing`, JSON with the fields of `Preprocessing`. The
    arguments override single fields, and the size may come from the input's shape. Mean and std have no default: models
    differ, and a wrong guess gives embeddings that look right and search badly.

    Args:
        path: the model.
        preprocessing: fields that override the metadata's.
        micro_batch: images per pass; a model of fixed batch size gets its own.

    Raises:
        ImportError: where onnxruntime is not installed.
        FileNotFoundError: where there is no such file.
        ValueError: where onnxruntime cannot load it, its input is of another kind, or its preprocessing is unknown.
    """

    normalized = False
    suffixes = IMAGE_SUFFIXES

    def __init__(
        self, path: Path, *, preprocessing: Mapping[str, Any] | None = None, micro_batch: int = MICRO_BATCH
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("onnxruntime is not installed; run `pip install onnxruntime`") from error
        if not path.is_file():
            raise FileNotFoundError(f"ONNX model {path} not found; expected onnx:FILE with an existing file")
        model = path.read_bytes()
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        session_options = onnxruntime.SessionOptions()
        try:
            with TemporaryDirectory() as empty:
                # weights in files beside the model would escape the fingerprint, so none are to be found
                session_options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
                self.session = onnxruntime.InferenceSession(model, session_options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise ValueError(
                f"onnxruntime cannot load {path} ({error}); export it again, as one file with its weights inside"
            ) from error
        source = self.session.get_inputs()[0]
        if source.type != "tensor(float)" or len(source.shape) != 4 or source.shape[1] != 3:
            raise ValueError(f"{path} takes {source.type} {source.shape}, expected float32 [n, 3, height, width]")
        self.name = path.stem
        self.input_name = source.name
        self.preprocessing = _preprocessing(path, self.session, source.shape, preprocessing or {})
        self.fingerprint = self.preprocessing.fingerprint(hashlib.sha256(model).hexdigest())
        self.fixed_batch = isinstance(source.shape[0], int)
        self.micro_batch = int(source.shape[0]) if self.fixed_batch else micro_batch
        size = self.preprocessing.size
        self.dim = self._run(torch.zeros(1, 3, size, size)).shape[1]

    def read(self, path: Path) -> np.ndarray:
        """Return an image file as uint8 RGB [size, size, 3]; UnreadableImage where that fails."""
        return read_image(path, self.preprocessing.size)

    def embed(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """Embed uint8 RGB images [size, size, 3] as float32 [n, dim]."""
        blocks = [np.empty((0, self.dim), dtype=np.float32)]
        for start in range(0, len(items), self.micro_batch):
            pixels = stack_images(items[start : start + self.micro_batch])
            blocks.append(self.preprocessing.embed(self._run, pixels).numpy())
        return np.concatenate(blocks)

    def _run(self, images: Tensor) -> Tensor:
        values = images.contiguous().numpy()
        missing = self.micro_batch - len(values) if self.fixed_batch else 0
        if missing:
            values = np.concatenate([values, np.zeros((missing, *values.shape[1:]), dtype=values.dtype)])
        output = np.asarray(self.session.run(None, {self.input_name: values})[0], dtype=np.float32)
        return torch.from_numpy(output[: len(images)].reshape(len(images), -1))


def _preprocessing(path: Path, session: Any, shape: Sequence[Any], overrides: Mapping[str, Any]) -> Preprocessing:
    """Join the input's shape, the metadata and the arguments; the later win."""
    values: dict[str, Any] = {"size": shape[2]} if isinstance(shape[2], int) else {}
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}")
    try:
        values |= json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata property {METADATA_KEY} of {path} is {text!r}, expected a JSON object") from error
    values = {"flip_average": False} | values | dict(overrides)
    missing = [name for name in ("size", "mean", "std") if name not in values]
    if missing:
        raise ValueError(
            f"the preprocessing of {path} is unknown: {', '.join(missing)} found neither in its metadata property "
            f"{METADATA_KEY} nor in the options; give it (ArcFace models use mean and std 127.5 for each channel)"
        )
    return Preprocessing.from_dict(values)
