"""Encoders of this package as ONNX files, compared with the original before they are kept.

Shapes: n items, d embedding dimension.
"""

import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones.datasets.item_sets import open_items
from backbones.encoders.encoder import Backbone
from backbones.encoders.images import ImageBackbone
from backbones.encoders.inference import fold_batchnorm
from backbones.encoders.onnx import load_onnx
from backbones.encoders.onnx_model import CARD_KEY, METADATA_KEY

SAMPLE_ITEMS = 16
SENTENCES = (
    "Short.",
    "A man is eating a piece of bread.",
    "The store keeps what was embedded, and the map between two models moves it from one space into the other.",
    "Zürich, 北京 and São Paulo are cities; 3.14159 is a number (more or less).",
    "One sentence follows another until the text is long. " * 12,
)


def write_onnx(
    backbone: Backbone, out: Path, *, data: Path | None, opset: int = 20, tolerance: float = 1e-4
) -> tuple[float, int]:
    """Write `backbone` to the file `out`, whose directory must exist, if its embeddings are the same there.

    The norms are folded first, as `fold_batchnorm` does. The first axis of inputs and outputs is open. The file is
    loaded as `onnx:FILE` would be and compared item by item, in batches of several sizes.

    Args:
        backbone: an `ImageBackbone` or a `backbones.encoders.texts.BertTextEncoder`.
        out: not there yet.
        data: items to compare on; noise or some sentences without.
        opset: version of the operators.
        tolerance: largest difference of a component, as a share of the norm of the encoder's float32 embedding.

    Returns:
        The largest difference that was found, and on how many items.

    Raises:
        ImportError: where onnx, onnxscript or onnxruntime is not installed.
        ValueError: where the encoder is of another kind, or the difference is above `tolerance`.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed; run `pip install 'embedding-compat[onnx]'`") from error
    model, metadata = _exported(backbone, opset)
    if backbone.card:
        metadata[CARD_KEY] = json.dumps(backbone.card)
    onnx.helper.set_model_props(model, metadata)
    items = _sample(backbone, data)
    temporary = out.with_name(f".{out.name}.tmp.onnx")
    try:
        onnx.save(model, temporary)
        difference = largest_difference(backbone, load_onnx(temporary), items)
        if not difference <= tolerance:
            raise ValueError(
                f"the ONNX model's embeddings differ from the encoder's by {difference:.1e} of their norm, allowed are "
                f"{tolerance:.1e}; {out} was not written; try another --opset"
            )
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return difference, len(items)


def largest_difference(backbone: Backbone, exported: Backbone, items: Sequence[Any]) -> float:
    """Return the largest difference of a component over the norm of `backbone`'s embedding, for items in any batch."""
    expected = backbone.embed(items)
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    largest = 0.0
    for size in (1, 3, len(items)):
        found = np.concatenate([exported.embed(items[start : start + size]) for start in range(0, len(items), size)])
        largest = max(largest, float(np.nan_to_num(np.abs(found - expected) / norms, nan=np.inf).max()))
    return largest


def _exported(backbone: Backbone, opset: int) -> tuple[Any, dict[str, str]]:
    """Return the ONNX model and its metadata properties."""
    batch = torch.export.Dim("n", min=1)
    if isinstance(backbone, ImageBackbone):
        size = backbone.preprocessing.size
        network = fold_batchnorm(backbone.network).cpu()
        metadata = {METADATA_KEY: json.dumps(backbone.preprocessing.to_dict())}
        return _convert(network, {"image": torch.zeros(2, 3, size, size)}, ({0: batch},), opset), metadata
    from backbones.encoders.texts import TEXT_KEY, TOKENIZER_KEY, BertTextEncoder

    if not isinstance(backbone, BertTextEncoder):
        raise ValueError(
            f"{backbone.name} is a {type(backbone).__name__}, which cannot be exported; expected a network of "
            "`backbones.train` or a text encoder of `backbones.encoders.texts`"
        )
    # pooled and normalised inside, so that nothing is left to do
    metadata = {
        TEXT_KEY: json.dumps(backbone.settings | {"pooling": "none"}),
        TOKENIZER_KEY: backbone.tokenizer_json,
    }
    axes = {0: batch, 1: torch.export.Dim("tokens", min=1, max=backbone.max_tokens)}
    inputs = {name: torch.ones(2, 24, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    return _convert(backbone.network.cpu(), inputs, (axes, axes), opset), metadata


def _convert(network: nn.Module, inputs: dict[str, Tensor], axes: tuple[Any, ...], opset: int) -> Any:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["embeddings"],  # "embedding" is what the exporter calls a node of its own
            dynamic_shapes=axes,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ValueError("torch exported nothing; use another release of torch")
    return program.model_proto


@contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress and the warnings about its own code off the terminal."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _sample(backbone: Backbone, data: Path | None) -> list[Any]:
    """Return the first readable items of `data`, or made-up ones."""
    if data is None:
        if not isinstance(backbone, ImageBackbone):
            return list(SENTENCES)
        size = backbone.preprocessing.size
        return list(np.random.default_rng(0).integers(256, size=(SAMPLE_ITEMS, size, size, 3), dtype=np.uint8))
    items: list[Any] = []
    for item in islice(open_items(data, backbone.suffixes).since(0), 4 * SAMPLE_ITEMS):
        try:
            items.append(backbone.read_item(item))
        except (ValueError, OSError):
            continue
        if len(items) == SAMPLE_ITEMS:
            break
    if not items:
        raise ValueError(f"none of the first {4 * SAMPLE_ITEMS} items of {data} is readable; give others")
    return items
