"""The settings side by side, on planted data and against a slow search."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from planted import open_store, plant, space
from planted_hubs import ASKED, HELD, IDS, corrected_map, plant_hubs, slow_offsets, unit

from compat.evaluation.compatibility import evaluate
from compat.evaluation.record import MEASURES, SETTINGS
from compat.metrics.intervals import Bootstrap
from compat.migration.run import migrate_gallery
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import WrongSpace
from stores.convert import ConvertOptions, convert
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

PEOPLE, PICTURES = 40, 5
ROWS = PEOPLE * PICTURES
RIDGE = FitOptions(transformer="ridge")


class Stores:
    """Galleries and queries of a planted world; picture 0 of everybody is asked, the others are held."""

    def __init__(self, folder, world):
        self.folder, self.world = folder, world
        self.asked, self.held = (np.flatnonzero((np.arange(ROWS) % PICTURES == 0) == asked) for asked in (True, False))

    def store(self, name, model, rows, *, labels=True, **details):
        vectors = getattr(self.world, model)[rows]
        details |= {"labels": self.world.labels[rows]} if labels else {}
        return open_store(self.folder / name, vectors, name=model, **({"ids": [f"i{row}" for row in rows]} | details))

    def standard(self, **details) -> dict[str, Any]:
        return {
            "gallery": self.store("gallery", "old", self.held, **details),
            "queries": self.store("queries", "new", self.asked, **details),
            "old_queries": self.store("old_queries", "old", np.roll(self.asked, 7), **details),  # in another order
            "new_gallery": self.store("new_gallery", "new", np.roll(self.held, 3), **details),
        }

    def pairs(self):
        rows = self.held
        return Pairs.from_arrays(self.world.old[rows], self.world.new[rows], self.world.labels[rows])


@pytest.fixture
def stores(tmp_path):
    return Stores(tmp_path, plant(PEOPLE, PICTURES, 12, 12, noise=0.7, new_noise=0.4))


def values(report, setting):
    measures = report.settings[setting].measures
    assert measures is not None, (setting, report.settings[setting].reason)
    return {name: measures[name].value for name in MEASURES}


def slow_measures(queries, gallery, right, own=None):
    table = []
    for i, query in enumerate(queries.astype(float)):
        cosines = gallery.astype(float) @ query / np.linalg.norm(gallery.astype(float), axis=1)
        order = [row for row in np.argsort(-cosines) if own is None or row != own[i]]
        ranks = [place for place, row in enumerate(order, start=1) if row in right[i]]
        if ranks:
            precision = np.mean([n / rank for n, rank in enumerate(ranks, start=1)])
            gain = sum(1 / np.log2(rank + 1) for rank in ranks if rank <= 10)
            ideal = sum(1 / np.log2(place + 1) for place in range(1, min(len(ranks), 10) + 1))
            within = sum(rank <= 10 for rank in ranks) / min(10, len(order))
            hits = [ranks[0] <= 1, ranks[0] <= 5, ranks[0] <= 10]
            table.append([*hits, precision, 1 / ranks[0], within, gain / ideal])
    return dict(zip(MEASURES, np.mean(np.array(table, float), axis=0), strict=True))


def test_every_setting_is_what_a_slow_search_finds(stores):
    transformer = fit_transformer(stores.pairs(), FitOptions(transformer="procrustes"))
    back = fit_transformer(stores.pairs(), FitOptions(transformer="ridge", direction="old-to-new"))
    lines = []
    report = evaluate(**stores.standard(), transformer=transformer, comparisons={"back": back}, on_setting=lines.append)
    world, asked, held = stores.world, stores.asked, stores.held
    right = [set(np.flatnonzero(world.labels[held] == world.labels[row])) for row in asked]
    sides = {
        "old_to_old": (world.old[asked], world.old[held]),
        "new_to_new": (world.new[asked], world.new[held]),
        "naive": (world.new[asked], world.old[held]),
        "transformed": (transformer.transform(world.new[asked]), world.old[held]),
    }
    for name, (queries, gallery) in sides.items():
        assert values(report, name) == pytest.approx(slow_measures(queries, gallery, right)), name
    measures = report.comparisons[0].setting.measures
    assert measures is not None
    found = {name: measures[name].value for name in MEASURES}
    assert found == pytest.approx(slow_measures(world.new[asked], back.transform(world.old[held]), right))
    # What was planted: the models are one turn apart, so a rotation recovers what the old system could do.
    assert values(report, "naive")["recall_at_1"] < 0.15
    assert values(report, "transformed")["recall_at_1"] > 0.9 * values(report, "old_to_old")["recall_at_1"]
    assert values(report, "new_to_new")["recall_at_1"] > values(report, "old_to_old")["recall_at_1"]
    assert (report.evaluated, report.excluded, report.groups, report.grouped_by) == (40, 0, 40, "label")
    assert lines[:5] == [
        *("naive", "old to old", "new to new"),
        "transformed (procrustes, new-to-old)",
        "back (ridge, old-to-new)",
    ]
    gain = report.comparisons[0].gain_over_best
    assert gain is not None
    assert gain.value == pytest.approx(found["recall_at_1"] - values(report, "transformed")["recall_at_1"])


def test_retention_and_update_gain_are_ratios_of_recall_with_paired_intervals(stores):
    transformer = fit_transformer(stores.pairs(), RIDGE)
    given = stores.standard()
    report = evaluate(**given, transformer=transformer, seed=5)
    old, new, bridge = (values(report, s)["recall_at_1"] for s in ("old_to_old", "new_to_new", "transformed"))
    assert report.retention is not None
    assert report.update_gain is not None
    assert report.retention.value == pytest.approx(bridge / old)
    assert report.update_gain.value == pytest.approx((bridge - old) / (new - old))
    hits = {}
    for name, (queries, gallery) in {
        "old": (stores.world.old, stores.world.old),
        "bridge": (transformer.transform(stores.world.new), stores.world.old),
    }.items():
        held, labels = gallery[stores.held], stores.world.labels
        cosines = queries[stores.asked] @ (held / np.linalg.norm(held, axis=1, keepdims=True)).T
        hits[name] = labels[stores.held][cosines.argmax(axis=1)] == labels[stores.asked]
    measured = np.stack([hits["bridge"], hits["old"]], axis=1).astype(float)
    assert report.retention == Bootstrap(measured, np.arange(40), seed=5).ratio(0, 1)
    assert report.retention.low < report.retention.value < report.retention.high
    again = evaluate(**given, transformer=transformer, seed=5)
    assert again == report
    assert evaluate(**given, transformer=transformer, seed=6).retention != report.retention


def test_the_report_holds_every_promised_key_as_plain_json(stores):
    report = evaluate(**stores.standard(), transformer=fit_transformer(stores.pairs(), RIDGE)).to_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert {"format_version", "settings", "retention", "update_gain", "verdict"} <= report.keys()
    assert set(report["settings"]) == set(SETTINGS) >= {"old_to_old", "new_to_new", "naive", "transformed"}
    measured = {"recall_at_1", "recall_at_5", "recall_at_10", "mean_average_precision", "mean_reciprocal_rank"}
    measured |= {"precision_at_10", "ndcg_at_10"}
    for name, setting in report["settings"].items():
        if name in ("transformed_uncorrected", "old_to_old_corrected"):
            assert setting is None
            continue
        assert setting.keys() == measured
        for interval in setting.values():
            assert interval.keys() == {"value", "low", "high"}
            assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert report["reasons"] == dict.fromkeys(
        ("transformed_uncorrected", "old_to_old_corrected"), "the transformer carries no hubness correction"
    )
    assert {"decision", "reason", "limits"} <= report["verdict"].keys()
    assert {"flips", "cmc", "verification", "open_set", "backfill", "confidence"} <= report.keys()
    assert report["gallery"]["rows"] == 160
    assert report["queries"]["space"] == space("new", 12).to_dict()
    assert report["transformer"]["pairs"] == 160
    assert "epochs" not in report["transformer"]


def test_unequal_dimensions_leave_out_the_naive_setting_alone(tmp_path):
    stores = Stores(tmp_path, plant(PEOPLE, PICTURES, 10, 16, noise=0.4))
    for direction in ("new-to-old", "old-to-new"):
        transformer = fit_transformer(stores.pairs(), FitOptions(transformer="ridge", direction=direction))
        stores.folder = tmp_path / direction
        report = evaluate(**stores.standard(), transformer=transformer)
        assert report.settings["naive"].measures is None
        assert report.settings["naive"].reason == "16-D queries cannot search a 10-D gallery"
        assert report.to_dict()["settings"]["naive"] is None
        assert values(report, "transformed")["recall_at_1"] > 0.6
        assert report.retention is not None


def test_what_is_not_given_is_null_with_a_reason(stores):
    given = stores.standard()
    alone = evaluate(given["gallery"], given["queries"])
    missing = alone.to_dict()
    assert [name for name, setting in missing["settings"].items() if setting] == ["naive"]
    assert missing["reasons"] == {
        "old_to_old": "needs --old-queries, the same queries through the old model",
        "new_to_new": "needs --new-gallery, the gallery re-embedded by the new model",
        "transformed": "no transformer was given",
        "transformed_uncorrected": "there is no hubness correction",
        "old_to_old_corrected": "there is no hubness correction",
    }
    assert (missing["retention"], missing["retention_reason"]) == (None, "needs transformed and old_to_old")
    assert missing["update_gain_reason"] == "needs transformed and old_to_old and new_to_new"
    assert missing["verdict"]["decision"] == "not_enough_evidence"
    assert missing["transformer"] is None
    transformer = fit_transformer(stores.pairs(), RIDGE)
    without_new = evaluate(
        given["gallery"], given["queries"], transformer=transformer, old_queries=given["old_queries"]
    )
    assert without_new.retention is not None
    assert without_new.update_gain is None
    assert without_new.update_gain_reason == "needs new_to_new"


def test_no_gain_is_shared_where_the_new_model_is_no_better(tmp_path):
    stores = Stores(tmp_path, plant(PEOPLE, PICTURES, 12, 12, noise=0.4, new_noise=0.9))
    report = evaluate(**stores.standard(), transformer=fit_transformer(stores.pairs(), RIDGE))
    assert report.update_gain is None
    assert report.update_gain_reason == "new-to-new does not exceed old-to-old, so there is no gain to share"
    assert report.retention is not None


def test_an_old_system_that_finds_nothing_has_nothing_to_retain(tmp_path):
    world = plant(PEOPLE, PICTURES, 12, 12, noise=0.2)
    stores = Stores(tmp_path, world._replace(old=np.ones_like(world.old)))
    report = evaluate(**stores.standard(), transformer=fit_transformer(Pairs.from_arrays(world.old, world.new), RIDGE))
    assert values(report, "old_to_old")["recall_at_1"] == 0
    assert report.retention is None
    assert report.retention_reason == "old-to-old finds nothing, so there is nothing to retain"
    assert report.verdict.decision == "not_enough_evidence"


def test_a_migrated_gallery_fills_transformed_and_a_native_one_new_to_new(stores):
    given = stores.standard()
    back = fit_transformer(stores.pairs(), FitOptions(transformer="ridge", direction="old-to-new"))
    bridged = evaluate(given["gallery"], given["queries"], transformer=back)
    migrate_gallery(str(given["gallery"].path), back, str(stores.folder / "migrated"))
    copies = [stores.folder / "migrated"]
    for target in ("copy.parquet", "copy.faiss", "copy"):
        copies.append(stores.folder / target)
        convert(ConvertOptions(str(copies[-2]), str(copies[-1])))
    for path in (copies[0], copies[-1]):  # a copy of a copy is no native extraction either
        report = evaluate(EmbeddingStore.open(path), given["queries"], new_gallery=given["new_gallery"])
        assert values(report, "transformed") == pytest.approx(values(bridged, "transformed"))
        assert report.settings["naive"].measures is None
        assert report.settings["old_to_old"].reason
        assert values(report, "new_to_new")["recall_at_1"] > 0.5
        assert report.verdict.decision == "not_enough_evidence"
    native = evaluate(given["new_gallery"], given["queries"])
    assert native.settings["transformed"].measures is None
    assert native.settings["transformed"].reason == "the gallery is native to the queries' space"
    assert values(native, "new_to_new") == pytest.approx(values(report, "new_to_new"))
    with pytest.raises(WrongSpace, match=r"gallery and queries are both in new .*nothing to bridge"):
        evaluate(given["new_gallery"], given["queries"], transformer=back)


def test_stores_and_transformers_of_other_spaces_are_refused(stores):
    given = stores.standard()
    transformer = fit_transformer(stores.pairs(), RIDGE)
    third = open_store(stores.folder / "third", stores.world.old, name="third", labels=stores.world.labels)
    stranger = replace(transformer, source=space("third", 12))
    elsewhere = replace(transformer, target=space("third", 12))
    for changes, message in [
        ({"transformer": stranger}, r"the transformer's source is third \(12-D\), the vectors given are in new"),
        ({"transformer": elsewhere}, "the transformer's target is third"),
        ({"transformer": replace(transformer, direction="old-to-new")}, "the transformer's source is new"),
        ({"comparisons": {"x": stranger}}, "the transformer's source is third"),
        ({"old_queries": third}, r"--old-queries .*third is in third \(12-D\), expected the space of .*gallery: old"),
        ({"new_gallery": third}, r"--new-gallery .*third is in third \(12-D\), expected the space of .*queries: new"),
        ({"old_queries": given["queries"]}, "--old-queries .* is in new"),
    ]:
        with pytest.raises(WrongSpace, match=message):
            evaluate(**(given | changes))


def test_stores_of_other_items_are_refused(stores):
    given = stores.standard()
    fewer = stores.store("fewer", "old", stores.asked[:-2])
    with pytest.raises(ValueError, match=r"2 of 40 queries are not in .*fewer; --old-queries must hold the same items"):
        evaluate(**(given | {"old_queries": fewer}))
    for name, rows in {"short": stores.held[1:], "long": np.arange(ROWS)}.items():
        other = stores.store(name, "new", rows)
        with pytest.raises(ValueError, match=r"(short|long) must hold the items of .*gallery, each once: found"):
            evaluate(**(given | {"new_gallery": other}))
    EmbeddingStore.create(stores.folder / "empty", EmbeddingSpace("old", None, 12, False)).close()
    empty = EmbeddingStore.open(stores.folder / "empty")
    with pytest.raises(ValueError, match=r"the gallery .*empty is empty"):
        evaluate(empty, given["queries"])
    with pytest.raises(ValueError, match=r"the query store .*empty is empty"):
        evaluate(given["gallery"], empty)


def test_queries_that_are_in_the_gallery_do_not_find_themselves(stores):
    rows = np.arange(ROWS)
    gallery, queries = stores.store("all", "old", rows), stores.store("all_new", "new", rows)
    transformer = fit_transformer(stores.pairs(), RIDGE)
    report = evaluate(gallery, queries, transformer=transformer)
    labels = stores.world.labels
    right = [set(np.flatnonzero(labels == labels[row])) - {row} for row in rows]
    expected = slow_measures(transformer.transform(stores.world.new), stores.world.old, right, own=rows)
    assert values(report, "transformed") == pytest.approx(expected)
    by_item = evaluate(gallery, queries, transformer=transformer, relevance="item")
    expected = slow_measures(transformer.transform(stores.world.new), stores.world.old, [{row} for row in rows])
    assert values(by_item, "transformed") == pytest.approx(expected)
    assert by_item.relevance == "item"
    assert by_item.groups == PEOPLE


def test_queries_without_a_relevant_item_are_left_out_and_counted(stores):
    labels = np.where(stores.world.labels < 10, stores.world.labels + 1000, stores.world.labels)
    gallery = stores.store("gallery", "old", stores.held)
    queries = stores.store("queries", "new", stores.asked, labels=False, extra={"label": labels[stores.asked]})
    report = evaluate(gallery, queries)
    assert (report.evaluated, report.excluded, report.groups) == (30, 10, 30)
    right = [set(np.flatnonzero(stores.world.labels[stores.held] == label)) for label in labels[stores.asked]]
    expected = slow_measures(stores.world.new[stores.asked], stores.world.old[stores.held], right)
    assert values(report, "naive") == pytest.approx(expected)


def test_unknown_labels_match_nothing_not_even_each_other(stores):
    def some_unknown(rows, every):
        return [None if row % every == 0 else int(stores.world.labels[row]) for row in rows]

    asked, held = some_unknown(stores.asked, 20), some_unknown(stores.held, 3)
    gallery = stores.store("gallery", "old", stores.held, labels=False, extra={"label": held})
    queries = stores.store("queries", "new", stores.asked, labels=False, extra={"label": asked})
    report = evaluate(gallery, queries)
    right = [{row for row, label in enumerate(held) if label is not None and label == mine} for mine in asked]
    assert values(report, "naive") == pytest.approx(
        slow_measures(stores.world.new[stores.asked], stores.world.old[stores.held], right)
    )
    assert report.excluded == asked.count(None) == 10
    by_item = evaluate(stores.store("all", "old", np.arange(ROWS)), queries, relevance="item")
    assert (by_item.evaluated, by_item.groups) == (40, 40)  # each unknown is a group of its own


def test_without_labels_the_same_item_is_the_match_in_every_setting(stores):
    given = stores.standard(labels=False)
    with pytest.raises(ValueError, match=r"no query has a relevant item in .*gallery under relevance 'item'"):
        evaluate(**given)
    with pytest.raises(ValueError, match=r"relevance 'label' needs a column label, which .*queries lacks; use 'item'"):
        evaluate(**given, relevance="label")
    queries = stores.store("unlabelled", "new", stores.held, labels=False)
    labelled = stores.store("labelled", "new", stores.held)
    report = evaluate(given["gallery"], queries, new_gallery=labelled)
    assert report.relevance == "item"
    assert (report.groups, report.grouped_by) == (160, "query")
    assert values(report, "new_to_new")["recall_at_1"] == 1


def test_what_is_relevant_is_formed_once_whatever_the_other_gallery_says_of_its_items(stores):
    given = stores.standard()
    backwards = stores.store("backwards", "new", stores.held[::-1], labels=False)
    expected = evaluate(**given)
    found = evaluate(**(given | {"new_gallery": backwards}))
    assert found.settings["new_to_new"] == expected.settings["new_to_new"]
    assert (found.evaluated, found.excluded) == (expected.evaluated, expected.excluded)


def test_labels_are_compared_as_text_where_one_side_has_integers(stores):
    gallery = stores.store("gallery", "old", stores.held)
    texts = [str(stores.world.labels[i]) for i in stores.asked]
    queries = stores.store("queries", "old", stores.asked, labels=False, extra={"label": texts})
    same = evaluate(gallery, stores.store("numbers", "old", stores.asked))
    assert values(evaluate(gallery, queries), "new_to_new") == values(same, "new_to_new")


@pytest.mark.parametrize("ending", ["csv", "parquet", "tsv"])
@pytest.mark.parametrize("kind", ["text", "padded text", "numbers"])
def test_a_table_of_judgements_decides(stores, ending, kind):
    name = {"text": "i{}".format, "padded text": "{:04}".format, "numbers": int}[kind]
    gallery = stores.store("gallery", "old", stores.held, ids=[name(row) for row in stores.held])
    queries = stores.store("queries", "new", stores.asked, ids=[name(row) for row in stores.asked])
    generator = np.random.default_rng(0)
    judged = [(q, g) for q in stores.asked[5:] for g in generator.choice(stores.held, size=3, replace=False)]
    irrelevant = [(stores.asked[0], stores.held[0]), (stores.asked[9], stores.held[1])]
    elsewhere = [(stores.asked[7], 999), (998, stores.held[3])]
    rows = judged + judged[:20] + irrelevant + elsewhere
    table = pl.DataFrame(
        {
            "query_id": [name(int(q)) for q, _ in rows],
            "item_id": [name(int(g)) for _, g in rows],
            "grade": [1.0] * len(judged) + [2.0] * 20 + [0.0, 0.0, 3.0, 1.0],
        }
    )
    path = stores.folder / f"judged.{ending}"
    if ending == "parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path, separator="," if ending == "csv" else "\t")
    report = evaluate(gallery, queries, relevance=str(path))
    place = {row: i for i, row in enumerate(stores.held.tolist())}
    right = [{place[int(g)] for q, g in judged if q == row} for row in stores.asked]
    expected = slow_measures(stores.world.new[stores.asked], stores.world.old[stores.held], right)
    assert values(report, "naive") == pytest.approx(expected)
    assert (report.evaluated, report.excluded) == (35, 5)


def test_tables_that_make_no_sense_are_one_line(stores):
    given = stores.standard()
    folder = stores.folder
    (folder / "odd.csv").write_text("query_id,item\ni0,i1\n")
    (folder / "worse.csv").write_text("question,item_id\ni0,i1\n")
    (folder / "graded.csv").write_text("query_id,item_id,grade\ni0,i1,good\n")
    (folder / "strange.csv").write_text("query_id,item_id\n999,998\n")
    (folder / "empty.csv").write_text("")
    (folder / "torn.parquet").write_bytes(b"PAR1")
    (folder / "table.xlsx").write_bytes(b"")
    for table, error, message in [
        ("odd.csv", ValueError, "needs the columns query_id and item_id, found query_id, item"),
        ("worse.csv", ValueError, "has no column query_id; found question, item_id"),
        ("graded.csv", ValueError, "grade in .* must be a number, found String"),
        ("strange.csv", ValueError, "no query has a relevant item"),
        ("empty.csv", ValueError, "cannot be read"),
        ("torn.parquet", ValueError, "cannot be read"),
        ("table.xlsx", ValueError, "cannot tell the format"),
        ("none.csv", FileNotFoundError, r"--relevance .*none.csv is not 'label', 'item', 'auto' or an existing table"),
    ]:
        with pytest.raises(error, match=message) as raised:
            evaluate(**given, relevance=str(folder / table))
        assert "\n" not in str(raised.value)


@pytest.fixture
def hubs(tmp_path):
    """Stores of a world whose last gallery rows are near to every query."""
    world = plant_hubs()

    def store(name, model, rows):
        details = {"ids": [IDS[row] for row in rows], "labels": world.labels[rows]}
        return open_store(tmp_path / name, getattr(world, model)[rows], name=model, **details)

    given = {"gallery": store("gallery", "old", HELD), "queries": store("queries", "new", ASKED)}
    return world, given, {"old_queries": store("old_queries", "old", ASKED[::-1])}


def slow_corrected(queries, gallery, offsets, right):
    """`slow_measures` of scores with offsets: each gallery row is an axis, so that its cosine is the score."""
    scores = unit(queries.astype(float)) @ unit(gallery.astype(float)).T + offsets
    return slow_measures(scores, np.eye(len(gallery)), right)


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_a_transformer_is_judged_as_it_is_served_beside_what_each_part_of_it_does(hubs, direction):
    world, given, old = hubs
    transformer = corrected_map(world, direction)
    correction = transformer.correction
    assert correction is not None
    lines = []
    report = evaluate(**given, **old, transformer=transformer, on_setting=lines.append)
    right = [set(np.flatnonzero(world.labels[HELD] == world.labels[row])) for row in ASKED]
    own = [[i] for i in range(len(HELD))]
    forth = direction == "new-to-old"
    queries = transformer.transform(world.new[ASKED]) if forth else world.new[ASKED]
    gallery = world.old[HELD] if forth else transformer.transform(world.old[HELD])
    offsets = slow_offsets(gallery, correction.bank, correction.strength, own)
    old_offsets = slow_offsets(world.old[HELD], correction.old_bank, correction.strength, own)
    expected = {
        "transformed": slow_corrected(queries, gallery, offsets, right),
        "transformed_uncorrected": slow_measures(queries, gallery, right),
        "old_to_old": slow_measures(world.old[ASKED], world.old[HELD], right),
        "old_to_old_corrected": slow_corrected(world.old[ASKED], world.old[HELD], old_offsets, right),
    }
    for name, measures in expected.items():
        assert values(report, name) == pytest.approx(measures), name
    assert len({tuple(measures.values()) for measures in expected.values()}) == 4
    recall = {name: measures["recall_at_1"] for name, measures in expected.items()}
    assert report.retention is not None
    assert report.retention.value == pytest.approx(recall["transformed"] / recall["old_to_old"])
    assert report.transformer is not None
    assert report.transformer.to_dict()["correction"] == {"strength": 0.5, "neighbours": 10, "bank": len(HELD)}
    assert lines[:4] == [
        *("old to old", "old to old, corrected", f"transformed (ridge, {direction})", "transformed, uncorrected")
    ]
    assert report.to_dict()["reasons"].keys() == {"naive", "new_to_new"}
    assert any("one dimension more: python -m compat.migrate" in note for note in report.notes) == forth


def test_what_is_compared_is_judged_as_it_is_served_too(hubs, monkeypatch):
    world, given, _ = hubs
    monkeypatch.setattr("compat.evaluation.study.SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setattr("compat.transformers.serving.BLOCK_ROWS", 100)
    lines = []
    back, forth = corrected_map(world, "old-to-new"), corrected_map(world, "new-to-old")
    report = evaluate(
        **given, transformer=forth.without_correction(), comparisons={"back": back}, on_setting=lines.append
    )
    alone = evaluate(**given, transformer=back)
    assert report.comparisons[0].setting == alone.settings["transformed"]
    assert values(report, "transformed") == values(evaluate(**given, transformer=forth), "transformed_uncorrected")
    assert report.settings["transformed_uncorrected"].reason == "the transformer carries no hubness correction"
    assert [line for line in lines if "hubness" in line] == [
        f"hubness: {done}/{len(HELD)} gallery rows" for done in (100, len(HELD))
    ]
    without_old = alone.settings["old_to_old_corrected"]
    assert (without_old.measures, without_old.reason) == (
        None,
        "needs --old-queries, the same queries through the old model",
    )


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_a_gallery_migrated_with_its_correction_is_judged_by_raw_queries(hubs, tmp_path, direction):
    world, given, old = hubs
    transformer = corrected_map(world, direction)
    bridged = evaluate(**given, transformer=transformer)
    migrate_gallery(str(given["gallery"].path), transformer, str(tmp_path / "migrated"))
    convert(ConvertOptions(str(tmp_path / "migrated"), str(tmp_path / "copy.faiss")))
    convert(ConvertOptions(str(tmp_path / "copy.faiss"), str(tmp_path / "copy")))
    for name in ("migrated", "copy"):
        gallery, queries = EmbeddingStore.open(tmp_path / name), given["queries"]
        passed = [{"transformer": transformer}, *([{}] if direction == "old-to-new" else [])]
        for given_transformer in passed:
            report = evaluate(gallery, queries, **given_transformer)
            for setting in ("transformed", "transformed_uncorrected"):
                assert values(report, setting) == pytest.approx(values(bridged, setting))
            missing = {name for name, setting in report.settings.items() if setting.measures is None}
            assert missing == {"old_to_old", "old_to_old_corrected", "naive", "new_to_new"}
            assert all(report.settings[name].reason for name in missing)
            assert report.verdict.decision == "not_enough_evidence"
        with pytest.raises(WrongSpace, match=r"queries .*old_queries are in old \(8-D\), those of .* are in new"):
            evaluate(gallery, old["old_queries"], transformer=transformer)
        with pytest.raises(WrongSpace, match="use the transformer it was migrated with"):
            evaluate(gallery, queries, transformer=transformer.without_correction())
        with pytest.raises(WrongSpace, match="compare others on the old gallery"):
            evaluate(gallery, queries, transformer=transformer, comparisons={"x": transformer})
        if direction == "new-to-old":
            with pytest.raises(WrongSpace, match="through the transformer that it was migrated with; pass that one"):
                evaluate(gallery, queries)
