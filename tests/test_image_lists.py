from pathlib import Path

import pytest
from image_files import png, put

from backbones.datasets.image_set import ImageSet
from backbones.datasets.item_sets import image_items


def write_list(path: Path, text: str) -> Path:
    return put(path, text.encode())


def test_paths_with_spaces_duplicates_and_another_root(tmp_path: Path) -> None:
    path = write_list(
        tmp_path / "train.txt", "a/my face.png  anna\n\n./a//2.png\tanna\nb/1.png bob\na/my face.png anna\n"
    )
    items = image_items(path)
    assert [item[:2] for item in items] == [("a/2.png", "anna"), ("a/my face.png", "anna"), ("b/1.png", "bob")]
    assert items[1].path == tmp_path / "a/my face.png"
    assert image_items(path, tmp_path / "faces")[0].path == tmp_path / "faces/a/2.png"


def test_a_list_of_a_folder_is_the_folder(tmp_path: Path) -> None:
    names = ("a/1.png", "b/1.png", "b/2.png")
    for seed, name in enumerate(names):
        put(tmp_path / "faces" / name, png(seed))
    write_list(tmp_path / "faces/all.txt", "".join(f"{name} {name[0]}\n" for name in reversed(names)))
    assert image_items(tmp_path / "faces/all.txt") == image_items(tmp_path / "faces")


def test_missing_files_are_counted_as_unreadable(tmp_path: Path) -> None:
    put(tmp_path / "a/1.png", png(1))
    path = write_list(tmp_path / "train.txt", "a/1.png a\na/2.png a\n")
    images = ImageSet(path, 8, max_bad=1, memory=1, workers=1)
    assert (images.skipped, len(images)) == (["a/2.png"], 1)
    assert image_items(path)[1].size == 0
    with pytest.raises(ValueError, match=r"1 unreadable images, --max_bad allows 0: cannot read image .*2\.png"):
        ImageSet(path, 8, max_bad=0, memory=1, workers=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/1.png a\na/2.png\n", r"line 2 is 'a/2\.png', expected"),
        ("a/1.png a\na/1.png b\n", r"line 2 gives a/1\.png the identity b, an earlier line a"),
        ("/a/1.png a\n", r"line 1 has the absolute path /a/1\.png"),
        ("../a/1.png a\n", r"line 1 has the path \.\./a/1\.png, expected one below the list's folder, without `\.\.`"),
        ("a/../b/1.png b\n", r"line 1 has the path a/\.\./b/1\.png, expected"),
        ("a/1.png b/1.png 2\n", r"line 1 is 'a/1\.png b/1\.png 2', expected `path path 0\|1`"),
        ("a/1.png b/1.png\n", r"line 1 is 'a/1\.png b/1\.png', expected `path path 0\|1`"),
        ("\n", "lists no images"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.txt {words}"):
        image_items(write_list(tmp_path / "train.txt", text))


def test_bytes_that_are_no_text_and_other_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.txt is no UTF-8 text"):
        image_items(put(tmp_path / "train.txt", b"a/1.png \xff\xfe\n"))
    with pytest.raises(ValueError, match=r"train\.csv is no set of images; expected a folder of identities"):
        image_items(put(tmp_path / "train.csv", b""))
    with pytest.raises(FileNotFoundError, match=r"nowhere not found; expected a folder of identities"):
        image_items(tmp_path / "nowhere")
