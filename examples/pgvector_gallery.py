"""Search a table of PostgreSQL with pgvector, where the old model's vectors are, with the new model's queries.

    GALLERY=postgresql://user@host/database/table python examples/pgvector_gallery.py maps/new-to-old queries_new.npy

The table stays as it is, the search and its index are PostgreSQL's. The password comes from PGPASSWORD or ~/.pgpass.
"""

import os
from argparse import ArgumentParser

import numpy as np

from compat.migration.bridged import BridgedGallery
from compat.transformers.artefact import load_transformer


def main(folder: str, queries: str) -> None:
    """Print the ids of each query's first five items."""
    transformer = load_transformer(folder).without_correction()
    # A table that the toolkit did not write cannot tell which model made its vectors, so we say it.
    gallery = BridgedGallery(os.environ["GALLERY"], transformer, space=transformer.gallery_space)
    for ids in gallery.search(np.load(queries), k=5).item_ids:
        print(*ids)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    for word in ("folder", "queries"):
        parser.add_argument(word)
    given = parser.parse_args()
    if "GALLERY" not in os.environ:
        parser.error("GALLERY is not set; set it to postgresql://user@host/database/table")
    try:
        main(**vars(given))
    except (ValueError, OSError, ImportError) as mistake:
        parser.error(str(mistake))
