"""The store of an extraction: begun, gone on with, or refused because it holds another one."""

import shutil
from pathlib import Path
from typing import Any

from compat.extraction.distribute import remove_pieces
from stores.commit import COMPLETE
from stores.durable import WriterLock
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore


def open_or_create(
    out: Path, space: EmbeddingSpace, extraction: dict[str, Any], layout: dict[str, Any]
) -> EmbeddingStore:
    """Open the store that this very extraction began, or begin it.

    One of another extraction that ended before its first rows is replaced: it keeps nobody from doing better.

    Args:
        out: the store's folder.
        space: of its vectors.
        extraction: JSON values that decide the vectors, kept in the provenance.
        layout: arguments of `EmbeddingStore.create`.

    Raises:
        FileExistsError: where something else is at `out`.
        StoreLocked: where another process is filling it.
    """
    if (out / "store.json").exists():
        store = EmbeddingStore.open(out)
        found = store.provenance.get("extraction")
        if found == extraction:
            return store
        if found is None or len(store) or store.provenance.get(COMPLETE):
            odd = [name for name in extraction if not isinstance(found, dict) or found.get(name) != extraction[name]]
            raise FileExistsError(
                f"{out} holds another extraction (it differs in {', '.join(odd) or 'options'}); "
                "name another --out or remove it"
            )
        _remove_empty(out)
    provenance = {"extraction": extraction, COMPLETE: False, "items_done": 0, "skipped": []}
    return EmbeddingStore.create(out, space, provenance=provenance, **layout)


def _remove_empty(out: Path) -> None:
    """Remove the files of a store without rows, unless somebody is filling it."""
    lock = WriterLock(out)
    lock.acquire()
    try:
        if not len(EmbeddingStore.open(out)):
            (out / "store.json").unlink()
            for folder in ("vectors", "items"):
                shutil.rmtree(out / folder)
            remove_pieces(out)
    finally:
        lock.release()
