"""The space of a study as it is for a family and its pairs: what is left out of it, and how a trial draws from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.transformers import CHOICES, SIZED, known_family
from compat.tuning.options import RANGES, SearchSpace

if TYPE_CHECKING:
    from optuna.trial import Trial

TUNABLE = ("mlp", "residual_mlp", "msresnet")
"""Families with something to tune."""
WITH_PAIRING = ("rate", "schedule")
"""What matters only where samples are mixed."""
_IN_LOSS = ("cosine_weight", "mse_weight", "compactness_weight")
_IN_INTERPOLATION = ("pairing", "rate")


@dataclass(frozen=True)
class TunedSpace:
    """The parameters that trials draw: ends of ranges, or values to choose from; and why others are left out."""

    values: dict[str, list[Any]]
    left_out: tuple[str, ...] = ()

    @property
    def drawn(self) -> list[str]:
        """Parameters that have more than one value."""
        return [name for name, values in self.values.items() if len(values) > 1]

    def draw(self, trial: Trial, fixed: FitOptions) -> FitOptions:
        """The options of a trial."""
        drawn: dict[str, Any] = {}
        for name, values in self.values.items():
            if name in WITH_PAIRING and drawn.get("pairing", fixed.interpolation.pairing) == "none":
                continue
            if len(values) == 1:
                drawn[name] = values[0]
            elif name in RANGES:
                drawn[name] = trial.suggest_float(name, *values, log=True)
            else:
                drawn[name] = trial.suggest_categorical(name, values)
        return with_values(fixed, drawn)


def with_values(options: FitOptions, values: dict[str, Any]) -> FitOptions:
    """Options of training with some values of the space in their places."""
    loss = {name: value for name, value in values.items() if name in _IN_LOSS}
    interpolation = {name: value for name, value in values.items() if name in _IN_INTERPOLATION}
    rest = {name: value for name, value in values.items() if name not in (*_IN_LOSS, *_IN_INTERPOLATION)}
    return replace(
        options,
        loss=replace(options.loss, **loss),
        interpolation=replace(options.interpolation, **interpolation),
        **rest,
    )


def value_of(options: FitOptions, name: str) -> Any:
    """What options of training say about a parameter of the space."""
    part = options.loss if name in _IN_LOSS else options.interpolation if name in _IN_INTERPOLATION else options
    return getattr(part, name)


def digest_of(options: FitOptions) -> str:
    """Digest of options of training, hexadecimal."""
    return hashlib.blake2b(json.dumps(asdict(options), sort_keys=True).encode(), digest_size=8).hexdigest()


def tunable(family: str) -> str:
    """The family itself.

    Raises:
        ValueError: If there is no such family, or nothing of it is there to be tuned.
    """
    if family in TUNABLE or family not in CHOICES:
        return known_family(family, TUNABLE)
    why = "is a search itself" if family == "auto" else "finds its settings itself"
    raise ValueError(
        f"{family} {why} and has nothing to tune (python -m compat.train_transformer --transformer {family}); name a "
        f"family that has, with --transformer: {', '.join(TUNABLE)}"
    )


def space_for(wanted: SearchSpace, fixed: FitOptions, pairs: Pairs) -> TunedSpace:
    """What of a space can make a difference for these pairs and this family.

    When both sides are normalised, |a - b|^2 = 2 (1 - cos): the cosine and the squared distance are one loss, and
    their weights are void.

    Raises:
        ValueError: If an option of training was given that the space would overwrite, or nothing is left to tune.
    """
    values, left_out = asdict(wanted), []
    usual = FitOptions()
    for name, choices in values.items():
        given = value_of(fixed, name)
        if len(choices) > 1 and given != value_of(usual, name):
            raise ValueError(f"{name} is tuned, but {given!r} was given for it; hold it with --space.{name} [{given}]")
    if all(space.normalized for space in pairs.spaces(fixed.direction)):
        left_out.append(
            "cosine_weight and mse_weight: both sides are normalised, so that the cosine and the squared distance are "
            "one loss and their weights void"
        )
        del values["cosine_weight"], values["mse_weight"]
    largest = [0, 0] if pairs.labels is None else sorted(np.unique(pairs.labels, return_counts=True)[1].tolist())
    if largest[-1] < 2:
        why = "the pairs have no labels" if pairs.labels is None else "no label repeats"
        left_out.append(f"compactness_weight, linear and sorted pairing: {why}")
        del values["compactness_weight"]
        values["pairing"] = [choice for choice in values["pairing"] if choice in ("none", "proximity")] or ["none"]
    elif min(largest[-2:]) < fixed.interpolation.minimum:
        left_out.append(
            f"sorted and proximity pairing: no two identities have the {fixed.interpolation.minimum} samples that a "
            "synthetic one needs (interpolation.minimum)"
        )
        values["pairing"] = [choice for choice in values["pairing"] if choice in ("none", "linear")] or ["none"]
    if values["pairing"] == ["none"]:
        del values["rate"], values["schedule"]
    if fixed.transformer not in SIZED:
        left_out.append(f"width: {fixed.transformer} has none")
        del values["width"]
    space = TunedSpace(values, tuple(left_out))
    if not space.drawn:
        raise ValueError("nothing is left to tune: every parameter is held at one value; give a --space.NAME two")
    return space
