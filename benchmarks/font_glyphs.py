"""Characters drawn by type designs, all to one scale, without those that a font only claims to have.

A glyph is drawn `OVERSAMPLING` times as large and averaged down, so that neither hinting nor bitmaps embedded in the
font show. A design has one scale and one shift for all of its glyphs: its 95th percentile of ink fills `FILLED` of the
image. A bar is thus a thin bar, and a full square a full square, in every design.

Legend: n characters, s side of an image in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OVERSAMPLING = 4
FILLED = 0.92
SAMPLED = 200
"""Characters that a design's scale is measured on."""
INK = 0.004
"""Share of the image that a glyph must darken; less is a blank."""
PLACEHOLDER = 3
"""A picture that stands for so many characters is a placeholder, whatever it shows."""
ALIKE = 0.90
"""Two designs are one family from this median correlation: copies measured 0.93 to 1.00, others at most 0.87."""
COMPARED = 24
"""Side to which the ink of a glyph is stretched for comparing designs, so that size and weight count for little."""

# No font maps these to a glyph, so each draws .notdef.
UNMAPPED = ("\uffff", "\ufffe", "\U0010ffff", "\U000effff")


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a design draws.

    Attributes:
        images: uint8 [n, s, s], black ink on white.
        present: Whether a character is really drawn: neither blank, nor .notdef, nor a placeholder, bool [n].
    """

    images: np.ndarray
    present: np.ndarray


def kanji() -> list[str]:
    """The 6,355 kanji of JIS X 0208, by code point."""
    cells = (bytes([row, cell]) for row in range(0xB0, 0xF5) for cell in range(0xA1, 0xFF))
    return sorted(filter(None, (cell.decode("euc_jp", errors="ignore") for cell in cells)))


def draw(file: Path, characters: list[str], side: int, *, index: int = 0) -> Drawn:
    """Draw characters with one face.

    Args:
        file: A font, or a collection of them.
        characters: n of them.
        side: s.
        index: The face in a collection.

    Raises:
        ValueError: If the file is no font, or a face that is not there is asked for.
    """
    pen = _Pen.fitted(file, index, characters, side)
    images = np.stack([pen.draw(character) for character in characters])
    unmapped = {pen.draw(character).tobytes() for character in UNMAPPED}
    keys = [image.tobytes() for image in images]
    times: dict[bytes, int] = {}
    for key in keys:
        times[key] = times.get(key, 0) + 1
    inked = (255.0 - images).mean(axis=(1, 2)) / 255.0 >= INK
    known = np.array([key not in unmapped and times[key] < PLACEHOLDER for key in keys])
    return Drawn(images, inked & known)


@dataclass(frozen=True, eq=False)
class _Pen:
    """A face at the size, and the place of its origin, that lay its ink into the middle of an image."""

    font: ImageFont.FreeTypeFont
    origin: tuple[float, float]
    side: int

    @classmethod
    def fitted(cls, file: Path, index: int, characters: list[str], side: int) -> _Pen:
        large = side * OVERSAMPLING
        try:
            font = ImageFont.truetype(str(file), large, index=index, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise ValueError(f"{file} has no readable face {index} ({error}); remove or reinstall the font") from error
        step = max(1, len(characters) // SAMPLED)
        boxes = np.array([font.getbbox(character, anchor="ls") for character in characters[::step]])
        boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
        if not len(boxes):
            return cls(font, (0.0, float(large)), side)
        left, top = np.percentile(boxes[:, :2], 5, axis=0)
        right, bottom = np.percentile(boxes[:, 2:], 95, axis=0)
        zoom = FILLED * large / max(right - left, bottom - top)
        origin = (large / 2 - zoom * (left + right) / 2, large / 2 - zoom * (top + bottom) / 2)
        return cls(font.font_variant(size=zoom * large), (float(origin[0]), float(origin[1])), side)

    def draw(self, character: str) -> np.ndarray:
        """uint8 [s, s]."""
        large = self.side * OVERSAMPLING
        canvas = Image.new("L", (large, large), 255)
        ImageDraw.Draw(canvas).text(self.origin, character, font=self.font, fill=0, anchor="ls")
        return np.asarray(canvas.reduce(OVERSAMPLING))


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Median correlation of the pixels of two designs' glyphs [n, s, s], the ink of each stretched to one square."""
    return float(np.median((_shapes(a) * _shapes(b)).sum(axis=1)))


def families(glyphs: list[np.ndarray]) -> list[int]:
    """Number of the first design of the family that each design belongs to; kin of kin are kin.

    Args:
        glyphs: The same characters drawn by each design, uint8 [n, s, s].
    """
    shapes = [_shapes(images) for images in glyphs]
    first = list(range(len(glyphs)))
    for b in range(len(glyphs)):
        for a in range(b):
            if np.median((shapes[a] * shapes[b]).sum(axis=1)) >= ALIKE:
                low, high = sorted((first[a], first[b]))
                first = [low if number == high else number for number in first]
    return first


def _shapes(images: np.ndarray) -> np.ndarray:
    """Ink of glyphs [n, s, s] as centred unit vectors [n, COMPARED^2]."""
    shapes = np.stack([_stretched(255 - image) for image in images]).reshape(len(images), -1)
    shapes -= shapes.mean(axis=1, keepdims=True)
    return shapes / np.maximum(np.linalg.norm(shapes, axis=1, keepdims=True), 1e-9)


def _stretched(ink: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(ink)
    square = picture.resize((COMPARED, COMPARED), Image.Resampling.BILINEAR, box=picture.getbbox())
    return np.asarray(square, np.float32)
