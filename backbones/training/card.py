"""The record a training leaves: its recipe, its data and what came out."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from backbones.datasets.image_set import ImageSet
from backbones.losses.heads import HEADS
from backbones.options import USUAL_WARMUP, AugmentOptions, TrainOptions
from backbones.training.learner import Learner, preprocessing
from backbones.training.objective import describe_head
from backbones.training.training_set import UNLABELLED
from backbones.training.validation_set import ValidationSet

# these change nothing in the weights, so they may differ between the runs
RESULT_NEUTRAL = frozenset(
    {
        *("out", "validation", "validation_root", "max_bad", "image_memory", "checkpoint_every", "log_every"),
        *("tensorboard", "workers"),
        "root",  # where the images lie; the digests tell what they are
    }
)
PACKAGES = ("embedding-compat", "torch", "numpy", "pillow", "simplejpeg", "pytorch_optimizer")
SHARES = ("accuracy", "pair_accuracy", "recall_at_1")
SHARE_UNIT = "share from 0 to 1"


def recipe_of(options: TrainOptions) -> dict[str, Any]:
    """Return the options as JSON gives them back, so that those of two runs can be compared."""
    return json.loads(json.dumps(asdict(options), default=str))


def check_same_recipe(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare the recipe of an earlier run with that of this one.

    Options that the earlier run's release did not have count as their defaults, which change nothing.

    Args:
        path: what the earlier run wrote, for the message.
        found: its recipe.
        wanted: this run's.

    Raises:
        ValueError: for the first option that differs and is not one of `RESULT_NEUTRAL`.
    """
    found_flat, wanted_flat = _flat(found), _flat(wanted)
    for name in sorted((found_flat.keys() | wanted_flat.keys()) - RESULT_NEUTRAL):
        if found_flat.get(name) != wanted_flat.get(name):
            raise ValueError(
                f"{path} was made with {name} = {found_flat.get(name)}, this run asks for {wanted_flat.get(name)}; "
                f"give --{name} {found_flat.get(name)} to go on there, or a new --out to start anew"
            )


def describe_training(
    options: TrainOptions,
    images: ImageSet,
    learner: Learner,
    history: Sequence[Mapping[str, Any]],
    validation: ValidationSet | None,
    origins: Mapping[str, str],
    *,
    listing: str,
) -> dict[str, Any]:
    """Return the card of a finished training; `backbones.checkpoint.save_model` adds format version and digests.

    Args:
        options: of the training.
        images: it saw.
        learner: that did it.
        history: one record per epoch.
        validation: the set it was scored on.
        origins: SHA-256 of teacher and earlier weights by the name of their option.
        listing: `listing_digest` of the images.
    """
    head = learner.objective.head
    return {
        "arch": options.arch,
        "embedding_dim": options.embedding_dim,
        "input_size": options.input_size,
        "preprocessing": preprocessing(options).to_dict(),
        "recipe": recipe_of(options),
        "origins": dict(origins),
        "data": {
            "images": len(images),
            "identities": len(learner.identities),
            "identities_sha256": hashlib.sha256("\n".join(learner.identities).encode()).hexdigest(),
            "unlabelled": int((learner.class_labels == UNLABELLED).sum()),
            "skipped": images.skipped,
            "keep_fraction": options.keep_fraction,
            "digest": images.digest,
            "listing": listing,
        },
        "validation": None if validation is None else validation.describe(),
        "head": None if head is None else describe_head(head, options.head, learner.identities),
        "metrics": _metrics(options, learner, history),
        "made_with": {
            **_versions(),
            "device": learner.device.type,
            "gpu": torch.cuda.get_device_name() if learner.device.type == "cuda" else None,
            "precision": learner.precision,
            "averaged_weights": 0 if learner.average is None else learner.average.count,
        },
    }


def _metrics(options: TrainOptions, learner: Learner, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = history[-1]
    seconds = sum(record["seconds"] for record in history)
    seen = len(history) * learner.steps * learner.batch_size
    shares = [name for name in last if name in SHARES or name.startswith("tar_at_far_")]
    units = dict.fromkeys(shares, SHARE_UNIT) | {"loss": "nats per image" if options.head != "none" else "no unit"}
    units |= {
        "distillation": "squared distance of unit vectors, 0 to 4",
        "influence": "nats per image of a known identity",
        "regular_face": "cosine, -1 to 1",
    }
    return {
        **{name: {"value": last[name], "unit": unit} for name, unit in units.items() if name in last},
        "training_time": {"value": round(seconds, 3), "unit": "seconds"},
        "speed": {"value": round(seen / max(seconds, 1e-9), 1), "unit": "images per second"},
    }


def _versions() -> dict[str, str | None]:
    """Return the versions of Python and of what decodes, computes and steps; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {"torch": torch.__version__}


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults, and name nested options as the command line does: `augmentation.shift`."""
    augmentation = _defaults(AugmentOptions) | recipe.get("augmentation", {})
    flat = _defaults(TrainOptions) | {name: value for name, value in recipe.items() if name != "augmentation"}
    if flat["warmup_epochs"] is None and flat["epochs"] > USUAL_WARMUP:
        flat["warmup_epochs"] = float(USUAL_WARMUP)
    if flat["margin"] is None:
        flat["margin"] = getattr(HEADS.get(flat["head"]), "PUBLISHED_MARGIN", None)
    return flat | {f"augmentation.{name}": value for name, value in augmentation.items()}


def _defaults(options_class: type[TrainOptions] | type[AugmentOptions]) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(options_class) if field.default is not MISSING}
    if options_class is TrainOptions:
        defaults["milestones"] = []
    return json.loads(json.dumps(defaults, default=str))
