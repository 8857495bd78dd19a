"""Old FAISS indexes that take new queries: the same answers as the old index gives to mapped queries."""

import numpy as np
import pytest
from planted import open_store, plant, write_store
from planted_maps import drawn_map

import compat.exporting.faiss_file as faiss_file
from compat.exporting import faiss_probe
from compat.exporting.contents import array_map
from compat.exporting.faiss_chain import over_index, transform_chain
from compat.exporting.faiss_check import Compared, compare_answers
from compat.exporting.faiss_file import Unit, export_index
from compat.migration.run import migrate_gallery
from compat.neighbors import unit_rows
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import WrongSpace
from stores.chunks import DamagedStore
from stores.convert import ConvertOptions, convert

faiss = pytest.importorskip("faiss")

SOURCE, TARGET, ROWS = 24, 16, 600
IP, L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
KINDS = ("Flat", "IVF8,Flat", "HNSW8", "PQ4x4", "IVF8,PQ4x4", "SQ8", "PCA12,Flat", "PQ4x4fs", "OPQ4,IVF8,PQ4x4")
ID_MAPPED = ("IDMap,Flat", "IDMap2,HNSW8", "IDMap,PQ4x4")


def gallery(rows=ROWS, dim=TARGET):
    """Unit vectors, as a map that predicts directions needs them."""
    return unit_rows(np.random.default_rng(1).normal(size=(rows, dim)).astype(np.float32))


def queries(count=40):
    generator = np.random.default_rng(2)
    return (generator.normal(size=(count, SOURCE)) * generator.uniform(0.01, 30, size=(count, 1))).astype(np.float32)


def built(kind, metric, path, vectors=None):
    """An index written to a file, and its ids."""
    vectors = gallery() if vectors is None else vectors
    index = faiss.index_factory(vectors.shape[1], kind, metric)
    faiss.omp_set_num_threads(1)
    index.train(vectors)
    ids = np.arange(len(vectors))
    if "IDMap" in kind:
        ids = ids * 3 + 1_000_000
        index.add_with_ids(vectors, ids)
    else:
        index.add(vectors)
    faiss.write_index(index, str(path))
    return index


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", [IP, L2])
@pytest.mark.parametrize("kind", [*KINDS, *ID_MAPPED])
def test_raw_queries_find_what_mapped_ones_find(tmp_path, kind, metric):
    transformer = drawn_map("whitened", SOURCE, TARGET)
    old = built(kind, metric, tmp_path / "old.index")
    before = (tmp_path / "old.index").read_bytes()
    result = export_index(transformer, tmp_path / "old.index", tmp_path / "new.index", check=kind in ("Flat", "HNSW8"))
    assert result.rows == ROWS
    asked = queries()
    mapped = transformer.transform(asked)
    mapped = unit_rows(mapped) if metric == IP else mapped
    expected, expected_ids = old.search(mapped, 10)
    found, found_ids = faiss.read_index(str(tmp_path / "new.index")).search(asked, 10)
    np.testing.assert_array_equal(found_ids, expected_ids)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "old.index").read_bytes() == before
    # and it is, byte for byte, what faiss itself would have written
    chain = transform_chain(array_map(transformer), unit=metric == IP)
    assert (tmp_path / "new.index").read_bytes() == faiss.serialize_index(over_index(chain, old)).tobytes()


@pytest.mark.parametrize("family", ["identity", "procrustes", "ridge", "shrunk", "reduced_rank", "blend", "mlp"])
@pytest.mark.parametrize("normalized", [False, True])
def test_every_linear_family_stands_before_an_index(tmp_path, family, normalized):
    transformer = drawn_map(family, SOURCE, TARGET, normalized=normalized, centred=family != "blend")
    old = built("Flat", L2, tmp_path / "old.index")
    export_index(transformer, tmp_path / "old.index", tmp_path / "new.index", check=False)
    expected, expected_ids = old.search(transformer.transform(queries()), 10)
    found, found_ids = faiss.read_index(str(tmp_path / "new.index")).search(queries(), 10)
    np.testing.assert_array_equal(found_ids, expected_ids)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_unit_length_is_a_choice_where_the_spaces_leave_it_open(tmp_path):
    transformer = drawn_map("ridge", SOURCE, TARGET)
    cases: list[tuple[int, Unit, bool]] = [
        (IP, "auto", True),
        (IP, "no", False),
        (L2, "auto", False),
        (L2, "yes", True),
    ]
    for metric, unit, scaled in cases:
        old = built("Flat", metric, tmp_path / "old.index")
        out = tmp_path / f"{metric}{unit}.index"
        export_index(transformer, tmp_path / "old.index", out, unit=unit, check=False)
        mapped = transformer.transform(queries())
        expected = old.search(unit_rows(mapped) if scaled else mapped, 5)
        found = faiss.read_index(str(out)).search(queries(), 5)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found[1], expected[1])


def test_items_added_later_are_mapped_too(tmp_path):
    transformer = drawn_map("ridge", SOURCE, TARGET)
    built("IDMap,Flat", IP, tmp_path / "old.index")
    export_index(transformer, tmp_path / "old.index", tmp_path / "new.index", check=False)
    index = faiss.read_index(str(tmp_path / "new.index"))
    index.add_with_ids(queries(3), np.array([7, 8, 9]))
    assert index.search(queries(3), 1)[1].ravel().tolist() == [7, 8, 9]


def test_an_index_with_a_hubness_correction_gets_the_one(tmp_path):
    world = plant(identities=20, samples=5, old_dim=TARGET, new_dim=SOURCE)
    store = write_store(tmp_path / "gallery", world.old)
    transformer = drawn_map("ridge", SOURCE, TARGET, corrected=True)
    migrate_gallery(str(store), transformer, f"faiss:{tmp_path / 'lifted.faiss'}")
    result = export_index(transformer, tmp_path / "lifted.faiss", tmp_path / "new.faiss")
    assert (result.output_dim, result.notes) == (TARGET + 1, ())
    served = transformer.serve_queries(world.new)
    lifted = transformer.serve_gallery(world.old, [f"i{row}" for row in range(len(world.old))])
    scores, ids = faiss.read_index(str(tmp_path / "new.faiss")).search(world.new, 10)
    exact = served @ lifted.T
    np.testing.assert_allclose(scores, np.sort(exact, axis=1)[:, ::-1][:, :10], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, ids, 1), scores, atol=1e-5)
    plain = transformer.without_correction().serve_queries(world.new) @ unit_rows(world.old).T
    assert (ids[:, 0] != plain.argmax(axis=1)).any()  # the correction does something here
    other = drawn_map("ridge", SOURCE + 1, TARGET, corrected=True)
    with pytest.raises(WrongSpace, match="use its own"):
        export_index(other, tmp_path / "lifted.faiss", tmp_path / "other.faiss")


def test_an_index_without_room_for_the_correction(tmp_path):
    transformer = drawn_map("ridge", SOURCE, TARGET, corrected=True)
    old = built("Flat", IP, tmp_path / "old.index")
    with pytest.raises(ValueError, match=r"needs an index of 17 dimensions.*has 16.*--uncorrected yes.*--correction 0"):
        export_index(transformer, tmp_path / "old.index", tmp_path / "new.index")
    built("Flat", L2, tmp_path / "wide.index", gallery(dim=TARGET + 1))
    with pytest.raises(ValueError, match=r"by inner product.*has 17 by FAISS's metric 1"):
        export_index(transformer, tmp_path / "wide.index", tmp_path / "new.index")
    result = export_index(transformer, tmp_path / "old.index", tmp_path / "new.index", uncorrected=True)
    assert result.notes == ("the transformer's hubness correction is left out",)
    expected = old.search(unit_rows(transformer.transform(queries())), 5)[1]
    np.testing.assert_array_equal(faiss.read_index(str(tmp_path / "new.index")).search(queries(), 5)[1], expected)


@pytest.mark.parametrize(
    ("transformer", "message"),
    [
        (drawn_map("ridge", TARGET, SOURCE, direction="old-to-new"), r"maps the gallery.*compat\.migrate"),
        (drawn_map("residual_mlp", SOURCE, TARGET), r"residual_mlp is not linear.*onnx.*compat\.migrate"),
        (drawn_map("msresnet", SOURCE, TARGET), r"msresnet is not linear"),
        (drawn_map("unified", SOURCE, TARGET), r"a space of their own.*compat\.migrate.*--format onnx or numpy"),
        (drawn_map("unified", SOURCE, TARGET, direction="old-to-new"), r"^unified maps both models' vectors"),
        (drawn_map("ridge", SOURCE, TARGET + 2), r"vectors of 16 dimensions, expected 18"),
    ],
)
def test_what_cannot_stand_before_an_index_says_what_to_do(tmp_path, transformer, message):
    built("Flat", IP, tmp_path / "old.index")
    with pytest.raises(ValueError, match=message):
        export_index(transformer, tmp_path / "old.index", tmp_path / "new.index")
    assert [path.name for path in tmp_path.iterdir()] == ["old.index"]


def test_an_index_of_another_space_is_refused(tmp_path):
    open_store(tmp_path / "third", gallery(20), name="third").close()
    convert(ConvertOptions(source=str(tmp_path / "third"), target=f"faiss:{tmp_path / 'third.faiss'}"))
    with pytest.raises(WrongSpace, match="is in third"):
        export_index(drawn_map("ridge", SOURCE, TARGET), tmp_path / "third.faiss", tmp_path / "new.faiss")


def test_files_that_are_no_index_or_damaged_are_refused_in_one_line(tmp_path):
    transformer = drawn_map("ridge", SOURCE, TARGET)
    built("IVF8,Flat", L2, tmp_path / "whole.index")
    whole = (tmp_path / "whole.index").read_bytes()
    binary = faiss.IndexBinaryFlat(64)
    binary.add(np.zeros((9, 8), np.uint8))
    faiss.write_index_binary(binary, str(tmp_path / "bits.index"))
    bits = (tmp_path / "bits.index").read_bytes()
    for content, message in (
        (b"", "has 0 bytes"),
        (b"not an index at all, but a text of some length", "no FAISS index"),
        (bits, "an index of bits"),
        (whole[: len(whole) // 2], "the index is damaged"),
        (whole[:12] + b"\xff" * 8 + whole[20:], "is damaged"),
        (whole[:37] + (1 << 40).to_bytes(8, "little") + whole[45:], "the index is damaged"),
        (b"IwXX" + whole[4:], "the index is damaged"),
    ):
        (tmp_path / "old.index").write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            export_index(transformer, tmp_path / "old.index", tmp_path / "new.index")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "new.index").exists()
    with pytest.raises(FileNotFoundError, match="no gallery at"):
        export_index(transformer, tmp_path / "none.index", tmp_path / "new.index")
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]


def test_a_chain_that_does_something_else_is_noticed(tmp_path, monkeypatch):
    transformer = drawn_map("ridge", SOURCE, TARGET)
    built("Flat", L2, tmp_path / "old.index")
    monkeypatch.setattr(faiss_file, "transform_chain", lambda mapped, unit: transform_chain(mapped, unit=unit)[1:])
    with pytest.raises(ValueError, match=r"new\.index gives differs from the transformer"):
        export_index(transformer, tmp_path / "old.index", tmp_path / "new.index")


def test_the_same_export_again_is_left_and_another_file_too(tmp_path):
    transformer = drawn_map("ridge", SOURCE, TARGET)
    built("Flat", L2, tmp_path / "old.index")
    first = export_index(transformer, tmp_path / "old.index", tmp_path / "new.index")
    stamp = (tmp_path / "new.index").stat().st_mtime_ns
    assert export_index(transformer, tmp_path / "old.index", tmp_path / "new.index") == first
    assert (tmp_path / "new.index").stat().st_mtime_ns == stamp
    for out in ("old.index", "new.index"):
        with pytest.raises(FileExistsError, match="is not this export"):
            export_index(drawn_map("mlp", SOURCE, TARGET), tmp_path / "old.index", tmp_path / out)


def test_an_untrained_index_is_refused(tmp_path):
    faiss.write_index(faiss.index_factory(TARGET, "IVF8,Flat", L2), str(tmp_path / "old.index"))
    with pytest.raises(ValueError, match="is not trained"):
        export_index(drawn_map("ridge", SOURCE, TARGET), tmp_path / "old.index", tmp_path / "new.index")


def test_damage_is_an_error_of_its_own(tmp_path):
    built("HNSW8", L2, tmp_path / "old.index")
    content = (tmp_path / "old.index").read_bytes()
    (tmp_path / "old.index").write_bytes(content[:-40])
    with pytest.raises(DamagedStore):
        export_index(drawn_map("ridge", SOURCE, TARGET), tmp_path / "old.index", tmp_path / "new.index")


@pytest.fixture(scope="module")
def lengthy():
    """Items of two models whose lengths spread about 170, a ridge fitted to half of them, and the other half."""
    generator = np.random.default_rng(3)
    seen = generator.normal(size=(600, 12))
    old = seen @ generator.normal(size=(12, TARGET)) + 0.3 * generator.normal(size=(600, TARGET))
    new = seen @ generator.normal(size=(12, SOURCE)) + 0.3 * generator.normal(size=(600, SOURCE))
    old = (unit_rows(old.astype(np.float32)) * 170 * np.exp(0.4 * generator.normal(size=(600, 1)))).astype(np.float32)
    new = new.astype(np.float32)
    ridge = fit_transformer(Pairs.from_arrays(old[:300], new[:300]), FitOptions(transformer="ridge", correction=0.0))
    return ridge, old[300:], new[300:]


def recall(index, asked):
    return (index.search(asked, 1)[1].ravel() == np.arange(len(asked))).mean()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Flat", "IVF8,Flat", "HNSW8", "IDMap,PQ4x4", "OPQ4,IVF8,PQ4x4", "PQ4x4fs"])
def test_an_index_of_raw_lengths_gets_no_map_that_finds_nothing_in_it(tmp_path, lengthy, kind):
    ridge, old, new = lengthy
    raw = built(kind, L2, tmp_path / "old.index", old)
    out = tmp_path / "new.index"
    units: tuple[Unit, ...] = ("auto", "yes")
    for unit in units:
        with pytest.raises(
            ValueError, match=r"holds vectors of length \d\d\d .*the same vectors at unit length$"
        ) as raised:
            export_index(ridge, tmp_path / "old.index", out, unit=unit)
        assert "\n" not in str(raised.value)
        assert not out.exists()
    unchecked = export_index(ridge, tmp_path / "old.index", out, check=False)
    assert "has to hold unit vectors, which was not looked at" in unchecked.notes[0]
    if kind == "Flat":
        assert recall(raw, old) == 1.0
        assert recall(faiss.read_index(str(out)), new) < 0.05  # what the refusal is for


def test_an_index_of_unit_vectors_is_found_in(tmp_path, lengthy):
    ridge, old, new = lengthy
    direct = unit_rows(ridge.transform(new)) @ unit_rows(old).T
    expected = (direct.argmax(axis=1) == np.arange(len(old))).mean()
    assert expected > 0.8
    for metric in (L2, IP):
        built("Flat", metric, tmp_path / f"{metric}.index", unit_rows(old))
        result = export_index(ridge, tmp_path / f"{metric}.index", tmp_path / f"{metric}.out.index")
        assert result.notes == ()
        assert recall(faiss.read_index(str(tmp_path / f"{metric}.out.index")), new) == pytest.approx(expected, abs=0.01)


def test_maps_at_raw_length_stand_before_raw_vectors_unless_scaled(tmp_path, lengthy):
    _, old, _ = lengthy
    built("Flat", L2, tmp_path / "old.index", old)
    for family in ("mlp", "identity"):
        result = export_index(drawn_map(family, SOURCE, TARGET), tmp_path / "old.index", tmp_path / f"{family}.index")
        assert len(result.notes) == (family == "mlp")  # which may have learned the lengths or not
        assert all("mlp maps to about that length, which a short training" in note for note in result.notes)
        with pytest.raises(ValueError, match=r"or leave --unit out to map at raw length"):
            export_index(drawn_map(family, SOURCE, TARGET), tmp_path / "old.index", tmp_path / "unit.index", unit="yes")


def test_lengths_that_spread_a_little_are_told_of(tmp_path):
    spread = np.random.default_rng(0).uniform(0.4, 1.6, size=(ROWS, 1))
    built("Flat", L2, tmp_path / "old.index", (gallery() * spread).astype(np.float32))
    result = export_index(drawn_map("ridge", SOURCE, TARGET), tmp_path / "old.index", tmp_path / "new.index")
    assert "an index of unit vectors loses nothing" in result.notes[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, *ID_MAPPED, "L2norm,Flat", "PQ4x4,RFlat", "NSG8,Flat"])
def test_a_sample_is_of_the_vectors_that_were_added(tmp_path, kind):
    built(kind, L2, tmp_path / "old.index")
    read = faiss.read_index(str(tmp_path / "old.index"))  # which owns what is within
    found = faiss_probe.sample(faiss.downcast_index(read), 8, 6)
    nearest = np.linalg.norm(found[:, None] - gallery()[None], axis=2).min(axis=1)
    assert len(found) == 8
    assert nearest.max() < (0.7 if "PQ" in kind or "PCA" in kind else 0.02)
    assert len(np.unique(found, axis=0)) == 8


def test_an_empty_index_is_not_said_to_agree(tmp_path):
    faiss.write_index(faiss.IndexFlatL2(TARGET), str(tmp_path / "old.index"))
    result = export_index(drawn_map("ridge", SOURCE, TARGET), tmp_path / "old.index", tmp_path / "new.index")
    assert (result.difference, result.checked, result.rows) == (None, 0, 0)
    assert "not checked" in str(result)
    assert result.notes == ("the index is empty, or finds nothing: there was nothing to compare",)


def test_what_was_compared_is_told_as_it_is(tmp_path):
    built("Flat", IP, tmp_path / "old.index")
    result = export_index(drawn_map("ridge", SOURCE, TARGET), tmp_path / "old.index", tmp_path / "new.index")
    assert "of the largest score for nine tenths of 64 queries" in str(result)


def test_items_are_compared_where_their_scores_are_apart():
    scores = np.tile(np.linspace(1.0, 0.1, 10), (2, 20, 1))
    ids = np.tile(np.arange(10), (2, 20, 1))
    assert compare_answers(scores, ids) == (0.0, 20, None, None)
    swapped = ids.copy()
    swapped[0, :, [3, 4]] = swapped[0, :, [4, 3]]
    assert compare_answers(scores, swapped).difference == np.inf
    swapped[0, 2:] = ids[0, 2:]
    assert compare_answers(scores, swapped).difference == 0.0  # nine tenths agree
    tied = scores.copy()
    tied[:, :, 4] = tied[:, :, 3]
    swapped = ids.copy()
    swapped[0, :, 3], swapped[0, :, 4] = 4, 3
    assert compare_answers(tied, swapped).difference == 0.0  # equal scores stand in any order
    fewer = ids.copy()
    fewer[0, :, 9] = -1
    assert compare_answers(scores, fewer).difference == np.inf
    assert compare_answers(scores, np.full_like(ids, -1)) == (None, 0, None, None)
    some = ids.copy()
    some[:, :15] = -1
    assert compare_answers(scores, some).queries == 5


def test_a_file_that_finds_other_items_is_not_kept(tmp_path, monkeypatch):
    built("Flat", IP, tmp_path / "old.index")
    monkeypatch.setattr(faiss_file, "compare_searches", lambda *_, **__: Compared(float("inf"), 64))
    with pytest.raises(ValueError, match=r"new\.index finds other items than queries that the transformer maps"):
        export_index(drawn_map("ridge", SOURCE, TARGET), tmp_path / "old.index", tmp_path / "new.index")
    assert not (tmp_path / "new.index").exists()


def test_options_that_would_do_nothing_are_refused(tmp_path):
    built("Flat", IP, tmp_path / "old.index")
    built("Flat", IP, tmp_path / "wide.index", gallery(dim=TARGET + 1))
    unit_target, corrected = (
        drawn_map("ridge", SOURCE, TARGET, normalized=normal, corrected=not normal) for normal in (True, False)
    )
    for transformer, index in ((unit_target, "old.index"), (corrected, "wide.index")):
        with pytest.raises(ValueError, match="--unit no cannot be had"):
            export_index(transformer, tmp_path / index, tmp_path / "new.index", unit="no")
    with pytest.raises(ValueError, match="no hubness correction for --uncorrected to leave out"):
        export_index(unit_target, tmp_path / "old.index", tmp_path / "new.index", uncorrected=True)
