"""Search with new queries in every engine that a gallery may live in."""

import faiss
import numpy as np
import polars as pl
import pytest
from planted import open_store, plant, space, write_store
from planted_hubs import HELD, IDS, corrected_map, plant_hubs
from real_postgres import RealPostgres, postgres, schema

from compat.migration.bridged import BridgedGallery
from compat.migration.engines import among
from compat.migration.run import migrate_gallery
from compat.neighbors import unit_rows
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.linear import LinearMap
from stores.convert import ConvertOptions, convert
from stores.galleries.searching import SEARCHES
from stores.space import EmbeddingSpace

__all__ = ["postgres", "schema"]

OLD, NEW = space("old", 8), space("new", 12)
ROWS, K = 150, 5
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0][:8]
WORLD = plant(identities=ROWS, samples=1, old_dim=8, new_dim=8)
NAMES = [f"item '{row}" for row in range(ROWS)]
ENGINES = ("lance", "qdrant", "postgresql", "npy", "parquet", "faiss", "zarr")


def turned(direction):
    if direction == "old-to-new":
        return Transformer("procrustes", direction, OLD, NEW, LinearMap.from_arrays(TURN, np.zeros(12)))
    return Transformer("procrustes", direction, NEW, OLD, LinearMap.from_arrays(TURN.T, np.zeros(8)))


def uri_of(scheme, folder, name, postgres, schema):
    if scheme == "postgresql":
        return postgres.uri(f"{schema}.{name}")
    return f"{scheme}:{folder / scheme / name}"


@pytest.fixture
def old(tmp_path):
    (tmp_path / "lance").mkdir()
    return open_store(tmp_path / "old", WORLD.old * 20, ids=NAMES)


def slow_neighbours(queries, gallery, names, k=K):
    """From the definition alone, in double precision."""
    cosines = unit_rows(queries).astype(np.float64) @ unit_rows(gallery).astype(np.float64).T
    order = np.argsort(-cosines, axis=1)[:, :k]
    return [[names[i] for i in row] for row in order], np.take_along_axis(cosines, order, 1)


@pytest.mark.parametrize("scheme", ENGINES)
def test_queries_find_the_same_in_every_engine_through_a_map_and_after_migration(
    tmp_path, old, scheme, postgres: RealPostgres, schema
):
    bridged, migrated = (uri_of(scheme, tmp_path, name, postgres, schema) for name in ("bridged", "migrated"))
    convert(ConvertOptions(str(old.path), bridged))
    migrate_gallery(str(old.path), turned("old-to-new"), migrated, state=tmp_path / "state")
    queries = turned("old-to-new").transform(WORLD.old[::10] + 0.3)
    expected, scores = slow_neighbours(turned("new-to-old").transform(queries), WORLD.old, NAMES)
    for gallery in (BridgedGallery(bridged, turned("new-to-old")), BridgedGallery(migrated)):
        assert gallery.query_space == NEW
        assert gallery.search(queries, K).item_ids == expected
        found = gallery.search(queries, K, space=NEW)
        assert found.item_ids == expected
        np.testing.assert_allclose(found.scores, scores, atol=1e-4)
        with pytest.raises(WrongSpace, match=r"the queries are in old .*, expected new .*; map them first"):
            gallery.search(queries, K, space=OLD)
        with pytest.raises(ValueError, match="expected"):
            gallery.search(WORLD.old[::10], K, space=NEW)
    with pytest.raises(WrongSpace, match="direction is old-to-new"):
        BridgedGallery(bridged, turned("old-to-new"))
    with pytest.raises(WrongSpace, match=r"is in old .* not in new"):
        BridgedGallery(bridged, turned("new-to-old"), space=NEW)
    hidden = pl.Series("item_id", [row[0] for row in expected])
    without = BridgedGallery(bridged, turned("new-to-old"), leave_out=hidden).search(queries, K, space=NEW)
    kept = np.flatnonzero(~among(pl.Series(NAMES), hidden))
    assert (
        without.item_ids
        == slow_neighbours(turned("new-to-old").transform(queries), WORLD.old[kept], [NAMES[i] for i in kept])[0]
    )
    short = BridgedGallery(bridged, turned("new-to-old")).search(queries[:1], 2 * ROWS, space=NEW)
    assert len(short.item_ids[0]) == ROWS


@pytest.mark.parametrize("scheme", ENGINES)
@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_a_correction_is_served_where_the_gallery_holds_its_dimension_and_refused_elsewhere(
    tmp_path, scheme, direction, postgres: RealPostgres, schema
):
    (tmp_path / "lance").mkdir()
    world = plant_hubs()
    transformer = corrected_map(world, direction)
    source = write_store(tmp_path / "old", world.old[HELD], name="old", ids=[IDS[row] for row in HELD])
    lifted, plain = (uri_of(scheme, tmp_path, name, postgres, schema) for name in ("lifted", "plain"))
    migrate_gallery(str(source), transformer, lifted, state=tmp_path / "state")
    queries = world.new[:20]
    served = transformer.serve_gallery(world.old[HELD], [IDS[row] for row in HELD]).astype(np.float64)
    scores = transformer.serve_queries(queries).astype(np.float64) @ served.T
    order = np.argsort(-scores, axis=1)[:, :K]
    found = BridgedGallery(lifted, transformer).search(queries, K, space=transformer.query_space)
    assert found.item_ids == [[IDS[HELD[i]] for i in row] for row in order]
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), atol=1e-4)
    if direction == "old-to-new" or scheme not in SEARCHES:
        return
    convert(ConvertOptions(str(source), plain))
    with pytest.raises(ValueError, match=r"has no dimension for the transformer's hubness .*without_correction\(\)"):
        BridgedGallery(plain, transformer)
    assert BridgedGallery(plain, transformer.without_correction()).query_space == transformer.query_space


def test_a_table_of_somebody_elses_is_searched_once_its_space_is_named(postgres: RealPostgres, schema):
    postgres.execute(f"CREATE TABLE {schema}.people (id int PRIMARY KEY, face vector(8))")
    for row, vector in enumerate(WORLD.old):
        text = "[" + ",".join(map(str, vector)) + "]"
        postgres.execute(f"INSERT INTO {schema}.people VALUES (%s, %s::vector)", [row, text])
    postgres.execute(f"INSERT INTO {schema}.people VALUES (9999, NULL)")
    uri = postgres.uri(f"{schema}.people")
    with pytest.raises(WrongSpace, match=r"does not tell what its vectors are; name it: space="):
        BridgedGallery(uri, turned("new-to-old"))
    postgres.execute(f"CREATE INDEX ON {schema}.people USING hnsw (face vector_cosine_ops)")
    queries = turned("old-to-new").transform(WORLD.old)
    found = BridgedGallery(uri, turned("new-to-old"), space=OLD).search(queries, 60, space=NEW)
    assert [row[0] for row in found.item_ids] == list(range(ROWS))
    assert [len(row) for row in found.item_ids] == [60] * ROWS  # more than an index of HNSW finds unasked


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_a_faiss_index_in_memory_searches_itself(metric):
    index = faiss.IndexHNSWFlat(8, 32, metric)
    index.add(unit_rows(WORLD.old))
    queries = turned("old-to-new").transform(WORLD.old)
    expected, scores = slow_neighbours(WORLD.old, WORLD.old, NAMES)
    found = BridgedGallery(index, turned("new-to-old"), space=OLD, item_ids=NAMES).search(queries, K, space=NEW)
    assert np.mean([a == b for a, b in zip(found.item_ids, expected, strict=True)]) > 0.95
    np.testing.assert_allclose(found.scores[:, 0], scores[:, 0], atol=1e-4)
    numbered = faiss.IndexIDMap(faiss.IndexFlat(8, metric))
    numbered.add_with_ids(unit_rows(WORLD.old), np.arange(ROWS) + 7_000)
    found = BridgedGallery(numbered, turned("new-to-old"), space=OLD).search(queries, 1, space=NEW)
    assert found.item_ids == [[row + 7_000] for row in range(ROWS)]
    with pytest.raises(WrongSpace, match="the FAISS index does not tell what its vectors are"):
        BridgedGallery(index, turned("new-to-old"))
    with pytest.raises(ValueError, match="the FAISS index is 8-D, expected 12"):
        BridgedGallery(index, space=NEW)
    with pytest.raises(ValueError, match="3 item ids for a FAISS index of 150 rows"):
        BridgedGallery(index, turned("new-to-old"), space=OLD, item_ids=NAMES[:3])
    long = faiss.IndexFlat(8, metric)
    long.add(WORLD.old * 20)
    with pytest.raises(ValueError, match="not of unit length, so its scores are no cosines"):
        BridgedGallery(long, turned("new-to-old"), space=OLD).search(queries, K, space=NEW)


class Backwards:
    """An engine that finds what is farthest."""

    space: EmbeddingSpace | None = OLD

    def search(self, queries, k):
        scores = unit_rows(queries) @ unit_rows(WORLD.old).T
        order = np.argsort(scores, axis=1)[:, :k]
        return [[NAMES[i] for i in row] for row in order], -np.take_along_axis(scores, order, 1)


def test_any_object_that_searches_is_an_engine():
    queries = turned("old-to-new").transform(WORLD.old)
    found = BridgedGallery(Backwards(), turned("new-to-old")).search(queries, K, space=NEW)
    assert found.item_ids == Backwards().search(WORLD.old, K)[0]
    with pytest.raises(TypeError, match="list cannot be searched; give an EmbeddingStore, a URI"):
        BridgedGallery([1, 2], turned("new-to-old"))


@pytest.mark.parametrize("scheme", sorted(SEARCHES))
def test_what_an_engine_cannot_search_is_one_line(tmp_path, old, scheme, postgres: RealPostgres, schema):
    uri = uri_of(scheme, tmp_path, "gallery", postgres, schema)
    convert(ConvertOptions(str(old.path), uri))
    location = uri.partition(":")[2]
    engine = SEARCHES[scheme]
    with pytest.raises(FileNotFoundError, match="no gallery at"):
        engine.search(uri_of(scheme, tmp_path, "absent", postgres, schema).partition(":")[2], WORLD.old, K, "cosine")
    with pytest.raises(ValueError, match=r"queries are \[q, 3\], expected \[q, 8\]"):
        engine.search(location, WORLD.old[:, :3], K, "cosine")
    with pytest.raises(ValueError, match="query row 1 holds NaN"):
        engine.search(location, np.array([[0.0] * 8, [np.nan] * 8]), K, "cosine")
    with pytest.raises(ValueError, match="found 0; take 1 or more"):
        engine.search(location, WORLD.old, 0, "cosine")
