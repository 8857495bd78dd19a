"""Fitting transformers: what each family finds, what the schedules do, and that an interruption changes nothing."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from planted import plant, space

from compat.options import FitOptions, InterpolationOptions, LossWeights
from compat.pairs import Pairs
from compat.training import schedule as training_schedule
from compat.training.applicable import require_applicable
from compat.training.fit import CLOSED_FORMS, fit_transformer
from compat.training.network_run import NetworkRun
from compat.training.rows import TrainingRows
from compat.training.selection import identity_folds
from compat.transformers import PAIRED, TRANSFORMERS

DIRECTIONS = ("new-to-old", "old-to-new")
QUICK = FitOptions(transformer="mlp", epochs=6, batch_size=32, learning_rate=0.01)
MIXED = replace(QUICK, interpolation=InterpolationOptions(pairing="sorted", rate=0.5, minimum=5))


def pairs_of(world, labelled=True):
    return Pairs.from_arrays(world.old, world.new, world.labels if labelled else None)


@pytest.fixture(scope="module")
def world():
    return plant(identities=40, samples=6, old_dim=10, new_dim=14, noise=0.2)


@pytest.fixture(scope="module")
def pairs(world):
    return pairs_of(world)


def agreement(transformer, world):
    """Mean cosine between mapped and wanted vectors."""
    source, target = (world.new, world.old) if transformer.direction == "new-to-old" else (world.old, world.new)
    found = transformer.transform(source)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(target, axis=1)
    return float(np.mean((found * target).sum(axis=1) / lengths))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("family", "least"),
    [
        ("identity", -1.0),
        ("procrustes", 0.9),
        ("ridge", 0.85),
        ("shrunk", 0.85),
        ("blend", 0.85),
        ("reduced_rank", 0.5),
        ("whitened", 0.5),
        ("mlp", 0.9),
        ("residual_mlp", 0.85),
        ("msresnet", 0.6),
    ],
)
def test_every_family_is_fitted_in_both_directions(world, pairs, family, least, direction):
    epochs = 40 if family == "mlp" else 8
    options = FitOptions(transformer=family, direction=direction, epochs=epochs, batch_size=32, learning_rate=0.01)
    transformer = fit_transformer(pairs, options)
    dims = (14, 10) if direction == "new-to-old" else (10, 14)
    assert (transformer.source.dim, transformer.target.dim) == dims
    assert (transformer.family, transformer.direction) == (family, direction)
    assert agreement(transformer, world) > least
    training = transformer.training
    assert training["options"] == asdict(options)
    assert training["pairs"] == 240
    assert training["pairs_fingerprint"] == pairs.fingerprint()
    held_out = training["held_out"]
    assert held_out["relevance"] == "label"
    if family == "identity":
        assert held_out["recall_at_1"] < 0.3
    elif family != "msresnet":
        assert held_out["recall_at_1"] > 0.8
    assert ("epochs" in training) == (family not in CLOSED_FORMS)
    json.dumps(training, allow_nan=False)


def test_ridge_takes_the_strength_that_retrieves_held_out_pairs_best():
    world = plant(identities=12, samples=2, old_dim=20, new_dim=20, noise=0.5)  # 24 pairs: strength matters
    training = fit_transformer(pairs_of(world), FitOptions(transformer="ridge")).training
    scores = {entry["strength"]: entry["mean_reciprocal_rank"] for entry in training["search"]}
    assert len(set(scores.values())) > 2
    assert scores[training["strength"]] == max(scores.values())
    assert training["held_out"]["mean_reciprocal_rank"] == pytest.approx(max(scores.values()))
    assert training["held_out"]["queries"] == 24  # every fold was held out once
    assert "24 pairs are few for 20 dimensions" not in " ".join(training["notes"])


def test_held_out_scores_do_not_reward_learning_by_heart():
    # No relation between the spaces at all, and fewer pairs than dimensions: every pair can be learned exactly.
    generator = np.random.default_rng(0)
    pairs = Pairs.from_arrays(generator.normal(size=(60, 80)), generator.normal(size=(60, 80)))
    for family in ("procrustes", "ridge"):
        training = fit_transformer(pairs, FitOptions(transformer=family)).training
        assert training["held_out"]["recall_at_1"] < 0.15
        assert any("60 pairs are few for 80 dimensions" in note for note in training["notes"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_pair_or_one_identity_still_gives_a_closed_form(direction):
    for labels in (None, np.zeros(1)):
        one = Pairs.from_arrays(np.ones((1, 3)), np.arange(4.0)[None], labels)
        for family in ("procrustes", "shrunk", "blend", "auto"):
            assert np.isfinite(fit_transformer(one, FitOptions(transformer=family)).transform(np.ones((2, 4)))).all()
        transformer = fit_transformer(one, FitOptions(transformer="ridge", direction=direction))
        source, target = one.take(np.array([0]), direction)
        np.testing.assert_allclose(transformer.transform(source), target / np.linalg.norm(target), atol=1e-6)
        assert transformer.training["held_out"] is None


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="cannot be fitted to 0 pairs; at least 1"):
        fit_transformer(Pairs.from_arrays(np.empty((0, 3)), np.empty((0, 4))))
    with pytest.raises(ValueError, match="unknown transformer 'mpl'; choose one of"):
        fit_transformer(Pairs.from_arrays(np.ones((2, 3)), np.ones((2, 3))), FitOptions(transformer="mpl"))
    same = Pairs.from_arrays(np.ones((5, 3)), np.ones((5, 3)), np.zeros(5))
    with pytest.raises(ValueError, match=r"all 5 pairs are of one identity; give more .* use --transformer ridge"):
        fit_transformer(same, QUICK)


def test_networks_never_see_the_fold_they_are_judged_on(world, pairs, monkeypatch):
    seen = watch(monkeypatch)
    training = fit_transformer(pairs, QUICK).training
    held_out = identity_folds(pairs, QUICK.folds, seed=QUICK.seed) == 0
    rows = np.unique(np.concatenate([batch for batches in seen.values() for batch in batches]))
    assert len(rows) == (~held_out).sum() == 240 - held_out.sum()
    judged = set(world.labels[held_out])
    trained = pairs.select(np.flatnonzero(~held_out)).labels
    assert trained is not None
    assert judged.isdisjoint(trained)
    assert training["held_out"]["queries"] == held_out.sum()


def watch(monkeypatch):
    """Row numbers of every batch taken, by epoch."""
    seen: dict[int, list[np.ndarray]] = {}
    epoch = [0]
    batches, begin = TrainingRows.batches, NetworkRun.epoch

    def taking(self, size, *, seed):
        for batch in batches(self, size, seed=seed):
            seen.setdefault(epoch[0], []).append(batch.rows)
            yield batch

    def beginning(self):
        epoch[0] = len(self.history)
        return begin(self)

    monkeypatch.setattr(TrainingRows, "batches", taking)
    monkeypatch.setattr(NetworkRun, "epoch", beginning)
    return seen


@pytest.mark.parametrize(("schedule", "mixed_epochs"), [("full", 6), ("pretrain", 3)])
def test_schedules_decide_which_epochs_see_synthetic_samples(pairs, monkeypatch, schedule, mixed_epochs):
    seen = watch(monkeypatch)
    training = fit_transformer(pairs, replace(MIXED, schedule=schedule)).training
    samples, real = training["synthetic"]["samples"], 192
    assert samples == 96
    assert training["synthetic"]["rate"] == 0.5
    assert len(seen) == len(training["epochs"]) == 6
    for epoch, batches in seen.items():
        rows = np.concatenate(batches)
        expected = real + (samples if epoch < mixed_epochs else 0)
        assert sorted(rows) == list(range(expected)), epoch
        shares = [np.mean(batch >= real) for batch in batches[:-1]]  # spread over the batches, not at their end
        assert all(abs(share - (1 / 3 if epoch < mixed_epochs else 0)) < 0.1 for share in shares)
        assert max(map(len, batches)) <= MIXED.batch_size * 1.5
    orders = [np.concatenate(batches).tolist() for batches in seen.values()]
    assert len({tuple(order) for order in orders}) == 6  # every epoch in another order
    rates = [record["learning_rate"] for record in training["epochs"]]
    assert rates[0] > 0.005
    assert rates[-1] < 0.01 * max(rates)  # the planned steps are those taken


def test_stopping_waits_for_the_second_half_of_pretrain(world, monkeypatch):
    monkeypatch.setattr(training_schedule, "PATIENCE", 2)
    flat = pairs_of(world._replace(old=np.ones_like(world.old)))  # nothing to learn: no epoch is better than the first
    counts = {}
    for schedule in ("full", "pretrain"):
        training = fit_transformer(flat, replace(MIXED, schedule=schedule, epochs=12)).training
        counts[schedule] = len(training["epochs"])
    assert counts["full"] < 6
    assert 6 + 2 <= counts["pretrain"] < 12


@pytest.mark.parametrize("labelled", [True, False])
def test_interpolation_that_cannot_be_had_is_noted_and_done_without(world, labelled):
    options = replace(QUICK, epochs=1, interpolation=InterpolationOptions(pairing="sorted"))
    training = fit_transformer(pairs_of(world, labelled), options).training
    assert training["synthetic"] == {"samples": 0, "rate": 0.0}
    expected = "no two identities give the 20 samples" if labelled else "the pairs have no labels"
    assert any(expected in note for note in training["notes"])


def weights(transformer):
    return {name: value.clone() for name, value in transformer.network.state_dict().items()}


@pytest.mark.parametrize("family", [family for family in TRANSFORMERS if family not in PAIRED])
def test_the_same_seed_gives_the_same_transformer(pairs, family):
    options = replace(QUICK if family in CLOSED_FORMS else MIXED, transformer=family, epochs=2)
    first = fit_transformer(pairs, options)
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002  whatever others do with it
    again = fit_transformer(pairs, options)
    assert first.digest() == again.digest()
    if family in ("mlp", "msresnet"):
        assert fit_transformer(pairs, replace(options, seed=1)).digest() != first.digest()


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("family", "stop"), [("mlp", 0), ("mlp", 1), ("mlp", 3), ("mlp", 4), ("msresnet", 3)])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(pairs, tmp_path, family, stop):
    options = replace(MIXED, transformer=family, schedule="pretrain", epochs=5, batch_size=64)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"

    def interrupt(record):
        if record["epoch"] == stop + 1:  # trained, not yet saved
            raise Stopped

    with pytest.raises(Stopped):
        fit_transformer(pairs, options, checkpoint=checkpoint, on_epoch=interrupt)
    epochs = []
    resumed = fit_transformer(pairs, options, checkpoint=checkpoint, on_epoch=lambda r: epochs.append(r["epoch"]))
    whole = fit_transformer(pairs, options)
    assert epochs == list(range(stop + 1, 6))
    assert resumed.digest() == whole.digest()
    for found, expected in zip(resumed.training["epochs"], whole.training["epochs"], strict=True):
        assert found | {"pairs_per_second": 0} == expected | {"pairs_per_second": 0}
    assert resumed.training["held_out"] == whole.training["held_out"]
    finished = fit_transformer(pairs, options, checkpoint=checkpoint, on_epoch=interrupt)  # nothing is left to do
    assert finished.digest() == whole.digest()


def test_a_checkpoint_of_other_options_pairs_or_labels_is_refused(world, pairs, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    options = replace(QUICK, epochs=2)
    fit_transformer(pairs, options, checkpoint=checkpoint)
    others = {
        "options": (pairs, replace(options, seed=1)),
        "vectors": (pairs_of(world._replace(new=world.new + 1)), options),
        "labels": (pairs_of(world._replace(labels=np.roll(world.labels, 1))), options),
    }
    for changed, changed_options in others.values():
        with pytest.raises(
            ValueError, match="is of a run with other options or pairs; remove it or name another --out"
        ):
            fit_transformer(changed, changed_options, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        fit_transformer(pairs, options, checkpoint=checkpoint)


def test_a_loss_that_explodes_is_one_line_and_leaves_no_checkpoint_of_it(world, tmp_path):
    huge = pairs_of(world._replace(new=world.new * 1e18, old=world.old * 1e18))
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(ValueError, match=r"the loss became (nan|inf) in epoch 1; lower learning_rate") as error:
        fit_transformer(huge, replace(QUICK, learning_rate=1e6), checkpoint=checkpoint)
    assert "\n" not in str(error.value)
    assert not checkpoint.exists()


def test_a_network_no_better_than_a_line_says_so(world, pairs):
    training = fit_transformer(pairs, replace(QUICK, epochs=1, learning_rate=1e-6)).training
    assert training["linear_baseline"]["mean_reciprocal_rank"] > training["held_out"]["mean_reciprocal_rank"]
    assert any("a plain linear map is at least as good" in note for note in training["notes"])


def test_a_network_that_is_better_than_a_line_is_not_reproached():
    # The old model is the square of the new one's coordinates, which no line can follow.
    generator = np.random.default_rng(0)
    new = generator.normal(size=(1500, 4))
    pairs = Pairs.from_arrays(np.concatenate([new**2 - 1, np.sign(new)], axis=1), new)
    options = FitOptions(transformer="msresnet", epochs=4, batch_size=64, learning_rate=0.01)
    training = fit_transformer(pairs, options).training
    assert training["held_out"]["mean_reciprocal_rank"] > training["linear_baseline"]["mean_reciprocal_rank"]
    assert not any("plain linear map" in note for note in training["notes"])


def test_weights_of_the_loss_matter_except_on_unit_vectors(world):
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (world.old, world.new)]
    normal = [replace_normalized(name, side.shape[1]) for name, side in zip(("old", "new"), unit, strict=True)]
    flat = Pairs.from_arrays(unit[0], unit[1], world.labels, old_space=normal[0], new_space=normal[1])
    notes = fit_transformer(flat, replace(QUICK, epochs=1)).training["notes"]
    assert any("the cosine and the squared distance are one loss" in note for note in notes)
    lengths = {}
    for name, weights in {"cosine": (1.0, 0.0), "distance": (0.0, 1.0)}.items():
        options = replace(
            QUICK, epochs=30, learning_rate=0.1, loss=LossWeights(cosine_weight=weights[0], mse_weight=weights[1])
        )
        mapped = fit_transformer(pairs_of(world._replace(old=world.old * 10)), options).transform(world.new)
        lengths[name] = np.linalg.norm(mapped, axis=1).mean() / np.linalg.norm(world.old * 10, axis=1).mean()
    assert lengths["distance"] > 0.5 > lengths["cosine"]  # only the distance asks for the length


def replace_normalized(name, dim):
    return replace(space(name, dim), normalized=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"folds": 1}, "folds must be between 2 and 20"),
        ({"folds": 100_000}, "folds must be between 2 and 20"),
        ({"seed": -1}, "seed must not be negative"),
        ({"direction": "backwards"}, "direction must be one of new-to-old, old-to-new"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"transformer": "ridge", "width": 64}, "ridge has no width; leave that out"),
        ({"transformer": "ridge", "precision": "bf16"}, "ridge has no precision; leave that out"),
        ({"transformer": "whitened", "loss": LossWeights(compactness_weight=5)}, "whitened has no loss; leave"),
        (
            {
                "transformer": "ridge",
                "interpolation": InterpolationOptions(pairing="proximity"),
                "schedule": "pretrain",
            },
            "ridge has no interpolation.pairing nor schedule; leave that out",
        ),
        ({"transformer": "procrustes", "strength": 1.0}, "procrustes has no strength; leave that out"),
        ({"transformer": "identity", "inputs": "raw"}, "identity has no inputs; leave that out"),
        ({"transformer": "mlp", "width": 5}, "mlp has no width; leave that out .choose one of residual_mlp"),
        ({"transformer": "msresnet", "strength": 1.0, "inputs": "raw"}, "msresnet has no strength nor inputs"),
        (
            {"transformer": "auto", "width": 5, "schedule": "pretrain"},
            r"auto tries a network on 1,000 to 200,000 pairs, found 240: width and schedule would do nothing",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(pairs, given, message):
    with pytest.raises(ValueError, match=message):
        fit_transformer(pairs, FitOptions(**given))


def test_options_that_do_something_are_not_refused(pairs):
    many = pairs.select(np.arange(1000) % 240)
    everything = {
        "width": 5,
        "precision": "bf16",
        "schedule": "pretrain",
        "loss": LossWeights(compactness_weight=2),
        "interpolation": InterpolationOptions(pairing="linear"),
    }
    require_applicable(many, FitOptions(transformer="auto", **everything))
    require_applicable(pairs, FitOptions(transformer="residual_mlp", **everything))
    require_applicable(pairs, FitOptions(transformer="msresnet", **{**everything, "width": None}))
    require_applicable(pairs, FitOptions(transformer="ridge", strength=2.0, inputs="raw", correction=0.5, epochs=3))
    require_applicable(pairs, FitOptions(transformer="procrustes", inputs="raw"))
    for options in (
        FitOptions(transformer="auto", **everything),
        FitOptions(transformer="residual_mlp", **everything),
    ):
        with pytest.raises(ValueError, match="1000 pairs differ in label, and compactness"):
            require_applicable(replace(many, labels=np.arange(1000)), options)
        with pytest.raises(ValueError, match="the pairs have no labels, and compactness"):
            require_applicable(replace(many, labels=None), options)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("family", ["procrustes", "mlp"])
def test_every_fit_knows_its_queries_and_few_pairs_tell_nothing(world, pairs, family, direction):
    options = replace(QUICK, transformer=family, direction=direction, epochs=1)
    transformer = fit_transformer(pairs, options)
    assert transformer.familiarity is not None
    assert transformer.familiarity.dim == transformer.query_space.dim == 14
    assert transformer.strangeness(world.new[:5]).shape == (5,)
    assert fit_transformer(pairs.select(np.arange(24)), options).familiarity is None
