"""What a reader needs to form a report again: the command, the versions, and what exactly went in."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compat.transformers.artefact import Transformer
from stores.store import EmbeddingStore

PACKAGES = ("embedding-compat", "torch", "numpy", "polars", "zarr", "faiss-cpu", "faiss-gpu")


def how_to_reproduce(
    options: Any, stores: Mapping[str, EmbeddingStore], transformers: Mapping[Path, Transformer]
) -> dict[str, Any]:
    """The section `reproduce` of report.json, plain values.

    Args:
        options: The dataclass that `python -m compat.evaluate` was called with.
        stores: What was read, by the name of its option.
        transformers: By folder.
    """
    inputs = [
        {
            "role": role.replace("_", " "),
            "path": str(store.path),
            "space": str(store.space),
            "rows": len(store),
            "digest": store.digest(),
        }
        for role, store in stores.items()
    ]
    for path, transformer in transformers.items():
        space = f"{transformer.source} to {transformer.target}"
        digest = transformer.digest()
        inputs.append({"role": "transformer", "path": str(path), "space": space, "rows": None, "digest": digest})
    words = ["python", "-m", "compat.evaluate", *_arguments(options)]
    return {
        "command": shlex.join(words),
        "versions": {"python": platform.python_version(), **_versions()},
        "inputs": inputs,
        "seed": options.seed,
    }


def _arguments(options: Any, prefix: str = "") -> Iterator[str]:
    """The options that are not at their defaults, as words of a command line."""
    fresh = type(options)
    for field in fields(options):
        value, name = getattr(options, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(value):
            yield from _arguments(value, f"{name}.")
        elif isinstance(value, list):
            yield from [f"--{name}", *map(str, value)] if value else []
        elif value is not None and value != getattr(fresh, field.name, None):
            yield from (f"--{name}", "yes" if value is True else str(value))


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
