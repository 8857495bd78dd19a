"""Writing a transformer as one ONNX file, compared with the original before it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from compat.exporting.array_file import correction_notes
from compat.exporting.contents import array_map, export_card, is_array_map, require_served
from compat.exporting.onnx_graph import INPUT, GraphBuilder, add_array_map, add_msresnet
from compat.exporting.written import (
    PROBES,
    Exported,
    probe_vectors,
    publish,
    relative_difference,
    require_close,
)
from compat.transformers.artefact import Transformer
from compat.transformers.msresnet import MSResNet

METADATA_KEY = "transformer"


def export_onnx(transformer: Transformer, out: str | Path, *, serve: bool = False, tolerance: float = 1e-4) -> Exported:
    """Write a transformer as an ONNX file, if it gives there what the transformer gives.

    Input `vectors` float32 [n, s] and output `mapped` float32 [n, t], any n; of unit length where the target space is.
    The metadata property `transformer` is JSON: family, direction, spaces, the transformer's digest. The operators are
    of opset 17, and the same transformer gives the same bytes.

    Args:
        transformer: Of any family.
        out: A .onnx file, not there yet or the same export.
        serve: Whether queries come out as an index with the transformer's hubness correction takes them: unit length
            and a 1.
        tolerance: Largest difference of a vector as a share of its length.

    Returns:
        What was written. The difference is over vectors of many lengths, alone and in batches of several sizes.

    Raises:
        FileExistsError: If something else is at `out`.
        ImportError: If onnx or onnxruntime is not installed.
        ValueError: If the family is not known here, there is no correction to `serve`, or the difference is above
            `tolerance`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed; run `pip install 'embedding-compat[onnx]'`") from error
    if serve:
        require_served(transformer)
    out, card = Path(out), export_card(transformer, served=serve)
    content = _content(transformer, card)
    probes = probe_vectors(transformer.source.dim)
    expected = transformer.serve_queries(probes) if serve else transformer.transform(probes)

    def check(path: Path) -> float:
        return require_close(_difference(path, probes, expected), tolerance, out)

    difference = publish(out, lambda: [content], check)
    return Exported(
        path=out,
        format="onnx",
        family=transformer.family,
        digest=card["digest"],
        source_dim=probes.shape[1],
        output_dim=expected.shape[1],
        difference=difference,
        checked=PROBES,
        notes=correction_notes(transformer, serve),
    )


def _content(transformer: Transformer, card: dict[str, Any]) -> bytes:
    graph, network = GraphBuilder(), transformer.network
    if isinstance(network, MSResNet):
        value = add_msresnet(graph, network, INPUT)
    elif is_array_map(transformer):
        value = add_array_map(graph, array_map(transformer), INPUT)
    else:
        raise ValueError(f"the family {transformer.family} ({type(network).__name__}) has no ONNX form here")
    if card["unit"]:
        value = graph.unit(value)
    if card["served"]:
        value = graph.pad(value, 1, 1.0)
    dims = transformer.source.dim, transformer.target.dim + card["served"]
    model = graph.model(value, dims, {METADATA_KEY: json.dumps(card, sort_keys=True)})
    return model.SerializeToString(deterministic=True)


def _difference(path: Path, probes: np.ndarray, expected: np.ndarray) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as many threads as there are cores would wait for each other by spinning
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for size in (1, 3, len(probes)):
        blocks = [probes[start : start + size] for start in range(0, len(probes), size)]
        found = np.concatenate([np.asarray(session.run(None, {INPUT: block})[0]) for block in blocks])
        largest = max(largest, relative_difference(found, expected))
    return largest
