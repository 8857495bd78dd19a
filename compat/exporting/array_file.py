"""Writing a transformer as a .npz file of plain arrays; `compat.exporting.arrays` reads it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from compat.exporting.arrays import HIDDEN_KINDS, UNIFIED_BLOCKS, ArrayMap, load_map
from compat.exporting.contents import array_map, require_served
from compat.exporting.written import (
    PROBES,
    Exported,
    probe_vectors,
    publish,
    relative_difference,
    require_close,
)
from compat.transformers.artefact import Transformer

_UNIT = "{0} = {0} / np.linalg.norm({0}, axis=1, keepdims=True)"


def export_arrays(
    transformer: Transformer, out: str | Path, *, serve: bool = False, tolerance: float = 1e-4
) -> Exported:
    """Write a transformer as arrays that NumPy alone reads and applies, if they give what the transformer gives.

    Args:
        transformer: Of any family but msresnet.
        out: A .npz file, not there yet or the same export.
        serve: Whether queries come out as an index with the transformer's hubness correction takes them.
        tolerance: Largest difference of a vector as a share of its length.

    Raises:
        FileExistsError: If something else is at `out`.
        ValueError: If the family has no such form, there is no correction to `serve`, or the difference is above
            `tolerance`.
    """
    if serve:
        require_served(transformer)
    out, mapped = Path(out), array_map(transformer, served=serve)
    content = _npz(mapped)
    probes = probe_vectors(mapped.source_dim)
    expected = transformer.serve_queries(probes) if serve else transformer.transform(probes)

    def check(path: Path) -> float:
        return require_close(relative_difference(load_map(path)(probes), expected), tolerance, out)

    difference = publish(out, lambda: [content], check)
    return Exported(
        path=out,
        format="numpy",
        family=transformer.family,
        digest=transformer.digest(),
        source_dim=mapped.source_dim,
        output_dim=mapped.output_dim,
        difference=difference,
        checked=PROBES,
        notes=correction_notes(transformer, serve),
        recipe=recipe(mapped, out),
    )


def correction_notes(transformer: Transformer, serve: bool) -> tuple[str, ...]:
    """What to tell of a hubness correction that the file leaves out or counts on."""
    if transformer.correction is None:
        return ()
    if serve:
        return ("queries come out with a 1 appended: search an index that compat.migrate wrote, by inner product",)
    return ("the transformer's hubness correction is not part of this file; --serve yes is for an index that has it",)


def recipe(mapped: ArrayMap, path: Path) -> str:
    """Python that maps `queries`, floats [n, s], to `mapped` with NumPy alone."""
    lines = ["import numpy as np", f"map_ = np.load({path.name!r})"]
    if mapped.kind == "identity":
        lines.append(f"mapped = np.zeros((len(queries), {mapped.target_dim}), np.float32)")
        kept = min(mapped.source_dim, mapped.target_dim)
        lines.append(f"mapped[:, :{kept}] = queries[:, :{kept}]")
    elif mapped.kind == "mlp":
        lines.append('mapped = queries @ map_["weight"] + map_["bias"]')
    else:
        lines.append("x = queries / np.linalg.norm(queries, axis=1, keepdims=True)")
        if mapped.kind in HIDDEN_KINDS:
            lines.append("from math import erf, sqrt")
        if mapped.kind == "residual_mlp":
            lines += [
                f'h = {mapped.source_dim} ** 0.5 * x @ map_["hidden_weight"] + map_["hidden_bias"]',
                "h = h * (1 + np.vectorize(erf)(h / sqrt(2))) / 2",
            ]
        if mapped.tensors["centre"].any():
            lines += ['x = x - map_["centre"]', _UNIT.format("x")]
        lines.append('mapped = x @ map_["weight"] + map_["bias"]')
        if mapped.kind == "residual_mlp":
            lines[-1] += ' + h @ map_["output_weight"]'
        if mapped.kind == "unified":
            lines += [
                _UNIT.format("mapped") + f" * {mapped.target_dim} ** 0.5",
                f"for i in range({UNIFIED_BLOCKS}):",
                '    h = mapped @ map_[f"hidden_weight_{i}"] + map_[f"hidden_bias_{i}"]',
                '    mapped = mapped + h * (1 + np.vectorize(erf)(h / sqrt(2))) / 2 @ map_[f"output_weight_{i}"]',
            ]
    if mapped.unit:
        lines.append(_UNIT.format("mapped"))
    if mapped.served:
        lines.append("mapped = np.hstack([mapped, np.ones((len(mapped), 1))])")
    return "\n".join(lines)


def _npz(mapped: ArrayMap) -> bytes:
    buffer = io.BytesIO()
    card = np.frombuffer(json.dumps({**mapped.card, "kind": mapped.kind}, sort_keys=True).encode(), np.uint8)
    arrays: dict[str, Any] = {"card": card, **mapped.tensors}
    np.savez(buffer, **arrays)  # of bytes and floats: there is nothing to pickle
    return buffer.getvalue()
