"""One contract that every gallery engine keeps, and what is particular to each."""

import csv
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores.chunks import DamagedStore
from stores.durable import StoreLocked
from stores.galleries import ENDINGS, GALLERIES, locate, open_source, open_target
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

SPACE = EmbeddingSpace("resnet", "f00d", 5, False)
ORIGIN = {"map": "a1b2", "config": {"rate": 0.5}}


def rows(start, stop, *, ids=str, dim=5):
    """Rows of lengths from 0 to 40, whose values depend on the row number alone."""
    vectors = np.array([np.random.default_rng(i).normal(size=dim) * (i % 40) for i in range(start, stop)])
    items = pl.DataFrame({"item_id": [ids(i) for i in range(start, stop)]}, schema={"item_id": DTYPES[ids]})
    labels = pl.Series("label", [f"person {i % 3}" for i in range(start, stop)], dtype=pl.String)
    return Batch(items.with_columns(labels), vectors.reshape(-1, dim).astype(np.float32))


DTYPES = {str: pl.String, int: pl.Int64}


def written(uri, stop, *, ids: Any = str, step=7, space=SPACE, provenance=ORIGIN):
    target = open_target(uri, space, provenance)
    for start in range(target.rows_committed, stop, step):
        target.write(rows(start, min(start + step, stop), ids=ids, dim=space.dim))
        target.commit()
    target.finish()
    target.close()
    return open_source(uri)


def read(source, size=8, start=0):
    batches = list(source.scan(size, start=start))
    if not batches:
        return Batch(pl.DataFrame({"item_id": []}), np.empty((0, source.dim), np.float32))
    return Batch(pl.concat([b.items for b in batches]), np.concatenate([b.vectors for b in batches]))


def assert_same(found, expected):
    assert found.items.equals(expected.items)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-6, atol=0)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Contract:
    name: str
    scheme: str | None = None  # where the name's ending does not tell

    @pytest.fixture
    def uri(self, tmp_path):
        return f"{self.scheme + ':' if self.scheme else ''}{tmp_path / 'there' / self.name}"

    @pytest.mark.parametrize("ids", [str, int])
    @pytest.mark.parametrize("stop", [1, 50])
    def test_round_trip(self, uri, ids, stop):
        source = written(uri, stop, ids=ids)
        assert (len(source), source.dim, source.space, source.provenance) == (stop, 5, SPACE, ORIGIN)
        assert_same(read(source), rows(0, stop, ids=ids))

    def test_scan_gives_batches_of_the_size_from_any_start(self, uri):
        source = written(uri, 50)
        for size in (1, 7, 50, 99):
            for start in (0, 3, 49, 50):
                sizes = [len(batch.vectors) for batch in source.scan(size, start=start)]
                assert sizes == [size] * ((50 - start) // size) + [(50 - start) % size] * ((50 - start) % size > 0)
                if start < 50:
                    assert_same(read(source, size, start), rows(start, 50))
        assert_same(read(source), rows(0, 50))  # a source can be read again

    @pytest.mark.parametrize(("size", "start"), [(0, 0), (4, 51), (4, -1)])
    def test_scan_refuses_what_is_not_there(self, uri, size, start):
        source = written(uri, 50)
        with pytest.raises(ValueError, match=r"size=0|start at row"):
            list(source.scan(size, start=start))

    def test_an_empty_gallery(self, uri):
        source = written(uri, 0)
        assert (len(source), source.dim, source.space) == (0, 5, SPACE)
        assert list(source.scan(4)) == []

    @pytest.mark.parametrize("dim", [1, 513])
    def test_other_dimensions(self, uri, dim):
        space = EmbeddingSpace("other", None, dim, False)
        assert_same(read(written(uri, 9, space=space)), rows(0, 9, dim=dim))

    def test_vectors_compared_by_inner_product_are_kept_number_for_number(self, uri):
        space = EmbeddingSpace("resnet+hubness", "f00d", 5, False, "inner_product")
        source = written(uri, 50, space=space)
        assert source.space == space
        found, expected = read(source), rows(0, 50)
        np.testing.assert_array_equal(found.vectors, expected.vectors)
        assert found.items.equals(expected.items)
        with pytest.raises(FileExistsError, match="by inner product"):  # the same model, compared otherwise
            open_target(uri, EmbeddingSpace("resnet", "f00d", 5, False), ORIGIN)

    def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(self, uri, tmp_path):
        for commits in (0, 1, 3):
            target = open_target(uri, SPACE, ORIGIN)
            assert not target.finished
            for start in range(target.rows_committed, target.rows_committed + commits * 7, 7):
                target.write(rows(start, start + 7))
                target.commit()
            target.write(rows(target.rows_committed, target.rows_committed + 3))
            target.close()
            with pytest.raises((ValueError, FileNotFoundError), match="unfinished"):
                open_source(uri)
        again = open_target(uri, SPACE, ORIGIN)
        assert again.rows_committed == 28
        again.close()
        written(uri, 50)
        there = contents(tmp_path / "there")
        shutil.rmtree(tmp_path / "there")
        written(uri, 50)
        assert contents(tmp_path / "there") == there
        assert not [name for name in there if ".partial" in name or name.endswith(".tmp")]

    def test_a_finished_gallery_says_so_and_takes_no_more(self, uri):
        written(uri, 20)
        target = open_target(uri, SPACE, ORIGIN)
        assert target.finished
        assert target.rows_committed == 20
        with pytest.raises(FileExistsError, match="finished"):
            target.write(rows(20, 21))
        target.finish()
        target.close()
        assert_same(read(open_source(uri)), rows(0, 20))

    @pytest.mark.parametrize("finished", [True, False])
    def test_refuses_what_belongs_to_other_work(self, uri, finished):
        if finished:
            written(uri, 20)
        else:
            target = open_target(uri, SPACE, ORIGIN)
            target.write(rows(0, 20))
            target.commit()
            target.close()
        for space, provenance, message in [
            (EmbeddingSpace("vit", None, 5, False), ORIGIN, "vectors of resnet.*expected vit"),
            (SPACE, ORIGIN | {"map": "c3d4"}, r"another origin \(map differ\)"),
            (SPACE, {}, "another origin"),
        ]:
            with pytest.raises(FileExistsError, match=message) as caught:
                open_target(uri, space, provenance)
            assert "\n" not in str(caught.value)
        assert_same(read(written(uri, 20)), rows(0, 20))

    def test_refuses_what_is_nobodys(self, uri, tmp_path):
        path = tmp_path / "there" / self.name
        path.parent.mkdir()
        if locate(uri)[0] == "zarr":
            EmbeddingStore.create(path, SPACE, provenance=ORIGIN).close()
        else:
            path.write_bytes(b"dear")
        before = contents(tmp_path)
        with pytest.raises(FileExistsError, match="already exists"):
            open_target(uri, SPACE, ORIGIN)
        assert contents(tmp_path) == before

    def test_one_writer_at_a_time(self, uri):
        target = open_target(uri, SPACE, ORIGIN)
        with pytest.raises(StoreLocked, match="another process"):
            open_target(uri, SPACE, ORIGIN)
        target.close()

    @pytest.mark.parametrize("spoil", ["dim", "nan", "twice", "columns"])
    def test_refuses_rows_that_do_not_fit(self, uri, spoil):
        target = open_target(uri, SPACE, ORIGIN)
        target.write(rows(0, 4))
        items, vectors = rows(4, 8)
        bad = {
            "dim": Batch(items, vectors[:, :4]),
            "nan": Batch(items, vectors * np.nan),
            "twice": rows(2, 6),
            "columns": Batch(items.drop("label"), vectors),
        }
        with pytest.raises(ValueError, match=r"shape|NaN|unique|columns"):
            target.write(bad[spoil])
        target.close()

    def test_damage_is_reported(self, uri, tmp_path):
        written(uri, 20)
        there = tmp_path / "there"
        for name, content in contents(there).items():
            if name.endswith(".lock"):
                continue
            file, middle = there / name, len(content) // 2
            for spoilt in (content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], content[:-3], b""):
                file.write_bytes(spoilt)
                with pytest.raises(DamagedStore) as caught:
                    read(open_source(uri))
                assert name in str(caught.value)
                assert "\n" not in str(caught.value)
            file.unlink()
            if not name.endswith(f"{self.name}.json"):  # without its card a file is as somebody else's
                with pytest.raises((DamagedStore, FileNotFoundError), match=r"missing|no embedding store"):
                    read(open_source(uri))
            file.write_bytes(content)

    def test_a_gallery_that_is_not_there(self, uri):
        with pytest.raises(FileNotFoundError, match=r"no gallery at|no embedding store at"):
            open_source(uri)

    def test_space_items_and_labels_can_be_given(self, uri):
        source = written(uri, 10)
        items = pl.DataFrame({"item_id": range(10), "camera": ["left", "right"] * 5})
        labels = pl.Series(range(100, 110))
        found = read(open_source(uri, space=SPACE, items=items, labels=labels), size=3, start=2)
        assert found.items.equals(items.with_columns(label=labels)[2:])
        np.testing.assert_array_equal(found.vectors, read(source).vectors[2:])
        with pytest.raises(ValueError, match="item table has 9 rows, expected 10"):
            open_source(uri, items=items[1:])
        with pytest.raises(ValueError, match=r"vectors of resnet.*expected vit"):
            open_source(uri, space=EmbeddingSpace("vit", None, 5, False))


class TestZarr(Contract):
    name = "store"

    def test_the_store_holds_space_and_provenance(self, uri):
        written(uri, 9)
        store = EmbeddingStore.open(uri)
        assert store.space == SPACE
        assert store.provenance == ORIGIN | {"complete": True}


class TestNpy(Contract):
    name = "gallery.npy"

    def test_numpy_and_polars_read_it(self, uri):
        written(uri, 9)
        array = np.load(uri)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, rows(0, 9).vectors)
        assert pl.read_parquet(f"{uri}.items.parquet").equals(rows(0, 9).items)

    @pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_foreign_arrays_are_numbered(self, tmp_path, dtype, order):
        array = np.random.default_rng(0).normal(size=(20, 3)).astype(dtype, order=order)
        np.save(tmp_path / "old.npy", array)
        source = open_source(f"npy:{tmp_path / 'old.npy'}")
        assert (source.space, source.dim, source.provenance) == (None, 3, {})
        found = read(source, 6)
        assert list(found.items["item_id"]) == list(range(20))
        np.testing.assert_array_equal(found.vectors, array.astype(np.float32))

    def test_refuses_what_is_no_matrix_of_floats(self, tmp_path):
        path = tmp_path / "old.npy"

        def complaint(content):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=str(path)) as caught:
                open_source(str(path))
            assert "\n" not in str(caught.value)
            return str(caught.value)

        def saved(array):
            np.save(path, array)
            return path.read_bytes()

        assert "float32 [3]" in complaint(saved(np.zeros(3, np.float32)))
        assert "int64 [3, 2]" in complaint(saved(np.zeros((3, 2), np.int64)))
        assert "no array that can be mapped" in complaint(saved(np.array([[{}]])))
        assert "no .npy file" in complaint(pickle.dumps([1, 2]))
        assert "no array that can be mapped" in complaint(saved(np.zeros((3, 2)))[:-1])
        assert "no .npy file" in complaint(b"")
        huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1" * 200_000 + b", 2)}"
        assert "header too large" in complaint(b"\x93NUMPY\x02\x00" + len(huge).to_bytes(4, "little") + huge)
        assert "header too large" in complaint(b"\x93NUMPY\x03\x00\xff\xff\xff\xff{")
        np.savez(tmp_path / "two.npz", a=np.zeros(3))
        assert "archive" in complaint((tmp_path / "two.npz").read_bytes())


class TestParquet(Contract):
    name = "gallery.parquet"

    def test_polars_reads_it(self, uri):
        written(uri, 9)
        table = pl.read_parquet(uri)
        assert table.schema["vector"] == pl.Array(pl.Float32, 5)
        assert table.drop("vector").equals(rows(0, 9).items)
        np.testing.assert_array_equal(table["vector"].to_numpy(), rows(0, 9).vectors)

    def test_several_row_groups(self, uri, monkeypatch):
        monkeypatch.setattr("stores.galleries.parquet._BLOCK_BYTES", 20 * 16)
        source = written(uri, 50)
        for size in (3, 16, 40):
            assert_same(read(source, size, start=5), rows(5, 50))

    @pytest.mark.parametrize("inner", [pl.Float32, pl.Float64])
    def test_lists_of_equal_length_will_do(self, tmp_path, inner):
        vectors = [[1.0, 2], [3, 4], [5, 6]]
        pl.DataFrame({"vector": vectors, "n": [7, 8, 9]}, schema_overrides={"vector": pl.List(inner)}).write_parquet(
            tmp_path / "old.parquet"
        )
        source = open_source(str(tmp_path / "old.parquet"))
        assert (source.space, source.dim) == (None, 2)
        found = read(source, 2)
        assert found.items.to_dict(as_series=False) == {"item_id": [0, 1, 2], "n": [7, 8, 9]}
        np.testing.assert_array_equal(found.vectors, vectors)

    @pytest.mark.parametrize(
        ("vectors", "message"),
        [
            ([[1.0, 2], [3], [5, 6]], "row 1 .* no vector of 2 floats"),
            ([[1.0, 2], None, [5, 6]], "row 1 "),
            ([[], [1.0]], "dimension"),
            ([None, [1.0]], "dimension"),
            (pl.Series([], dtype=pl.List(pl.Float32)), "dimension"),
            (pl.Series([[], []], dtype=pl.Array(pl.Float32, 0)), "vectors of 0 floats, expected 1 or more"),
            (pl.Series([None, [1.0]], dtype=pl.Array(pl.Float32, 1)), "row 0 .* no vector of 1 floats"),
            (["a", "b"], "vector of String"),
            ([["a"], ["b"]], "List"),
            (None, "columns other"),
        ],
    )
    def test_refuses_other_columns(self, tmp_path, vectors, message):
        table = pl.DataFrame({"other": [1]} if vectors is None else {"vector": vectors})
        table.write_parquet(tmp_path / "old.parquet")
        with pytest.raises(ValueError, match=message) as caught:
            read(open_source(str(tmp_path / "old.parquet")))
        assert "\n" not in str(caught.value)

    def test_refuses_what_is_no_table(self, tmp_path):
        (tmp_path / "old.parquet").write_bytes(b"dear" * 100)
        with pytest.raises(DamagedStore, match="cannot be read") as caught:
            open_source(str(tmp_path / "old.parquet"))
        assert "\n" not in str(caught.value)

    def test_the_name_of_the_vectors_is_reserved(self, uri):
        target = open_target(uri, SPACE, ORIGIN)
        items, vectors = rows(0, 3)
        with pytest.raises(ValueError, match="'vector' is reserved"):
            target.write(Batch(items.rename({"label": "vector"}), vectors))
        target.close()

    def test_flipped_bits_of_a_file_without_its_card_are_told_by_the_checksums_of_its_pages(self, uri):
        path, draw = Path(uri), np.random.default_rng(0)
        expected = read(written(uri, 200))
        Path(f"{uri}.json").unlink()
        whole, told = path.read_bytes(), []
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        for place in draw.integers(0, 8 * len(whole), 200):
            spoilt = bytearray(whole)
            spoilt[place // 8] ^= 1 << place % 8
            path.write_bytes(spoilt)
            try:
                found = read(open_source(uri))
            except ValueError as error:
                told.append((place // 8 < footer and not isinstance(error, DamagedStore), str(error)))
                continue
            np.testing.assert_array_equal(found.vectors.view(np.uint32), expected.vectors.view(np.uint32))
            assert found.items.rows() == expected.items.rows()
        assert len(told) > 100
        assert not any(otherwise for otherwise, _ in told)  # in pages it is damage, and nothing else
        assert all(str(path) in line and "\n" not in line for _, line in told)
        assert any("CRC checksum" in line for _, line in told)

    def test_page_checksums_of_others_are_compared(self, tmp_path):
        path = tmp_path / "old.parquet"
        vectors = rows(0, 50).vectors
        pq.write_table(pa.table({"vector": list(vectors)}), path, write_page_checksum=True, compression="none",
                       use_dictionary=False)  # fmt: skip
        np.testing.assert_array_equal(read(open_source(str(path))).vectors, vectors)
        content = path.read_bytes()
        place = content.index(vectors[30].tobytes())
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedStore, match="CRC checksum verification failed"):
            read(open_source(str(path)))

    def test_pyarrow_reads_it_and_every_kind_of_column_is_kept(self, uri):
        items = pl.DataFrame(
            {
                "item_id": ["a", "b"],
                "small": pl.Series([1, 2], dtype=pl.UInt8),
                "large": pl.Series([1, 2**64 - 1], dtype=pl.UInt64),
                "kind": pl.Series(["x", "y"], dtype=pl.Categorical),
                "choice": pl.Series(["x", None], dtype=pl.Enum(["y", "x", "z"])),
                "tags": [["a"], []],
                "place": [{"x": 1, "y": "n"}, {"x": 2, "y": None}],
                "raw": [b"a", None],
                "time": pl.Series([0, 1], dtype=pl.Datetime("ms", "UTC")),
                "lasted": pl.Series([0, 1], dtype=pl.Duration("us")),
                "half": pl.Series([0.5, None], dtype=pl.Float16),
                "none": [None, None],
            }
        )
        target = open_target(uri, SPACE, ORIGIN)
        target.write(Batch(items, rows(0, 2).vectors))
        target.finish()
        target.close()
        for found in (read(open_source(uri)).items, pl.read_parquet(uri).drop("vector")):
            assert found.schema == items.schema
            assert found.equals(items)
        table = pq.read_table(uri, page_checksum_verification=True)
        assert table.schema.field("vector").type.list_size == 5
        np.testing.assert_array_equal(table["vector"].combine_chunks().flatten().to_numpy(), rows(0, 2).vectors.ravel())

    def test_more_rows_than_the_file_can_hold_are_refused(self, tmp_path):
        path = tmp_path / "old.parquet"
        zeros = pa.array(np.zeros(30_000_000, np.float32))
        for vectors in (pa.FixedSizeListArray.from_arrays(zeros, 3), pa.array([[0.0] * 1000] * 30_000)):
            pq.write_table(pa.table({"vector": vectors}), path, compression="zstd")
            assert "more than is believable" in refused(str(path), path.read_bytes())


FOREIGN = """
import sys, faiss, numpy as np
folder, x = sys.argv[1], np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
ids = np.arange(40) * 3 + 2**40
flat = {"ip": faiss.IndexFlatIP(8), "l2": faiss.IndexFlatL2(8), "l1": faiss.IndexFlat(8, faiss.METRIC_L1)}
for name, index in flat.items():
    index.add(x)
    faiss.write_index(index, f"{folder}/{name}.faiss")
for name, kind, inner in [("map", faiss.IndexIDMap, faiss.IndexFlatIP), ("map2", faiss.IndexIDMap2, faiss.IndexFlatL2)]:
    index = kind(inner(8))
    index.add_with_ids(x, ids)
    faiss.write_index(index, f"{folder}/{name}.faiss")
for name in ("HNSW8", "IVF2,Flat", "PQ2x4", "SQ8", "IDMap,SQ8"):
    index = faiss.index_factory(8, name)
    index.train(x)
    index.add_with_ids(x, ids) if "IDMap" in name else index.add(x)
    faiss.write_index(index, f"{folder}/{name}.other")
np.save(f"{folder}/x.npy", x)
np.save(f"{folder}/ids.npy", ids)
"""

SEARCH = """
import sys, json, faiss, numpy as np
index, queries = faiss.read_index(sys.argv[1]), np.load(sys.argv[2])
scores, rows = index.search(queries, 3)
print(json.dumps([type(index).__name__, index.ntotal, index.metric_type, scores.tolist(), rows.tolist()]))
"""


def run_python(script, *arguments):
    # In a process of its own: faiss imported before torch makes later forks of this one hang.
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    run_python(FOREIGN, str(folder))
    return folder


class TestFaiss(Contract):
    name = "gallery.faiss"

    def test_faiss_searches_it_by_cosine_with_raw_queries(self, uri, tmp_path):
        written(uri, 50)
        vectors = rows(0, 50).vectors
        np.save(tmp_path / "queries.npy", vectors[5:9])
        kind, total, metric, scores, nearest = json.loads(run_python(SEARCH, uri, str(tmp_path / "queries.npy")))
        assert (kind, total, metric) == ("IndexFlatIP", 50, 0)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        expected = vectors[5:9] @ unit.T
        np.testing.assert_array_equal(nearest, np.argsort(-expected, axis=1)[:, :3])
        np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :3], rtol=1e-5)

    def test_faiss_searches_by_inner_product_what_is_to_be_compared_by_it(self, uri, tmp_path):
        written(uri, 50, space=EmbeddingSpace("resnet+hubness", "f00d", 5, False, "inner_product"))
        vectors = rows(0, 50).vectors
        np.save(tmp_path / "queries.npy", vectors[5:9])
        kind, total, metric, scores, nearest = json.loads(run_python(SEARCH, uri, str(tmp_path / "queries.npy")))
        assert (kind, total, metric) == ("IndexFlatIP", 50, 0)
        expected = vectors[5:9] @ vectors.T
        np.testing.assert_array_equal(nearest, np.argsort(-expected, axis=1)[:, :3])
        np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :3], rtol=1e-5)
        assert "vector_norm" not in pl.read_parquet(f"{uri}.items.parquet").columns

    @pytest.mark.parametrize("name", ["ip", "l2", "l1", "map", "map2"])
    def test_foreign_flat_indexes(self, foreign, name):
        source = open_source(str(foreign / f"{name}.faiss"))
        assert (source.space, source.dim, len(source)) == (None, 8, 40)
        found = read(source)
        np.testing.assert_array_equal(found.vectors, np.load(foreign / "x.npy"))
        ids = np.load(foreign / "ids.npy") if name.startswith("map") else np.arange(40)
        np.testing.assert_array_equal(found.items["item_id"].to_numpy(), ids)

    @pytest.mark.parametrize("name", ["HNSW8", "IVF2,Flat", "PQ2x4", "SQ8", "IDMap,SQ8"])
    def test_other_kinds_are_decoded(self, foreign, name):
        source = open_source(f"faiss:{foreign / name}.other")
        assert (source.space, source.dim, len(source)) == (None, 8, 40)
        assert source.provenance["exact"] == ("Q" not in name)
        found, vectors = read(source), np.load(foreign / "x.npy")
        np.testing.assert_allclose(found.vectors, vectors, atol=3 if "PQ" in name else 0.05 * ("SQ" in name))
        ids = np.load(foreign / "ids.npy") if "IDMap" in name else np.arange(40)
        np.testing.assert_array_equal(found.items["item_id"].to_numpy(), ids)

    @pytest.mark.parametrize("name", ["l1", "map"])
    def test_a_damaged_foreign_index_is_one_line_or_still_an_array(self, foreign, tmp_path, name):
        content = (foreign / f"{name}.faiss").read_bytes()
        path = tmp_path / "damaged.faiss"
        for cut in (*range(0, 100, 7), len(content) - 1):
            path.write_bytes(content[:cut])
            with pytest.raises(ValueError, match=str(path)) as caught:
                open_source(str(path))
            assert "\n" not in str(caught.value)
        refused = 0
        for place in range(90):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
            try:
                assert read(open_source(str(path))).vectors.shape == (40, 8)
            except ValueError:
                refused += 1
        assert refused > 15

    def test_the_name_of_the_lengths_is_reserved(self, uri):
        target = open_target(uri, SPACE, ORIGIN)
        items, vectors = rows(0, 3)
        with pytest.raises(ValueError, match="'vector_norm' is reserved"):
            target.write(Batch(items.rename({"label": "vector_norm"}), vectors))
        target.close()


def refused(uri, content, *, error=ValueError):
    """What is said of a file of these bytes, opened and read to its end."""
    Path(locate(uri)[1]).write_bytes(content)
    with pytest.raises(error) as caught:
        read(open_source(uri))
    assert locate(uri)[1] in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestArrow(Contract):
    name = "gallery.feather"

    def test_polars_reads_it(self, uri):
        written(uri, 9)
        table = pl.read_ipc(uri)
        assert table.schema["vector"] == pl.Array(pl.Float32, 5)
        assert table.drop("vector").equals(rows(0, 9).items)
        np.testing.assert_array_equal(table["vector"].to_numpy(), rows(0, 9).vectors)

    @pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
    @pytest.mark.parametrize("kind", [pl.Array(pl.Float64, 2), pl.List(pl.Float32)])
    def test_foreign_tables_are_numbered(self, tmp_path, compression, kind):
        table = pl.DataFrame({"vector": [[1.0, 2], [3, 4], [5, 6]], "n": [7, 8, 9]}, schema_overrides={"vector": kind})
        table.write_ipc(tmp_path / "old.ipc", compression=compression, record_batch_size=2)
        source = open_source(str(tmp_path / "old.ipc"))
        assert (source.space, source.dim, len(source)) == (None, 2, 3)
        found = read(source, 2)
        assert found.items.to_dict(as_series=False) == {"item_id": [0, 1, 2], "n": [7, 8, 9]}
        np.testing.assert_array_equal(found.vectors, table["vector"].to_list())

    def test_refuses_what_is_no_table_of_vectors(self, tmp_path):
        uri = str(tmp_path / "old.arrow")

        def saved(vectors, **types):
            buffer = io.BytesIO()
            pl.DataFrame({"vector": vectors}, **types).write_ipc(buffer)
            return buffer.getvalue()

        assert "no Arrow IPC file" in refused(uri, b"dear" * 100)
        assert "no Arrow IPC file" in refused(uri, b"")
        assert "row 1 " in refused(uri, saved([[1.0, 2], [3], [5, 6]]))
        assert "vectors of 0 floats" in refused(uri, saved([[], []], schema={"vector": pl.Array(pl.Float32, 0)}))
        assert "Int64" in refused(uri, saved([1, 2]))
        whole = saved([[1.0, 2.0], [3.0, 4.0]])
        for cut in range(8, len(whole) - 1, 37):
            assert "cannot be read" in refused(uri, whole[:cut], error=DamagedStore)

    def test_flipped_bits_of_a_foreign_file_are_one_line_or_still_a_table(self, tmp_path):
        path, draw, told = tmp_path / "old.arrow", np.random.default_rng(0), []
        table = pl.DataFrame({"vector": pl.Series(rows(0, 20).vectors, dtype=pl.Array(pl.Float32, 5))})
        table.write_ipc(path, compression="zstd", record_batch_size=7)
        whole = path.read_bytes()
        for place in draw.integers(0, 8 * len(whole), 300):
            spoilt = bytearray(whole)
            spoilt[place // 8] ^= 1 << place % 8
            path.write_bytes(spoilt)
            try:
                read(open_source(str(path)))
            except ValueError as error:
                told.append(str(error))
        assert len(told) > 20
        assert all(str(path) in line and "\n" not in line for line in told)


class TestNpz(Contract):
    name = "gallery.npz"

    def test_numpy_reads_it(self, uri):
        written(uri, 9, ids=int)
        with np.load(uri, allow_pickle=False) as arrays:
            assert sorted(arrays) == ["item_id", "label", "vectors"]
            assert arrays["vectors"].dtype == np.float32
            np.testing.assert_array_equal(arrays["vectors"], rows(0, 9).vectors)
            np.testing.assert_array_equal(arrays["item_id"], np.arange(9))
            assert arrays["label"].tolist() == rows(0, 9).items["label"].to_list()

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
    def test_foreign_archives(self, tmp_path, save, dtype):
        array = np.random.default_rng(0).normal(size=(20, 3)).astype(dtype)
        save(tmp_path / "old.npz", array, item_id=np.arange(-5, 15, dtype=">i8"), other=np.zeros(3), name=["é"] * 20)
        source = open_source(str(tmp_path / "old.npz"))
        assert (source.space, source.dim, source.provenance) == (None, 3, {})
        found = read(source, 6, 4)
        assert found.items.to_dict(as_series=False) == {"item_id": list(range(-1, 15)), "name": ["é"] * 16}
        np.testing.assert_array_equal(found.vectors, array[4:].astype(np.float32))

    def test_refuses_what_is_hostile(self, tmp_path):
        uri = str(tmp_path / "old.npz")

        def saved(**arrays):
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            return buffer.getvalue()

        def zipped(name, content, kind=zipfile.ZIP_DEFLATED):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", kind) as archive:
                archive.writestr(name, content)
            return buffer.getvalue()

        def array_of(header, values=b""):
            return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + values

        vectors = rows(0, 20).vectors
        assert "pickled objects" in refused(uri, saved(vectors=vectors, item_id=np.array([{}] * 20)))
        assert "'../../evil.npy'" in refused(uri, zipped("../../evil.npy", b""))
        assert "'/evil.npy'" in refused(uri, zipped("/evil.npy", b""))
        assert "'evil.sh'" in refused(uri, zipped("evil.sh", b""))
        assert "claims to hold" in refused(uri, zipped("vectors.npy", bytes(200 * 2**20)))
        huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 512)}"
        assert "not as long as its header says" in refused(uri, zipped("vectors.npy", array_of(huge)))
        assert "cannot be read" in refused(uri, zipped("vectors.npy", array_of("(" * 5000)))
        long = b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"
        assert "another version" in refused(uri, zipped("vectors.npy", long))
        assert "column by column" in refused(uri, saved(vectors=np.asfortranarray(vectors)))
        assert "2 of them floats" in refused(uri, saved(a=vectors, b=vectors))
        assert "0 of them floats" in refused(uri, saved(vectors=vectors.astype(int)))
        assert "cannot be read" in refused(uri, pickle.dumps([1]), error=DamagedStore)
        whole = saved(vectors=vectors)
        place = whole.index(vectors[7].tobytes()) + 3
        refused(uri, whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :], error=DamagedStore)
        for cut in range(0, len(whole) - 1, 29):
            refused(uri, whole[:cut], error=DamagedStore)


class TestCsv(Contract):
    name = "gallery.csv"

    def test_the_csv_module_reads_it(self, uri):
        written(uri, 9)
        with Path(uri).open(newline="") as file:
            header, *fields = csv.reader(file)
        assert header == ["item_id", "label", *(f"vector_{i}" for i in range(5))]
        assert [row[:2] for row in fields] == [list(row) for row in rows(0, 9).items.rows()]
        found = np.array([row[2:] for row in fields]).astype(np.float32)
        np.testing.assert_array_equal(found, rows(0, 9).vectors)

    @pytest.mark.parametrize("block", [16, 100, 2**24])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_foreign_columns(self, tmp_path, monkeypatch, block, end):
        monkeypatch.setattr("stores.galleries.csv_blocks._BLOCK_BYTES", block)
        lines = ["dim1,name,dim2,item_id", '0.5,"a\n""b"",c",-1e-3,7', '"1",,2,-9223372036854775808', "3,x,4,0", ""]
        (tmp_path / "old.csv").write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode() + end.encode())
        source = open_source(str(tmp_path / "old.csv"))
        assert (source.space, source.dim, len(source)) == (None, 2, 3)
        found = read(source, 2)
        assert found.items.to_dict(as_series=False) == {"name": ['a\n"b",c', None, "x"], "item_id": [7, -(2**63), 0]}
        np.testing.assert_array_equal(found.vectors, np.array([[0.5, -1e-3], [1, 2], [3, 4]], np.float32))

    def test_ids_are_numbers_only_where_each_is_written_as_one(self, tmp_path):
        for written_ids, expected in [("1 2", [1, 2]), ("007 2", ["007", "2"]), ("1 9223372036854775808", None)]:
            path = tmp_path / "old.csv"
            path.write_text("".join(["item_id,v0\n", *(f"{name},1\n" for name in written_ids.split())]))
            ids = read(open_source(str(path))).items["item_id"].to_list()
            assert ids == (expected or written_ids.split())
        path.write_text("v0,v1\n1,2\n3,4")
        assert read(open_source(str(path))).items["item_id"].to_list() == [0, 1]

    def test_refuses_what_is_no_table_of_vectors_and_shows_none(self, tmp_path, monkeypatch):
        uri = str(tmp_path / "old.csv")
        start = "item_id,v0,v1\na,1,2\n"
        for text, message in {
            "": "header .* is empty",
            "item_id,label\na,b\n": "expected the vectors in columns vector_0",
            "item_id,v0,v2\na,1,2\n": "expected the vectors",
            "v1,v0\n1,2\n": "expected the vectors",
            "v0,w0\n1,2\n": "expected the vectors",
            "v0,v0\n1,2\n": "columns twice",
            start + "b,0.125,x7x\n": "not a number",
            start + "b,0.125\n": "row 1 .* 2 fields, expected 3",
            start + "b,0.125,2,3\n": "row 1 .* 4 fields, expected 3",
            start + "b,0.125,\n": "row 1 .* no vector of 2",
            start + "\nb,0.125,2\n": "row 1 .* 0 fields",
            start + "b,nan,2\n": "row 1 .* no vector of 2",
            "v0,v1,name\n0.125,2,a\n0.125,2\n": "row 1 .* 2 fields",
            "item_id,vector\na,nope7\n": "row 0 .* JSON list",
            'item_id,vector\na,"[1,2]"\nb,"[0.125,""x7x""]"\n': "row 1 .* JSON list",
            'item_id,vector\na,"[1,2]"\nb,"[0.125]"\n': "row 1 .* no vector of 2",
            'item_id,vector\na,"[1,2]"\nb,"[0.125,null]"\n': "row 1 .* no vector of 2",
            'item_id,vector\na,"[]"\n': "dimension",
        }.items():
            said = refused(uri, text.encode())
            assert re.search(message, said), said
            assert not re.search(r"0\.125|x7x|nope7", said)
        assert "UTF-8" in refused(uri, b"item_id,v0\n\xff\xfe,1\n")
        monkeypatch.setattr("stores.galleries.csv_blocks._MOST_BYTES", 1000)
        monkeypatch.setattr("stores.galleries.csv_blocks._BLOCK_BYTES", 100)
        assert "a quote that never ends" in refused(uri, b'item_id,v0\n"' + b"a,1\n" * 1000)


class TestCsvWithLists(Contract):
    name = "gallery.csv"
    scheme = "csv+json"

    def test_the_csv_and_json_modules_read_it(self, uri):
        written(uri, 9)
        with Path(locate(uri)[1]).open(newline="") as file:
            header, *fields = csv.reader(file)
        assert header == ["item_id", "label", "vector"]
        found = np.array([json.loads(row[2]) for row in fields], np.float32)
        np.testing.assert_array_equal(found, rows(0, 9).vectors)


class TestHdf5(Contract):
    name = "gallery.h5"

    def test_h5py_reads_it(self, uri):
        written(uri, 9)
        with h5py.File(uri) as opened:
            file: Any = opened
            assert sorted(file) == ["item_id", "label", "vectors"]
            assert file["vectors"].dtype == np.float32
            np.testing.assert_array_equal(file["vectors"][:], rows(0, 9).vectors)
            assert file["label"].asstr()[:].tolist() == rows(0, 9).items["label"].to_list()

    @pytest.mark.parametrize("options", [{}, {"chunks": (7, 3), "compression": "gzip", "shuffle": True}])
    @pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
    def test_foreign_files(self, tmp_path, options, dtype):
        array = np.random.default_rng(0).normal(size=(20, 3)).astype(dtype)
        with h5py.File(tmp_path / "old.hdf5", "w") as file:
            file.create_dataset("embeddings", data=array, **options)
            file["item_id"] = np.arange(-5, 15)
            file["name"] = np.array([b"fixed"] * 20)
            file["group/inner"] = np.zeros((2, 2))
        found = read(open_source(str(tmp_path / "old.hdf5")), 6, 4)
        assert found.items.to_dict(as_series=False) == {"item_id": list(range(-1, 15)), "name": ["fixed"] * 16}
        np.testing.assert_array_equal(found.vectors, array[4:].astype(np.float32))

    def test_refuses_what_is_hostile(self, tmp_path):
        path, vectors = tmp_path / "old.h5", rows(0, 20).vectors
        np.save(tmp_path / "secret.npy", vectors)
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["vectors"] = vectors

        def complaint(make):
            with h5py.File(path, "w") as file:
                make(file)
            return refused(str(path), path.read_bytes())

        def virtual(file):
            layout = h5py.VirtualLayout((20, 5), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "vectors", (20, 5))
            file.create_virtual_dataset("vectors", layout)

        outside = [(str(tmp_path / "secret.npy"), 128, 400)]
        for message, make in {
            "link 'vectors'": lambda file: file.update({"vectors": h5py.ExternalLink("other.h5", "vectors")}),
            "link 'soft'": lambda file: file.update({"soft": h5py.SoftLink("/vectors")}),
            "in other files": lambda file: file.create_dataset("vectors", (20, 5), "f4", external=outside),
            "dataset 'vectors' in other": virtual,
            "more than is believable": lambda file: file.create_dataset("vectors", (10**9, 512), "f4", chunks=(9, 512)),
            "bytes of dataset 'v'": lambda file: file.create_dataset(
                "v", (10**9, 512), "f4", chunks=(9, 512), compression="gzip"
            ),
            "in chunks of": lambda file: file.create_dataset(
                "v", (2, 5), "f4", chunks=(2**26, 5), maxshape=(None, 5), compression="gzip"
            ),
            "0 of them floats": lambda file: file.create_dataset("vectors", data=vectors.astype(int)),
            "2 of them floats": lambda file: file.update({"a": vectors, "b": vectors}),
            "(none)": lambda file: file.create_group("vectors"),
        }.items():
            assert message in complaint(make)
        assert "cannot be read as HDF5" in refused(str(path), pickle.dumps([1]), error=DamagedStore)
        whole = (tmp_path / "other.h5").read_bytes()
        for cut in range(0, len(whole) - 1, 97):
            refused(str(path), whole[:cut], error=DamagedStore)

    def test_text_that_many_rows_share_is_not_multiplied_in_memory(self, tmp_path, monkeypatch):
        path = str(tmp_path / "old.h5")
        with h5py.File(path, "w") as file:
            file["vectors"] = rows(0, 600).vectors
            file["item_id"] = [f"{i:09d}" for i in range(600)]
        assert read(open_source(path)).items["item_id"][-1] == "000000599"
        monkeypatch.setattr("stores.galleries.hdf5._ALWAYS_ALLOWED", 5000 - Path(path).stat().st_size)
        with pytest.raises(ValueError, match="'item_id' with more text than the file is long"):
            open_source(path)

    def test_without_h5py_the_command_is_named(self, uri, monkeypatch):
        written(uri, 3)
        monkeypatch.setitem(sys.modules, "h5py", None)
        for work in (lambda: open_source(uri), lambda: open_target("hdf5:other", SPACE, ORIGIN)):
            with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[hdf5\]'"):
                work()


FILES = ["g.npy", "g.npz", "g.parquet", "g.arrow", "g.csv", "csv+json:g.csv", "g.h5", "zarr+array:g"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("alone", [False, True])
def test_every_float_and_id_comes_back_bit_for_bit(tmp_path, monkeypatch, name, alone):
    monkeypatch.chdir(tmp_path)
    floats = np.random.default_rng(0).integers(0, 2**32, 6000, np.uint32).view(np.float32)
    floats[:6] = [-0.0, 1e-45, -1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny, 16777217]
    vectors = floats[np.isfinite(floats)][:5000].reshape(-1, 5)
    ids = np.arange(len(vectors))
    ids[:4] = [2**63 - 1, -(2**63), -1, 2**53 + 1]
    items = pl.DataFrame({"item_id": ids, "text": [f'{i:03d},"\n é' for i in range(len(ids))]})
    if not alone:  # what not every format can say is in the item table beside it
        items = items.with_columns(
            item_id=pl.Series([f"{i:04d}" for i in range(len(ids))]),
            day=pl.date(2020, 2, 29),
            tags=pl.lit(["a", "b"], dtype=pl.List(pl.String)),
            gap=pl.when(pl.col("item_id") > 9).then(pl.lit("")),
        )
    target = open_target(name, SPACE, ORIGIN)
    target.write(Batch(items, vectors))
    target.finish()
    target.close()
    if alone:
        for beside in Path.cwd().glob("*.json"):
            beside.unlink()
        if name != "g.npy":  # which has no room for ids
            for beside in Path.cwd().glob("*.items.parquet"):
                beside.unlink()
    found = read(open_source(name), 333)
    assert found.items.equals(items)
    np.testing.assert_array_equal(found.vectors.view(np.uint32), vectors.view(np.uint32))


@pytest.mark.parametrize("name", [*FILES, "store"])
def test_ids_that_fit_no_signed_number_of_64_bits_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    target = open_target(name, SPACE, ORIGIN)
    items = pl.DataFrame({"item_id": pl.Series([1, 2**63, 2**64 - 1], dtype=pl.UInt64)})
    with pytest.raises(ValueError, match=r"2 items .*64 bits") as caught:
        target.write(Batch(items, rows(0, 3).vectors))
    assert "\n" not in str(caught.value)
    fitting = items.with_columns(item_id=pl.Series([0, 1, 2**63 - 1], dtype=pl.UInt64))
    target.write(Batch(fitting, rows(0, 3).vectors))
    target.finish()
    target.close()
    assert read(open_source(name)).items["item_id"].to_list() == [0, 1, 2**63 - 1]


@pytest.mark.parametrize("name", ["v.npz", "v.arrow", "v.csv", "csv+json:v.csv", "v.h5", "zarr+array:v"])
def test_the_names_of_the_vectors_are_reserved(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    plain = dict.fromkeys(("v.npz", "v.h5", "zarr+array:v"), "vectors")
    taken = (plain | {"v.csv": "vector_4"}).get(name, "vector")
    target = open_target(name, SPACE, ORIGIN)
    items, vectors = rows(0, 3)
    with pytest.raises(ValueError, match=f"'{taken}' is reserved"):
        target.write(Batch(items.rename({"label": taken}), vectors))
    target.close()


@pytest.mark.parametrize("name", ["gallery.npy", "gallery.csv", "gallery.parquet", "gallery.h5", "gallery.faiss"])
@pytest.mark.parametrize("step", ["stores.galleries.card.GalleryCard.write", "shutil.rmtree", "pathlib.Path.replace"])
def test_a_run_that_dies_within_finish_can_be_run_again(tmp_path, monkeypatch, name, step):
    def die(*_, **__):
        raise KeyboardInterrupt

    uri = str(tmp_path / "there" / name)
    target = open_target(uri, SPACE, ORIGIN)
    target.write(rows(0, 20))
    target.commit()
    with monkeypatch.context() as patch:
        patch.setattr(step, die)
        with pytest.raises(KeyboardInterrupt):
            target.finish()
    target.close()
    carded = (tmp_path / "there" / f"{name}.json").exists()
    assert carded == (step == "shutil.rmtree")
    if not carded:
        with pytest.raises(ValueError, match="unfinished"):
            open_source(uri)
    again = open_target(uri, SPACE, ORIGIN)
    assert again.finished == carded
    again.finish()
    again.close()
    assert_same(read(open_source(uri)), rows(0, 20))
    assert not (tmp_path / "there" / f".{name}.partial").exists()


def test_every_engine_keeps_the_contract():
    tested = {kind.scheme or locate(kind.name)[0] for kind in Contract.__subclasses__()}
    tested |= {"zarr+array", "postgresql", "lance", "qdrant"}  # in test files of their own
    assert set(GALLERIES) == {*ENDINGS.values(), "zarr", "csv+json", "postgresql", "lance", "qdrant"}
    assert set(GALLERIES) <= tested


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("old", ("zarr", "old")),
        ("a/b.zarr", ("zarr", "a/b.zarr")),
        ("a/B.NPY", ("npy", "a/B.NPY")),
        ("a.index", ("faiss", "a.index")),
        ("a.feather", ("arrow", "a.feather")),
        ("csv+json:a.csv", ("csv+json", "a.csv")),
        ("faiss:a.bin", ("faiss", "a.bin")),
        ("a.zarr.zip", ("zarr+array", "a.zarr.zip")),
        ("zarr:a.npy", ("zarr", "a.npy")),
        ("./odd:name.parquet", ("parquet", "./odd:name.parquet")),
    ],
)
def test_uris(uri, expected):
    assert locate(uri) == expected


@pytest.mark.parametrize(
    ("uri", "message"), [("lmdb:x", "expected one of zarr, npy"), ("npy:", "npy:PATH"), ("", "no place")]
)
def test_unknown_uris_list_the_choices(uri, message):
    with pytest.raises(ValueError, match=message):
        open_source(uri)
