"""Training networks: what a residual network returns, pair weights, and which warnings the gradients give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import plant

from backbones.encoders.inference import multiplies_bf16
from compat.options import FitOptions, InterpolationOptions, LossWeights
from compat.pairs import Pairs
from compat.training import network_run, schedule
from compat.training.closed_form import as_map
from compat.training.fit import fit_transformer
from compat.training.gradient import fit_network
from compat.training.interpolation import NO_SAMPLES, plan_synthetic
from compat.training.network_run import NetworkRun
from compat.training.rows import TrainingRows
from compat.training.selection import HeldOutRetrieval, HeldOutScore, identity_folds
from compat.transformers.artefact import load_transformer
from compat.transformers.linear import LinearMap
from compat.transformers.residual_mlp import ResidualMLP

QUICK = FitOptions(transformer="residual_mlp", epochs=6, batch_size=32, learning_rate=0.01)
MIXED = replace(QUICK, interpolation=InterpolationOptions(pairing="sorted", rate=0.5, minimum=5))


@pytest.fixture(scope="module")
def bent():
    """Pairs whose old vector is a bent function of the new one's direction: a line finds a part of it only."""
    generator = np.random.default_rng(0)
    new = generator.normal(size=(1500, 4))
    directions = new / np.linalg.norm(new, axis=1, keepdims=True)
    old = directions @ generator.normal(size=(4, 10)) + np.abs(directions @ generator.normal(size=(4, 10)))
    return Pairs.from_arrays((25 * old).astype(np.float32), new.astype(np.float32))


@pytest.fixture(scope="module")
def straight():
    """Pairs whose relation is a turn and noise: there is nothing that a line leaves over."""
    world = plant(identities=40, samples=6, old_dim=10, new_dim=14, noise=0.2)
    return Pairs.from_arrays(world.old, world.new, world.labels)


def trained_on(pairs, options):
    return pairs.select(np.flatnonzero(identity_folds(pairs, options.folds, seed=options.seed) != 0))


def test_a_residual_is_learned_where_a_line_leaves_something_over(bent):
    fitted = fit_network(bent, replace(QUICK, epochs=20))
    assert fitted.held_out is not None
    assert fitted.facts["returned_start"] is False
    assert fitted.facts["best_epoch"] >= 0
    assert fitted.held_out.mean_reciprocal_rank > fitted.facts["start"]["mean_reciprocal_rank"] + 0.1
    assert not any("residual" in note or "linear map" in note for note in fitted.notes)
    held_out = np.flatnonzero(identity_folds(bent, 5, seed=0) == 0)
    judged = HeldOutRetrieval(bent, held_out, "new-to-old", seed=0).score(as_map(fitted.network))
    assert judged == fitted.held_out  # the network that is returned is the one that was scored


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_the_start_is_returned_where_no_epoch_is_better(straight, direction, monkeypatch):
    monkeypatch.setattr(schedule, "PATIENCE", 3)
    options = replace(QUICK, direction=direction, learning_rate=1.0)  # steps that only destroy
    fitted = fit_network(straight, options)
    assert fitted.facts["returned_start"] is True
    assert fitted.facts["best_epoch"] == -1
    assert len(fitted.facts["epochs"]) == 3  # the patience counts from the start
    assert fitted.held_out is not None
    assert fitted.held_out.to_dict() == fitted.facts["start"]
    notes = [note for note in fitted.notes if "the learned residual added nothing" in note]
    assert len(notes) == 1
    assert "the affine map is what is saved" in notes[0]
    assert isinstance(fitted.network, ResidualMLP)
    assert not fitted.network.output.weight.any()
    source, _ = straight.take(np.arange(50), direction)
    vectors = torch.from_numpy(source)
    assert torch.equal(fitted.network(vectors), fitted.network.affine(vectors))


def test_without_a_start_it_begins_at_ridge_of_the_training_folds_at_the_targets_length(straight):
    options = replace(QUICK, learning_rate=1e-30)  # nothing moves: what comes back is the start
    network = fit_network(straight, options).network
    new, old = trained_on(straight, options).take(np.arange(192), "new-to-old")
    lengths = np.linalg.norm(old, axis=1)
    found = as_map(network)(new)
    cosines = (found * old).sum(axis=1) / np.linalg.norm(found, axis=1) / lengths
    assert cosines.mean() > 0.95
    assert np.linalg.norm(found, axis=1).mean() == pytest.approx(lengths.mean(), rel=0.15)


def test_a_given_start_is_where_it_starts(straight):
    generator = np.random.default_rng(5)
    start = LinearMap.from_arrays(generator.normal(size=(14, 10)), generator.normal(size=10))
    fitted = fit_network(straight, replace(QUICK, learning_rate=1e-30), start=start)
    vectors = torch.from_numpy(generator.normal(size=(20, 14)).astype(np.float32))
    torch.testing.assert_close(fitted.network(vectors), start(vectors))
    held_out = np.flatnonzero(identity_folds(straight, 5, seed=0) == 0)
    judged = HeldOutRetrieval(straight, held_out, "new-to-old", seed=0).score(as_map(start))
    assert fitted.facts["start"] == pytest.approx(judged.to_dict(), abs=1e-6)
    assert fitted.facts["linear_baseline"]["mean_reciprocal_rank"] > judged.mean_reciprocal_rank
    assert any("added nothing" in note for note in fitted.notes)


def test_the_affine_part_takes_smaller_steps_than_the_rest(bent):
    options = replace(QUICK, epochs=1, batch_size=5000)  # Adam's first step is as long as its rate, in every direction
    linear = LinearMap.from_arrays(np.ones((4, 10)), np.ones(10))
    fitted = fit_network(bent, options, start=linear)
    trained = fitted.network if not fitted.facts["returned_start"] else None
    assert trained is not None
    state = trained.state_dict()
    moved = (state["affine.affine.weight"] - 1).abs()
    assert moved.median().item() == pytest.approx(0.1 * 0.01, rel=0.01)
    assert state["output.weight"].abs().median().item() == pytest.approx(0.01, rel=0.01)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("stop", [0, 2, 4])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(bent, tmp_path, stop, given):
    options = replace(QUICK, epochs=5, batch_size=128)
    generator = np.random.default_rng(1)
    start = LinearMap.from_arrays(generator.normal(size=(4, 10)), generator.normal(size=10)) if given else None
    checkpoint = tmp_path / "checkpoint.safetensors"

    def interrupt(record):
        if record["epoch"] == stop + 1:  # trained, not yet saved
            raise Stopped

    with pytest.raises(Stopped):
        fit_network(bent, options, start=start, checkpoint=checkpoint, on_epoch=interrupt)
    torch.manual_seed(3)  # whatever others do with it
    epochs = []
    resumed = fit_network(
        bent, options, start=start, checkpoint=checkpoint, on_epoch=lambda r: epochs.append(r["epoch"])
    )
    whole = fit_network(bent, options, start=start)
    assert epochs == list(range(stop + 1, 6))
    expected = whole.network.state_dict()
    assert expected["output.weight"].any()
    for name, value in resumed.network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for found, record in zip(resumed.facts["epochs"], whole.facts["epochs"], strict=True):
        assert found | {"pairs_per_second": 0} == record | {"pairs_per_second": 0}
    assert resumed.held_out == whole.held_out
    assert resumed.facts["start"] == whole.facts["start"]


def test_a_checkpoint_of_another_start_or_other_weights_is_refused(straight, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    options = replace(QUICK, epochs=2)
    fit_network(straight, options, checkpoint=checkpoint)
    start = LinearMap.from_arrays(np.ones((14, 10)), np.zeros(10))
    weighed = replace(straight, weights=np.linspace(1, 2, len(straight)))
    for pairs, given in ((straight, start), (weighed, None)):
        with pytest.raises(ValueError, match="is of a run with other options or pairs"):
            fit_network(pairs, options, start=given, checkpoint=checkpoint)


def test_weights_of_pairs_reach_the_loss_and_synthetic_ones_get_their_parents_mean(straight, monkeypatch):
    weighed = replace(straight, weights=np.arange(1.0, len(straight) + 1))
    taken, given = [], []
    batches, loss = TrainingRows.batches, network_run.compatibility_gradient

    def taking(self, size, *, seed):
        for batch in batches(self, size, seed=seed):
            taken.append(batch.rows)
            yield batch

    def losing(predicted, target, weights, pair_weights: torch.Tensor):
        given.append(pair_weights.numpy())
        return loss(predicted, target, weights, pair_weights)

    monkeypatch.setattr(TrainingRows, "batches", taking)
    monkeypatch.setattr(network_run, "compatibility_gradient", losing)
    options = replace(MIXED, epochs=1)
    fit_network(weighed, options)
    real = trained_on(weighed, options)
    synthetic = plan_synthetic(real, options.interpolation, "new-to-old", seed=0)
    assert len(synthetic) == 96
    assert real.weights is not None
    checked = 0
    for rows, weights in zip(taken, given, strict=True):
        for row, weight in zip(rows, weights, strict=True):
            if row < len(real):
                assert weight == real.weights[row]
            else:
                parents = synthetic.first[row - len(real)], synthetic.second[row - len(real)]
                assert weight == pytest.approx(np.mean([real.weights[parent] for parent in parents]))
                checked += 1
    assert checked == 96


def test_pairs_of_little_weight_do_not_bend_the_map(straight):
    # Two thirds of the pairs are scrambled; with weights that say so, the map is about what the others alone give.
    generator = np.random.default_rng(0)
    new, old = straight.take(np.arange(len(straight)), "new-to-old")
    scrambled = np.arange(len(straight)) % 3 > 0
    wrong = old.copy()
    wrong[scrambled] = generator.permutation(old[scrambled])
    start = LinearMap.from_arrays(np.zeros((14, 10)), np.ones(10))
    options = replace(QUICK, epochs=30)
    cosines = {}
    for name, weights in {"weighed": np.where(scrambled, 1e-6, 1.0), "not": None}.items():
        pairs = replace(Pairs.from_arrays(wrong, new, straight.labels), weights=weights)
        found = as_map(fit_network(pairs, options, start=start).network)(new)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(old, axis=1)
        cosines[name] = float(np.mean((found * old).sum(axis=1) / lengths))
    assert cosines["weighed"] > cosines["not"] + 0.1


@pytest.mark.parametrize("family", ["mlp", "residual_mlp"])
@pytest.mark.parametrize(
    ("scale", "weights", "swamping"),
    [(25, (1.0, 1.0), "squared distance"), (1, (100.0, 1e-4), "cosine"), (25, (0.0, 1.0), None), (1, (1.0, 0.1), None)],
)
def test_a_term_that_swamps_the_other_is_told_once_with_a_weight_that_balances(
    straight, family, scale, weights, swamping
):
    new, old = straight.take(np.arange(len(straight)), "new-to-old")
    pairs = Pairs.from_arrays(scale * old, new, straight.labels)
    options = replace(
        QUICK, transformer=family, epochs=3, loss=LossWeights(cosine_weight=weights[0], mse_weight=weights[1])
    )
    fitted = fit_network(pairs, options)
    told = [note for note in fitted.notes if "swamps" in note]
    assert len(told) == (swamping is not None)
    for record in fitted.facts["epochs"]:
        assert (record["cosine_gradient"] > 0) == (weights[0] > 0)
        assert record["mse_gradient"] > 0
    if swamping:
        assert told[0].startswith(f"the {swamping} swamps")
        named = float(told[0].split("set loss.mse_weight to about ")[1].split()[0])
        again = replace(options, loss=LossWeights(cosine_weight=weights[0], mse_weight=named))
        assert not any("swamps" in note for note in fit_network(pairs, again).notes)


def test_the_recorded_gradients_are_those_of_the_first_batch_over_the_parameters(straight, monkeypatch):
    options = replace(QUICK, transformer="mlp", epochs=1, batch_size=10_000)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        layer = torch.nn.Linear(14, 10)
    new, old = (torch.from_numpy(side) for side in trained_on(straight, options).take(np.arange(192), "new-to-old"))
    record = fit_network(straight, options).facts["epochs"][0]
    predicted = layer(new)
    cosine = 10 * (1 - torch.nn.functional.cosine_similarity(predicted, old)).mean()
    mse = 0.002 * (predicted - old).square().sum(dim=1).mean()
    for term, key in ((cosine, "cosine_gradient"), (mse, "mse_gradient")):
        parts = torch.autograd.grad(term, list(layer.parameters()), retain_graph=True)
        assert record[key] == pytest.approx(torch.cat([part.flatten() for part in parts]).norm().item(), rel=1e-4)


def test_compactness_draws_identities_together_where_both_models_see_what_differs_within_them():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 6)
    identity, within = generator.normal(size=(40, 5))[labels], generator.normal(size=(240, 4))
    old = np.concatenate([identity, within], axis=1).astype(np.float32)
    new = (old @ np.linalg.qr(generator.normal(size=(9, 9)))[0]).astype(np.float32)
    pairs = Pairs.from_arrays(old, new, labels)
    plain = replace(QUICK, transformer="mlp", epochs=15, learning_rate=0.03)
    spreads = []
    for options in (plain, replace(plain, loss=LossWeights(compactness_weight=100.0))):
        network = NetworkRun(pairs, NO_SAMPLES, NoJudge(), options, None)
        records = [network.epoch() for _ in range(options.epochs)]
        assert all(("compactness_loss" in record) == (options is not plain) for record in records)
        mapped = as_map(network.network)(new)
        unit = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
        means = np.stack([unit[labels == label].mean(axis=0) for label in range(40)])
        spreads.append(1 - np.linalg.norm(means, axis=1).mean())
    assert spreads[1] < 0.5 * spreads[0]


class NoJudge(HeldOutRetrieval):
    """Every network is as good as any other."""

    def __init__(self):
        self.kind = "item"

    def score(self, transform, correction=0.0):  # noqa: ARG002  the judge's interface
        return HeldOutScore("item", 0, 0, 0.0, 0.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_first_steps_compactness_is_that_of_a_slow_computation(straight, weighted, monkeypatch):
    """One step over all rows, synthetic ones too: the record holds the untrained network's mean of 1 - cos."""
    options = replace(MIXED, transformer="mlp", epochs=1, batch_size=10_000, loss=LossWeights(compactness_weight=3.0))
    weights = np.linspace(0.5, 2, len(straight)) if weighted else None
    pairs = replace(straight, weights=weights)
    record = fit_network(pairs, options).facts["epochs"][0]
    real = trained_on(pairs, options)
    synthetic = plan_synthetic(real, options.interpolation, "new-to-old", seed=0)
    source, target = (side.astype(np.float64) for side in real.take(np.arange(len(real)), "new-to-old"))
    counts = np.ones(len(real)) if real.weights is None else real.weights
    centres = np.stack(
        [
            np.average(target[real.labels == label], axis=0, weights=counts[real.labels == label])
            for label in real.labels
        ]
    )
    rows = [(source[i], centres[i], counts[i]) for i in range(len(real))]
    rows += [
        ((source[a] + source[b]) / 2, (centres[a] + centres[b]) / 2, (counts[a] + counts[b]) / 2)
        for a, b in zip(synthetic.first, synthetic.second, strict=True)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        layer = torch.nn.Linear(14, 10).double()
    total = 0.0
    for x, centre, count in rows:
        y = layer(torch.from_numpy(x)).detach().numpy()
        total += count * (1 - y @ centre / np.linalg.norm(y) / np.linalg.norm(centre))
    assert record["compactness_loss"] == pytest.approx(total / sum(count for *_, count in rows), rel=1e-4)
    expected = 10 * record["cosine_loss"] + 0.002 * record["squared_distance"] + 3 * record["compactness_loss"]
    assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_compactness_without_labels_is_refused(straight):
    options = replace(QUICK, transformer="mlp", loss=LossWeights(compactness_weight=1.0))
    with pytest.raises(ValueError, match="the pairs have no labels, and compactness"):
        fit_network(replace(straight, labels=None), options)


def test_a_width_goes_from_the_options_to_the_artefact(straight, tmp_path):
    transformer = fit_transformer(straight, replace(QUICK, width=5, epochs=2))
    transformer.save(tmp_path / "map")
    loaded = load_transformer(tmp_path / "map")
    for network in (transformer.network, loaded.network):
        assert isinstance(network, ResidualMLP)
        assert network.width == 5
        assert network.hidden.weight.shape == (5, 14)
    with pytest.raises(ValueError, match="mlp has no width"):
        fit_transformer(straight, replace(QUICK, transformer="mlp", width=5))


@pytest.mark.parametrize("family", ["mlp", "msresnet"])
def test_precision_changes_the_steps_and_is_recorded(straight, family):
    fitted = {
        precision: fit_network(straight, replace(QUICK, transformer=family, epochs=2, precision=precision))
        for precision in ("fp32", "bf16", "auto")
    }
    native = multiplies_bf16(torch.device("cpu"))
    assert fitted["fp32"].facts["precision"] == "fp32"
    assert fitted["bf16"].facts["precision"] == "bf16"
    assert fitted["auto"].facts["precision"] == ("bf16" if family == "msresnet" and native else "fp32")
    losses = {name: fit.facts["epochs"][-1]["loss"] for name, fit in fitted.items()}
    assert losses["auto"] == losses[fitted["auto"].facts["precision"]]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert all(value.dtype != torch.bfloat16 for value in fitted["bf16"].network.state_dict().values())


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["mlp", "msresnet"])
def test_networks_are_trained_on_a_gpu_as_on_the_cpu(straight, family):
    options = replace(MIXED, transformer=family, epochs=4, precision="fp32")
    fitted = fit_network(straight, options)  # on the GPU, as there is one
    held_out = np.flatnonzero(identity_folds(straight, options.folds, seed=options.seed) == 0)
    judge = HeldOutRetrieval(straight, held_out, "new-to-old", seed=options.seed)
    synthetic = plan_synthetic(trained_on(straight, options), options.interpolation, "new-to-old", seed=0)
    run = NetworkRun(trained_on(straight, options), synthetic, judge, options, None, device=torch.device("cpu"))
    while not run.finished:
        run.epoch()
    found = [record["loss"] for record in fitted.facts["epochs"]]
    assert found == pytest.approx([record["loss"] for record in run.history], rel=0.02)
    assert {parameter.device.type for parameter in fitted.network.parameters()} == {"cpu"}  # it is saved from there
    assert fit_network(straight, replace(options, precision="bf16")).facts["precision"] == "bf16"


def test_training_goes_on_where_everything_held_out_is_found(straight):
    fitted = fit_network(straight, replace(QUICK, transformer="mlp", epochs=30))
    epochs = fitted.facts["epochs"]
    found = [epoch["held_out_reciprocal_rank"] for epoch in epochs]
    first = found.index(max(found))
    assert first < len(found) - 1  # else nothing is shown
    assert fitted.facts["best_epoch"] > first
