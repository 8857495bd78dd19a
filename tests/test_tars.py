import io
import json
import tarfile
from pathlib import Path

import pytest
from image_files import png, put

from backbones.datasets.decoding import IMAGE_SUFFIXES
from backbones.datasets.image_set import ImageSet
from backbones.datasets.item_sets import image_items
from backbones.datasets.tars import tar_items


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def items_of(path: Path) -> list[tuple[str, str, bytes]]:
    return [(item.item_id, item.label, item.content()) for item in tar_items(path, IMAGE_SUFFIXES)]


def test_a_packed_folder_is_the_folder(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/2.png", "a/1.png"):
        put(tmp_path / "faces" / name, png(len(name) + ord(name[0]) + ord(name[2])))
    put(tmp_path / "faces/a/notes.txt", b"no image")
    with tarfile.open(tmp_path / "faces.tar", "w") as archive:
        archive.add(tmp_path / "faces", arcname="./faces")
    from_folder, from_tar = image_items(tmp_path / "faces"), image_items(tmp_path / "faces.tar")
    assert [item[:2] for item in from_tar] == [item[:2] for item in from_folder]
    assert [item.content() for item in from_tar] == [item.content() for item in from_folder]
    sets = [ImageSet(tmp_path / name, 8, max_bad=0, memory=64, workers=2) for name in ("faces", "faces.tar")]
    assert sets[0].digest == sets[1].digest


def test_webdataset_labels_from_cls_and_json(tmp_path: Path) -> None:
    members = {
        "s/000.jpg": b"zero",
        "s/000.cls": b"7\n",
        "s/001.png": b"one",
        "s/001.json": json.dumps({"label": 12}).encode(),
        "s/002.crop.jpg": b"two",
        "s/002.cls": b"Anna",
        "s/002.json": b'{"identity": "not this one"}',
    }
    assert items_of(write_tar(tmp_path / "a.tar", members)) == [
        ("s/000.jpg", "7", b"zero"),
        ("s/001.png", "12", b"one"),
        ("s/002.crop.jpg", "Anna", b"two"),
    ]


def test_a_folder_of_shards_is_one_set(tmp_path: Path) -> None:
    write_tar(tmp_path / "1.tar", {"b/1.jpg": b"1"})
    write_tar(tmp_path / "2.tar", {"a/1.jpg": b"2"})
    assert [(item.item_id, item.content()) for item in image_items(tmp_path)] == [("a/1.jpg", b"2"), ("b/1.jpg", b"1")]
    write_tar(tmp_path / "3.tar", {"a/1.jpg": b"3"})
    with pytest.raises(ValueError, match=r"2\.tar and .*3\.tar both hold a/1\.jpg"):
        image_items(tmp_path)


def test_links_and_devices_are_left_out_and_odd_names_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("a/link.jpg", tarfile.SYMTYPE),
            ("a/hard.jpg", tarfile.LNKTYPE),
            ("a/dev.jpg", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("a/real.jpg")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"real"))
    assert items_of(path) == [("a/real.jpg", "a", b"real")]
    for name in ("/a/1.jpg", "a/../1.jpg"):
        with pytest.raises(ValueError, match=r"expected plain files with relative names"):
            items_of(write_tar(path, {name: b""}))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.jpg": b""}, r"has 1\.jpg outside a folder"),
        ({"1.jpg": b"", "1.cls": b"0", "2.jpg": b""}, r"has 2\.jpg without 2\.cls"),
        ({"x/a/1.jpg": b"", "y/a/1.jpg": b""}, r"two images of the id a/1\.jpg"),
        ({"a/1.txt": b""}, r"holds no images"),
        ({"a/1.jpg": b"", "a/1.json": b"{"}, r"a/1\.json, which is no JSON"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.tar {words}|a\.tar .*{words}") as error:
        items_of(write_tar(tmp_path / "a.tar", members))
    assert "\n" not in str(error.value)


def test_compressed_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "gz.tar", {"a/1.jpg": b"1"}, "w:gz")
    put(tmp_path / "text.tar", b"hello" * 300)
    put(tmp_path / "empty.tar", b"")
    whole = write_tar(tmp_path / "whole.tar", {"a/1.jpg": b"1" * 3000, "a/2.jpg": b"2" * 3000}).read_bytes()
    put(tmp_path / "cut.tar", whole[:2000])
    for name in ("gz", "text", "empty", "cut"):
        with pytest.raises(ValueError, match=rf"{name}\.tar (is|holds)"):
            items_of(tmp_path / f"{name}.tar")


def test_no_damage_in_the_middle_passes_for_the_end(tmp_path: Path) -> None:
    names = [f"{name}/{number}.png" for name in "abc" for number in range(2)]
    path = write_tar(tmp_path / "a.tar", {name: png(seed) for seed, name in enumerate(names)})
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        headers = [member.offset for member in archive]
        end = archive.offset
    assert len(items_of(path)) == 6
    damages = {
        **{f"byte {place} of header {at}": flipped(whole, at + place) for at in headers for place in (0, 124, 150)},
        **{f"cut at the member at {at}": whole[:at] for at in [*headers[1:], end]},
        **{f"cut inside the header at {at}": whole[: at + size] for at in headers[1:] for size in (1, 300, 511)},
        **{f"cut inside the end, {size}": whole[: end + size] for size in (1, 511)},
        **{f"zeros for the header at {at}": whole[:at] + bytes(512) + whole[at + 512 :] for at in headers},
        "joined": whole + whole,
    }
    for damage, content in damages.items():
        put(path, content)
        with pytest.raises(ValueError, match=r"a\.tar .*(copy it again|copy the file again)") as error:
            pytest.fail(f"{damage}: {len(items_of(path))} items")
        assert "\n" not in str(error.value)
    put(path, whole[: end + 1024])  # without the padding to ten kilobytes, as some writers leave it
    assert len(items_of(path)) == 6


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
