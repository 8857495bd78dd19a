"""`python -m stores.forget`, run as people run it."""

import numpy as np
import polars as pl
import pytest

from stores.forget import main
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

VECTORS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
NAMES = [f"p{n // 6}/{n % 6 // 2}.jpg" + ("#view1" if n % 2 else "") for n in range(30)]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = [name.removesuffix("#view1") for name in NAMES]
    items = pl.DataFrame({"item_id": NAMES, "label": [name[:2] for name in NAMES], "source_item": sources})
    with EmbeddingStore.create("store", EmbeddingSpace("resnet", None, 4, False), chunk_rows=8) as made:
        made.append(items, VECTORS)
        made.commit()
    return tmp_path / "store"


def left():
    return EmbeddingStore.open("store").items["item_id"].to_list()


def in_files(path, row):
    return any(VECTORS[row].tobytes() in file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_an_item_goes_with_its_views(store, capsys):
    assert main(["store", "--id", "p0/1.jpg", "p3/0.jpg"]) == 0
    out = capsys.readouterr().out
    assert out == "forgot 4 items of store, 26 are left; no file of the store holds their bytes\n"
    gone = [2, 3, 18, 19]
    assert left() == [name for row, name in enumerate(NAMES) if row not in gone]
    assert [row for row in range(30) if not in_files(store, row)] == gone


def test_a_person_goes_by_label_and_a_list_by_a_table(store):
    pl.DataFrame({"item_id": ["p4/0.jpg", "p4/2.jpg#view1"]}).write_csv("leavers.csv")
    assert main(["store", "--label", "p1", "--ids", "leavers.csv"]) == 0
    gone = [*range(6, 12), 24, 25, 29]
    assert [row for row in range(30) if not in_files(store, row)] == gone


def test_a_run_that_died_before_it_compacted_is_finished_by_the_same_command(store, capsys):
    command = ["store", "--label", "p1", "--id", "p0/0.jpg"]
    assert main([*command, "--compact", "no"]) == 0
    assert "their bytes are there until the store is compacted" in capsys.readouterr().out
    assert in_files(store, 6)
    assert len(left()) == 22
    assert main(command) == 0
    assert not in_files(store, 6)
    assert len(left()) == 22


def test_a_run_that_died_while_it_tidied_up_is_finished_by_the_same_command(store, monkeypatch, capsys):
    command = ["store", "--label", "p1", "--id", "p0/0.jpg"]
    with monkeypatch.context() as patched:
        patched.setattr("stores.store.remove_other_generations", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        assert main(command) == 2
    assert in_files(store, 6)
    assert "killed" in capsys.readouterr().err
    assert main(command) == 0
    assert not in_files(store, 6)
    assert len(left()) == 22
    assert main(command) == 2  # now they are unknown


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["store", "--id", "p0/0.jpg", "nobody"], "1 of 2 items are not in store; check them"),
        (["store", "--label", "nobody"], "1 of 1 labels are not in store"),
        (["store"], "nothing to forget; name items by --id, --ids or --label"),
        (["store", "--compact", "no"], "nothing to forget; name items by --id, --ids or --label"),
        (["nowhere", "--id", "a"], "no embedding store at nowhere"),
        (["store", "--ids", "none.csv"], "no table at none.csv"),
    ],
)
def test_a_mistake_is_one_line_and_forgets_nothing(argv, expected, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err
    assert left() == NAMES


def test_unknown_ones_can_be_passed_over_and_no_name_is_printed(capsys):
    assert main(["store", "--id", "p0/0.jpg", "nobody", "--missing-ok", "yes"]) == 0
    assert "p0" not in "".join(capsys.readouterr())
    assert len(left()) == 28
