"""Every decision from evidence, and what planted maps come to."""

import re
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import open_store, plant, space

from compat.evaluation.compatibility import evaluate
from compat.evaluation.verdict import BackfillStages, Evidence, WorstGroup, decide
from compat.metrics.intervals import Interval
from compat.options import Direction, FitOptions, VerdictLimits
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.linear import LinearMap

LIMITS = VerdictLimits()
SERVED = {"bridge_queries", "migrate_gallery", "bridge_and_backfill"}


def around(value, spread=0.005):
    return Interval(value, value - spread, value + spread)


def evidence(
    *, old=0.9, new=0.95, bridge=0.9, spread=0.005, direction: Direction | None = "new-to-old", groups=500, **changes
):
    """What is measured when all settings are there, every interval `spread` to either side."""
    found = {
        "direction": direction,
        "old_to_old": around(old, spread),
        "new_to_new": around(new, spread),
        "transformed": around(bridge, spread),
        "retention": around(bridge / old, spread) if old else None,
        "bridge_gain": around(bridge - old, spread),
        "model_gain": around(new - old, spread),
        "groups": groups,
        "unit": "identities",
        "gallery_rows": 10_000,
    }
    return Evidence(**(found | changes))


CURVE = BackfillStages((0.0, 0.25, 0.5, 0.75, 1.0), (0.85, 0.91, 0.89, 0.92, 0.95), order="random")
WORST = WorstGroup("camera: night", around(0.7, 0.03))


@pytest.mark.parametrize(
    ("found", "decision", "says"),
    [
        (evidence(bridge=0.92), "bridge_queries", "keeps 102.2% .*serve the bridge"),
        (evidence(bridge=0.886), "bridge_queries", "0.886 against 0.900"),
        (evidence(bridge=0.92, direction="old-to-new"), "migrate_gallery", "switch to it"),
        (evidence(bridge=0.92, direction=None), "migrate_gallery", "migrated gallery"),
        (evidence(bridge=0.85), "bridge_and_backfill", "worth replacing; re-embed items as"),
        (
            evidence(bridge=0.9, spread=0.04),
            "bridge_and_backfill",
            "about 2,000 identities in all would tell",
        ),
        (evidence(bridge=0.85, backfill=CURVE), "bridge_and_backfill", r"Begin with the first 75% .*\(random\)"),
        (evidence(bridge=0.92, worst_group=WORST), "bridge_and_backfill", "camera: night keeps only 70.0%"),
        (evidence(bridge=0.92, worst_group=WorstGroup("few", around(0.7, 0.2))), "bridge_queries", "serve"),
        (evidence(bridge=0.5), "re_embed", "too little to serve"),
        (evidence(bridge=0.5, new_to_new=None, model_gain=None), "re_embed", "or stay with the old model"),
        (evidence(bridge=0.5, new=0.9), "keep_old", "not shown to gain anything"),
        (evidence(bridge=0.5, new=0.91, spread=0.02), "keep_old", "unless about 2,000 identities in all show one"),
        (evidence(bridge=1.0, old=1.0, new=1.0), "bridge_queries", "serve"),  # ceilings: no gain to share, and no need
        (evidence(bridge=0.5, old=1.0, new=1.0), "keep_old", "too little to serve"),
        (evidence(new=0.8, bridge=0.92), "keep_old", "new model is worse .*nothing to upgrade to"),
        (evidence(bridge=0.80, spread=0.02), "not_enough_evidence", "spans the limit of 90%.*about 1,700 identities"),
        (evidence(bridge=0.85, spread=0.2), "not_enough_evidence", "spans the limit of 80%.*about 960 identities"),
        (evidence(bridge=0.8091, spread=0.02), "not_enough_evidence", "more than 50,000 identities"),
        (evidence(groups=LIMITS.fewest_groups - 1), "not_enough_evidence", "Only 9 independent identities"),
        (evidence(transformed=None), "not_enough_evidence", "pass --transformer"),
        (
            evidence(old_to_old=None),
            "not_enough_evidence",
            "evaluate the old gallery with --transformer and --old-queries",
        ),
        (evidence(old=0.0, bridge=0.5), "not_enough_evidence", "finds nothing at all"),
        (evidence(constant_answer=0.899), "not_enough_evidence", "not surely better than giving every query the same"),
        (evidence(bridge=0.85, constant_answer=0.848), "not_enough_evidence", "it is not surely better than giving"),
        (evidence(bridge=0.84, constant_answer=0.85), "re_embed", "too little to serve"),
        (evidence(new_to_new=None, model_gain=None), "bridge_queries", "serve"),
        (evidence(new=0.895, bridge=0.92, spread=0.02), "bridge_queries", "serve"),  # not surely worse
        (evidence(old=0.012, bridge=0.001, new=0.4, spread=0.0005), "re_embed", "too little"),  # a loss of only 0.011
    ],
)
def test_each_decision_and_its_reason(found, decision, says):
    verdict = decide(found)
    assert verdict.decision == decision, verdict.reason
    assert re.search(says, verdict.reason), verdict.reason
    told = verdict.to_dict()
    assert (told["decision"], told["reason"]) == (decision, verdict.reason)
    assert told["limits"] == {field.name: getattr(LIMITS, field.name) for field in fields(LIMITS)}
    assert told.get("needed", "") == verdict.needed
    assert not verdict.needed or verdict.needed in verdict.reason or "Only 9" in verdict.reason


@pytest.mark.parametrize(
    ("found", "limits", "before", "after"),
    [
        (evidence(bridge=0.88), {"tolerated_loss": 0.05}, "bridge_and_backfill", "bridge_queries"),
        (evidence(bridge=0.85), {"retention_floor": 0.97}, "bridge_and_backfill", "re_embed"),
        (evidence(bridge=0.75), {"retention_floor": 0.8}, "re_embed", "bridge_and_backfill"),
        (
            evidence(bridge=0.85, spread=0.1),
            {"retention_assured": 0.9},
            "bridge_and_backfill",
            "not_enough_evidence",
        ),
        (evidence(worst_group=WORST), {"worst_group_floor": 0.6}, "bridge_and_backfill", "bridge_queries"),
        (evidence(groups=50), {"fewest_groups": 51}, "bridge_queries", "not_enough_evidence"),
        (evidence(bridge=0.5), {"cost_per_reembedded_item": 1.0}, "re_embed", "keep_old"),
        (evidence(bridge=0.89), {"value_per_recall_point": 1.0}, "bridge_queries", "bridge_and_backfill"),
    ],
)
def test_each_limit_flips_a_decision(found, limits, before, after):
    assert decide(found).decision == before
    assert decide(found, VerdictLimits(**limits)).decision == after


def test_costs_weigh_the_gain_against_the_bill():
    served, poor = evidence(bridge=0.89), evidence(bridge=0.5)
    dear = VerdictLimits(cost_per_reembedded_item=0.01, value_per_recall_point=10)  # 100 for 6 or 5 points
    cheap = VerdictLimits(cost_per_reembedded_item=0.01, value_per_recall_point=25)
    assert [decide(served, limits).decision for limits in (dear, cheap)] == ["bridge_queries", "bridge_and_backfill"]
    assert [decide(poor, limits).decision for limits in (dear, cheap)] == ["keep_old", "re_embed"]
    assert "worth 150 and cost 100" in decide(served, cheap).reason
    losing = evidence(bridge=0.85)  # loses more than is tolerated, and 10 points are still to be had
    assert [decide(losing, limits).decision for limits in (dear, cheap)] == ["bridge_queries", "bridge_and_backfill"]
    assert "+0.100 of recall@1 are worth 100 and cost 100" in decide(losing, dear).reason


def test_how_much_to_backfill_first():
    def first(**limits):
        return CURVE.first(0.9, VerdictLimits(**limits), 10_000)

    assert first() == 0.75  # at a half it falls below once more
    assert CURVE.first(0.99, LIMITS, None) == 1.0  # never reached: all
    assert CURVE.first(0.5, LIMITS, None) == 0.0
    worth = {"value_per_recall_point": 100.0}
    assert first(**worth) == 1.0
    assert first(**worth, cost_per_reembedded_item=0.1) == 0.25  # 600 of worth for 250
    assert first(**worth, cost_per_reembedded_item=1.0) == 0.0


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"tolerated_loss": -0.1}, "tolerated_loss must be between 0 and 1, found -0.1"),
        ({"retention_floor": 1.5}, "retention_floor must be between 0 and 1"),
        ({"retention_floor": 0.7}, "retention_assured must not exceed retention_floor, found 0.8 and 0.7"),
        ({"worst_group_floor": float("nan")}, "worst_group_floor must be between"),
        ({"fewest_groups": 1}, "fewest_groups must be at least 2, found 1"),
        ({"cost_per_reembedded_item": -1}, "cost_per_reembedded_item must not be negative"),
        ({"value_per_recall_point": float("inf")}, "value_per_recall_point must not be negative nor infinite"),
    ],
)
def test_limits_out_of_range_are_refused(limits, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        VerdictLimits(**limits)


@given(
    old=st.floats(0.05, 1),
    bridges=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    spread=st.floats(0.0001, 0.1),
)
def test_a_better_bridge_is_never_judged_worse(old, bridges, spread):
    order = ["re_embed", "not_enough_evidence", "bridge_and_backfill", "bridge_queries"]
    worse, better = (decide(evidence(old=old, bridge=b, spread=spread, new=1.2)).decision for b in sorted(bridges))
    assert order.index(worse) <= order.index(better)


@given(spread=st.floats(0.0001, 0.3), bridge=st.floats(0, 1))
def test_more_doubt_never_leads_from_no_to_yes(spread, bridge):
    sure, doubtful = (decide(evidence(bridge=bridge, spread=s)).decision for s in (spread / 10, spread))
    assert not (doubtful in SERVED and sure not in SERVED)


@given(bridge=st.floats(0.6, 0.95), spread=st.floats(0.01, 0.2), groups=st.integers(20, 2000))
def test_as_much_evidence_as_is_asked_for_settles_it(bridge, spread, groups):
    verdict = decide(evidence(bridge=bridge, spread=spread, groups=groups))
    if verdict.decision == "not_enough_evidence" and verdict.needed.startswith("about"):
        needed = int(verdict.needed.split()[1].replace(",", ""))
        assert needed > groups
        shorter = spread * np.sqrt(groups / needed) * (1 - 1e-9)
        again = decide(evidence(bridge=bridge, spread=shorter, groups=needed))
        assert again.decision != "not_enough_evidence", again.reason


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """140 people of 5 pictures, one of each asked; the last 80 people are never shown to the fit."""
    folder = tmp_path_factory.mktemp("verdict")
    world = plant(identities=140, samples=5, old_dim=16, new_dim=16, noise=0.6, new_noise=0.2)
    asked = np.arange(700) % 5 == 0
    ids = np.array([f"i{row}" for row in range(700)])

    def store(name, vectors, model, rows):
        return open_store(folder / name, vectors[rows], name=model, ids=ids[rows], labels=world.labels[rows])

    held_out = world.labels >= 60
    found = {
        "gallery": store("gallery", world.old, "old", held_out & ~asked),
        "queries": store("queries", world.new, "new", held_out & asked),
        "old_queries": store("old_queries", world.old, "old", held_out & asked),
        "new_gallery": store("new_gallery", world.new, "new", held_out & ~asked),
    }
    return found, world, ~held_out


def judged(stores, transformer):
    return evaluate(**stores[0], transformer=transformer)


def linear_map(weight, bias=0.0, direction: Direction = "new-to-old"):
    new, old = space("new", 16), space("old", 16)
    source, target = (new, old) if direction == "new-to-old" else (old, new)
    return Transformer("ridge", direction, source, target, LinearMap.from_arrays(weight, np.zeros(16) + bias))


def fitted(stores, shuffle=None, **options):
    _, world, train = stores
    new = world.new[train]
    pairs = Pairs.from_arrays(world.old[train], new if shuffle is None else shuffle.permutation(new))
    return fit_transformer(pairs, FitOptions(**options))


def test_a_sound_map_is_recommended(stores):
    for family in ("procrustes", "ridge"):
        report = judged(stores, fitted(stores, transformer=family))
        assert report.verdict.decision in ("bridge_queries", "bridge_and_backfill"), report.verdict.reason
        back = judged(stores, fitted(stores, transformer=family, direction="old-to-new"))
        assert back.verdict.decision in ("migrate_gallery", "bridge_and_backfill"), back.verdict.reason


@pytest.mark.parametrize(
    "case", ["random", "constant", "constant gallery", "nearly constant", "zero", "shuffled", "identity"]
)
def test_a_worthless_map_is_never_recommended(stores, case):
    generator = np.random.default_rng(0)
    transformer = {
        "random": lambda: linear_map(generator.normal(size=(16, 16))),
        "constant": lambda: linear_map(np.zeros((16, 16)), bias=1.0),
        "constant gallery": lambda: linear_map(np.zeros((16, 16)), bias=1.0, direction="old-to-new"),
        "nearly constant": lambda: linear_map(1e-9 * generator.normal(size=(16, 16)), bias=1.0),
        "zero": lambda: linear_map(np.zeros((16, 16))),
        "shuffled": lambda: fitted(stores, shuffle=generator),
        "identity": lambda: fitted(stores, transformer="identity"),
    }[case]()
    report = judged(stores, transformer)
    assert report.verdict.decision == "keep_old", report.verdict.reason  # 80 queries do not show the new one better
    assert "unless about" in report.verdict.reason
    transformed = report.settings["transformed"].measures
    assert transformed is not None
    assert transformed["recall_at_1"].value < 0.1
    if case in ("constant gallery", "zero"):  # everything ties
        assert transformed["recall_at_10"].value == 0


def test_a_new_model_that_is_worse_is_not_moved_to(stores, tmp_path):
    found, world, train = stores
    generator = np.random.default_rng(1)
    blurred = world._replace(new=(world.new + 2.5 * generator.normal(size=world.new.shape)).astype(np.float32))
    ids = np.array([f"i{row}" for row in range(700)])
    changed = {}
    for name in ("queries", "new_gallery"):
        rows = np.isin(ids, found[name].items["item_id"].to_list())
        details = {"name": "new", "ids": ids[rows], "labels": world.labels[rows]}
        changed[name] = open_store(tmp_path / name, blurred.new[rows], **details)
    pairs = Pairs.from_arrays(world.old[train], blurred.new[train])
    report = evaluate(**(found | changed), transformer=fit_transformer(pairs))
    assert report.verdict.decision == "keep_old", report.verdict.reason


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_a_perfect_map_is_served(stores, tmp_path, direction: Direction):
    found, world, _ = stores
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))[0].astype(np.float32)
    ids = np.array([f"i{row}" for row in range(700)])
    changed = {}
    for name in ("queries", "new_gallery"):  # the new model is the old one, turned
        rows = np.isin(ids, found[name].items["item_id"].to_list())
        details = {"name": "new", "ids": ids[rows], "labels": world.labels[rows]}
        changed[name] = open_store(tmp_path / name, (world.old @ turn)[rows], **details)
    weight = turn.T if direction == "new-to-old" else turn
    report = evaluate(**(found | changed), transformer=linear_map(weight.astype(float), direction=direction))
    assert report.retention is not None
    assert report.retention.value == 1
    assert report.verdict.decision in SERVED, report.verdict.reason
    assert report.update_gain is None  # no gain to share, and no reason for doubt


def test_an_honest_poor_map_is_not_served(stores):
    _, world, train = stores
    few = np.flatnonzero(train)[:12]
    pairs = Pairs.from_arrays(world.old[few], world.new[few])
    report = judged(stores, fit_transformer(pairs, FitOptions(transformer="ridge")))
    assert report.verdict.decision in ("re_embed", "keep_old"), report.verdict.reason


def test_a_map_turned_round_is_refused(stores):
    turned = linear_map(np.eye(16), direction="new-to-old")
    swapped = Transformer(
        "ridge", "new-to-old", turned.target, turned.source, LinearMap.from_arrays(np.eye(16), np.zeros(16))
    )
    with pytest.raises(WrongSpace):
        judged(stores, swapped)
