"""Images in uncompressed tar files and plain folders, the same bytes whenever they are written."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def read_tar(path: Path) -> tuple[np.ndarray, list[str]]:
    """Images uint8 [n, s, s, 3] of a tar written here and their item ids, in the tar's order."""
    item_ids, images = [], []
    for name, content in tar_members(path):
        item_ids.append(name)
        images.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    return np.stack(images), item_ids


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a tar written here.

    Raises:
        ValueError: If it holds anything but files.
    """
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                raise ValueError(f"{path} holds {member.name}, which is no file; remove the folder and build again")
            yield member.name, content.read()


def png_bytes(image: np.ndarray) -> bytes:
    """An image uint8 [s, s] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def write_tar(out: Path, name: str, images: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """Write NAME.tar with nothing in it that the day or the user decides; return what the manifest says of it."""
    path, count = out / f"{name}.tar", 0
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in images:
            entry = tarfile.TarInfo(member)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
            count += 1
    partial.replace(path)
    return {"file": path.name, "sha256": file_digest(path), "images": count}


def write_folder(folder: Path, images: Iterable[tuple[str, bytes]]) -> None:
    """Write the same members as plain files, which may be there already."""
    for member, content in images:
        path = folder / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
