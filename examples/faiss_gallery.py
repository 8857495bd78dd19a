"""Search the old model's FAISS index, as it is, with the new model's queries.

python examples/faiss_gallery.py maps/new-to-old gallery-old.faiss queries_new.npy

The items are named by gallery-old.faiss.items.parquet, which python -m stores.convert writes beside the index, and by
the index's own numbers where there is no such table.
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import polars as pl

from compat.migration.bridged import BridgedGallery
from compat.transformers.artefact import load_transformer
from stores.galleries.card import items_path


def main(folder: str, index: str, queries: str) -> None:
    """Print the ids of each query's first five items."""
    import faiss

    transformer = load_transformer(folder).without_correction()  # whose extra dimension the old index has not
    table = items_path(Path(index))
    names = pl.read_parquet(table)["item_id"].to_list() if table.is_file() else None
    gallery = BridgedGallery(faiss.read_index(index), transformer, space=transformer.gallery_space, item_ids=names)
    for ids in gallery.search(np.load(queries), k=5).item_ids:
        print(*ids)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    for word in ("folder", "index", "queries"):
        parser.add_argument(word)
    try:
        main(**vars(parser.parse_args()))
    except (ValueError, OSError, RuntimeError) as mistake:
        parser.error(str(mistake))
