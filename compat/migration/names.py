"""Names that lead to galleries: where they are, and whether two locations are one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compat.migration.state import identity, live_engine
from stores.galleries import locate, redact
from stores.galleries.gallery import LiveEngine


def naming_engine(target: str) -> tuple[LiveEngine, str]:
    """The engine of a gallery, which can let names lead to it, and where the gallery is there.

    Raises:
        ValueError: If it is a file.
    """
    scheme, location = locate(target)
    engine: Any = live_engine(scheme)
    if engine is None or not hasattr(engine, "serve"):
        raise ValueError(
            f"{redact(target)} is a file, which no name can be led to; tell what searches it where it is, and end "
            "with --step finalise"
        )
    return engine, location


def name_location(target: str, name: str) -> str:
    """Where a name is, as the target's engine takes it; a bare name is beside the target."""
    scheme, location = locate(target)
    if re.match(r"[A-Za-z][A-Za-z0-9+]*:", name):
        other, place = locate(name)
        if other != scheme:
            raise ValueError(f"{redact(name)} is of the kind {other}, expected {scheme} as the target is")
        return with_credentials(target, place) if "//" in place else place
    if "/" in name:
        return name
    if not name:
        raise ValueError("--serve-as names nothing; give the name of a view, alias or link")
    path, mark, query = location.partition("?")
    head, slash, last = path.rpartition("/")
    schema, dot, _ = last.partition(".")
    if scheme == "postgresql" and dot and "." not in name:
        name = f"{schema}.{name}"
    return f"{head}{slash}{name}{mark}{query}"


def with_credentials(target: str, location: str) -> str:
    """A location without a password, with what the target's has to log in."""
    own = re.match(r"(//[^/?]*@)", locate(target)[1])
    if not own or not location.startswith("//"):
        return location
    return own[1] + re.sub(r"^//([^/?]*@)?", "", location)


def is_same(led_to: str | None, location: str) -> bool:
    """Whether a name leads to a location, whatever options and passwords the two are written with."""
    if led_to is None:
        return False
    if location.startswith("//"):
        ends = [re.sub(r"^//([^/]*@)?", "", each.partition("?")[0]).split("/") for each in (led_to, location)]
        names = [end[-1].rpartition(".") for end in ends]
        same_schema = names[0][0] == names[1][0] or not names[1][0] or not names[0][0]
        return ends[0][:-1] == ends[1][:-1] and names[0][2] == names[1][2] and same_schema
    return Path(led_to).resolve() == Path(location).resolve()


def one_place(scheme: str, source: str, target: str) -> bool:
    """Whether one name can lead to galleries of an engine at both places: of one server and database, or by links."""
    if scheme in ("zarr", "lance"):
        return scheme == "zarr" or "://" not in source + target
    places = []
    for uri in (source, target):
        head, _, query = identity(uri).partition("?")
        server = re.sub(r"//[^/]*@", "//", head).rpartition("/")[0]
        places.append((server if "//" in server else str(Path(locate(uri)[1]).parent.resolve()), query))
    return places[0] == places[1]
