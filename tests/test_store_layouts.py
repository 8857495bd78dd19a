"""Chunk rows, number type and sharding: every layout holds the same rows, and other libraries read each of them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import tensorstore
import zarr

from stores.chunks import DamagedStore
from stores.commit import Commit
from stores.durable import StoreLocked
from stores.layout import VectorLayout
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

SPACE = EmbeddingSpace("resnet", None, 6, False)
LAYOUTS = {
    "plain": {"chunk_rows": 16},
    "half": {"chunk_rows": 16, "dtype": "float16"},
    "shards": {"chunk_rows": 4, "shard_chunks": 5},
    "half shards": {"chunk_rows": 4, "shard_chunks": 5, "dtype": "float16"},
    "one row": {"chunk_rows": 1},
}


def rows(start, stop):
    vectors = np.random.default_rng(5).normal(size=(stop, 6)).astype(np.float32)[start:]
    return pl.DataFrame({"item_id": [f"i{number}" for number in range(start, stop)]}), vectors


def filled(path, stop, step, **layout):
    with EmbeddingStore.create(path, SPACE, **layout) as store:
        for start in range(0, stop, step):
            store.append(*rows(start, min(start + step, stop)))
            store.commit()
    return EmbeddingStore.open(path)


def expected(stop, layout):
    vectors = rows(0, stop)[1]
    return vectors.astype(np.float16).astype(np.float32) if layout.get("dtype") == "float16" else vectors


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("stop", "step"), [(0, 1), (1, 1), (20, 20), (53, 53), (53, 7), (40, 3)])
def test_every_layout_holds_the_rows(tmp_path, layout, stop, step):
    store = filled(tmp_path / "store", stop, step, **layout)
    assert store.verify().ok
    assert store.items.equals(rows(0, stop)[0])
    wanted = expected(stop, layout)
    np.testing.assert_array_equal(store.rows(0, stop), wanted)
    assert store.rows(0, stop).dtype == np.float32
    chosen = np.random.default_rng(0).integers(stop, size=30) if stop else np.empty(0, int)
    np.testing.assert_array_equal(store.take(chosen), wanted[chosen])
    for batch in store.batches(8, shuffle=True, seed=1):
        numbers = batch.items["item_id"].str.slice(1).cast(pl.Int64).to_numpy()
        np.testing.assert_array_equal(batch.vectors, wanted[numbers])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_files_do_not_depend_on_the_appends(tmp_path, layout):
    def contents(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    filled(tmp_path / "once", 53, 53, **layout)
    filled(tmp_path / "often", 53, 2, **layout)
    assert contents(tmp_path / "once") == contents(tmp_path / "often")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_zarr_and_tensorstore_read_every_layout(tmp_path, layout):
    filled(tmp_path / "store", 53, 7, **layout)
    folder = Commit.read(tmp_path / "store").vectors_folder(tmp_path / "store")
    by_zarr = zarr.open_array(folder, mode="r")
    assert by_zarr.dtype == layout.get("dtype", "float32")
    np.testing.assert_array_equal(np.asarray(by_zarr[:]).astype(np.float32), expected(53, layout))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    by_tensorstore = np.asarray(tensorstore.open(spec).result().read().result())
    np.testing.assert_array_equal(by_tensorstore.astype(np.float32), expected(53, layout))


def test_zarr_finds_a_flipped_bit_in_a_shard_too(tmp_path):
    filled(tmp_path / "store", 20, 20, **LAYOUTS["shards"]).close()
    file = tmp_path / "store" / "vectors" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[130] ^= 2
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / "store" / "vectors", mode="r")[:]
    store = EmbeddingStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.rows(0, 4), rows(0, 4)[1])  # another chunk of that file
    with pytest.raises(DamagedStore, match="checksum"):
        store.rows(4, 8)


def test_half_precision_takes_half_the_bytes_and_refuses_what_is_too_large(tmp_path):
    sizes = []
    for dtype in ("float32", "float16"):
        filled(tmp_path / dtype, 64, 64, chunk_rows=16, dtype=dtype).close()
        sizes.append((tmp_path / dtype / "vectors" / "c" / "0" / "0").stat().st_size - 4)
    assert sizes[0] == 2 * sizes[1]
    items, vectors = rows(0, 3)
    vectors[1, 2] = 1e5
    with EmbeddingStore.create(tmp_path / "large", SPACE, dtype="float16") as store:
        with pytest.raises(ValueError, match=r"1 of 3 vectors hold .* more than 65504, the first is item 'i1'"):
            store.append(items, vectors)
        store.append(*rows(0, 3))
        store.commit()
    assert len(EmbeddingStore.open(tmp_path / "large")) == 3


def test_shards_make_few_files(tmp_path):
    filled(tmp_path / "store", 53, 2, chunk_rows=4, shard_chunks=5)
    assert len(list((tmp_path / "store" / "vectors" / "c").rglob("0"))) - 1 == 3  # the folder c/0 is one too


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"chunk_rows": 0}, "chunk_rows must be at least 1, found 0"),
        ({"shard_chunks": -1}, "shard_chunks must be at least 1"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, found 'int8'"),
    ],
)
def test_a_layout_that_cannot_be(tmp_path, layout, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingStore.create(tmp_path / "store", SPACE, **layout)
    assert not (tmp_path / "store").exists()


def test_a_plain_store_is_of_version_1_and_others_of_version_2(tmp_path):
    for name, layout in LAYOUTS.items():
        filled(tmp_path / name, 20, 20, **layout).close()
        assert Commit.read(tmp_path / name).version == (1 if name in ("plain", "one row") else 2)


def test_the_layout_knows_the_places_in_a_shard():
    layout = VectorLayout(6, 4, "float32", 5)
    assert layout.place(0) == (0, 0)
    assert layout.place(7) == (1, 2 * (4 * 6 * 4 + 4))
    assert layout.file_bytes(2) == 2 * 100 + 5 * 16 + 4


@pytest.mark.parametrize("layout", [LAYOUTS["plain"], LAYOUTS["half shards"]])
@pytest.mark.parametrize("stop", [40, 53])
def test_a_file_that_was_exchanged_for_another_or_for_an_older_one_is_noticed(tmp_path, layout, stop):
    filled(tmp_path / "store", 37, 37, **layout).close()
    chunks = tmp_path / "store" / "vectors" / "c"
    last = sorted(chunks.iterdir())[-1] / "0"
    older = last.read_bytes()
    with EmbeddingStore.open(tmp_path / "store") as store:
        store.append(*rows(37, stop))
        store.commit()
    newer = last.read_bytes()
    last.write_bytes(older)
    store = EmbeddingStore.open(tmp_path / "store")
    assert len(store.verify().problems) == 1
    with pytest.raises(DamagedStore, match=f"{last} .*(holds other rows|ends before chunk)"):
        store.rows(0, stop)
    last.write_bytes(newer)
    assert EmbeddingStore.open(tmp_path / "store").verify().ok
    one, two = chunks / "0" / "0", chunks / "1" / "0"
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    problems = EmbeddingStore.open(tmp_path / "store").verify().problems
    assert {str(file) for file in (one, two)} <= {name for p in problems for name in p.split()}


def test_a_store_without_written_checksums_gets_them_with_the_next_commit(tmp_path):
    filled(tmp_path / "store", 37, 37, chunk_rows=16).close()
    before = Commit.read(tmp_path / "store")
    replace(before, checksums=None).publish(tmp_path / "store")
    assert Commit.read(tmp_path / "store").checksums is None
    store = EmbeddingStore.open(tmp_path / "store")
    assert (store.verify().ok, store.digest()) == (True, filled(tmp_path / "other", 37, 37, chunk_rows=16).digest())
    with store:
        store.append(*rows(37, 53))
        store.commit()
    filled(tmp_path / "once", 53, 53, chunk_rows=16).close()
    assert Commit.read(tmp_path / "store").checksums == Commit.read(tmp_path / "once").checksums


def test_nothing_is_published_once_the_lock_file_was_removed(tmp_path):
    with filled(tmp_path / "store", 20, 20, chunk_rows=16) as store:
        store.append(*rows(20, 30))
        (tmp_path / "store" / ".lock").unlink()
        with EmbeddingStore.open(tmp_path / "store") as other:
            other.append(*rows(20, 24))
            other.commit()
        with pytest.raises(StoreLocked, match="was removed while this process wrote"):
            store.commit()
    np.testing.assert_array_equal(EmbeddingStore.open(tmp_path / "store").rows(0, 24), rows(0, 24)[1])
