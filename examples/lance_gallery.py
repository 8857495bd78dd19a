"""Migrate a gallery into a LanceDB table, hubness correction included, and search it there with raw new queries.

python examples/lance_gallery.py maps/old-to-new stores/gallery-old lance:tables/gallery queries_new.npy
"""

from argparse import ArgumentParser

import numpy as np

from compat.migration.bridged import BridgedGallery
from compat.migration.run import migrate_gallery
from compat.transformers.artefact import load_transformer


def main(folder: str, source: str, target: str, queries: str) -> None:
    """Print the ids of each query's first five items."""
    transformer = load_transformer(folder)
    migrate_gallery(source, transformer, target)
    gallery = BridgedGallery(target)  # it says itself whose queries search it, and in what form
    for ids in gallery.search(np.load(queries), k=5).item_ids:
        print(*ids)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    for word in ("folder", "source", "target", "queries"):
        parser.add_argument(word)
    try:
        main(**vars(parser.parse_args()))
    except (ValueError, OSError, ImportError) as mistake:
        parser.error(str(mistake))
