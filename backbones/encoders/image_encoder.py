"""What every encoder of images shares: how an image of any set becomes pixels."""

from pathlib import Path

import numpy as np

from backbones.datasets.decoding import IMAGE_SUFFIXES, decode_image, read_image, read_item
from backbones.datasets.image_item import ImageItem
from backbones.datasets.items import Item
from backbones.encoders.encoder import Backbone
from backbones.encoders.preprocessing import Preprocessing


class ImageEncoder(Backbone):
    """An encoder of images that reads them as uint8 RGB [size, size, 3]; UnreadableImage where that fails.

    Attributes:
        preprocessing: how images become its input.
    """

    suffixes = IMAGE_SUFFIXES
    preprocessing: Preprocessing

    def read(self, path: Path) -> np.ndarray:
        """Return the image in a file."""
        return read_image(path, self.preprocessing.size)

    def decode(self, content: bytes) -> np.ndarray:
        """Return the image in a file's bytes."""
        return decode_image(content, self.preprocessing.size)

    def read_item(self, item: Item) -> np.ndarray:
        """Return an image of a set."""
        if isinstance(item, ImageItem):
            return read_item(item, self.preprocessing.size)
        return super().read_item(item)
