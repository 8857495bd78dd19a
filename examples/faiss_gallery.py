"""Search the old model's FAISS index, as it is, with the new model's queries.

python examples/faiss_gallery.py maps/new-to-old gallery_old.faiss queries_new.npy
"""

import sys

import numpy as np

from compat.migration.bridged import BridgedGallery
from compat.transformers.artefact import load_transformer


def main() -> None:
    """Print the ids of each query's first five items."""
    import faiss

    folder, index, queries = sys.argv[1:]
    transformer = load_transformer(folder).without_correction()  # whose extra dimension the old index has not
    gallery = BridgedGallery(faiss.read_index(index), transformer, space=transformer.gallery_space)
    for ids in gallery.search(np.load(queries), k=5).item_ids:
        print(*ids)


if __name__ == "__main__":
    main()
