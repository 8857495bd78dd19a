"""The training of a backbone: what is run, where it resumes, and what it leaves behind."""

from collections.abc import Callable, Mapping, Sequence
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
    replace_file,
    save_model,
    save_training_state,
    tensor_digest,
)
from backbones.datasets.image_item import ImageItem
from backbones.datasets.image_set import ImageSet
from backbones.options import TrainOptions
from backbones.training.card import check_same_recipe, describe_training, recipe_of
from backbones.training.learner import Learner, NotFinite
from backbones.training.metrics_log import METRICS_FILE, MetricsLog, read_history, write_history
from backbones.training.objective import origins
from backbones.training.teachers import load_teacher
from backbones.training.training_set import list_training, listing_digest, read_training
from backbones.training.validation_set import ValidationSet, open_validation

__all__ = ["CHECKPOINT_FILE", "METRICS_FILE", "TrainResult", "fit"]

CHECKPOINT_FILE = "checkpoint.safetensors"
NOT_FINITE_FILE = "not_finite.txt"


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
        ValueError: for unusable data or options; options, images, a teacher or earlier weights that differ from those
            of the run found in `options.out`; a damaged checkpoint; or a loss, gradient or weight that is no number:
            the last checkpoint then stays, and `not_finite.txt` beside it lists the images of the batch.
    """
    items = list_training(options)
    if (options.out / CARD_FILE).is_file():
        return _finished(options, items)
    images = read_training(options, items)
    identities = {item.label for item in images.items} - {""}
    if len(identities) < 2 and options.head != "none":
        raise ValueError(
            f"found {len(identities)} identity in {options.data}, expected at least two to tell apart; "
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
            raise NotFinite(f"{error}{_listed(options, error)}; {_last_good(options)}", error.item_ids) from None
        finally:
            log.close()
    options.out.mkdir(parents=True, exist_ok=True)
    write_history(options.out, history)
    card = describe_training(options, images, learner, history, validation, digests, listing=listing_digest(items))
    weights = save_model(options.out, finished["network"], card, head=finished.get("head"))
    for name in (CHECKPOINT_FILE, NOT_FINITE_FILE):
        (options.out / name).unlink(missing_ok=True)
    return TrainResult(weights=weights, card=load_card(options.out), history=history)


def _epoch(learner: Learner, epoch: int, validation: ValidationSet | None, log: MetricsLog) -> dict[str, Any]:
    record = learner.train_epoch(epoch, log.after_step)
    learner.check_finite()
    if validation is not None:
        record |= learner.validate(validation)
    log.after_epoch(record, step=(epoch + 1) * learner.steps)
    return record


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
    _check_origins(path, options, found.get("origins", {}), digests)
    progress = load_training_state(
        path, modules=learner.state_modules, optimizer=learner.optimizer, generators=learner.generators
    )
    if progress.get("scaler"):
        learner.scaler.load_state_dict(progress["scaler"])
    return progress["history"]


def _check_origins(path: Path, options: TrainOptions, found: Mapping[str, str], digests: Mapping[str, str]) -> None:
    for name, digest in digests.items():
        if found.get(name) != digest:
            raise ValueError(
                f"{name} {getattr(options, name)} changed since {path} was written; restore it or use a new out"
            )


def _finished(options: TrainOptions, items: Sequence[ImageItem]) -> TrainResult:
    """Return what the earlier run left, once it is sure to be a run of these options on these very data."""
    path = options.out / CARD_FILE
    card = load_card(options.out)
    check_same_recipe(path, card["recipe"], recipe_of(options))
    # cards of earlier releases have no listing, origins or digest of the weights
    if card["data"].get("listing", listing := listing_digest(items)) != listing:
        raise ValueError(
            f"the images in {options.data} are not those that {path} was made with; restore them or use a new out"
        )
    if "origins" in card:
        digests = origins(options)
        if options.teacher is not None:
            digests["teacher"] = load_teacher(options.teacher, torch.device("cpu")).digest
        _check_origins(path, options, card["origins"], digests)
    for name in (MODEL_FILE, *([HEAD_FILE] if card.get("head") else [])):
        tensors, _ = read_tensors(options.out / name)  # a damaged model must not pass as a finished run
        if name == MODEL_FILE and card.get("weights_sha256", found := tensor_digest(tensors)) != found:
            raise ValueError(
                f"{options.out / name} is not the model that {path} describes; restore it or use a new out"
            )
    (options.out / CHECKPOINT_FILE).unlink(missing_ok=True)  # a kill may have come just before this was done
    return TrainResult(
        weights=options.out / MODEL_FILE, card=card, history=read_history(options.out), already_finished=True
    )


def _listed(options: TrainOptions, error: NotFinite) -> str:
    """Write the images of the batch beside the checkpoint, all of them, and say where."""
    if not error.item_ids:
        return ""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / NOT_FINITE_FILE
    text = "".join(f"{item_id}\n" for item_id in error.item_ids)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))
    return f"; all {len(error.item_ids)} images are listed in {path}"


def _last_good(options: TrainOptions) -> str:
    path = options.out / CHECKPOINT_FILE
    return f"the last good state is {path}" if path.is_file() else "no checkpoint was written yet"
