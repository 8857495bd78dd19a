"""The chunks of a Zarr array that somebody else wrote, each there and whole, or the array is refused.

Zarr's own libraries take a chunk that is missing for one of fill values, so that a lost file reads as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from crc32c import crc32c

from stores.chunks import DamagedStore
from stores.galleries.zarr_codecs import decode, decode_texts
from stores.galleries.zarr_files import ZarrFiles
from stores.galleries.zarr_metadata import ZarrNode, chunk_bytes, layout_of

_MOST_CHUNK_BYTES = 512 * 2**20  # a compressed chunk is decoded whole
_MOST_SHARD_CHUNKS = 2**18  # 4 MiB of index
_MOST_INDEXES = 64
_EXPANSION = 100  # embeddings barely compress
_ALWAYS_ALLOWED = 64 * 2**20  # bytes, for small arrays of equal values
_SLACK = 2**16  # of checksums and the like
_NO_CHUNK = 2**64 - 1

Place = tuple[int, ...]


class ZarrChunks:
    """The chunks of an array of numbers or texts.

    Args:
        path: Where the gallery is, for errors.
        files: What is there.
        node: The array.

    Raises:
        ValueError: If it is kept in a way not known here, or claims more than its files can hold.
        DamagedStore: If a chunk is missing.
    """

    def __init__(self, path: str, files: ZarrFiles, node: ZarrNode) -> None:
        self._path = path
        self._files = files
        self._node = node
        self._layout = layout_of(node)
        self._text = node.text
        self._shards: dict[str, np.ndarray] = {}
        self.shape = node.shape
        self.chunk = self._layout.chunk
        if self._layout.codecs and chunk_bytes(self._layout) > _MOST_CHUNK_BYTES:
            raise ValueError(
                f"{self._named()} has compressed chunks of {list(self.chunk)}, expected at most "
                f"{_MOST_CHUNK_BYTES >> 20} MiB each; write it again with smaller ones"
            )
        self._most = chunk_bytes(self._layout)
        if self._layout.index is not None and self._inner() > _MOST_SHARD_CHUNKS:
            raise ValueError(f"{self._named()} has shards of {self._inner()} chunks; write it again with smaller ones")
        self._require_whole()

    def read(self, place: Place) -> np.ndarray | list[str]:
        """A chunk, whole even where it reaches past the end of the array: [*chunk] numbers, or texts.

        Raises:
            DamagedStore: If it was altered or cannot be decoded.
        """
        layout = self._layout
        content = self._stored(place)
        try:
            if layout.codecs and len(content) > 2 * self._most + _SLACK:
                raise ValueError(f"it has {len(content)} bytes, more than its values")
            if self._text:
                content = decode(layout.codecs, content, self._most)
                self._most -= len(content)  # for all texts together
                return decode_texts(content, math.prod(layout.chunk))
            content = decode(layout.codecs, content, self._most + _SLACK)
            if len(content) != self._most:
                raise ValueError(f"it has {len(content)} bytes of values, expected {self._most}")
        except ValueError as error:
            raise DamagedStore(f"{self._file(place)} cannot be decoded ({error}); restore it from a copy") from None
        if layout.dtype.kind == "b":
            values = np.frombuffer(content, np.uint8) != 0
        else:
            values = np.frombuffer(content, layout.dtype)
        stored = tuple(layout.chunk[axis] for axis in layout.order)
        return values.reshape(stored).transpose(np.argsort(layout.order))

    def _named(self) -> str:
        return f"{self._path}: array {self._node.name or '.'}"

    def _name(self, place: Place) -> str:
        numbers = (n * c // f for n, c, f in zip(place, self.chunk, self._layout.file, strict=True))
        key = self._layout.prefix + self._layout.separator.join(map(str, numbers))
        return f"{self._node.name}/{key}" if self._node.name else key

    def _file(self, place: Place) -> str:
        return f"chunk {'.'.join(map(str, place))} in {self._path}/{self._name(place)}"

    def _inner(self) -> int:
        return math.prod(f // c for f, c in zip(self._layout.file, self.chunk, strict=True))

    def _stored(self, place: Place) -> memoryview:
        try:
            content = self._files.read(self._name(place))
        except FileNotFoundError:
            raise self._missing(place) from None
        if self._layout.index is None:
            return content
        first, count = self._span(place, content)
        return content[first : first + count]

    def _span(self, place: Place, shard: memoryview) -> tuple[int, int]:
        name = self._name(place)
        if name not in self._shards:
            if len(self._shards) >= _MOST_INDEXES:
                self._shards.clear()
            self._shards[name] = self._read_index(place, shard)
        within = tuple(n % (f // c) for n, f, c in zip(place, self._layout.file, self.chunk, strict=True))
        first, count = map(int, self._shards[name][within])
        if first == count == _NO_CHUNK:
            raise self._missing(place)
        if first + count > len(shard):
            raise DamagedStore(f"{self._file(place)} lies outside its shard; restore it from a copy")
        return first, count

    def _read_index(self, place: Place, shard: memoryview) -> np.ndarray:
        index = self._layout.index
        assert index is not None
        size = 16 * self._inner() + 4 * index.checked
        content = bytes(shard[:size] if index.at_start else shard[max(0, len(shard) - size) :])
        body = content[: 16 * self._inner()]
        intact = len(content) == size
        if intact and index.checked:
            intact = crc32c(body) == int.from_bytes(content[-4:], "little")
        if not intact:
            raise DamagedStore(f"the index of {self._path}/{self._name(place)} was altered; restore it from a copy")
        inner = (f // c for f, c in zip(self._layout.file, self.chunk, strict=True))
        return np.frombuffer(body, "<u8").reshape(*inner, 2)

    def _missing(self, place: Place) -> DamagedStore:
        return DamagedStore(
            f"{self._file(place)} is missing; restore it from a copy, or, if it was left out because it holds nothing "
            "but fill values, write the array again under zarr.config.set({'array.write_empty_chunks': True})"
        )

    def _require_whole(self) -> None:
        """Look for every chunk, and compare what the array claims to hold with what there is."""
        stored = 0
        for place in _places(self.shape, self._layout.file):
            chunk = tuple(n * (f // c) for n, f, c in zip(place, self._layout.file, self.chunk, strict=True))
            size = self._files.size(self._name(chunk))
            if size is None:
                raise self._missing(chunk)
            stored += size
            if self._layout.index is not None:
                self._require_whole_shard(chunk)
            elif not self._layout.codecs and not self._text and size != self._most:
                raise DamagedStore(
                    f"{self._file(chunk)} has {size} bytes, expected {self._most}; it was cut short or overwritten: "
                    "restore it from a copy"
                )
        claimed, allowed = math.prod(self.shape) * self._layout.dtype.itemsize, _ALWAYS_ALLOWED + _EXPANSION * stored
        if claimed > allowed:
            raise ValueError(
                f"{self._named()} stores {stored} bytes and claims that they are {claimed}, more than is believable; "
                "write all rows, or with less compression"
            )
        if self._text:
            self._most = allowed

    def _require_whole_shard(self, first: Place) -> None:
        shard = self._files.read(self._name(first))
        ends = [
            min(start + f // c, -(-extent // c))
            for start, f, c, extent in zip(first, self._layout.file, self.chunk, self.shape, strict=True)
        ]
        for offset in _offsets(tuple(end - start for start, end in zip(first, ends, strict=True))):
            self._span(tuple(start + n for start, n in zip(first, offset, strict=True)), shard)


def _places(shape: Place, file: Place) -> Iterator[Place]:
    return _offsets(tuple(-(-extent // size) for extent, size in zip(shape, file, strict=True)))


def _offsets(counts: Place) -> Iterator[Place]:
    # itertools.product would first write down each range, and a hostile array claims long ones.
    if not counts:
        yield ()
        return
    for first in range(counts[0]):
        for rest in _offsets(counts[1:]):
            yield (first, *rest)
