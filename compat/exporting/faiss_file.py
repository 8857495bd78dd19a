"""An old FAISS index that answers the new model's queries: the same file, the map before it.

What `faiss.write_index` writes of an `IndexPreTransform` is its header, its transforms, and then the index within, byte
for byte. So the old file is copied behind a new beginning, block by block: it may be larger than memory and of any kind
of index, and what it holds is neither decoded nor altered. It may be somebody else's, and so faiss looks at it only in
a process with limits, to compare the answers (`faiss_check`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from compat.exporting.contents import array_map, is_array_map
from compat.exporting.faiss_chain import LINEAR_KINDS, over_index, transform_chain
from compat.exporting.faiss_check import score_difference
from compat.exporting.written import (
    PROBES,
    Exported,
    file_parts,
    probe_vectors,
    publish,
    require_close,
)
from compat.neighbors import unit_rows
from compat.transformers.artefact import Transformer, WrongSpace
from stores.chunks import DamagedStore
from stores.galleries.card import verified_card

Unit = Literal["auto", "yes", "no"]
_HEADER = struct.Struct("<4siqqq?i")  # kind, d, rows, two unused, is trained, metric
_INNER_PRODUCT = 0
_MOST_DIM = 1 << 20


class IndexHeader(NamedTuple):
    """What an index file says of itself.

    Attributes:
        dim: Length of the vectors that it takes.
        rows: Vectors in it.
        inner_product: Whether it compares by inner product.
        metric: FAISS's number of its metric.
        metric_argument: Four bytes that belong to a metric above 1, or none.
    """

    dim: int
    rows: int
    inner_product: bool
    metric: int
    metric_argument: bytes


def export_index(
    transformer: Transformer,
    index: str | Path,
    out: str | Path,
    *,
    uncorrected: bool = False,
    unit: Unit = "auto",
    check: bool = True,
    tolerance: float = 1e-4,
) -> Exported:
    """Write an old index anew so that it takes the new model's raw queries; ids stay as they are.

    An index one dimension wider than the target space, as `compat.migrate` writes it with a hubness correction, gets
    queries with a 1 appended.

    Args:
        transformer: Of direction new-to-old and a linear family, or mlp.
        index: A FAISS index file of the old gallery's vectors, of any kind that compares floats.
        out: The file to write, not there yet or the same export.
        uncorrected: Whether to leave the transformer's hubness correction out, for an index that has no room for it.
        unit: Whether mapped queries are scaled to unit length. `auto`: where the target's vectors are, and where
            queries are compared by cosine through inner products, which changes no ranking and makes the scores of
            unit vectors cosines.
        check: Whether to search the result in a process of its own and compare: the index is read into memory once.
        tolerance: Largest difference of a score as a share of the query's largest, for nine tenths of some queries.

    Raises:
        FileExistsError: If something else is at `out`.
        FileNotFoundError: If there is no index.
        ImportError: If faiss is not installed.
        WrongSpace: If the index's card says that it is in another space.
        ValueError: If the transformer cannot stand before an index, the dimensions do not fit, or it is damaged.
    """
    _require_linear(transformer)
    index, out = Path(index), Path(out)
    card = verified_card(index)
    header = read_header(index)
    lifted = _require_fit(transformer, header, index, uncorrected)
    served = transformer if lifted else transformer.without_correction()
    if card is not None and card.space != served.served_space:
        raise WrongSpace(f"{index} is in {card.space}, this transformer serves {served.served_space}; use its own")
    target = transformer.target
    by_cosine = header.inner_product and target.similarity == "cosine"
    scaled = lifted or target.normalized or (by_cosine if unit == "auto" else unit == "yes")
    beginning = _beginning(served, header, lifted=lifted, unit=scaled)
    raw = probe_vectors(transformer.source.dim)
    mapped = served.serve_queries(raw)
    mapped = unit_rows(mapped) if scaled and not lifted else mapped

    def parts() -> Iterator[bytes]:
        yield beginning
        yield from file_parts(index)

    def compared(path: Path) -> float | None:
        if not check:
            return None
        return require_close(score_difference(path, header.rows, raw, mapped), tolerance, out)

    difference = publish(out, parts, compared)
    left_out = transformer.correction is not None and not lifted
    return Exported(
        path=out,
        format="faiss",
        family=transformer.family,
        digest=transformer.digest(),
        source_dim=transformer.source.dim,
        output_dim=header.dim,
        difference=difference,
        checked=PROBES if check else 0,
        rows=header.rows,
        notes=("the transformer's hubness correction is left out",) if left_out else (),
    )


def read_header(path: Path) -> IndexHeader:
    """What the first bytes of an index file say.

    Raises:
        DamagedStore: If they contradict themselves, or the file is cut short.
        ValueError: If it is no index of floats.
    """
    with path.open("rb") as file:
        raw = file.read(_HEADER.size + 4)
    if len(raw) < _HEADER.size + 4:
        raise DamagedStore(f"{path} has {len(raw)} bytes, which no index is stored in; restore it from a copy")
    if raw[:1] != b"I" or raw[:2] == b"IB":
        kind = "an index of bits" if raw[:2] == b"IB" else f"no FAISS index (it begins with {raw[:4]!r})"
        raise ValueError(f"{path} holds {kind}, expected an index of floats as faiss.write_index writes it")
    _, dim, rows, _, _, trained, metric = _HEADER.unpack(raw[: _HEADER.size])
    if not 0 < dim <= _MOST_DIM or rows < 0 or metric < 0 or raw[_HEADER.size - 5] > 1:
        raise DamagedStore(f"{path} is damaged: it promises {rows} x {dim} floats of metric {metric}; restore it")
    if not trained:
        raise ValueError(f"{path} is not trained, so it holds nothing to search; train and fill it first")
    return IndexHeader(dim, rows, metric == _INNER_PRODUCT, metric, raw[_HEADER.size :] if metric > 1 else b"")


def _require_linear(transformer: Transformer) -> None:
    if transformer.direction == "old-to-new":
        raise ValueError(
            "this transformer maps the gallery (old-to-new), and --format faiss puts queries through a map before an "
            "old index; run compat.migrate --target faiss:FILE instead, or fit one with --direction new-to-old"
        )
    if not is_array_map(transformer) or array_map(transformer).kind not in LINEAR_KINDS:
        raise ValueError(
            f"{transformer.family} is not linear, and FAISS's transforms are; export it with --format onnx and map "
            "queries before they search, or fit it with --direction old-to-new and run compat.migrate"
        )


def _require_fit(transformer: Transformer, header: IndexHeader, index: Path, uncorrected: bool) -> bool:
    """Whether the index holds a dimension more for the transformer's hubness correction."""
    dim = transformer.target.dim
    if transformer.correction is not None and not uncorrected:
        if header.dim == dim + 1 and header.inner_product:
            return True
        if header.dim in (dim, dim + 1):
            compared = "inner product" if header.inner_product else f"FAISS's metric {header.metric}"
            raise ValueError(
                f"the transformer's hubness correction needs an index of {dim + 1} dimensions compared by inner "
                f"product (compat.migrate --target faiss:FILE writes one), {index} has {header.dim} by {compared}; "
                "export the map without it with --uncorrected yes, or fit one with --correction 0"
            )
    if header.dim != dim:
        raise ValueError(
            f"{index} holds vectors of {header.dim} dimensions, expected {dim}: the transformer maps to "
            f"{transformer.target}; name the index of that model's vectors"
        )
    return False


def _beginning(transformer: Transformer, header: IndexHeader, *, lifted: bool, unit: bool) -> bytes:
    """What comes before the bytes of the old file."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("faiss is not installed; run `pip install 'embedding-compat[cpu]'`") from error
    chain = transform_chain(array_map(transformer, served=lifted), unit=unit)
    inner = faiss.IndexFlat(header.dim, faiss.METRIC_L2)
    ending = faiss.serialize_index(inner).tobytes()
    whole = faiss.serialize_index(over_index(chain, inner)).tobytes()
    kind, dim, _, *unused, trained, _ = _HEADER.unpack(whole[: _HEADER.size])
    first = _HEADER.pack(kind, dim, header.rows, *unused, trained, header.metric) + header.metric_argument
    return first + whole[_HEADER.size : -len(ending)]
