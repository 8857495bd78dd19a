"""The training of a backbone: what is run, where it resumes, and the record it leaves behind."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from backbones.checkpoint import (
    CARD_FILE,
    MODEL_FILE,
    load_card,
    load_progress,
    load_training_state,
    read_tensors,
    replace_file,
    save_model,
    save_training_state,
)
from backbones.image_set import ImageSet
from backbones.learner import Learner, preprocessing
from backbones.options import TrainOptions

CHECKPOINT_FILE = "checkpoint.safetensors"
METRICS_FILE = "metrics.jsonl"
# these change nothing in the weights, so they may differ between the runs
RESULT_NEUTRAL = frozenset({"out", "validation", "max_bad", "image_memory", "checkpoint_every", "workers"})


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        weights: the model file.
        card: the content of the card beside it.
        history: one record per epoch: epoch (from 1), loss, learning_rate (of its last step), accuracy (share of the
            varied training images nearest to their own class), seconds, images_per_second and, with a validation
            folder, pair_accuracy and recall_at_1.
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
        OSError: where the data folder is missing or the output cannot be written.
        ValueError: for unusable data or options, options that differ from those of the run found in `options.out`, a
            damaged checkpoint, or a loss that is no number.
    """
    if (options.out / CARD_FILE).is_file():
        return _finished(options)
    images = _images(options, options.data)
    if len(images.identities) < 2:
        raise ValueError(
            f"found {len(images.identities)} identity in {options.data}, expected at least two to tell apart; "
            "add a folder of images per identity"
        )
    validation = None if options.validation is None else _images(options, options.validation)
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers as they were
        torch.manual_seed(options.seed)
        learner = Learner(options, images)
        history = _resume(options, images, learner)
        for epoch in range(len(history), options.epochs):
            record = learner.train_epoch(epoch)
            if validation is not None:
                record |= learner.validate(validation)
            history.append(record)
            if (epoch + 1) % options.checkpoint_every == 0 and epoch + 1 < options.epochs:
                _save(options, images, learner, history)
            if on_epoch is not None:
                on_epoch(record)
    options.out.mkdir(parents=True, exist_ok=True)
    _write_metrics(options.out, history)
    weights = save_model(options.out, learner.network, _card(options, images, learner, history))
    (options.out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return TrainResult(weights=weights, card=load_card(options.out), history=history)


def _images(options: TrainOptions, folder: Path) -> ImageSet:
    return ImageSet(
        folder,
        options.input_size,
        max_bad=options.max_bad,
        memory=options.image_memory,
        workers=options.workers,
    )


def _save(options: TrainOptions, images: ImageSet, learner: Learner, history: list[dict[str, Any]]) -> None:
    """Write the metrics and, last, the state from which the next epoch can start."""
    options.out.mkdir(parents=True, exist_ok=True)
    _write_metrics(options.out, history)
    save_training_state(
        options.out / CHECKPOINT_FILE,
        modules=learner.modules,
        optimizer=learner.optimizer,
        generators=learner.generators,
        progress={"recipe": _recipe(options), "images": images.digest, "history": history},
    )


def _resume(options: TrainOptions, images: ImageSet, learner: Learner) -> list[dict[str, Any]]:
    """Restore the last saved state, where there is one, and return the history up to it."""
    path = options.out / CHECKPOINT_FILE
    if not path.is_file():
        return []
    found = load_progress(path)
    _check_same_recipe(path, found["recipe"], _recipe(options))
    if found["images"] != images.digest:
        raise ValueError(
            f"the images in {options.data} changed since {path} was written; restore them or use a new out"
        )
    progress = load_training_state(
        path, modules=learner.modules, optimizer=learner.optimizer, generators=learner.generators
    )
    return progress["history"]


def _finished(options: TrainOptions) -> TrainResult:
    card = load_card(options.out)
    _check_same_recipe(options.out / CARD_FILE, card["recipe"], _recipe(options))
    read_tensors(options.out / MODEL_FILE)  # a damaged model must not pass as a finished run
    lines = (options.out / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    (options.out / CHECKPOINT_FILE).unlink(missing_ok=True)  # a kill may have come just before this was done
    return TrainResult(
        weights=options.out / MODEL_FILE,
        card=card,
        history=[json.loads(line) for line in lines],
        already_finished=True,
    )


def _recipe(options: TrainOptions) -> dict[str, Any]:
    """Return the options as JSON gives them back, so that those of two runs can be compared."""
    return json.loads(json.dumps(asdict(options), default=str))


def _check_same_recipe(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    found, wanted = _flat(found), _flat(wanted)
    for name in sorted((found.keys() | wanted.keys()) - RESULT_NEUTRAL):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} was made with {name} = {found.get(name)}, this run asks for {wanted.get(name)}; "
                f"give --{name} {found.get(name)} to go on there, or a new --out to start anew"
            )


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Name nested options as the command line does: `augmentation.shift`."""
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        flat |= {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _card(options: TrainOptions, images: ImageSet, learner: Learner, history: list[dict[str, Any]]) -> dict[str, Any]:
    last = history[-1]
    shares = {name: last[name] for name in ("accuracy", "pair_accuracy", "recall_at_1") if name in last}
    return {
        "arch": options.arch,
        "embedding_dim": options.embedding_dim,
        "input_size": options.input_size,
        "preprocessing": preprocessing(options).to_dict(),
        "recipe": _recipe(options),
        "data": {
            "images": len(images),
            "identities": len(images.identities),
            "skipped": images.skipped,
            "digest": images.digest,
        },
        "metrics": {
            **{name: {"value": value, "unit": "share from 0 to 1"} for name, value in shares.items()},
            "loss": {"value": last["loss"], "unit": "nats per image"},
            "training_time": {"value": round(sum(record["seconds"] for record in history), 3), "unit": "seconds"},
        },
        "made_with": {
            "torch": torch.__version__,
            "device": learner.device.type,
            "precision": "bf16" if learner.bf16 else "fp32",
        },
    }


def _write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in history)
    replace_file(folder / METRICS_FILE, lambda path: path.write_text(text, encoding="utf-8"))
