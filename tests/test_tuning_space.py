"""What a study looks through: what is left out of it and why, and how a trial draws from it."""

from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import FixedTrial

from compat.neighbors import unit_rows
from compat.options import FitOptions, InterpolationOptions
from compat.pairs import Pairs
from compat.transformers import CHOICES
from compat.tuning.options import SearchSpace, TuneOptions
from compat.tuning.space import TUNABLE, TunedSpace, digest_of, space_for, tunable, value_of
from stores.space import EmbeddingSpace
from tests.planted import plant

WORLD = plant(10, 6)
FIXED = FitOptions(transformer="residual_mlp", interpolation=InterpolationOptions(minimum=3))


def pairs_of(*, labels=True, normalised=()):
    sides = {"old": WORLD.old, "new": WORLD.new}
    spaces = {name: EmbeddingSpace(name, None, 8, name in normalised) for name in sides}
    vectors = {name: unit_rows(side) if name in normalised else side for name, side in sides.items()}
    return Pairs.from_arrays(
        vectors["old"],
        vectors["new"],
        WORLD.labels if labels else None,
        old_space=spaces["old"],
        new_space=spaces["new"],
    )


def test_all_of_it_can_make_a_difference_for_labelled_raw_pairs():
    space = space_for(SearchSpace(), FIXED, pairs_of())
    assert set(space.drawn) == set(SearchSpace.__dataclass_fields__)
    assert space.left_out == ()


def test_weights_are_left_out_only_where_both_sides_are_normalised():
    one, both = (space_for(SearchSpace(), FIXED, pairs_of(normalised=sides)) for sides in (("old",), ("old", "new")))
    assert {"cosine_weight", "mse_weight"} <= set(one.drawn)
    assert not {"cosine_weight", "mse_weight"} & set(both.values)
    assert "compactness_weight" in both.drawn
    assert "normalised" in both.left_out[0]


def test_what_needs_labels_is_left_out_without_them():
    space = space_for(SearchSpace(), FIXED, pairs_of(labels=False))
    assert "compactness_weight" not in space.values
    assert space.values["pairing"] == ["none", "proximity"]
    singles = replace(pairs_of(), labels=np.arange(len(WORLD.old)))
    assert space_for(SearchSpace(), FIXED, singles).values == space.values


def test_pairings_that_no_identity_is_large_enough_for_are_left_out():
    options = replace(FIXED, interpolation=InterpolationOptions(minimum=7))
    assert space_for(SearchSpace(), options, pairs_of()).values["pairing"] == ["none", "linear"]
    only_sorted = space_for(SearchSpace(pairing=["sorted"]), options, pairs_of())
    assert only_sorted.values["pairing"] == ["none"]
    assert not {"rate", "schedule"} & set(only_sorted.values)


def test_width_belongs_to_families_that_have_one():
    space = space_for(SearchSpace(), replace(FIXED, transformer="mlp"), pairs_of())
    assert "width" not in space.values
    assert any("width" in reason for reason in space.left_out)


def test_a_trial_gets_what_it_draws_and_the_rest_as_given():
    space = space_for(SearchSpace(mse_weight=[0.5], batch_size=[32]), replace(FIXED, epochs=7), pairs_of())
    drawn = {
        "cosine_weight": 3.0,
        "compactness_weight": 0.1,
        "pairing": "linear",
        "rate": 0.2,
        "schedule": "pretrain",
        "learning_rate": 2e-3,
        "width": 128,
    }
    options = space.draw(FixedTrial(drawn), FIXED)  # pyright: ignore[reportArgumentType]
    assert {name: value_of(options, name) for name in drawn} == drawn
    assert (options.loss.mse_weight, options.batch_size) == (0.5, 32)
    assert options.interpolation.minimum == 3


def test_rate_and_schedule_are_drawn_only_with_a_pairing():
    trial = FixedTrial({"pairing": "none", "learning_rate": 1e-3})
    space = TunedSpace({"pairing": ["none", "linear"], "rate": [0.1, 0.5], "schedule": ["full", "pretrain"]})
    options = space.draw(trial, FIXED)  # pyright: ignore[reportArgumentType]
    assert options.interpolation.rate == FIXED.interpolation.rate
    assert set(trial.params) == {"pairing"}


def test_an_option_that_the_space_would_overwrite_is_refused():
    with pytest.raises(ValueError, match=r"learning_rate is tuned, but 0\.5 .* --space\.learning_rate \[0\.5\]"):
        space_for(SearchSpace(), replace(FIXED, learning_rate=0.5), pairs_of())


def test_a_space_of_single_values_is_refused():
    held = SearchSpace(
        cosine_weight=[1.0],
        mse_weight=[0.0],
        compactness_weight=[0.0],
        learning_rate=[1e-3],
        pairing=["none"],
        width=[64],
        batch_size=[64],
    )
    with pytest.raises(ValueError, match="nothing is left to tune"):
        space_for(held, FIXED, pairs_of())


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": [1e-2, 1e-4]},
        {"learning_rate": [0.0, 1e-2]},
        {"rate": []},
        {"mse_weight": [1.0, np.inf]},
        {"width": [64, 64]},
        {"batch_size": [0]},
        {"pairing": []},
    ],
)
def test_a_space_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=f"space.{next(iter(wrong))}"):
        SearchSpace(**wrong)


def test_only_networks_can_be_tuned():
    assert [family for family in TUNABLE if tunable(family) == family] == list(TUNABLE)
    for family in set(CHOICES) - set(TUNABLE):
        with pytest.raises(ValueError, match="has nothing to tune"):
            tunable(family)
    with pytest.raises(ValueError, match="unknown transformer"):
        tunable("perceptron")


def test_the_digest_tells_configurations_apart():
    assert digest_of(FIXED) == digest_of(replace(FIXED))
    assert digest_of(FIXED) != digest_of(replace(FIXED, epochs=29))


def test_half_a_test_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--test-gallery and --test-queries together"):
        TuneOptions(old=tmp_path, new=tmp_path, out=tmp_path, trials=1, test_gallery=tmp_path)
