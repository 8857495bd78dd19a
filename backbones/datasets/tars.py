"""Image sets in uncompressed tar files: WebDataset shards, or folders of identities packed as they are."""

import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from backbones.datasets.image_item import ByteRanges, ImageItem

LARGEST_SIDECAR = 1 << 20  # bytes; a label is short
BLOCK_BYTES = 1 << 20
LABEL_FIELDS = ("identity", "label", "cls", "class")


class _Member(NamedTuple):
    name: PurePosixPath
    start: int
    length: int


def tar_items(path: Path, suffixes: frozenset[str]) -> list[ImageItem]:
    """List the images of a tar file, sorted by item id; only headers and labels are read.

    An image `key.jpg` beside a `key.cls` (its text is the identity) or a `key.json` (its field identity, label, cls or
    class) is labelled by that and its id is the member's name. Where there are none of these, the identity is the
    folder an image is in and its id `identity/file name`, as if the tar were unpacked.

    Links, devices and hidden files are left out.

    Raises:
        OSError: where `path` cannot be read.
        ValueError: for a compressed, damaged or cut tar, several tars joined as one, absolute names or names with `..`,
            an image without identity, two images of one id.
    """
    images, sidecars = _members(path, suffixes)
    labels = _labels(path, sidecars)
    items: dict[str, ImageItem] = {}
    for name, start, length in images:
        if labels:
            key = str(name.with_suffix(""))
            label = labels.get(key) or labels.get(str(name.with_name(name.name.split(".")[0])))
            if label is None:
                raise ValueError(f"{path} has {name} without {key}.cls, as others have one; add it or remove the image")
            item_id = str(name)
        else:
            label, item_id = name.parent.name, f"{name.parent.name}/{name.name}"
            if not label:
                raise ValueError(f"{path} has {name} outside a folder; expected IDENTITY/NAME, or NAME.cls beside it")
        if item_id in items:
            raise ValueError(f"{path} has two images of the id {item_id}; rename or remove one")
        items[item_id] = ImageItem(item_id, label, ByteRanges(path, ((start, length),)))
    if not items:
        raise ValueError(f"{path} holds no images; expected IDENTITY/NAME with one of {', '.join(sorted(suffixes))}")
    return [items[item_id] for item_id in sorted(items)]


def _members(path: Path, suffixes: frozenset[str]) -> tuple[list[_Member], list[_Member]]:
    """Return the images and the files of labels."""
    images, sidecars = [], []
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                # A million members would otherwise be kept, a kilobyte each; iteration goes on without them.
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                name = PurePosixPath(info.name)
                if info.issparse() or name.is_absolute() or ".." in name.parts:
                    raise ValueError(
                        f"{path} has {info.name!r}, expected plain files with relative names; pack it anew"
                    )
                if not info.isreg() or name.name.startswith("."):
                    continue
                if info.offset_data + info.size > length:
                    raise ValueError(f"{path} is truncated within {info.name!r}; copy the file again")
                member = _Member(name, info.offset_data, info.size)
                if name.suffix.lower() in suffixes:
                    images.append(member)
                elif name.suffix in (".cls", ".json") and info.size <= LARGEST_SIDECAR:
                    sidecars.append(member)
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is no uncompressed tar file, or is damaged ({error}); decompress it or copy it again"
        ) from error
    _check_end(path, end)
    return images, sidecars


def _check_end(path: Path, end: int) -> None:
    """Require zeros from where tarfile stopped: it takes a damaged header, but the first, and a cut for the end."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE or any(block):
            raise ValueError(
                f"{path} is damaged or truncated: at byte {end} expected a member or the zeros that end a tar, "
                f"found {block[:16].hex() or 'the end of the file'}; copy it again"
            )
        while block := file.read(BLOCK_BYTES):
            if block.strip(b"\0"):
                raise ValueError(
                    f"{path} goes on after the zeros that end a tar at byte {end}; copy it again, or where tars were "
                    "joined, pack their files as one"
                )


def _labels(path: Path, sidecars: list[_Member]) -> dict[str, str]:
    """Return the identity that a .cls or .json file gives, by the member's name without suffix; .cls goes first."""
    labels: dict[str, str] = {}
    with path.open("rb") as file:
        for name, start, length in sidecars:
            file.seek(start)
            text = file.read(length).decode("utf-8", errors="replace").strip()
            key = str(name.with_suffix(""))
            label = text if name.suffix == ".cls" else _json_label(path, name, text)
            if label and (name.suffix == ".cls" or key not in labels):
                if "\n" in label:
                    raise ValueError(f"{path} has several lines in {name}, expected one identity")
                labels[key] = label
    return labels


def _json_label(path: Path, name: PurePosixPath, text: str) -> str:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has {name}, which is no JSON ({error}); correct or remove it") from error
    values = [record[field] for field in LABEL_FIELDS if field in record] if isinstance(record, dict) else []
    return str(values[0]) if values and isinstance(values[0], str | int) else ""
