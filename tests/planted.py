"""Two models whose relation is known: what the tests of `compat` plant and look for."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

ROOT = Path(__file__).parents[1]


class World(NamedTuple):
    """The same items seen by two models, [n, old dim] and [n, new dim], and whose they are, int [n]."""

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray


def plant(
    identities: int = 30,
    samples: int = 6,
    old_dim: int = 8,
    new_dim: int = 8,
    *,
    noise: float = 0.15,
    new_noise: float | None = None,
    seed: int = 0,
) -> World:
    """Identities are random directions; the new model sees them turned, each model with noise of its own."""
    generator = np.random.default_rng(seed)
    dim = max(old_dim, new_dim)
    turn = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    # Drawn in the smaller space, so that neither model sees more than the other.
    people = np.repeat(generator.normal(size=(identities, min(old_dim, new_dim))), samples, axis=0)
    people = np.pad(people, ((0, 0), (0, dim - people.shape[1])))
    old = people + noise * generator.normal(size=people.shape)
    new = people @ turn + (noise if new_noise is None else new_noise) * generator.normal(size=people.shape)
    labels = np.repeat(np.arange(identities), samples)
    if new_dim < dim:  # what is left of the turn must still hold the people
        new = new @ turn.T
    return World(old[:, :old_dim].astype(np.float32), new[:, :new_dim].astype(np.float32), labels)


def space(name: str, dim: int) -> EmbeddingSpace:
    return EmbeddingSpace(name, None, dim, False)


def write_store(path, vectors, *, name="old", ids=None, labels=None, provenance=None, chunk_rows=64, extra=None):
    """A closed store of vectors [n, d]; ids are `i0`, `i1`, ... unless given."""
    columns = {"item_id": [f"i{row}" for row in range(len(vectors))] if ids is None else list(ids)}
    if labels is not None:
        columns["label"] = list(labels)
    made_of = space(name, vectors.shape[1])
    with EmbeddingStore.create(path, made_of, chunk_rows=chunk_rows, provenance=provenance) as store:
        store.append(pl.DataFrame(columns | (extra or {}), strict=False), vectors)
        store.commit()
    return path


def open_store(path, vectors, **details):
    return EmbeddingStore.open(write_store(path, vectors, **details))


def command(module: str, *argv: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, argv)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run(module: str, *argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(module, *argv), env=environment(), capture_output=True, text=True, check=False)
