"""Models and training states on disk: safetensors and JSON, written whole or not at all, refused when damaged.

Safetensors checks its header and lengths but not its data: a flipped bit is read as another number. Every file
therefore carries a SHA-256 over its tensors and its description, which loading compares.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

MODEL_FILE = "model.safetensors"
HEAD_FILE = "head.safetensors"
CARD_FILE = "card.json"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)  # version 1 had no head.safetensors; what a newer reader needs of a card, it has
RECORD = "record"
REMEDY = "give the options of the first run, or another folder"
RESTORE = "restore it from a copy, or remove it and train again"


def save_model(folder: Path, network: nn.Module, card: Mapping[str, Any], *, head: nn.Module | None = None) -> Path:
    """Write `head.safetensors`, `model.safetensors` and then `card.json`, which says that the folder is complete.

    Args:
        folder: made where it does not exist.
        network: its state dict is saved, on any device.
        card: what JSON can hold; added are `format_version`, `weights_sha256`, the `tensor_digest` of the network that
            ties the card to its weights, and `sha256`, a digest over the rest.
        head: the classification head, which later trainings can stay compatible with.

    Returns:
        The path of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD_FILE).unlink(missing_ok=True)  # an older card must not describe the new weights
    (folder / HEAD_FILE).unlink(missing_ok=True)
    if head is not None:
        write_tensors(folder / HEAD_FILE, head.state_dict(), {})
    write_tensors(folder / MODEL_FILE, network.state_dict(), {})
    content = {"format_version": FORMAT_VERSION, **card, "weights_sha256": tensor_digest(network.state_dict())}
    text = json.dumps({**content, "sha256": _card_digest(content)}, indent=2, allow_nan=False) + "\n"
    replace_file(folder / CARD_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / MODEL_FILE


def training_folder(path: Path) -> Path:
    """Return the folder of a training that is named by its folder or by the model file in it."""
    return path.parent if path.name == MODEL_FILE and not path.is_dir() else path


def load_card(folder: Path) -> dict[str, Any]:
    """Read `folder/card.json`, without its `sha256`.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is damaged or edited, or of a format version that is not in `READABLE_VERSIONS`.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise FileNotFoundError(f"model card {path} not found; expected the folder that `backbones.train` wrote")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model card {path} is damaged ({error}); {RESTORE}") from error
    version = card.get("format_version") if isinstance(card, dict) else None
    if version not in READABLE_VERSIONS:
        raise ValueError(
            f"model card {path} has format version {version}, expected {READABLE_VERSIONS[0]} to {FORMAT_VERSION}; "
            "train again or use the release that wrote it"
        )
    if card.pop("sha256", None) != _card_digest(card):
        raise ValueError(f"model card {path} is damaged or was edited: its digest does not match; {RESTORE}")
    return card


def _card_digest(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True, allow_nan=False).encode()).hexdigest()


def load_weights(path: Path, network: nn.Module) -> None:
    """Fill `network`, or a head, from a file that `save_model` wrote.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is damaged, or holds other tensors than the network needs.
    """
    tensors, _ = read_tensors(path)
    _check_same_tensors(path, network.state_dict(), tensors)
    network.load_state_dict(tensors)


def save_training_state(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    generators: Mapping[str, torch.Generator],
    progress: Mapping[str, Any],
) -> None:
    """Write all that a training needs to go on as if it had not stopped.

    Args:
        path: replaced at once when the new state is complete on disk.
        modules: networks, heads and losses by name.
        optimizer: its state may hold tensors and what JSON can hold, as that of SGD, AdamW and LARS does.
        generators: sources of random numbers by name; `torch.default_generator` is one.
        progress: what JSON can hold: epoch, step, history, options.
    """
    tensors = {f"modules/{name}/{key}": value for name, module in modules.items() for key, value in _state(module)}
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
        plain[str(index)] = {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
    tensors |= {f"generators/{name}": generator.get_state() for name, generator in generators.items()}
    description = {
        "progress": dict(progress),
        "optimizer": {"kind": type(optimizer).__name__, "state": plain, "param_groups": state["param_groups"]},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, description)


def load_training_state(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    generators: Mapping[str, torch.Generator],
) -> dict[str, Any]:
    """Restore, in place, what `save_training_state` wrote and return its `progress`.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is damaged, or does not fit the modules, the optimiser or the generators.
    """
    tensors, description = read_tensors(path)
    expected = {f"modules/{name}/{key}": value for name, module in modules.items() for key, value in _state(module)}
    expected |= {f"generators/{name}": generator.get_state() for name, generator in generators.items()}
    _check_same_tensors(path, expected, {k: v for k, v in tensors.items() if not k.startswith("optimizer/")})
    saved = description["optimizer"]
    if saved["kind"] != type(optimizer).__name__:
        raise ValueError(f"{path} holds the state of {saved['kind']}, expected {type(optimizer).__name__}; {REMEDY}")
    for name, module in modules.items():
        module.load_state_dict({key: tensors[f"modules/{name}/{key}"] for key, _ in _state(module)})
    for name, generator in generators.items():
        generator.set_state(tensors[f"generators/{name}"])
    entries: dict[int, dict[str, Any]] = {int(index): dict(plain) for index, plain in saved["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/", 2)
            entries[int(index)][key] = _laid_out_like(parameters[int(index)], value)
    optimizer.load_state_dict({"state": entries, "param_groups": saved["param_groups"]})
    return description["progress"]


def load_progress(path: Path) -> dict[str, Any]:
    """Read the `progress` of a training state alone, so that a run can refuse it before anything is restored.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where its description is damaged; the tensors are checked by `load_training_state`.
    """
    _, record = _open_tensors(path, names=())
    try:
        return json.loads(record["description"])["progress"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or foreign ({error}); {RESTORE}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and what JSON can hold as one safetensors file with a digest, atomically."""
    # a channels-last tensor is not contiguous, and safetensors stores contiguous ones only
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(description, allow_nan=False)
    # one entry: safetensors writes several in random order, and equal content would not give equal bytes
    record = json.dumps({"sha256": tensor_digest(packed, text), "description": text})
    replace_file(path, lambda temporary: save_file(packed, temporary, metadata={RECORD: record}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote: the tensors, on the CPU, and the description.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where a bit of it is not what was written, or another program wrote it.
    """
    tensors, record = _open_tensors(path)
    if record["sha256"] != tensor_digest(tensors, record["description"]):
        raise ValueError(f"{path} is damaged: its digest does not match; {RESTORE}")
    return tensors, json.loads(record["description"])


def _open_tensors(path: Path, names: Sequence[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the named tensors, by default all, and the record of digest and description, without comparing them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; expected a safetensors file written by this project")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        if RECORD not in metadata:
            raise ValueError(f"it carries no digest under {RECORD!r}, so it was not written by this project")
        record = json.loads(metadata[RECORD])
        return tensors, {key: record[key] for key in ("sha256", "description")}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or foreign ({error}); {RESTORE}") from error


def tensor_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return a SHA-256 in hexadecimal over names, types, shapes and values of tensors, and over a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary sibling, bring it to the disk and rename it to `path`.

    A reader, or a run after a power cut, sees the old file or the new one, never a part.
    """
    temporary = path.with_name(f".{path.name}.partial")  # one name, so that what a kill leaves is taken away here
    temporary.unlink(missing_ok=True)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask wants it; safetensors lets the owner alone read
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself is an entry of the folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict().items())


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Give a moment the memory layout of its parameter, as in the run that was interrupted; sums keep their order."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_same_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        wanted, given = (
            f"{tensors[name].dtype} {list(tensors[name].shape)}" if name in tensors else "nothing"
            for tensors in (expected, found)
        )
        if wanted != given:
            raise ValueError(f"{path} does not fit: found {given} for {name}, expected {wanted}; {REMEDY}")
