"""What `--data` can be for an encoder: a set of images, texts, or a folder of any files it reads."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from backbones.encoder import Item, Items
from backbones.images import IMAGE_SUFFIXES, ImageItem, image_items, scan_folder
from backbones.texts import READERS, Texts


class ListedItems:
    """Items that are known one by one; see `backbones.encoder.Items`. The digest covers names and sizes.

    Args:
        items: in their order.
    """

    def __init__(self, items: Sequence[ImageItem]) -> None:
        self.items = items
        self.count = len(items)
        self.label_type: type | None = str if any(item.label for item in items) else None
        self.files = all(isinstance(item.source, Path) for item in items)
        listing = "\n".join(f"{item.item_id} {item.size}" for item in items)
        self.digest = hashlib.sha256(listing.encode("utf-8", "surrogatepass")).hexdigest()

    def since(self, start: int) -> Iterator[Item]:
        """Yield the items from number `start` on."""
        yield from self.items[start:]


def open_items(data: Path, suffixes: frozenset[str]) -> Items:
    """Open the items of `data` that an encoder of these suffixes reads.

    Args:
        data: for images, whatever `image_items` takes; for texts (`.txt` among the suffixes), a file of lines, a table,
            or a folder of files, flat or with one folder per label; for other encoders, a folder with one folder per
            label, or a flat one.
        suffixes: `Backbone.suffixes`.

    Raises:
        OSError: where `data` cannot be read.
        ValueError: where it is of another form, damaged or empty.
    """
    if suffixes & IMAGE_SUFFIXES:
        # an encoder of its own may read a part of them, or further ones
        if data.is_dir() and suffixes != IMAGE_SUFFIXES:
            return ListedItems(scan_folder(data, suffixes))
        return ListedItems(image_items(data))
    if data.is_file():
        if ".txt" not in suffixes or data.suffix.lower() not in READERS:
            forms = f"a folder or a file with a suffix of {', '.join(READERS)}" if ".txt" in suffixes else "a folder"
            raise ValueError(f"{data} is no set of items for this encoder; expected {forms}")
        return Texts(data)
    return ListedItems(_flat_folder(data, suffixes) or scan_folder(data, suffixes))


def _flat_folder(root: Path, suffixes: frozenset[str]) -> list[ImageItem]:
    """List the files of a folder without sub-folders that hold any; they have no labels."""
    if not root.is_dir():
        return []
    files = [path for path in root.iterdir() if path.is_file() and path.suffix.lower() in suffixes]
    files = [path for path in files if not path.name.startswith(".")]
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if files and folders:
        raise ValueError(
            f"{root} holds both files and folders; expected {root}/NAME, or {root}/LABEL/NAME for every item"
        )
    return sorted((ImageItem(path.name, "", path) for path in files), key=lambda item: item.item_id)
