"""Where the bytes of an image are: a file of its own, byte ranges of a container, or memory."""

from pathlib import Path
from typing import NamedTuple


class ByteRanges(NamedTuple):
    """Bytes of a container that together are one file; several ranges where the container cut it in pieces.

    Attributes:
        container: the file that holds them.
        spans: (first byte, number of bytes) of each piece, in order.
    """

    container: Path
    spans: tuple[tuple[int, int], ...]

    def read(self) -> bytes:
        """Return the bytes; OSError where the container has become shorter or is gone."""
        pieces = []
        with self.container.open("rb", buffering=0) as file:
            for start, length in self.spans:
                file.seek(start)
                piece = file.read(length)
                if len(piece) < length:
                    raise OSError(f"{self.container} ends within the {length} bytes expected at byte {start}")
                pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class HeldBytes(NamedTuple):
    """Bytes that were read with their container, as from a pickle, which cannot be read in part."""

    container: Path
    data: bytes


class ImageItem(NamedTuple):
    """One image of a set.

    Attributes:
        item_id: stable across machines; `identity/file name` where the set is a folder, a tar or a list of these files.
        label: its identity; empty where the set says nothing of identities (files of pairs).
        source: where its encoded bytes are.
    """

    item_id: str
    label: str
    source: Path | ByteRanges | HeldBytes

    @property
    def path(self) -> Path:
        """The file that holds the image, alone or among others."""
        return self.source if isinstance(self.source, Path) else self.source.container

    @property
    def size(self) -> int:
        """Bytes of the encoded image; 0 where its file is missing, which reading it will tell."""
        if isinstance(self.source, HeldBytes):
            return len(self.source.data)
        if isinstance(self.source, ByteRanges):
            return sum(length for _, length in self.source.spans)
        try:
            return self.source.stat().st_size
        except FileNotFoundError:
            return 0

    def content(self) -> bytes:
        """Return the encoded image; OSError where its file is missing or has become shorter."""
        if isinstance(self.source, HeldBytes):
            return self.source.data
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source.read()
