"""Image sets on disk: what is in them, whatever form they have; see `image_items`."""

from pathlib import Path

import numpy as np

from backbones.decoding import UnreadableImage, decode_image, read_image, unreadable
from backbones.image_item import ImageItem
from backbones.image_lists import image_list_items
from backbones.pair_files import is_pair_file, read_pairs
from backbones.record_io import record_items
from backbones.tars import tar_items

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageItem",
    "UnreadableImage",
    "decode_image",
    "image_items",
    "read_image",
    "read_item",
    "scan_folder",
    "scan_image_folder",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".pgm", ".bmp", ".webp"})
RECORD_FILE = "train.rec"
FORMS = "a folder of identities, a .rec, .tar, .txt or .bin file, or a folder with train.rec or .tar files"


def image_items(data: Path, root: Path | None = None) -> list[ImageItem]:
    """List the images of a set, without decoding any.

    Args:
        data: a folder with one folder per identity; a RecordIO file, or the folder of its `train.rec`; an uncompressed
            tar file, or a folder of them; a text of `relative/path identity` lines; a file of pairs (.bin, or a text of
            `path path 0|1` lines or in LFW's layout), whose identities are unknown.
        root: folder that the paths of a text start from; None is the text's own.

    Returns:
        The items, sorted by item id; those of RecordIO and .bin files in their own order.

    Raises:
        OSError: where `data` cannot be read.
        ValueError: for a set that is damaged, empty or of another form.
    """
    if data.is_dir():
        return _folder_items(data)
    if not data.exists():
        raise FileNotFoundError(f"{data} not found; expected {FORMS}")
    suffix = data.suffix.lower()
    if suffix == ".rec":
        return record_items(data)
    if suffix == ".tar":
        return tar_items(data, IMAGE_SUFFIXES)
    if is_pair_file(data, IMAGE_SUFFIXES):
        return read_pairs(data, root).items
    if suffix == ".txt":
        return image_list_items(data, root)
    raise ValueError(f"{data} is no set of images; expected {FORMS}")


def _folder_items(folder: Path) -> list[ImageItem]:
    if (folder / RECORD_FILE).is_file():
        return record_items(folder / RECORD_FILE)
    shards = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file())
    if not shards:
        return scan_image_folder(folder)
    items: dict[str, ImageItem] = {}
    for shard in shards:
        for item in tar_items(shard, IMAGE_SUFFIXES):
            if item.item_id in items:
                raise ValueError(
                    f"{items[item.item_id].path} and {shard} both hold {item.item_id}; rename one of the two"
                )
            items[item.item_id] = item
    return [items[item_id] for item_id in sorted(items)]


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
        ImageItem(f"{folder.name}/{path.name}", folder.name, path)
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
