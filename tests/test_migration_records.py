"""The sixteen bytes that tell a row from another, and the comparison of two galleries by them."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from planted import environment

from compat.migration import records
from compat.migration.records import (
    RECORD,
    IdSet,
    RecordFile,
    differences,
    hash_scheme,
    id_hashes,
    read_records,
    row_records,
    sort_records,
)


def plain_hash(vector):
    """The vector's hash by big integers, one word after the other."""
    words = np.asarray(vector, np.float32).view(np.uint32).tolist()
    factors = [int(each) | 1 for each in np.random.PCG64(2014).random_raw(len(words))]
    return sum(word * factor for word, factor in zip(words, factors, strict=True)) % 2**64


def numbered(rows, **columns):
    return pl.DataFrame({"item_id": range(rows), **columns})


def test_every_column_tells_rows_apart_and_an_empty_one_is_as_good_as_none():
    vectors = np.ones((3, 2), np.float32)
    plain = row_records(numbered(3), vectors)["vector"]
    seen = set(plain.tolist())
    assert len(seen) == 1
    for columns in (
        {"label": ["a", "b", "c"]},
        {"split": ["a", "b", "c"]},
        {"label": ["a", "b", "c"], "split": ["a", "b", "c"]},
        {"many": [[1], [1, 2], [2]]},
        {"number": [1.5, 2.5, None]},
    ):
        found = row_records(numbered(3, **columns), vectors)["vector"].tolist()
        assert len(set(found)) == 3
        seen.update(found)
    assert len(seen) == 1 + 5 * 3 - 1  # a null is as good as no column
    empty = numbered(3).with_columns(label=pl.lit(None, pl.String))
    assert row_records(empty, vectors)["vector"].tolist() == plain.tolist()


def test_hashes_are_those_of_a_slow_computation_and_see_every_bit():
    vectors = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    found = row_records(numbered(7), vectors)["vector"]
    assert found.tolist() == [plain_hash(vector) for vector in vectors]
    strided = np.concatenate([vectors, vectors], axis=1)[:, :5]
    assert row_records(numbered(7), strided)["vector"].tolist() == found.tolist()
    for word in range(5):
        for bit in range(32):
            changed = vectors[:1].copy()
            changed.view(np.uint32)[0, word] ^= np.uint32(1 << bit)
            assert row_records(numbered(1), changed)["vector"][0] != found[0]


def test_two_flipped_signs_do_not_cancel():
    vector = np.ones((1, 8), np.float32)
    hashes = set()
    for first in range(8):
        for second in range(first):
            flipped = vector.copy()
            flipped[0, [first, second]] *= -1
            hashes.add(row_records(numbered(1), flipped)["vector"][0])
    assert len(hashes) == 28


def test_ids_hash_alike_in_another_process():
    told = (
        "import polars as pl; from compat.migration.records import *; print(id_hashes(pl.Series(['é', 'b'])).tolist())"
    )
    other = subprocess.run(
        [sys.executable, "-c", told], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert other.strip() == str(id_hashes(pl.Series(["é", "b"])).tolist())
    assert pl.__version__ in hash_scheme()


def write(path, ids, vectors):
    rows = np.empty(len(ids), RECORD)
    rows["id"], rows["vector"] = ids, vectors
    file = RecordFile(path)
    file.add(rows)
    file.flush()
    file.close()
    return path


@pytest.mark.parametrize("rows", [0, 1, 1000, 20_000])
def test_what_changed_is_what_two_dicts_tell(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(records, "_BUCKET", 700)
    monkeypatch.setattr(records, "_BLOCK", 1024)
    generator = np.random.default_rng(rows)
    ids = generator.integers(0, 2**63, rows, dtype=np.uint64) * np.uint64(2)
    vectors = generator.integers(1, 2**63, rows, dtype=np.uint64)
    kept = generator.random(rows) > 0.001
    later = np.where(generator.random(rows) > 0.001, vectors, vectors + np.uint64(1))
    new = np.array([3, 2**64 - 1], np.uint64)  # below and above the others
    order = generator.permutation(kept.sum() + 2)
    now_ids, now_vectors = np.concatenate([ids[kept], new])[order], np.concatenate([later[kept], new])[order]
    sort_records(write(tmp_path / "a", ids, vectors), tmp_path / "a.sorted")
    sort_records(write(tmp_path / "b", now_ids, now_vectors), tmp_path / "b.sorted")
    before, now = (dict(zip(i.tolist(), v.tolist(), strict=True)) for i, v in ((ids, vectors), (now_ids, now_vectors)))
    found = list(differences(tmp_path / "a.sorted", tmp_path / "b.sorted"))
    assert [i for each in found for i in each.fresh.tolist()] == sorted(now.keys() - before.keys())
    assert [i for each in found for i in each.gone.tolist()] == sorted(before.keys() - now.keys())
    altered = sorted(i for i in before.keys() & now.keys() if before[i] != now[i])
    assert [i for each in found for i in each.altered.tolist()] == altered
    assert read_records(tmp_path / "a.sorted")["id"].tolist() == sorted(ids.tolist())
    known = IdSet(tmp_path / "a.sorted")
    assert known.holds(now_ids).tolist() == [i in before for i in now_ids.tolist()]


def test_two_rows_of_one_id_hash_are_not_taken_for_a_change(tmp_path):
    sort_records(write(tmp_path / "a", [5, 5, 9], [1, 2, 3]), tmp_path / "a.sorted")
    sort_records(write(tmp_path / "b", [9, 5, 5], [3, 2, 1]), tmp_path / "b.sorted")
    (found,) = differences(tmp_path / "a.sorted", tmp_path / "b.sorted")
    assert not len(found.altered) + len(found.fresh) + len(found.gone)


def test_a_file_is_cut_to_the_rows_that_were_committed_and_never_made_up(tmp_path):
    path = write(tmp_path / "a", [1, 2, 3], [4, 5, 6])
    with path.open("ab") as torn:
        torn.write(b"torn")
    file = RecordFile(path, 2)
    file.add(np.array([(7, 8)], RECORD))
    file.flush()
    file.close()
    assert read_records(path)["id"].tolist() == [1, 2, 7]
    with pytest.raises(ValueError, match=r"tells of 3 rows, but 4 were copied: .* begin again with --step discard"):
        RecordFile(path, 4)
