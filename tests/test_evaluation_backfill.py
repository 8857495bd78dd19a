"""The backfill section of a report, on planted models and beside plain searches."""

import json

import numpy as np
import pytest
from planted import open_store, plant

from compat.evaluation import backfill as section_module
from compat.evaluation.backfill import ReorderedRows, backfill_orders, backfill_section
from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import first_ranks, relevant_ranks
from compat.metrics.sides import Side
from compat.neighbors import ArrayRows


@pytest.fixture(scope="module")
def sides():
    """Old, native and bridged sides of 80 queries and 240 items; the map is fitted, and errs."""
    world = plant(identities=40, samples=8, old_dim=16, new_dim=16, noise=0.8, new_noise=0.6)
    query = np.arange(320) % 8 < 2
    map_ = np.linalg.lstsq(world.old, world.new, rcond=None)[0]
    old, native = (Side(v[query], ArrayRows(v[~query])) for v in (world.old, world.new))
    bridged = Side(world.new[query], ArrayRows((world.old[~query] @ map_).astype(np.float32)))
    labels, query_labels = world.labels[~query], world.labels[query]
    return old, native, bridged, labels, Relevance.by_label(query_labels, labels, np.full(80, -1)), query_labels


def recall(side, relevance):
    return (first_ranks(relevant_ranks(side.queries, side.gallery, relevance), relevance) == 1).mean()


def test_the_section_has_what_the_report_draws(sides):
    old, native, bridged, labels, relevance, people = sides
    orders = backfill_orders(240, labels=labels, uncertainty=np.arange(240.0), given=np.arange(240))
    section = backfill_section(native, bridged, relevance, orders, old=old, clusters=people).to_dict()
    assert set(section) == {"gallery_rows", "queries", "targets", "orders", "calibrated", "reranked", "reason"}
    assert (section["gallery_rows"], section["queries"], section["reason"]) == (240, 80, "")
    assert section["calibrated"] is False  # one new space, one kind of score
    assert list(section["orders"]) == ["random", "per_identity", "uncertainty", "given"]
    before, after = recall(bridged, relevance), recall(native, relevance)
    assert 0.1 < before < after < 1
    for order in section["orders"].values():
        assert set(order) == {"fraction", "recall_at_1", "area", "reaches"}
        assert len(order["fraction"]) == len(order["recall_at_1"]) == 201
        assert order["recall_at_1"][0] == pytest.approx(before)
        assert order["recall_at_1"][-1] == pytest.approx(after)
        assert before < order["area"] < after
        assert [row["target"] for row in order["reaches"]] == ["old_to_old", "99% of new_to_new"]
        assert 0 < order["reaches"][1]["fraction"] <= 1
    targets = {row["name"]: row["recall_at_1"] for row in section["targets"]}
    assert targets["old_to_old"] == pytest.approx(recall(old, relevance))
    assert targets["99% of new_to_new"] == pytest.approx(0.99 * after)
    assert section["orders"]["uncertainty"] != section["orders"]["given"]
    shown = [(row["proposed_by"], row["candidates"]) for row in section["reranked"]]
    assert shown == [(by, k) for by in ("old queries", "bridged queries") for k in (10, 50, 100)]
    for row in section["reranked"]:
        assert row["recall_at_1"]["low"] < row["recall_at_1"]["value"] < row["recall_at_1"]["high"]
    json.dumps(section, allow_nan=False)


def test_a_target_that_is_never_reached_costs_nothing_that_can_be_paid(sides):
    _, native, bridged, _, relevance, _ = sides
    better = Side(native.queries, ArrayRows(np.zeros((240, 16), np.float32)))  # "re-embedded" to nothing
    orders = backfill_orders(240)
    found = backfill_section(better, bridged, relevance, orders, old=native).to_dict()
    assert found["orders"]["random"]["reaches"][0] == {"target": "old_to_old", "fraction": None}
    alone = backfill_section(native, bridged, relevance, orders).to_dict()
    assert [row["name"] for row in alone["targets"]] == ["99% of new_to_new"]
    assert {row["proposed_by"] for row in alone["reranked"]} == {"bridged queries"}


def test_two_indexes_are_calibrated_and_it_helps(sides):
    old, native, _, _, relevance, _ = sides
    cone = 8 * np.eye(16, dtype=np.float32)[0]  # queries mapped to an old space whose vectors all lie near each other
    mapped = Side(old.queries + cone, ArrayRows(old.gallery.rows(0, 240) + cone))
    orders = backfill_orders(240)
    found = backfill_section(native, mapped, relevance, orders)
    raw = backfill_section(native, mapped, relevance, orders, calibrated=False)
    assert (found.calibrated, raw.calibrated) == (True, False)
    assert found.curves["random"].area > raw.curves["random"].area + 0.05


def test_of_many_queries_a_sample_is_asked(sides, monkeypatch):
    _, native, bridged, _, relevance, _ = sides
    monkeypatch.setattr(section_module, "LEAST_QUERIES", 10)
    monkeypatch.setattr(section_module, "MOST_SCORES", 240 * 30)
    found = [backfill_section(native, bridged, relevance, backfill_orders(240), seed=seed) for seed in (0, 0, 1)]
    assert [one.queries for one in found] == [30, 30, 30]
    assert found[0].to_dict() == found[1].to_dict() != found[2].to_dict()
    whole = recall(bridged, relevance)
    assert found[0].curves["random"].recall_at_1[0] == pytest.approx(whole, abs=0.25)
    monkeypatch.setattr(section_module, "MOST_SCORES", 240 * 9)
    refused = backfill_section(native, bridged, relevance, backfill_orders(240))
    assert refused.reason == "the gallery of 240 rows is too large; evaluate a sample of it"
    assert refused.to_dict()["orders"] == {}


def test_a_sample_keeps_queries_with_their_answers_own_items_and_clusters(sides, monkeypatch):
    _, native, _, labels, _, _ = sides
    gallery = native.gallery.rows(0, 240)
    rows = np.arange(0, 240, 3)  # queries that are items of the gallery: themselves excluded, or found at once
    own = Side(gallery[rows], native.gallery)
    excluding = Relevance.by_label(labels[rows], labels, rows)
    monkeypatch.setattr(section_module, "LEAST_QUERIES", 10)
    monkeypatch.setattr(section_module, "MOST_QUERIES", 40)
    found = backfill_section(own, own, excluding, backfill_orders(240), clusters=labels[rows]).curves["random"]
    assert found.recall_at_1[0] == pytest.approx(recall(own, excluding), abs=0.2)
    assert found.recall_at_1[0] < 1
    same = backfill_section(own, own, Relevance.by_item(rows), backfill_orders(240)).curves["random"]
    assert (same.recall_at_1 == 1).all()


def test_no_answer_no_curve(sides):
    _, native, bridged, _, _, _ = sides
    nobody = Relevance.by_item(np.full(80, -1))
    section = backfill_section(native, bridged, nobody, backfill_orders(240)).to_dict()
    assert section["reason"] == "no query has anything relevant in the gallery"
    assert section["targets"] == section["reranked"] == []


def test_a_gallery_in_another_order_is_read_in_ours(tmp_path, sides):
    _, native, bridged, _, relevance, _ = sides
    order = np.random.default_rng(0).permutation(240)
    store = open_store(tmp_path / "new", native.gallery.rows(0, 240)[np.argsort(order)])
    again = ReorderedRows(store, order)
    assert len(again) == 240
    np.testing.assert_array_equal(again.rows(10, 30), native.gallery.rows(10, 30))
    orders = backfill_orders(240)
    found = backfill_section(Side(native.queries, again), bridged, relevance, orders)
    assert found.to_dict() == backfill_section(native, bridged, relevance, orders).to_dict()
