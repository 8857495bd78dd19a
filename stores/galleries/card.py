"""The card beside a gallery file: FILE.json says what FILE holds and carries the digests of FILE and its companions.

Beside FILE may also lie FILE.items.parquet, the item table of a format that has no room for one, and, while FILE is
being written, the hidden folder .FILE.partial.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stores.chunks import DamagedStore
from stores.durable import sha256_of, write_atomically
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace

FORMAT_VERSION = 1


@dataclass(frozen=True)
class GalleryCard:
    """What a gallery file holds. `files` maps names in the file's folder to their SHA-256."""

    space: EmbeddingSpace
    rows: int
    provenance: dict[str, Any]
    files: dict[str, str]

    def write(self, path: Path) -> None:
        """Put the card beside the gallery file at path, in one step."""
        body = {
            "format_version": FORMAT_VERSION,
            "space": self.space.to_dict(),
            "rows": self.rows,
            "provenance": self.provenance,
            "files": self.files,
        }
        write_atomically(card_path(path), [seal(body)])

    @classmethod
    def beside(cls, path: Path) -> GalleryCard | None:
        """The card of the gallery file at path, None where it has none.

        Raises:
            DamagedStore: If the card was altered.
        """
        if not card_path(path).is_file():
            return None
        body = unseal(card_path(path), version=FORMAT_VERSION)
        return cls(EmbeddingSpace.from_dict(body["space"]), body["rows"], body["provenance"], body["files"])

    def verify(self, folder: Path) -> None:
        """Read every file the card names once and compare it with its digest.

        Raises:
            DamagedStore: If one is missing or was altered.
        """
        for name, digest in self.files.items():
            if not (folder / name).is_file():
                raise DamagedStore(f"{folder / name} is missing; restore it from a copy, or write the gallery again")
            if sha256_of(folder / name) != digest:
                raise DamagedStore(
                    f"{folder / name} does not match the digest in its card: it was altered; restore it from a copy"
                )


def card_path(path: Path) -> Path:
    """Where the card of a gallery file is."""
    return path.with_name(f"{path.name}.json")


def items_path(path: Path) -> Path:
    """Where the item table of a gallery file is."""
    return path.with_name(f"{path.name}.items.parquet")


def partial_path(path: Path) -> Path:
    """Where a gallery file is kept while it is being written."""
    return path.with_name(f".{path.name}.partial")


def verified_card(path: Path) -> GalleryCard | None:
    """The card of the gallery file at path, its digests checked; None for a file of somebody else's making.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is being written, or was altered.
    """
    card = GalleryCard.beside(path)
    if card is not None:
        card.verify(path.parent)
        return card
    if partial_path(path).is_dir():
        raise ValueError(f"{path} is unfinished; run the command that writes it again")
    if not path.is_file():
        what = "it is a folder, name a file" if path.is_dir() else "there is no such file; correct the path"
        raise FileNotFoundError(f"no gallery at {path}: {what}")
    return None


def read_items(path: Path, rows: int) -> pl.DataFrame:
    """The item table beside a gallery file, or else the row numbers as integer ids.

    Raises:
        DamagedStore: If the table cannot be read, has no `item_id`, or another number of rows.
    """
    table = items_path(path)
    if not table.is_file():
        return row_numbers(0, rows)
    with readable(table):
        items = pl.read_parquet(table)
    if "item_id" not in items.columns or len(items) != rows:
        raise DamagedStore(
            f"{table} has {len(items)} rows and the columns {', '.join(items.columns)}, expected {rows} rows with "
            f"item_id; restore it from a copy, or remove it to number the rows"
        )
    return items


def write_items(items: pl.DataFrame, path: Path) -> Path:
    """Write the item table of the gallery file at path, flushed to disk, and return where it is."""
    buffer = io.BytesIO()
    items.rechunk().write_parquet(buffer)
    write_atomically(items_path(path), [buffer.getbuffer()])
    return items_path(path)


def row_numbers(first: int, stop: int) -> pl.DataFrame:
    """An item table of int64 ids first..stop-1."""
    return pl.DataFrame({"item_id": pl.int_range(first, stop, dtype=pl.Int64, eager=True)})


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what polars says of a damaged file into one line.

    Raises:
        DamagedStore: If polars fails within the block.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().split("\n")[0]
        raise DamagedStore(f"{path} cannot be read ({reason}); restore it from a copy") from None


def digest_of_file(location: str) -> str:
    """Digest over a gallery's file, hexadecimal; its item table has one of its own in the card.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    return sha256_of(Path(location))
