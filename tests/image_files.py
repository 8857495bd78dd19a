"""Small image files and containers for tests, written independently of the readers."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

MAGIC = struct.pack("<I", 0xCED7230A)


def pixels(seed: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def png(seed: int, height: int = 12, width: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, height, width)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def record_part(kind: int, data: bytes) -> bytes:
    return MAGIC + struct.pack("<I", kind << 29 | len(data)) + data + b"\0" * (-len(data) % 4)


def record(data: bytes) -> bytes:
    """Write one record, cut at every aligned magic word as the format demands."""
    cuts = [at for at in range(0, len(data) - 3, 4) if data[at : at + 4] == MAGIC]
    if not cuts:
        return record_part(0, data)
    starts, ends = [0, *(at + 4 for at in cuts)], [*cuts, len(data)]
    kinds = [1, *[2] * (len(cuts) - 1), 3]
    return b"".join(record_part(k, data[a:b]) for k, a, b in zip(kinds, starts, ends, strict=True))


def labelled(labels: list[float], key: int, image: bytes) -> bytes:
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], key, 0) + image
    return struct.pack("<IfQQ", len(labels), 0.0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + image


def write_record_set(folder: Path, images: list[tuple[int, bytes]], *, index: bool = True, header: bool = True) -> Path:
    """Write train.rec, train.idx and property as InsightFace does: a header, the images, a record per identity."""
    folder.mkdir(parents=True, exist_ok=True)
    identities = sorted({label for label, _ in images})
    first = 1 if header else 0
    end = first + len(images)
    records = [labelled([float(end), float(end + len(identities))], 0, b"")] if header else []
    for key, (label, image) in enumerate(images, start=first):
        # every other one with two labels, as in the published sets
        records.append(labelled([float(label)] if key % 2 else [float(label), 0.5], key, image))
    if header:
        records += [labelled([1.0, 2.0], end + number, b"") for number in range(len(identities))]
    content, lines = b"", []
    for key, data in enumerate(records):
        lines.append(f"{key}\t{len(content)}\n")
        content += record(data)
    if index:
        (folder / "train.idx").write_text("".join(lines))
    (folder / "property").write_text(f"{len(identities)},112,112")
    return put(folder / "train.rec", content)
