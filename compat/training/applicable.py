"""Which options of a fit mean something to a family: those that would do nothing are refused."""

from __future__ import annotations

from compat.options import FitOptions, LossWeights
from compat.pairs import Pairs
from compat.training.candidates import CLOSED_FORMS
from compat.training.compactness import require_identities
from compat.training.ladder import NETWORK_PAIRS
from compat.transformers import SIZED

UNPENALISED = ("identity", "procrustes")
"""Closed forms without a strength."""


def require_applicable(pairs: Pairs, options: FitOptions) -> None:
    """Make sure that no option was given that the family, or these pairs, would leave without effect.

    Steps (epochs, batch_size, learning_rate) are limits that any family keeps: they are never refused.

    Raises:
        ValueError: If one was; the message names it and what it is for.
    """
    family = options.transformer
    if family == "auto":
        fewest, most = NETWORK_PAIRS
        given = _of_networks(options)
        if given and not fewest <= len(pairs) <= most:
            raise ValueError(
                f"auto tries a network on {fewest:,} to {most:,} pairs, found {len(pairs):,}: {' and '.join(given)} "
                "would do nothing; leave that out, or name a network with --transformer, for example residual_mlp"
            )
    elif family in CLOSED_FORMS:
        given = _of_networks(options)
        if family in UNPENALISED and options.strength is not None:
            given.append("strength")
        if family == "identity" and options.inputs != FitOptions.inputs:
            given.append("inputs")
        _refuse(family, given, "networks (mlp, residual_mlp, msresnet) are trained, ridge and its kin have a strength")
    else:
        given = ["strength"] if options.strength is not None else []
        given += ["inputs"] if options.inputs != FitOptions.inputs else []
        _refuse(family, given, "it is for linear families, for example ridge")
        if options.width is not None and family not in SIZED:
            _refuse(family, ["width"], f"choose one of {', '.join(SIZED)} for it")
    if options.loss.compactness_weight:
        require_identities(pairs)


def _of_networks(options: FitOptions) -> list[str]:
    """The options given that say how a network is trained."""
    found = {
        "width": options.width is not None,
        "precision": options.precision != "auto",
        "loss": options.loss != LossWeights(),
        "interpolation.pairing": options.interpolation.pairing != "none",
        "schedule": options.schedule != "full",
    }
    return [name for name, is_given in found.items() if is_given]


def _refuse(family: str, given: list[str], why: str) -> None:
    if given:
        raise ValueError(f"{family} has no {' nor '.join(given)}; leave that out ({why})")
