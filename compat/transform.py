"""Map a file of vectors: `python -m compat.transform --transformer DIR --vectors IN.npy --out OUT.npy`.

`--serve queries` and `--serve gallery` write either side as it meets the other in an index: mapped if the direction
says so, and with one more dimension where the transformer carries a hubness correction, to be compared by inner
product. Without `--serve` the map alone is applied.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compat.options import Direction
from stores.command_line import progress, run_command

BLOCK_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """What to map.

    Attributes:
        transformer: Folder of a transformer.
        vectors: A .npy file of floats [n, d].
        out: The .npy file of the mapped float32 vectors.
        direction: The direction you expect; another one in the artefact is an error.
        serve: What the vectors are, to write them as an index takes them: the new model's `queries` or the old model's
            `gallery`.
    """

    transformer: Path
    vectors: Path
    out: Path
    direction: Direction | None = None
    serve: Literal["queries", "gallery"] | None = None


def transform_file(options: TransformOptions) -> int:
    """Map a .npy file block by block and return the number of rows; `out` appears whole or not at all.

    Raises:
        FileNotFoundError: If the transformer or the file is missing.
        ValueError: If the file is no array of the dimension expected, or of another space, or if the direction is
            another.
    """
    import numpy as np

    from compat.transformers.artefact import load_transformer
    from stores.galleries import open_source
    from stores.galleries.card import items_path

    if options.out.is_dir():
        raise IsADirectoryError(f"--out {options.out} is a folder, expected the name of a .npy file to write")
    transformer = load_transformer(options.transformer)
    if options.direction is not None:
        transformer.require(options.direction, transformer.source)
    taken, given = transformer.source, transformer.target
    if options.serve is not None:
        taken = transformer.query_space if options.serve == "queries" else transformer.gallery_space
        given = transformer.served_space
    source = open_source(f"npy:{options.vectors}")
    if source.dim != taken.dim or source.space not in (None, taken):
        found = source.space or f"{source.dim}-D vectors"
        takes = f"--serve {options.serve} takes" if options.serve else "the transformer maps"
        raise ValueError(f"{options.vectors} holds {found}, {takes} {taken} to {given}")
    has_ids = items_path(options.vectors).is_file()  # row numbers are no ids: every file has the same
    temporary = options.out.with_name(f".{options.out.name}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(len(source), given.dim))
    for number, batch in enumerate(progress(source.scan(BLOCK_ROWS), "mapping", total=-(-len(source) // BLOCK_ROWS))):
        start = number * BLOCK_ROWS
        bad = np.flatnonzero(~np.isfinite(batch.vectors).all(axis=1))
        if len(bad):
            temporary.unlink()
            raise ValueError(f"row {start + bad[0]} of {options.vectors} holds NaN or infinity; leave it out")
        if options.serve == "gallery":
            block = transformer.serve_gallery(batch.vectors, batch.items["item_id"] if has_ids else None)
        elif options.serve == "queries":
            block = transformer.serve_queries(batch.vectors)
        else:
            block = transformer.transform(batch.vectors)
        mapped[start : start + len(block)] = block
    mapped.flush()
    del mapped
    temporary.replace(options.out)
    print(f"{len(source)} vectors of {taken} mapped to {given}: {options.out}")
    return len(source)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        TransformOptions, transform_file, argv, prog="python -m compat.transform", description=str(__doc__)
    )


if __name__ == "__main__":
    sys.exit(main())
