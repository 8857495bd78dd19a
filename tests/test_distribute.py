"""Migrations and extractions by many processes: the same bytes as by one, whoever is killed on the way."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from part_tasks import Work, fail
from planted import environment, open_store, space, write_store
from planted_hubs import IDS, corrected_map, plant_hubs
from real_postgres import postgres
from store_faults import bytes_by_name

import compat.extract
from compat.extract import ExtractOptions, extract
from compat.extraction import distribute
from compat.extraction.embedding import Embedder, Encoding
from compat.migration.copying import Pause, Paused
from compat.migration.distribute import copy_in_parts
from compat.transformers.artefact import Transformer
from compat.transformers.linear import LinearMap
from stores.durable import StoreLocked
from stores.galleries import GALLERIES, digest, locate, open_source, open_target
from stores.galleries.gallery import PartsEngine
from stores.galleries.zarr_parts import PARTS
from stores.galleries.zarr_store import begin_parts, hold_parts, parts_done
from stores.parts import run_parts
from stores.store import EmbeddingStore

__all__ = ["postgres"]

ROWS = 33_000
OLD, NEW = space("old", 4), space("new", 6)
PARTS_IN_ALL = 9


def turned() -> Transformer:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0][:4]
    return Transformer("procrustes", "old-to-new", OLD, NEW, LinearMap.from_arrays(turn, np.full(6, 0.25)))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A gallery of nine parts, `old`, and what one process makes of it, `alone`."""
    folder = tmp_path_factory.mktemp("distributed")
    vectors = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    write_store(folder / "old", vectors, labels=np.arange(ROWS) // 3, chunk_rows=4096)
    migrate(folder, "alone")
    return folder


def provenance(folder):
    return {"migrated_from": "old", "source_digest": digest(str(folder / "old"))}


def migrate(folder, name):
    """The whole gallery, by this process alone."""
    written = open_target(str(folder / name), NEW, provenance(folder))
    for batch in open_source(str(folder / "old")).scan(4096):
        written.write(batch._replace(vectors=turned().serve_gallery(batch.vectors, batch.items["item_id"])))
    written.finish()
    written.close()


def copy(folder, name, **how):
    return copy_in_parts(str(folder / "old"), turned(), str(name), provenance(folder), **how)


@pytest.fixture(scope="module")
def cluster():
    """Two workers of dask, processes of their own."""
    from distributed import LocalCluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dask about this machine
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as started:
            yield started


def pool_or_cluster(kind, request):
    return {"workers": 2} if kind == "pool" else {"scheduler": request.getfixturevalue("cluster").scheduler_address}


def test_many_processes_make_the_files_of_one(gallery, tmp_path, request):
    told = []
    how = pool_or_cluster("cluster", request)
    assert copy(gallery, tmp_path / "new", on_rows=lambda done, rows: told.append((done, rows)), **how) == 0
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert (len(told), told[-1]) == (PARTS_IN_ALL, (ROWS, ROWS))
    assert bytes_by_name(tmp_path / "new") == bytes_by_name(gallery / "alone")
    assert copy(gallery, tmp_path / "new", **how) == ROWS
    assert bytes_by_name(tmp_path / "new") == bytes_by_name(gallery / "alone")


@pytest.mark.parametrize("kind", ["pool", "cluster"])
def test_a_worker_that_is_killed_costs_nothing(gallery, tmp_path, kind, request):
    how = pool_or_cluster(kind, request)
    killed = []

    def kill_one(done, rows):
        if not killed:
            killed.append(worker_of(kind, request))
            os.kill(killed[0], signal.SIGKILL)

    copy(gallery, tmp_path / "new", on_rows=kill_one, **how)
    assert killed
    assert bytes_by_name(tmp_path / "new") == bytes_by_name(gallery / "alone")


def worker_of(kind, request):
    if kind == "pool":
        return multiprocessing.active_children()[0].pid
    nannies = request.getfixturevalue("cluster").workers.values()
    return next(nanny.pid for nanny in nannies if nanny.pid)


COORDINATOR = """
import os, signal, sys
from pathlib import Path
import test_distribute

def on_rows(done, rows):
    if kill and done > rows // 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    folder, target, kill, scheduler = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "kill", sys.argv[4]
    how = {"scheduler": scheduler} if scheduler else {"workers": 2}
    print(test_distribute.copy(folder, target, on_rows=on_rows, **how))
"""


@pytest.mark.parametrize("kind", [pytest.param("pool", marks=pytest.mark.slow), "cluster"])  # imports torch six times
def test_a_coordinator_that_is_killed_goes_on_with_what_is_done(gallery, tmp_path, kind, request):
    how = pool_or_cluster(kind, request)
    (tmp_path / "coordinator.py").write_text(COORDINATOR)
    words = [sys.executable, tmp_path / "coordinator.py", gallery, tmp_path / "new"]
    scheduler = str(how.get("scheduler", ""))
    paths = environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([*words, "kill", scheduler], env=paths, check=False)
    assert killed.returncode == -signal.SIGKILL
    records = {path.name: path.stat().st_ino for path in (tmp_path / "new" / PARTS).glob("[0-9]*.json")}
    assert len(records) >= 3
    assert not len(EmbeddingStore.open(tmp_path / "new"))
    again = subprocess.run([*words, "", scheduler], env=paths, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert int(again.stdout) >= 4096 * (len(records) - 1)
    assert bytes_by_name(tmp_path / "new") == bytes_by_name(gallery / "alone")


def test_what_is_done_is_not_done_again(gallery, tmp_path):
    """Paused after some parts, it leaves those alone when it goes on."""
    pause, target = Pause(), tmp_path / "new"
    with pytest.raises(Paused):
        copy(gallery, target, workers=1, pause=pause, on_rows=lambda done, _: done < 10_000 or pause.ask())
    done = {path: path.stat().st_ino for path in (target / PARTS).glob("[0-9]*.json")}
    assert 3 <= len(done) < PARTS_IN_ALL
    assert parts_done(str(target)) == {int(path.stem) for path in done}
    seen = []

    def look(counted, rows):
        seen.append({path: path.stat().st_ino for path in done if path.exists()})

    assert copy(gallery, target, workers=1, on_rows=look) >= 3 * 4096
    assert seen[0] == done
    assert len(seen) == PARTS_IN_ALL - len(done)
    assert bytes_by_name(target) == bytes_by_name(gallery / "alone")


def test_two_do_not_hand_out_the_same_parts(gallery, tmp_path):
    begin_parts(str(tmp_path / "new"), NEW, provenance(gallery), ROWS)
    with hold_parts(str(tmp_path / "new")), pytest.raises(StoreLocked):
        copy(gallery, tmp_path / "new", workers=1)


@pytest.mark.parametrize("name", ["new.npy", "new.parquet"])
def test_files_are_made_of_parts_too(gallery, tmp_path, name):
    migrate(gallery, tmp_path / name)
    (tmp_path / "parts").mkdir()
    target = tmp_path / "parts" / name
    pause = Pause()
    with pytest.raises(Paused):
        copy(gallery, target, workers=1, pause=pause, on_rows=lambda *_: pause.ask())
    assert not target.exists()
    assert copy(gallery, target, workers=1) >= 4096
    assert copy(gallery, target, workers=1) == ROWS
    assert {path.name for path in target.parent.iterdir()} == {
        path.name for path in tmp_path.iterdir() if path.is_file()
    }
    assert target.read_bytes() == (tmp_path / name).read_bytes()


def test_a_hubness_correction_goes_along(tmp_path):
    world = plant_hubs()
    transformer = corrected_map(world, "old-to-new")
    store = open_store(tmp_path / "old", world.old, ids=IDS)
    origin = {"source_digest": store.digest()}
    copy_in_parts(str(tmp_path / "old"), transformer, str(tmp_path / "new"), origin, workers=1)
    wanted = transformer.serve_gallery(store.rows(0, len(store)), store.items["item_id"])
    np.testing.assert_array_equal(EmbeddingStore.open(tmp_path / "new").rows(0, len(store)), wanted)


def test_a_table_of_postgresql_takes_parts(gallery, postgres):
    uri = postgres.uri("distributed")
    assert copy(gallery, uri, workers=1) == 0
    assert copy(gallery, uri, workers=1) == ROWS
    batches = zip(open_source(uri).scan(8192), open_source(str(gallery / "alone")).scan(8192), strict=True)
    for found, wanted in batches:
        assert found.items.equals(wanted.items)
        np.testing.assert_array_equal(found.vectors, wanted.vectors)
    location = locate(uri)[1]
    engine = GALLERIES["postgresql"]
    assert isinstance(engine, PartsEngine)
    with engine.hold_parts(location), pytest.raises(StoreLocked), engine.hold_parts(location):
        pass


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    write_store(tmp_path / "old", np.random.default_rng(0).normal(size=(9000, 4)).astype(np.float32))
    begun = provenance(tmp_path)

    def add(done, rows):
        if done == 4096:
            with EmbeddingStore.open(tmp_path / "old") as store:
                store.append(pl.DataFrame({"item_id": ["another"]}), np.ones((1, 4)))
                store.commit()

    with pytest.raises(ValueError, match=r"changed while it was copied.*migrate again"):
        copy_in_parts(str(tmp_path / "old"), turned(), str(tmp_path / "new"), begun, workers=1, on_rows=add)


def test_what_changed_before_the_parts_go_on_is_found_before_they_do(tmp_path, monkeypatch):
    from compat.migration import distribute
    from compat.migration.run import migrate_gallery

    write_store(tmp_path / "old", np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32))
    calls = []

    def die(*_, **__):
        calls.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(distribute, "run_parts", die)
    where = str(tmp_path / "old"), turned(), str(tmp_path / "new")
    with pytest.raises(KeyboardInterrupt):
        migrate_gallery(*where, workers=2)
    with EmbeddingStore.open(tmp_path / "old") as store:
        store.append(pl.DataFrame({"item_id": ["another"]}), np.ones((1, 4)))
        store.commit()
    with pytest.raises(ValueError, match=r"old changed while it was copied.*--step discard"):
        migrate_gallery(*where, workers=2)
    assert len(calls) == 1


def test_galleries_that_one_process_reads_or_writes(gallery, tmp_path):
    secret = "postgresql://me:s3cret@nowhere/db/table"
    with pytest.raises(ValueError, match=r"is read by one process only.*--workers 1") as refused:
        copy_in_parts(secret, turned(), str(tmp_path / "new"), {"source_digest": ""}, workers=2)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(ValueError, match=r"is written by one process only; use --workers 1"):
        copy(gallery, f"zarr+array:{tmp_path / 'new'}", workers=2)


def test_nothing_that_dask_shows_holds_a_secret(gallery, tmp_path, cluster, caplog):
    from distributed import Client

    address = "postgresql://me:s3cret@nowhere/db"
    work = Work(Path(address), secret=address)
    with pytest.raises(ValueError, match="part three"):
        list(run_parts(fail, work, range(6), scheduler=cluster.scheduler_address, name="migrate-part"))
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        logs = [str(client.get_worker_logs()), str(client.get_scheduler_logs()), str(client.story("migrate-part"))]
    assert "migrate-part" in logs[0]  # a part that failed is told of
    for shown in (*logs, caplog.text):
        assert not re.search("s3cret|postgresql", shown)


ENCODER = '''
import os
import signal
from pathlib import Path

import numpy as np
from backbones.encoders.encoder import Backbone


class Bytes(Backbone):
    """Vectors made of the first bytes of files. One file is deadly once, to any but the process that `armed` names."""

    name, fingerprint, dim, normalized, suffixes = "bytes", "ab" * 32, 4, False, frozenset({".txt"})

    def read(self, path):
        armed = Path(__file__).with_name("armed")
        if path.name == "30.txt" and armed.exists() and armed.read_text() != str(os.getpid()):
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        content = path.read_bytes()
        if not content:
            raise ValueError(f"{path} is empty")
        return content

    def embed(self, items):
        return np.array([list(item[:4]) for item in items], np.float32)


def encoder():
    return Bytes()
'''
BAD = (3, *range(16, 24), 50, 77)  # a whole range of them too
ITEMS = 80


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder with an encoder, texts of which some cannot be read, and the store that one process makes of them."""
    (tmp_path / "bytes_encoder.py").write_text(ENCODER)
    for number in range(ITEMS):
        path = tmp_path / "data" / f"p{number // 20}" / f"{number:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if number in BAD else f"{number:04d} is what I wrote")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    extract(asked("alone"))
    return tmp_path


def asked(out, **changes: Any):
    options: dict[str, Any] = {"max_bad": len(BAD), "batch_size": 8, "chunk_rows": 16} | changes
    return ExtractOptions(backbone="bytes_encoder:encoder", data=Path("data"), out=Path(out), **options)


def test_an_extraction_by_many_is_that_by_one_whoever_dies(texts, cluster):
    (texts / "armed").write_text(str(os.getpid()))
    result = extract(asked("many", scheduler=cluster.scheduler_address))
    assert not (texts / "armed").exists()
    assert (result.rows, len(result.skipped)) == (ITEMS - len(BAD), len(BAD))
    assert bytes_by_name(texts / "many") == bytes_by_name(texts / "alone")
    assert extract(asked("many", scheduler=cluster.scheduler_address)).rows_before == result.rows


def test_an_extraction_goes_on_with_the_ranges_that_are_done(texts, cluster, monkeypatch):
    with pytest.raises(ValueError, match="10 items are unreadable, --max-bad allows 9"):
        extract(asked("many", max_bad=9, scheduler=cluster.scheduler_address))
    done = {path: path.stat().st_ino for path in (texts / "many" / "pieces").glob("0*")}
    assert len(done) >= 7  # those before the tenth
    assert extract(asked("other", max_bad=11)).rows == ITEMS - len(BAD)  # one process alone, for its bytes
    ran = []
    embed_range = distribute.run_parts

    def watched(function, work, numbers, **how):
        ran.extend(work.piece(number) for number in numbers)
        return embed_range(function, work, numbers, **how)

    monkeypatch.setattr(distribute, "run_parts", watched)
    extract(asked("many", scheduler=cluster.scheduler_address))
    assert not {path.resolve() for path in done} & {path.resolve() for path in ran}
    assert bytes_by_name(texts / "many") == bytes_by_name(texts / "alone") == bytes_by_name(texts / "other")


def test_one_process_goes_on_where_many_were_stopped(texts, cluster, monkeypatch):
    monkeypatch.setattr(compat.extract, "SECONDS_PER_COMMIT", 0.0)
    with pytest.raises(ValueError, match="--max-bad allows 10"):
        extract(asked("many", max_bad=10, scheduler=cluster.scheduler_address))
    assert 0 < len(EmbeddingStore.open("many")) < ITEMS - len(BAD)
    assert extract(asked("many", workers=1)).rows_before
    assert bytes_by_name(texts / "many") == bytes_by_name(texts / "alone")


def test_workers_must_find_what_the_coordinator_found(texts):
    embedder = Embedder(encoding())
    work = distribute.RangesWork(
        encoding=encoding(),
        folder=str(texts),
        pieces=texts / "pieces",
        space=EmbeddingStore.open("alone").space,
        items_sha256=embedder.items.digest,
        inference={},
        start=0,
        stop=ITEMS,
        size=8,
    )
    for change, complaint in (
        ({"items_sha256": "another"}, "a worker finds other items at data"),
        ({"space": replace(work.space, fingerprint="cd" * 32)}, "a worker finds another network"),
        ({"inference": {"precision": "bf16"}}, "--precision fp32"),
    ):
        with pytest.raises(ValueError, match=complaint):
            distribute.embed_range(replace(work, **change), 0)
    (texts / "pieces").mkdir()
    assert distribute.embed_range(work, 0) == distribute.embed_range(work, 0) == (8, 7)
    assert distribute.embed_range(work, 2) == (8, 0)
    assert sorted(path.name for path in work.pieces.iterdir()) == [work.piece(number).name for number in (0, 2)]


def encoding():
    return Encoding(
        backbone="bytes_encoder:encoder",
        data=Path("data"),
        root=None,
        weights=None,
        flip_average=None,
        preprocessing={},
        precision="auto",
        engine="torch",
        views=1,
        view_seed=0,
        test_transform="none",
        adabn=None,
        adabn_images=1,
        max_bad=10,
        batch_size=8,
        readers=1,
    )
