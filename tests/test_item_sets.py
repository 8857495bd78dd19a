from pathlib import Path

import pytest
from image_files import png, put, write_record_set

from backbones.datasets.decoding import IMAGE_SUFFIXES
from backbones.datasets.item_sets import image_items, open_items


def test_the_digest_of_items_changes_with_names_sizes_and_labels(tmp_path: Path) -> None:
    put(tmp_path / "1.png", b"one")
    put(tmp_path / "2.png", b"two")

    def digest_of(text: str) -> str:
        return open_items(put(tmp_path / "train.txt", text.encode()), IMAGE_SUFFIXES).digest

    texts = ("1.png anna\n2.png bob\n", "2.png bob\n1.png anna\n", "1.png bob\n2.png anna\n", "1.png anna\n")
    digests = [digest_of(text) for text in texts]
    put(tmp_path / "1.png", b"longer")
    digests.append(digest_of("1.png anna\n"))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_a_flat_folder_has_images_without_identities(tmp_path: Path) -> None:
    for seed, name in enumerate(("b.png", "a.PNG", ".hidden.png")):
        put(tmp_path / "flat" / name, png(seed))
    put(tmp_path / "flat/.cache/1.png", png(1))
    put(tmp_path / "flat/notes.txt", b"no image")
    items = image_items(tmp_path / "flat")
    assert [(item.item_id, item.label, item.content()) for item in items] == [
        ("a.PNG", "", png(1)),
        ("b.png", "", png(0)),
    ]
    opened = open_items(tmp_path / "flat", IMAGE_SUFFIXES)
    assert (opened.count, opened.label_type, opened.files) == (2, None, True)
    put(tmp_path / "flat/anna/1.png", png(2))  # now a folder of identities, which loose images are no part of
    assert [item.item_id for item in image_items(tmp_path / "flat")] == ["anna/1.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="put each identity's files into a folder of its own"):
        image_items(tmp_path / "empty")


def test_a_root_is_for_lists_of_images(tmp_path: Path) -> None:
    put(tmp_path / "images/a/1.png", png(1))
    put(tmp_path / "images/b/1.png", png(2))
    root = tmp_path / "images"
    listed = put(tmp_path / "lists/train.txt", b"a/1.png anna\nb/1.png bob\n")
    pairs = put(tmp_path / "lists/pairs.txt", b"a/1.png b/1.png 0\n")
    for path in (listed, pairs):
        for items in (image_items(path, root), open_items(path, IMAGE_SUFFIXES, root).since(0)):
            assert [item.content() for item in items] == [png(1), png(2)]
    write_record_set(tmp_path / "records", [(1, png(1))])
    for path in (root, tmp_path / "records/train.rec"):
        for suffixes in (IMAGE_SUFFIXES, IMAGE_SUFFIXES | {".dcm"}, frozenset({".txt"})):
            with pytest.raises(ValueError, match=r"is no list of images, so the root .* leave the root out"):
                open_items(path, suffixes, root)
        with pytest.raises(ValueError, match=r"is no list of images"):
            image_items(path, root)
