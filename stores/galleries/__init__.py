"""Galleries in the formats and engines people keep them in, read and written in bounded memory.

A gallery is named by a URI: `scheme:location`, where the scheme is a key of `GALLERIES`, or a bare path, which is a
file of the format its ending names in `ENDINGS`, else a Zarr store; a folder that is read may also be a Zarr array or
group that somebody else made. A new engine is one module with the two functions of `GalleryEngine`, and one line here.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import polars as pl

from stores.galleries import (
    arrow,
    csv_json,
    csv_table,
    faiss_index,
    hdf5,
    lance,
    npy,
    npz,
    parquet,
    postgres,
    qdrant,
    zarr_array,
    zarr_store,
)
from stores.galleries.annotated import AnnotatedSource
from stores.galleries.gallery import GalleryEngine, GallerySource, GalleryTarget
from stores.galleries.postgres_location import public_uri, without_secrets
from stores.space import EmbeddingSpace

__all__ = [
    "CHANGING",
    "ENDINGS",
    "GALLERIES",
    "GallerySource",
    "GalleryTarget",
    "digest",
    "locate",
    "open_source",
    "open_target",
    "redact",
]

GALLERIES: dict[str, GalleryEngine] = {
    "zarr": zarr_store,
    "npy": npy,
    "parquet": parquet,
    "faiss": faiss_index,
    "npz": npz,
    "arrow": arrow,
    "csv": csv_table,
    "csv+json": csv_json,
    "hdf5": hdf5,
    "zarr+array": zarr_array,
    "postgresql": postgres,
    "lance": lance,
    "qdrant": qdrant,
}
"""The engines by the scheme of their URIs."""

CHANGING = ("postgresql", "lance", "qdrant")
"""Schemes of the engines that others write to meanwhile, whose `digest` is therefore but a name."""

ENDINGS = {
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".faiss": "faiss",
    ".index": "faiss",
    ".zip": "zarr+array",
}
"""Which scheme a bare path with such an ending stands for."""


def locate(uri: str) -> tuple[str, str]:
    """Split a gallery's URI into its scheme and the location within that engine.

    Raises:
        ValueError: If the scheme is unknown or the location empty.
    """
    named = re.fullmatch(r"([A-Za-z][A-Za-z0-9+]*):(.*)", uri, flags=re.DOTALL)
    scheme, location = named.groups() if named else (ENDINGS.get(PurePath(uri).suffix.lower(), "zarr"), uri)
    scheme = "postgresql" if scheme == "postgres" else scheme
    if scheme not in GALLERIES:
        raise ValueError(
            f"unknown kind of gallery {scheme!r} in {redact(uri)!r}, expected one of {', '.join(GALLERIES)}; "
            "write ./ before a path that contains a colon"
        )
    if not location:
        raise ValueError(f"the gallery {uri!r} names no place; write {scheme}:PATH")
    return scheme, location


def redact(uri: str) -> str:
    """A gallery's URI without passwords and keys in it, for messages, provenance and logs; other URIs unchanged."""
    if re.match(r"postgres(ql)?:(?!//)", uri):  # nobody knows where in it a password may be
        return uri.partition(":")[0] + ":..."
    if re.match(r"[A-Za-z][A-Za-z0-9+]*:([A-Za-z][A-Za-z0-9+.-]*:)?//", uri):
        return public_uri(uri)
    place, mark, query = uri.partition("?")
    if not mark or place.partition(":")[0] not in CHANGING:  # a file's name may hold a question mark
        return uri
    return place + (f"?{kept}" if (kept := without_secrets(query)) else "")


def open_source(
    uri: str,
    *,
    space: EmbeddingSpace | None = None,
    items: pl.DataFrame | None = None,
    labels: pl.Series | None = None,
) -> GallerySource:
    """Open a gallery for reading.

    Args:
        uri: Where it is.
        space: What the vectors are, where the format cannot tell; must agree where it can.
        items: An item table [n rows, `item_id` and further columns] to use instead of the gallery's own.
        labels: Values [n] to set as the column `label`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged or unfinished, or space, items or labels do not fit it.
    """
    scheme, location = _locate_source(uri)
    source = GALLERIES[scheme].open_source(location)
    if space is None and items is None and labels is None:
        return source
    return AnnotatedSource(source, space=space, items=items, labels=labels)


def digest(uri: str) -> str:
    """Digest over the vectors and ids of a gallery, hexadecimal: whether it is still what it was.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the scheme is unknown.
    """
    scheme, location = _locate_source(uri)
    return GALLERIES[scheme].digest(location)


def _locate_source(uri: str) -> tuple[str, str]:
    scheme, location = locate(uri)
    if scheme == "zarr" and zarr_array.is_zarr_array(Path(location)):
        return "zarr+array", location
    return scheme, location


def open_target(uri: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> GalleryTarget:
    """Begin a gallery, or go on with one that an interrupted run with the same space and provenance left.

    The target of a run that came to its end is `finished` and takes no more rows.

    Args:
        uri: Where it will be.
        space: What the vectors are.
        provenance: JSON values that say where the vectors come from, the same in every run of the same work.

    Raises:
        FileExistsError: If something else is there.
        StoreLocked: If another process is writing there.
        ValueError: If what is there is damaged.
    """
    scheme, location = locate(uri)
    return GALLERIES[scheme].open_target(location, space, provenance)
