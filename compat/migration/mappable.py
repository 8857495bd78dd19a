"""What must hold of a source, a map and a target before a migration begins."""

from __future__ import annotations

from compat.transformers import PAIRED
from compat.transformers.artefact import Transformer, WrongSpace
from stores.galleries import open_source, redact
from stores.galleries.annotated import AnnotatedSource
from stores.galleries.gallery import GallerySource


def open_mappable(uri: str, transformer: Transformer, source_space: str | None = None) -> GallerySource:
    """Open a gallery that a transformer changes; see `require_mappable`.

    Args:
        uri: Where it is.
        transformer: Maps it, or corrects it.
        source_space: Name of the space of a gallery that cannot tell.

    Raises:
        WrongSpace: If the name is not that of the space that the transformer expects, or the vectors are longer or
            shorter than there.
    """
    space = None
    if source_space is not None:
        space = transformer.gallery_space
        if space.name != source_space:
            raise WrongSpace(
                f"the transformer's gallery is in {space}, the name given is {source_space!r}; "
                "use a transformer of that space"
            )
    gallery = open_source(uri)
    if space is not None:
        if gallery.dim != space.dim:
            raise WrongSpace(
                f"{redact(uri)} holds vectors of {gallery.dim} dimensions, expected {space.dim} as {space} has; name "
                "another gallery, or take a transformer fitted to this one's model"
            )
        gallery = AnnotatedSource(gallery, space=space)
    require_mappable(gallery, transformer, redact(uri))
    return gallery


def served_form(transformer: Transformer, *, correction: bool) -> Transformer:
    """The map as a whole gallery goes through it: a half of a unified one maps its own model's items, any other all."""
    served = transformer if correction else transformer.without_correction()
    return served.mapping_galleries() if served.family in PAIRED else served


def require_mappable(gallery: GallerySource, transformer: Transformer, uri: str) -> None:
    """Make sure that a transformer changes this gallery: maps it, or corrects it.

    Raises:
        WrongSpace: If it maps queries and corrects nothing, or is of another space.
        ValueError: If the gallery is empty, or cannot tell its space.
    """
    if not len(gallery):
        raise ValueError(f"the gallery {uri} is empty; there is nothing to migrate")
    if gallery.space is None:
        raise ValueError(
            f"{uri} does not tell which model made its vectors; make a store of it with python -m stores.convert and "
            "--space-name, and migrate that, or name the model here: --source-space"
        )
    if transformer.direction == "new-to-old" and transformer.correction:
        transformer.require("new-to-old", transformer.source, gallery.space)
        return
    if transformer.direction == "new-to-old":
        raise WrongSpace(
            "this transformer's direction is new-to-old: it maps queries into the old gallery's space, so that the "
            f"gallery needs no migration. Search {uri} through it: python -m compat.export --format faiss, onnx or "
            "numpy bakes it into an index or a service, and compat.migration.sql.bridge_function makes it a function "
            "of SQL; to rewrite the gallery, train one with --direction old-to-new"
        )
    transformer.require("old-to-new", gallery.space)
