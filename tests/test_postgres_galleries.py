"""Galleries in a real PostgreSQL: the contract of all engines, and what is particular to a database."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest
from planted import environment
from real_postgres import PLANTED, planted_rows, postgres, schema
from test_galleries import ORIGIN, SPACE, Contract, assert_same, read, rows, written

from stores.chunks import DamagedStore
from stores.durable import StoreLocked
from stores.galleries import GALLERIES, digest, locate, open_source, open_target, redact
from stores.galleries import postgres as engine
from stores.galleries.gallery import notes_of
from stores.galleries.postgres_location import parse_location, public_uri
from stores.space import EmbeddingSpace
from stores.store import Batch

__all__ = ["postgres", "schema"]
PASSWORD = "pa55-w0rd"


def location(uri):
    return locate(uri)[1]


def complaint(call, *arguments):
    with pytest.raises((ValueError, OSError)) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert PASSWORD not in message
    return message


class TestContract(Contract):
    name = "gallery"

    @pytest.fixture(autouse=True)
    def _server(self, postgres, schema):
        self.server, self.schema = postgres, schema

    @pytest.fixture
    def uri(self, postgres, schema):
        return postgres.uri(f"{schema}.gallery")

    def table(self):
        return self.server.execute(f"SELECT * FROM {self.schema}.gallery ORDER BY row")

    def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(self, uri, tmp_path):
        for commits in (0, 1, 3):
            target = open_target(uri, SPACE, ORIGIN)
            assert not target.finished
            for start in range(target.rows_committed, target.rows_committed + commits * 7, 7):
                target.write(rows(start, start + 7))
                target.commit()
            target.write(rows(target.rows_committed, target.rows_committed + 3))
            target.close()
            with pytest.raises(ValueError, match="unfinished"):
                open_source(uri)
        again = open_target(uri, SPACE, ORIGIN)
        assert again.rows_committed == 28
        again.close()
        written(uri, 50)
        there = self.table()
        engine.discard(location(uri))
        written(uri, 50)
        assert self.table() == there
        assert len(there) == 50
        assert not list(tmp_path.iterdir())

    def test_refuses_what_is_nobodys(self, uri, tmp_path):
        self.server.execute(f"CREATE TABLE {self.schema}.gallery (id text)")
        with pytest.raises(FileExistsError, match="already exists"):
            open_target(uri, SPACE, ORIGIN)
        assert self.server.execute(f"SELECT * FROM {self.schema}.gallery") == []
        assert not list(tmp_path.iterdir())

    def test_damage_is_reported(self, uri, tmp_path):
        written(uri, 20)
        for statement, message in [
            ("ALTER TABLE {}.gallery ALTER embedding TYPE vector(4) USING subvector(embedding, 1, 4)", "columns"),
            ("ALTER TABLE {}.gallery DROP COLUMN item_id", "columns"),
            ("DROP TABLE {}.gallery", "missing"),
            ("UPDATE {}.embedding_galleries SET space = '[]'", "altered"),
            ("UPDATE {}.embedding_galleries SET format_version = 2", "version 2"),
        ]:
            self.server.execute(statement.format(self.schema))
            with pytest.raises(DamagedStore, match=message) as caught:
                open_source(uri)
            assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_ids_that_occur_again_after_a_commit_are_found_at_the_end(self, uri):
        target = open_target(uri, SPACE, ORIGIN)
        target.write(rows(0, 4))
        target.commit()
        target.write(rows(2, 6))
        with pytest.raises(ValueError, match=r"must be unique.*'2' occurs again"):
            target.finish()
        target.close()
        with pytest.raises(ValueError, match="unfinished"):
            open_source(uri)


class TestHalfvec:
    @pytest.fixture
    def uri(self, postgres, schema):
        return postgres.uri(f"{schema}.halves", type="halfvec")

    def test_keeps_three_digits_and_says_so(self, uri):
        source = written(uri, 50)
        assert notes_of(source) == ("halfvec keeps three digits of each number",)
        found = read(source)
        assert found.items.equals(rows(0, 50).items)
        np.testing.assert_array_equal(found.vectors, rows(0, 50).vectors.astype(np.float16).astype(np.float32))

    @pytest.mark.parametrize(("value", "message"), [(70_000.0, "more than 65504"), (1e-9, "too short")])
    def test_refuses_what_no_half_can_hold_before_anything_is_written(self, uri, postgres, schema, value, message):
        target = open_target(uri, SPACE, ORIGIN)
        with pytest.raises(ValueError, match=message):
            target.write(Batch(rows(0, 4).items, np.full((4, 5), value, np.float32)))
        target.close()
        assert postgres.execute("SELECT to_regclass(%s)", [f"{schema}.halves"]) == [(None,)]

    def test_a_table_of_another_type_is_not_gone_on_with(self, uri):
        written(uri, 5)
        with pytest.raises(FileExistsError, match="with halfvec of 5, expected vector of 5"):
            open_target(uri.replace("&type=halfvec", ""), SPACE, ORIGIN)


class TestIndexes:
    @pytest.mark.parametrize("index", ["hnsw", "ivfflat"])
    @pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
    @pytest.mark.parametrize("kind", ["vector", "halfvec"])
    def test_are_built_for_the_similarity_of_the_space(self, postgres, schema, index, similarity, kind):
        space = EmbeddingSpace("resnet", "f00d", 5, False, similarity)
        written(postgres.uri(f"{schema}.indexed", type=kind, index=index), 50, space=space)
        made = [text for (text,) in postgres.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = %s", [schema])]
        operators = f"{kind}_{'ip' if similarity == 'inner_product' else 'cosine'}_ops"
        assert sum(f"USING {index} (embedding {operators})" in text for text in made) == 1
        assert sum("UNIQUE" in text and "(item_id)" in text for text in made) == 1

    @pytest.mark.parametrize(
        ("dim", "kind", "remedy"),
        [(2001, "vector", "type=halfvec"), (4001, "vector", "index=none"), (4001, "halfvec", "index=none")],
    )
    def test_are_refused_where_vectors_are_too_long(self, postgres, schema, dim, kind, remedy):
        space = EmbeddingSpace("wide", None, dim, False)
        uri = postgres.uri(f"{schema}.wide", type=kind, index="hnsw")
        assert remedy in complaint(open_target, uri, space, ORIGIN)
        assert postgres.execute("SELECT 1 FROM pg_class WHERE relnamespace = %s::regnamespace", [schema]) == []

    def test_long_vectors_are_kept_without_one(self, postgres, schema):
        space = EmbeddingSpace("wide", None, 2001, False)
        found = read(written(postgres.uri(f"{schema}.wide"), 9, space=space))
        np.testing.assert_array_equal(found.vectors, rows(0, 9, dim=2001).vectors)


class TestOthersTables:
    @pytest.fixture
    def table(self, postgres, schema):
        postgres.execute(
            f"CREATE TABLE {schema}.people (id uuid PRIMARY KEY, face vector(3), small int2, big int8, yes boolean, "
            "half float4, whole float8, born date, seen timestamp, updated_at timestamptz NOT NULL, raw bytea, "
            "price numeric, tags text[], notes jsonb, name varchar(20))"
        )
        postgres.execute(
            f"INSERT INTO {schema}.people SELECT ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, "
            "ARRAY[i, i + 0.5, -i]::vector, i, i * 10000000000, i % 2 = 0, i / 4.0, i / 8.0, date '1969-12-30' + i, "
            "timestamp '2024-01-01 00:00:00.000001' + i * interval '1 day', "
            "timestamptz '2024-01-01 12:00:00+02' + (40 - i) * interval '1 hour', "
            "decode(lpad(to_hex(i), 2, '0'), 'hex'), "
            "i / 3.0, ARRAY['a', i::text], '{\"k\": [1]}', CASE WHEN i % 3 = 0 THEN NULL ELSE 'Zoë ' || i END "
            "FROM generate_series(0, 40) AS i"
        )
        return f"{schema}.people"

    def test_columns_become_item_columns(self, postgres, table):
        source = open_source(postgres.uri(table))
        assert (len(source), source.dim, source.space, source.provenance) == (41, 3, None, {})
        items, vectors = read(source)
        assert items.columns == [
            *("item_id", "small", "big", "yes", "half", "whole", "born", "seen", "updated_at", "raw", "price", "tags"),
            *("notes", "name"),
        ]
        for i in (0, 1, 40):
            assert items.row(i) == (
                *(f"00000000-0000-0000-0000-{i:012d}", i, i * 10**10, i % 2 == 0, i / 4, i / 8),
                date.fromordinal(date(1969, 12, 30).toordinal() + i),
                datetime(2024, 1, 1, microsecond=1) + (datetime(2024, 1, 2) - datetime(2024, 1, 1)) * i,
                datetime(2024, 1, 1, 10, tzinfo=UTC) + (datetime(2024, 1, 2) - datetime(2024, 1, 1)) / 24 * (40 - i),
                bytes([i]),
                postgres.execute("SELECT (%s / 3.0)::text", [i])[0][0],
                f"{{a,{i}}}",
                '{"k": [1]}',
                None if i % 3 == 0 else f"Zoë {i}",
            )
        np.testing.assert_array_equal(vectors, [[i, i + 0.5, -i] for i in range(41)])

    def test_item_columns_come_back_from_a_table_of_ours(self, postgres, table, schema):
        source = open_source(postgres.uri(table))
        space = EmbeddingSpace("resnet", None, 3, False)
        target = open_target(postgres.uri(f"{schema}.copy"), space, {})
        for batch in source.scan(7):
            target.write(batch)
        target.finish()
        target.close()
        assert_same(read(open_source(postgres.uri(f"{schema}.copy"))), read(source))

    def test_are_read_in_the_order_of_the_id_or_the_one_named(self, postgres, table):
        uri = postgres.uri(table, order="updated_at")
        source = engine.open_source(location(uri))
        for start in (0, 5, 40):
            found = read(source, 7, start)
            assert found.items["small"].to_list() == list(range(40 - start, -1, -1))
        assert read(open_source(postgres.uri(table)), 7, 30).items["small"].to_list() == list(range(30, 41))

    def test_one_that_is_not_there_is_told_with_those_that_are(self, postgres, table, schema):
        postgres.execute(f"CREATE TABLE {schema}.no_vectors (id text)")
        with pytest.raises(FileNotFoundError, match=rf"such table, found {table}; name one of them"):
            open_source(postgres.uri(f"{schema}.nosuch"))
        for number in range(5):
            postgres.execute(f"CREATE TABLE {schema}.a{number} (id text, v halfvec(2))")
        some = ", ".join(f"{schema}.a{number}" for number in range(5))
        with pytest.raises(FileNotFoundError, match=rf"such table, found {some} and 1 more; name one of them"):
            digest(postgres.uri(f"{schema}.nosuch"))

    def test_what_is_unclear_is_refused(self, postgres, table, schema):
        uri = postgres.uri
        assert "no column 'who'" in complaint(open_source, uri(table, id="who"))
        assert "'small' of" in complaint(open_source, uri(table, vector="small"))
        postgres.execute(f"ALTER TABLE {table} ADD old vector")
        assert "face, old; say which" in complaint(open_source, uri(table))
        assert open_source(uri(table, vector="face")).dim == 3
        assert "does not tell the dimension" in complaint(open_source, uri(table, vector="old"))
        postgres.execute(f"UPDATE {table} SET face = NULL WHERE small = 9")
        message = complaint(read, open_source(uri(table, vector="face")))
        assert "000000000009' has no vector of 3" in message
        postgres.execute(f"CREATE TABLE {schema}.plain (a int, b int)")
        assert "name the one of the ids" in complaint(open_source, uri(f"{schema}.plain"))
        assert "no column of the type" in complaint(open_source, uri(f"{schema}.plain", id="a"))
        postgres.execute(f"CREATE TABLE {schema}.loose (item_id text, v vector(2))")
        postgres.execute(f"INSERT INTO {schema}.loose VALUES ('a', '[1,2]'), (NULL, '[3,4]')")
        assert "without a value in 'item_id'" in complaint(open_source, uri(f"{schema}.loose"))

    def test_a_scan_sees_one_moment(self, postgres, schema):
        postgres.execute(f"CREATE TABLE {schema}.busy (id int PRIMARY KEY, v vector(2))")
        postgres.execute(f"INSERT INTO {schema}.busy SELECT i, '[1,1]' FROM generate_series(0, 29999) AS i")
        source = open_source(postgres.uri(f"{schema}.busy"))
        scan = source.scan(1000)
        next(scan)
        postgres.execute(f"UPDATE {schema}.busy SET v = '[2,2]'")
        postgres.execute(f"DELETE FROM {schema}.busy WHERE id > 15000")
        rest = list(scan)
        assert sum(len(batch.items) for batch in rest) == 29_000
        assert all((batch.vectors == 1).all() for batch in rest)
        assert sum(len(batch.items) for batch in source.scan(7777)) == 15_001
        scan = source.scan(10)
        next(scan)
        del scan  # lets go of its connection: psycopg would warn


class TestLive:
    @pytest.fixture
    def uri(self, postgres, schema):
        uri = postgres.uri(f"{schema}.gallery")
        written(uri, 20)
        return uri

    def test_put_replaces_and_adds_in_one_step(self, uri):
        changed = Batch(rows(18, 25).items, rows(18, 25).vectors + 1)
        engine.put(location(uri), changed)
        found = read(open_source(uri))
        assert found.items["item_id"].to_list() == [str(i) for i in range(25)]
        np.testing.assert_array_equal(found.vectors[:18], rows(0, 18).vectors)
        np.testing.assert_array_equal(found.vectors[18:], changed.vectors)
        assert complaint(engine.put, location(uri), Batch(changed.items[:2], changed.vectors[:2] * np.nan))
        assert complaint(engine.put, location(uri), Batch(changed.items.drop("label"), changed.vectors))
        assert read(open_source(uri)).items.equals(found.items)

    def test_remove_and_positions_that_follow(self, uri):
        assert engine.remove(location(uri), pl.Series(["3", "7", "nobody", "19"])) == 3
        source = open_source(uri)
        left = [i for i in range(19) if i not in (3, 7)]
        for start in (0, 4, 16, 17):
            assert read(source, 5, start).items["item_id"].to_list() == [str(i) for i in left[start:]]
        engine.put(location(uri), rows(7, 8))
        assert read(open_source(uri)).items["item_id"].to_list() == [*map(str, left), "7"]
        assert engine.remove(location(uri), pl.Series([], dtype=pl.String)) == 0

    def test_remove_from_tables_of_others(self, postgres, schema):
        postgres.execute(f"CREATE TABLE {schema}.ints (id int PRIMARY KEY, v vector(2))")
        postgres.execute(f"INSERT INTO {schema}.ints SELECT i, '[1,1]' FROM generate_series(0, 9) AS i")
        there = location(postgres.uri(f"{schema}.ints"))
        assert engine.remove(there, pl.Series(["3", "4", "x", "77"])) == 2
        assert engine.remove(there, pl.Series([3, 5])) == 1
        assert "not written by this toolkit" in complaint(engine.put, there, rows(0, 1))

    def test_a_view_leads_to_one_gallery_after_the_other(self, uri, postgres, schema):
        other = postgres.uri(f"{schema}.other")
        target = open_target(other, EmbeddingSpace("vit", None, 7, False), ORIGIN)
        target.write(Batch(rows(0, 5).items.drop("label"), np.ones((5, 7), np.float32)))
        target.finish()
        target.close()
        view = postgres.uri(f"{schema}.faces")
        assert engine.served(location(view)) is None
        engine.serve(location(view), location(uri))
        assert engine.served(location(view)) == location(uri)
        assert open_source(view).space == SPACE
        assert_same(read(open_source(view), 6, 3), rows(3, 20))
        assert digest(view) == digest(uri)
        engine.serve("faces", location(other))  # other columns, another dimension
        assert open_source(view).dim == 7
        assert f"the view {schema}.faces stands on" in complaint(engine.discard, location(other))
        engine.serve(location(view), str(engine.served(location(view))))
        engine.serve(location(view), location(uri))
        engine.discard(location(other))
        engine.discard(location(other))
        assert postgres.execute(f"SELECT gallery FROM {schema}.embedding_galleries") == [("gallery",)]
        with pytest.raises(FileNotFoundError):
            open_source(other)

    def test_a_table_is_never_replaced_by_a_view(self, uri, postgres, schema):
        postgres.execute(f"CREATE TABLE {schema}.faces (a int)")
        assert "is a table, which is never replaced" in complaint(engine.serve, "faces", location(uri))
        postgres.execute(f"INSERT INTO {schema}.faces VALUES (1)")
        engine.serve("current", location(uri))
        postgres.execute(f"CREATE VIEW {schema}.above AS SELECT * FROM {schema}.current")
        assert "other views stand on" in complaint(engine.serve, "current", location(uri))
        assert "name the table that it shows" in complaint(engine.discard, location(postgres.uri(f"{schema}.current")))
        assert len(open_source(postgres.uri(f"{schema}.current"))) == 20

    def test_a_digest_names_the_table_whatever_its_rows(self, uri):
        before = digest(uri)
        engine.remove(location(uri), pl.Series(["1"]))
        assert digest(uri) == before
        engine.discard(location(uri))
        written(uri, 20)
        assert digest(uri) != before


class TestParts:
    def test_parts_in_any_order_and_twice_are_the_rows_of_one_writer(self, postgres, schema, monkeypatch):
        monkeypatch.setattr("stores.galleries.postgres_parts._PART_BYTES", 0)
        monkeypatch.setattr("stores.galleries.postgres_parts._LEAST_ROWS", 8)
        place = location(postgres.uri(f"{schema}.many", index="hnsw"))
        assert engine.begin_parts(place, SPACE, ORIGIN, 50) == 8
        for number in (3, 0, 6, 3, 2):
            engine.write_part(place, number, rows(number * 8, min(number * 8 + 8, 50)))
        assert engine.begin_parts(place, SPACE, ORIGIN, 50) == 8
        assert engine.parts_done(place) == {0, 2, 3, 6}
        assert "3 parts of" in complaint(engine.finish_parts, place)
        assert "unfinished" in complaint(open_source, f"postgresql:{place}")
        assert "by several workers" in complaint(open_target, f"postgresql:{place}", SPACE, ORIGIN)
        assert "expected 40" in complaint(engine.begin_parts, place, SPACE, ORIGIN, 40)
        assert "got 7 rows, expected 8" in complaint(engine.write_part, place, 1, rows(8, 15))
        assert "expected 0" in complaint(engine.write_part, place, 7, rows(56, 57))
        assert "columns" in complaint(
            engine.write_part, place, 1, Batch(rows(8, 16).items.drop("label"), rows(8, 16)[1])
        )
        for number in (1, 4, 5):
            engine.write_part(place, number, rows(number * 8, number * 8 + 8))
        engine.finish_parts(place)
        engine.finish_parts(place)
        engine.write_part(place, 1, rows(8, 16))
        assert engine.begin_parts(place, SPACE, ORIGIN, 50) == 8
        assert engine.parts_done(place) == set(range(7))
        assert_same(read(open_source(f"postgresql:{place}")), rows(0, 50))

    def test_ids_that_occur_in_two_parts_are_refused(self, postgres, schema, monkeypatch):
        monkeypatch.setattr("stores.galleries.postgres_parts._PART_BYTES", 0)
        monkeypatch.setattr("stores.galleries.postgres_parts._LEAST_ROWS", 8)
        place = location(postgres.uri(f"{schema}.many"))
        engine.begin_parts(place, SPACE, ORIGIN, 16)
        for number in (0, 1):
            engine.write_part(place, number, rows(3, 11))
        assert "must be unique" in complaint(engine.finish_parts, place)

    def test_a_killed_part_is_undone(self, postgres, schema):
        uri = postgres.uri(f"{schema}.many")
        engine.begin_parts(location(uri), SPACE, ORIGIN, 30)
        program = (
            "import sys, time\nsys.path.insert(0, 'tests')\n"
            "from stores.galleries import locate, postgres, postgres_stream, postgres_parts\n"
            "from test_galleries import rows\n"
            "def stuck(connection, statement, encoded):\n"
            "    connection.pgconn.send_query(statement.as_bytes(connection))\n"
            "    connection.pgconn.flush()\n"
            "    time.sleep(0.2)\n"
            "    connection.pgconn.consume_input(); connection.pgconn.get_result()\n"
            "    connection.pgconn.put_copy_data(postgres_stream.HEADER + bytes(encoded[: len(encoded) // 2]))\n"
            "    connection.pgconn.flush()\n"
            "    print('half', flush=True)\n"
            "    time.sleep(60)\n"
            "postgres_parts.copy_in = stuck\n"
            "postgres.write_part(locate(sys.argv[1])[1], 0, rows(0, 30))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program, uri], env=environment(), stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"half\n"
        process.kill()
        process.communicate()
        assert engine.parts_done(location(uri)) == set()
        engine.write_part(location(uri), 0, rows(0, 30))
        engine.finish_parts(location(uri))
        assert_same(read(open_source(uri)), rows(0, 30))


WRITER = """
import sys
sys.path.insert(0, "tests")
from stores.galleries import open_target
from real_postgres import PLANTED, planted_rows
target = open_target(sys.argv[1], PLANTED, {"map": "a1b2"})
print("begun", target.rows_committed, flush=True)
for start in range(target.rows_committed, 20_000, 500):
    target.write(planted_rows(start, start + 500))
    if start % 2000 == 1500:
        target.commit()
        print("committed", flush=True)
target.finish()
target.close()
print("finished", flush=True)
"""


def write_until(uri, commits, then):
    """Run the writer; after so many commits and a moment more do `then` to it. Its rows at the start, and its code."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, uri],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    begun = int(process.stdout.readline().split()[1])
    for _ in range(commits):
        process.stdout.readline()
    time.sleep(0.01)
    then(process)
    _, errors = process.communicate(timeout=60)
    return begun, process.returncode, errors


class TestFaults:
    def test_a_writer_killed_at_many_moments_ends_with_the_rows_of_an_undisturbed_one(self, postgres, schema):
        uri = postgres.uri(f"{schema}.killed")
        begun = []
        for commits in (0, 1, 2):
            found, code, _ = write_until(uri, commits, lambda process: os.kill(process.pid, signal.SIGKILL))
            assert code == -signal.SIGKILL
            begun.append(found)
        found, code, errors = write_until(uri, 0, lambda _: None)
        assert code == 0, errors
        assert 0 < found < 20_000
        assert found % 2000 == 0
        self.assert_undisturbed(postgres, schema, "killed")

    def test_a_server_killed_in_the_middle_ends_with_the_rows_of_an_undisturbed_one(self, postgres, schema):
        uri = postgres.uri(f"{schema}.crashed")
        _, code, errors = write_until(uri, 2, lambda _: postgres.kill())
        postgres.start()
        assert code == 1
        last = errors.strip().split("\n")[-1]
        assert last.startswith("ConnectionError: the connection to postgresql://")
        assert "run again to go on" in last
        found, code, errors = write_until(uri, 0, lambda _: None)
        assert code == 0, errors
        assert found >= 4000
        self.assert_undisturbed(postgres, schema, "crashed")

    def assert_undisturbed(self, postgres, schema, table):
        target = open_target(postgres.uri(f"{schema}.undisturbed"), PLANTED, {"map": "a1b2"})
        target.write(planted_rows(0, 20_000))
        target.finish()
        target.close()
        query = f"(TABLE {schema}.{table} EXCEPT TABLE {schema}.undisturbed)"
        other = f"(TABLE {schema}.undisturbed EXCEPT TABLE {schema}.{table})"
        assert postgres.execute(f"{query} UNION ALL {other}") == []
        assert_same(read(open_source(postgres.uri(f"{schema}.{table}")), 999), planted_rows(0, 20_000))

    def test_a_text_that_no_database_keeps_is_told_in_one_line(self, postgres, schema):
        target = open_target(postgres.uri(f"{schema}.nul"), SPACE, {})
        target.write(Batch(pl.DataFrame({"item_id": ["a\0b"]}), np.ones((1, 5), np.float32)))
        assert "0x00" in complaint(target.commit)
        target.close()


class TestConnections:
    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("postgresql://guarded:{}@/postgres/t?host={host}", "refuses .* PGPASSWORD"),
            ("postgresql://guarded@/postgres/t?host={host}&password={}", "refuses .* PGPASSWORD"),
            ("postgres://someone:{}@/nowhere/t?host={host}", "role .* does not exist|no database|cannot be reached"),
            ("postgresql://postgres:{}@/nowhere/t?host={host}", "no database 'nowhere'"),
            ("postgresql://postgres:{}@/postgres/nothing?host={host}", "no gallery at .*no such table.*; "),
            ("postgresql://postgres:{}@/postgres/no.thing?host={host}", "no schema 'no'"),
            ("postgresql://postgres:{}@localhost:1/postgres/t", "no server answers"),
            ("postgresql://postgres:{}@/postgres/t?host=/nowhere", "no server answers"),
            ("postgresql://postgres:{}@no-such-host.invalid/postgres/t", "no host|no server"),
            ("postgresql://postgres:{}/@/postgres/t?host={host}", "as %XX"),
            ("postgresql://postgres:{}@x@/postgres/t?host={host}", "as %XX"),
            ("postgresql://postgres:{}?@/postgres/t?host={host}", "as %XX"),
            ("postgresql://postgres:%zz{}@/postgres/t", "%3A"),
            ("postgresql://postgres:{}@/postgres?host={host}", "names no table"),
            ("postgresql://postgres:{}@/postgres/t?host={host}&nonsense=1", "nonsense"),
            ("postgresql://postgres:{}@/postgres/t?host={host}&type=float", "vector, halfvec"),
            ("postgresql://postgres:{}@/postgres/t?host={host}&index=flat", "none, hnsw, ivfflat"),
            ("postgresql:postgres:{}@/postgres/t", "begins with two slashes"),
            ("mysql://postgres:{}@/postgres/t", "unknown kind of gallery 'mysql'"),
        ],
    )
    def test_a_mistake_is_one_line_without_the_password(self, postgres, uri, message):
        uri = uri.replace("{host}", str(postgres.folder)).replace("{}", PASSWORD)
        with pytest.raises((ValueError, OSError), match=message) as caught:
            open_source(uri)
        told = f"{caught.value} {caught.value!r} {caught.value.__cause__} {redact(uri)}"
        assert PASSWORD not in told
        assert "\n" not in str(caught.value)

    def test_the_right_password_opens_and_is_never_shown(self, postgres, schema, monkeypatch):
        postgres.execute(f"GRANT ALL ON SCHEMA {schema} TO guarded")
        public = f"postgresql://guarded@/postgres/{schema}.mine?host={postgres.folder}"
        uri = public.replace("guarded", "guarded:right")
        source = written(uri, 9)
        target = open_target(uri, SPACE, ORIGIN)
        shown = f"{source!r} {target!r} {parse_location(location(uri))!r} {redact(uri)}"
        target.close()
        assert "right" not in shown
        assert redact(uri) == public
        monkeypatch.setenv("PGPASSWORD", "right")
        assert_same(read(open_source(public)), rows(0, 9))
        postgres.execute(f"CREATE TABLE {schema}.closed (id text, v vector(2))")
        assert "ask for the right" in complaint(open_source, public.replace("mine", "closed"))

    def test_a_database_without_the_extension(self, postgres):
        postgres.execute("CREATE DATABASE bare")
        assert "CREATE EXTENSION vector" in complaint(open_target, postgres.uri("t", database="bare"), SPACE, {})
        postgres.execute("DROP DATABASE bare")

    def test_a_locked_or_damaged_gallery_tells_no_password(self, postgres, schema):
        uri = postgres.uri(f"{schema}.t").replace("postgres@", f"postgres:{PASSWORD}@")
        target = open_target(uri, SPACE, {})
        with pytest.raises(StoreLocked, match="another process") as caught:
            open_target(uri, SPACE, {})
        assert PASSWORD not in str(caught.value)
        target.close()
        postgres.execute(f"UPDATE {schema}.embedding_galleries SET space = '{{}}'")
        assert "was altered" in complaint(open_target, uri, SPACE, {})


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("postgresql://u:p@h:5432/d/t?sslmode=require", "postgresql://u@h:5432/d/t?sslmode=require"),
        ("postgresql://u@h/d/t", "postgresql://u@h/d/t"),
        ("postgresql:///d/t?host=/s&password=p&index=hnsw", "postgresql:///d/t?host=/s&index=hnsw"),
        ("postgresql://h:5432/d/t?user=a@b", "postgresql://h:5432/d/t?user=a@b"),
        ("postgresql://:p@h/d/t", "postgresql://@h/d/t"),
        ("postgresql://u:p@p/p?p@h/d/t?password=p", "postgresql://u@h/d/t"),
        ("postgresql://u:p?p@h/d/t", "postgresql://u@h/d/t"),
        ("postgresql://h/d/t?sslkey=/k&pass%77ord=p&sslpassword=p", "postgresql://h/d/t?sslkey=/k"),
        ("qdrant:https://u:p@h/c?api_key=p", "qdrant:https://u@h/c"),
        ("qdrant:db/c?API_KEY=p&id=name", "qdrant:db/c?id=name"),
        ("lance:s3://b/t?secret_access_key=p", "lance:s3://b/t"),
        ("lance:s3://b/t?aws_secret_access_key=p&dtype=float16&aws_session_token=p", "lance:s3://b/t?dtype=float16"),
        ("lance:az://b/t?account_key=p&sas=p&sig=p&credential=p&x-amz-signature=p", "lance:az://b/t"),
        ("lance:db/t?token=p", "lance:db/t"),
        ("npy:what?key=1.npy", "npy:what?key=1.npy"),
        ("gallery/of:x@y//z.npy", "gallery/of:x@y//z.npy"),
        ("parquet:a//b:c@d.parquet", "parquet:a//b:c@d.parquet"),
    ],
)
def test_a_public_uri_has_no_password(uri, public):
    assert redact(uri) == public
    assert public_uri("npy") == "npy"


def test_both_names_of_the_scheme_lead_here():
    assert locate("postgres://h/d/t") == locate("postgresql://h/d/t") == ("postgresql", "//h/d/t")
    assert GALLERIES["postgresql"] is engine
    place = parse_location("//u:p@h:1/d%20b/a%2Eb.t?order=w&connect_timeout=3")
    assert (place.server, place.database, place.schema, place.table) == ("h:1", "d b", "a.b", "t")
    assert place.connection["connect_timeout"] == "3"
    assert "p" in place.connection.values()
