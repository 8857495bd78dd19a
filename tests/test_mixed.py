"""A gallery that is partly re-embedded, searched as one."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from planted import open_store, plant, space, write_store
from planted_hubs import HELD, IDS, corrected_map, plant_hubs

from compat.metrics.sides import Calibration, Side
from compat.migration.bridged import BridgedGallery
from compat.migration.calibration import shift_between
from compat.migration.mixed import MixedGallery, learn_calibration
from compat.migration.run import migrate_gallery
from compat.neighbors import ArrayRows, unit_rows
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.linear import LinearMap
from stores.convert import ConvertOptions, convert
from stores.store import EmbeddingStore

OLD, NEW = space("old", 8), space("new", 8)
WORLD = plant(identities=80, samples=1, noise=0.4)
NAMES = [f"i{row}" for row in range(80)]
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
BACK = Transformer("procrustes", "new-to-old", NEW, OLD, LinearMap.from_arrays(TURN, np.zeros(8)))
DONE = np.arange(0, 80, 3)


def slow_merge(queries, native_rows, old_rows, k, line=lambda score: score):
    """Every score of both parts in double precision; an item of both parts has its native one."""
    native = unit_rows(queries).astype(float) @ unit_rows(WORLD.new[native_rows]).T.astype(float)
    bridged = unit_rows(BACK.transform(queries)).astype(float) @ unit_rows(WORLD.old[old_rows]).T.astype(float)
    found = []
    for news, olds in zip(native, bridged, strict=True):
        best = {NAMES[row]: line(score) for row, score in zip(old_rows, olds, strict=True)}
        best |= {NAMES[row]: score for row, score in zip(native_rows, news, strict=True)}
        found.append(sorted(best.items(), key=lambda hit: -hit[1])[:k])
    return found


@pytest.fixture
def parts(tmp_path):
    old = open_store(tmp_path / "old", WORLD.old, ids=NAMES)
    new = open_store(tmp_path / "new", WORLD.new[DONE], name="new", ids=[NAMES[row] for row in DONE])
    return old, new


@pytest.mark.parametrize("line", [Calibration(), Calibration(0.5, 0.2)])
@pytest.mark.parametrize("still", [np.arange(80), np.setdiff1d(np.arange(80), DONE)])
def test_both_parts_compete_and_an_item_of_both_is_the_native_one(tmp_path, parts, line, still):
    old = open_store(tmp_path / "left", WORLD.old[still], ids=[NAMES[row] for row in still])
    for gallery in (old, str(old.path)):
        mixed = MixedGallery(gallery, parts[1], BACK, line)
        found = mixed.search(WORLD.new, 7, space=NEW)
        expected = slow_merge(WORLD.new, DONE, still, 7, lambda score: score * line.scale + line.shift)
        assert found.item_ids == [[item for item, _ in row] for row in expected]
        np.testing.assert_allclose(found.scores, [[score for _, score in row] for row in expected], atol=1e-5)
        assert all(len(set(row)) == 7 for row in found.item_ids)
        assert len(mixed.search(WORLD.new[:2], 200, space=NEW).item_ids[0]) == 80


@pytest.mark.parametrize("seed", range(4))
def test_the_order_within_each_part_is_kept_and_no_item_comes_twice(tmp_path, seed):
    chance = np.random.default_rng(seed)
    done = np.sort(chance.choice(80, chance.integers(1, 80), replace=False))
    old = open_store(tmp_path / "old", WORLD.old, ids=range(80))
    new = open_store(tmp_path / "new", WORLD.new[done], name="new", ids=[str(row) for row in done])
    line = Calibration(chance.uniform(0.1, 3), chance.normal())
    mixed = MixedGallery(old, new, BACK, line).search(WORLD.new, 30)
    alone = BridgedGallery(old, BACK).search(WORLD.new, 80), BridgedGallery(new).search(WORLD.new, 80)
    native = {str(row) for row in done}
    for ids, scores, bridged, own in zip(*mixed, alone[0].item_ids, alone[1].item_ids, strict=True):
        names = [str(each) for each in ids]
        assert len(set(names)) == 30
        assert (np.diff(scores) <= 0).all()
        of_old, of_new = [each for each in names if each not in native], [each for each in names if each in native]
        assert of_new == own[: len(of_new)]
        assert of_old == [str(each) for each in bridged if str(each) not in native][: len(of_old)]


def test_an_engine_that_still_has_moved_items_is_asked_for_more(tmp_path, parts):
    (tmp_path / "lance").mkdir()
    uri = f"lance:{tmp_path / 'lance' / 'old'}"
    convert(ConvertOptions(str(parts[0].path), uri))
    found = MixedGallery(uri, parts[1], BACK).search(WORLD.new, 5, space=NEW)
    expected = slow_merge(WORLD.new, DONE, np.arange(80), 5)
    assert found.item_ids == [[item for item, _ in row] for row in expected]


def test_at_both_ends_it_is_the_bridge_and_the_new_gallery(tmp_path, parts):
    empty = EmbeddingStore.create(tmp_path / "empty", NEW)
    empty.close()
    bridge = BridgedGallery(parts[0], BACK).search(WORLD.new, 3, space=NEW)
    assert MixedGallery(parts[0], empty, BACK).search(WORLD.new, 3, space=NEW).item_ids == bridge.item_ids
    whole = open_store(tmp_path / "whole", WORLD.new, name="new", ids=NAMES)
    native = BridgedGallery(whole).search(WORLD.new, 3, space=NEW)
    found = MixedGallery(parts[0], whole, BACK).search(WORLD.new, 3, space=NEW)
    assert found.item_ids == native.item_ids
    np.testing.assert_allclose(found.scores, native.scores, atol=1e-6)


def test_wrong_spaces_are_refused(tmp_path, parts):
    other = open_store(tmp_path / "other", WORLD.new, name="other")
    with pytest.raises(WrongSpace, match=r"the old part is searched by queries in new .* the new one in other"):
        MixedGallery(parts[0], other, BACK)
    with pytest.raises(WrongSpace, match="the old part is searched by queries in old"):
        MixedGallery(parts[0], parts[1])
    with pytest.raises(WrongSpace, match="the queries are in old"):
        MixedGallery(parts[0], parts[1], BACK).search(WORLD.old, space=OLD)


def sides_of(queries, old, new):
    return Side(queries, ArrayRows(old)), Side(queries, ArrayRows(new))


def test_the_shift_is_the_mean_difference_of_pairs_that_do_not_belong_together():
    bridged, native = sides_of(WORLD.new, WORLD.old, WORLD.new)
    gap = unit_rows(WORLD.new) @ unit_rows(WORLD.new).T - unit_rows(WORLD.new) @ unit_rows(WORLD.old).T
    expected = gap[~np.eye(80, dtype=bool)].mean()
    found = shift_between(bridged, native)
    assert (found.scale, found.shift) == (1.0, pytest.approx(expected, abs=1e-6))
    with pytest.raises(ValueError, match="9 items are too few to calibrate scores by, expected 20"):
        shift_between(*sides_of(WORLD.new[:9], WORLD.old[:9], WORLD.new[:9]))


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_what_a_correction_takes_off_is_given_back_before_the_parts_compete(tmp_path, direction):
    world = plant_hubs()
    transformer = corrected_map(world, direction)
    ids = [IDS[row] for row in HELD]
    write_store(tmp_path / "old", world.old[HELD], ids=ids)
    done = np.arange(0, len(HELD), 2)
    new = open_store(tmp_path / "new", world.new[HELD][done], name="new", ids=[ids[row] for row in done])
    gallery = tmp_path / "old"
    if direction == "old-to-new":
        gallery = tmp_path / "migrated"
        migrate_gallery(str(tmp_path / "old"), transformer, str(gallery))
    mixed = MixedGallery(str(gallery), new, transformer)
    rows = HELD[done]
    served = transformer.serve_gallery(world.old[rows], [IDS[row] for row in rows])
    bridged = transformer.serve_queries(world.new[rows]) @ served.T
    native = unit_rows(world.new[rows]) @ unit_rows(world.new[rows]).T
    gap = (native - bridged)[~np.eye(len(rows), dtype=bool)].mean()
    assert (mixed.calibration.scale, mixed.calibration.shift) == (1.0, pytest.approx(gap, abs=1e-4))
    assert gap > 0.02
    few = open_store(tmp_path / "few", world.new[HELD][:5], name="new", ids=ids[:5])
    with pytest.raises(ValueError, match="5 items are in both parts, too few to calibrate by, expected 20; give"):
        MixedGallery(str(gallery), few, transformer)
    if direction == "old-to-new":  # it says itself how it is searched
        assert MixedGallery(str(gallery), new).calibration == mixed.calibration
    plain = replace(transformer, correction=None)
    if direction == "new-to-old":
        assert MixedGallery(str(gallery), new, plain).calibration == Calibration()
    learned = learn_calibration(str(gallery), new, transformer)
    assert learned == mixed.calibration


def test_native_ids_can_be_told_where_an_engine_cannot(parts):
    class Told:
        space = NEW

        def search(self, queries, k):
            return BridgedGallery(parts[1]).search(queries, k, space=NEW)

    with pytest.raises(TypeError, match="the rows of the Told cannot be read"):
        MixedGallery(parts[0], Told(), BACK)
    native = pl.Series("item_id", [NAMES[row] for row in DONE])
    found = MixedGallery(parts[0], Told(), BACK, native_ids=native).search(WORLD.new, 4, space=NEW)
    assert found.item_ids == MixedGallery(parts[0], parts[1], BACK).search(WORLD.new, 4, space=NEW).item_ids
