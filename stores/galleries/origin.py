"""Whether what is at a target is the same work, to go on with, or something else, to be left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stores.commit import COMPLETE
from stores.space import EmbeddingSpace


def require_same_origin(
    path: Path | str,
    found_space: EmbeddingSpace,
    found: dict[str, Any],
    space: EmbeddingSpace,
    provenance: dict[str, Any],
) -> None:
    """Refuse a target that was written, or begun, from something else.

    Raises:
        FileExistsError: If the spaces or the provenances differ.
    """
    remedy = "name another target, or remove this one"
    if found_space != space:
        raise FileExistsError(f"{path} already holds vectors of {found_space}, expected {space}; {remedy}")
    keys = (found.keys() | provenance.keys()) - {COMPLETE}
    different = sorted(key for key in keys if found.get(key) != provenance.get(key))
    if different:
        raise FileExistsError(f"{path} already exists and has another origin ({', '.join(different)} differ); {remedy}")


def already_finished(path: Path | str) -> FileExistsError:
    """The refusal to add rows to a finished gallery."""
    return FileExistsError(f"{path} is finished and takes no more rows; name another target, or remove it")
