"""Copy a gallery into another format: `python -m stores.convert SOURCE TARGET`.

SOURCE and TARGET are scheme:path or a path: a store, or by its ending .npy, .npz, .parquet, .arrow, .feather, .csv, .h5
or .faiss. `csv+json:FILE` writes each vector as one column of JSON, `zarr+array:FOLDER` a plain Zarr group. An
interrupted copy goes on when the same command is run again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stores.command_line import progress, run_command

if TYPE_CHECKING:
    from stores.galleries.gallery import GallerySource
    from stores.space import EmbeddingSpace

_BATCHES_PER_COMMIT = 8


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What to copy where.

    Attributes:
        source: Gallery to read.
        target: Gallery to write.
        ids: Table (CSV, Parquet, JSON, NDJSON, Arrow) with a column item_id, row i for vector i; its further columns
            are kept. Replaces the source's own item table.
        labels: Table with a column label, row i for vector i; may be the same file.
        space_name: Name of the model that made the vectors, for a source that cannot tell, such as a bare array.
        normalized: Whether all vectors of such a source have unit length; auto reads it once to find out.
        batch_rows: Rows in memory at a time.
        dtype: What a store keeps numbers as; float16 takes half the space and keeps three digits. These three options
            are for a target that is a store.
        chunk_rows: Rows of a store that are checked and read together.
        shard_chunks: Chunks in one file of a store; several make fewer files.
    """

    source: str = field(kw_only=False)
    target: str = field(kw_only=False)
    ids: str | None = None
    labels: str | None = None
    space_name: str | None = None
    normalized: Literal["auto", "yes", "no"] = "auto"
    batch_rows: int = 8192
    dtype: Literal["float32", "float16"] = "float32"
    chunk_rows: int = 4096
    shard_chunks: int = 1

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ValueError(f"--batch-rows must be at least 1, found {self.batch_rows}")


@dataclass(frozen=True)
class ConvertResult:
    """What a copy came to. `rows_before` rows were there from an earlier run, all of them if it had been finished."""

    target: str
    rows: int
    space: "EmbeddingSpace"
    rows_before: int
    already_complete: bool

    def __str__(self) -> str:
        if self.already_complete:
            done = "already complete"
        else:
            done = f"went on from row {self.rows_before}" if self.rows_before else "done"
        return f"{done}: {self.rows} vectors of {self.space} in {self.target}"


def convert(options: ConvertOptions) -> ConvertResult:
    """Copy a gallery, or go on with an interrupted copy.

    Raises:
        FileNotFoundError: If the source or a table is missing.
        FileExistsError: If something else is at the target.
        ValueError: If the source or a table is damaged, they do not fit each other, or an option is missing.
    """
    from stores.galleries import open_source, open_target, redact
    from stores.galleries.gallery import notes_of
    from stores.item_tables import read_item_table

    source = open_source(
        options.source,
        items=read_item_table(options.ids, "item_id") if options.ids else None,
        labels=read_item_table(options.labels, "label")["label"] if options.labels else None,
    )
    space = _space_of(source, options)
    provenance = _provenance(source, options)
    _lay_out(options, space, provenance)
    target = open_target(options.target, space, provenance)
    for note in (*notes_of(source), *notes_of(target)):
        print(f"note: {note}", file=sys.stderr)
    try:
        rows_before, already_complete = target.rows_committed, target.finished
        if not already_complete:
            batches = source.scan(options.batch_rows, start=rows_before)
            total = -(-(len(source) - rows_before) // options.batch_rows)
            for number, batch in enumerate(progress(batches, "batches", total=total), start=1):
                target.write(batch)
                if number % _BATCHES_PER_COMMIT == 0:
                    target.commit()
            target.finish()
        return ConvertResult(redact(options.target), target.rows_committed, space, rows_before, already_complete)
    finally:
        target.close()


def _lay_out(options: ConvertOptions, space: "EmbeddingSpace", provenance: dict[str, Any]) -> None:
    """Begin a target that is a store, or make sure that one is laid out as it is now asked for."""
    from stores.galleries import locate, redact
    from stores.galleries.zarr_store import begin_target
    from stores.layout import VectorLayout

    layout = VectorLayout(space.dim, options.chunk_rows, options.dtype, options.shard_chunks)
    scheme, location = locate(options.target)
    if scheme == "zarr":
        begin_target(location, space, provenance, layout)
    elif layout != VectorLayout(space.dim):
        raise ValueError(
            f"--dtype, --chunk-rows and --shard-chunks lay out a store, but {redact(options.target)} is a gallery of "
            f"the kind {scheme}; leave them out"
        )


def _space_of(source: "GallerySource", options: ConvertOptions) -> "EmbeddingSpace":
    from stores.galleries import redact
    from stores.space import EmbeddingSpace, is_normalized

    if source.space is not None:
        if options.space_name not in (None, source.space.name) or options.normalized != "auto":
            raise ValueError(
                f"--space-name and --normalized are for bare arrays, but {redact(options.source)} already holds "
                f"vectors of {source.space}; leave them out"
            )
        return source.space
    if not options.space_name:
        raise ValueError(
            f"{redact(options.source)} does not tell which model made its vectors; name it, for example "
            "--space-name resnet50"
        )
    if options.normalized == "auto":
        batches = progress(
            source.scan(options.batch_rows), "looking at norms", total=-(-len(source) // options.batch_rows)
        )
        normalized = all(is_normalized(batch.vectors) for batch in batches)
    else:
        normalized = options.normalized == "yes"
    return EmbeddingSpace(options.space_name, None, source.dim, normalized)


def _provenance(source: "GallerySource", options: ConvertOptions) -> dict[str, Any]:
    from pathlib import Path

    from stores.durable import sha256_of
    from stores.galleries import CHANGING, digest, locate, redact

    tables = {name: path for name, path in (("ids", options.ids), ("labels", options.labels)) if path}
    return {
        "converted_from": redact(options.source),
        "rows": len(source),
        # Of an engine the digest is a name; a copy must not go on behind rows that have moved meanwhile.
        "source_digest": (
            _content_digest(source, options) if locate(options.source)[0] in CHANGING else digest(options.source)
        ),
        "source_provenance": source.provenance,
        **{f"{name}_sha256": sha256_of(Path(path)) for name, path in tables.items()},
    }


def _content_digest(source: "GallerySource", options: ConvertOptions) -> str:
    from hashlib import sha256

    found = sha256()
    total = -(-len(source) // options.batch_rows)
    for items, vectors in progress(source.scan(options.batch_rows), "looking for changes", total=total):
        ids = [str(each).encode() for each in items["item_id"]]
        found.update(b"".join(len(each).to_bytes(8) + each for each in ids))
        found.update(vectors.tobytes())
    return found.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        ConvertOptions,
        lambda options: print(convert(options)),
        argv,
        prog="python -m stores.convert",
        description=str(__doc__),
    )


if __name__ == "__main__":
    sys.exit(main())
