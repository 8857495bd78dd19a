"""From the bytes of an image file to pixels of the size a network takes.

Baseline JPEGs are decoded by simplejpeg where it is installed (extra `jpeg`), everything else by Pillow. Both run
libjpeg-turbo with its accurate inverse transform and smooth chroma upsampling, so the pixels are equal bit for bit,
which the tests check: the choice of decoder is part of no fingerprint and no digest, and a machine without simplejpeg
is slower only. What simplejpeg refuses or warns of, Pillow decides.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from backbones.datasets.image_item import ImageItem

# An image is what its bytes say, not its name, and of Pillow's formats some run other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".pgm", ".bmp", ".webp"})
# What Pillow's decoders raise on damaged files (measured on truncated and bit-flipped ones), and its size limit.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
JPEG_COLOURS = {"RGB": "RGB", "L": "GRAY"}  # Pillow's mode and simplejpeg's name; CMYK is left to Pillow


class UnreadableImage(ValueError):
    """A file that should hold an image and cannot be decoded, or must not be because of its size."""


def decode_image(content: bytes, size: int, *, name: str = "from bytes", fast: bool = True) -> np.ndarray:
    """Decode an image, upright, its central square resized to `size` pixels.

    Args:
        content: an image file's bytes.
        size: side of the result in pixels.
        name: what to call the image in an error.
        fast: False leaves baseline JPEGs to Pillow too; the pixels are the same.

    Returns:
        uint8 [size, size, 3], RGB; a grey image has three equal channels.

    Raises:
        UnreadableImage: for an image that is damaged, oversized (Pillow's limit, 89 megapixels) or not of `FORMATS`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are too many")
            quick = _decode_baseline_jpeg(image, content) if fast else None
            upright = _eight_bit(ImageOps.exif_transpose(image if quick is None else quick))
    except UnidentifiedImageError as error:
        raise unreadable(name, ValueError(f"no image of the formats {', '.join(FORMATS)}")) from error
    except DECODER_ERRORS as error:
        raise unreadable(name, error) from error
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(square.convert("RGB"))


def read_image(path: Path, size: int) -> np.ndarray:
    """Read and decode an image file; see `decode_image`.

    Raises:
        UnreadableImage: for a missing file too.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error) from error
    return decode_image(content, size, name=str(path))


def read_item(item: ImageItem, size: int) -> np.ndarray:
    """Read and decode one image of a set; see `decode_image`.

    Raises:
        UnreadableImage: for a missing, damaged or oversized one.
    """
    name = str(item.path) if item.source == item.path else f"{item.item_id} of {item.path}"
    try:
        content = item.content()
    except OSError as error:
        raise unreadable(name, error) from error
    return decode_image(content, size, name=name)


def stack_images(images: Sequence[np.ndarray]) -> Tensor:
    """Stack uint8 images [h, w, 3] as uint8 [n, 3, h, w], in channels-last layout, without a second copy."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def unreadable(name: str, error: Exception) -> UnreadableImage:
    """Say in one line which image cannot be read, and why."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return UnreadableImage(f"cannot read image {name} ({reason}); replace or remove the file")


def _decode_baseline_jpeg(image: Image.Image, content: bytes) -> Image.Image | None:
    """Decode by simplejpeg what Pillow has opened; None for what is Pillow's."""
    library = _simplejpeg()
    colours = JPEG_COLOURS.get(image.mode)
    if library is None or colours is None or image.format != "JPEG" or "progressive" in image.info:
        return None
    try:
        pixels = library.decode_jpeg(content, colorspace=colours, fastdct=False, fastupsample=False)
    except ValueError:  # damage, or a warning: what becomes of it must not depend on what is installed
        return None
    decoded = Image.fromarray(pixels[..., 0] if colours == "GRAY" else pixels)
    decoded.info = image.info  # the photograph's orientation is in there
    return decoded


@cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring any mode to L or RGB, decoding the file; 16-bit greys are scaled, where Pillow alone would clip them."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
