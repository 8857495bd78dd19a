"""Galleries rewritten into the new model's space, in place of or beside a search through a map."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pytest
from planted import command, environment, open_store, plant, run, space, write_store
from planted_hubs import HELD, IDS, corrected_map, plant_hubs
from torch import nn

from compat import migrate
from compat.migration.bridged import BridgedGallery
from compat.migration.run import migrate_gallery
from compat.migration.verify import verify_migration
from compat.neighbors import unit_rows
from compat.options import Direction
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.linear import LinearMap
from stores.convert import ConvertOptions, convert
from stores.galleries import digest, open_source
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

OLD, NEW = space("old", 8), space("new", 12)


def turned(direction: Direction = "old-to-new", seed=0):
    """A map that turns the old space into twelve dimensions, or back."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))[0][:8]
    if direction == "old-to-new":
        return Transformer("procrustes", direction, OLD, NEW, LinearMap.from_arrays(turn, np.zeros(12)))
    return Transformer("procrustes", direction, NEW, OLD, LinearMap.from_arrays(turn.T, np.zeros(8)))


def contents(path):
    """Every byte of a store, or of a file and those beside it."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture
def gallery(tmp_path):
    world = plant(identities=50, samples=4, old_dim=8, new_dim=12)
    ids = [f"é/{row}" for row in range(200)]
    extra = {"split": ["a", "b"] * 100}
    write_store(tmp_path / "old", world.old * 20, ids=ids, labels=world.labels, extra=extra)
    return tmp_path


@pytest.mark.parametrize("source", ["old", "old.faiss", "old.parquet", "old.npy"])
@pytest.mark.parametrize("target", ["new", "new.faiss", "new.parquet", "new.npy"])
def test_every_kind_of_gallery_becomes_every_other(gallery, source, target):
    before = EmbeddingStore.open(gallery / "old")
    if source != "old":
        convert(ConvertOptions(str(gallery / "old"), str(gallery / source)))
    kept = contents(gallery / source)
    done = []
    result = migrate_gallery(
        str(gallery / source), turned(), str(gallery / target), batch_rows=64, on_rows=lambda *rows: done.append(rows)
    )
    assert (result.rows, result.rows_before, result.check.rows, result.check.sampled) == (200, 0, 200, 200)
    assert done == [(64, 200), (128, 200), (192, 200), (200, 200)]
    assert contents(gallery / source) == kept
    written = open_source(str(gallery / target))
    assert written.space == NEW
    batch = next(written.scan(200))
    assert batch.items.equals(before.items)
    expected = turned().transform(before.rows(0, 200))
    np.testing.assert_allclose(batch.vectors, expected, rtol=1e-5, atol=1e-6)
    assert written.provenance == {
        "migrated_from": str(gallery / source),
        "source_rows": 200,
        "source_digest": digest(str(gallery / source)),
        "source_space": OLD.to_dict(),
        "transformer": {"family": "procrustes", "digest": turned().digest()},
    }


def test_new_queries_find_their_items_in_the_migrated_index_with_plain_faiss(gallery):
    migrate_gallery(str(gallery / "old"), turned(), f"faiss:{gallery / 'index'}")
    store = EmbeddingStore.open(gallery / "old")
    queries = turned().transform(store.rows(0, 200))
    index = faiss.read_index(str(gallery / "index"))
    _, rows = index.search(unit_rows(queries), 1)
    assert rows[:, 0].tolist() == list(range(200))


def test_a_source_that_cannot_tell_its_space_is_refused(tmp_path):
    np.save(tmp_path / "bare.npy", np.eye(8, dtype=np.float32))
    with pytest.raises(ValueError, match=r"bare.npy does not tell which model made its vectors; make a store of it"):
        migrate_gallery(str(tmp_path / "bare.npy"), turned(), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_run_again_it_says_done_and_writes_nothing(gallery):
    migrate_gallery(str(gallery / "old"), turned(), str(gallery / "new"))
    times = {file: file.stat().st_mtime_ns for file in (gallery / "new").rglob("*")}
    again = migrate_gallery(str(gallery / "old"), turned(), str(gallery / "new"))
    assert again.rows_before == again.rows == 200
    assert "200 vectors (200 of them from an earlier run) migrated to" in str(again)
    assert "checked: 200 ids in order, 200 vectors recomputed, lowest cosine 1.000000" in str(again)
    assert {file: file.stat().st_mtime_ns for file in (gallery / "new").rglob("*")} == times


def test_what_does_not_fit_is_refused_and_nothing_is_written(gallery):
    old, target = str(gallery / "old"), str(gallery / "new")
    EmbeddingStore.create(gallery / "empty", OLD).close()
    stranger = replace(turned(), source=space("third", 8))
    for source, transformer, error, message in [
        (old, turned("new-to-old"), WrongSpace, r"direction is new-to-old: it maps queries .*needs no migration"),
        (old, stranger, WrongSpace, r"the transformer's source is third \(8-D\), the vectors given are in old"),
        (str(gallery / "empty"), turned(), ValueError, "empty is empty; there is nothing to migrate"),
        (str(gallery / "nowhere"), turned(), FileNotFoundError, "no embedding store at"),
        ("mystery:x", turned(), ValueError, "unknown kind of gallery 'mystery'"),
    ]:
        with pytest.raises(error, match=message):
            migrate_gallery(source, transformer, target)
        assert not (gallery / "new").exists()
    with pytest.raises(ValueError, match="the old gallery is never overwritten, name another"):
        migrate_gallery(old, turned(), f"zarr:{old}")
    with pytest.raises(FileExistsError, match="is no copy or migration; name another target"):
        migrate_gallery(old, turned(), str(write_store(gallery / "taken", np.ones((2, 12)), name="new")))
    migrate_gallery(old, turned(), target)
    with pytest.raises(FileExistsError, match=r"another origin \(transformer differ\)"):
        migrate_gallery(old, turned(seed=1), target)


def test_a_copy_that_does_not_match_is_found_out(gallery):
    source = open_source(str(gallery / "old"))
    store = EmbeddingStore.open(gallery / "old")
    vectors, items = turned().transform(store.rows(0, 200)), store.items

    def target(name, vectors, items):
        with EmbeddingStore.create(gallery / name, NEW) as made:
            made.append(items, vectors)
            made.commit()
        return open_source(str(gallery / name))

    lowest = verify_migration(source, turned(), target("right", vectors, items)).lowest_cosine
    assert lowest is not None
    assert lowest > 0.999999
    assert verify_migration(source, turned(), target("longer", 3 * vectors, items), sample=10).sampled == 10
    one_off = vectors.copy()
    one_off[137] += 0.02
    swapped = items[[*range(100), 101, 100, *range(102, 200)]]
    for name, changed, rows, message in [
        ("one", one_off, items, "a recomputed vector has cosine 0.99"),
        ("swapped", vectors, swapped, "the ids of rows 0 to 200 differ from the source's"),
        ("short", vectors[:-1], items[:-1], "has 199 rows, its source 200"),
    ]:
        with pytest.raises(ValueError, match=message):
            verify_migration(source, turned(), target(name, changed, rows))


class Planted:
    """A gallery in memory, which nothing keeps from holding what no engine takes."""

    def __init__(self, made_of, ids, vectors):
        self.provenance = {}
        self.space, self.dim, self.batch = made_of, made_of.dim, Batch(pl.DataFrame({"item_id": ids}), vectors)

    def __len__(self):
        return len(self.batch.vectors)

    def scan(self, size, *, start=0):
        for first in range(start, len(self), size):
            yield Batch(self.batch.items[first : first + size], self.batch.vectors[first : first + size])


@pytest.mark.parametrize("any_order", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_what_is_no_number_does_not_pass(any_order, similarity):
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    ids = [f"i{row}" for row in range(20)]
    made_of = replace(NEW, similarity=similarity)
    transformer = replace(turned(), target=made_of)
    written = transformer.serve_gallery(vectors)
    order = np.arange(20)[::-1] if any_order else np.arange(20)
    source = Planted(OLD, ids, vectors)
    verify_migration(
        source, transformer, Planted(made_of, [ids[i] for i in order], written[order]), any_order=any_order
    )
    written[7, 3] = np.nan
    spoiled = Planted(made_of, [ids[i] for i in order], written[order])
    with pytest.raises(ValueError, match=r"a recomputed vector .* nan "):
        verify_migration(source, transformer, spoiled, any_order=any_order)


class Recorder(nn.Module):
    """The identity, which keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.seen: list[float] = []

    def forward(self, vectors):
        self.seen += vectors[:, 0].tolist()
        return vectors


def test_the_sample_that_is_recomputed_is_spread_evenly_over_all_rows(tmp_path):
    rows = np.repeat(np.arange(1, 10_001, dtype=np.float32)[:, None], 8, axis=1)
    write_store(tmp_path / "old", rows, ids=range(10_000), chunk_rows=4096)
    source = open_source(str(tmp_path / "old"))
    recorder = Recorder()
    check = verify_migration(source, Transformer("identity", "old-to-new", OLD, OLD, recorder), source, sample=700)
    assert recorder.seen == list(range(1, 10_001, 14))
    assert (check.rows, check.sampled) == (10_000, 715)


@pytest.mark.parametrize("target", ["new", pytest.param("new.faiss", marks=pytest.mark.slow)])
def test_killed_on_its_way_it_ends_as_if_never_interrupted(tmp_path, target):
    generator = np.random.default_rng(0)
    rows = 60_000
    write_store(tmp_path / "old", generator.normal(size=(rows, 8)).astype(np.float32), ids=range(rows), chunk_rows=4096)
    turned().save(tmp_path / "t")
    words = ("--transformer", tmp_path / "t", "--source", tmp_path / "old", "--batch-rows", 128)
    path = tmp_path / "killed" / target
    partial = path if target == "new" else path.with_name(f".{path.name}.partial")
    with subprocess.Popen(command("compat.migrate", *words, "--target", path), env=environment()) as process:
        deadline = time.monotonic() + 60
        while committed(partial) < 128 * 16 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    left = committed(partial)
    assert 0 < left < rows
    with pytest.raises((ValueError, FileNotFoundError), match="unfinished"):
        open_source(str(path))
    resumed = run("compat.migrate", *words, "--target", path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{rows} vectors ({left} of them from an earlier run)" in resumed.stdout
    migrate_gallery(str(tmp_path / "old"), turned(), str(tmp_path / "whole" / target), batch_rows=128)
    assert contents(path) == contents(tmp_path / "whole" / target)


def committed(path: Path) -> int:
    return len(EmbeddingStore.open(path)) if (path / "store.json").is_file() else 0


def test_a_bridged_gallery_finds_the_right_items_through_a_map_and_after_migration(tmp_path):
    # The new model is the old one turned, so both ways must find what the old model finds for itself.
    world = plant(identities=60, samples=1, old_dim=8, new_dim=8)
    ids = [f"item {row}" for row in range(60)]
    old = open_store(tmp_path / "old", world.old, ids=ids)
    queries = turned().transform(world.old)
    bridged = BridgedGallery(old, turned("new-to-old"))
    assert bridged.query_space == NEW
    migrate_gallery(str(old.path), turned(), str(tmp_path / "new"))
    migrated = BridgedGallery(EmbeddingStore.open(tmp_path / "new"))
    assert migrated.query_space == NEW
    cosines = unit_rows(world.old) @ unit_rows(world.old).T
    expected = [[ids[i] for i in np.argsort(-row)[:3]] for row in cosines]
    for searched in (bridged, migrated):
        found = searched.search(queries, k=3, space=NEW)
        assert found.item_ids == expected
        np.testing.assert_allclose(found.scores, -np.sort(-cosines, axis=1)[:, :3], atol=1e-5)
    assert [len(row) for row in bridged.search(queries[:2], k=99, space=NEW).item_ids] == [60, 60]


def test_a_bridged_gallery_refuses_the_wrong_space(tmp_path):
    gallery = open_store(tmp_path / "old", np.ones((3, 8)))
    with pytest.raises(WrongSpace, match=r"direction is old-to-new .*expected new-to-old"):
        BridgedGallery(gallery, turned())
    with pytest.raises(WrongSpace, match="the transformer's target is old"):
        BridgedGallery(open_store(tmp_path / "other", np.ones((3, 8)), name="other"), turned("new-to-old"))
    bridged = BridgedGallery(gallery, turned("new-to-old"))
    with pytest.raises(WrongSpace, match=r"the queries are in old \(8-D\), expected new \(12-D\); map them first"):
        bridged.search(np.ones((1, 8)), space=OLD)
    with pytest.raises(ValueError, match=r"shape \[1, 8\], expected \[n, 12\]"):
        bridged.search(np.ones((1, 8)), space=NEW)
    with pytest.raises(ValueError, match=r"queries are \[1, 12\], expected \[q, 8\]"):
        BridgedGallery(gallery).search(np.ones((1, 12)), space=OLD)
    EmbeddingStore.create(tmp_path / "empty", EmbeddingSpace("old", None, 8, False)).close()
    with pytest.raises(ValueError, match="needs a gallery"):
        BridgedGallery(EmbeddingStore.open(tmp_path / "empty")).search(np.ones((1, 8)), space=OLD)


def test_integer_ids_stay_integers(tmp_path):
    write_store(tmp_path / "old", np.eye(8), ids=range(100, 108))
    migrate_gallery(str(tmp_path / "old"), turned(), str(tmp_path / "new.faiss"))
    assert next(open_source(str(tmp_path / "new.faiss")).scan(8)).items["item_id"].dtype == pl.Int64
    found = BridgedGallery(EmbeddingStore.open(tmp_path / "old"), turned("new-to-old")).search(
        turned().transform(np.eye(8)), k=1, space=NEW
    )
    assert found.item_ids == [[row] for row in range(100, 108)]


def test_a_space_of_unit_vectors_gets_unit_vectors(tmp_path):
    unit = EmbeddingSpace("unit", None, 12, True)
    write_store(tmp_path / "old", np.random.default_rng(0).normal(size=(20, 8)))
    migrate_gallery(str(tmp_path / "old"), replace(turned(), target=unit), str(tmp_path / "new"))
    migrated = EmbeddingStore.open(tmp_path / "new")
    assert migrated.space == unit
    np.testing.assert_allclose(np.linalg.norm(migrated.rows(0, 20), axis=1), 1, atol=1e-6)


def test_a_store_that_was_exchanged_is_followed_where_that_can_be_and_refused_elsewhere(tmp_path):
    write_store(tmp_path / "old", np.eye(8))
    for target in ("new", "new.npy"):
        migrate_gallery(str(tmp_path / "old"), turned(), str(tmp_path / target))
    shutil.rmtree(tmp_path / "old")
    write_store(tmp_path / "old", np.eye(8)[::-1])
    result = migrate_gallery(str(tmp_path / "old"), turned(), str(tmp_path / "new"))
    assert result.changes is not None
    assert (result.changes.updated, result.changes.count) == (8, 8)
    with pytest.raises(ValueError, match=r"8 updated, 0 removed\), and .*new.npy is a file, which takes no changes"):
        migrate_gallery(str(tmp_path / "old"), turned(), str(tmp_path / "new.npy"))
    shutil.rmtree(tmp_path / "new.migration")
    shutil.rmtree(tmp_path / "old")
    write_store(tmp_path / "old", np.eye(8)[:7])  # with no state left the two are compared
    result = migrate_gallery(str(tmp_path / "old"), turned(), str(tmp_path / "new"))
    assert result.changes is not None
    assert (result.changes.updated, result.changes.removed, result.changes.count) == (7, 1, 8)


def test_a_file_that_changed_is_not_gone_on_with(tmp_path):
    write_store(tmp_path / "store", np.eye(8))
    convert(ConvertOptions(str(tmp_path / "store"), str(tmp_path / "old.npy")))
    migrate_gallery(str(tmp_path / "old.npy"), turned(), str(tmp_path / "new"))
    for entry in tmp_path.glob("old.npy*"):
        entry.unlink()
    shutil.rmtree(tmp_path / "store")
    write_store(tmp_path / "store", np.eye(8)[::-1])
    convert(ConvertOptions(str(tmp_path / "store"), str(tmp_path / "old.npy")))
    with pytest.raises(FileExistsError, match=r"another origin \(source_digest differ\)"):
        migrate_gallery(str(tmp_path / "old.npy"), turned(), str(tmp_path / "new"))


@pytest.fixture
def hubs(tmp_path):
    """A gallery with hubs, and the two worlds' vectors."""
    world = plant_hubs()
    ids, labels = [IDS[row] for row in HELD], world.labels[HELD]
    write_store(tmp_path / "old", world.old[HELD] * 20, ids=ids, labels=labels)
    return tmp_path, world


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
@pytest.mark.parametrize("target", ["new", "new.faiss", "new.parquet", "new.npy"])
def test_a_correction_is_written_as_one_dimension_more(hubs, direction, target):
    folder, world = hubs
    transformer = corrected_map(world, direction)
    kept = contents(folder / "old")
    result = migrate_gallery(str(folder / "old"), transformer, str(folder / target), batch_rows=64)
    assert contents(folder / "old") == kept
    assert (result.check.rows, result.check.sampled, result.check.lowest_cosine) == (len(HELD), len(HELD), None)
    assert "vectors recomputed, largest difference " in str(result)
    assert str(result).endswith("scaled to unit length, with a 1 appended")
    written = open_source(str(folder / target))
    assert written.space == transformer.served_space
    batch = next(written.scan(len(HELD)))
    assert batch.items.equals(EmbeddingStore.open(folder / "old").items)
    expected = transformer.serve_gallery(world.old[HELD] * 20, [IDS[row] for row in HELD])
    np.testing.assert_allclose(batch.vectors, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(batch.vectors[:, :-1], axis=1), 1, atol=1e-5)
    mapped = "mapped by the transformer, " if direction == "new-to-old" else ""
    assert written.provenance == {
        "migrated_from": str(folder / "old"),
        "source_rows": len(HELD),
        "source_digest": digest(str(folder / "old")),
        "source_space": OLD.to_dict(),
        "transformer": {"family": "ridge", "digest": transformer.digest()},
        "search": {
            "query_space": NEW.to_dict(),
            "direction": direction,
            "queries": f"{mapped}scaled to unit length, with a 1 appended",
            "similarity": "inner_product",
        },
    }
    again = migrate_gallery(str(folder / "old"), transformer, str(folder / target), batch_rows=64)
    assert again.rows_before == len(HELD)


def test_without_its_correction_a_transformer_writes_plain_vectors(hubs):
    folder, world = hubs
    transformer = corrected_map(world, "old-to-new")
    plain = transformer.without_correction()
    migrate_gallery(str(folder / "old"), transformer, str(folder / "new"), correction=False)
    migrate_gallery(str(folder / "old"), plain, str(folder / "same"))
    new, same = EmbeddingStore.open(folder / "new"), EmbeddingStore.open(folder / "same")
    assert new.space == same.space == NEW
    np.testing.assert_array_equal(new.rows(0, len(HELD)), same.rows(0, len(HELD)))
    assert "search" not in new.provenance
    assert new.provenance["transformer"]["digest"] == transformer.digest()  # of the artefact that was given
    with pytest.raises(FileExistsError, match=r"already holds vectors of new \(12-D\), expected new\+hubness"):
        migrate_gallery(str(folder / "old"), transformer, str(folder / "new"))
    back = corrected_map(world, "new-to-old")
    for transformer, correction in ((back, False), (back.without_correction(), True)):
        with pytest.raises(WrongSpace, match=r"direction is new-to-old: it maps queries .*needs no migration"):
            migrate_gallery(str(folder / "old"), transformer, str(folder / "x"), correction=correction)
    write_store(folder / "third", world.old, name="third")
    with pytest.raises(WrongSpace, match=r"the transformer's target is old \(8-D\), .* in third"):
        migrate_gallery(str(folder / "third"), back, str(folder / "x"))
    assert not (folder / "x").exists()


def test_the_command_writes_the_correction_unless_told_not_to(hubs, capsys):
    folder, world = hubs
    transformer = corrected_map(world, "old-to-new")
    transformer.save(folder / "t")
    words = ["--transformer", str(folder / "t"), "--source", str(folder / "old")]
    for name, options, expected in [
        ("a", [], transformer.served_space),
        ("b", ["--correction", "yes"], transformer.served_space),
        ("c", ["--correction", "no"], NEW),
    ]:
        assert migrate.main([*words, "--target", str(folder / name), *options]) == 0
        assert EmbeddingStore.open(folder / name).space == expected
    assert migrate.main([*words, "--target", str(folder / "d"), "--correction", "perhaps"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("spoil", ["offset", "length", "row"])
def test_a_corrected_copy_that_does_not_match_is_found_out(hubs, spoil):
    folder, world = hubs
    transformer = corrected_map(world, "old-to-new")
    source, items = open_source(str(folder / "old")), EmbeddingStore.open(folder / "old").items
    vectors = transformer.serve_gallery(world.old[HELD] * 20, items["item_id"])

    def target(name, vectors):
        with EmbeddingStore.create(folder / name, transformer.served_space) as made:
            made.append(items, vectors)
            made.commit()
        return open_source(str(folder / name))

    right = verify_migration(source, transformer, target("right", vectors))
    assert right.largest_difference is not None
    assert right.largest_difference < 1e-5
    wrong = vectors.copy()
    if spoil == "offset":
        wrong[70, -1] += 1e-3
    elif spoil == "length":
        wrong[70] *= 1.001
    else:
        wrong[[70, 71]] = wrong[[71, 70]]
    with pytest.raises(ValueError, match=r"a recomputed vector differs by .* expected 0.0001 at most; migrate again"):
        verify_migration(source, transformer, target("wrong", wrong))
    with pytest.raises(ValueError, match="a recomputed vector differs by"):  # an item's own query was counted
        verify_migration(source, transformer, target("unknown", transformer.serve_gallery(world.old[HELD] * 20)))


@pytest.mark.parametrize("target", ["new", "new.faiss"])
def test_an_interrupted_corrected_migration_ends_as_if_never_interrupted(hubs, target):
    folder, world = hubs
    transformer = corrected_map(world, "old-to-new")

    def stop(done, rows):
        if done == 80:
            raise KeyboardInterrupt

    path = folder / "stopped" / target
    with pytest.raises(KeyboardInterrupt):
        migrate_gallery(str(folder / "old"), transformer, str(path), batch_rows=4, on_rows=stop)
    resumed = migrate_gallery(str(folder / "old"), transformer, str(path), batch_rows=4)
    assert resumed.rows_before == 64
    migrate_gallery(str(folder / "old"), transformer, str(folder / "whole" / target), batch_rows=4)
    assert contents(path) == contents(folder / "whole" / target)
