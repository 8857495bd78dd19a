"""The steps after a migration: a name led to the new gallery and back, and what may be deleted when."""

import json

import numpy as np
import polars as pl
import pytest
from migrating import OLD, turned
from planted import plant, write_store
from real_postgres import postgres, schema  # noqa: F401 - fixtures
from test_migration_live import People, held, random_rows

from compat import migrate
from compat.migration.run import Pause, migrate_gallery
from compat.migration.state import identity, state_folder
from compat.migration.switch import discard, finalise, status, switch, switch_back, way_back
from stores.convert import ConvertOptions, convert
from stores.durable import StoreLocked
from stores.galleries import open_source, redact, zarr_store
from stores.store import EmbeddingStore


@pytest.fixture
def people(postgres, schema):  # noqa: F811
    return People(postgres, schema, rows=40)


def names(people):
    return {
        row[0]
        for row in people.server.execute(
            f"SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = "
            f"relnamespace WHERE nspname = '{people.schema}' AND relkind IN ('r', 'v')"
        )
    }


def test_a_view_leads_to_the_new_table_and_back_and_nothing_old_goes_too_soon(people, tmp_path):
    source, target = people.uri, people.server.uri(f"{people.schema}.people_new")
    people.server.execute(f"CREATE VIEW {people.schema}.served AS SELECT * FROM {people.schema}.people")
    served = people.server.uri(f"{people.schema}.served")
    s = {"state": tmp_path / "state"}
    assert "was begun; begin: --step run" in status(source, target, **s)
    for step in (switch_back, finalise, discard):
        with pytest.raises(ValueError, match=r"no migration of .* was begun .*begin with --step run"):
            step(source, target, **s)
    pause = Pause()
    pause.ask()
    with pytest.raises(KeyboardInterrupt):
        migrate_gallery(source, turned(), target, source_space="old", pause=pause, **s)
    with pytest.raises(ValueError, match="was not checked yet; run --step run or --step verify first"):
        switch(source, target, "served", **s)
    migrate_gallery(source, turned(), target, source_space="old", **s)
    with pytest.raises(ValueError, match="there is nothing to switch back"):
        switch_back(source, target, **s)
    with pytest.raises(ValueError, match=r"is not served yet \(verified\); nothing old goes before --step switch"):
        finalise(source, target, discard_old=True, **s)
    with pytest.raises(FileExistsError, match="is a table, which is never replaced; rename it first"):
        switch(source, target, "people", **s)
    found = switch(source, target, "served", **s)
    assert found.before is not None
    assert found.before.partition("?")[0].endswith(f"{people.schema}.people")
    assert held(served).keys() == people.vectors.keys()
    assert open_source(served).dim == 12
    assert switch(source, target, "served", **s) == found  # again changes nothing
    with pytest.raises(ValueError, match="--step switch-back first"):
        discard(source, target, **s)
    switch_back(source, target, **s)
    assert open_source(people.server.uri(f"{people.schema}.served", id="person", vector="face")).dim == 8
    switch(source, target, served, **s)
    assert open_source(served).dim == 12
    told = finalise(source, target, **s)
    assert "is left, and may go" in told
    assert {"people", "people_new", "served"} <= names(people)
    assert not (tmp_path / "state").exists()


def test_on_request_the_old_table_is_deleted_at_the_end(people, tmp_path):
    source, target = people.uri, people.server.uri(f"{people.schema}.people_new")
    s = {"state": tmp_path / "state"}
    migrate_gallery(source, turned(), target, source_space="old", **s)
    assert switch(source, target, "served", **s).before is None
    assert "lets served lead to postgresql:" in status(source, target, **s)
    switch_back(source, target, **s)
    assert held(people.server.uri(f"{people.schema}.served", id="person", vector="face")).keys() == held(source).keys()
    assert switch(source, target, "served", **s).before is not None
    people.server.execute(f"DROP VIEW {people.schema}.served")
    with pytest.raises(ValueError, match=r"served does not lead to .*people_new.* any more"):
        finalise(source, target, discard_old=True, **s)
    switch(source, target, "served", **s)  # as the message says
    assert "was deleted" in finalise(source, target, discard_old=True, **s)
    assert "people" not in names(people)
    assert "people_new" in names(people)


def test_before_the_switch_the_new_table_can_be_thrown_away_whole_or_not(people, tmp_path):
    source, target = people.uri, people.server.uri(f"{people.schema}.people_new")
    s = {"state": tmp_path / "state"}
    pause = Pause()

    def stop(rows, _):
        pause.ask()

    with pytest.raises(KeyboardInterrupt):
        migrate_gallery(source, turned(), target, source_space="old", pause=pause, on_rows=stop, batch_rows=8, **s)
    discard(source, target, **s)
    assert "people_new" not in names(people)
    migrate_gallery(source, turned(), target, source_space="old", **s)
    discard(source, target, **s)
    assert "people_new" not in names(people)
    assert held(source).keys() == people.vectors.keys()
    assert not (tmp_path / "state").exists()


def test_rows_that_came_after_the_last_look_keep_the_old_gallery(people, tmp_path):
    source, target = people.uri, people.server.uri(f"{people.schema}.people_new")
    s = {"state": tmp_path / "state"}
    migrate_gallery(source, turned(), target, source_space="old", **s)
    switch(source, target, "served", **s)
    people.insert("late", np.ones(8, np.float32))
    with pytest.raises(ValueError, match=r"\(1 rows inserted, 0 updated, 0 removed\).*--step run brings that over"):
        finalise(source, target, discard_old=True, **s)
    assert "people" in names(people)
    migrate_gallery(source, turned(), target, source_space="old", **s)
    assert "late" in held(people.server.uri(f"{people.schema}.served"))
    assert "was deleted" in finalise(source, target, discard_old=True, **s)


@pytest.fixture
def stores(tmp_path):
    """A migrated store, and a link that leads to another."""
    write_store(tmp_path / "old", np.eye(8, dtype=np.float32))
    write_store(tmp_path / "before", np.eye(8, dtype=np.float32))
    (tmp_path / "served").symlink_to("before")
    source, target = str(tmp_path / "old"), str(tmp_path / "new")
    migrate_gallery(source, turned(), target)
    return source, target


def add_rows(path, *ids):
    with EmbeddingStore.open(path) as store:
        store.append(pl.DataFrame({"item_id": ids}), np.ones((len(ids), 8), np.float32))
        store.commit()


def test_what_changed_since_the_check_is_brought_over_before_the_switch(stores, tmp_path):
    source, target = stores
    add_rows(source, "late")
    with pytest.raises(ValueError, match=r"old changed since it was last looked at; --step run brings that over"):
        switch(source, target, "served")
    assert (tmp_path / "served").resolve() == tmp_path / "before"
    migrate_gallery(source, turned(), target)
    switch(source, target, "served")
    assert "late" in held(str(tmp_path / "served"))


def test_changes_brought_over_after_the_switch_leave_the_way_back(stores, tmp_path):
    source, target = stores
    switch(source, target, "served")
    add_rows(source, "late")
    with pytest.raises(ValueError, match=r"old changed since it was last looked at; --step run brings that over"):
        finalise(source, target, discard_old=True)
    migrate_gallery(source, turned(), target)
    assert "served leads to it" in status(source, target)
    assert "late" in held(str(tmp_path / "served"))
    with pytest.raises(ValueError, match="--step switch-back first"):
        discard(source, target)
    switch_back(source, target)
    assert (tmp_path / "served").resolve() == tmp_path / "before"


def test_a_name_that_somebody_moved_is_led_to_the_new_gallery_again(stores, tmp_path):
    source, target = stores
    switch(source, target, "served")
    (tmp_path / "served").unlink()
    (tmp_path / "served").symlink_to("old")
    with pytest.raises(ValueError, match=r"does not lead to .*new any more; --step switch again"):
        finalise(source, target)
    assert str(switch(source, target, "served").before).endswith("/old")
    assert (tmp_path / "served").resolve() == tmp_path / "new"
    switch_back(source, target)
    assert (tmp_path / "served").resolve() == tmp_path / "old"


@pytest.mark.parametrize("name", ["served", "elsewhere/served"])
def test_a_switch_that_died_between_its_two_acts_is_known(stores, tmp_path, monkeypatch, name):
    source, target = stores
    link = tmp_path / name
    if link.parent != tmp_path:
        link.parent.mkdir()
        link.symlink_to(tmp_path / "before")
    serve = zarr_store.serve

    def serve_and_die(*args):
        serve(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr_store, "serve", serve_and_die)
    with pytest.raises(KeyboardInterrupt):
        switch(source, target, str(link))
    monkeypatch.undo()
    assert link.resolve() == tmp_path / "new"
    with pytest.raises(ValueError, match="--step switch-back first"):
        discard(source, target)
    assert link.resolve() == tmp_path / "new"
    switch_back(source, target)
    assert link.resolve() == tmp_path / "before"
    assert "was deleted" in discard(source, target)


def test_no_step_is_taken_beside_a_migration_that_runs(stores):
    source, target = stores
    with state_folder(source, target).alone():
        for step in (discard, finalise, switch_back, lambda old, new: switch(old, new, "served")):
            with pytest.raises(StoreLocked, match=r"new.migration is being written by another process"):
                step(source, target)
    assert held(target)


def test_a_file_is_told_of_where_it_is_and_the_migration_ends(tmp_path):
    write_store(tmp_path / "old", np.eye(8, dtype=np.float32))
    source, target = str(tmp_path / "old"), str(tmp_path / "new.npy")
    migrate_gallery(source, turned(), target)
    with pytest.raises(ValueError, match=r"no name can be led to.*--step finalise"):
        switch(source, target, "served")
    with pytest.raises(ValueError, match=r"nothing tells that it is served, so .*old is yours to delete"):
        finalise(source, target, discard_old=True)
    assert "is left" in finalise(source, target)
    assert not (tmp_path / "new.npy.migration").exists()
    assert held(target).keys() == held(source).keys()


@pytest.mark.parametrize("target", ["new.npy", "new.faiss", "new.parquet", "zarr+array:group"])
def test_a_file_has_no_name_to_switch_and_is_thrown_away_with_all_that_is_its_own(tmp_path, target):
    world = plant(identities=10, samples=2, old_dim=8, new_dim=12)
    write_store(tmp_path / "old", world.old, name=OLD.name)
    place = tmp_path / target.removeprefix("zarr+array:")
    uri = str(place) if ":" not in target else f"zarr+array:{place}"
    (tmp_path / "new").touch()
    before = sorted(tmp_path.rglob("*"))
    pause = Pause()
    for stopped in (True, False):
        if stopped:
            pause.ask()
            with pytest.raises(KeyboardInterrupt):
                migrate_gallery(str(tmp_path / "old"), turned(), uri, pause=pause)
        else:
            migrate_gallery(str(tmp_path / "old"), turned(), uri)
            with pytest.raises(ValueError, match="is a file, which no name can be led to"):
                switch(str(tmp_path / "old"), uri, "served")
        discard(str(tmp_path / "old"), uri)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_state_of_another_migration_is_refused_and_an_altered_one_too(tmp_path):
    write_store(tmp_path / "old", np.eye(8))
    migrate_gallery(str(tmp_path / "old"), turned(), str(tmp_path / "new"), state=tmp_path / "s")
    with pytest.raises(ValueError, match=r"s is of the migration of .*old to .*new, expected .*name another folder"):
        status(str(tmp_path / "old"), str(tmp_path / "other"), state=tmp_path / "s")
    state = tmp_path / "s" / "state.json"
    body = json.loads(state.read_text())
    assert body["step"] == "verified"
    state.write_text(json.dumps(body | {"step": "switched"}))
    with pytest.raises(ValueError, match="was altered"):
        status(str(tmp_path / "old"), str(tmp_path / "new"), state=tmp_path / "s")


def test_where_a_state_is(tmp_path, monkeypatch):
    assert state_folder("a", str(tmp_path / "x.npy")).folder == tmp_path / "x.npy.migration"
    assert state_folder("a", f"zarr:{tmp_path}/x").folder == tmp_path / "x.migration"
    monkeypatch.chdir(tmp_path)
    database = "postgresql://me:secret@host/db/t"
    folder = state_folder("a", database)
    assert str(folder.folder).startswith("migrations/")
    assert folder.folder == state_folder("a", database.replace("secret", "other")).folder
    assert "secret" not in f"{folder.source}{folder.target}{folder.folder}"


def test_the_steps_of_the_command(people, tmp_path, capsys):
    turned().save(tmp_path / "t")
    target = people.server.uri(f"{people.schema}.people_new")
    common = ["--source", people.uri, "--target", target, "--state", str(tmp_path / "s")]
    mapped = [*common, "--transformer", str(tmp_path / "t"), "--source-space", "old"]
    assert migrate.main([*mapped, "--step", "plan"]) == 0
    assert "40 vectors of new (12-D)" in capsys.readouterr().out
    assert migrate.main(mapped) == 0
    assert "checked: 40 ids" in capsys.readouterr().out
    assert migrate.main([*mapped, "--step", "verify"]) == 0
    assert "checked: 40 ids" in capsys.readouterr().out
    for step, told in [
        (["status"], "copied and checked; --step switch"),
        (["switch", "--serve-as", "served"], "before: nowhere; --step switch-back lets served lead to "),
        (["status"], "served leads to it"),
        (["finalise", "--discard-old", "yes"], "was deleted"),
        (["status"], "people_new?host="),
        (["status"], "finished; postgresql:"),
    ]:
        assert migrate.main([*common, "--step", *step]) == 0
        assert told in capsys.readouterr().out
    for wrong, told in [
        ([*common, "--step", "verify"], "give --transformer DIR"),
        ([*common, "--step", "switch"], "give --serve-as NAME"),
        ([*mapped, "--most-passes", "0"], "most_passes must be at least 1"),
    ]:
        assert migrate.main(wrong) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("engine", ["postgresql", "lance", "qdrant", "zarr"])
def test_a_name_that_was_not_there_before_is_led_to_the_old_gallery(people, tmp_path, engine):
    source, target, name = (f"{engine}:{tmp_path}/place/{each}" for each in ("old", "new", "served"))
    s = {"state": tmp_path / "state"}
    if engine == "postgresql":
        source, target = people.uri, people.server.uri(f"{people.schema}.people_new")
        name = people.server.uri(f"{people.schema}.served", id="person", vector="face")
    else:
        convert(ConvertOptions(source=people.uri, target=source, space_name="old"))
    migrate_gallery(source, turned(), target, source_space="old", **s)
    assert "lets served lead to" in way_back(source, target, "served", **s)
    assert switch(source, target, "served", **s).before is None
    assert open_source(name.partition("&id")[0]).dim == 12
    with pytest.raises(ValueError, match="--step switch-back first"):
        discard(source, target, **s)
    assert f"finalise comes next (--step switch-back lets served lead to {redact(source)})" in status(
        source, target, **s
    )
    switch_back(source, target, **s)
    assert open_source(name).dim == 8
    discard(source, target, **s)


def test_where_nothing_leads_back_the_name_is_removed_by_hand(people, tmp_path):
    write_store(tmp_path / "old", random_rows(20))
    source, target = str(tmp_path / "old"), people.server.uri(f"{people.schema}.people_new")
    s = {"state": tmp_path / "state"}
    migrate_gallery(source, turned(), target, **s)
    switch(source, target, "served", **s)
    told = r"served did not exist before .* cannot lead to .*old.*remove served with the tools of its engine"
    for step in (switch_back, discard):
        with pytest.raises(ValueError, match=told):
            step(source, target, **s)
    people.server.execute(f"DROP VIEW {people.schema}.served")
    assert "does not lead to it any more; --step switch" in status(source, target, **s)
    assert "was deleted" in discard(source, target, **s)
    assert "people_new" not in names(people)


def test_after_the_end_the_gallery_itself_tells(people, tmp_path):
    source, target = people.uri, people.server.uri(f"{people.schema}.people_new")
    s = {"state": tmp_path / "state"}
    migrate_gallery(source, turned(), target, source_space="old", **s)
    switch(source, target, "served", **s)
    finalise(source, target, **s)
    assert "people_new" in status(source, target, **s)
    assert "is complete (40 vectors); --step run brings over" in status(source, target, **s)
    for step in (switch_back, discard, finalise):
        with pytest.raises(ValueError, match=r"finished; .*people_new.* is complete \(40 vectors\)"):
            step(source, target, **s)
    people.insert("late", np.ones(8, np.float32))
    result = migrate_gallery(source, turned(), target, source_space="old", **s)
    assert "1 inserted, 0 updated and 0 removed meanwhile" in str(result)
    assert "late" in held(people.server.uri(f"{people.schema}.served"))
    with pytest.raises(ValueError, match=rf"the view {people.schema}.served stands on .*people_new"):
        discard(source, target, **s)
    comment = people.server.execute(f"SELECT obj_description('{people.schema}.served'::regclass, 'pg_class')")[0][0]
    assert comment == target
    switch(source, target, "served", **s)
    finalise(source, target, discard_old=True, **s)
    assert "is gone" in status(source, target, **s)


def test_options_in_an_address_are_no_part_of_a_migration(people, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, target = people.uri, people.server.uri(f"{people.schema}.people_new")
    migrate_gallery(source, turned(), f"{target}&index=hnsw", source_space="old")
    assert "copied and checked" in status(people.server.uri(f"{people.schema}.people"), target)
    again = migrate_gallery(f"{source}&order=person", turned(), target, source_space="old")
    assert again.rows_before == 40
    assert len(list((tmp_path / "migrations").iterdir())) == 1
    with pytest.raises(ValueError, match="source and target are both"):
        migrate_gallery(source, turned(), people.server.uri(f"{people.schema}.people"))
    assert identity("lance:a/b?index=hnsw") == identity("lance:a/b")
    assert identity("postgresql://me:secret@host/d/t?type=halfvec&port=1") == "postgresql://me@host/d/t?port=1"
