"""What an encoder embeds, whatever its modality: an item, and a set of items."""

from collections.abc import Iterator
from typing import Any, Protocol


class Item(Protocol):
    """One thing to embed: `image_item.ImageItem` and `texts.TextItem` are such."""

    @property
    def item_id(self) -> str | int:
        """Unique in its set and stable across machines."""
        ...

    @property
    def label(self) -> str | int | None:
        """Its identity or class; empty or None where unknown."""
        ...

    @property
    def source(self) -> Any:
        """A Path where the item is a file of its own; something else where it is part of a file."""
        ...

    def content(self) -> bytes:
        """Return its encoded bytes."""
        ...


class Items(Protocol):
    """A set of items that is walked through, perhaps larger than memory.

    Attributes:
        count: how many items there are.
        digest: hexadecimal SHA-256 that changes when the set does.
        label_type: str or int, the type of the labels; None where no item has one.
        files: whether each item is a file of its own.
    """

    count: int
    digest: str
    label_type: type | None
    files: bool

    def since(self, start: int) -> Iterator[Item]:
        """Yield the items from number `start` on, always in the same order."""
        ...
