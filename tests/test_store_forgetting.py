"""Forgotten items: gone at once for every reader, and gone from every byte of the store once it is compacted."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from stores.durable import StoreLocked
from stores.forgotten import ForgottenRows
from stores.inspection import inspect_store
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore, StaleStore

SPACE = EmbeddingSpace("resnet", None, 6, False)
LAYOUTS = [{"chunk_rows": 8}, {"chunk_rows": 4, "shard_chunks": 3, "dtype": "float16"}]
STOP = 60
GONE = [0, 7, 8, 9, 30, 31, 59]


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    for module in ("item_parts", "writer", "compaction"):
        monkeypatch.setattr(f"stores.{module}.PART_ROWS", 24)


def rows(start, stop):
    vectors = np.random.default_rng(5).normal(size=(stop, 6)).astype(np.float16).astype(np.float32)[start:]
    names = [f"person-{number:04d}" for number in range(start, stop)]
    return pl.DataFrame({"item_id": names, "label": [name[:-1] for name in names]}), vectors


def filled(path, stop=STOP, **layout):
    store = EmbeddingStore.create(path, SPACE, **layout)
    store.append(*rows(0, stop))
    store.commit()
    return store


def names(numbers):
    return [f"person-{number:04d}" for number in numbers]


def without(gone, stop=STOP):
    items, vectors = rows(0, stop)
    keep = np.setdiff1d(np.arange(stop), gone)
    return items[keep], vectors[keep]


def assert_holds(store, items, vectors):
    assert len(store) == len(vectors)
    assert store.items.equals(items)
    np.testing.assert_array_equal(store.rows(0, len(store)), vectors)
    chosen = np.random.default_rng(0).integers(len(vectors), size=40) if len(vectors) else np.empty(0, int)
    np.testing.assert_array_equal(store.take(chosen), vectors[chosen])
    for start in range(0, len(vectors), 5):
        np.testing.assert_array_equal(store.rows(start, min(start + 11, len(vectors))), vectors[start : start + 11])
    fresh = EmbeddingStore.open(store.path)  # one whose item table is not in memory
    for shuffle in (False, True):
        batches = list(fresh.batches(7, shuffle=shuffle))
        seen = pl.concat([batch.items for batch in batches]) if batches else items
        found = np.concatenate([batch.vectors for batch in batches]) if batches else vectors
        if shuffle:
            back = np.argsort(np.argsort(items["item_id"].to_numpy()))  # the places of the ids in their sorted order
            order = np.argsort(seen["item_id"].to_numpy())[back]
            seen, found = seen[order], found[order]
        assert seen.equals(items)
        np.testing.assert_array_equal(found, vectors)


def bytes_of(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("in_memory", [True, False])
def test_forgotten_items_are_gone_and_then_their_bytes(tmp_path, monkeypatch, layout, in_memory):
    if not in_memory:
        monkeypatch.setattr("stores.item_table.ROWS_IN_MEMORY", 0)
    with filled(tmp_path / "store", **layout) as store:
        assert store.forget(names(GONE)) == len(GONE)
        assert_holds(store, *without(GONE))
        assert_holds(EmbeddingStore.open(tmp_path / "store"), *without(GONE))
        assert EmbeddingStore.open(tmp_path / "store").verify().ok
        store.compact()
        assert_holds(store, *without(GONE))
    again = EmbeddingStore.open(tmp_path / "store")
    assert_holds(again, *without(GONE))
    assert again.verify().ok
    number = "<f2" if layout.get("dtype") else "<f4"
    _, vectors = rows(0, STOP)
    for row in range(STOP):
        files = bytes_of(tmp_path / "store").values()
        assert any(vectors[row].astype(number).tobytes() in content for content in files) == (row not in GONE)
        # the table's pages are compressed, so its text is searched as polars reads it
        listed = {name for file in (tmp_path / "store").rglob("*.parquet") for name in pl.read_parquet(file)["item_id"]}
        assert (f"person-{row:04d}" in listed) == (row not in GONE)


def test_a_compacted_store_is_the_store_that_never_had_them(tmp_path):
    with filled(tmp_path / "store", chunk_rows=8) as store:
        store.forget(names(GONE))
        store.compact()
    with EmbeddingStore.create(tmp_path / "other", SPACE, chunk_rows=8) as other:
        other.append(*without(GONE))
        other.commit()
    one, two = ({file.name: content for file, content in bytes_of(tmp_path / n / d).items()} for n, d in
                (("store", "items-1"), ("other", "items")))  # fmt: skip
    assert one == two
    assert EmbeddingStore.open(tmp_path / "store").digest() == EmbeddingStore.open(tmp_path / "other").digest()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("gone", [[59], list(range(48, 60)), [50], [24, 59], [23], [25, 30]])
def test_files_before_the_first_forgotten_row_are_kept(tmp_path, monkeypatch, layout, links, gone):
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    with filled(tmp_path / "store", **layout) as store:
        store.forget(names(gone))
        store.compact()
        assert_holds(store, *without(gone))
    again = EmbeddingStore.open(tmp_path / "store")
    assert again.verify().ok
    assert_holds(again, *without(gone))
    with EmbeddingStore.create(tmp_path / "other", SPACE, **layout) as other:
        other.append(*without(gone))
        other.commit()
    assert again.digest() == EmbeddingStore.open(tmp_path / "other").digest()
    _, vectors = rows(0, STOP)
    number = "<f2" if layout.get("dtype") else "<f4"
    content = b"".join(bytes_of(tmp_path / "store").values())
    assert not any(vectors[row].astype(number).tobytes() in content for row in gone)
    with again:
        again.append(*rows(60, 70))
        again.commit()
        assert again.verify().ok


def test_rows_go_on_being_added_and_forgotten(tmp_path):
    with filled(tmp_path / "store", 20, chunk_rows=8) as store:
        store.forget(names([3, 19]))
        store.append(*rows(20, 30))
        with pytest.raises(ValueError, match="not committed; commit or close it, then forget"):
            store.forget(names([4]))
        with pytest.raises(ValueError, match="not committed; commit or close it, then compact"):
            store.compact()
        store.commit()
        store.forget(names([4, 25]))
        assert_holds(store, *without([3, 4, 19, 25], 30))
        store.compact()
        store.append(*rows(30, 40))
        store.append(rows(3, 4)[0], rows(3, 4)[1])  # whoever was forgotten may come again
        store.commit()
        items, vectors = without([3, 4, 19, 25], 40)
        assert_holds(store, *(pl.concat([items, rows(3, 4)[0]]), np.concatenate([vectors, rows(3, 4)[1]])))
        store.compact()  # nothing to do
        assert not (tmp_path / "store" / "vectors").exists()
        assert (tmp_path / "store" / "vectors-1").exists()
        assert store.verify().ok


def test_everything_can_be_forgotten(tmp_path):
    with filled(tmp_path / "store", 20, chunk_rows=8) as store:
        assert store.forget(names(range(20))) == 20
        assert_holds(store, *without(range(20), 20))
        store.compact()
        assert (len(store), len(store.items), list(store.batches(4))) == (0, 0, [])
        store.append(*rows(0, 9))
        store.commit()
        assert_holds(store, *rows(0, 9))


def test_unknown_ids_are_refused_or_passed_over(tmp_path):
    with filled(tmp_path / "store", 20, chunk_rows=8) as store:
        with pytest.raises(ValueError, match=r"2 of 3 items are not in .*; check the ids"):
            store.forget(["person-0001", "person-1000", "x"])
        assert len(store) == 20
        assert store.forget(["person-0001", "person-1000"], missing_ok=True) == 1
        assert store.forget(["person-0001"], missing_ok=True) == 0
        assert store.forget([]) == 0
        assert_holds(store, *without([1], 20))


def test_integer_ids(tmp_path):
    with EmbeddingStore.create(tmp_path / "store", SPACE) as store:
        store.append(pl.DataFrame({"item_id": [5, -(2**63), 2**63 - 1]}), np.ones((3, 6)))
        store.commit()
        assert store.forget([2**63 - 1, -(2**63)]) == 2
        assert store.items["item_id"].to_list() == [5]


def test_readers_of_before(tmp_path):
    with filled(tmp_path / "store", chunk_rows=8) as store:
        before = EmbeddingStore.open(tmp_path / "store")
        before.rows(0, 8)
        store.forget(names(GONE))
        np.testing.assert_array_equal(before.rows(0, STOP), rows(0, STOP)[1])  # what was committed when it was opened
        half_read = EmbeddingStore.open(tmp_path / "store")
        store.compact()
        for stale in (half_read, EmbeddingStore(tmp_path / "store", half_read._commit)):
            for read in (
                lambda s=stale: s.rows(40, 50),
                lambda s=stale: s.take(np.array([50])),
                lambda s=stale: s.items,
            ):
                with pytest.raises(StaleStore, match="compacted after it was opened; open it again"):
                    read()
        with EmbeddingStore.open(tmp_path / "store") as other, pytest.raises(StoreLocked):
            other.forget(names([1]))


def test_inspection_counts_the_forgotten_and_names_no_one(tmp_path):
    with filled(tmp_path / "store", chunk_rows=8) as store:
        store.forget(names(GONE))
    found = inspect_store(tmp_path / "store")
    assert found.sound
    assert found.norms
    assert found.rows == found.norms.rows == STOP - len(GONE)
    assert found.layout.rows_forgotten == len(GONE)
    assert found.labels is None
    assert any("until the store is compacted" in note for note in found.notes)


def test_row_numbers_between_forgotten_ones():
    chance = np.random.default_rng(0)
    for _ in range(50):
        gone = np.flatnonzero(chance.random(40) < chance.random())
        ranges = ForgottenRows(()).with_rows(gone.tolist())
        assert [row for start, stop in ranges for row in range(start, stop)] == gone.tolist()
        assert all(after[0] > before[1] for before, after in pairwise(ranges))
        forgotten = ForgottenRows(ranges)
        there = np.setdiff1d(np.arange(40), gone)
        np.testing.assert_array_equal(forgotten.on_disk(np.arange(len(there))), there)
        np.testing.assert_array_equal(forgotten.within(10, 20) + 10, gone[(gone >= 10) & (gone < 20)])
