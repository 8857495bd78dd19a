"""Where a gallery in Qdrant is, and reaching it without ever telling the key.

A location is what follows `qdrant:` in `qdrant:FOLDER/COLLECTION`, Qdrant's embedded mode in a folder of this machine,
or in `qdrant:https://host:6333/COLLECTION`, a server. The key of a server is taken from QDRANT_API_KEY or `?api_key=`.
"""

from __future__ import annotations

import fcntl
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from stores.chunks import DamagedStore
from stores.durable import StoreLocked
from stores.galleries.missing import missing
from stores.galleries.qdrant_pickles import require_harmless

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_KEY = "QDRANT_API_KEY"
_REFUSED = frozenset('<>:"/\\|?*')
_SHAPE = "expected FOLDER/COLLECTION or https://host:6333/COLLECTION"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LOCAL_NOTE = (
    "Qdrant's embedded mode flushes the disk for every row, holds everything in memory and lets one process in; use a "
    "server beyond a few thousand rows"
)


@dataclass(frozen=True, kw_only=True)
class QdrantLocation:
    """A collection.

    Attributes:
        place: Folder of the embedded mode, or URL of the server.
        collection: Name of the collection, or of an alias.
        id: Payload field of the item ids, of somebody else's collection.
        api_key: Key of the server; never shown.
    """

    place: str
    collection: str
    id: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"qdrant:{self.public}"

    @property
    def public(self) -> str:
        """The location without its key."""
        return f"{self.place}/{self.collection.replace('%', '%25')}"

    @property
    def folder(self) -> Path | None:
        """The folder of the embedded mode; None of a server."""
        return None if "://" in self.place else Path(self.place)

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever uses the place should know, a line each."""
        if self.folder is not None:
            return (_LOCAL_NOTE,)
        exposed = self.api_key and self.place.startswith("http://") and urlsplit(self.place).hostname not in _LOOPBACK
        return (f"the key goes to {self.place} unencrypted; use https:// beyond a network of your own",) * bool(exposed)

    @property
    def server(self) -> str:
        """What tells one folder or server from another."""
        return self.place if self.folder is None else str(self.folder.resolve())

    def beside(self, name: str) -> QdrantLocation:
        """Another collection or alias of the same server: its bare name, or its location.

        Raises:
            ValueError: If it is of another server.
        """
        if "/" not in name:
            return replace(self, collection=name, id=None)
        found = parse_location(name)
        if found.server != self.server:
            raise ValueError(f"{found} and {self} are on different servers; name an alias beside the collection")
        return replace(found, api_key=found.api_key or self.api_key)


def parse_location(location: str) -> QdrantLocation:
    """Take a location apart.

    Raises:
        ValueError: If it names no collection, or an option that there is not.
    """
    path, _, query = location.partition("?")
    place, slash, collection = path.rpartition("/")
    remote = path.startswith(("http://", "https://"))
    if "@" in place and remote:
        raise ValueError(f"a location of Qdrant takes no user or password, {_SHAPE}; give the key as {_KEY}")
    if not collection or (remote and place.count("/") < 2) or ("://" in path and not remote):
        raise ValueError(f"qdrant:{path} names no collection, {_SHAPE}")
    collection = unquote(collection)
    if any(each in _REFUSED or each < " " for each in collection):
        raise ValueError(f"{collection!r} holds a character that Qdrant takes in no name; rename it")
    options: dict[str, str] = {}
    for name, _, value in (each.partition("=") for each in query.split("&") if each):
        if name not in ("api_key", "id"):
            raise ValueError(f"qdrant:{path} has an option {name!r}, expected api_key or id")
        options[name] = unquote(value)
    place = place or ("/" if slash else ".")
    key = options.get("api_key") or os.environ.get(_KEY)
    return QdrantLocation(place=place, collection=collection, id=options.get("id"), api_key=key if remote else None)


class _Opened:
    """A folder that this process has open, and how many use it: Qdrant lets one client into a folder."""

    def __init__(self, client: QdrantClient) -> None:
        self.client = client
        self.users = 0


_opened: dict[tuple[int, str], _Opened] = {}
_opening = threading.RLock()


@contextmanager
def connected(location: QdrantLocation, *, make: bool = False) -> Iterator[QdrantClient]:
    """A client for the block; errors in it become one line each, without the key.

    Args:
        location: Where.
        make: Whether a folder that is not there is made.

    Raises:
        FileNotFoundError: If the folder is none of Qdrant's.
        StoreLocked: If another process has the folder open.
        ConnectionError: If the server does not answer.
        PermissionError: If it takes no such key.
        ImportError: If qdrant-client is missing.
    """
    library = require_qdrant()
    with reported(location):
        if location.folder is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a key without https: the notes say so
                client = library.QdrantClient(
                    url=location.place, api_key=location.api_key, check_compatibility=False, timeout=60
                )
            try:
                yield client
            finally:
                client.close()
            return
        key = (os.getpid(), location.server)
        with _opening:
            if key not in _opened:
                _opened[key] = _Opened(_open_folder(library, location, location.folder, make=make))
            _opened[key].users += 1
        try:
            yield _opened[key].client
        finally:
            with _opening:
                _opened[key].users -= 1
                if not _opened[key].users:
                    _opened.pop(key).client.close()


def _open_folder(library: Any, location: QdrantLocation, folder: Path, *, make: bool) -> QdrantClient:
    if not (folder / "meta.json").is_file():
        if not make:
            raise FileNotFoundError(
                f"no gallery at {location}: {folder} is no folder of Qdrant's embedded mode; correct it"
            )
        left = folder.is_file() or (folder.is_dir() and any(each.name != ".lock" for each in folder.iterdir()))
        if left:
            raise FileExistsError(f"{folder} already exists and is no folder of Qdrant's; name another target")
    _require_free(folder)
    require_harmless(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of many points: the notes say so
        return library.QdrantClient(path=str(folder))


def _require_free(folder: Path) -> None:
    # The client finds out too, but leaves the lock's file open then.
    if not (folder / ".lock").is_file():
        return
    with (folder / ".lock").open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(f"{folder} is open in another process; wait for it to end, or run a server") from None


def require_qdrant() -> Any:
    """The library.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import qdrant_client
    except ImportError:
        raise ImportError("Qdrant needs qdrant-client: pip install 'embedding-compat[qdrant]'") from None
    return qdrant_client


@contextmanager
def reported(location: QdrantLocation) -> Iterator[None]:
    """Turn what the client raises within the block into one line without the key.

    Raises:
        OSError: Or a `ValueError`, by what it was.
    """
    import sqlite3

    require_qdrant()
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except UnexpectedResponse as error:
        reason = _shown(location, f"{error.status_code} {error.reason_phrase}")
        if error.status_code in (401, 403):
            raise PermissionError(
                f"{location.place} refuses the key of {location}; set {_KEY} to one it takes"
            ) from None
        if error.status_code == 404:
            raise missing(location, "collection", None) from None
        raise OSError(f"{location}: the server answered {reason}; its log says more") from None
    except (ResponseHandlingException, ApiException) as error:
        raise ConnectionError(
            f"no server answers at {location} ({_shown(location, str(error))}); start it, or correct the URI"
        ) from None
    except sqlite3.Error as error:
        raise DamagedStore(
            f"{location} cannot be read ({_shown(location, str(error))}); restore it from a copy"
        ) from None


def _shown(location: QdrantLocation, told: str) -> str:
    line = (told.strip().split("\n") or [""])[0][:300]
    return line.replace(location.api_key, "...") if location.api_key else line
