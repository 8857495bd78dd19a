import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_files import MAGIC, png, put, record, record_part, write_record_set

from backbones.datasets.item_sets import image_items
from backbones.datasets.record_io import record_items

IMAGES = [(3, png(1)), (3, png(2)), (11, png(3)), (3, png(4)), (0, png(5))]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_images_labels_and_ids_are_those_written(tmp_path: Path, index: bool, header: bool) -> None:
    path = write_record_set(tmp_path, IMAGES, index=index, header=header)
    items = record_items(path)
    first = 1 if header else 0
    assert [(item.label, item.content()) for item in items] == [(str(label), image) for label, image in IMAGES]
    assert [item.item_id for item in items] == [f"{label}/{first + n}" for n, (label, _) in enumerate(IMAGES)]
    assert [item.size for item in items] == [len(image) for _, image in IMAGES]
    assert image_items(tmp_path) == items


def test_records_cut_in_several_parts_come_back_whole(tmp_path: Path) -> None:
    # the data of a record are a header of 24 bytes and the image, so that these magic words are aligned
    images = [
        (1, MAGIC + b"abcd" + MAGIC + MAGIC + b"xyz"),
        (1, b"abc" + MAGIC),  # not aligned: stays in one part
        (2, b"1234" + MAGIC),
        (2, b"plain"),
    ]
    items = record_items(write_record_set(tmp_path, images, index=False))
    assert [item.content() for item in items] == [image for _, image in images]
    assert [item.size for item in items] == [len(image) for _, image in images]


def test_a_header_cut_by_a_magic_word_is_read(tmp_path: Path) -> None:
    key_is_magic = b"\0\0\0\0" + b"\0\0\0@" + MAGIC + b"\0" * 12 + b"image"  # flag 0, label 2.0
    content = record(key_is_magic)
    assert content.count(MAGIC) == 2
    (item,) = record_items(put(tmp_path / "a.rec", content))
    assert (item.label, item.content()) == ("2", b"image")


def test_no_image_is_read_at_opening(tmp_path: Path) -> None:
    items = record_items(write_record_set(tmp_path, [(0, b"no image at all"), (1, b"")]))
    assert [item.content() for item in items] == [b"no image at all", b""]


def test_every_truncation_is_one_line_naming_the_file(tmp_path: Path) -> None:
    path = write_record_set(tmp_path, IMAGES, index=False, header=False)
    whole = path.read_bytes()
    ends = np.cumsum(
        [len(record(b"\0" * (24 + (8 if key % 2 == 0 else 0)) + image)) for key, (_, image) in enumerate(IMAGES)]
    )
    for length in range(0, len(whole) - 4, 37):  # the last record's padding may be missing
        path.write_bytes(whole[:length])
        if length in ends:
            continue
        with pytest.raises(ValueError, match=r"train\.rec is (truncated|empty)") as error:
            record_items(path)
        assert "\n" not in str(error.value)


LONG = [(f"0\t{'1' * 5000}\n", r"line 1 is '0\\t1+', expected"), (f"{'1' * 19} 0\n", r"line 1 is '1+ 0', expected")]


def test_damage_is_one_line_naming_the_file(tmp_path: Path) -> None:
    path = write_record_set(tmp_path, IMAGES)
    whole = path.read_bytes()
    index = (tmp_path / "train.idx").read_text()
    second = int(index.splitlines()[2].split()[1])
    path.write_bytes(whole[:second] + b"x" + whole[second + 1 :])
    with pytest.raises(ValueError, match=rf"train\.rec is damaged: at byte {second} expected .* 0xced7230a"):
        record_items(path)
    path.write_bytes(whole[: second - 10])
    with pytest.raises(ValueError, match=r"train\.rec is truncated"):
        record_items(path)
    put(path, record_part(0, b"short"))
    (tmp_path / "train.idx").write_text("0\t0\n")
    with pytest.raises(ValueError, match=r"has 5 bytes, too few for its header"):
        record_items(path)
    put(path, record(b"\xff\xff\xff\xff" + b"\0" * 20))
    with pytest.raises(ValueError, match=r"too few for its header"):
        record_items(path)
    put(path, record(b"\0\0\0\0" + b"\0\0\xc0\x3f" + b"\0" * 16 + b"image"))  # 1.5
    with pytest.raises(ValueError, match=r"label 1.5 .* expected a whole number"):
        record_items(path)
    for text, words in (("0 zero\n", "line 1 is '0 zero'"), ("0\t0\n0\t0\n", "names a key twice"), *LONG):
        (tmp_path / "train.idx").write_text(text)
        with pytest.raises(ValueError, match=rf"train\.idx.*{words}|train\.idx {words}"):
            record_items(path)


def contents_or_reason(path: Path) -> tuple[list[bytes], str]:
    try:
        return [item.content() for item in record_items(path)], ""
    except ValueError as error:
        return [], str(error)


def test_flipped_bits_never_raise_anything_else(tmp_path: Path) -> None:
    path = write_record_set(tmp_path, IMAGES, index=False)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = Counter()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(damaged))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        read, reason = contents_or_reason(path)
        outcomes["read" if read else "refused"] += 1
        if read:
            assert len(read) == len(IMAGES)
            assert sum(found != image for found, (_, image) in zip(read, IMAGES, strict=True)) <= 1
        else:
            assert re.fullmatch(r"[^\n]*(train\.rec|property) (is|has|says) [^\n]+", reason)
    assert min(outcomes["read"], outcomes["refused"]) > 3


def test_property_with_fewer_identities_is_refused(tmp_path: Path) -> None:
    path = write_record_set(tmp_path, IMAGES)
    for said in ("2", "\N{SUPERSCRIPT TWO}", "2" * 5000):
        (tmp_path / "property").write_text(f"{said},112,112", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"property says '{said[:20]}' identities, train\.rec holds 3"):
            record_items(path)


def test_a_container_cut_after_opening_is_an_oserror(tmp_path: Path) -> None:
    path = write_record_set(tmp_path, IMAGES)
    item = record_items(path)[-1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError, match=r"train\.rec ends within"):
        item.content()
