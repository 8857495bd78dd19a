"""What can be told of a migration at once: before a map is loaded, a row is read or anything is made."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from compat.migration.state import FILE_SCHEMES, identity, same_gallery, state_folder
from stores.galleries import (
    GALLERIES,
    lance_location,
    locate,
    open_source,
    postgres_location,
    qdrant_location,
    redact,
)
from stores.galleries.card import partial_path
from stores.galleries.gallery import PartsEngine

SOURCES = ("zarr", "npy", "parquet", "arrow", "hdf5", "zarr+array")
"""Schemes of galleries that are read from any row on without those before it, and that stay as they are meanwhile."""
SECONDS_TO_CONNECT = 10

_LOCATIONS: dict[str, Callable[[str], object]] = {
    "postgresql": postgres_location.parse_location,
    "lance": lance_location.parse_location,
    "qdrant": qdrant_location.parse_location,
}
"""What takes a location with options apart, and says so of options that there are not."""


def require_possible(
    source: str,
    target: str,
    *,
    state: str | Path | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> None:
    """Make sure that the addresses can be read, and that the target is not another gallery's.

    Args:
        source: URI of the old gallery.
        target: URI of the gallery to write.
        state: Folder of the migration's state; None for the usual one.
        workers: Processes that are to copy.
        scheduler: Address of a dask scheduler whose workers are to.

    Raises:
        OSError: If the target's server cannot be reached.
        ValueError: If an address is none, the target holds another gallery, or only one process can copy.
    """
    require_locations(source, target)
    require_apart(source, target)
    if workers > 1 or scheduler is not None:
        require_parts(source, target)
    if state_folder(source, target, state).begun:
        return
    try:
        written = open_source(target)
    except (FileNotFoundError, ValueError):  # nothing, or unfinished, or a table of somebody's own: writing tells
        return
    if not same_gallery(written.provenance.get("migrated_from"), source):
        raise ValueError(
            f"nothing was written: target: {redact(target)} holds another gallery, which is left alone; name another "
            "target"
        )


def require_locations(*uris: str) -> None:
    """Make sure that addresses have the form, and the options, that their engines take.

    Raises:
        ValueError: If not.
        ImportError: If what an engine needs is not installed.
    """
    for scheme, location in map(locate, uris):
        if scheme in _LOCATIONS:
            _LOCATIONS[scheme](location)


def require_apart(source: str, target: str) -> None:
    """Make sure that a gallery is not to be written over itself.

    Raises:
        ValueError: If source and target are the same place.
    """
    if locate(source) == locate(target) or identity(source) == identity(target):
        raise ValueError(
            f"source and target are both {redact(source)}; the old gallery is never overwritten, name another"
        )


def require_parts(source: str, target: str) -> None:
    """Make sure that many processes can read a source and write a target.

    Raises:
        ValueError: If one process only reads or writes such a gallery.
    """
    if locate(source)[0] not in SOURCES:
        raise ValueError(
            f"{redact(source)} is read by one process only, as it may change or is read from its beginning on; "
            f"use --workers 1 and no --scheduler (several processes read {', '.join(SOURCES)})"
        )
    parts_place(target)


def parts_place(target: str) -> tuple[str, str]:
    """The engine that takes a gallery's parts, and where: a file's are gathered in its hidden store.

    Raises:
        ValueError: If one process only writes such a gallery.
    """
    scheme, location = locate(target)
    if isinstance(GALLERIES[scheme], PartsEngine):
        return scheme, location
    if scheme in FILE_SCHEMES - {"zarr+array"}:
        return "zarr", str(partial_path(Path(location)))
    raise ValueError(f"{redact(target)} is written by one process only; use --workers 1 and no --scheduler")


def require_scheduler(address: str, *, seconds: float = SECONDS_TO_CONNECT) -> None:
    """Wait until somebody answers at the address of a dask scheduler, and say so on standard error.

    Args:
        address: Such as tcp://host:8786; one without host and port is left to dask.
        seconds: How long to wait at most.

    Raises:
        OSError: If nobody does.
    """
    place = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError:
        host = port = None
    if place.scheme not in ("tcp", "tls", "ws", "wss") or host is None or port is None:
        return
    end = time.monotonic() + seconds
    told = False
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + 0.5 > end:
                raise OSError(
                    f"no dask scheduler answers at {address} ({error.strerror or error}); start one with `dask "
                    "scheduler`, or correct --scheduler"
                ) from None
        if not told:
            print(f"waiting for {address}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.5)
