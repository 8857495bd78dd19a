"""Galleries in a PostgreSQL with odd names, few rights, pgvector elsewhere, and readers who do not wait."""

import contextlib
import subprocess
import sys
import time
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
from planted import environment
from real_postgres import postgres, schema
from test_galleries import ORIGIN, SPACE, assert_same, read, rows, written
from test_postgres_galleries import complaint, location

from stores.durable import StoreLocked
from stores.galleries import open_source, open_target, postgres_search, redact
from stores.galleries import postgres as engine
from stores.store import Batch

__all__ = ["postgres", "schema"]
NAMES = ["per%cent", "%s", "%(query)s", 'do"uble', "quo'te", "sp ace", "Groß", "x; DROP TABLE y", "{}", "back\\slash"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_schema_a_table_a_view_and_a_column_is_taken_as_it_is(postgres, name):
    quoted = '"' + name.replace('"', '""') + '"'
    postgres.execute(f"CREATE SCHEMA {quoted}")
    try:
        place = f"{quote(name, safe='')}.{quote(name, safe='')}"
        uri, view = postgres.uri(place), location(postgres.uri(f"{place}v"))
        expected = Batch(rows(0, 12).items.with_columns(pl.lit(7, pl.Int64).alias(name)), rows(0, 12).vectors)
        target = open_target(uri, SPACE, ORIGIN)
        target.write(expected)
        target.finish()
        target.close()
        engine.put(location(uri), Batch(expected.items[:2], expected.vectors[:2]))
        engine.serve(view, location(uri))
        assert_same(read(open_source(f"postgresql:{engine.served(view)}")), expected)
        found = postgres_search.search(view, expected.vectors[5:6], 1, "cosine")
        assert found.item_ids == [["5"]]
        assert engine.remove(location(uri), pl.Series(["5"])) == 1
        parts = location(postgres.uri(f"{place}p"))
        engine.begin_parts(parts, SPACE, ORIGIN, 12)
        engine.write_part(parts, 0, rows(0, 12))
        engine.finish_parts(parts)
        engine.discard(parts)
        others = postgres.uri(f"{place}o", id=quote(name, safe=""), vector=quote(f"v{name}", safe=""))
        vector = '"v' + name.replace('"', '""') + '"'
        postgres.execute(f'CREATE TABLE {quoted}.{quoted[:-1]}o" ({quoted} int PRIMARY KEY, {vector} vector(2))')
        postgres.execute(f"INSERT INTO {quoted}.{quoted[:-1]}o\" VALUES (1, '[1,2]')".replace("%", "%%"), [])
        assert read(open_source(others)).items["item_id"].to_list() == [1]
        assert postgres_search.search(location(others), np.ones((1, 2)), 1, "cosine").item_ids == [[1]]
        assert engine.remove(location(others), pl.Series([1])) == 1
    finally:
        postgres.execute(f"DROP SCHEMA {quoted} CASCADE")


def test_pgvector_may_be_in_a_schema_that_nothing_is_looked_for_in(postgres):
    postgres.execute("CREATE DATABASE elsewhere")
    postgres.execute("CREATE SCHEMA extensions", database="elsewhere")
    postgres.execute("CREATE EXTENSION vector SCHEMA extensions", database="elsewhere")
    try:
        uri = postgres.uri("g", database="elsewhere", index="hnsw")
        assert_same(read(written(uri, 30)), rows(0, 30))
        engine.put(location(uri), rows(30, 31))
        for similarity in ("cosine", "inner_product"):
            found = postgres_search.search(location(uri), rows(5, 6).vectors, 31, similarity)
            best = rows(0, 31).vectors @ rows(5, 6).vectors[0]
            if similarity == "cosine":
                best = best / np.linalg.norm(rows(0, 31).vectors, axis=1).clip(1e-9)
            assert found.item_ids[0][0] == str(int(best.argmax()))
        postgres.execute("CREATE TABLE loose (id int PRIMARY KEY, v extensions.vector)", database="elsewhere")
        postgres.execute("INSERT INTO loose VALUES (1, '[1,2]')", database="elsewhere")
        assert open_source(postgres.uri("loose", database="elsewhere")).dim == 2
    finally:
        postgres.execute("DROP DATABASE elsewhere")


def test_odd_ids_come_back_and_are_found(postgres, schema):
    ids = ["", "a'b", 'a"b', "line\nfeed", "\\N", "\\x41", "漢字🙂", " ", "NULL", "a,b", "{x}", "%s", "--"]
    uri = postgres.uri(f"{schema}.odd")
    target = open_target(uri, SPACE, ORIGIN)
    target.write(Batch(pl.DataFrame({"item_id": ids}), rows(0, len(ids)).vectors))
    target.finish()
    target.close()
    assert read(open_source(uri)).items["item_id"].to_list() == ids
    engine.put(location(uri), Batch(pl.DataFrame({"item_id": ids}), rows(1, len(ids) + 1).vectors))
    assert engine.remove(location(uri), pl.Series(["nobody", *ids, "a\0b"])) == len(ids)


def test_a_number_is_named_as_it_is_written_and_no_other_way(postgres, schema):
    postgres.execute(f"CREATE TABLE {schema}.numbers (id int PRIMARY KEY, v vector(2))")
    postgres.execute(f"INSERT INTO {schema}.numbers VALUES (7, '[1,2]'), (8, '[1,2]')")
    there = location(postgres.uri(f"{schema}.numbers"))
    assert engine.remove(there, pl.Series(["007", "+7", " 7", "7.0"])) == 0
    assert engine.remove(there, pl.Series(["7", "7"])) == 1


class TestSwitching:
    @pytest.fixture
    def view(self, postgres, schema):
        for name, stop in (("old", 5), ("new", 6)):
            written(postgres.uri(f"{schema}.{name}"), stop)
        view = location(postgres.uri(f"{schema}.live"))
        engine.serve(view, location(postgres.uri(f"{schema}.old")))
        return view

    @pytest.fixture
    def app(self, postgres):
        postgres.execute('CREATE ROLE "the app" LOGIN')
        yield "the app"
        postgres.execute('DROP OWNED BY "the app"')
        postgres.execute('DROP ROLE "the app"')

    def test_who_may_read_the_view_may_read_it_after_the_switch(self, view, app, postgres, schema):
        postgres.execute(f'GRANT SELECT ON {schema}.live TO "{app}" WITH GRANT OPTION')
        postgres.execute(f"GRANT SELECT, INSERT ON {schema}.live TO PUBLIC")
        before = self.rights(postgres, schema)
        engine.serve(view, location(postgres.uri(f"{schema}.new")))
        assert self.rights(postgres, schema) == before
        postgres.execute(f'GRANT USAGE ON SCHEMA {schema} TO "{app}"')
        uri = postgres.uri(f"{schema}.live", user=quote(app))
        with contextlib.closing(postgres.connect()) as connection:
            connection.execute(f'SET ROLE "{app}"'.encode())
            found = connection.execute(f"SELECT count(*) FROM {schema}.live".encode()).fetchone()
        assert found == (6,)
        assert "permission denied for table embedding_galleries; ask for the right" in complaint(open_source, uri)

    def rights(self, postgres, schema):
        return postgres.execute(
            "SELECT grantee::regrole::text, privilege_type, is_grantable FROM pg_class, aclexplode(relacl) "
            "WHERE oid = %s::regclass ORDER BY 1, 2",
            [f"{schema}.live"],
        )

    @pytest.mark.usefixtures("view")
    @pytest.mark.parametrize(
        ("definition", "replaced"),
        [
            ("SELECT * FROM {}.old", True),
            ('SELECT "row", item_id, label, embedding FROM {}.old AS o', False),
            ("SELECT * FROM {}.old WHERE label = 'person 1'", False),
            ("SELECT row, item_id, label FROM {}.old", False),
            ("SELECT row, item_id, label, embedding + embedding AS embedding FROM {}.old", False),
            ("SELECT o.* FROM {0}.old o JOIN {0}.new n USING (item_id)", False),
        ],
    )
    def test_a_view_that_somebody_made_is_replaced_only_where_nothing_of_it_is_lost(
        self, postgres, schema, definition, replaced
    ):
        postgres.execute(f"CREATE VIEW {schema}.theirs AS {definition.format(schema)}")
        query = "SELECT pg_get_viewdef(%s::regclass)"
        before = postgres.execute(query, [f"{schema}.theirs"])
        new = location(postgres.uri(f"{schema}.new"))
        if replaced:
            engine.serve("theirs", new)
            assert len(open_source(postgres.uri(f"{schema}.theirs"))) == 6
            return
        assert "is a view of somebody's own, which is never replaced" in complaint(engine.serve, "theirs", new)
        assert postgres.execute(query, [f"{schema}.theirs"]) == before

    def test_a_reader_who_does_not_end_is_not_waited_for_for_ever(self, view, postgres, schema, monkeypatch):
        monkeypatch.setattr("stores.galleries.postgres_live._SWITCH_SECONDS", 1)
        with contextlib.closing(postgres.connect()) as reader:
            reader.execute("BEGIN")
            reader.execute(f"SELECT count(*) FROM {schema}.live".encode())
            started = time.monotonic()
            with pytest.raises(StoreLocked, match="in use by another process"):
                engine.serve(view, location(postgres.uri(f"{schema}.new")))
            assert time.monotonic() - started < 8
        assert engine.served(view) == location(postgres.uri(f"{schema}.old"))
        engine.serve(view, location(postgres.uri(f"{schema}.new")))
        assert engine.served(view) == location(postgres.uri(f"{schema}.new"))

    def test_readers_find_one_gallery_or_the_other_and_never_none(self, view, postgres, schema):
        program = (
            "import sys, psycopg\n"
            f"connection = psycopg.connect(host={str(postgres.folder)!r}, user='postgres', dbname='postgres', "
            "autocommit=True)\n"
            "print('begun', flush=True)\n"
            "found, reads = set(), 0\n"
            "while len(found) < 2 or reads < 400:\n"
            "    reads += 1\n"
            f"    found.add(connection.execute('SELECT count(*) FROM {schema}.live').fetchone()[0])\n"
            "print(sorted(found))\n"
        )
        reader = subprocess.Popen([sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE, text=True)
        assert reader.stdout
        assert reader.stdout.readline() == "begun\n"
        with reader:
            while reader.poll() is None:
                for name in ("new", "old"):
                    engine.serve(view, location(postgres.uri(f"{schema}.{name}")))
            assert reader.stdout.read() == "[5, 6]\n"


def test_a_finished_gallery_tells_the_rows_it_has_now(postgres, schema):
    uri = postgres.uri(f"{schema}.gallery")
    written(uri, 20)
    engine.remove(location(uri), pl.Series(["3", "4"]))
    target = open_target(uri, SPACE, ORIGIN)
    assert (target.finished, target.rows_committed) == (True, 18)
    target.close()


def test_no_sample_of_the_vectors_is_kept_in_the_catalogue(postgres, schema):
    written(postgres.uri(f"{schema}.gallery"), 50)
    postgres.execute(f"ANALYZE {schema}.gallery")
    found = postgres.execute("SELECT attname FROM pg_stats WHERE schemaname = %s", [schema])
    assert ("label",) in found
    assert ("embedding",) not in found


@pytest.mark.parametrize("uri", ["postgresql:u:hidden@host/db/t", "postgres:u:hidden@host/db/t"])
def test_a_password_in_a_misspelt_uri_is_not_shown(uri):
    assert "hidden" not in complaint(open_source, uri)
    assert "hidden" not in redact(uri)


def test_without_psycopg_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    uri = "postgresql://u@h/d/t"
    for work in (lambda: open_source(uri), lambda: open_target(uri, SPACE, ORIGIN), lambda: engine.served("//u@h/d/t")):
        with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[postgres\]'"):
            work()
