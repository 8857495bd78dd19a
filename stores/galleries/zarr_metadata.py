"""What the metadata of a Zarr array, version 2 or 3, says of how its chunks are kept.

Nothing here is believed further than it can be checked: codecs are looked up in a list, types are plain numbers or
text, and consolidated metadata, which may name other places, is not read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from stores.galleries.zarr_codecs import DECODERS
from stores.galleries.zarr_files import ZarrFiles

_MOST_METADATA_BYTES = 4 * 2**20
_MOST_EXTENT = 2**53
_NUMBERS = {"bool": "|b1", "float16": "<f2", "float32": "<f4", "float64": "<f8"} | {
    f"{sign}int{8 * size}": f"<{sign[:1] or 'i'}{size}" for sign in ("", "u") for size in (1, 2, 4, 8)
}

Codec = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class ShardIndex:
    """Where a shard keeps the places of its chunks: `at_start` or at its end, with a CRC-32C or without."""

    at_start: bool
    checked: bool


@dataclass(frozen=True)
class ZarrNode:
    """An array as its metadata has it. `dtype` is None for types that hold neither numbers nor text.

    `text` says that it holds texts of any length. `body` is the metadata itself.
    """

    name: str
    version: int
    shape: tuple[int, ...]
    dtype: np.dtype | None
    text: bool
    body: dict[str, Any]


@dataclass(frozen=True)
class ZarrLayout:
    """How the chunks of an array are kept.

    Attributes:
        chunk: Extent of what is decoded at a time.
        file: Extent of what is in one file: `chunk`, or a whole number of chunks where they are sharded.
        order: Which axis of the array each axis of the stored chunk is.
        codecs: From bytes to bytes, in the order of encoding.
        index: Of a shard.
        prefix: What file names begin with, `c` and the separator in version 3.
        separator: Between the numbers in file names.
    """

    chunk: tuple[int, ...]
    file: tuple[int, ...]
    dtype: np.dtype
    order: tuple[int, ...]
    codecs: list[Codec]
    index: ShardIndex | None
    prefix: str
    separator: str


def read_nodes(files: ZarrFiles) -> list[ZarrNode]:
    """The array at the top, or the arrays of the group there.

    Raises:
        ValueError: If there is no Zarr metadata, or it cannot be read.
    """
    top = _node(files, "")
    if top is not None:
        return [top]
    if all(files.size(name) is None for name in ("zarr.json", ".zgroup")):
        raise ValueError("it has no zarr.json, .zarray or .zgroup; name the folder of a Zarr array or group")
    found = [_node(files, f"{name}/") for name in files.nodes() if not name.startswith((".", "__"))]
    return [node for node in found if node is not None]


def _node(files: ZarrFiles, folder: str) -> ZarrNode | None:
    body = _json(files, f"{folder}zarr.json")
    if body is not None:
        if body.get("zarr_format") != 3 or body.get("node_type") not in ("array", "group"):
            raise ValueError(f"{folder}zarr.json is no Zarr version 3 metadata; write the array again")
        if body["node_type"] == "group":
            return None
        dtype, text = _type_3(body.get("data_type"))
        version = 3
    else:
        body = _json(files, f"{folder}.zarray")
        if body is None:
            return None
        if body.get("zarr_format") != 2:
            raise ValueError(f"{folder}.zarray is no Zarr version 2 metadata; write the array again")
        dtype, text = _type_2(body.get("dtype"))
        version = 2
    return ZarrNode(folder.rstrip("/"), version, _extent(folder, "shape", body.get("shape"), 0), dtype, text, body)


def _json(files: ZarrFiles, name: str) -> dict[str, Any] | None:
    size = files.size(name)
    if size is None:
        return None
    if size > _MOST_METADATA_BYTES:
        raise ValueError(f"{name} has {size} bytes, expected at most {_MOST_METADATA_BYTES}; write the array again")
    try:
        body = json.loads(bytes(files.read(name)))
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not readable JSON; restore it from a copy") from None
    if not isinstance(body, dict):
        raise ValueError(f"{name} is not a JSON object; restore it from a copy")
    return body


def _extent(folder: str, what: str, found: Any, least: int) -> tuple[int, ...]:
    if isinstance(found, list) and all(type(n) is int and least <= n <= _MOST_EXTENT for n in found):
        return tuple(found)
    raise ValueError(f"array {folder or './'} has the {what} {str(found)[:60]}, expected whole numbers; write it again")


def _type_2(found: Any) -> tuple[np.dtype | None, bool]:
    if isinstance(found, str) and re.fullmatch(r"[<>|=]?[biufSU][1-9][0-9]{0,6}", found):
        try:
            return np.dtype(found), False
        except TypeError:
            return None, False
    return (np.dtype(object), True) if found == "|O" else (None, False)


def _type_3(found: Any) -> tuple[np.dtype | None, bool]:
    if isinstance(found, str):
        return (np.dtype(object), True) if found == "string" else (_number(found), False)
    if isinstance(found, dict) and isinstance(found.get("configuration"), dict):
        size = found["configuration"].get("length_bytes")
        if type(size) is int and 0 < size < 2**22:
            if found.get("name") == "fixed_length_utf32" and size % 4 == 0:
                return np.dtype(f"<U{size // 4}"), False
            if found.get("name") == "null_terminated_bytes":
                return np.dtype(f"S{size}"), False
    return None, False


def _number(name: str) -> np.dtype | None:
    return np.dtype(_NUMBERS[name]) if name in _NUMBERS else None


def layout_of(node: ZarrNode) -> ZarrLayout:
    """How the chunks of an array are kept.

    Raises:
        ValueError: If that is by codecs or in ways not known here.
    """
    if node.dtype is None:
        raise ValueError(f"array {node.name or '.'} holds neither numbers nor text; leave it out")
    layout = _layout_2(node, node.dtype) if node.version == 2 else _layout_3(node, node.dtype)
    if not len(layout.chunk) == len(layout.file) == len(node.shape):
        raise _odd(node, "chunk shape", list(layout.chunk))
    return layout


def _layout_2(node: ZarrNode, dtype: np.dtype) -> ZarrLayout:
    body = node.body
    filters = [_codec(node, found, "id") for found in body.get("filters") or []]
    if node.text:
        if not filters or filters[0][0] != "vlen-utf8":
            named = filters[0][0] if filters else "none"
            raise ValueError(
                f"array {node.name or '.'} holds Python objects (filter {named[:40]}), which are never unpickled; "
                "write it as strings or numbers"
            )
        filters = filters[1:]
    compressor = body.get("compressor")
    codecs = filters + ([_codec(node, compressor, "id")] if compressor is not None else [])
    # Of this name version 2 and 3 mean different things.
    codecs = [("numcodecs.crc32c" if name == "crc32c" else name, settings) for name, settings in codecs]
    axes = range(len(node.shape))
    order = {"C": tuple(axes), "F": tuple(reversed(axes))}.get(str(body.get("order", "C")))
    if order is None:
        raise _odd(node, "order", body.get("order"))
    chunk = _extent(node.name, "chunks", body.get("chunks"), 1)
    separator = _separator(node, body.get("dimension_separator", "."))
    return ZarrLayout(chunk, chunk, dtype, order, _known(node, codecs), None, "", separator)


def _layout_3(node: ZarrNode, dtype: np.dtype) -> ZarrLayout:
    body = node.body
    if body.get("storage_transformers"):
        raise _odd(node, "storage transformers", body["storage_transformers"])
    grid, grid_settings = _codec(node, body.get("chunk_grid"), "name")
    if grid != "regular":
        raise _odd(node, "chunk grid", grid)
    file = _extent(node.name, "chunk_shape", grid_settings.get("chunk_shape"), 1)
    encoding, settings = _codec(node, body.get("chunk_key_encoding"), "name")
    if encoding not in ("default", "v2"):
        raise _odd(node, "chunk key encoding", encoding)
    separator = _separator(node, settings.get("separator", "/" if encoding == "default" else "."))
    prefix = f"c{separator}" if encoding == "default" else ""
    chunk, index, codecs = file, None, _codecs_3(node, body.get("codecs"))
    if codecs and codecs[0][0] == "sharding_indexed":
        if len(codecs) > 1:
            raise _odd(node, "codecs after sharding", [name for name, _ in codecs[1:]])
        sharding = codecs[0][1]
        chunk = _extent(node.name, "inner chunk_shape", sharding.get("chunk_shape"), 1)
        if len(chunk) != len(file) or any(outer % inner for outer, inner in zip(file, chunk, strict=True)):
            raise _odd(node, "inner chunk_shape", list(chunk))
        index = _index(node, sharding)
        codecs = _codecs_3(node, sharding.get("codecs"))
    order = tuple(range(len(node.shape)))
    while codecs and codecs[0][0] == "transpose":
        order = _transposed(node, order, codecs.pop(0)[1].get("order"))
    name, settings = codecs.pop(0) if codecs else ("none", {})
    if node.text != (name == "vlen-utf8") or name not in ("bytes", "vlen-utf8"):
        raise _odd(node, "codec", name)
    if settings.get("endian") == "big":
        dtype = dtype.newbyteorder(">")
    return ZarrLayout(chunk, file, dtype, order, _known(node, codecs), index, prefix, separator)


def _codecs_3(node: ZarrNode, found: Any) -> list[Codec]:
    if not isinstance(found, list):
        raise _odd(node, "codecs", found)
    return [_codec(node, codec, "name") for codec in found]


def _index(node: ZarrNode, sharding: dict[str, Any]) -> ShardIndex:
    codecs = _codecs_3(node, sharding.get("index_codecs"))
    names = [name for name, _ in codecs]
    location = sharding.get("index_location", "end")
    if names not in (["bytes"], ["bytes", "crc32c"]) or codecs[0][1].get("endian", "little") != "little":
        raise _odd(node, "index codecs", names)
    if location not in ("start", "end"):
        raise _odd(node, "index location", location)
    return ShardIndex(location == "start", len(names) == 2)


def _transposed(node: ZarrNode, order: tuple[int, ...], by: Any) -> tuple[int, ...]:
    by = {"C": list(range(len(order))), "F": list(reversed(range(len(order))))}.get(by, by) if by in ("C", "F") else by
    if not isinstance(by, list) or any(type(axis) is not int for axis in by) or sorted(by) != list(range(len(order))):
        raise _odd(node, "order of transpose", by)
    return tuple(order[axis] for axis in by)


def _codec(node: ZarrNode, found: Any, key: str) -> Codec:
    if isinstance(found, str) and key == "name":
        return found, {}
    if isinstance(found, dict) and isinstance(found.get(key), str):
        settings = found if key == "id" else found.get("configuration") or {}
        if isinstance(settings, dict):
            return found[key], settings
    raise _odd(node, "codec", found)


def _known(node: ZarrNode, codecs: list[Codec]) -> list[Codec]:
    known = []
    for name, settings in codecs:
        plain = name.removeprefix("numcodecs.")
        chosen = name if name in DECODERS else plain
        if chosen not in DECODERS:
            raise ValueError(
                f"array {node.name or '.'} is kept by the codec {name[:40]!r}, expected one of "
                f"{', '.join(name for name in DECODERS if '.' not in name)}, or none; write it again"
            )
        known.append((chosen, settings))
    return known


def _separator(node: ZarrNode, found: Any) -> str:
    if found not in (".", "/"):
        raise _odd(node, "separator", found)
    return found


def _odd(node: ZarrNode, what: str, found: Any) -> ValueError:
    return ValueError(
        f"array {node.name or '.'} has the {what} {str(found)[:60]!r}, which is not understood here; write it again "
        "with regular chunks"
    )


def chunk_bytes(layout: ZarrLayout) -> int:
    """Bytes of one decoded chunk, of texts the pointers to them."""
    return math.prod(layout.chunk) * layout.dtype.itemsize
