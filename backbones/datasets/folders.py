"""Files in folders as items."""

from pathlib import Path

from backbones.datasets.decoding import IMAGE_SUFFIXES
from backbones.datasets.image_item import ImageItem


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


def scan_flat_folder(root: Path, suffixes: frozenset[str]) -> list[ImageItem]:
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
