"""Image sets on disk: one folder per identity."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

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


class UnreadableImage(ValueError):
    """A file that should hold an image and cannot be decoded, or must not be because of its size."""


class ImageItem(NamedTuple):
    """One image of a set: its file, its id (`identity/file name`, stable across machines) and its identity."""

    path: Path
    item_id: str
    label: str


def scan_image_folder(root: Path) -> list[ImageItem]:
    """List the images `root/identity/name.{jpg,jpeg,png,pgm,bmp,webp}`; see `scan_folder`."""
    return scan_folder(root, IMAGE_SUFFIXES)


def scan_folder(root: Path, suffixes: frozenset[str]) -> list[ImageItem]:
    """List the files `root/identity/name` whose suffix is one of `suffixes` (lower case), sorted by item id.

    Hidden files and folders (a leading dot) are left out.

    Raises:
        FileNotFoundError: where `root` is no folder.
        ValueError: where it holds no such file in that layout.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} not found; expected a folder with one folder per identity")
    items = [
        ImageItem(path, f"{folder.name}/{path.name}", folder.name)
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    if not items:
        raise ValueError(
            f"no items found in {root}; expected {root}/IDENTITY/NAME with a suffix of "
            f"{', '.join(sorted(suffixes))}; put each identity's files into a folder of its own"
        )
    return sorted(items, key=lambda item: item.item_id)


def read_image(path: Path, size: int) -> np.ndarray:
    """Decode an image, upright, its central square resized to `size` pixels.

    Returns:
        uint8 [size, size, 3], RGB; a grey image has three equal channels.

    Raises:
        UnreadableImage: for a missing, damaged or oversized file (Pillow's limit, 89 megapixels).
    """
    try:
        with Image.open(path) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are too many")
            upright = _eight_bit(ImageOps.exif_transpose(image))
    except DECODER_ERRORS as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UnreadableImage(f"cannot read image {path} ({reason}); replace or remove the file") from error
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(square.convert("RGB"))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring any mode to L or RGB, decoding the file; 16-bit greys are scaled, where Pillow alone would clip them."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
