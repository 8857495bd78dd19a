"""A gallery in one Parquet table: `item_id`, further columns, and `vector`, an array of d floats; card in FILE.json.

Every page is written with its checksum, and the checksums of pages are compared when they are read, whoever wrote them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from stores.chunks import DamagedStore
from stores.galleries.card import digest_of_file, readable, verified_card
from stores.galleries.spooled import SpooledTarget
from stores.galleries.vector_table import VECTOR, TableSource
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

_BLOCK_BYTES = 32 * 2**20  # of vectors in a row group


class ParquetTable:
    """A Parquet file, read a block at a time with the checksums of its pages.

    Raises:
        DamagedStore: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _legible(path):
            self._file = _opened(path)
            footer = self._file.metadata
            self._groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            self._rows: int = footer.num_rows
            self._columns = pl.DataFrame(self._file.schema_arrow.empty_table()).schema
        if min(self._groups, default=0) < 0 or sum(self._groups) != self._rows:
            raise DamagedStore(
                f"{path} has {self._rows} rows by its footer and {sum(self._groups)} in its row groups; restore it "
                "from a copy"
            )

    def __len__(self) -> int:
        return self._rows

    @property
    def columns(self) -> pl.Schema:
        """Its columns."""
        return self._columns

    def blocks(self, start: int, size: int) -> Iterator[pl.DataFrame]:
        """Rows start.. in order; see `TableReader`."""
        group = 0
        while group < len(self._groups) and start >= self._groups[group]:
            start -= self._groups[group]
            group += 1
        skipped = start
        left = sum(self._groups[group:])
        with _legible(self._path):
            # A file of its own for each pass: a reader cannot be in two places.
            batches = _opened(self._path).iter_batches(size, row_groups=list(range(group, len(self._groups))))
        while left:
            with _legible(self._path):
                batch = next(batches, None)
                if batch is None or len(batch) > left:
                    raise DamagedStore(f"{self._path} has not the rows that its footer counts; restore it from a copy")
                left -= len(batch)
                table = pl.DataFrame(batch.slice(min(skipped, len(batch))))
            skipped = max(0, skipped - len(batch))
            if len(table):
                yield table


def open_source(location: str) -> TableSource:
    """Open a table. Without a column `item_id` the ids are the row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or has no usable column `vector`.
    """
    path = Path(location)
    card = verified_card(path)
    return TableSource(path, card, ParquetTable(path), _BLOCK_BYTES)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with a table; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[VECTOR])


digest = digest_of_file


def block_rows(dim: int) -> int:
    """Rows in a row group, so that any reader needs about 32 MiB for one."""
    return max(1, _BLOCK_BYTES // (4 * dim))


def _opened(path: Path) -> Any:
    import pyarrow.parquet as pq

    # Mapped: a column of a row group, which may be all of a file, is otherwise read into memory whole.
    return pq.ParquetFile(path, page_checksum_verification=True, memory_map=True)


@contextmanager
def _legible(path: Path) -> Iterator[None]:
    # What pyarrow says of a damaged file, in one line; of a failed checksum it tells as an OSError.
    import pyarrow as pa

    try:
        with readable(path):
            yield
    except DamagedStore:
        raise
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DamagedStore(f"{path} cannot be read ({reason[:200]}); restore it from a copy") from None


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = store.space.dim
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), dim)
    vector = pa.field(VECTOR, kind, nullable=False)
    size = block_rows(dim)
    schema = _arrow(store.items.clear()).schema.append(vector)
    options: dict[str, Any] = {"use_dictionary": [name for name in schema.names if name != VECTOR]}
    with path.open("wb") as file:
        with pq.ParquetWriter(
            file,
            schema,
            compression="none",  # floats of an embedding barely compress
            write_statistics=False,
            write_page_checksum=True,
            **options,
        ) as writer:
            # Less than a row group at a time: what pyarrow notes of each number stays in the processor's cache.
            for batch in store.batches(max(1, size // 8)):
                floats = pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.reshape(-1)), type=kind)
                table = _arrow(batch.items).append_column(vector, floats)
                for piece in table.combine_chunks().to_batches():
                    writer.write_batch(piece, row_group_size=size)
        file.flush()
        os.fsync(file.fileno())
    return [path]


def _arrow(items: pl.DataFrame) -> Any:
    odd = [name for name, dtype in items.schema.items() if dtype in (pl.Int128, pl.UInt128)]
    if odd:
        raise ValueError(f"item column {odd[0]!r} is {items[odd[0]].dtype}, which pyarrow cannot write; cast it")
    # The oldest layout of strings, the only one in which categories can be written.
    return items.to_arrow(compat_level=pl.CompatLevel.oldest())
