from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.datasets.folders import scan_image_folder


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def test_scan_is_sorted_and_ignores_what_is_no_image(tmp_path: Path) -> None:
    for name in ("s2/b.PNG", "s2/a.jpg", "s10/1.pgm", ".hidden/1.png", "s2/.DS.png", "loose.png"):
        write(tmp_path / name, random_pixels(4, 4)[..., 0])
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
    write(tmp_path / "loose.png", random_pixels(4, 4))
    with pytest.raises(ValueError, match="put each identity's files into a folder of its own"):
        scan_image_folder(tmp_path)
