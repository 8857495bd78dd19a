"""The encoders that `--backbone` can name, loaded."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbones.checkpoint import MODEL_FILE
from backbones.encoders.encoder import Backbone, EngineName, Precision
from backbones.encoders.images import MICRO_BATCH, load_image_backbone
from backbones.networks.iresnet import ARCHITECTURES


def load_backbone(
    spec: str,
    *,
    weights: Path | None = None,
    flip_average: bool | None = None,
    precision: Precision = "auto",
    engine: EngineName = "torch",
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
        engine: see `ImageBackbone`; an ONNX file runs in onnxruntime, or in OpenVINO where asked for.
        micro_batch: images per pass of the network.
        preprocessing: of an ONNX model of images, fields of `Preprocessing` that override its metadata.

    Raises:
        ValueError: for a `spec` of another form, a module or function that is not there, or one that returns something
            else; for an option that the backbone has no use for; and as `load_image_backbone` and `load_onnx`.
    """
    kind, _, rest = spec.partition(":")
    if preprocessing and not (kind == "onnx" and rest):
        raise ValueError(f"{', '.join(preprocessing)} of images can be given for onnx:FILE only; {spec} knows its own")
    if spec in ARCHITECTURES:
        if weights is None:
            raise ValueError(f"backbone {spec} needs weights; pass --weights DIR/{MODEL_FILE}")
        return load_image_backbone(
            spec, weights, flip_average=flip_average, precision=precision, engine=engine, micro_batch=micro_batch
        )
    if kind == "onnx" and rest:
        from backbones.encoders.onnx import load_onnx  # onnxruntime is an extra

        if weights is not None:
            raise ValueError(f"{rest} has its weights inside; leave --weights {weights} out")
        overrides = dict(preprocessing or {}) | ({} if flip_average is None else {"flip_average": flip_average})
        return load_onnx(
            Path(rest), preprocessing=overrides, precision=precision, engine=engine, micro_batch=micro_batch
        )
    if kind and rest:
        if flip_average is not None:
            raise ValueError(f"{spec} sees to mirror images itself; leave --flip-average out")
        backbone = _load_from_module(kind, rest, weights)
        _set_choices(backbone, spec, precision, engine)
        return backbone
    raise ValueError(
        f"unknown backbone {spec!r}, expected one of {', '.join(ARCHITECTURES)}, onnx:FILE, or module:function"
    )


def _set_choices(backbone: Backbone, spec: str, precision: Precision, engine: EngineName) -> None:
    """Hand the choices to an encoder of one's own, where it has them."""
    if backbone.precision is not None:
        backbone.precision = precision
    elif precision != "auto":
        raise ValueError(f"{spec} chooses its precision itself; leave --precision {precision} out")
    if backbone.engine_name is not None:
        backbone.engine_name = engine
    elif engine == "openvino":
        raise ValueError(f"{spec} chooses its engine itself; leave --engine {engine} out")


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
            "backbones.encoders.encoder.Backbone"
        )
    return backbone
