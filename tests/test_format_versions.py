"""What earlier releases wrote, kept in tests/frozen, is read by this one; what later ones write is refused.

The planted vectors are those of numpy's default generator with seed 1 (and 2 for the other side of the map).
"""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compat.transformers.artefact import load_transformer
from stores.commit import Commit
from stores.galleries import open_source
from stores.inspection import inspect_store
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

FROZEN = Path(__file__).parent / "frozen"
SPACE = EmbeddingSpace("resnet", "f00d", 6, False)
VECTORS = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
ITEMS = pl.DataFrame(
    {"item_id": [f"i{n}" for n in range(40)], "label": [f"p{n // 4}" for n in range(40)], "number": range(40)},
    schema_overrides={"number": pl.Int64},
)


@pytest.fixture
def store(tmp_path):
    shutil.copytree(FROZEN / "store-1", tmp_path / "store")
    return tmp_path / "store"


def test_a_store_of_version_1_reads_and_verifies(store):
    opened = EmbeddingStore.open(store)
    assert (opened.space, len(opened), opened.provenance, opened.chunk_rows) == (SPACE, 40, {"images": "photos"}, 16)
    assert opened.items.equals(ITEMS)
    np.testing.assert_array_equal(opened.rows(0, 40), VECTORS)
    assert opened.verify().ok
    assert inspect_store(store).format_version == 1


def test_a_store_of_version_1_goes_on_as_version_1_and_forgets_as_version_2(store):
    with EmbeddingStore.open(store) as opened:
        opened.append(ITEMS.with_columns(item_id="again " + pl.col("item_id")), VECTORS)
        opened.commit()
        assert Commit.read(store).version == 1
        assert opened.forget(["i3", "again i7"]) == 2
        assert Commit.read(store).version == 2
        opened.compact()
    found = EmbeddingStore.open(store)
    twice = np.concatenate([VECTORS, VECTORS])
    np.testing.assert_array_equal(found.rows(0, 78), np.delete(twice, [3, 47], axis=0))


@pytest.mark.parametrize("name", ["store-2-forgotten", "store-2-half-shards-compacted"])
def test_stores_of_version_2_read_and_go_on(tmp_path, name):
    shutil.copytree(FROZEN / name, tmp_path / "store")
    kept = np.setdiff1d(np.arange(40), [3, 17, 39])
    with EmbeddingStore.open(tmp_path / "store") as opened:
        assert (opened.space, opened.provenance, opened.verify().ok) == (SPACE, {"images": "photos"}, True)
        assert opened.items.equals(ITEMS[kept])
        expected = VECTORS[kept].astype(opened.layout.dtype).astype(np.float32)
        np.testing.assert_array_equal(opened.rows(0, 37), expected)
        opened.compact()
        opened.append(ITEMS[[3]], VECTORS[[3]])
        opened.commit()
        np.testing.assert_array_equal(opened.rows(0, 37), expected)
        assert opened.verify().ok


@pytest.mark.parametrize("name", ["gallery-1.npy", "gallery-1.parquet", "gallery-1.faiss"])
def test_a_gallery_file_of_version_1_reads(tmp_path, name):
    for file in FROZEN.glob(f"{name}*"):
        shutil.copy(file, tmp_path)
    source = open_source(str(tmp_path / name))
    assert (source.space, source.provenance, len(source)) == (SPACE, {"from": "photos"}, 40)
    (batch,) = source.scan(64)
    assert batch.items.equals(ITEMS)
    np.testing.assert_allclose(batch.vectors, VECTORS, rtol=1e-6)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        # As the releases of those versions mapped a vector of ones.
        (1, [0.06526170670986176, -0.15209737420, 0.2893155217171, -0.19354483485, 0.3019114136696, 0.1173290982842]),
        (2, [0.03774071, -0.12757482, 0.10248765, -0.08002584, 0.19433431, 0.05154067]),
    ],
)
def test_a_transformer_of_each_version_maps_as_it_did(version, expected):
    transformer = load_transformer(FROZEN / f"transformer-{version}")
    assert (transformer.family, transformer.source) == ("ridge", SPACE)
    np.testing.assert_allclose(transformer.transform(np.ones((1, 6), np.float32))[0], expected, atol=1e-7)


def test_a_damaged_transformer_of_version_1_is_noticed(tmp_path):
    shutil.copytree(FROZEN / "transformer-1", tmp_path / "map")
    weights = tmp_path / "map" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="its digest does not match"):
        load_transformer(tmp_path / "map")


@pytest.mark.parametrize(("what", "newest"), [("store-1/store.json", 2), ("gallery-1.npy.json", 1)])
def test_what_a_later_release_wrote_is_refused(tmp_path, what, newest):
    shutil.copytree(FROZEN, tmp_path / "frozen")
    path = tmp_path / "frozen" / what
    path.write_bytes(seal(unseal(path, version=1) | {"format_version": newest + 1}))
    with pytest.raises(ValueError, match=rf"format version {newest + 1}, this version reads .*{newest}; use") as caught:
        open_source(str(path.parent if path.name == "store.json" else path.with_suffix("")))
    assert "\n" not in str(caught.value)
