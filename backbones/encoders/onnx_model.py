"""An ONNX file loaded, and what may run it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.encoders.encoder import EngineName, Precision
from backbones.encoders.inference import first_faithful, multiplies_bf16

METADATA_KEY = "preprocessing"
CARD_KEY = "model_card"
MOST_SHOWN = 60  # characters of a property that a message repeats

Run = Callable[[dict[str, np.ndarray]], np.ndarray]


class OnnxModel:
    """An ONNX model in one file, loaded.

    Args:
        path: the file.

    Attributes:
        digest: hexadecimal SHA-256 of the file.
        inputs: its inputs' types and shapes by name; an int is a fixed length, anything else a free one.
        metadata: its metadata properties.

    Raises:
        ImportError: where onnxruntime is not installed.
        FileNotFoundError: where there is no such file.
        ValueError: where onnxruntime cannot load it.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("onnxruntime is not installed; run `pip install 'embedding-compat[onnx]'`") from error
        if not path.is_file():
            raise FileNotFoundError(f"ONNX model {path} not found; expected onnx:FILE with an existing file")
        self.path = path
        self._model = path.read_bytes()
        self.digest = hashlib.sha256(self._model).hexdigest()
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = torch.get_num_threads()
        try:
            with TemporaryDirectory() as empty:
                # weights in files beside the model would escape the fingerprint, so none are to be found
                session_options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
                self._session = onnxruntime.InferenceSession(self._model, session_options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise ValueError(
                f"onnxruntime cannot load {path} ({error}); export it again, as one file with its weights inside"
            ) from error
        self.inputs: dict[str, tuple[str, list[Any]]] = {
            each.name: (each.type, list(each.shape)) for each in self._session.get_inputs()
        }
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, values: dict[str, np.ndarray]) -> np.ndarray:
        """Return the first output for values by input name, float32."""
        return np.asarray(self._session.run(None, values)[0], dtype=np.float32)

    def facts(self, name: str) -> dict[str, Any]:
        """Return the JSON object in the metadata property `name`, empty where there is none."""
        text = self.metadata.get(name, "{}")
        try:
            return dict(json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            shown = repr(text[:MOST_SHOWN]) + ("..." if len(text) > MOST_SHOWN else "")
            raise ValueError(
                f"metadata property {name} of {self.path} is {shown}, expected a JSON object; export the model again"
            ) from error

    def compiled_by_openvino(self, hint: str) -> Run:
        """Return `run`'s counterpart in OpenVINO.

        Args:
            hint: bf16 or f32.

        Raises:
            ImportError: where OpenVINO is not installed.
        """
        from backbones.encoders.openvino import MISSING, settings

        try:
            import openvino
        except ImportError as error:
            raise ImportError(MISSING) from error
        core = openvino.Core()
        compiled: Any = core.compile_model(core.read_model(self._model), "CPU", settings(hint))
        return lambda values: np.array(compiled(values)[0], dtype=np.float32)


def fastest_faithful_run(
    model: OnnxModel, sample: dict[str, np.ndarray], *, precision: Precision, engine: EngineName
) -> tuple[Run, dict[str, Any]]:
    """Choose what runs an ONNX model: onnxruntime, or OpenVINO where asked for and its embeddings are the same.

    Args:
        model: the model.
        sample: real inputs by name.
        precision: fp32 leaves bfloat16 out; bf16 tries it on any CPU.
        engine: torch means onnxruntime, where torch cannot run the model; openvino and auto as in `fastest_faithful`.

    Returns:
        The run, and the facts of the choice: `engine`, `precision`, `minimum_cosine`.

    Raises:
        ImportError: where OpenVINO is asked for and not installed.
        ValueError: where the model's embeddings are not finite, or bf16 is asked for of onnxruntime, which has none.
    """
    from backbones.encoders.openvino import PRECISIONS, is_installed

    if precision == "bf16" and engine == "torch":
        raise ValueError(f"onnxruntime runs {model.path} in float32 only; use --engine openvino with --precision bf16")
    reference = model.run(sample)
    if not np.isfinite(reference).all():
        raise ValueError(f"the embeddings of {model.path} are not finite; export it again")
    if engine == "openvino" or (engine == "auto" and is_installed()):
        bf16 = precision == "bf16" or (precision == "auto" and multiplies_bf16(torch.device("cpu")))

        def candidates() -> Iterator[tuple[str, Run, Tensor]]:
            for name, hint in PRECISIONS.items():
                if bf16 or hint != "bf16":
                    run = model.compiled_by_openvino(hint)
                    yield name, run, torch.from_numpy(run(sample))

        chosen = first_faithful(torch.from_numpy(reference), candidates())
        if chosen is not None:
            return chosen[1], {"engine": "openvino", "precision": chosen[0], "minimum_cosine": chosen[2]}
    return model.run, {"engine": "onnxruntime", "precision": "fp32", "minimum_cosine": 1.0}
