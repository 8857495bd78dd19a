"""Embedding stores: what goes in comes out, what is not committed stays out, and any Zarr reader can read it."""

import shutil
import tempfile

import numpy as np
import polars as pl
import pytest
import zarr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stores import known_ids
from stores.durable import StoreLocked
from stores.known_ids import KnownIds
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

SPACE = EmbeddingSpace("resnet", None, 6, False)


def rows(start, stop, *, ids=str):
    """An item table and vectors that depend on the row numbers alone."""
    vectors = np.stack([np.random.default_rng(i).normal(size=6) for i in range(start, stop)] or [np.empty(6)])
    numbers = range(start, stop)
    items = pl.DataFrame(
        {"item_id": [ids(i) for i in numbers], "label": [f"person {i % 7}" for i in numbers], "weight": numbers},
        schema_overrides={"weight": pl.Int64},
    )
    return items, vectors[: stop - start].astype(np.float32)


def filled(path, stop, *, step=None, chunk_rows=16, ids=str):
    with EmbeddingStore.create(path, SPACE, chunk_rows=chunk_rows) as store:
        step = step or max(stop, 1)
        for start in range(0, stop, step):
            store.append(*rows(start, min(start + step, stop), ids=ids))
            store.commit()
    return EmbeddingStore.open(path)


def assert_holds(store, stop, *, ids=str):
    items, vectors = rows(0, stop, ids=ids)
    assert len(store) == stop
    if stop:
        assert store.items.equals(items)
    np.testing.assert_array_equal(store.rows(0, stop), vectors)


@pytest.mark.parametrize("stop", [0, 1, 15, 16, 17, 50])
@pytest.mark.parametrize("ids", [str, int])
def test_round_trip(tmp_path, stop, ids):
    store = filled(tmp_path / "store", stop, ids=ids)
    assert_holds(store, stop, ids=ids)
    assert store.space == SPACE
    assert store.verify().ok


def test_batches_in_row_order_and_shuffled(tmp_path):
    store = filled(tmp_path / "store", 50)
    items, vectors = rows(0, 50)
    plain = list(store.batches(12))
    assert [len(batch.vectors) for batch in plain] == [12, 12, 12, 12, 2]
    assert pl.concat([batch.items for batch in plain]).equals(items)
    np.testing.assert_array_equal(np.concatenate([batch.vectors for batch in plain]), vectors)
    for batch in store.batches(12, shuffle=True, seed=4):
        chosen = batch.items["weight"].to_numpy()
        np.testing.assert_array_equal(batch.vectors, vectors[chosen])
    seen = [list(batch.items["weight"]) for batch in store.batches(12, shuffle=True, seed=4)]
    assert sorted(row for batch in seen for row in batch) == list(range(50))
    assert seen == [list(batch.items["weight"]) for batch in store.batches(12, shuffle=True, seed=4)]
    assert seen != [list(batch.items["weight"]) for batch in store.batches(12, shuffle=True, seed=5)]


def test_rows_and_take_refuse_what_is_not_there(tmp_path):
    store = filled(tmp_path / "store", 20)
    np.testing.assert_array_equal(store.take(np.array([19, 0, 19])), rows(0, 20)[1][[19, 0, 19]])
    assert store.take(np.array([], int)).shape == (0, 6)
    for wrong in ([20], [-1]):
        with pytest.raises(IndexError, match="20 rows"):
            store.take(np.array(wrong))
    with pytest.raises(IndexError, match="0:21"):
        store.rows(0, 21)


def test_zarr_and_plain_bytes_read_the_vectors(tmp_path):
    filled(tmp_path / "store", 40)
    _, vectors = rows(0, 40)
    array = zarr.open_array(tmp_path / "store" / "vectors", mode="r")
    assert array.shape == (40, 6)
    np.testing.assert_array_equal(np.asarray(array[:]), vectors)
    chunk = (tmp_path / "store" / "vectors" / "c" / "1" / "0").read_bytes()
    np.testing.assert_array_equal(np.frombuffer(chunk[:-4], "<f4").reshape(16, 6), vectors[16:32])


def test_what_is_not_committed_is_invisible(tmp_path):
    with filled(tmp_path / "store", 20) as store:
        store.append(*rows(20, 40))
        assert_holds(store, 20)
        assert_holds(EmbeddingStore.open(tmp_path / "store"), 20)
    with EmbeddingStore.open(tmp_path / "store") as again:
        again.append(*rows(20, 25))
        again.commit()
        assert_holds(again, 25)
    assert zarr.open_array(tmp_path / "store" / "vectors", mode="r").shape == (25, 6)


@pytest.mark.parametrize("step", [1, 5, 16, 23])
def test_many_appends_write_the_bytes_of_one(tmp_path, step):
    filled(tmp_path / "once", 50)
    for start in range(0, 50, step):
        if not start:
            EmbeddingStore.create(tmp_path / "often", SPACE, chunk_rows=16).close()
        with EmbeddingStore.open(tmp_path / "often") as store:
            store.append(*rows(start, min(start + step, 50)))
            store.commit()
    assert contents(tmp_path / "often") == contents(tmp_path / "once")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_reading_while_another_writes_keeps_the_rows_of_the_opening(tmp_path):
    reader = filled(tmp_path / "store", 20)
    with EmbeddingStore.open(tmp_path / "store") as writer:
        for start in (20, 24):
            writer.append(*rows(start, start + 4))
            writer.commit()
    assert_holds(reader, 20)


def test_a_writer_continues_what_another_wrote_after_it_opened(tmp_path):
    first = filled(tmp_path / "store", 20)
    first.rows(0, 20)  # the last, half-full chunk is now mapped
    with EmbeddingStore.open(tmp_path / "store") as second:
        second.append(*rows(20, 25))
        second.commit()
    with first:
        first.append(*rows(25, 40))
        first.commit()
    assert_holds(EmbeddingStore.open(tmp_path / "store"), 40)


def test_provenance_is_kept_and_replaced(tmp_path):
    with EmbeddingStore.create(tmp_path / "store", SPACE, provenance={"images": 3}) as store:
        store.append(*rows(0, 2))
        store.commit()
        assert store.provenance == {"images": 3}
        store.commit({"images": 4})
    assert EmbeddingStore.open(tmp_path / "store").provenance == {"images": 4}


BAD_APPENDS = {
    "a dimension too many": (lambda items, v: (items, np.hstack([v, v[:, :1]])), r"\[4, 7\], expected \[n, 6\]"),
    "one vector": (lambda items, v: (items[:1], v[0]), r"shape \[6\]"),
    "fewer items": (lambda items, v: (items[:3], v), "3 items and 4 vectors"),
    "NaN": (lambda items, v: (items, np.where(np.arange(24).reshape(4, 6) == 9, np.nan, v)), "NaN or infinity.*'11'"),
    "infinity": (lambda items, v: (items, v.astype(np.float64) * 1e300), "NaN or infinity"),
    "no item_id": (lambda items, v: (items.drop("item_id"), v), "no column item_id"),
    "another column": (lambda items, v: (items.drop("label"), v), "the store has"),
    "ids of another type": (lambda items, v: (items.with_columns(item_id=pl.int_range(4)), v), "the store has"),
    "ids of floats": (lambda items, v: (items.with_columns(item_id=pl.lit(0.5)), v), "Float64"),
    "absent ids": (lambda items, v: (items.with_columns(item_id=pl.lit(None, pl.String)), v), "4 items have no"),
    "ids twice": (lambda items, v: (items.with_columns(item_id=pl.lit("x")), v), "unique"),
    "ids of the store": (lambda items, v: (items.with_columns(item_id=pl.Series(list("0123"))), v), "'0' and 3 more"),
}


@pytest.mark.parametrize("case", BAD_APPENDS)
def test_refuses_bad_rows_and_stays_usable(tmp_path, case):
    spoil, message = BAD_APPENDS[case]
    with filled(tmp_path / "store", 10) as store:
        with pytest.raises(ValueError, match=message) as caught:
            store.append(*spoil(*rows(10, 14)))
        assert "\n" not in str(caught.value)
        store.append(*rows(10, 14))
        store.commit()
    assert_holds(EmbeddingStore.open(tmp_path / "store"), 14)


def test_ids_past_63_bits_are_refused(tmp_path):
    with EmbeddingStore.create(tmp_path / "store", SPACE) as store, pytest.raises(ValueError, match="64 bits"):
        store.append(pl.DataFrame({"item_id": pl.Series([2**64 - 1], dtype=pl.UInt64)}), np.ones((1, 6)))


def test_large_finite_values_are_kept(tmp_path):
    with EmbeddingStore.create(tmp_path / "store", SPACE) as store:
        store.append(rows(0, 1)[0], np.full((1, 6), 3e38))
        store.commit()
        assert np.isfinite(store.rows(0, 1)).all()


def test_create_refuses_a_folder_that_holds_anything(tmp_path):
    filled(tmp_path / "store", 3)
    (tmp_path / "photos" / "vectors").mkdir(parents=True)
    (tmp_path / "photos" / "vectors" / "mine.bin").write_bytes(b"dear")
    (tmp_path / "file").write_text("dear")
    for taken in ("store", "photos", "file"):
        before = contents(tmp_path)
        with pytest.raises(FileExistsError, match="already exists"):
            EmbeddingStore.create(tmp_path / taken, SPACE)
        assert contents(tmp_path) == before


def test_create_takes_over_what_a_dead_creator_left(tmp_path):
    EmbeddingStore.create(tmp_path / "store", EmbeddingSpace("other", None, 3, True)).close()
    (tmp_path / "store" / "store.json").unlink()
    assert_holds(filled(tmp_path / "store", 20), 20)


def test_a_missing_store_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        EmbeddingStore.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file store\.json"):
        EmbeddingStore.open(tmp_path)


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "store"
    other = filled(path, 5)
    with EmbeddingStore.open(path) as store:
        store.append(*rows(5, 6))
        with pytest.raises(StoreLocked, match="another process"):
            other.append(*rows(5, 6))
        store.commit()
    with other:
        other.append(*rows(6, 7))
        other.commit()
    assert_holds(EmbeddingStore.open(path), 7)


class StoreMachine(RuleBasedStateMachine):
    """A store beside a plain dict, through commits, reopenings, crashes, forgetting and compaction."""

    @initialize(shard_chunks=st.integers(1, 3))
    def begin(self, shard_chunks):
        self.folder = tempfile.mkdtemp()
        self.store = EmbeddingStore.create(f"{self.folder}/store", SPACE, chunk_rows=8, shard_chunks=shard_chunks)
        self.committed: dict[str, np.ndarray] = {}
        self.pending: dict[str, np.ndarray] = {}
        self.next = 0

    @rule(count=st.integers(0, 20))
    def append(self, count):
        items, vectors = rows(self.next, self.next + count)
        self.next += count
        self.store.append(items, vectors)
        self.pending |= dict(zip(items["item_id"], vectors, strict=True))

    @rule()
    def commit(self):
        self.store.commit()
        self.committed |= self.pending
        self.pending = {}

    @rule()
    def crash(self):
        self.store.close()
        self.store = EmbeddingStore.open(f"{self.folder}/store")
        self.pending = {}

    @rule()
    def reopen_without_closing(self):
        self.store.commit()
        self.committed |= self.pending
        self.pending = {}
        self.store._lock.release()  # as the kernel does for a process that was killed
        self.store = EmbeddingStore.open(f"{self.folder}/store")

    @precondition(lambda self: self.committed)
    @rule()
    def append_again(self):
        with pytest.raises(ValueError, match="unique"):
            self.store.append(*rows(int(next(iter(self.committed))), int(next(iter(self.committed))) + 1))

    @precondition(lambda self: self.committed and not self.pending)
    @rule(data=st.data())
    def forget(self, data):
        gone = data.draw(st.lists(st.sampled_from(sorted(self.committed)), unique=True, max_size=12))
        assert self.store.forget(gone) == len(gone)
        for item_id in gone:
            del self.committed[item_id]

    @precondition(lambda self: not self.pending)
    @rule()
    def compact(self):
        self.store.compact()

    @invariant()
    def holds_what_was_committed(self):
        for store in (self.store, EmbeddingStore.open(f"{self.folder}/store")):
            assert list(store.items["item_id"]) == list(self.committed)
            expected = np.array(list(self.committed.values()), np.float32).reshape(-1, 6)
            np.testing.assert_array_equal(store.rows(0, len(store)), expected)

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_item_files_do_not_depend_on_when_commits_happened(tmp_path, monkeypatch):
    monkeypatch.setattr("stores.item_parts.PART_ROWS", 20)
    monkeypatch.setattr("stores.writer.PART_ROWS", 20)
    names = []
    for number, step in enumerate((50, 7, 20)):
        path = tmp_path / f"store{number}"
        assert_holds(filled(path, 50, step=step), 50)
        names.append({part.name: part.read_bytes() for part in (path / "items").iterdir()})
    assert sorted(names[0]) == [f"{a:012d}-{b:012d}.parquet" for a, b in ((0, 20), (20, 40), (40, 50))]
    assert names[0] == names[1] == names[2]


def test_ids_are_known_however_they_came_in(tmp_path):
    known = KnownIds(pl.Series(["a", "b"]))
    for start in range(0, 400, 10):
        known.add(pl.Series([f"i{number}" for number in range(start, start + 10)]))
    asked = pl.Series(["b", "c", "i0", "i399", "i400"])
    assert known.among(asked).to_list() == ["b", "i0", "i399"]
    assert KnownIds(pl.Series([], dtype=pl.String)).among(asked).to_list() == []


def test_ids_beyond_memory_are_known_too(monkeypatch):
    monkeypatch.setattr(known_ids, "_IN_MEMORY", 16)
    monkeypatch.setattr(known_ids, "_BLOCK", 8)
    generator = np.random.default_rng(0)
    ids = pl.Series(generator.permutation(5000)[:3000])
    known, told = KnownIds(ids[:700]), set(ids[:700])
    start = 700
    while start < len(ids):
        stop = start + int(generator.integers(1, 40))
        known.add(ids[start:stop])
        told.update(ids[start:stop])
        start = stop
        asked = pl.Series(generator.integers(0, 5000, 50))
        assert known.among(asked).to_list() == [each for each in asked if each in told]


def test_ids_that_share_one_hash_are_told_apart_by_the_other(monkeypatch):
    by_seed = pl.Series.hash
    same = pl.Series([7, 7, 7], dtype=pl.UInt64)
    monkeypatch.setattr(pl.Series, "hash", lambda ids, seed=0: by_seed(ids, seed) if seed else same[: len(ids)])
    known = KnownIds(pl.Series(["a", "b"]))
    assert known.among(pl.Series(["c", "b", "d"])).to_list() == ["b"]


def test_the_digest_is_of_what_is_committed(tmp_path):
    store = filled(tmp_path / "store", 40)
    before = store.digest()
    assert filled(tmp_path / "again", 40, step=7).digest() == before
    with store:
        store.append(*rows(40, 45))
        assert store.digest() == before
        store.commit()
        assert store.digest() != before
    items, vectors = rows(0, 40)
    with EmbeddingStore.create(tmp_path / "other", SPACE, chunk_rows=16) as other:
        other.append(items, np.where(np.arange(40)[:, None] == 3, vectors + 1, vectors))
        other.commit()
        assert other.digest() != before


def test_attributes_that_somebody_adds_change_nothing(tmp_path):
    filled(tmp_path / "store", 20).close()
    zarr.open_array(str(tmp_path / "store" / "vectors")).attrs["note"] = "looked at"
    assert_holds(EmbeddingStore.open(tmp_path / "store"), 20)


def test_tensorstore_reads_the_vectors(tmp_path):
    import tensorstore

    store = filled(tmp_path / "store", 50)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "store" / "vectors")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), store.rows(0, 50))
