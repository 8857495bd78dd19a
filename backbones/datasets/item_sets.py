"""What `--data` can be: a set of images in any form, texts, or a folder of any files that an encoder reads."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from backbones.datasets.decoding import IMAGE_SUFFIXES
from backbones.datasets.folders import scan_flat_folder, scan_folder, scan_image_folder
from backbones.datasets.image_item import ImageItem
from backbones.datasets.image_lists import image_list_items
from backbones.datasets.items import Item, Items
from backbones.datasets.pair_files import is_pair_file, read_pairs
from backbones.datasets.record_io import record_items
from backbones.datasets.tars import tar_items
from backbones.datasets.texts import READERS, Texts

RECORD_FILE = "train.rec"
FORMS = "a folder of identities or of images, a .rec, .tar, .txt or .bin file, or a folder with train.rec or .tar files"


class ListedItems:
    """Items that are known one by one; see `backbones.datasets.items.Items`. The digest covers names, sizes and labels.

    Args:
        items: in their order.
    """

    def __init__(self, items: Sequence[ImageItem]) -> None:
        self.items = items
        self.count = len(items)
        self.label_type: type | None = str if any(item.label for item in items) else None
        self.files = all(isinstance(item.source, Path) for item in items)
        listing = "\n".join(f"{item.item_id}\t{item.size}\t{item.label}" for item in items)
        self.digest = hashlib.sha256(listing.encode("utf-8", "surrogatepass")).hexdigest()

    def since(self, start: int) -> Iterator[Item]:
        """Yield the items from number `start` on."""
        yield from self.items[start:]


def image_items(data: Path, root: Path | None = None) -> list[ImageItem]:
    """List the images of a set, without decoding any.

    Args:
        data: a folder with one folder per identity, or a flat one of images whose identities are unknown; a RecordIO
            file, or the folder of its `train.rec`; an uncompressed tar file, or a folder of them; a text of
            `relative/path identity` lines; a file of pairs (.bin, or a text of `path path 0|1` lines or in LFW's
            layout), whose identities are unknown.
        root: folder that the paths of a text start from; None is the text's own. Other forms have none.

    Returns:
        The items, sorted by item id; those of RecordIO and .bin files in their own order.

    Raises:
        OSError: where `data` cannot be read.
        ValueError: for a set that is damaged, empty or of another form, or a root for what is no text.
    """
    if root is not None and data.suffix.lower() != ".txt" and data.exists():
        raise ValueError(f"{data} is no list of images, so the root {root} has no paths to start; leave the root out")
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
        flat = all(path.name.startswith(".") or not path.is_dir() for path in folder.iterdir())
        return (flat and scan_flat_folder(folder, IMAGE_SUFFIXES)) or scan_image_folder(folder)
    items: dict[str, ImageItem] = {}
    for shard in shards:
        for item in tar_items(shard, IMAGE_SUFFIXES):
            if item.item_id in items:
                raise ValueError(
                    f"{items[item.item_id].path} and {shard} both hold {item.item_id}; rename one of the two"
                )
            items[item.item_id] = item
    return [items[item_id] for item_id in sorted(items)]


def open_items(data: Path, suffixes: frozenset[str], root: Path | None = None) -> Items:
    """Open the items of `data` that an encoder of these suffixes reads.

    Args:
        data: for images, whatever `image_items` takes; for texts (`.txt` among the suffixes), a file of lines, a table,
            or a folder of files, flat or with one folder per label; for other encoders, a folder with one folder per
            label, or a flat one.
        suffixes: `Backbone.suffixes`.
        root: folder that the paths of a list of images start from; None is the list's own.

    Raises:
        OSError: where `data` cannot be read.
        ValueError: where it is of another form, damaged or empty, or a root is given and it is no list of images.
    """
    if suffixes & IMAGE_SUFFIXES:
        # an encoder of its own may read a part of them, or further ones
        if data.is_dir() and suffixes != IMAGE_SUFFIXES and root is None:
            return ListedItems(scan_folder(data, suffixes))
        return ListedItems(image_items(data, root))
    if root is not None:
        raise ValueError(f"{data} is no list of images, so the root {root} has no paths to start; leave the root out")
    if data.is_file():
        if ".txt" not in suffixes or data.suffix.lower() not in READERS:
            forms = f"a folder or a file with a suffix of {', '.join(READERS)}" if ".txt" in suffixes else "a folder"
            raise ValueError(f"{data} is no set of items for this encoder; expected {forms}")
        return Texts(data)
    return ListedItems(scan_flat_folder(data, suffixes) or scan_folder(data, suffixes))
