"""The hubness correction: what it is, and that every way of searching with it finds the same."""

import faiss
import numpy as np
import polars as pl
import pytest
from planted import open_store
from planted_hubs import ASKED, HELD, HUBS, IDS, corrected_map, plant_hubs, slow_offsets, unit

from compat import transform
from compat.evaluation.compatibility import evaluate
from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import relevant_ranks
from compat.migration.bridged import BridgedGallery
from compat.migration.run import migrate_gallery
from compat.options import Direction
from compat.transformers.artefact import WrongSpace, load_transformer
from compat.transformers.hubness import HubnessCorrection, Own, item_hashes, lift_gallery, lift_queries, nearest_mean
from compat.transformers.serving import corrected_old_rows, served_rows
from stores.convert import ConvertOptions, convert
from stores.store import EmbeddingStore

DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")


@pytest.fixture(scope="module")
def world():
    return plant_hubs()


def gallery_of(folder, world, name="gallery", model="old", **details):
    rows = details.pop("rows", HELD)
    ids, labels = [IDS[row] for row in rows], world.labels[rows]
    return open_store(folder / name, getattr(world, model)[rows], name=model, ids=ids, labels=labels, **details)


def expected_offsets(transformer, world, rows=HELD):
    """Slowly, from the definition: every row's own training query left out."""
    mapped = transformer.transform(world.old[rows]) if transformer.direction == "old-to-new" else world.old[rows]
    place = {int(row): [i] for i, row in enumerate(HELD)}
    own = [place.get(int(row), []) for row in rows]
    return slow_offsets(mapped, transformer.correction.bank, transformer.correction.strength, own)


# ------------------------------------------------------------------------------------------------ the correction itself


@pytest.mark.parametrize("bank_rows", [1, 4, 11, 60])
def test_the_mean_of_the_nearest_is_what_a_slow_loop_finds(monkeypatch, bank_rows):
    generator = np.random.default_rng(0)
    gallery, bank = (unit(generator.normal(size=(n, 6))).astype(np.float32) for n in (50, bank_rows))
    for block in (7, 2048):
        monkeypatch.setattr("compat.transformers.hubness._BLOCK_ROWS", block)
        for own in (None, Own(np.arange(50), np.arange(bank_rows)), Own(np.arange(50) % 7, np.arange(bank_rows) % 4)):
            found = nearest_mean(gallery, bank, own=own, neighbours=5)
            for i, row in enumerate(gallery):
                left = np.arange(bank_rows) if own is None else np.flatnonzero(own.bank != own.gallery[i])
                nearest = np.sort((bank[left] @ row).astype(np.float64))[::-1][:5]
                assert found[i] == pytest.approx(nearest.mean() if len(nearest) else 0, abs=1e-6)


def test_offsets_leave_out_the_items_own_queries_whatever_the_type_of_their_ids(world):
    generator = np.random.default_rng(2)
    bank, gallery = unit(generator.normal(size=(40, 6))).astype(np.float32), generator.normal(size=(9, 6)) * 7
    bank[[3, 30]] = unit(gallery[[3, 3]])  # item 3's own queries, from two sources of pairs
    ids = [*range(30), 3, *range(31, 40)]
    correction = HubnessCorrection(0.5, bank, bank[:, :4], item_hashes(ids))
    own = [[i] if i != 3 else [3, 30] for i in range(9)]
    for given in (range(9), [str(i) for i in range(9)], pl.Series(range(9))):
        found = correction.offsets(gallery, given)
        np.testing.assert_allclose(found, slow_offsets(gallery, bank, 0.5, own), atol=1e-6)
    unknown = slow_offsets(gallery, bank, 0.5)
    for given in (None, range(100, 109)):
        np.testing.assert_allclose(correction.offsets(gallery, given), unknown, atol=1e-6)
    assert abs(unknown[3] - correction.offsets(gallery, range(9))[3]) > 0.02
    without_ids = HubnessCorrection(0.5, bank, bank[:, :4], np.empty(0, np.uint64))
    np.testing.assert_allclose(without_ids.offsets(gallery, range(9)), unknown, atol=1e-6)
    np.testing.assert_allclose(
        correction.old_offsets(gallery[:, :4], range(9)), slow_offsets(gallery[:, :4], bank[:, :4], 0.5, own), atol=1e-6
    )


def test_lifted_vectors_have_the_corrected_score_as_their_inner_product():
    generator = np.random.default_rng(3)
    queries, gallery, offsets = generator.normal(size=(5, 6)), generator.normal(size=(7, 6)), generator.normal(size=7)
    product = lift_queries(queries) @ lift_gallery(gallery, offsets).T
    np.testing.assert_allclose(product, unit(queries) @ unit(gallery).T + offsets, atol=1e-6)
    assert product.dtype == np.float32


@pytest.mark.parametrize("ids", [True, False])
def test_a_correction_survives_its_tensors(world, ids):
    given = {"f00d": np.arange(7, dtype=np.float32)}
    correction = corrected_map(world, "new-to-old", ids=ids, galleries=given).correction
    assert correction
    again = HubnessCorrection.from_tensors(correction.to_dict(), correction.tensors())
    assert again.to_dict() == correction.to_dict()
    np.testing.assert_array_equal(again.galleries["f00d"], given["f00d"])
    held = [IDS[row] for row in HELD]
    for found, expected in (
        (again.offsets(world.old[HELD], held), correction.offsets(world.old[HELD], held)),
        (again.old_offsets(world.old[HELD], held), correction.old_offsets(world.old[HELD], held)),
    ):
        np.testing.assert_array_equal(found, expected)
    tensors = correction.tensors()
    with pytest.raises(ValueError, match="the hubness bank is damaged"):
        HubnessCorrection.from_tensors(correction.to_dict(), tensors | {"old_bank": tensors["old_bank"][1:]})


# ------------------------------------------------------------------------------------------------- served everywhere


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dims", [(8, 12), (14, 9)])
def test_every_way_of_searching_finds_the_same_ids_and_the_report_says_so(tmp_path, monkeypatch, direction, dims):
    world = plant_hubs(*dims)
    corrected_map(world, direction).save(tmp_path / "t")
    transformer = load_transformer(tmp_path / "t")
    gallery = gallery_of(tmp_path, world)
    queries = gallery_of(tmp_path, world, "queries", "new", rows=ASKED)
    raw, k = queries.rows(0, len(queries)), 10
    # From the definition alone, in double precision.
    mapped_queries = transformer.transform(raw) if direction == "new-to-old" else raw
    mapped_gallery = transformer.transform(world.old[HELD]) if direction == "old-to-new" else world.old[HELD]
    cosines = unit(mapped_queries.astype(np.float64)) @ unit(mapped_gallery.astype(np.float64)).T
    scores = cosines + expected_offsets(transformer, world)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    held = [IDS[row] for row in HELD]
    expected = [[held[row] for row in rows] for rows in order]
    assert (np.argsort(-cosines, axis=1)[:, :k] != order).any(axis=1).mean() > 0.9  # the correction does something

    monkeypatch.setattr("compat.transformers.serving.BLOCK_ROWS", 50)
    for target in ("migrated", "migrated.faiss"):
        migrate_gallery(str(gallery.path), transformer, str(tmp_path / target), batch_rows=64)
    migrated = EmbeddingStore.open(tmp_path / "migrated")
    bridges = [BridgedGallery(migrated, transformer)]
    bridges.append(BridgedGallery(gallery, transformer) if direction == "new-to-old" else BridgedGallery(migrated))
    for bridge in bridges:
        found = bridge.search(raw, k, space=queries.space)
        assert found.item_ids == expected
        np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), atol=1e-5)

    index = faiss.read_index(str(tmp_path / "migrated.faiss"))
    assert (type(index).__name__, index.d) == ("IndexFlatIP", transformer.target.dim + 1)
    table = pl.read_parquet(tmp_path / "migrated.faiss.items.parquet")["item_id"]
    lifted = transformer.serve_queries(raw)
    if direction == "old-to-new":  # a raw query, and a 1
        np.testing.assert_array_equal(lifted, lift_queries(raw))
    rows = index.search(lifted, k)[1]
    assert [table.gather(row).to_list() for row in rows] == expected

    product = lifted @ transformer.serve_gallery(world.old[HELD], held).T
    np.testing.assert_array_equal(np.argsort(-product, axis=1, kind="stable")[:, :k], order)

    ordered = -np.sort(-scores, axis=1)[:, : k + 1]
    tied = np.diff(ordered, axis=1) > -3e-6  # ranks count ties against the query
    assert tied.mean() < 0.01
    for read in (served_rows(gallery, transformer), migrated):
        for gallery_rows in (10**6, 37):
            for place in range(k):
                ranks = relevant_ranks(
                    lifted,
                    read,
                    Relevance.by_item(order[:, place]),
                    similarity=transformer.served_space.similarity,
                    gallery_rows=gallery_rows,
                )
                assert (ranks == place + 1)[~tied[:, place]].all()

    labels = world.labels[HELD]
    right = labels[order] == world.labels[ASKED][:, None]
    for report in (
        evaluate(gallery, queries, transformer=transformer),
        evaluate(migrated, queries, transformer=transformer),
        *([evaluate(migrated, queries)] if direction == "old-to-new" else []),
    ):
        measures = report.settings["transformed"].measures
        assert measures
        for depth in (1, 5, 10):
            found = measures[f"recall_at_{depth}"].value
            assert found == pytest.approx(right[:, :depth].any(axis=1).mean(), abs=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_planted_hubs_are_set_back(tmp_path, world, direction):
    transformer = corrected_map(world, direction)
    gallery, queries = gallery_of(tmp_path, world), gallery_of(tmp_path, world, "queries", "new", rows=ASKED)
    report = evaluate(gallery, queries, transformer=transformer)
    served, plain = (report.settings[name].measures for name in ("transformed", "transformed_uncorrected"))
    assert served
    assert plain
    assert served["recall_at_1"].value >= plain["recall_at_1"].value + (0.1 if direction == "new-to-old" else 0)
    offsets = served_rows(gallery, transformer).rows(0, len(HELD))[:, -1]
    assert offsets[-HUBS:].max() < np.quantile(offsets[:-HUBS], 0.05)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_offsets_brought_along_are_used_for_that_gallery_and_no_other(tmp_path, world, direction):
    gallery, other = gallery_of(tmp_path, world), gallery_of(tmp_path, world, "other", rows=HELD[:-1])
    odd = np.linspace(-3, 0, len(HELD)).astype(np.float32)
    odd[-1] = 3.0
    transformer = corrected_map(world, direction, galleries={gallery.digest(): odd})
    computed = corrected_map(world, direction)
    np.testing.assert_array_equal(served_rows(gallery, transformer).rows(0, len(HELD))[:, -1], odd)
    for read, rows in ((served_rows(other, transformer), HELD[:-1]), (served_rows(gallery, computed), HELD)):
        np.testing.assert_allclose(read.rows(0, len(rows))[:, -1], expected_offsets(computed, world, rows), atol=1e-5)
    migrate_gallery(str(gallery.path), transformer, str(tmp_path / "migrated"), batch_rows=64)
    migrated = EmbeddingStore.open(tmp_path / "migrated")
    np.testing.assert_array_equal(migrated.rows(0, len(HELD))[:, -1], odd)
    found = BridgedGallery(migrated, transformer).search(world.new[ASKED], 1, space=transformer.query_space)
    assert found.item_ids == [[IDS[HELD[-1]]]] * len(ASKED)
    short = corrected_map(world, direction, galleries={gallery.digest(): odd[1:]})
    with pytest.raises(ValueError, match=rf"brings offsets \[{len(HELD) - 1}\] for a gallery of {len(HELD)} rows"):
        served_rows(gallery, short)


class Watched:
    """A store that keeps count of how many rows were read at a time."""

    def __init__(self, store):
        self._store, self.most = store, 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    def __len__(self):
        return len(self._store)

    def rows(self, start, stop):
        self.most = max(self.most, stop - start)
        return self._store.rows(start, stop)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_offsets_are_found_block_by_block(tmp_path, monkeypatch, world, direction):
    gallery, transformer = gallery_of(tmp_path, world), corrected_map(world, direction)
    whole = served_rows(gallery, transformer).rows(0, len(gallery))
    monkeypatch.setattr("compat.transformers.serving.BLOCK_ROWS", 13)
    watched, told = Watched(gallery), []
    read = served_rows(watched, transformer, on_rows=lambda *rows: told.append(rows))  # pyright: ignore[reportArgumentType]
    assert watched.most == 13
    assert told == [(min(stop, len(HELD)), len(HELD)) for stop in range(13, len(HELD) + 13, 13)]
    np.testing.assert_allclose(read.rows(0, len(gallery)), whole, atol=1e-6)
    old = corrected_old_rows(watched, transformer)  # pyright: ignore[reportArgumentType]
    assert transformer.correction
    own = [[i] for i in range(len(HELD))]
    expected = slow_offsets(world.old[HELD], transformer.correction.old_bank, 0.5, own)
    np.testing.assert_allclose(old.rows(0, len(gallery))[:, -1], expected, atol=1e-5)
    assert watched.most == len(HELD)  # by this test alone


def test_without_a_correction_nothing_is_added(tmp_path, world):
    gallery = gallery_of(tmp_path, world)
    for direction in DIRECTIONS:
        plain = corrected_map(world, direction).without_correction()
        assert plain.served_space == plain.target
        expected = world.old[HELD] if direction == "new-to-old" else plain.transform(world.old[HELD])
        np.testing.assert_allclose(served_rows(gallery, plain).rows(0, len(HELD)), expected, atol=1e-6)
        with pytest.raises(ValueError, match="carries no hubness correction"):
            corrected_old_rows(gallery, plain)


# ------------------------------------------------------------------------------------------- what a gallery is for


def test_a_bridged_gallery_knows_whose_queries_it_takes_and_refuses_wrong_combinations(tmp_path, world):
    back, forth = corrected_map(world, "old-to-new"), corrected_map(world, "new-to-old")
    gallery = gallery_of(tmp_path, world)
    for name, transformer in (("back", back), ("forth", forth)):
        migrate_gallery(str(gallery.path), transformer, str(tmp_path / name))
        convert(ConvertOptions(str(tmp_path / name), str(tmp_path / f"{name}.faiss")))
        convert(ConvertOptions(str(tmp_path / f"{name}.faiss"), str(tmp_path / f"{name}-copy")))
    new = back.target
    for suffix in ("", "-copy"):  # a copy of a copy knows it too
        mapped, copied = (EmbeddingStore.open(tmp_path / f"{name}{suffix}") for name in ("back", "forth"))
        assert (mapped.space, copied.space) == (back.served_space, forth.served_space)
        for bridge in (BridgedGallery(mapped), BridgedGallery(mapped, back), BridgedGallery(copied, forth)):
            assert bridge.query_space == new
            found = bridge.search(world.new[ASKED], 1, space=new)
            assert np.mean([ids[0] in IDS[-HUBS:] for ids in found.item_ids]) < 0.2
            for wrong in (mapped.space, copied.space, gallery.space):
                with pytest.raises(WrongSpace, match=r"the queries are in .*, expected new \(12-D\); map them first"):
                    bridge.search(world.new[ASKED], 1, space=wrong)
            with pytest.raises(ValueError, match=r"expected \[(n|q), 12\]"):
                bridge.search(world.old[ASKED], 1, space=new)
        with pytest.raises(WrongSpace, match=r"queries in new \(12-D\) reach .* through the transformer .*; pass that"):
            BridgedGallery(copied)
        for transformer in (forth, back.without_correction(), corrected_map(world, "old-to-new", strength=0.4)):
            with pytest.raises(WrongSpace, match=r"is in new\+hubness .* use the transformer it was migrated with"):
                BridgedGallery(mapped, transformer)
    assert BridgedGallery(gallery, forth).query_space == new
    with pytest.raises(WrongSpace, match=r"direction is old-to-new .*expected new-to-old"):
        BridgedGallery(gallery, back)
    migrate_gallery(str(gallery.path), back, str(tmp_path / "plain"), correction=False)
    plain = EmbeddingStore.open(tmp_path / "plain")
    assert BridgedGallery(plain).query_space == new
    with pytest.raises(WrongSpace, match=r"direction is old-to-new"):
        BridgedGallery(plain, back)


@pytest.fixture
def saved(tmp_path, world):
    """Artefacts both ways, and the vectors of gallery and queries as files, the gallery's with its ids."""
    gallery = gallery_of(tmp_path, world)
    convert(ConvertOptions(str(gallery.path), str(tmp_path / "gallery.npy")))
    np.save(tmp_path / "bare.npy", world.old[HELD])
    np.save(tmp_path / "queries.npy", world.new[ASKED])
    for direction in DIRECTIONS:
        corrected_map(world, direction).save(tmp_path / direction)
    corrected_map(world, "old-to-new").without_correction().save(tmp_path / "plain")
    return tmp_path


def transformed(folder, transformer, vectors, *options):
    words = ["--transformer", folder / transformer, "--vectors", folder / vectors, "--out", folder / "out.npy"]
    code = transform.main([*map(str, words), *options])
    return np.load(folder / "out.npy") if code == 0 else code


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_files_become_what_an_index_with_the_extra_dimension_takes(saved, world, capsys, direction):
    transformer, held = load_transformer(saved / direction), [IDS[row] for row in HELD]
    queries = transformed(saved, direction, "queries.npy", "--serve", "queries")
    np.testing.assert_allclose(queries, transformer.serve_queries(world.new[ASKED]), atol=1e-6)
    out = capsys.readouterr().out
    assert f"40 vectors of new (12-D) mapped to {transformer.served_space}: " in out
    gallery = transformed(saved, direction, "gallery.npy", "--serve", "gallery")
    np.testing.assert_allclose(gallery, transformer.serve_gallery(world.old[HELD], held), atol=1e-6)
    bare = transformed(saved, direction, "bare.npy", "--serve", "gallery")  # its row numbers are nobody's ids
    np.testing.assert_allclose(bare, transformer.serve_gallery(world.old[HELD]), atol=1e-6)
    assert np.abs(bare - gallery).max() > 1e-3
    mapped = "queries.npy" if direction == "new-to-old" else "gallery.npy"
    vectors = np.load(saved / mapped)
    np.testing.assert_allclose(transformed(saved, direction, mapped), transformer.transform(vectors), atol=1e-6)


def test_queries_that_the_map_was_fitted_to_are_told(tmp_path, world):
    transformer = corrected_map(world, "new-to-old")
    gallery = gallery_of(tmp_path, world)
    for rows, told in ((ASKED, False), (HELD[:30], True)):
        queries = gallery_of(tmp_path, world, name=f"queries{told}", model="new", rows=rows)
        notes = evaluate(gallery, queries, transformer=transformer).notes
        assert any("queries are among the pairs that the map was fitted to" in note for note in notes) == told


def test_without_a_correction_either_side_is_served_as_the_map_alone_makes_it(saved, world):
    transformer = load_transformer(saved / "plain")
    for side, wanted in (
        ("queries", transformer.serve_queries(np.load(saved / "queries.npy"))),
        ("gallery", transformer.serve_gallery(np.load(saved / "gallery.npy"))),
    ):
        np.testing.assert_array_equal(transformed(saved, "plain", f"{side}.npy", "--serve", side), wanted)
        assert wanted.shape[1] == transformer.target.dim


def test_mistakes_in_serving_a_file_are_one_line(saved, capsys):
    for transformer, vectors, options, message in [
        (
            "new-to-old",
            "bare.npy",
            ["--serve", "queries"],
            "holds 8-D vectors, --serve queries takes new (12-D) to",
        ),
        ("new-to-old", "gallery.npy", [], "gallery.npy holds old (8-D), the transformer maps new (12-D) to old (8-D)"),
        ("new-to-old", "queries.npy", ["--serve", "both"], "both"),
    ]:
        assert transformed(saved, transformer, vectors, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
        assert not (saved / "out.npy").exists()
