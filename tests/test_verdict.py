"""Every decision from evidence, and what planted maps come to."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import open_store, plant, space

from compat.evaluation.compatibility import evaluate
from compat.evaluation.verdict import FEWEST_GROUPS, Evidence, decide
from compat.metrics.intervals import Interval
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import Transformer
from compat.transformers.linear import LinearMap


def evidence(
    *, old=0.9, new=0.95, bridge=0.9, spread=0.005, direction: Direction | None = "new-to-old", groups=500, **changes
):
    """What is measured when all settings are there, every interval `spread` to either side."""

    def around(value):
        return Interval(value, value - spread, value + spread)

    found = {
        "direction": direction,
        "old_to_old": around(old),
        "new_to_new": around(new),
        "transformed": around(bridge),
        "retention": around(bridge / old) if old else None,
        "bridge_gain": around(bridge - old),
        "model_gain": around(new - old),
        "groups": groups,
    }
    return Evidence(**(found | changes))


@pytest.mark.parametrize(
    ("found", "decision", "says"),
    [
        (evidence(bridge=0.92), "bridge_queries", "keeps 102.2% .*serve the bridge"),
        (evidence(bridge=0.886), "bridge_queries", "0.886 against 0.900"),
        (evidence(bridge=0.92, direction="old-to-new"), "migrate_gallery", "switch to it"),
        (evidence(bridge=0.92, direction=None), "migrate_gallery", "migrated gallery"),
        (evidence(bridge=0.85), "bridge_and_backfill", "worth replacing by re-embedded items"),
        (evidence(bridge=0.5), "re_embed", "too little to serve"),
        (evidence(new=0.8, bridge=0.92), "keep_old", "new model is worse .*nothing to upgrade to"),
        (evidence(bridge=0.81, spread=0.02), "not_enough_evidence", "spans the limit of 90%"),
        (evidence(groups=FEWEST_GROUPS - 1), "not_enough_evidence", "Only 9 independent"),
        (evidence(transformed=None), "not_enough_evidence", "pass --transformer"),
        (
            evidence(old_to_old=None),
            "not_enough_evidence",
            "evaluate the old gallery with --transformer and --old-queries",
        ),
        (evidence(old=0.0, bridge=0.5), "not_enough_evidence", "finds nothing at all"),
        (evidence(new_to_new=None, model_gain=None), "bridge_queries", "serve"),
        (evidence(new=0.895, bridge=0.92, spread=0.02), "bridge_queries", "serve"),  # not surely worse
    ],
)
def test_each_decision_and_its_reason(found, decision, says):
    verdict = decide(found)
    assert verdict.decision == decision
    assert verdict.to_dict() == {"decision": decision, "reason": verdict.reason}
    assert re.search(says, verdict.reason), verdict.reason


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
    serve = {"bridge_queries", "bridge_and_backfill"}
    sure, doubtful = (decide(evidence(bridge=bridge, spread=s)).decision for s in (spread / 10, spread))
    assert not (doubtful in serve and sure not in serve)


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
    assert report.verdict.decision == "re_embed", report.verdict.reason
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
