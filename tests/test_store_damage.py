"""Damaged stores: every flipped bit, lost file and cut file is reported or makes no difference, in every layout."""

import random
import shutil

import numpy as np
import pytest
from store_faults import LAYOUTS, SPACE, copied, everything, item_ids, outcome, planted, store_files, told_by

from stores import convert, inspect
from stores.chunks import DamagedStore
from stores.sealed import seal, unseal
from stores.store import EmbeddingStore

ROWS = 40
FORGOTTEN = [3, 4, 17, 38]
KINDS = [*LAYOUTS, "forgotten", "compacted"]
SHORT = ("plain", "sharded-float16", "compacted")


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """A store of every kind, made once and only copied."""
    folder = tmp_path_factory.mktemp("templates")
    for kind in KINDS:
        with EmbeddingStore.create(folder / kind, SPACE, chunk_rows=16, **LAYOUTS.get(kind, {})) as store:
            store.append(*planted(0, ROWS))
            store.commit({"images": "photos"})
            if kind not in LAYOUTS:
                store.forget([item_ids(0, ROWS)[row] for row in FORGOTTEN])
            if kind == "compacted":
                store.compact()
    return folder


@pytest.fixture(params=[pytest.param(kind, marks=[] if kind in SHORT else pytest.mark.slow) for kind in KINDS])
def path(request, templates, tmp_path):
    return copied(templates / request.param, tmp_path / "store")


@pytest.fixture
def plain(templates, tmp_path):
    return copied(templates / "plain", tmp_path / "store")


def lines(count):
    """A short count, and the full one for the slow tests."""
    return pytest.mark.parametrize("count", [count[0], pytest.param(count[1], marks=pytest.mark.slow)])


def flipped(content, chance):
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def problems_of(path):
    try:
        return EmbeddingStore.open(path).verify().problems
    except ValueError as error:
        return [str(error)]


def one_line_about(complaint, *names):
    return "\n" not in complaint and any(str(name) in complaint for name in names)


def test_the_planted_rows_are_read_back(path, request):
    kind = request.node.callspec.params["path"]
    kept = [row for row in range(ROWS) if kind in LAYOUTS or row not in FORGOTTEN]
    items, vectors = planted(0, ROWS)
    found = everything(path)
    assert found.items == items[kept].to_dicts()
    assert found.vectors == vectors[kept].tobytes()
    assert found.provenance == {"images": "photos"}


@lines((30, 170))  # of six kinds of store: 1,020 in the slow tests
def test_a_flipped_bit_is_reported_or_harmless(path, count, record_property):
    whole = everything(path)
    chance = random.Random(count)
    reported = 0
    for _ in range(count):
        file = chance.choice(store_files(path))
        content = file.read_bytes()
        file.write_bytes(flipped(content, chance))
        found, complaint = outcome(lambda: everything(path))
        assert found == whole or one_line_about(complaint, file), (file, complaint)
        if complaint:
            reported += 1
            assert any(one_line_about(problem, file) for problem in problems_of(path))
        file.write_bytes(content)
    record_property("reported", reported)
    record_property("harmless", count - reported)
    print(f"flipped bits: {count}, reported {reported}, harmless {count - reported}")
    assert reported > count * 2 // 3
    assert everything(path) == whole


def complaint_of_a_writer(path, act):
    try:
        with EmbeddingStore.open(path) as store:
            if act == "append":
                store.append(*planted(ROWS, ROWS + 5))
                store.commit()
                return ""
            store.forget(item_ids(0, 2))
            if act == "compact":
                store.compact()
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


@lines((9, 99))
def test_a_writer_does_not_launder_a_flipped_bit(path, count):
    whole = everything(path)
    chance = random.Random(count)
    pristine = copied(path, path.with_name("pristine"))
    refused = 0
    for number in range(count):
        copied(pristine, path)
        file = chance.choice(store_files(path))
        file.write_bytes(flipped(file.read_bytes(), chance))
        complaint = complaint_of_a_writer(path, ("append", "forget", "compact")[number % 3])
        if complaint:
            refused += 1
            assert one_line_about(complaint, file), (file, complaint)
        found, complaint = outcome(lambda: everything(path))
        if found is None:
            assert one_line_about(complaint, path), complaint
            continue
        items, vectors = planted(ROWS, ROWS + 5)
        appended = (whole.items + items.to_dicts(), whole.vectors + vectors.tobytes())
        without = (whole.items[2:], whole.vectors[2 * 4 * vectors.shape[1] :])
        assert (found.items, found.vectors) in [whole[2:], appended, without], (number, file)
    assert refused > count // 3


def test_every_bit_of_a_vector_matters(plain):
    chunk = plain / "vectors" / "c" / "2" / "0"
    content = chunk.read_bytes()
    for place in range(0, len(content), 11):
        chunk.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(DamagedStore, match="checksum"):
            everything(plain)


def test_a_lost_file_is_named(path):
    whole = everything(path)
    for file in store_files(path):
        content = file.read_bytes()
        before = EmbeddingStore.open(path)
        file.unlink()
        with pytest.raises((DamagedStore, FileNotFoundError), match=r"missing|no file store\.json") as caught:
            everything(path)
        assert one_line_about(str(caught.value), file) or file.name == "store.json"
        found, complaint = outcome(lambda store=before: told_by(store))  # opened while the file was still there
        assert found == whole or one_line_about(complaint, file), (file, complaint)
        file.write_bytes(content)
    assert everything(path) == whole


def test_a_lost_folder_is_named(path, tmp_path):
    whole = everything(path)
    for folder in sorted(entry for entry in path.rglob("*") if entry.is_dir()):
        shutil.move(folder, tmp_path / "aside")
        with pytest.raises(DamagedStore, match="missing") as caught:
            everything(path)
        assert one_line_about(str(caught.value), folder), (folder, caught.value)
        shutil.move(tmp_path / "aside", folder)
    assert everything(path) == whole


def test_a_lost_lock_does_no_harm(path):
    whole = everything(path)
    (path / ".lock").unlink()
    assert everything(path) == whole
    with EmbeddingStore.open(path) as store:
        store.append(*planted(ROWS, ROWS + 3))
        store.commit()
    assert everything(path).items == whole.items + planted(ROWS, ROWS + 3)[0].to_dicts()


@lines((4, 50))
def test_a_cut_file_is_named(path, count):
    whole = everything(path)
    chance = random.Random(count)
    for file in store_files(path):
        content = file.read_bytes()
        places = {0, 1, len(content) - 1} | set(chance.sample(range(len(content)), min(count, len(content))))
        for place in places:
            file.write_bytes(content[:place])
            with pytest.raises(DamagedStore) as caught:
                everything(path)
            assert one_line_about(str(caught.value), file)
        file.write_bytes(content)
    assert everything(path) == whole


@lines((1, 10))
def test_commands_tell_of_a_cut_file_in_one_line(path, tmp_path, capsys, count):
    chance = random.Random(count)
    for file in store_files(path):
        content = file.read_bytes()
        for place in chance.sample(range(len(content)), count):
            file.write_bytes(content[:place])
            assert inspect.main([str(path)]) == inspect.DAMAGED
            one_line_on_stderr(capsys, file)
            assert convert.main([str(path), str(tmp_path / "copy.npy")]) == 2
            one_line_on_stderr(capsys, file)
            assert not (tmp_path / "copy.npy").exists()
        file.write_bytes(content)
    assert inspect.main([str(path)]) == 0
    assert convert.main([str(path), str(tmp_path / "copy.npy")]) == 0
    assert np.load(tmp_path / "copy.npy").tobytes() == everything(path).vectors


def one_line_on_stderr(capsys, file):
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert str(file) in complaint, complaint


def test_verify_lists_everything_that_is_damaged(path):
    assert EmbeddingStore.open(path).verify().ok
    store = EmbeddingStore.open(path)
    for file in store_files(path):
        file.write_bytes(file.read_bytes()[:-2])
    steps = []
    check = store.verify(on_chunk=lambda done, chunks: steps.append((done, chunks)))
    assert not check.ok
    assert (check.rows, check.chunks) == (len(store), 3)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for file in store_files(path):
        assert any(one_line_about(problem, file) for problem in check.problems), file


def test_a_store_of_a_later_version_says_so(plain):
    body = unseal(plain / "store.json", version=1)
    (plain / "store.json").write_bytes(seal(body | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, this version reads 1"):
        EmbeddingStore.open(plain)
