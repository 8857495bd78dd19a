"""InsightFace's RecordIO: `train.rec` with its index `train.idx` and, beside them, a file `property`.

A record is a run of parts, each a magic word, a word of 3 bits kind and 29 bits length, the data, and padding to 4
bytes. Where the data hold the magic word at a multiple of 4, the writer cuts there and leaves it out, so that a reader
can find the next record in a damaged file. The data start with a header of 24 bytes: how many extra labels follow it,
one label, and two numbers. In these sets record 0 holds no image but, as its labels, the first key that is no image's
and the end.

Opening reads headers only, no image. Format: dmlc-core's recordio.h and MXNet's recordio.py, described, not copied.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from backbones.datasets.image_item import ByteRanges, ImageItem

MAGIC = 0xCED7230A
WHOLE, FIRST, MIDDLE, LAST = range(4)
PART = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
LENGTH_BITS = 29
MOST_DIGITS = 18
RESTORE = "copy the file again"

Spans = list[tuple[int, int]]


def record_items(path: Path) -> list[ImageItem]:
    """List the images of a .rec file, in the order of its keys, without decoding any.

    An item's id is `label/key`. Without the .idx the records are counted from 0, which is how the usual writers number
    them, so that the ids are the same.

    Raises:
        OSError: where `path` cannot be read.
        ValueError: for a truncated or damaged .rec or .idx, and for more identities than `property` says.
    """
    index = path.with_suffix(".idx")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty, expected records; {RESTORE}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        records = _indexed(path, data, index) if index.is_file() else _scanned(path, data)
        items = list(_images(path, data, records))
    if not items:
        raise ValueError(f"{path} holds no images, expected records with labels; is it the right file?")
    _check_property(path, items)
    return items


def _images(path: Path, data: mmap.mmap, records: Iterator[tuple[int, int]]) -> Iterator[ImageItem]:
    """Yield the images among (key, offset) of the records."""
    names: dict[float, str] = {}  # one string per identity, not per image
    end = math.inf
    for place, (key, offset) in enumerate(records):
        spans, _ = _parts(path, data, offset)
        labels, spans = _header(path, data, offset, spans)
        if place == 0 and len(labels) > 1 and not spans:
            end = labels[0]
            continue
        if key >= end:  # one record per identity follows, with the range of its keys
            break
        label = labels[0] if labels else math.nan
        if label not in names:
            if not (math.isfinite(label) and label == int(label)):
                raise ValueError(f"{path} has label {label} in the record at byte {offset}, expected a whole number")
            names[label] = str(int(label))
        yield ImageItem(f"{names[label]}/{key}", names[label], ByteRanges(path, tuple(spans)))


def _scanned(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int]]:
    offset, key = 0, 0
    while offset < len(data):
        yield key, offset
        _, offset = _parts(path, data, offset)
        key += 1


def _indexed(path: Path, data: mmap.mmap, index: Path) -> Iterator[tuple[int, int]]:
    records = []
    for number, line in enumerate(index.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
        fields = line.split()
        if len(fields) != 2 or not all(_is_number(field) for field in fields):
            raise ValueError(f"{index} line {number} is {line[:40]!r}, expected a key and an offset; {RESTORE}")
        records.append((int(fields[0]), int(fields[1])))
        if records[-1][1] >= len(data):
            raise ValueError(
                f"{path} is truncated: {index.name} has record {records[-1][0]} at byte {records[-1][1]}, "
                f"the file ends at {len(data)}; {RESTORE}"
            )
    if len({key for key, _ in records}) < len(records):
        raise ValueError(f"{index} names a key twice; remove it, and the records are counted instead")
    yield from sorted(records)


def _parts(path: Path, data: mmap.mmap, offset: int) -> tuple[Spans, int]:
    """Return where the data of the record at `offset` are, and where the next record starts."""
    spans: Spans = []
    while True:
        if offset + PART.size > len(data):
            raise ValueError(f"{path} is truncated: a record at byte {offset}, the file ends at {len(data)}; {RESTORE}")
        magic, word = PART.unpack_from(data, offset)
        kind, length = word >> LENGTH_BITS, word & ((1 << LENGTH_BITS) - 1)
        if magic != MAGIC or kind not in ((MIDDLE, LAST) if spans else (WHOLE, FIRST)):
            raise ValueError(
                f"{path} is damaged: at byte {offset} expected a record's start, 0x{MAGIC:08x}, found 0x{magic:08x} "
                f"of kind {kind}; {RESTORE}"
            )
        start = offset + PART.size
        if start + length > len(data):
            raise ValueError(
                f"{path} is truncated: {length} bytes at byte {start}, the file ends at {len(data)}; {RESTORE}"
            )
        if spans:
            spans.append((offset, 4))  # the word that was cut out of the data stands here, as the part's magic
        spans.append((start, length))
        offset = start + (length + 3) // 4 * 4
        if kind in (WHOLE, LAST):
            return spans, offset


def _header(path: Path, data: mmap.mmap, offset: int, spans: Spans) -> tuple[tuple[float, ...], Spans]:
    """Return the labels of a record, and where the rest of its data are."""
    head, rest = _take(data, spans, HEADER.size)
    extra = 0
    if len(head) == HEADER.size:
        extra, label, _, _ = HEADER.unpack(head)
        if not extra:
            return (label,), rest
        head, rest = _take(data, rest, 4 * extra)
        if len(head) == 4 * extra:
            return struct.unpack(f"<{extra}f", head), rest
    length = sum(length for _, length in spans)
    raise ValueError(
        f"{path} is damaged: the record at byte {offset} has {length} bytes, too few for its header; {RESTORE}"
    )


def _take(data: mmap.mmap, spans: Spans, count: int) -> tuple[bytes, Spans]:
    """Split off the first `count` bytes; fewer where there are fewer."""
    if spans and spans[0][1] > count:  # nearly always
        start, length = spans[0]
        return data[start : start + count], [(start + count, length - count), *spans[1:]]
    taken, rest = b"", list(spans)
    while rest and len(taken) < count:
        start, length = rest.pop(0)
        part = min(length, count - len(taken))
        taken += data[start : start + part]
        if part < length:
            rest.insert(0, (start + part, length - part))
    return taken, [span for span in rest if span[1]]


def _is_number(text: str) -> bool:
    """Whether the text is a whole number of 64 bits; Python refuses thousands of digits, but without naming a file."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def _check_property(path: Path, items: list[ImageItem]) -> None:
    """Compare with the number of identities in `property`: `classes,height,width`."""
    found = path.with_name("property")
    if not found.is_file():
        return
    said = found.read_text(encoding="utf-8", errors="replace").split(",")[0].strip()
    identities = len({item.label for item in items})
    if not _is_number(said) or identities > int(said):
        raise ValueError(
            f"{found} says {said[:20]!r} identities, {path.name} holds {identities}; correct or remove {found.name}"
        )
