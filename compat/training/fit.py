"""`fit_transformer`: pairs and options in, a transformer out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import fit_closed_form
from compat.training.gradient import OnEpoch, fit_network
from compat.transformers import known_family
from compat.transformers.artefact import Transformer

CLOSED_FORMS = ("identity", "procrustes", "ridge")


def fit_transformer(
    pairs: Pairs,
    options: FitOptions | None = None,
    *,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Transformer:
    """Fit a map between the two spaces of the pairs.

    Args:
        pairs: The same items embedded by both models (`compat.pairs.join_pairs`).
        options: Family, direction and how to train; ridge from new to old by default.
        checkpoint: For networks: a file to go on from after an interruption.
        on_epoch: For networks: called with each epoch's record.

    Returns:
        The transformer. `training["held_out"]` is its retrieval on pairs that the map did not see, `training["notes"]`
        what the user should know, for example that a plain linear map did better.

    Raises:
        ValueError: If the family is unknown or the pairs do not suffice.
    """
    options = options or FitOptions()
    known_family(options.transformer)
    if not len(pairs):
        raise ValueError("a map cannot be fitted to 0 pairs; at least 1 is needed")
    source, target = pairs.spaces(options.direction)
    if options.transformer in CLOSED_FORMS:
        fitted = fit_closed_form(pairs, options)
    else:
        fitted = fit_network(pairs, options, checkpoint=checkpoint, on_epoch=on_epoch)
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
    return Transformer(options.transformer, options.direction, source, target, fitted.network, training)
