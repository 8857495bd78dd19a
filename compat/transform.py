"""Map a file of vectors: `python -m compat.transform --transformer DIR --vectors IN.npy --out OUT.npy`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """

    transformer: Path
    vectors: Path
    out: Path
    direction: Direction | None = None


def transform_file(options: TransformOptions) -> int:
    """Map a .npy file block by block and return the number of rows; `out` appears whole or not at all.

    Raises:
        FileNotFoundError: If the transformer or the file is missing.
        ValueError: If the file is no array of the source dimension, or the direction is another.
    """
    import numpy as np

    from compat.transformers.artefact import load_transformer
    from stores.galleries import open_source

    if options.out.is_dir():
        raise IsADirectoryError(f"--out {options.out} is a folder, expected the name of a .npy file to write")
    transformer = load_transformer(options.transformer)
    if options.direction is not None:
        transformer.require(options.direction, transformer.source)
    source = open_source(f"npy:{options.vectors}")
    if source.dim != transformer.source.dim:
        raise ValueError(
            f"{options.vectors} holds {source.dim}-D vectors, the transformer maps {transformer.source} "
            f"to {transformer.target}"
        )
    temporary = options.out.with_name(f".{options.out.name}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(source), transformer.target.dim)
    mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
    for number, batch in enumerate(progress(source.scan(BLOCK_ROWS), "mapping", total=-(-len(source) // BLOCK_ROWS))):
        start = number * BLOCK_ROWS
        bad = np.flatnonzero(~np.isfinite(batch.vectors).all(axis=1))
        if len(bad):
            temporary.unlink()
            raise ValueError(f"row {start + bad[0]} of {options.vectors} holds NaN or infinity; leave it out")
        mapped[start : start + len(batch.vectors)] = transformer.transform(batch.vectors)
    mapped.flush()
    del mapped
    temporary.replace(options.out)
    print(f"{len(source)} vectors of {transformer.source} mapped to {transformer.target}: {options.out}")
    return len(source)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        TransformOptions, transform_file, argv, prog="python -m compat.transform", description=str(__doc__)
    )


if __name__ == "__main__":
    sys.exit(main())
