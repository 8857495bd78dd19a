"""Lists of images in a text file: `relative/path identity` a line.

Training, evaluation and low-resolution sets over the same files are several lists.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from backbones.datasets.image_item import ImageItem


def image_list_items(path: Path, root: Path | None = None) -> list[ImageItem]:
    """List the images that a text file names, sorted by item id, which is the path as listed.

    The identity is a line's last field, so that paths may hold spaces; empty lines are passed over. A line that is
    there twice counts once. No file is touched: a missing one is found, and counted as unreadable, when it is read.

    Args:
        path: UTF-8 text.
        root: folder that the paths start from; None is the list's own.

    Raises:
        OSError: where `path` cannot be read.
        ValueError: for a line without identity, a path that is absolute or has `..`, a file listed with two identities,
            an empty list.
    """
    folder = path.parent if root is None else root
    labels: dict[str, str] = {}
    names: dict[str, str] = {}  # one string per identity, not per image
    for number, line in numbered_lines(path):
        fields = line.rsplit(maxsplit=1)
        if len(fields) != 2:
            raise ValueError(f"{path} line {number} is {line[:80]!r}, expected `relative/path identity`")
        item_id, label = listed_path(path, number, fields[0]), names.setdefault(fields[1], fields[1])
        if labels.setdefault(item_id, label) != label:
            raise ValueError(
                f"{path} line {number} gives {item_id} the identity {label}, an earlier line {labels[item_id]}; "
                "remove one of them"
            )
    if not labels:
        raise ValueError(f"{path} lists no images, expected `relative/path identity` a line")
    return [ImageItem(item_id, labels[item_id], folder / item_id) for item_id in sorted(labels)]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not empty, stripped, with their numbers; ValueError unless UTF-8."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if text := line.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def listed_path(path: Path, number: int, text: str) -> str:
    """Return a listed path in one spelling, its id (`./a//b` is `a/b`); ValueError for an absolute one or `..`."""
    listed = PurePosixPath(text.strip())
    if listed.is_absolute():
        raise ValueError(
            f"{path} line {number} has the absolute path {listed}; write it relative to the list's folder, so that the "
            "list works on every machine"
        )
    if ".." in listed.parts:
        raise ValueError(
            f"{path} line {number} has the path {listed}, expected one below the list's folder, without `..`; "
            "give the folder that all paths start from as the root"
        )
    return str(listed)
