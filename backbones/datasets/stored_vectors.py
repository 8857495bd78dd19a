"""Vectors with ids in a .npz archive, checked once and then mapped.

Shapes: n items, d embedding dimension.
"""

import hashlib
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

BLOCK_BYTES = 32 * 2**20
MOST_COMPRESSION = 1032  # of deflate: 258 bytes from two bits
EXPORT = "write it with `python -m stores.convert STORE FILE.npz`"


class StoredVectors(NamedTuple):
    """What an archive holds.

    Attributes:
        vectors: floats [n, d], mapped where the archive is not compressed.
        item_ids: n strings.
        digest: hexadecimal SHA-256 over ids and vectors.
    """

    vectors: np.ndarray
    item_ids: list[str]
    digest: str


def open_vectors(path: Path) -> StoredVectors:
    """Open the arrays `vectors` and `item_id` of an .npz archive, and read all of both once to check them.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is damaged or no such archive, or holds a vector that is zero or not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"teacher {path} not found, expected an .npz archive; {EXPORT}")
    try:
        return _open(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, tokenize.TokenError) as error:
        raise ValueError(f"{path} cannot be read as an .npz archive ({error}); {EXPORT} again") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} cannot be read as an .npz archive ({error}); {EXPORT} again") from error


def _open(path: Path) -> StoredVectors:
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        for wanted in ("vectors", "item_id"):
            if wanted not in names:
                shown = ", ".join(sorted(names)[:8]) or "none"
                raise ValueError(f"{path} holds the arrays {shown}, expected `vectors` and `item_id`; {EXPORT}")
        entry = archive.getinfo("item_id.npy")
        with archive.open(entry) as file:
            shape, _, dtype = _array_header(path, entry, file)
            if len(shape) != 1 or dtype.kind not in "iuU" or not dtype.itemsize:
                raise ValueError(f"{path} has item_id {dtype} {list(shape)}, expected strings or integers [n]")
            ids = np.frombuffer(file.read(), dtype) if shape[0] else np.empty(0, dtype)
        item_ids = [str(item_id) for item_id in ids.tolist()]
        digest = hashlib.sha256("\n".join([str(len(ids)), *item_ids]).encode())
        entry = archive.getinfo("vectors.npy")
        with archive.open(entry) as file:
            shape, by_columns, dtype = _array_header(path, entry, file)
            header = file.tell()
            if len(shape) != 2 or shape[1] < 1 or dtype.kind != "f" or len(item_ids) != shape[0]:
                raise ValueError(
                    f"{path} has vectors {dtype} {list(shape)} and {len(item_ids)} item ids, expected floats [n, d] "
                    f"and n ids; {EXPORT}"
                )
            if by_columns and min(shape) > 1:
                raise ValueError(f"{path} holds its vectors column by column, expected row by row; {EXPORT}")
            mapped = entry.compress_type == zipfile.ZIP_STORED
            kept = None if mapped else np.empty(shape, dtype)
            width = shape[1] * dtype.itemsize
            step = max(1, BLOCK_BYTES // width)
            for start in range(0, shape[0], step):
                content = file.read(min(step, shape[0] - start) * width)
                block = np.frombuffer(content, dtype).reshape(-1, shape[1])
                _check(path, block, item_ids[start : start + step])
                digest.update(content)
                if kept is not None:
                    kept[start : start + step] = block
            file.read(1)  # at the end of a member its checksum is compared
    vectors = _mapped(path, entry, header, shape, dtype) if kept is None else kept
    return StoredVectors(vectors, item_ids, digest.hexdigest())


def _array_header(path: Path, entry: zipfile.ZipInfo, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, order and dtype of an array, and check them before anything of the size they claim is made."""
    name = entry.filename.removesuffix(".npy")
    # Version 1 has headers of up to 64 KiB, plenty for a plain array
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{path} has {name} with a header of another version; {EXPORT} again")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects")
    if file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{path} has {name} {dtype} {list(shape)}, not as long as its header says; {EXPORT} again")
    if entry.file_size > MOST_COMPRESSION * path.stat().st_size:
        raise ValueError(f"{path} has {name} of {entry.file_size} bytes, more than the file can hold; {EXPORT} again")
    return shape, by_columns, dtype


def _check(path: Path, block: np.ndarray, item_ids: list[str]) -> None:
    usable = np.isfinite(block).all(axis=1) & block.any(axis=1)
    if not usable.all():
        raise ValueError(
            f"{path} has a vector that is zero or not finite, of {item_ids[int(np.argmin(usable))]!r}; "
            "expected directions to learn from; embed with a sound teacher"
        )


def _mapped(path: Path, entry: zipfile.ZipInfo, header: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)  # the lengths of the name and of what follows it, in the local header
        lengths = np.frombuffer(file.read(4), "<u2").tolist()
    return np.memmap(path, dtype, mode="r", offset=entry.header_offset + 30 + sum(lengths) + header, shape=shape)
