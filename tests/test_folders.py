from pathlib import Path

import pytest
from image_files import pixels as random_pixels
from image_files import write_image

from backbones.datasets.folders import scan_image_folder


def test_scan_is_sorted_and_ignores_what_is_no_image(tmp_path: Path) -> None:
    for name in ("s2/b.PNG", "s2/a.jpg", "s10/1.pgm", ".hidden/1.png", "s2/.DS.png", "loose.png"):
        write_image(tmp_path / name, random_pixels(0, 4, 4)[..., 0])
    (tmp_path / "s2" / "notes.txt").write_text("no image")
    items = scan_image_folder(tmp_path)
    assert [(item.item_id, item.label) for item in items] == [
        ("s10/1.pgm", "s10"),
        ("s2/a.jpg", "s2"),
        ("s2/b.PNG", "s2"),
    ]
    assert items[0].path == tmp_path / "s10" / "1.pgm"


def test_scan_explains_a_missing_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not found; expected a folder with one folder per identity"):
        scan_image_folder(tmp_path / "nowhere")
    write_image(tmp_path / "loose.png", random_pixels(0, 4, 4))
    with pytest.raises(ValueError, match="put each identity's files into a folder of its own"):
        scan_image_folder(tmp_path)
