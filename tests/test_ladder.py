"""`auto`: the best map for the pairs at hand, and why."""

import json
from dataclasses import replace

import numpy as np
import pytest
from planted import plant

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.candidates import CLOSED_FORMS, Candidate, climb
from compat.training.fit import fit_transformer
from compat.training.selection import Distractors

DIRECTIONS = ("new-to-old", "old-to-new")


def anisotropic(rows, *, seed=0, dim=48):
    """Two models of which the old spends its vectors' length on a few axes that tell no more than the others."""
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(dim, dim)))[0]
    items = generator.normal(size=(rows, dim))
    new = items @ turn + generator.normal(size=items.shape)
    old = (items + 0.3 * generator.normal(size=items.shape)) * np.geomspace(10, 1, dim)
    return old.astype(np.float32), new.astype(np.float32)


def served_rank(transformer, old, new):
    ranks = relevant_ranks(
        transformer.serve_queries(new),
        ArrayRows(transformer.serve_gallery(old)),
        relevance := Relevance.by_item(np.arange(len(old))),
        similarity=transformer.served_space.similarity,
    )
    return retrieval_scores(ranks, relevance).reciprocal_rank.mean()


def test_climbing_goes_on_beyond_the_grid_where_its_edge_wins():
    asked = []

    def score(candidate):
        asked.append(candidate)
        return -abs(candidate.steps[0] - 6)

    assert climb("ridge", score) == Candidate("ridge", (6,))
    assert len(asked) == len(set(asked))
    assert climb("ridge", lambda c: c.steps[0]).steps[0] == 8  # no further than what can matter
    both = climb("whitened", lambda c: -((c.steps[0] + 5) ** 2) - (c.steps[1] - 4) ** 2)
    assert both.steps == (-5, 4)


@pytest.mark.parametrize("family", CLOSED_FORMS)
def test_neighbours_stay_on_the_grids(family):
    seen, edge = (
        set(),
        [
            Candidate(
                family,
                {0: (), 1: (0,), 2: (0, 3)}[
                    0 if family in ("identity", "procrustes") else 1 if family in ("ridge", "shrunk") else 2
                ],
            )
        ],
    )
    while edge:
        candidate = edge.pop()
        if candidate not in seen:
            seen.add(candidate)
            edge += candidate.neighbours()
    for candidate in seen:
        settings = candidate.settings(64)
        assert 1e-8 < settings.get("strength", 1) < 1e5
        assert 1 <= settings.get("rank", 1) < 64
        assert 0 < settings.get("share", 0.5) < 1


def test_a_plain_turn_is_given_to_a_simple_map():
    world = plant(identities=300, samples=1, old_dim=16, new_dim=16, noise=0.05)
    transformer = fit_transformer(Pairs.from_arrays(world.old, world.new))
    assert transformer.family == "procrustes"
    assert transformer.correction is None
    training = transformer.training
    chosen = next(rung for rung in training["ladder"] if rung["name"] == training["chosen"])
    assert chosen["tied"]
    assert chosen["behind_the_best"]["value"] >= 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_auto_beats_plain_families_where_the_pairs_call_for_it(direction):
    old, new = anisotropic(1500)
    pairs = Pairs.from_arrays(old[:700], new[:700])
    auto = fit_transformer(pairs, FitOptions(direction=direction))
    found = served_rank(auto, old[700:], new[700:])
    for family in ("procrustes", "ridge"):
        plain = fit_transformer(pairs, FitOptions(transformer=family, direction=direction))
        gain = found - served_rank(plain, old[700:], new[700:])
        assert gain > (-0.01 if (family, direction) == ("ridge", "old-to-new") else 0.02)
    ladder = auto.training["ladder"]
    behind = [rung["behind_the_best"]["value"] for rung in ladder]
    assert behind == sorted(behind)
    assert ladder[0]["behind_the_best"]["value"] == 0
    assert {rung["family"] for rung in ladder} == set(CLOSED_FORMS) - {"identity"}
    assert auto.training["held_out"]["queries"] == 700
    json.dumps(auto.training, allow_nan=False)


def test_the_held_out_score_is_near_what_unseen_items_get():
    old, new = anisotropic(1400)
    auto = fit_transformer(Pairs.from_arrays(old[:700], new[:700]))
    assert served_rank(auto, old[700:], new[700:]) == pytest.approx(
        auto.training["held_out"]["mean_reciprocal_rank"], abs=0.05
    )


def test_the_same_pairs_and_seed_give_the_same_transformer():
    old, new = anisotropic(300, dim=12)
    pairs = Pairs.from_arrays(old, new)
    first, second = fit_transformer(pairs), fit_transformer(pairs)
    assert first.digest() == second.digest()
    assert first.training == second.training


def test_labels_that_repeat_choose_by_identity_with_identities_apart():
    world = plant(identities=40, samples=5, noise=0.4)
    by_label = fit_transformer(Pairs.from_arrays(world.old, world.new, world.labels))
    assert by_label.training["held_out"]["relevance"] == "label"
    by_item = fit_transformer(Pairs.from_arrays(world.old, world.new))
    assert by_item.training["held_out"]["relevance"] == "item"


def test_a_larger_gallery_makes_the_held_out_search_harder():
    old, new = anisotropic(1500)
    pairs = Pairs.from_arrays(old[:300], new[:300])
    alone, crowd = fit_transformer(pairs), fit_transformer(pairs, gallery=Distractors(old[300:]))
    assert alone.training["held_out"]["gallery"] == 300
    assert crowd.training["held_out"]["gallery"] == 1500
    assert crowd.training["held_out"]["recall_at_1"] < alone.training["held_out"]["recall_at_1"]


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_given_correction_is_kept(strength):
    old, new = anisotropic(300, dim=12)
    transformer = fit_transformer(Pairs.from_arrays(old, new), FitOptions(correction=strength))
    assert (transformer.correction.strength if transformer.correction else 0.0) == strength
    assert {rung["correction"] for rung in transformer.training["ladder"]} == {strength}


def test_what_is_not_finite_is_named():
    old, new = anisotropic(50, dim=8)
    new[17, 3] = np.nan
    pairs = Pairs.from_arrays(old, new)
    with pytest.raises(ValueError, match="pair 17 holds NaN or infinity; leave that item out"):
        fit_transformer(pairs)


def test_query_like_pairs_are_what_maps_are_judged_by():
    old, new = anisotropic(800, dim=16)
    pairs = replace(Pairs.from_arrays(old, new), query_like=np.arange(800) >= 650, weights=np.full(800, 2.0))
    assert fit_transformer(pairs).training["held_out"]["queries"] == 150


def test_auto_leaves_the_strength_to_itself():
    with pytest.raises(ValueError, match="auto chooses the strength itself; name a family"):
        FitOptions(strength=0.1)


def test_few_query_like_pairs_among_many_do_not_stop_auto():
    old, new = anisotropic(1100, dim=8)
    pairs = replace(Pairs.from_arrays(old, new), query_like=np.arange(1100) < 3, weights=np.ones(1100))
    assert fit_transformer(pairs, FitOptions(seed=5)).training["held_out"]["queries"] == 1100


def test_a_network_challenges_from_a_thousand_pairs_on():
    old, new = anisotropic(1000, dim=8)
    ladder = fit_transformer(Pairs.from_arrays(old, new)).training["ladder"]
    assert "residual_mlp" in {rung["family"] for rung in ladder}


def test_a_network_is_not_given_what_is_not_finite():
    old, new = anisotropic(60, dim=8)
    old[3, 0] = np.inf
    with pytest.raises(ValueError, match="pair 3 holds NaN or infinity"):
        fit_transformer(Pairs.from_arrays(old, new), FitOptions(transformer="mlp"))
