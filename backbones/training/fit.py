"""The training of a backbone: what is run, where it resumes, and what it leaves behind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backbones.checkpoint import (
    CARD_FILE,
    HEAD_FILE,
    MODEL_FILE,
    load_card,
    load_progress,
    load_training_state,
    read_tensors,
    save_model,
    save_training_state,
)
from backbones.datasets.image_set import ImageSet
from backbones.options import TrainOptions
from backbones.training.card import check_same_recipe, describe_training, recipe_of
from backbones.training.learner import Learner, NotFinite
from backbones.training.metrics_log import METRICS_FILE, MetricsLog, read_history, write_history
from backbones.training.objective import origins
from backbones.training.validation_set import ValidationSet, open_validation

__all__ = ["CHECKPOINT_FILE", "METRICS_FILE", "TrainResult", "fit"]

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        weights: the model file.
        card: the content of the card beside it.
        history: one record per epoch: epoch (from 1), loss, learning_rate (of its last step), accuracy (share of the
            varied training images nearest to their own class; with a head), the mean of each term beside the head's
            (distillation, influence, regular_face), seconds, images_per_second and, with a validation set, its scores.
        already_finished: whether an earlier run had done it all.
    """

    weights: Path
    card: dict[str, Any]
    history: list[dict[str, Any]]
    already_finished: bool = False


def fit(options: TrainOptions, *, on_epoch: Callable[[dict[str, Any]], object] | None = None) -> TrainResult:
    """Train a backbone, or go on where an interrupted run of the same options stopped.

    On a CPU the weights of an interrupted and resumed run equal those of an uninterrupted one bit for bit.

    Args:
        options: what to train, on what and how.
        on_epoch: called with each epoch's record when the epoch is done.

    Raises:
        ImportError: where an option needs a package that is missing.
        OSError: where the data folder is missing or the output cannot be written.
        ValueError: for unusable data or options, options that differ from those of the run found in `options.out`, a
            damaged checkpoint, or a loss, gradient or weight that is no number; the last checkpoint then stays.
    """
    if (options.out / CARD_FILE).is_file():
        return _finished(options)
    images = _images(options)
    if len(images.identities) < 2 and options.head != "none":
        raise ValueError(
            f"found {len(images.identities)} identity in {options.data}, expected at least two to tell apart; "
            "add a folder of images per identity"
        )
    validation = None if options.validation is None else open_validation(options.validation, options, images)
    # leaves the caller's random numbers as they were
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(options.seed)
        learner = Learner(options, images)
        digests = origins(options) | learner.objective.teacher_digest
        history = _resume(options, images, learner, digests)
        if not history and options.anchors:
            learner.set_anchors()
        log = MetricsLog(
            options.out,
            steps_done=len(history) * learner.steps,
            log_every=options.log_every,
            tensorboard=options.tensorboard,
        )
        try:
            for epoch in range(len(history), options.epochs):
                record = _epoch(learner, epoch, validation, log)
                history.append(record)
                if (epoch + 1) % options.checkpoint_every == 0 and epoch + 1 < options.epochs:
                    _save(options, images, learner, history, digests)
                if on_epoch is not None:
                    on_epoch(record)
            finished = learner.finished_modules()
        except NotFinite as error:
            raise NotFinite(f"{error}; {_last_good(options)}") from None
        finally:
            log.close()
    options.out.mkdir(parents=True, exist_ok=True)
    write_history(options.out, history)
    card = describe_training(options, images, learner, history, validation, digests)
    weights = save_model(options.out, finished["network"], card, head=finished.get("head"))
    (options.out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return TrainResult(weights=weights, card=load_card(options.out), history=history)


def _epoch(learner: Learner, epoch: int, validation: ValidationSet | None, log: MetricsLog) -> dict[str, Any]:
    record = learner.train_epoch(epoch, log.after_step)
    learner.check_finite()
    if validation is not None:
        record |= learner.validate(validation)
    log.after_epoch(record, step=(epoch + 1) * learner.steps)
    return record


def _images(options: TrainOptions) -> ImageSet:
    return ImageSet(
        options.data,
        options.input_size,
        max_bad=options.max_bad,
        memory=options.image_memory,
        workers=options.workers,
        keep_fraction=options.keep_fraction,
        seed=options.seed,
    )


def _save(
    options: TrainOptions,
    images: ImageSet,
    learner: Learner,
    history: list[dict[str, Any]],
    digests: dict[str, str],
) -> None:
    """Write the metrics and, last, the state from which the next epoch can start."""
    options.out.mkdir(parents=True, exist_ok=True)
    write_history(options.out, history)
    save_training_state(
        options.out / CHECKPOINT_FILE,
        modules=learner.state_modules,
        optimizer=learner.optimizer,
        generators=learner.generators,
        progress={
            "recipe": recipe_of(options),
            "images": images.digest,
            "origins": digests,
            "history": history,
            "scaler": learner.scaler.state_dict(),
        },
    )


def _resume(options: TrainOptions, images: ImageSet, learner: Learner, digests: dict[str, str]) -> list[dict[str, Any]]:
    """Restore the last saved state, where there is one, and return the history up to it."""
    path = options.out / CHECKPOINT_FILE
    if not path.is_file():
        return []
    found = load_progress(path)
    check_same_recipe(path, found["recipe"], recipe_of(options))
    if found["images"] != images.digest:
        raise ValueError(
            f"the images in {options.data} changed since {path} was written; restore them or use a new out"
        )
    for name, digest in digests.items():
        if found.get("origins", {}).get(name) != digest:
            raise ValueError(
                f"{name} {getattr(options, name)} changed since {path} was written; restore it or use a new out"
            )
    progress = load_training_state(
        path, modules=learner.state_modules, optimizer=learner.optimizer, generators=learner.generators
    )
    if progress.get("scaler"):
        learner.scaler.load_state_dict(progress["scaler"])
    return progress["history"]


def _finished(options: TrainOptions) -> TrainResult:
    card = load_card(options.out)
    check_same_recipe(options.out / CARD_FILE, card["recipe"], recipe_of(options))
    for name in (MODEL_FILE, *([HEAD_FILE] if card.get("head") else [])):
        read_tensors(options.out / name)  # a damaged model must not pass as a finished run
    (options.out / CHECKPOINT_FILE).unlink(missing_ok=True)  # a kill may have come just before this was done
    return TrainResult(
        weights=options.out / MODEL_FILE, card=card, history=read_history(options.out), already_finished=True
    )


def _last_good(options: TrainOptions) -> str:
    path = options.out / CHECKPOINT_FILE
    return f"the last good state is {path}" if path.is_file() else "no checkpoint was written yet"
