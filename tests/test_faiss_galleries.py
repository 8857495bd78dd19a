"""FAISS index files of every usual kind: what is read from them, and that a damaged one harms nobody."""

import gc
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stores.chunks import DamagedStore
from stores.durable import sha256_of
from stores.galleries import faiss_codes, faiss_index, open_source
from stores.galleries.card import GalleryCard, card_path
from stores.space import EmbeddingSpace

EXACT = ["HNSW8", "NSG8", "IVF4,Flat", "IVF4_HNSW4,Flat", "Flat,RFlat", "IVF4,PQ2x4,RFlat", "Pad12,Flat"]
SCALAR = ["SQ8", "SQ6", "SQ4", "SQfp16", "SQbf16", "HNSW8_SQ8", "IVF4,SQ8", "IVF4,SQ4", "IVF4,SQfp16"]
PRODUCT = ["PQ4x8", "PQ4x4", "PQ2x6", "HNSW8_PQ4x4", "IVF4,PQ4x4", "IVF4,PQ2x6"]
TURNED = ["OPQ2,PQ2x4", "PCA4,Flat", "RR8,Flat", "L2norm,Flat"]
KINDS = EXACT + SCALAR + PRODUCT + TURNED
RENUMBERED = ["HNSW8", "SQ8", "PQ2x6", "IVF4,Flat", "IVF4,SQ8", "IVF4,PQ2x6"]  # with each kind of ids
ROWS, DIM = 700, 8

# Codes are decoded here without faiss: a product code is the nearest centroid of each part, found by comparing with
# all; a scalar code is off by half a step. Written are indexes and what they stand for, in the order of adding.
PLANT = """
import sys, faiss, numpy as np
folder, rows, dim, kinds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[5:]
x = (np.random.default_rng(0).normal(size=(rows, dim)) * 2.0 ** np.arange(dim) + 1).astype("float32")
ids = np.array([-2**63, 2**63 - 1, -1, 0, *range(2**40, 2**40 + 3 * (rows - 4), 3)], dtype="int64")
np.random.default_rng(1).shuffle(ids)

def nearest(vectors, centroids):
    return centroids[((vectors[:, None] - centroids[None]) ** 2).sum(2).argmin(1)]

def standing_for(index, vectors):
    if isinstance(index, faiss.IndexPreTransform):
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        inner = faiss.downcast_index(index.index)
        if isinstance(transform, faiss.NormalizationTransform):
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6
        if isinstance(transform, faiss.RemapDimensionsTransform):
            return vectors, 0
        a = faiss.vector_to_array(transform.A).reshape(transform.d_out, -1).astype("float64")
        b = faiss.vector_to_array(transform.b) if transform.have_bias else 0
        found, off = standing_for(inner, (vectors @ a.T + b).astype("float32"))
        return (found - b) @ a, off + 1e-3
    if isinstance(index, (faiss.IndexHNSW, faiss.IndexNSG)):
        return standing_for(faiss.downcast_index(index.storage), vectors)
    base = 0
    if isinstance(index, (faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)) and index.by_residual:
        lists = faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist)
        base = lists[index.quantizer.assign(vectors, 1)[:, 0]]
    if hasattr(index, "pq") and "Refine" not in type(index).__name__:
        centroids = faiss.vector_to_array(index.pq.centroids).reshape(index.pq.M, index.pq.ksub, index.pq.dsub)
        parts = np.split(vectors - base, index.pq.M, axis=1)
        return base + np.concatenate([nearest(p, c) for p, c in zip(parts, centroids)], axis=1), 1e-3
    if hasattr(index, "sq"):
        kind, names = index.sq.qtype, faiss.ScalarQuantizer
        if kind == names.QT_fp16:
            rest = (vectors - base).astype("float16").astype("float32")
            return base + rest, np.abs(rest) / 1024 * isinstance(base, np.ndarray)
        if kind == names.QT_bf16:
            return vectors, np.abs(vectors) / 128
        levels = {names.QT_8bit: 255, names.QT_6bit: 63, names.QT_4bit: 15}
        steps = faiss.vector_to_array(index.sq.trained)[index.d:] / levels[kind]
        return vectors, 0.51 * steps[None]
    return vectors, 0

def plant(name, index, adds, ids=None):
    for add in adds:
        index.add(x[add]) if ids is None else index.add_with_ids(x[add], ids[add])
    faiss.write_index(index, f"{folder}/{name}.faiss")

halves = [np.arange(100), np.arange(100, 101), np.arange(101, rows)]
for kind in kinds:
    for suffix, metric in [("", faiss.METRIC_L2), ("ip", faiss.METRIC_INNER_PRODUCT)][: 1 + kind.startswith("IVF")]:
        empty = faiss.index_factory(dim, kind, metric)
        if hasattr(empty, "pq"):
            empty.pq.cp.niter = 3  # quick, not good
        empty.train(x)
        truth, off = standing_for(empty, x)
        np.savez(f"{folder}/{kind}{suffix}.npz", truth=truth, off=np.broadcast_to(off, x.shape))
        blank = faiss.serialize_index(empty)
        fresh = lambda: faiss.deserialize_index(blank)
        plant(kind + suffix, fresh(), [np.arange(rows)] if "NSG" in kind else halves)  # an NSG is built once, from all
        if kind not in sys.argv[4].split():
            continue
        plant(kind + suffix + "-none", fresh(), [])
        plant(kind + suffix + "-map", faiss.IndexIDMap(fresh()), halves, ids)
        plant(kind + suffix + "-map2", faiss.IndexIDMap2(fresh()), halves, ids)
        if kind.startswith("IVF"):
            plant(kind + suffix + "-ids", fresh(), halves, ids)
            few = fresh()
            few.add_with_ids(x[:1], ids[:1])
            faiss.write_index(few, f"{folder}/{kind}{suffix}-few.faiss")
            fewer = fresh()
            fewer.add_with_ids(x, ids)
            fewer.remove_ids(ids[::3])
            faiss.write_index(fewer, f"{folder}/{kind}{suffix}-removed.faiss")
np.savez(f"{folder}/planted.npz", x=x, ids=ids)
"""

REFUSED = """
import sys, faiss, numpy as np
folder, x = sys.argv[1], np.random.default_rng(0).normal(size=(600, 16)).astype("float32")
kinds = ["LSH", "PQ4x4fs", "IVF4,PQ4x4fs", "IVF4,FlatDedup", "RQ2x4", "PCAW8,Flat", "ITQ16,LSH", "IDMap,LSH"]
for kind in kinds:
    index = faiss.index_factory(16, kind)
    index.train(x)
    index.add_with_ids(x, np.arange(600)) if "IDMap" in kind else index.add(x)
    faiss.write_index(index, f"{folder}/{kind}.faiss")
nested = faiss.IndexIDMap(faiss.IndexIDMap(faiss.IndexFlatIP(16)))
faiss.write_index(nested, f"{folder}/IDMap,IDMap.faiss")
holes = faiss.IndexIDMap(faiss.index_factory(16, "IVF4,Flat"))
holes.train(x)
holes.index.add_with_ids(x, np.arange(600) * 2)
holes.ntotal = 600
faiss.copy_array_to_vector(np.arange(600), holes.id_map)
faiss.write_index(holes, f"{folder}/holes.faiss")
nan = faiss.index_factory(16, "IVF4,Flat")
nan.train(x)
x[7] = np.nan
nan.add(x)
faiss.write_index(nan, f"{folder}/nan.faiss")
disk = faiss.index_factory(16, "IVF4,Flat")
disk.train(x[8:])
lists = faiss.OnDiskInvertedLists(4, disk.code_size, f"{folder}/lists.ivfdata")
disk.replace_invlists(lists)
disk.add(x[8:])
faiss.write_index(disk, f"{folder}/ondisk.faiss")
"""

SMALL = """
import sys, faiss, numpy as np
folder, x = sys.argv[1], np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
for kind in sys.argv[2:]:
    index = faiss.index_factory(8, kind)
    index.train(np.random.default_rng(1).normal(size=(600, 8)).astype("float32"))
    index.add_with_ids(x, np.arange(40) * 3 - 7) if "IDMap" in kind else index.add(x)
    faiss.write_index(index, f"{folder}/{kind}.faiss")
"""
SMALL_KINDS = [
    "Flat",
    "IDMap,Flat",
    "HNSW4",
    "HNSW4_SQ8",
    "IVF2,Flat",
    "IVF2,SQ8",
    "IVF2,PQ2x2",
    "SQ8",
    "SQfp16",
    "PQ2x2",
]
SMALL_KINDS += ["IDMap,SQ4", "IDMap2,IVF2,Flat", "IDMap,HNSW4", "OPQ2,PQ2x2", "Flat,RFlat", "L2norm,SQ8"]


def run_python(script, *arguments):
    # In a process of its own: faiss imported before torch makes later forks of this one hang.
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    run_python(PLANT, folder, ROWS, DIM, " ".join(RENUMBERED), *KINDS)
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    run_python(REFUSED, folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    run_python(SMALL, folder, *SMALL_KINDS)
    return folder


def decoded(path) -> faiss_index.DecodedSource:
    source = open_source(f"faiss:{path}")
    assert isinstance(source, faiss_index.DecodedSource)
    return source


def read(path):
    source = open_source(f"faiss:{path}")
    batches = list(source.scan(97))
    if not batches:
        return source, np.empty(0, np.int64), np.empty((0, source.dim), np.float32)
    ids = pl.concat([batch.items for batch in batches])["item_id"]
    return source, ids.to_numpy(), np.concatenate([batch.vectors for batch in batches])


def refusal(path, error: type[Exception] = ValueError):
    with pytest.raises(error) as caught:
        open_source(f"faiss:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "metric"), [(kind, "") for kind in KINDS] + [(kind, "ip") for kind in KINDS if kind.startswith("IVF")]
)
def test_vectors_are_what_the_codes_stand_for_under_every_numbering(planted, kind, metric):
    truth, off = np.load(planted / f"{kind}{metric}.npz").values()
    ids = np.load(planted / "planted.npz")["ids"]
    order = np.argsort(ids)
    kept = np.delete(np.arange(ROWS), np.s_[::3])
    expected = {
        "": (np.arange(ROWS), np.arange(ROWS)),
        "-map": (np.arange(ROWS), ids),
        "-map2": (np.arange(ROWS), ids),
        "-ids": (order, ids[order]),
        "-few": (np.arange(1), ids[:1]),
        "-removed": (kept[np.argsort(ids[kept])], np.sort(ids[kept])),
        "-none": (np.arange(0), np.arange(0)),
    }
    found = [suffix for suffix in expected if (planted / f"{kind}{metric}{suffix}.faiss").is_file()]
    assert len(found) == (1 if kind not in RENUMBERED else 7 if kind.startswith("IVF") else 4)
    for suffix in found:
        source, item_ids, vectors = read(planted / f"{kind}{metric}{suffix}.faiss")
        rows, its_ids = expected[suffix]
        assert (source.space, source.dim, len(source)) == (None, DIM, len(rows))
        assert item_ids.dtype == np.int64
        np.testing.assert_array_equal(item_ids, its_ids, err_msg=suffix)
        assert (np.abs(vectors - truth[rows]) <= off[rows]).all(), suffix
        assert source.provenance["exact"] == (kind in EXACT)
        assert isinstance(source, faiss_index.DecodedSource)
        assert bool(source.notes) == (kind not in EXACT)


@pytest.mark.parametrize(
    ("kind", "index", "codec", "said"),
    [
        ("IVF4,PQ2x6", "IVF4,PQ2x6", "PQ2x6", "PQ2x6 codes: they are approximations"),
        ("HNSW8_SQ8", "HNSW,SQ8", "SQ8", "SQ8 codes: they are approximations"),
        ("SQfp16", "SQfp16", "SQfp16", "half precision"),
        ("L2norm,Flat", "L2norm,Flat", "Flat", "their norms are lost"),
        ("PCA4,Flat", "PCA4,Flat", "Flat", "put vectors through PCA4"),
    ],
)
def test_approximations_are_named(planted, kind, index, codec, said):
    source = decoded(planted / f"{kind}.faiss")
    assert (source.provenance["index"], source.provenance["codec"]) == (index, codec)
    assert len(source.notes) == 1
    assert said in source.notes[0]
    assert "\n" not in source.notes[0]
    json.dumps(source.provenance)


def test_an_item_table_beside_it_is_for_its_rows_and_its_lengths_are_multiplied_back(planted, tmp_path):
    path = tmp_path / "old.index"
    path.write_bytes((planted / "IVF4,Flat-ids.faiss").read_bytes())
    items = pl.DataFrame({"item_id": [f"n{i}" for i in range(ROWS)], "vector_norm": np.arange(ROWS) / 4})
    items.write_parquet(tmp_path / "old.index.items.parquet")
    _, ids, vectors = read(path)
    assert ids.tolist() == items["item_id"].to_list()
    truth, planted_ids = np.load(planted / "IVF4,Flat.npz")["truth"], np.load(planted / "planted.npz")["ids"]
    np.testing.assert_allclose(vectors, truth[np.argsort(planted_ids)] * np.arange(ROWS)[:, None] / 4, rtol=1e-6)
    items[1:].write_parquet(tmp_path / "old.index.items.parquet")
    with pytest.raises(DamagedStore, match="has 699 rows"):
        open_source(str(path))


def test_blocks_and_lists_larger_than_one_write(tmp_path):
    script = """
import sys, faiss, numpy as np
x = np.random.default_rng(0).normal(size=(20_000, 4)).astype("float32")
for kind in ("IVF1,Flat", "HNSW4"):
    index = faiss.index_factory(4, kind)
    index.train(x[:100])
    index.add_with_ids(x, np.arange(20_000)[::-1]) if "IVF" in kind else index.add(x)
    faiss.write_index(index, f"{sys.argv[1]}/{kind}.faiss")
"""
    run_python(script, tmp_path)
    x = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    np.testing.assert_array_equal(read(tmp_path / "IVF1,Flat.faiss")[2], x[::-1])
    np.testing.assert_array_equal(read(tmp_path / "HNSW4.faiss")[2], x)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_temporary_files_have_no_name_and_go_with_the_source(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()  # what earlier tests left
    before = descriptors()
    source = open_source(str(planted / "SQ8.faiss"))
    assert list(tmp_path.iterdir()) == []
    maps = Path("/proc/self/maps")
    assert str(tmp_path) in maps.read_text()
    del source
    gc.collect()
    assert str(tmp_path) not in maps.read_text()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LSH", "IndexLSH"),
        ("PQ4x4fs", "IndexPQFastScan"),
        ("IVF4,PQ4x4fs", "IndexIVFPQFastScan"),
        ("IVF4,FlatDedup", "IndexIVFFlatDedup"),
        ("RQ2x4", "IndexResidualQuantizer"),
        ("ITQ16,LSH", "IndexLSH"),
        ("PCAW8,Flat", "PCAMatrix that cannot be undone"),
        ("IDMap,LSH", "an id map over an index of kind b'IxHe', IndexLSH"),
        ("IDMap,IDMap", "an id map over an index of kind b'IxMp', IndexIDMap"),
        ("ondisk", "in another file"),
        ("holes", "its id map is for vectors numbered from 0"),
        ("nan", "promises 600 vectors, its lists hold 599"),
    ],
)
def test_what_is_not_read_is_refused_by_name(odd, name, said):
    assert said in refusal(odd / f"{name}.faiss")


def header(kind, dim, rows, metric=0):
    return struct.pack("<4siqqq?i", kind, dim, rows, 1 << 20, 1 << 20, True, metric)


def hostile():
    for kind in (b"IxFI", b"IHNf", b"IwFl", b"IwPQ", b"IxSQ", b"IxPq", b"IxPT", b"IxRF"):
        yield f"{kind} 2^60 rows", header(kind, 8, 1 << 60) + b"\x01\x00\x00\x00\x00\x00\x00\x00" * 64
        yield f"{kind} -1 rows", header(kind, 8, -1) + b"\x01\x00\x00\x00\x00\x00\x00\x00" * 64
        yield f"{kind} dim 2^31-1", header(kind, 2**31 - 1, 100) + b"\x01\x00\x00\x00\x00\x00\x00\x00" * 64
        yield f"{kind} dim -2^31", header(kind, -(2**31), 100) + b"\x01\x00\x00\x00\x00\x00\x00\x00" * 64
        yield f"{kind} counts of 2^40", header(kind, 8, 100) + struct.pack("<Q", 1 << 40) * 64
        yield f"{kind} nothing else", header(kind, 8, 100)
    for kind in (b"IxMp", b"IxM2", b"IHNf", b"IxRF"):
        yield f"{kind} 10,000 deep", header(kind, 8, 100) * 10_000 + header(b"IxFI", 8, 100)
    yield "transforms 10,000 deep", (header(b"IxPT", 8, 100) + struct.pack("<i", 0)) * 10_000 + header(b"IxFI", 8, 100)
    yield "wrong magic", b"dear" * 1000
    yield "binary index", header(b"IBxF", 8, 100) * 3
    yield "nothing", b""


@pytest.mark.parametrize(("name", "content"), [pytest.param(*case, id=case[0]) for case in hostile()])
def test_hostile_files_are_refused_in_one_line_quickly(tmp_path, name, content):
    (tmp_path / "bad.faiss").write_bytes(content)
    began, earlier = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    refusal(tmp_path / "bad.faiss")
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(earlier, 1 << 20)  # KiB, of the largest so far


REPORT = '{{"outcome": "decoded", "index": "SQ8", "codec": "SQ8", "exact": true, "transforms": []}}'


@pytest.mark.parametrize(
    ("script", "said"),
    {
        "crash": ("import os; os.kill(os.getpid(), 11)", "faiss crashed on it (signal 11"),
        "abort": ("import os; os.abort()", "faiss crashed on it (signal 6"),
        "exit": ("raise SystemExit(3)", "exit code 3"),
        "no report": ("", "no account"),
        "odd report": ("import os; os.write({task.report}, b'[' * 100_000)", "no account"),
        "wrong report": ("import os; os.write({task.report}, b'[1]')", "no account"),
        "no vectors": (f"import os; os.write({{task.report}}, b'{REPORT}')", "0 bytes of vectors"),
        "too few ids": (
            f"import os; os.truncate({{task.vectors}}, {{task.rows}} * 32); os.truncate({{task.ids}}, 8)\n"
            f"os.write({{task.report}}, b'{REPORT}')",
            "and 8 of ids",
        ),
        "an escape": (
            'import os; os.write({task.report}, b\'{{"outcome": "damaged", "reason": "\\\\u001b[2J\\\\n"}}\')',
            "[2J",
        ),
        "lack of room": (
            'import os; os.write({task.report}, b\'{{"outcome": "disk", "reason": "No space"}}\')',
            "No space",
        ),
        "hang": ("import time; time.sleep(1000)", "had not read its 40 vectors"),
        "endless loop": ("while True: pass", "had not read its 40 vectors"),
    }.values(),
)
def test_whatever_the_decoder_does_is_one_line(small, tmp_path, monkeypatch, script, said):
    def run(path, task):
        limits = f"import sys; sys.path.insert(0, {str(Path(faiss_codes.__file__).parent)!r})\nimport faiss_child\n"
        limits += f"faiss_child.limit_process(faiss_child.Task{tuple(task)})\n"
        (tmp_path / "child.py").write_text(limits + script.format(task=task))
        original(path, task._replace(seconds=1))

    original = faiss_codes._run
    monkeypatch.setattr(faiss_codes, "_run", run)
    monkeypatch.setattr(faiss_codes, "_CHILD", str(tmp_path / "child.py"))
    monkeypatch.setattr(faiss_codes, "_SECONDS", 1)
    with pytest.raises((ValueError, OSError)) as caught:
        open_source(f"faiss:{small / 'SQ8.faiss'}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_decoder_cannot_take_more_than_its_limits(small, tmp_path, monkeypatch):
    def tried(script):
        (tmp_path / "child.py").write_text(script)
        ran = subprocess.run([sys.executable, str(tmp_path / "child.py")], capture_output=True, text=True, check=False)
        return ran.stderr

    start = f"import sys, os; sys.path.insert(0, {str(Path(faiss_codes.__file__).parent)!r})\nimport faiss_child\n"
    start += "faiss_child.limit_process(faiss_child.Task(0, 0, 0, 0, 0, 0, 1 << 28, 1 << 20, 5))\n"
    assert "MemoryError" in tried(start + "bytearray(1 << 29)")
    assert "File too large" in tried(start + f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(1 << 21))")
    assert (tmp_path / "big").stat().st_size <= 1 << 20


def test_without_faiss_it_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install 'embedding-compat[cpu]'" in refusal(small / "SQ8.faiss", ImportError)
    assert len(open_source(str(small / "IDMap,Flat.faiss"))) == 40  # takes no faiss


def test_a_file_of_faiss_beside_the_data_is_not_run(small, tmp_path, monkeypatch):
    (tmp_path / "faiss.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert len(read(small / "SQ8.faiss")[1]) == 40


def test_too_little_room_is_said_before_anything_is_decoded(small, monkeypatch):
    monkeypatch.setattr(faiss_codes.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "TMPDIR" in refusal(small / "SQ8.faiss", OSError)


def mutated(content, draw):
    """A file with one or a few things wrong with it, seldom the same file."""
    spoilt = bytearray(content)
    for _ in range(draw.integers(1, 3)):
        # Half of all mutations within what comes before the bulk of the codes, which is what is parsed.
        end = max(1, len(spoilt) if draw.random() < 0.5 else min(len(spoilt), 160))
        place = int(draw.integers(0, end))
        how = draw.integers(6)
        if how == 0:
            spoilt[place] ^= 1 << int(draw.integers(8))
        elif how == 1:
            del spoilt[place:]
        elif how == 2:  # a size far too large, where one may be
            size = (2**20, 2**31 - 1, 2**31, 2**32, 2**40 - 1, 2**40, 2**60, 2**63, 2**64 - 1)[draw.integers(9)]
            spoilt[place : place + 8] = struct.pack("<Q", size)
        elif how == 3:
            length = int(draw.integers(1, 64))
            spoilt[place : place + length] = bytes(len(spoilt[place : place + length]))
        elif how == 4:
            spoilt[place:place] = draw.bytes(int(draw.integers(1, 40)))
        else:
            spoilt[place : place + 4] = struct.pack("<i", int(draw.integers(-3, 100)))
    return bytes(spoilt)


def mutate_and_open(small, tmp_path, count, seed):
    """Outcomes of `count` mutations, two at a time, and the seconds that the slowest took."""
    space = EmbeddingSpace("old", None, 8, False)

    def outcome(number):
        draw = np.random.default_rng([seed, number])
        original = small / f"{SMALL_KINDS[number % len(SMALL_KINDS)]}.faiss"
        content = original.read_bytes()
        spoilt = mutated(content, draw)
        path, began = tmp_path / f"{number}.faiss", time.monotonic()
        path.write_bytes(spoilt)
        try:
            source, ids, vectors = read(path)
            assert vectors.shape == (len(source), source.dim)
            assert len(ids) == len(vectors)
            result = "read"
        except (ValueError, OSError) as error:
            line = str(error)
            assert str(path) in line
            assert "\n" not in line
            assert line.isprintable()
            crashed, late = "crashed on it" in line, "had not read" in line
            result = "crash" if crashed else "time" if late else type(error).__name__
        card = GalleryCard(space, 40, {}, {path.name: sha256_of(original)})
        card.write(path)
        if spoilt != content:
            with pytest.raises(DamagedStore, match="does not match the digest"):
                open_source(str(path))
        card_path(path).unlink()
        path.unlink()
        return result, time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, range(count)))
    return Counter(result for result, _ in outcomes), max(seconds for _, seconds in outcomes)


def test_mutated_indexes_are_one_line_or_readable(small, tmp_path):
    counts, slowest = mutate_and_open(small, tmp_path, 64, seed=1)
    assert counts["DamagedStore"] >= 20
    assert slowest < 60


@pytest.mark.slow
def test_two_thousand_mutated_indexes_are_one_line_or_readable(small, tmp_path):
    count = int(os.environ.get("MUTATIONS", "2000"))
    counts, slowest = mutate_and_open(small, tmp_path, count, seed=2)
    print(dict(counts), f"slowest {slowest:.1f} s")
    assert counts["read"] >= count // 10
    assert counts["DamagedStore"] >= count // 4


def test_an_intact_index_with_a_card_is_read_and_keeps_its_provenance(small, tmp_path):
    path = tmp_path / "old.faiss"
    path.write_bytes((small / "IVF2,PQ2x2.faiss").read_bytes())
    space = EmbeddingSpace("old", None, 8, False)
    GalleryCard(space, 40, {"from": "somewhere"}, {path.name: sha256_of(path)}).write(path)
    source = decoded(path)
    assert source.space == space
    expected = {"from": "somewhere", "index": "IVF2,PQ2x2", "codec": "PQ2x2", "exact": False}
    assert source.provenance == expected
