"""Damaged stores: every flipped bit, lost file and cut file is reported or makes no difference."""

import random

import numpy as np
import polars as pl
import pytest

from stores.chunks import DamagedStore
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

ROWS = 40


@pytest.fixture
def path(tmp_path):
    with EmbeddingStore.create(tmp_path / "store", EmbeddingSpace("resnet", None, 4, False), chunk_rows=16) as store:
        vectors = np.random.default_rng(0).normal(size=(ROWS, 4))
        store.append(pl.DataFrame({"item_id": range(ROWS), "label": ["a", "b"] * (ROWS // 2)}), vectors)
        store.commit({"images": "photos"})
    return tmp_path / "store"


def everything(path):
    store = EmbeddingStore.open(path)
    return store.space.to_dict(), store.provenance, store.items.to_dicts(), store.rows(0, len(store)).tobytes()


def outcome(path):
    try:
        return everything(path), ""
    except ValueError as error:
        return None, str(error)


def files(path):
    return sorted(entry for entry in path.rglob("*") if entry.is_file() and entry.name != ".lock")


def test_a_flipped_bit_is_reported_or_harmless(path):
    whole = everything(path)
    chance = random.Random(0)
    reported = 0
    for _ in range(150):
        file = chance.choice(files(path))
        content = file.read_bytes()
        place = chance.randrange(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        found, complaint = outcome(path)
        assert found == whole or (str(file) in complaint and "\n" not in complaint), (file, place)
        reported += bool(complaint)
        file.write_bytes(content)
    assert reported > 100
    assert everything(path) == whole


def test_every_bit_of_a_vector_matters(path):
    chunk = path / "vectors" / "c" / "2" / "0"
    content = chunk.read_bytes()
    for place in range(0, len(content), 3):
        chunk.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(DamagedStore, match="checksum"):
            everything(path)


def test_a_lost_file_is_named(path):
    for file in files(path):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises((DamagedStore, FileNotFoundError), match=r"missing|no file store\.json") as caught:
            everything(path)
        assert file.name in str(caught.value)
        assert "\n" not in str(caught.value)
        file.write_bytes(content)


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_cut_file_is_named(path, keep):
    for file in files(path):
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
        with pytest.raises(DamagedStore, match=str(file)) as caught:
            everything(path)
        assert "\n" not in str(caught.value)
        file.write_bytes(content)


def test_verify_lists_everything_that_is_damaged(path):
    assert EmbeddingStore.open(path).verify().ok
    store = EmbeddingStore.open(path)
    for file in files(path):
        file.write_bytes(file.read_bytes()[:-2])
    steps = []
    check = store.verify(on_chunk=lambda done, chunks: steps.append((done, chunks)))
    assert not check.ok
    assert (check.rows, check.chunks) == (ROWS, 3)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for file in files(path):
        assert sum(str(file) in problem for problem in check.problems) == 1


def test_a_store_of_a_later_version_says_so(path):
    body = unseal(path / "store.json", version=1)
    (path / "store.json").write_bytes(seal(body | {"format_version": 2}))
    with pytest.raises(ValueError, match="format version 2, this version reads 1"):
        EmbeddingStore.open(path)
