"""`fit_transformer`: pairs and options in, a transformer out."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from compat.neighbors import unit_rows
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.applicable import require_applicable
from compat.training.candidates import CLOSED_FORMS
from compat.training.closed_form import fit_closed_form, require_finite
from compat.training.familiarity import fit_familiarity
from compat.training.gradient import fit_network
from compat.training.ladder import fit_best
from compat.training.selection import Distractors, bank_pairs
from compat.training.told import OnEpoch, OnLine
from compat.transformers import CHOICES, known_family
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.hubness import MOST_BANK, HubnessCorrection, item_hashes
from compat.transformers.serving import LiftedRows, served_rows
from stores.store import EmbeddingStore


def fit_transformer(
    pairs: Pairs,
    options: FitOptions | None = None,
    *,
    gallery: Distractors | None = None,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
    on_candidate: OnLine | None = None,
    on_note: OnLine | None = None,
) -> Transformer:
    """Fit a map between the two spaces of the pairs.

    Args:
        pairs: The same items embedded by both models (`compat.pairs.join_pairs`).
        options: Family, direction and how to train; the best family from new to old by default.
        gallery: Old vectors beyond the pairs, among which held-out pairs must be found too.
        checkpoint: For networks: a file to go on from after an interruption.
        on_epoch: For networks: called with each epoch's record.
        on_candidate: For auto: called with a line for each family searched.
        on_note: For networks: called with a line before something that takes long, such as a first compilation.

    Returns:
        The transformer. `training["held_out"]` is its retrieval on pairs that the map did not see, `training["notes"]`
        what the user should know, for example that a plain linear map did better.

    Raises:
        ValueError: If the family is unknown, an option would do nothing for it, or the pairs do not suffice.
    """
    options = options or FitOptions()
    known_family(options.transformer, CHOICES)
    if not len(pairs):
        raise ValueError("a map cannot be fitted to 0 pairs; at least 1 is needed")
    require_applicable(pairs, options)
    source, target = pairs.spaces(options.direction)
    if options.transformer == "auto":
        fitted = fit_best(
            pairs, options, distractors=gallery, on_candidate=on_candidate, on_epoch=on_epoch, on_note=on_note
        )
    elif options.transformer in CLOSED_FORMS:
        fitted = fit_closed_form(pairs, options, gallery)
    else:
        require_finite(pairs)
        fitted = fit_network(
            pairs, options, distractors=gallery, checkpoint=checkpoint, on_epoch=on_epoch, on_note=on_note
        )
        fitted = fitted._replace(family=options.transformer, correction=options.correction or 0.0)
    notes = list(fitted.notes)
    if len(pairs) < source.dim:
        notes.append(f"{len(pairs)} pairs are few for {source.dim} dimensions; more pairs are the surest improvement")
    training = {
        "options": asdict(options),
        "pairs": len(pairs),
        "pairs_fingerprint": pairs.fingerprint(),
        "held_out": fitted.held_out.to_dict() if fitted.held_out else None,
        **fitted.facts,
        "notes": notes,
    }
    familiarity = fit_familiarity(pairs, options.direction, seed=options.seed)
    plain = Transformer(
        fitted.family, options.direction, source, target, fitted.network, training, familiarity=familiarity
    )
    return with_correction(plain, pairs, fitted.correction, seed=options.seed)


def with_gallery(transformer: Transformer, gallery: EmbeddingStore) -> Transformer:
    """The same transformer with the offsets of its hubness correction computed for a gallery; itself without one.

    Raises:
        WrongSpace: If the gallery is not in the old model's space.
    """
    if transformer.correction is None:
        return transformer
    correction, old = transformer.correction, transformer.gallery_space
    if gallery.space != old:
        raise WrongSpace(f"the gallery {gallery.path} is in {gallery.space}, expected the old model's space, {old}")
    served = served_rows(gallery, transformer)
    assert isinstance(served, LiftedRows)  # as a correction makes them
    galleries = {**correction.galleries, gallery.digest(): served.offsets}
    return replace(transformer, correction=replace(correction, galleries=galleries))


def with_correction(transformer: Transformer, pairs: Pairs, strength: float, *, seed: int = 0) -> Transformer:
    """The same map with a hubness correction of this strength, its bank drawn from the pairs; none where it is 0."""
    correction = None
    if strength:
        chosen = bank_pairs(pairs, most=MOST_BANK, seed=seed)
        new, old = pairs.take(chosen, "new-to-old")
        queries = transformer.transform(new) if transformer.direction == "new-to-old" else new
        ids = pairs.item_ids
        items = np.empty(0, np.uint64) if ids is None else item_hashes(ids.gather(chosen))
        bank, old_bank = (unit_rows(side).astype(np.float16).astype(np.float32) for side in (queries, old))
        correction = HubnessCorrection(strength, bank, old_bank, items)
    return replace(transformer, correction=correction)
