"""Galleries that change while they are migrated: a real PostgreSQL, and stores."""

import numpy as np
import polars as pl
import pytest
from migrating import OLD, turned
from real_postgres import RealPostgres, postgres, schema  # noqa: F401 - fixtures

from compat.migration.run import Pause, migrate_gallery, verify_migrated
from compat.migration.state import state_folder
from compat.transformers.artefact import WrongSpace
from stores.galleries import open_source
from stores.store import EmbeddingStore


def literal(vector):
    return "[" + ",".join(repr(float(x)) for x in np.asarray(vector, np.float32)) + "]"


class People:
    """A table of somebody's own: other column names, a key that is text, columns beside."""

    def __init__(self, server: RealPostgres, name: str, rows: int = 300) -> None:
        self.server, self.schema = server, name
        self.vectors = dict(zip([f"p{row:04d}" for row in range(rows)], random_rows(rows), strict=True))
        server.execute(f"CREATE TABLE {name}.people (person text PRIMARY KEY, name text, face vector(8) NOT NULL)")
        server.execute(
            f"INSERT INTO {name}.people SELECT person, 'x', face::vector "
            "FROM unnest(%s::text[], %s::text[]) AS t (person, face)",
            [list(self.vectors), [literal(vector) for vector in self.vectors.values()]],
        )

    @property
    def uri(self) -> str:
        return self.server.uri(f"{self.schema}.people", id="person", vector="face")

    def insert(self, person, vector):
        self.vectors[person] = vector
        self.server.execute(
            f"INSERT INTO {self.schema}.people VALUES (%s, 'x', %s) ON CONFLICT (person) DO UPDATE SET face = "
            "excluded.face",
            [person, literal(vector)],
        )

    def delete(self, person):
        del self.vectors[person]
        self.server.execute(f"DELETE FROM {self.schema}.people WHERE person = %s", [person])


def random_rows(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)


def held(uri):
    """Id to vector of a gallery, whatever its order; every id once."""
    found = {}
    for batch in open_source(uri).scan(100):
        for item_id, vector in zip(batch.items["item_id"], batch.vectors, strict=True):
            assert item_id not in found
            found[item_id] = np.array(vector)
    return found


def assert_migrated(uri, vectors):
    found = held(uri)
    assert found.keys() == vectors.keys()
    ids = list(vectors)
    wanted = turned().transform(np.stack([vectors[each] for each in ids]))
    np.testing.assert_allclose(np.stack([found[each] for each in ids]), wanted, atol=1e-5)


@pytest.fixture
def people(postgres, schema):  # noqa: F811
    return People(postgres, schema)


def change(people, number=0):
    """One row more, one other, one less; ids before, among and behind those there are."""
    people.insert(f"a{number}", random_rows(1, 100 + number)[0])
    people.insert(f"z{number}", random_rows(1, 200 + number)[0])
    people.insert(f"p{150 + number:04d}", random_rows(1, 300 + number)[0])
    people.delete(f"p{number:04d}")


@pytest.mark.parametrize("target", ["postgresql", "npy", "parquet"])
def test_what_changes_during_the_run_is_brought_over(people, tmp_path, target):
    uri = str(tmp_path / f"new.{target}")
    if target == "postgresql":
        uri = people.server.uri(f"{people.schema}.people_new")
    done = []

    def disturb(rows, _):
        if not done:
            change(people, 0)
            change(people, 1)
        done.append(rows)

    result = migrate_gallery(
        people.uri,
        turned(),
        uri,
        source_space="old",
        batch_rows=32,
        on_rows=disturb,
        state=tmp_path / "state",
    )
    assert_migrated(uri, people.vectors)
    assert result.changes is not None
    assert (result.changes.inserted, result.changes.updated, result.changes.removed) == (4, 2, 2)
    assert result.changes.settled
    assert result.changes.passes == 2
    assert "4 inserted, 2 updated and 2 removed meanwhile, brought over in 2 passes" in str(result)
    assert result.check.rows == len(people.vectors) == 302


def test_a_paused_run_goes_on_though_rows_moved(people, tmp_path):
    uri = people.server.uri(f"{people.schema}.people_new")
    pause = Pause()

    def stop(rows, _):
        if rows >= 100:
            pause.ask()

    settings = {"source_space": "old", "batch_rows": 20, "state": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        migrate_gallery(people.uri, turned(), uri, on_rows=stop, pause=pause, **settings)
    for number in range(5):
        change(people, number)
    people.delete("p0090")
    result = migrate_gallery(people.uri, turned(), uri, **settings)
    assert 100 <= result.rows_before < 200
    assert_migrated(uri, people.vectors)


def test_called_again_it_brings_over_what_changed_since(people, tmp_path):
    uri = people.server.uri(f"{people.schema}.people_new")
    settings = {"source_space": "old", "state": tmp_path / "state"}
    migrate_gallery(people.uri, turned(), uri, **settings)
    change(people)
    with pytest.raises(ValueError, match=r"1 ids are missing|2 ids are missing"):
        verify_migrated(people.uri, turned(), uri, **settings)
    again = migrate_gallery(people.uri, turned(), uri, **settings)
    assert again.changes is not None
    assert again.changes.count == 4
    assert_migrated(uri, people.vectors)
    assert verify_migrated(people.uri, turned(), uri, **settings).check.rows == 301


def test_changes_that_were_begun_and_interrupted_are_not_lost(people, tmp_path, monkeypatch):
    """A row that is put just before the end and deleted from the source before the next run must go again."""
    from stores.galleries import postgres as engine

    uri = people.server.uri(f"{people.schema}.people_new")
    settings = {"source_space": "old", "state": tmp_path / "state"}
    migrate_gallery(people.uri, turned(), uri, **settings)
    people.insert("short-lived", random_rows(1, 9)[0])
    put = engine.put

    def put_and_die(location, batch):
        put(location, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "put", put_and_die)
    with pytest.raises(KeyboardInterrupt):
        migrate_gallery(people.uri, turned(), uri, **settings)
    assert "short-lived" in held(uri)
    monkeypatch.undo()
    people.delete("short-lived")
    migrate_gallery(people.uri, turned(), uri, **settings)
    assert_migrated(uri, people.vectors)


def test_a_changed_name_or_label_is_a_change(people, tmp_path):
    uri = people.server.uri(f"{people.schema}.people_new")
    settings = {"source_space": "old", "state": tmp_path / "state"}
    migrate_gallery(people.uri, turned(), uri, **settings)
    people.server.execute(f"UPDATE {people.schema}.people SET name = 'another' WHERE person = 'p0007'")
    people.server.execute(f"UPDATE {people.schema}.people SET name = NULL WHERE person = 'p0009'")
    changes = migrate_gallery(people.uri, turned(), uri, **settings).changes
    assert changes is not None
    assert (changes.inserted, changes.updated, changes.removed) == (0, 2, 0)
    found = pl.concat([batch.items for batch in open_source(uri).scan(100)])
    assert dict(found.select("item_id", "name").iter_rows()) == {
        person: {"p0007": "another", "p0009": None}.get(person, "x") for person in people.vectors
    }


@pytest.mark.parametrize("target", ["postgresql", "halfvec", "lance", "qdrant", "zarr"])
def test_without_a_record_of_the_rows_source_and_target_are_compared(people, tmp_path, target):
    """A row of another vector or name leaves the ids as they were, and no sample need hit it."""
    uri = people.server.uri(f"{people.schema}.people_new", **({"type": "halfvec"} if target == "halfvec" else {}))
    if target in ("lance", "qdrant", "zarr"):
        uri = f"{target}:{tmp_path}/place/new"
    migrate_gallery(people.uri, turned(), uri, source_space="old", state=tmp_path / "state")
    same = migrate_gallery(people.uri, turned(), uri, source_space="old", state=tmp_path / "gone")
    assert same.changes is not None
    assert same.changes.count == 0
    people.insert("p0123", random_rows(1, 5)[0])
    people.insert("late", random_rows(1, 6)[0])
    people.delete("p0007")
    people.server.execute(f"UPDATE {people.schema}.people SET name = 'other' WHERE person = 'p0009'")
    changes = migrate_gallery(people.uri, turned(), uri, source_space="old", state=tmp_path / "another").changes
    assert changes is not None
    assert (changes.inserted, changes.updated, changes.removed, changes.settled) == (1, 2, 1, True)
    found = pl.concat([batch.items for batch in open_source(uri).scan(100)])
    assert dict(found.select("item_id", "name").iter_rows())["p0009"] == "other"
    if target != "halfvec":
        assert_migrated(uri, people.vectors)
    assert sorted(path.name for path in (tmp_path / "another").iterdir()) == [".lock", "sorted.records", "state.json"]


def test_a_file_that_is_final_takes_no_changes_and_says_which_there_are(people, tmp_path):
    target = str(tmp_path / "new.npy")
    migrate_gallery(people.uri, turned(), target, source_space="old", state=tmp_path / "state")
    change(people)
    with pytest.raises(ValueError, match=r"2 rows inserted, 1 updated, 1 removed\), and .* is a file, which takes"):
        migrate_gallery(people.uri, turned(), target, source_space="old", state=tmp_path / "another")


def test_a_store_that_changed_after_the_end_is_followed_too(tmp_path):
    with EmbeddingStore.create(tmp_path / "old", OLD) as store:
        store.append(pl.DataFrame({"item_id": [f"i{row}" for row in range(50)]}), random_rows(50))
        store.commit()
    source, target = str(tmp_path / "old"), str(tmp_path / "new")
    migrate_gallery(source, turned(), target, state=tmp_path / "state")
    with EmbeddingStore.open(source) as store:
        store.put(pl.DataFrame({"item_id": ["i3", "late"]}), random_rows(2, 9))
        store.forget(["i4"])
    changes = migrate_gallery(source, turned(), target, state=tmp_path / "another").changes
    assert changes is not None
    assert (changes.inserted, changes.updated, changes.removed) == (1, 1, 1)
    assert_migrated(target, held(source))


def test_changes_of_an_interrupted_run_are_in_the_total(people, tmp_path, monkeypatch):
    from stores.galleries import postgres as engine

    uri = people.server.uri(f"{people.schema}.people_new")
    settings = {"source_space": "old", "state": tmp_path / "state", "batch_rows": 32}
    migrate_gallery(people.uri, turned(), uri, **settings)
    change(people, 0)
    migrate_gallery(people.uri, turned(), uri, **settings)
    change(people, 1)
    put = engine.put

    def put_and_die(*args):
        put(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "put", put_and_die)
    with pytest.raises(KeyboardInterrupt):
        migrate_gallery(people.uri, turned(), uri, **settings)
    monkeypatch.undo()
    people.delete("p0002")
    result = migrate_gallery(people.uri, turned(), uri, **settings)
    total = result.changes_in_all
    assert total is not None
    assert (total.inserted, total.updated, total.removed) == (4, 2, 3)  # as each was done, once
    again = str(migrate_gallery(people.uri, turned(), uri, **settings))
    assert "301 vectors (301 of them from an earlier run)" in again
    assert "(since it began 4 inserted, 2 updated and 3 removed)" in again


def test_a_file_takes_no_changes_once_it_is_whole(people, tmp_path):
    settings = {"source_space": "old", "state": tmp_path / "state"}
    target = str(tmp_path / "new.npy")
    migrate_gallery(people.uri, turned(), target, **settings)
    migrate_gallery(people.uri, turned(), target, **settings)
    change(people)
    with pytest.raises(ValueError, match=r"2 rows inserted, 1 updated, 1 removed\), and .* is a file, which takes"):
        migrate_gallery(people.uri, turned(), target, **settings)


def test_a_source_that_never_rests_ends_with_a_word_about_it(people, tmp_path, monkeypatch):
    from compat.migration import changes

    uri = people.server.uri(f"{people.schema}.people_new")
    record, number = changes.record_rows, iter(range(100))
    begun = []

    def restless(*args):
        if not begun:
            people.insert("first", random_rows(1)[0])
            begun.append(True)
        record(*args)
        people.insert(f"new{next(number)}", random_rows(1)[0])

    monkeypatch.setattr(changes, "record_rows", restless)
    with pytest.raises(ValueError, match=r"it is still changing: run again \(.* 1 ids are missing and 0 are not the"):
        migrate_gallery(people.uri, turned(), uri, source_space="old", state=tmp_path / "s", most_passes=3)
    monkeypatch.undo()
    assert len(held(uri)) == 300 + 3
    result = migrate_gallery(people.uri, turned(), uri, source_space="old", state=tmp_path / "s")
    assert result.changes is not None
    assert (result.changes.inserted, result.changes.settled) == (1, True)
    assert_migrated(uri, people.vectors)


def test_a_bare_table_needs_its_space_by_name_and_the_right_one(people, tmp_path):
    with pytest.raises(ValueError, match=r"people.* does not tell which model made its vectors; .*--source-space"):
        migrate_gallery(people.uri, turned(), str(tmp_path / "new.npy"))
    with pytest.raises(WrongSpace, match=r"the transformer's gallery is in old \(8-D\), the name given is 'other'"):
        migrate_gallery(people.uri, turned(), str(tmp_path / "new.npy"), source_space="other")
    people.server.execute(f"CREATE TABLE {people.schema}.wide (person text PRIMARY KEY, face vector(9) NOT NULL)")
    people.server.execute(f"INSERT INTO {people.schema}.wide VALUES ('a', %s)", [literal(np.ones(9))])
    wide = people.server.uri(f"{people.schema}.wide", id="person", vector="face")
    with pytest.raises(
        ValueError, match=r"wide.* holds vectors of 9 dimensions, expected 8 as old .*take a transformer"
    ):
        migrate_gallery(wide, turned(), str(tmp_path / "new.npy"), source_space="old")
    assert list(tmp_path.iterdir()) == []


def test_no_password_is_kept_anywhere(people, tmp_path):
    people.server.execute(f"GRANT USAGE, CREATE ON SCHEMA {people.schema} TO guarded")
    people.server.execute(f"GRANT SELECT ON {people.schema}.people TO guarded")
    source = people.uri.replace("postgres@", "guarded:right@")
    target = people.server.uri(f"{people.schema}.people_new").replace("postgres@", "guarded:right@")
    result = migrate_gallery(source, turned(), target, source_space="old", state=tmp_path / "state")
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert files
    for told in (
        *files.values(),
        str(result).encode(),
        repr(result).encode(),
        repr(open_source(target).provenance).encode(),
    ):
        assert b"right" not in told
    folder = state_folder(source, target, tmp_path / "state")
    assert b"right" not in str(folder.require()).encode()
    assert "guarded" in folder.source


def test_ids_of_records_survive_integers(postgres, schema, tmp_path):  # noqa: F811
    postgres.execute(f"CREATE TABLE {schema}.numbered (id bigint PRIMARY KEY, v vector(8) NOT NULL)")
    for row, vector in enumerate(random_rows(20)):
        postgres.execute(f"INSERT INTO {schema}.numbered VALUES (%s, %s)", [row, literal(vector)])
    source = postgres.uri(f"{schema}.numbered", id="id", vector="v")
    target = postgres.uri(f"{schema}.numbered_new")
    migrate_gallery(source, turned(), target, source_space="old", state=tmp_path / "s")
    postgres.execute(f"DELETE FROM {schema}.numbered WHERE id < 3")
    result = migrate_gallery(source, turned(), target, source_space="old", state=tmp_path / "s")
    assert result.changes is not None
    assert result.changes.removed == 3
    assert sorted(held(target)) == list(range(3, 20))
    assert next(open_source(target).scan(1)).items["item_id"].dtype == pl.Int64
