"""Texts to embed: lines of a file, rows of a table, or files of a folder, read one after the other.

A file is read twice, once to count and digest it and once for the embedding, and never held in memory.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

TABLE_SUFFIXES = (".csv", ".tsv", ".ndjson", ".jsonl", ".parquet")
MOST_BYTES = 1 << 20  # of one text: a file without line ends must not fill the memory
PARQUET_ROWS = 1024

Key = str | int | None


class TextItem(NamedTuple):
    """One text.

    Attributes:
        item_id: of its row; or the number of its line, from 1.
        label: its class, where the table has a column `label`.
        source: its UTF-8 bytes; None where the row has no text.
    """

    item_id: str | int
    label: Key
    source: bytes | None

    def content(self) -> bytes:
        """Return the text's bytes.

        Raises:
            ValueError: for a row without text.
        """
        if self.source is None or not self.source.strip():
            raise ValueError(f"item {self.item_id} has no text")
        return self.source


class Texts:
    """The texts of one file; see `backbones.datasets.items.Items`.

    Args:
        path: `.txt`, one text a line, blank lines passed over; or a table (`TABLE_SUFFIXES`) with columns `item_id` and
            `text` and perhaps `label`; of a CSV file, a column of whole numbers becomes numbers.

    Raises:
        OSError: where it cannot be read.
        ValueError: for another suffix, a missing column, a damaged file, a missing item id, one text above a megabyte,
            or ids that are partly numbers and partly text.
    """

    files = False

    def __init__(self, path: Path) -> None:
        self.path = path
        digest, numbers, kinds = hashlib.sha256(), [True, True], (set[type](), set[type]())
        self.count = 0
        for item in self._read():
            if item.item_id is None or item.item_id == "":
                raise ValueError(f"row {self.count + 1} of {path} has no item_id; give each text one")
            for place, value in enumerate((item.item_id, item.label)):
                if value is not None:
                    numbers[place] &= isinstance(value, int) or _is_number(value)
                    kinds[place].add(type(value))
            digest.update(f"{item.item_id!r}\t{item.label!r}\t{len(item.source or b'')}\n".encode())
            digest.update(item.source or b"")
            self.count += 1
        if not self.count:
            raise ValueError(f"{path} holds no texts; expected one a line, or a table with columns item_id and text")
        for name, found in zip(("item ids", "labels"), kinds, strict=True):
            if len(found) > 1:
                raise ValueError(f"the {name} of {path} are partly numbers and partly text; make them all text")
        self.digest = digest.hexdigest()
        # CSV has no types: as in other tables, what looks like a number everywhere is one
        typed = path.suffix.lower() in (".csv", ".tsv")
        self._number_ids, self._number_labels = typed and numbers[0], typed and numbers[1]
        label_type = next(iter(kinds[1]), None)
        self.label_type: type | None = int if label_type and self._number_labels else label_type

    def since(self, start: int) -> Iterator[TextItem]:
        """Yield the texts from number `start` on."""
        for item in islice(self._read(), start, None):
            item_id = int(item.item_id) if self._number_ids else item.item_id
            label = int(item.label) if self._number_labels and item.label is not None else item.label
            yield TextItem(item_id, label, item.source)

    def _read(self) -> Iterator[TextItem]:
        return READERS[self.path.suffix.lower()](self.path)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                raise ValueError(f"line {number} of {path} is longer than {MOST_BYTES} bytes; expected one text a line")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def _read_lines(path: Path) -> Iterator[TextItem]:
    for number, line in _lines(path):
        yield TextItem(number, None, line)


def _read_ndjson(path: Path) -> Iterator[TextItem]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is no JSON ({error}); repair it") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is no JSON object; expected item_id, text and perhaps label")
        _require_columns(path, row)
        yield _item(path, row["item_id"], row.get("label"), row["text"])


def _read_csv(path: Path) -> Iterator[TextItem]:
    csv.field_size_limit(MOST_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            _require_columns(path, rows.fieldnames or ())
            for row in rows:
                yield _item(path, row["item_id"], row.get("label") or None, row["text"])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged or no table in UTF-8 ({error}); repair it") from error


def _read_parquet(path: Path) -> Iterator[TextItem]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("pyarrow is not installed, and Parquet needs it; run `pip install pyarrow`") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _require_columns(path, names)
            columns = [name for name in ("item_id", "label", "text") if name in names]
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield _item(path, row["item_id"], row.get("label"), row["text"])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it from a copy") from error


READERS: dict[str, Callable[[Path], Iterator[TextItem]]] = {
    ".txt": _read_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".ndjson": _read_ndjson,
    ".jsonl": _read_ndjson,
    ".parquet": _read_parquet,
}


def _require_columns(path: Path, found: Any) -> None:
    missing = [name for name in ("item_id", "text") if name not in found]
    if missing:
        raise ValueError(f"{path} has no column {' and no column '.join(missing)}; found {', '.join(found) or 'none'}")


def _item(path: Path, item_id: Any, label: Any, text: Any) -> TextItem:
    for name, value in (("item_id", item_id), ("label", label)):
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise ValueError(f"{path} holds {name} {value!r}, expected text or a whole number")
    if not isinstance(text, str | None):
        raise ValueError(f"{path} holds {text!r} as the text of {item_id!r}, expected text")
    return TextItem(item_id, label, None if text is None else text.encode("utf-8", "surrogatepass"))


def _is_number(text: str) -> bool:
    """Whether the text is a whole number of 64 bits in the one form that keeps it: no sign, no leading zeros."""
    plain = text.isascii() and text.isdigit() and len(text) <= 19
    return plain and (text == "0" or text[0] != "0") and int(text) < 2**63
