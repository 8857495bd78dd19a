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

import numpy as np

from compat.exporting.contents import array_map, is_array_map
from compat.exporting.faiss_chain import LINEAR_KINDS, over_index, transform_chain
from compat.exporting.faiss_check import Compared, compare_searches
from compat.exporting.written import (
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
_LEAST_KEPT, _MOSTLY_KEPT = 0.5, 0.9
"""Less of the nearest kept at unit length than the first is refused, than the second is told of."""


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
            unit vectors cosines. A linear map gives vectors of about unit length either way, and an index that
            compares by distance must hold such, which the check makes sure of.
        check: Whether to search the result in a process of its own and compare: the index is read into memory once.
        tolerance: Largest difference of a score as a share of the query's largest, for nine tenths of some queries;
            these find the same items, too, where scores are apart.

    Raises:
        FileExistsError: If something else is at `out`.
        FileNotFoundError: If there is no index.
        ImportError: If faiss is not installed.
        WrongSpace: If the index's card says that it is in another space.
        ValueError: If the transformer cannot stand before an index, the dimensions do not fit, an option would do
            nothing, the file finds other items, or the index is damaged or compares raw lengths by distance.
    """
    _require_linear(transformer)
    if uncorrected and transformer.correction is None:
        raise ValueError("this transformer has no hubness correction for --uncorrected to leave out; leave that out")
    index, out = Path(index), Path(out)
    card = verified_card(index)
    header = read_header(index)
    lifted = _require_fit(transformer, header, index, uncorrected)
    served = transformer if lifted else transformer.without_correction()
    if card is not None and card.space != served.served_space:
        raise WrongSpace(f"{index} is in {card.space}, this transformer serves {served.served_space}; use its own")
    target = transformer.target
    by_cosine = header.inner_product and target.similarity == "cosine"
    if unit == "no" and (lifted or target.normalized):
        why = "the hubness correction is for unit vectors" if lifted else "the old model's vectors are of unit length"
        raise ValueError(f"--unit no cannot be had: {why}, and so are mapped queries; leave it out")
    scaled = lifted or target.normalized or (by_cosine if unit == "auto" else unit == "yes")
    plain = array_map(served)
    # By inner product a query's length changes no ranking; by distance it does.
    by_distance = not header.inner_product
    directions = by_distance and (scaled or plain.kind == "linear")
    beginning = _beginning(served, header, lifted=lifted, unit=scaled)
    raw = probe_vectors(transformer.source.dim)
    mapped = served.serve_queries(raw)
    mapped = unit_rows(mapped) if scaled and not lifted else mapped

    def parts() -> Iterator[bytes]:
        yield beginning
        yield from file_parts(index)

    searched = Compared(None, 0)

    def compared(path: Path) -> float | None:
        nonlocal searched
        if not check:
            return None
        searched = compare_searches(path, header.rows, raw, mapped, lengths=by_distance)
        if searched.difference is None:
            return None
        _require_same_items(searched.difference, out)
        if directions:
            _require_lengths(transformer, searched, index)
        return require_close(searched.difference, tolerance, out)

    difference = publish(out, parts, compared)
    notes = ["the transformer's hubness correction is left out"] * (transformer.correction is not None and not lifted)
    if check and searched.difference is None:
        notes.append("the index is empty, or finds nothing: there was nothing to compare")
    elif directions:
        notes += _direction_notes(searched)
    elif by_distance and plain.kind == "mlp":
        notes += _raw_notes(searched)
    return Exported(
        path=out,
        format="faiss",
        family=transformer.family,
        digest=transformer.digest(),
        source_dim=transformer.source.dim,
        output_dim=header.dim,
        difference=difference,
        checked=searched.queries,
        rows=header.rows,
        notes=tuple(notes),
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
    if transformer.family == "unified":
        raise ValueError(
            "unified maps both models' vectors into a space of their own, and no old index is in it: fill a new one "
            "with the half that maps the gallery (compat.migrate --target faiss:FILE), and export the half that maps "
            "queries with --format onnx or numpy, to map them before they search"
        )
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


def _require_same_items(difference: float, out: Path) -> None:
    if difference == np.inf:
        raise ValueError(
            f"{out.name} finds other items than queries that the transformer maps: it was not written; the map may be "
            "of very unequal scales: fit it again, or map queries before they search with --format onnx"
        )


def _require_lengths(transformer: Transformer, searched: Compared, index: Path) -> None:
    if searched.kept is None or searched.kept >= _LEAST_KEPT:
        return
    other = ", or leave --unit out to map at raw length" if transformer.family in ("mlp", "identity") else ""
    raise ValueError(
        f"{index} compares by distance and holds vectors of length {searched.length:.3g} (the median), but mapped "
        f"queries are of about unit length: of what its own vectors find nearest, they find {searched.kept:.0%} at "
        f"that length; export over an index of the same vectors at unit length{other}"
    )


def _direction_notes(searched: Compared) -> list[str]:
    if searched.kept is None:
        return [
            "queries come out at about unit length and the index compares by distance: it has to hold unit vectors, "
            "which was not looked at"
        ]
    if searched.kept < _MOSTLY_KEPT:
        return [
            "queries come out at about unit length: of what the index's own vectors find nearest, they find "
            f"{searched.kept:.0%} at that length; an index of unit vectors loses nothing"
        ]
    return []


def _raw_notes(searched: Compared) -> list[str]:
    if searched.kept is None or searched.kept >= _MOSTLY_KEPT:
        return []
    return [
        f"the index compares by distance and holds vectors of length {searched.length:.3g} (the median): it finds what "
        "mlp maps to about that length, which a short training does not reach; look at what compat.transform gives"
    ]


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
