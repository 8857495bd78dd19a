"""JSON files that notice their own damage: an object that carries the digest of its other fields."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stores.chunks import DamagedStore


def seal(body: dict[str, Any]) -> bytes:
    """A JSON object with a field `sha256` added, the digest over all other fields."""
    return json.dumps({**body, "sha256": _digest(body)}, indent=2).encode()


def unseal(path: Path, *, version: int) -> dict[str, Any]:
    """Read what `seal` made, without the digest, in any format version from 1 to the given one.

    Args:
        path: The file.
        version: The newest `format_version` the caller understands; older ones are for it to tell apart.

    Raises:
        DamagedStore: If the file is not JSON, or its digest does not fit.
        ValueError: If it is of a later format version.
        OSError: If it cannot be read.
    """
    content = path.read_bytes()
    try:
        body = json.loads(content)
        digest = body.pop("sha256")
        intact = digest == _digest(body)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact, body = False, {}
    if not intact:
        raise DamagedStore(f"{path} does not match its own digest: it was altered; restore it from a copy")
    found = body.get("format_version")
    if not isinstance(found, int) or not 1 <= found <= version:
        understood = "1" if version == 1 else f"1 to {version}"
        raise ValueError(
            f"{path} has format version {found}, this version reads {understood}; "
            "use the version of the toolkit that wrote it, or a later one"
        )
    return body


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
