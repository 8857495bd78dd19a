"""Joining two stores on item id."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import open_store, plant, write_store

from compat.pairs import Pairs, Source, join_pairs, label_codes, merge_pairs
from compat.training.selection import identity_folds
from compat.vectors import ArrayVectors
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

DIRECTIONS = ("new-to-old", "old-to-new")


def vectors(ids, dim, offset=0.0):
    """Row i says which item it is."""
    return np.tile(np.array([[float(i)] for i in ids]) + offset, (1, dim)).astype(np.float32)


def test_rows_are_joined_by_id_whatever_their_order(tmp_path):
    old_ids, new_ids = [3, 1, 4, 15, 9, 2], [2, 7, 1, 8, 15, 3]
    old = open_store(tmp_path / "old", vectors(old_ids, 3), ids=old_ids)
    new = open_store(tmp_path / "new", vectors(new_ids, 5, 100), ids=new_ids, name="new", chunk_rows=2)
    pairs = join_pairs(old, new)
    assert len(pairs) == 4
    source, target = pairs.take(np.arange(4), "new-to-old")
    assert target[:, 0].tolist() == [3, 1, 15, 2]  # the old store's order
    np.testing.assert_array_equal(source, vectors([3, 1, 15, 2], 5, 100))
    assert pairs.labels is None
    assert [s.dim for s in pairs.spaces("new-to-old")] == [5, 3]
    assert [s.dim for s in pairs.spaces("old-to-new")] == [3, 5]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_blocks_selections_and_shuffles_hold_every_pair_once(tmp_path, direction):
    world = plant(identities=10, samples=5, old_dim=4, new_dim=6)
    old = open_store(tmp_path / "old", world.old, labels=world.labels)
    mixed = np.random.default_rng(1).permutation(50)
    new = open_store(tmp_path / "new", world.new[mixed], ids=[f"i{i}" for i in mixed], name="new")
    pairs = join_pairs(old, new)
    sides = (world.new, world.old) if direction == "new-to-old" else (world.old, world.new)
    for size in (1, 7, 50, 999):
        blocks = list(pairs.blocks(direction, size))
        assert max(len(x) for x, _ in blocks) == min(size, 50)
        for found, expected in zip(zip(*blocks, strict=True), sides, strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)
    batches = list(pairs.shuffled(8, seed=3))
    assert sorted(np.concatenate(batches)) == list(range(50))
    assert not np.array_equal(np.concatenate(batches), np.arange(50))
    chosen = np.array([40, 3, 3, 17])
    np.testing.assert_array_equal(pairs.select(chosen).take(np.arange(4), direction)[0], sides[0][chosen])
    selected = pairs.select(chosen).labels
    assert selected is not None
    assert selected.tolist() == [8, 0, 0, 3]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_join_is_a_dictionary_join(tmp_path_factory, data):
    kind = data.draw(st.sampled_from([st.integers(-(2**62), 2**62), st.text("ab#/é ", max_size=4)]))
    old_ids = data.draw(st.lists(kind, min_size=1, max_size=12, unique=True))
    fresh = data.draw(st.lists(kind, max_size=6, unique=True))
    kept = data.draw(st.lists(st.sampled_from(old_ids), unique=True))
    new_ids = data.draw(st.permutations(kept + [i for i in fresh if i not in kept]))
    if not new_ids:
        return
    folder = tmp_path_factory.mktemp("join")
    old = open_store(folder / "old", np.ones((len(old_ids), 2)), ids=old_ids, chunk_rows=3)
    new = open_store(folder / "new", np.ones((len(new_ids), 3)), ids=new_ids, name="new", chunk_rows=3)
    where = {item: row for row, item in enumerate(new_ids)}
    expected = [(row, where[item]) for row, item in enumerate(old_ids) if item in where]
    if not expected:
        with pytest.raises(ValueError, match="no item_id in common"):
            join_pairs(old, new)
        return
    pairs = join_pairs(old, new)
    assert list(zip(pairs.old_rows.tolist(), pairs.new_rows.tolist(), strict=True)) == expected


def labels_of(folder, old_labels, new_labels, ids=("a", "b", "c")):
    old = open_store(folder / "old", np.ones((3, 2)), ids=["a", "b", "c"], labels=old_labels)
    new = open_store(folder / "new", np.ones((len(ids), 2)), ids=ids, labels=new_labels, name="new")
    codes = join_pairs(old, new).labels
    return None if codes is None else codes.tolist()


@pytest.mark.parametrize(
    ("old_labels", "new_labels", "expected"),
    [
        (["y", "x", "y"], ["p", "q", "r"], [1, 0, 1]),
        (["y", "x", "y"], None, [1, 0, 1]),
        (None, [7, 7, 3], [1, 1, 0]),
        (["y", None, "y"], None, [0, 1, 0]),
        ([None, None, None], None, None),
        (["y", None, "y"], ["p", "q", "q"], [0, 1, 0]),
        ([None, None, None], ["p", "q", "q"], [0, 1, 1]),
        (None, None, None),
    ],
)
def test_labels_come_from_either_side_and_unknown_ones_stand_alone(tmp_path, old_labels, new_labels, expected):
    assert labels_of(tmp_path, old_labels, new_labels) == expected


def test_unknown_labels_of_items_that_are_not_paired_do_not_matter(tmp_path):
    assert labels_of(tmp_path, ["y", None, "x"], None, ids=("c", "a")) == [1, 0]


def test_codes_follow_the_order_of_labels_and_unknown_ones_get_each_their_own():
    assert label_codes(pl.Series(["b", None, "a", None, "b"])).tolist() == [1, 2, 0, 3, 1]
    assert label_codes(pl.Series([None, None])).tolist() == [0, 1]
    assert label_codes(pl.Series([30, 10, 20, 10])).tolist() == [2, 0, 1, 0]


def test_stores_that_do_not_pair_are_refused(tmp_path):
    full = write_store(tmp_path / "full", np.ones((2, 3)))
    EmbeddingStore.create(tmp_path / "empty", EmbeddingSpace("new", None, 3, False)).close()
    write_store(tmp_path / "numbers", np.ones((2, 3)), ids=[1, 2], name="new")
    write_store(tmp_path / "others", np.ones((2, 3)), ids=["x", "y"], name="new")
    write_store(tmp_path / "again", np.ones((2, 3)))
    for other, message in [
        ("empty", "the new store .*empty is empty; extract or convert"),
        ("numbers", r"no item_id in common \(for example 'i0' and '1'\)"),
        ("others", r"no item_id in common \(for example 'i0' and 'x'\)"),
        ("again", r"both stores are in the space old \(3-D\): there is nothing to map"),
    ]:
        with pytest.raises(ValueError, match=message):
            join_pairs(EmbeddingStore.open(full), EmbeddingStore.open(tmp_path / other))
    with pytest.raises(ValueError, match=r"the old store .*empty is empty"):
        join_pairs(EmbeddingStore.open(tmp_path / "empty"), EmbeddingStore.open(full))


def test_arrays_pair_by_row_and_must_agree():
    pairs = Pairs.from_arrays(np.zeros((2, 3)), np.ones((2, 5)), np.array(["z", "a"]))
    assert pairs.labels is not None
    assert pairs.labels.tolist() == [1, 0]
    assert pairs.take(np.array([1]), "new-to-old")[0].dtype == np.float32
    with pytest.raises(ValueError, match=r"equally many rows, found \(2, 3\) and \(3, 3\)"):
        Pairs.from_arrays(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"shape \[2, 3\], expected \[n, 4\]"):
        ArrayVectors(np.zeros((2, 3)), EmbeddingSpace("a", None, 4, False))


def test_the_fingerprint_tells_data_apart(tmp_path):
    world = plant(identities=5, samples=4)
    pairs = Pairs.from_arrays(world.old, world.new, world.labels)
    assert Pairs.from_arrays(world.old.copy(), world.new.copy(), world.labels).fingerprint() == pairs.fingerprint()
    stored = [
        join_pairs(
            open_store(tmp_path / f"old{copy}", world.old, labels=world.labels, chunk_rows=3),
            open_store(tmp_path / f"new{copy}", world.new, name="new", chunk_rows=7),
        ).fingerprint()
        for copy in range(2)
    ]
    assert stored[0] == stored[1]
    changed = world.new.copy()
    changed[7, 3] = np.nextafter(changed[7, 3], 9)
    relabelled = np.where(np.arange(20) == 7, 0, world.labels)
    others = [
        Pairs.from_arrays(world.old, changed, world.labels),
        Pairs.from_arrays(world.old, world.new, relabelled),
        Pairs.from_arrays(world.old, world.new),
        Pairs.from_arrays(world.new, world.old, world.labels),
        Pairs.from_arrays(world.old, world.new, world.labels, old_space=EmbeddingSpace("other", None, 8, False)),
        pairs.select(np.arange(19)),
        replace(pairs, weights=np.ones(20)),
        merge_pairs([Source(pairs), Source(pairs)]),
    ]
    assert len({other.fingerprint() for other in (pairs, *others)}) == 9


def test_merged_pairs_are_those_of_their_sources_in_order_with_weights(tmp_path):
    documents, queries = plant(identities=6, samples=3), plant(identities=4, samples=2, seed=1)
    stores = {
        name: open_store(tmp_path / name, vectors, name=name[:3], ids=ids, labels=labels)
        for name, vectors, ids, labels in [
            ("old", documents.old, range(18), documents.labels),
            ("new", documents.new[::-1], range(17, -1, -1), None),
            ("old-queries", queries.old, [f"q{i}" for i in range(8)], queries.labels),
            ("new-queries", queries.new, [f"q{i}" for i in range(8)], None),
        ]
    }
    first, second = (join_pairs(stores[f"old{kind}"], stores[f"new{kind}"]) for kind in ("", "-queries"))
    merged = merge_pairs([Source(first), Source(second, weight=0.5, query_like=True)])
    rows = np.array([20, 3, 25, 0])
    for direction in ("new-to-old", "old-to-new"):
        source, target = merged.take(rows, direction)
        worlds = [(documents.new, documents.old), (queries.new, queries.old)]
        if direction == "old-to-new":
            worlds = [pair[::-1] for pair in worlds]
        for side, found in enumerate((source, target)):
            np.testing.assert_array_equal(found, np.concatenate([worlds[0][side], worlds[1][side]])[rows])
        blocks = [np.concatenate(sides) for sides in zip(*merged.blocks(direction, 5), strict=True)]
        np.testing.assert_array_equal(blocks[0], np.concatenate([worlds[0][0], worlds[1][0]]))
    assert merged.weights is not None
    assert merged.weights.tolist() == [1.0] * 18 + [0.5] * 8
    assert merged.query_like is not None
    assert merged.query_like.tolist() == [False] * 18 + [True] * 8
    assert merged.item_ids is not None
    assert merged.item_ids.to_list() == [str(i) for i in range(18)] + [f"q{i}" for i in range(8)]
    assert merged.labels is not None
    assert len(set(merged.labels[18:])) == 4
    assert set(merged.labels[18:]) < set(merged.labels[:18])  # a label of one name is one identity in every source
    half = merged.select(np.arange(15, 22))
    assert half.weights is not None
    assert half.weights.tolist() == [1.0] * 3 + [0.5] * 4


def test_a_source_without_labels_is_of_items_of_their_own():
    world = plant(identities=4, samples=2)
    labelled = Pairs.from_arrays(world.old, world.new, world.labels)
    merged = merge_pairs([Source(labelled), Source(replace(labelled, labels=None))])
    assert merged.labels is not None
    np.testing.assert_array_equal(merged.labels[:8], world.labels)
    assert len(set(merged.labels)) == 4 + 8
    unlabelled = replace(labelled, labels=None)
    assert merge_pairs([Source(unlabelled), Source(unlabelled)]).labels is None
    assert merge_pairs([Source(labelled)]) is labelled


def test_one_item_in_two_sources_is_one_original(tmp_path):
    world = plant(identities=40, samples=1)
    ids = [f"i{row}" for row in range(40)]
    old, new = (open_store(tmp_path / name, getattr(world, name), name=name, ids=ids) for name in ("old", "new"))
    merged = merge_pairs([Source(join_pairs(old, new)), Source(join_pairs(old, new), query_like=True)])
    assert merged.originals is not None
    np.testing.assert_array_equal(merged.originals[:40], merged.originals[40:])
    folds = identity_folds(merged, 5, seed=0)
    np.testing.assert_array_equal(folds[:40], folds[40:])


def test_views_of_an_unlabelled_item_share_a_fold():
    world = plant(identities=60, samples=1)
    views = np.repeat(np.arange(60), 2)
    labels = np.arange(120)  # as null labels are coded: each view an identity of its own
    labels[:40] = views[:40] // 2
    pairs = replace(Pairs.from_arrays(world.old[views], world.new[views], labels), originals=views)
    folds = identity_folds(pairs, 5, seed=0)
    for key in (views, np.where(np.arange(120) < 40, labels, -views - 1)):
        assert all(len(set(folds[key == value])) == 1 for value in set(key))
    assert len(set(folds)) == 5


def test_the_ids_of_views_are_their_originals(tmp_path):
    world = plant(identities=3, samples=2)
    extra = {"source_item": ["a", "a", None, None, "b", "b"]}
    ids = ["a#1", "a#2", "c", "d", "b#1", "b#2"]
    old = open_store(tmp_path / "old", world.old, ids=ids, extra=extra)
    pairs = join_pairs(old, open_store(tmp_path / "new", world.new, name="new", ids=ids))
    assert pairs.item_ids is not None
    assert pairs.item_ids.to_list() == ["a", "a", "c", "d", "b", "b"]


def test_wrong_sources_and_labels_are_refused():
    world = plant(identities=4, samples=2)
    labelled = Pairs.from_arrays(world.old, world.new, world.labels)
    for weight in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="weight of a source of pairs must be positive and finite"):
            merge_pairs([Source(labelled, weight=weight)])
    other = Pairs.from_arrays(world.old, world.new, old_space=EmbeddingSpace("other", None, 8, False))
    with pytest.raises(ValueError, match="expected one space"):
        merge_pairs([Source(labelled), Source(other)])
    with pytest.raises(ValueError, match="found 7 labels for 8 pairs"):
        Pairs.from_arrays(world.old, world.new, world.labels[:7])


def test_labels_beyond_the_pairs_get_the_codes_of_the_pairs(tmp_path):
    world = plant(identities=3, samples=2)
    names = ["cleo", "cleo", "ann", "ann", "bo", "bo"]
    pairs = join_pairs(
        open_store(tmp_path / "old", world.old, labels=names), open_store(tmp_path / "new", world.new, name="new")
    )
    assert pairs.labels is not None
    codes = pairs.codes_of(pl.Series(["bo", "stranger", "cleo", None]))
    assert codes is not None
    assert codes.tolist() == [pairs.labels[4], -1, pairs.labels[0], -1]
    assert Pairs.from_arrays(world.old, world.new).codes_of(pl.Series(["bo"])) is None
