import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_files import pixels as random_pixels
from image_files import write_image
from PIL import EpsImagePlugin, Image

from backbones.datasets import decoding
from backbones.datasets.decoding import UnreadableImage, decode_image, read_image


def test_central_square_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = random_pixels(0, 12, 20)
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "a.png", pixels), 12), pixels[:, 4:16])
    np.testing.assert_array_equal(
        read_image(write_image(tmp_path / "b.png", pixels.transpose(1, 0, 2)), 12), pixels.transpose(1, 0, 2)[4:16]
    )


def test_shrinking_averages_instead_of_picking(tmp_path: Path) -> None:
    chessboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = read_image(write_image(tmp_path / "a.png", chessboard), 16)
    assert small.dtype == np.uint8
    assert np.abs(small.astype(int) - 127).max() <= 12


def test_grey_palette_alpha_and_sixteen_bits_become_rgb(tmp_path: Path) -> None:
    grey = random_pixels(0, 8, 8)[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "grey.pgm", grey), 8), expected)
    wide = grey.astype(np.uint16) * 256 + 77
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "wide.png", wide), 8), expected)
    alpha = np.dstack([random_pixels(0, 8, 8), np.full((8, 8), 255, dtype=np.uint8)])
    np.testing.assert_array_equal(read_image(write_image(tmp_path / "alpha.png", alpha), 8), alpha[..., :3])
    Image.fromarray(expected).quantize(256).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", 8).shape == (8, 8, 3)


def test_a_turned_photo_is_read_upright(tmp_path: Path) -> None:
    pixels = random_pixels(0, 8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees counter-clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8), pixels)


def shape_or_reason(path: Path) -> str:
    try:
        return str(read_image(path, 8).shape)
    except UnreadableImage as error:
        told = str(error).startswith(f"cannot read image {path} (") and "\n" not in str(error)
        return "unreadable" if told else str(error)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "pgm"])
def test_damage_is_an_unreadable_image_or_pixels_but_never_another_error(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels(0, 24, 24)
    whole = write_image(tmp_path / f"a.{suffix}", pixels[..., 0] if suffix == "pgm" else pixels).read_bytes()
    generator = np.random.default_rng(1)
    outcomes = Counter()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(len(damaged), size=3):
            damaged[place] ^= 1 << int(generator.integers(8))
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(damaged[: generator.integers(1, len(damaged))])
        outcomes[shape_or_reason(path)] += 1
    assert set(outcomes) <= {"(8, 8, 3)", "unreadable"}
    assert outcomes["unreadable"] > 5


def jpeg(image: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


@pytest.fixture
def pillow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)


@pytest.mark.usefixtures("pillow_alone")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_without_the_faster_decoder(mode: str, progressive: bool) -> None:
    image = Image.fromarray(random_pixels(0, 20, 20)).resize((40, 40), Image.Resampling.BICUBIC).convert(mode)
    content = jpeg(image, progressive=progressive)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(decode_image(content, 40), expected)


@pytest.mark.usefixtures("pillow_alone")
def test_a_turned_jpeg_is_upright_without_the_faster_decoder() -> None:
    image = Image.fromarray(random_pixels(0, 10, 10)).resize((40, 40), Image.Resampling.BICUBIC)
    plain = decode_image(jpeg(image, subsampling=0, quality=100), 40).astype(int)
    for orientation, turns in ((1, 0), (3, 2), (6, 3), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = jpeg(Image.fromarray(np.rot90(np.asarray(image), -turns)), exif=exif, subsampling=0, quality=100)
        assert np.abs(decode_image(turned, 40) - plain).max() < 12


def test_oversized_jpegs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(Image.fromarray(random_pixels(0, 12, 12)))
    for limit in (100, 10):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match=r"cannot read image from bytes .*DecompressionBomb"):
            decode_image(content, 8)


@pytest.mark.parametrize("suffix", ["eps", "gif", "tiff", "ico", "pdf"])
def test_other_formats_are_refused_whatever_their_name(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_ghostscript(*_: object, **__: object) -> None:
        pytest.fail("Ghostscript would run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run_ghostscript)
    path = write_image(tmp_path / f"a.{suffix}", random_pixels(0, 16, 16)).rename(tmp_path / "x.jpg")
    with pytest.raises(UnreadableImage, match=r"x\.jpg .*no image of the formats JPEG, PNG, PPM, BMP, WEBP"):
        read_image(path, 8)


def test_missing_and_oversized_files_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableImage, match=r"none\.png \(FileNotFoundError"):
        read_image(tmp_path / "none.png", 8)
    path = write_image(tmp_path / "a.png", random_pixels(0, 12, 12))
    for limit in (100, 10):  # just above the limit Pillow warns, far above it raises
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match="DecompressionBomb"):
            read_image(path, 8)
