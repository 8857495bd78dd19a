"""A gallery in a file of JSON lines: an object for each row, the vector under `vector`."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from stores.galleries.card import digest_of_file, verified_card
from stores.galleries.gallery import row_ranges
from stores.galleries.spooled import SpooledTarget
from stores.store import Batch


class JsonLinesSource:
    def __init__(self, path):
        card = verified_card(path)
        if card is None:
            raise ValueError(f"{path} has no card {path.name}.json; write it by stores.convert")
        self._path, self._rows = path, card.rows
        self.space, self.dim, self.provenance = card.space, card.space.dim, card.provenance

    def __len__(self):
        return self._rows

    def scan(self, size, *, start=0):
        ranges = row_ranges(len(self), size, start)
        with self._path.open() as file:
            lines = islice(file, start, None)
            for first, stop in ranges:
                rows = [json.loads(line) for line in islice(lines, stop - first)]
                vectors = np.array([row.pop("vector") for row in rows], np.float32)
                yield Batch(pl.DataFrame(rows), vectors)


def write_file(store, path):
    with path.open("w") as file:
        for items, vectors in store.batches(8192):
            for row, vector in zip(items.to_dicts(), vectors.tolist(), strict=True):
                print(json.dumps({**row, "vector": vector}), file=file)
        file.flush()
        os.fsync(file.fileno())
    return [path]


def open_source(location):
    return JsonLinesSource(Path(location))


def open_target(location, space, provenance):
    return SpooledTarget(Path(location), space, provenance, write_file, reserved=["vector"])


digest = digest_of_file
