"""Decoding the chunks of Zarr arrays that others wrote, with a limit on what a chunk may grow to.

Only the codecs named here are run. Each gets the bytes and the most bytes that it may return: a compressed chunk says
of itself how large it becomes, and is not believed.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from crc32c import crc32c

Decoder = Callable[[dict[str, Any], bytes | memoryview, int], bytes | memoryview]

_MOST_LZMA_BYTES = 256 * 2**20  # for its dictionary


def decode(codecs: list[tuple[str, dict[str, Any]]], content: bytes | memoryview, most: int) -> bytes | memoryview:
    """Undo codecs, the last one first.

    Args:
        codecs: (name, configuration) in the order of encoding; see `DECODERS`.
        content: The bytes of a chunk.
        most: What it may grow to.

    Raises:
        ValueError: If the bytes are damaged or grow beyond `most`, in one line without the name of the chunk.
    """
    for name, settings in reversed(codecs):
        try:
            content = DECODERS[name](settings, content, most)
        except (OSError, RuntimeError, EOFError, zlib.error, lzma.LZMAError, TypeError, MemoryError) as error:
            raise ValueError(f"{name}: {(str(error) or type(error).__name__).splitlines()[0][:150]}") from None
        if len(content) > most:
            raise ValueError(f"{name}: it grows beyond {most} bytes")
    return content


def _crc32c(_: dict[str, Any], content: bytes | memoryview, __: int) -> memoryview:
    view = memoryview(content)
    return _checked(view[:-4], view[-4:], crc32c(view[:-4]))


def _checked(body: memoryview, checksum: memoryview, expected: int) -> memoryview:
    if len(checksum) != 4 or int.from_bytes(checksum, "little") != expected:
        raise ValueError("it does not match its checksum: its bytes were altered")
    return body


def _by_zlib(sum_of: Callable[[Any], int]) -> Decoder:
    def decoded(settings: dict[str, Any], content: bytes | memoryview, _: int) -> memoryview:
        view = memoryview(content)
        if settings.get("location", "start") == "end":
            return _checked(view[:-4], view[-4:], sum_of(view[:-4]))
        return _checked(view[4:], view[:4], sum_of(view[4:]))

    return decoded


def _numcodecs_crc32c(settings: dict[str, Any], content: bytes | memoryview, _: int) -> memoryview:
    view = memoryview(content)
    at_start = settings.get("location", "end") == "start"
    body, checksum = (view[4:], view[:4]) if at_start else (view[:-4], view[-4:])
    return _checked(body, checksum, crc32c(body))


def _deflate(_: dict[str, Any], content: bytes | memoryview, most: int) -> bytes:
    parts, rest = [], bytes(content)
    while rest:  # gzip files may be joined
        stream = zlib.decompressobj(wbits=47)  # of zlib or gzip, as the first bytes say
        parts.append(stream.decompress(rest, most + 1))
        if len(parts[-1]) > most:
            break
        if not stream.eof:
            raise ValueError("it is cut short")
        rest = stream.unused_data
        most -= len(parts[-1])
    return b"".join(parts)


def _bz2(_: dict[str, Any], content: bytes | memoryview, most: int) -> bytes:
    return _whole(bz2.BZ2Decompressor(), content, most)


def _lzma(_: dict[str, Any], content: bytes | memoryview, most: int) -> bytes:
    return _whole(lzma.LZMADecompressor(memlimit=_MOST_LZMA_BYTES), content, most)


def _whole(stream: bz2.BZ2Decompressor | lzma.LZMADecompressor, content: bytes | memoryview, most: int) -> bytes:
    decoded = stream.decompress(bytes(content), most + 1)
    if not stream.eof and len(decoded) <= most:
        raise ValueError("it is cut short")
    return decoded


def _zstd(_: dict[str, Any], content: bytes | memoryview, most: int) -> bytes:
    import pyarrow as pa

    # As a stream: the size that a frame claims is not allocated.
    return pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(content)), "zstd").read(most + 1)


def _blosc(_: dict[str, Any], content: bytes | memoryview, most: int) -> bytes:
    from numcodecs.blosc import Blosc

    header = bytes(content[:16])
    size, stored = int.from_bytes(header[4:8], "little"), int.from_bytes(header[12:16], "little")
    if len(header) < 16 or stored != len(content):
        raise ValueError(f"it has {len(content)} bytes and says {stored}")
    if size > most:
        raise ValueError(f"it says that it grows to {size} bytes, expected at most {most}")
    return Blosc().decode(content)


def _lz4(_: dict[str, Any], content: bytes | memoryview, most: int) -> bytes:
    from numcodecs.lz4 import LZ4

    size = int.from_bytes(bytes(content[:4]), "little")
    if size > most:
        raise ValueError(f"it says that it grows to {size} bytes, expected at most {most}")
    return LZ4().decode(content)


def _shuffle(settings: dict[str, Any], content: bytes | memoryview, _: int) -> bytes:
    size = settings.get("elementsize", 4)
    if not isinstance(size, int) or size < 1 or len(content) % size:
        raise ValueError(f"{len(content)} bytes are not shuffled by {size}")
    return np.frombuffer(content, np.uint8).reshape(size, -1).T.tobytes()


def _same(_: dict[str, Any], content: bytes | memoryview, __: int) -> bytes | memoryview:
    return content


DECODERS: dict[str, Decoder] = {
    "crc32c": _crc32c,
    "gzip": _deflate,
    "zlib": _deflate,
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
    "bz2": _bz2,
    "lzma": _lzma,
    "shuffle": _shuffle,
    "crc32": _by_zlib(zlib.crc32),
    "adler32": _by_zlib(zlib.adler32),
    "numcodecs.crc32c": _numcodecs_crc32c,
    "bitround": _same,  # what it rounded away is gone
}
"""The codecs from bytes to bytes, of Zarr version 2 and 3."""


def decode_texts(content: bytes | memoryview, count: int) -> list[str]:
    """Undo `vlen-utf8`: the number of texts, then for each its bytes' number and its bytes in UTF-8.

    Raises:
        ValueError: If there are not `count` texts, or they are damaged.
    """
    from numcodecs.vlen import VLenUTF8

    found = int.from_bytes(bytes(content[:4]), "little")
    if len(content) < 4 + 4 * count or found != count:
        raise ValueError(f"it holds {found} texts in {len(content)} bytes, expected {count}")
    return VLenUTF8().decode(bytes(content)).tolist()


def encode_texts(texts: list[str]) -> bytes:
    """Texts as `vlen-utf8` has them."""
    encoded = [text.encode() for text in texts]
    return len(texts).to_bytes(4, "little") + b"".join(
        part for text in encoded for part in (len(text).to_bytes(4, "little"), text)
    )
