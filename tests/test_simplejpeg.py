import io
from pathlib import Path

import numpy as np
import pytest
from image_files import put
from PIL import Image

from backbones.datasets import decoding
from backbones.datasets.decoding import UnreadableImage, decode_image, read_image

simplejpeg = pytest.importorskip("simplejpeg")


def photograph(height: int, width: int, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(256, size=(height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + generator.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def same_from_both(content: bytes, size: int, monkeypatch: pytest.MonkeyPatch, *, uses_library: bool) -> None:
    called = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *given, **named: called.append(1) or real(*given, **named))
    quick = decode_image(content, size)
    assert bool(called) is uses_library
    called.clear()
    np.testing.assert_array_equal(quick, decode_image(content, size, fast=False))
    assert not called


@pytest.mark.parametrize("shape", [(61, 61), (40, 75), (8, 8), (1, 3)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_decoders_give_the_same_pixels(
    shape: tuple[int, int], subsampling: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for quality in (20, 75, 95):
        image = photograph(*shape, seed=quality).convert(mode)
        for settings in ({}, {"restart_marker_blocks": 2}, {"optimize": True}):
            content = jpeg(image, quality=quality, subsampling=subsampling, **settings)
            same_from_both(content, 24, monkeypatch, uses_library=True)


def test_rarer_jpegs_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(50, 45, 0)
    for sampling in ("440", "411"):
        content = simplejpeg.encode_jpeg(np.asarray(image), 80, colorsubsampling=sampling)
        same_from_both(content, 24, monkeypatch, uses_library=True)
    same_from_both(jpeg(image, keep_rgb=True), 24, monkeypatch, uses_library=True)
    same_from_both(jpeg(image, progressive=True), 24, monkeypatch, uses_library=False)
    same_from_both(jpeg(image.convert("CMYK")), 24, monkeypatch, uses_library=False)


def test_a_turned_jpeg_is_upright_from_both(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(40, 40, 1)
    plain = decode_image(jpeg(image, subsampling=0, quality=100), 40)
    for orientation, turns in ((1, 0), (3, 2), (6, 3), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = Image.fromarray(np.rot90(np.asarray(image), -turns))
        content = jpeg(turned, exif=exif, subsampling=0, quality=100)
        same_from_both(content, 40, monkeypatch, uses_library=True)
        assert np.abs(decode_image(content, 40).astype(int) - plain).max() < 12


def outcome(content: bytes, *, fast: bool) -> bytes | None:
    try:
        return decode_image(content, 16, fast=fast).tobytes()
    except UnreadableImage:
        return None


def test_damage_has_the_same_outcome_from_both() -> None:
    whole = jpeg(photograph(40, 40, 2))
    generator = np.random.default_rng(0)
    outcomes = []
    for _ in range(200):
        damaged = bytearray(whole)
        for place in generator.integers(len(damaged), size=2):
            damaged[place] ^= 1 << int(generator.integers(8))
        content = bytes(damaged[: int(generator.integers(1, 2 * len(damaged)))])
        outcomes.append(outcome(content, fast=True))
        assert outcomes[-1] == outcome(content, fast=False)
    assert any(found is None for found in outcomes)
    assert any(found is not None for found in outcomes)


def test_without_the_library_pillow_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.jpg", jpeg(photograph(30, 30, 3)))
    expected = read_image(path, 16)
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("the library decodes"))
    np.testing.assert_array_equal(read_image(path, 16), expected)
