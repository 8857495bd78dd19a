"""python -m compat.backfill: items move from the bridged part of a gallery to the native one."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import polars as pl
import pytest
from planted import command, environment, open_store, plant, space, write_store
from planted_hubs import HELD, IDS, corrected_map, plant_hubs

from compat import backfill as cli
from compat.migration import backfill as room
from compat.migration.backfill import MixedState, backfill, open_mixed
from compat.migration.backfill_order import next_items
from compat.migration.bridged import BridgedGallery
from compat.migration.mixed import MixedGallery
from compat.migration.run import migrate_gallery
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.linear import LinearMap
from stores.galleries import open_source
from stores.store import EmbeddingStore

OLD, NEW = space("old", 8), space("new", 8)
WORLD = plant(identities=40, samples=3, noise=0.4)
NAMES = [f"SECRET-{row}" for row in range(120)]
LABELS = [f"p{label}" for label in WORLD.labels]
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
BACK = Transformer("procrustes", "new-to-old", NEW, OLD, LinearMap.from_arrays(TURN, np.zeros(8)))
FORTH = Transformer("procrustes", "old-to-new", OLD, NEW, LinearMap.from_arrays(TURN.T, np.zeros(8)))


@pytest.fixture
def folder(tmp_path):
    write_store(tmp_path / "old", WORLD.old, ids=NAMES, labels=LABELS)
    BACK.save(tmp_path / "back")
    FORTH.save(tmp_path / "forth")
    return tmp_path


def extracted(folder, name, rows, ids=None):
    """What compat.extract makes of some items: a store of the new model."""
    return write_store(folder / name, WORLD.new[rows], name="new", ids=ids or [NAMES[row] for row in rows])


def run(folder, *words):
    given = ("--gallery", folder / "old", "--transformer", folder / "back", "--out", folder / "mixed")
    return cli.main([str(word) for word in (*given, *words)])


def test_from_the_list_of_the_next_items_to_the_whole_gallery(folder, capsys):
    seen: set[str] = set()
    told = ""
    for turn in range(3):
        table = folder / f"next-{turn}.csv"
        assert run(folder, "--next", 40, "--write", table, "--order", "per_identity") == 0
        listed = pl.read_csv(table)
        assert (len(listed), listed.columns) == (40, ["item_id", "label"])
        assert not seen & set(listed["item_id"])
        seen |= set(listed["item_id"])
        rows = [NAMES.index(item) for item in listed["item_id"]]
        assert (np.diff([WORLD.labels[row] for row in rows]) != 0).sum() <= 14  # whole identities, one after another
        assert run(folder, "--new", extracted(folder, f"new-{turn}", rows), "--batch-rows", 7) == 0
        output = capsys.readouterr()
        told = output.out
        assert f"40 items moved, {40 * (turn + 1)} of 120 are native" in told
        assert "SECRET" not in told + output.err
        mixed = open_mixed(folder / "mixed", BACK)
        native = open_store(
            folder / f"so-far-{turn}",
            WORLD.new[sorted(map(NAMES.index, seen))],
            name="new",
            ids=[NAMES[row] for row in sorted(map(NAMES.index, seen))],
        )
        expected = MixedGallery(str(folder / "old"), native, BACK).search(WORLD.new, 5, space=NEW)
        found = mixed.search(WORLD.new, 5, space=NEW)
        assert found.item_ids == expected.item_ids
    assert "nothing is bridged any more" in told
    assert seen == set(NAMES)
    assert EmbeddingStore.open(folder / "mixed" / "new").items["label"].to_list() != []
    assert len(open_source(str(folder / "old"))) == 120  # left alone


def test_run_again_nothing_moves_twice_and_strangers_stay_out(folder, capsys):
    new = extracted(folder, "new", range(50))
    strangers = write_store(folder / "strangers", WORLD.new[:4], name="new", ids=["x", "y", NAMES[60], NAMES[0]])
    assert run(folder, "--new", new, strangers) == 0
    first = EmbeddingStore.open(folder / "mixed" / "new")
    assert "51 items moved, 51 of 120 are native" in (output := capsys.readouterr().out)
    assert "1 were native already" in output
    assert "2 are not in the gallery and were left out" in output
    assert run(folder, "--new", new, strangers) == 0
    assert "0 items moved, 51 of 120" in capsys.readouterr().out
    again = EmbeddingStore.open(folder / "mixed" / "new")
    assert again.items.equals(first.items)
    np.testing.assert_array_equal(again.take(np.arange(51)), WORLD.new[[*range(50), 2]])


def test_it_tells_how_far_it_is(folder):
    news = [extracted(folder, "new", range(50)), extracted(folder, "more", range(40, 70))]
    told = []
    backfill(
        str(folder / "old"),
        BACK,
        news,
        folder / "mixed",
        batch_rows=20,
        on_items=lambda *now: told.append(now),
    )
    assert told == [(20, 80), (40, 80), (50, 80), (70, 80), (80, 80)]


def test_killed_at_any_moment_it_goes_on_to_the_same(folder):
    new = extracted(folder, "new", range(120))
    words = ("--gallery", folder / "old", "--transformer", folder / "back", "--new", new, "--batch-rows", 1)
    whole = folder / "whole"
    backfill(str(folder / "old"), BACK, [new], whole, batch_rows=1)
    path = folder / "killed"
    with subprocess.Popen(command("compat.backfill", *words, "--out", path), env=environment()) as process:
        deadline = time.monotonic() + 120
        while committed(path) < 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    left = committed(path)
    assert 0 < left < 120
    assert open_mixed(path, BACK).native_items == left
    assert backfill(str(folder / "old"), BACK, [new], path, batch_rows=1).moved == 120 - left
    a, b = (EmbeddingStore.open(each / "new") for each in (path, whole))
    assert a.digest() == b.digest()
    assert a.items.equals(b.items)


def committed(path):
    return len(EmbeddingStore.open(path / "new")) if (path / "new" / "store.json").is_file() else 0


def test_killed_before_its_first_batch_it_begins_again(folder, monkeypatch):
    new = extracted(folder, "new", range(30))
    monkeypatch.setattr(room, "_native_store", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backfill(str(folder / "old"), BACK, [new], folder / "mixed")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"nothing was moved into .* yet"):
        open_mixed(folder / "mixed", BACK)
    assert backfill(str(folder / "old"), BACK, [new], folder / "mixed").moved == 30


def test_moved_items_leave_the_old_gallery_where_that_is_asked_for(folder, capsys):
    new = extracted(folder, "new", range(30))
    before = MixedGallery(str(folder / "old"), EmbeddingStore.open(new), BACK).search(WORLD.new, 5, space=NEW)
    assert run(folder, "--new", new, "--drop-old", "yes") == 0
    assert "30 removed from the old gallery" in (told := capsys.readouterr().out)
    assert "30 of 120 are native" in told
    assert len(open_source(str(folder / "old"))) == 90
    assert open_mixed(folder / "mixed", BACK).search(WORLD.new, 5, space=NEW).item_ids == before.item_ids
    assert run(folder, "--new", new, "--drop-old", "yes") == 0
    assert "0 items moved, 30 of 120 are native" in capsys.readouterr().out
    with pytest.raises(ValueError, match="a gallery of the kind npy takes no items out"):
        backfill("npy:x.npy", BACK, [new], folder / "other", drop_old=True)


def test_a_migrated_gallery_needs_no_bridge(folder, capsys):
    migrate_gallery(str(folder / "old"), FORTH, str(folder / "migrated"))
    given = ("--gallery", folder / "migrated", "--transformer", folder / "forth", "--out", folder / "mixed")
    words = [*given, "--new", extracted(folder, "new", range(30)), "--next", 10, "--write", folder / "next.txt"]
    assert cli.main([str(word) for word in words]) == 0
    assert open_mixed(folder / "mixed").native_items == 30
    lines = (folder / "next.txt").read_text().splitlines()
    assert len(lines) == 10
    assert all(LABELS[NAMES.index(item)] == label for item, label in map(str.split, lines))


def test_orders(folder):
    old, out = str(folder / "old"), folder / "mixed"

    def listed(order, count=120, transformer=BACK):
        return next_items(old, transformer, out, count, order=order)["item_id"].to_list()

    assert listed("random") == listed("auto") != NAMES  # the map does not know what is strange to it
    assert sorted(listed("random")) == sorted(NAMES)
    assert listed("random", 7) == listed("random")[:7]
    pl.DataFrame({"item_id": NAMES[::-1]}).write_csv(folder / "order.csv")
    assert listed(str(folder / "order.csv"), 3) == NAMES[:-4:-1]
    report = {"backfill": {"orders": {"random": {"area": 0.5}, "per_identity": {"area": 0.6}}}}
    (folder / "report.json").write_text(json.dumps(report))
    assert listed(str(folder / "report.json")) == listed("per_identity")
    for content, message in [
        ({"backfill": {"orders": {"given": {"area": 1}}}}, "the order 'given' was best, which was a table"),
        ({}, "compares no orders of a backfill"),
    ]:
        (folder / "report.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            listed(str(folder / "report.json"))
    with pytest.raises(ValueError, match="uncertainty is known of a gallery that an old-to-new transformer maps"):
        listed("uncertainty")

    class Known:
        dim = 8

        def novelty(self, vectors):
            return vectors[:, 0]

    knowing = Transformer("procrustes", "old-to-new", OLD, NEW, FORTH.network, familiarity=Known())  # pyright: ignore[reportArgumentType]
    expected = [NAMES[row] for row in np.argsort(-FORTH.transform(WORLD.old)[:, 0], kind="stable")]
    assert listed("uncertainty", transformer=knowing) == listed("auto", transformer=knowing) == expected


def test_mistakes_are_one_line(folder, capsys):
    new = extracted(folder, "new", range(30))
    assert run(folder, "--new", new) == 0
    capsys.readouterr()
    write_store(folder / "third", WORLD.old, name="third")
    for words, message in [
        ([], "nothing to do: give --new STORE to move items, or --next N --write FILE"),
        (["--next", 3], "--next and --write go together"),
        (["--next", 3, "--write", "x.pdf"], "--write must end in .csv, .parquet, .txt, found x.pdf"),
        (["--next", 0, "--write", "x.csv"], "next must be at least 1, found 0"),
        (["--new", folder / "third"], "third is in third (8-D), expected new (8-D) as the new model's queries are"),
        (["--new", new, "--space-name", "nobody"], "no space of the transformer is called 'nobody'"),
        (["--new", new, "--gallery", folder / "third"], "the transformer's target is old"),
    ]:
        assert run(folder, *words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    other = Transformer("procrustes", "new-to-old", NEW, OLD, LinearMap.from_arrays(TURN.T, np.zeros(8)))
    with pytest.raises(ValueError, match="was begun with another transformer"):
        backfill(str(folder / "old"), other, [new], folder / "mixed")
    with pytest.raises(WrongSpace, match="was made with another transformer"):
        open_mixed(folder / "mixed", other)
    with pytest.raises(FileExistsError, match="is no mixed gallery; name another folder"):
        backfill(str(folder / "old"), BACK, [new], folder / "new")
    with pytest.raises(FileNotFoundError, match=r"it has no mixed\.json"):
        open_mixed(folder / "old", BACK)
    state = folder / "mixed" / "mixed.json"
    state.write_text(state.read_text().replace("new", "now", 1))
    with pytest.raises(ValueError, match="does not match its own digest"):
        open_mixed(folder / "mixed", BACK)


def test_the_state_holds_no_password(tmp_path):
    state = MixedState("postgresql://me@host/db/t", OLD, NEW, None)
    state.write(tmp_path)
    assert MixedState.read(tmp_path) == state
    assert room.redact("postgresql://me:secret@host/db/t") == state.gallery


def test_with_a_correction_the_bridge_serves_alone_until_scores_are_calibrated(tmp_path):
    world = plant_hubs()
    transformer = corrected_map(world, "old-to-new")
    ids = [IDS[row] for row in HELD]
    write_store(tmp_path / "old", world.old[HELD], ids=ids)
    gallery = str(tmp_path / "migrated")
    migrate_gallery(str(tmp_path / "old"), transformer, gallery)
    few, more = (write_store(tmp_path / f"n{n}", world.new[HELD[:n]], name="new", ids=ids[:n]) for n in (19, 60))
    out, new = tmp_path / "mixed", transformer.query_space
    alone = BridgedGallery(gallery).search(world.new[:30], 5, space=new)
    assert backfill(gallery, transformer, [few], out, drop_old=True).removed == 0
    state = MixedState.read(out)
    assert state is not None
    assert state.calibration is None
    assert open_mixed(out, transformer).search(world.new[:30], 5, space=new).item_ids == alone.item_ids
    expected = MixedGallery(gallery, EmbeddingStore.open(more), transformer)
    before = expected.search(world.new[:30], 5, space=new)
    assert backfill(gallery, transformer, [more], out, drop_old=True).removed == 60
    opened = open_mixed(out, transformer)
    assert opened.calibration == expected.calibration
    assert opened.search(world.new[:30], 5, space=new).item_ids == before.item_ids
