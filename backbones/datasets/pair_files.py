"""Published lists of image pairs: LFW-style `.bin` files, LFW's `pairs.txt` and lists of `path path 0|1`.

Shapes: p pairs.
"""

import hashlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from backbones.datasets.image_item import HeldBytes, ImageItem
from backbones.datasets.image_lists import listed_path, numbered_lines
from backbones.datasets.restricted_pickle import load_plain

SAME = {"1": True, "0": False}
MOST_DIGITS = 9  # of an image's number
USUAL_FOLDS = 10


class PairFile(NamedTuple):
    """Pairs of images.

    Attributes:
        items: the images; identities are unknown and their labels empty, but where LFW's list names people.
        pairs: int64 [p, 2], places in `items`.
        same: bool [p], whether a pair shows one person.
        folds: in how many folds the list is to be judged, which follow each other in equal runs; 10 where it is silent.
    """

    items: list[ImageItem]
    pairs: np.ndarray
    same: np.ndarray
    folds: int = USUAL_FOLDS


def is_pair_file(path: Path, suffixes: frozenset[str]) -> bool:
    """Tell whether a file holds pairs: a .bin file, or a text whose first line starts a list of pairs.

    Args:
        path: the file.
        suffixes: of image files, lower case. Two paths that end in these are a pair, whatever follows them, so that a
            wrong or missing answer is told as such and not read as an identity.
    """
    if path.suffix.lower() == ".bin":
        return path.is_file()
    if path.suffix.lower() != ".txt" or not path.is_file():
        return False
    first = next((line for _, line in numbered_lines(path)), "")
    fields = _fields(first)
    return _is_lfw_header(fields) or (
        len(fields) > 1 and all(PurePosixPath(field).suffix.lower() in suffixes for field in fields[:2])
    )


def read_pairs(path: Path, root: Path | None = None) -> PairFile:
    """Read a file of pairs of any of the three forms.

    Args:
        path: the file.
        root: folder that a list's paths start from; None is the list's own.

    Raises:
        OSError: where `path` cannot be read.
        ValueError: for anything else than pairs, in one line that names the file.
    """
    if path.suffix.lower() == ".bin":
        return _read_bin(path)
    lines = list(numbered_lines(path))
    if not lines:
        raise ValueError(f"{path} lists no pairs, expected `path path 0|1` a line")
    if _is_lfw_header(_fields(lines[0][1])):
        header = _fields(lines[0][1])
        found = _read_lfw(path, lines[1:], path.parent if root is None else root)
        # one number alone is that of the pairs; a single fold would leave no other to take a threshold from
        folds = int(header[0]) if len(header) == 2 else USUAL_FOLDS
        return found._replace(folds=folds if folds > 1 else USUAL_FOLDS)
    found = _Found(path.parent if root is None else root)
    for number, line in lines:
        fields = _fields(line)
        if len(fields) != 3 or fields[2] not in SAME:
            raise ValueError(
                f"{path} line {number} is {line[:80]!r}, expected `path path 0|1`, with tabs where paths have spaces; "
                "an image and its identity are `path identity`, with a tab too"
            )
        places = [found.place(listed_path(path, number, field), "") for field in fields[:2]]
        found.add(places, same=SAME[fields[2]])
    return found.pair_file()


class _Found:
    """The unique images and the pairs of a list, as they are met."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, int] = {}
        self.items: list[ImageItem] = []
        self.pairs: list[list[int]] = []
        self.same: list[bool] = []

    def place(self, item_id: str, label: str) -> int:
        if item_id not in self.places:
            self.places[item_id] = len(self.items)
            self.items.append(ImageItem(item_id, label, self.folder / item_id))
        return self.places[item_id]

    def add(self, places: list[int], *, same: bool) -> None:
        self.pairs.append(places)
        self.same.append(same)

    def pair_file(self) -> PairFile:
        return PairFile(
            self.items, np.array(self.pairs, dtype=np.int64).reshape(-1, 2), np.array(self.same, dtype=bool)
        )


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _is_lfw_header(fields: list[str]) -> bool:
    """Folds and pairs of each kind per fold (`10 300`), or the pairs of each kind alone."""
    return len(fields) in (1, 2) and all(field.isascii() and field.isdigit() for field in fields)


def _read_lfw(path: Path, lines: list[tuple[int, str]], folder: Path) -> PairFile:
    """Read `name i j` (one person) and `name i other j` (two); the images are `name/name_0001.jpg`.

    Huang et al., "Labeled Faces in the Wild", technical report 07-49, University of Massachusetts, 2007.
    """
    found = _Found(folder)
    suffix = ""
    for number, line in lines:
        fields = _fields(line)
        people = [fields[0], fields[0]] if len(fields) == 3 else fields[::2]
        numbers = fields[1:] if len(fields) == 3 else fields[1::2]
        if len(fields) not in (3, 4) or not all(
            text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS for text in numbers
        ):
            raise ValueError(f"{path} line {number} is {line[:80]!r}, expected `name i j` or `name i other j`")
        stems = [f"{name}/{name}_{int(text):04d}" for name, text in zip(people, numbers, strict=True)]
        suffix = suffix or next(
            (end for end in (".jpg", ".png", ".jpeg") if (folder / (stems[0] + end)).exists()), ".jpg"
        )
        places = [
            found.place(listed_path(path, number, stem + suffix), name)
            for stem, name in zip(stems, people, strict=True)
        ]
        found.add(places, same=len(fields) == 3)
    return found.pair_file()


def _read_bin(path: Path) -> PairFile:
    """Read a pickle of (encoded images, whether each two that follow each other show one person).

    Pairs share images: equal bytes become one item, whose id is the place of the first, `file name/000012`.
    """
    content = load_plain(path)
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise ValueError(f"{path} holds no pairs, expected a pickle of (images, same)")
    images, same = (list(part) if isinstance(part, tuple | list) else [] for part in content)
    if not same or len(images) != 2 * len(same):
        raise ValueError(f"{path} holds {len(images)} images and {len(same)} answers, expected two images per answer")
    if not all(isinstance(answer, bool) or answer in (0, 1) for answer in same):
        raise ValueError(f"{path} has answers that are neither true nor false")
    if not all(isinstance(image, bytes) for image in images):
        raise ValueError(f"{path} has images that are no encoded bytes; expected the bytes of JPEG or PNG files")
    items: list[ImageItem] = []
    places: dict[bytes, int] = {}
    order = np.empty(len(images), dtype=np.int64)
    for place, image in enumerate(images):
        digest = hashlib.blake2b(image, digest_size=16).digest()
        if digest not in places:
            places[digest] = len(items)
            items.append(ImageItem(f"{path.name}/{place:06d}", "", HeldBytes(path, image)))
        order[place] = places[digest]
    return PairFile(items, order.reshape(-1, 2), np.array(same, dtype=bool))
