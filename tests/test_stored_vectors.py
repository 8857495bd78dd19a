import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from backbones.datasets.stored_vectors import open_vectors


def array(header: dict, content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + content


def archive(path: Path, kind: int, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def header(descr: str, *shape: int) -> dict:
    return {"descr": descr, "fortran_order": False, "shape": shape}


IDS = array(header("<U1", 2), "ab".encode("utf-32-le"))
VECTORS = array(header("<f4", 2, 2), np.ones(4, "<f4").tobytes())


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"item_id": array(header("<U1", 10**13), b"a\0\0\0" * 2)}, "has item_id <U1 [10000000000000], not as long as"),
        ({"item_id": array(header("<U0", 10**13), b"")}, "expected strings or integers"),
        ({"item_id": array(header("<U1", 2), b"a\0\0\0")}, "has item_id <U1 [2], not as long as"),
        ({"vectors": array(header("<f4", 2, 10**13), b"")}, "has vectors float32 [2, 10000000000000], not as long as"),
    ],
)
def test_a_header_that_claims_more_than_there_is(tmp_path: Path, kind: int, members: dict, words: str) -> None:
    path = archive(tmp_path / "t.npz", kind, **({"item_id": IDS, "vectors": VECTORS} | members))
    with pytest.raises(ValueError, match=r"t\.npz ") as error:
        open_vectors(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["item_id", "vectors"])
def test_an_entry_that_claims_more_than_the_file_can_hold(tmp_path: Path, name: str) -> None:
    rows, width = 4, 1 << 26
    claimed = array(
        header("<U1" if name == "item_id" else "<f4", *((width,) if name == "item_id" else (rows, width))), b""
    )
    ids = array(header("<i8", rows), np.arange(rows).tobytes())
    path = archive(tmp_path / "t.npz", zipfile.ZIP_DEFLATED, **({"item_id": ids, "vectors": VECTORS} | {name: claimed}))
    content = bytearray(path.read_bytes())
    size = len(claimed) + width * 4 * (1 if name == "item_id" else rows)
    directory = content.index(b"PK\1\2") if name == "item_id" else content.rindex(b"PK\1\2")
    content[directory + 24 : directory + 28] = size.to_bytes(4, "little")  # its length once unpacked
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"has {name} of {size} bytes, more than the file can hold"):
            open_vectors(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_ids_and_vectors_are_those_written(tmp_path: Path, kind: int) -> None:
    found = open_vectors(archive(tmp_path / "t.npz", kind, item_id=IDS, vectors=VECTORS))
    assert found.item_ids == ["a", "b"]
    np.testing.assert_array_equal(found.vectors, np.ones((2, 2)))
    none = {"item_id": array(header("<U1", 0), b""), "vectors": array(header("<f4", 0, 2), b"")}
    assert open_vectors(archive(tmp_path / "none.npz", kind, **none)).item_ids == []
