"""Two maps into one new space: their losses, their training, and a gallery that both models share, as users do it."""

import importlib
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import plant, run, write_store

from compat.migration.bridged import BridgedGallery
from compat.migration.run import migrate_gallery
from compat.options import FitOptions, InterpolationOptions, LossWeights, UnifiedOptions
from compat.pairs import Pairs, join_pairs
from compat.train_transformer import TrainTransformerOptions, train_transformer, train_unified
from compat.training import unified_run
from compat.training.closed_form import as_map, fit_ridge_on
from compat.training.fit import fit_transformer
from compat.training.selection import HeldOutRetrieval, identity_folds
from compat.training.unified import fit_unified
from compat.training.unified_judge import UnifiedJudge
from compat.training.unified_losses import SharedClassifier, contrast_loss, posterior_losses, unified_loss
from compat.training.unified_run import UnifiedRun
from compat.training.unified_start import canonical_starts
from compat.transformers.artefact import WrongSpace, load_transformer
from compat.transformers.linear import LinearMap
from compat.transformers.unified import UnifiedMap, unified_space
from stores.store import EmbeddingStore

QUICK = FitOptions(transformer="unified", epochs=4, batch_size=64, learning_rate=0.003)


def bent_pairs(rows=900, labels=None):
    """Pairs whose old vector is a bent function of the new one's direction: lines find a part of it only."""
    generator = np.random.default_rng(0)
    new = generator.normal(size=(rows, 4))
    directions = new / np.linalg.norm(new, axis=1, keepdims=True)
    old = directions @ generator.normal(size=(4, 10)) + np.abs(directions @ generator.normal(size=(4, 10)))
    return Pairs.from_arrays((25 * old).astype(np.float32), new.astype(np.float32), labels)


@pytest.fixture(scope="module")
def labelled():
    world = plant(identities=40, samples=5, old_dim=8, new_dim=12, noise=0.3)
    return Pairs.from_arrays(world.old, world.new, world.labels)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# The network


@pytest.mark.parametrize(("source", "target"), [(5, 5), (3, 8), (8, 3), (1, 1)])
def test_an_untrained_map_points_where_its_projection_points(source, target):
    generator = np.random.default_rng(0)
    linear = LinearMap.from_arrays(generator.normal(size=(source, target)), generator.normal(size=target))
    vectors = torch.tensor(30 * generator.normal(size=(50, source)), dtype=torch.float32)
    mapped = UnifiedMap.starting_at(linear)(vectors)
    wanted = torch.nn.functional.normalize(linear(vectors), dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(mapped, dim=1), wanted)


def test_a_map_computes_the_formula():
    torch.manual_seed(0)
    generator = np.random.default_rng(1)
    linear = LinearMap.from_arrays(generator.normal(size=(6, 4)), generator.normal(size=4), generator.normal(size=6))
    network = UnifiedMap.starting_at(linear, width=3)
    for name, parameter in network.named_parameters():
        if name.endswith("output.weight"):
            torch.nn.init.normal_(parameter)
    state = {name: value.numpy().astype(float) for name, value in network.state_dict().items()}
    vectors = 20 * generator.normal(size=(7, 6)).astype(np.float32)
    for found, x in zip(network(torch.from_numpy(vectors)).detach().numpy(), vectors.astype(float), strict=True):
        seen = x / math.sqrt(x @ x) - state["affine.centre"]
        z = state["affine.affine.weight"] @ seen / math.sqrt(seen @ seen) + state["affine.affine.bias"]
        z = 2 * z / math.sqrt(z @ z)
        for block in range(2):
            hidden = state[f"blocks.{block}.hidden.weight"] @ z + state[f"blocks.{block}.hidden.bias"]
            z = z + state[f"blocks.{block}.output.weight"] @ (
                hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
            )
        np.testing.assert_allclose(found, z, rtol=1e-4, atol=1e-4)


# The losses


def draws(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float64)


@pytest.mark.parametrize("codes", [None, [0, 1, 0, 2, 1]])
def test_the_contrast_tells_each_row_from_all_others_of_both_sides(codes):
    old, new = unit(draws(5, 3).numpy()), unit(draws(5, 3, seed=1).numpy())
    both, expected = np.concatenate([old, new]), np.zeros(5)
    for i in range(10):
        others = []
        for j in range(10):
            counterpart = j == (i + 5) % 10
            kin = j == i if codes is None else codes[i % 5] == codes[j % 5]
            if counterpart or not kin:
                others.append(math.exp(3.0 * float(both[i] @ both[j])))
        right = math.exp(3.0 * float(both[i] @ both[(i + 5) % 10]))
        expected[i % 5] -= math.log(right / sum(others)) / 2
    given = None if codes is None else torch.tensor(codes)
    found = contrast_loss(torch.from_numpy(old), torch.from_numpy(new), given, scale=3.0)
    np.testing.assert_allclose(found.numpy(), expected)


def test_posteriors_of_both_maps_are_right_and_agree():
    old, new, codes = draws(4, 6), draws(4, 6, seed=1), [5, 0, 0, 2]
    entropy, divergence = posterior_losses(old, new, torch.tensor(codes))
    for row, code in enumerate(codes):
        p, q = (np.exp(side[row].numpy()) / np.exp(side[row].numpy()).sum() for side in (old, new))
        assert float(entropy[row]) == pytest.approx(-(math.log(p[code]) + math.log(q[code])) / 2)
        both_ways = sum(p * np.log(p / q)) + sum(q * np.log(q / p))
        assert float(divergence[row]) == pytest.approx(both_ways / 2)


@pytest.mark.parametrize("labels", [False, True])
def test_the_loss_is_the_weighted_sum_of_the_terms_that_there_are(labels):
    old, new, codes = 7 * draws(4, 3), 0.1 * draws(4, 3, seed=1), torch.tensor([1, 0, 1, 1])
    options = UnifiedOptions(similarity_weight=2, classification_weight=3, kl_weight=5, contrast_weight=7)
    classifier = SharedClassifier(4 * draws(2, 3, seed=2)).requires_grad_(False) if labels else None
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    terms = unified_loss(old, new, options, classifier=classifier, codes=codes, pair_weights=weights)
    share = weights / weights.sum()
    a, b = (torch.from_numpy(unit(side.numpy())) for side in (old, new))
    assert float(terms.similarity) == pytest.approx(float((share * (1 - (a * b).sum(dim=1))).sum()))
    if classifier is None:
        assert float(terms.classification) == float(terms.kl) == 0
        assert float(terms.contrast) == pytest.approx(float((share * contrast_loss(a, b, codes)).sum()))
    else:
        centres = unit(classifier.weights.numpy())
        logits = [16 * side @ torch.from_numpy(centres).T for side in (a, b)]
        entropy, divergence = posterior_losses(logits[0], logits[1], codes)
        assert float(terms.contrast) == 0
        assert float(terms.classification) == pytest.approx(float((share * entropy).sum()))
        assert float(terms.kl) == pytest.approx(float((share * divergence).sum()))
    parts = 2 * terms.similarity + 3 * terms.classification + 5 * terms.kl + 7 * terms.contrast
    assert float(terms.total) == pytest.approx(float(parts))


# The start


def test_it_starts_at_the_canonical_axes_of_both_models():
    world = plant(identities=60, samples=5, old_dim=5, new_dim=7, noise=0.4)
    pairs = Pairs.from_arrays(world.old, world.new)
    starts = canonical_starts(pairs, replace(QUICK, inputs="centred"), 7)
    x, y = (side - side.mean(axis=0) for side in (unit(world.old.astype(float)), unit(world.new.astype(float))))
    xx, yy, xy = x.T @ x / 300, y.T @ y / 300, x.T @ y / 300
    for shrinkage, (old, new) in starts.items():
        inverse_x, inverse_y = (np.linalg.inv(c + shrinkage * np.trace(c) / len(c) * np.eye(len(c))) for c in (xx, yy))
        a, b = (side.affine.weight.numpy().T.astype(float) for side in (old, new))
        assert a.shape == (5, 7)
        assert not a[:, 5:].any()  # the smaller model has no more axes
        # A is an inverse root times axes times correlations, so these products need no root and no decomposition.
        np.testing.assert_allclose(a @ a.T, inverse_x @ xy @ inverse_y @ xy.T @ inverse_x, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(b @ b.T, inverse_y @ xy.T @ inverse_x @ xy @ inverse_y, rtol=1e-3, atol=1e-4)
        agree = (as_map(old)(world.old) * as_map(new)(world.new)).mean(axis=0)[:5]
        assert (np.diff(agree) <= 1e-6).all()  # the axes that agree most come first
    narrow = canonical_starts(pairs, replace(QUICK, inputs="centred"), 2)[0.1]
    np.testing.assert_allclose(narrow[0].affine.weight, starts[0.1][0].affine.weight[:2], atol=1e-6)


# The training


def test_it_learns_what_lines_leave_over():
    pairs = bent_pairs()
    fitted = fit_unified(pairs, replace(QUICK, epochs=15, learning_rate=0.01))
    training = fitted.old.training
    assert training["returned_start"] is False
    assert training["identities"] == 0
    assert training["held_out"]["mean_reciprocal_rank"] > training["start"]["mean_reciprocal_rank"] + 0.1
    assert not any("single-direction" in note or "added nothing" in note for note in training["notes"])
    held_out = np.flatnonzero(identity_folds(pairs, 5, seed=0) == 0)
    judge = UnifiedJudge(pairs, held_out, seed=0)
    judged = judge.both(as_map(fitted.old.network), as_map(fitted.new.network), 4)
    assert judged.to_dict() == training["held_out"]  # the maps that are returned are those that were scored


def test_the_judge_asks_mapped_queries_of_a_mapped_gallery(labelled):
    held_out = np.flatnonzero(identity_folds(labelled, 5, seed=0) == 0)
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(8, 6)).astype(np.float32), generator.normal(size=(12, 6)).astype(np.float32)
    found = UnifiedJudge(labelled, held_out, seed=0).both(lambda rows: rows @ a, lambda rows: rows @ b, 6)
    old, new = labelled.take(np.arange(200), "old-to-new")
    scores = unit(new @ b) @ unit(old @ a).T
    labels = labelled.labels
    assert labels is not None
    ranks = []
    for query in held_out:
        others = np.delete(np.arange(200), query)
        right = labels[others] == labels[query]
        best = scores[query, others][right].max()
        ranks.append(1 / (1 + (scores[query, others][~right] >= best - 1e-6).sum()))
    assert found.queries == len(held_out)
    assert found.mean_reciprocal_rank == pytest.approx(np.mean(ranks))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_labels_the_contrast_keeps_the_space_from_collapsing(weight):
    world = plant(identities=400, samples=1, noise=1.0)
    pairs = Pairs.from_arrays(world.old, world.new)
    judge = UnifiedJudge(pairs, np.arange(80), seed=0)
    options = replace(QUICK, epochs=25, learning_rate=0.03)
    training = UnifiedRun(pairs.select(np.arange(80, 400)), judge, options, UnifiedOptions(contrast_weight=weight))
    for _ in range(25):
        training.epoch()
    mapped = unit(as_map(training.new_map)(world.new[:80]))
    nearness = float((mapped @ mapped.T)[np.triu_indices(80, 1)].mean())
    assert nearness > 0.9 if weight == 0 else nearness < 0.2


def test_identities_are_learned_where_labels_repeat(labelled):
    told = fit_unified(labelled, QUICK).new.training
    assert told["identities"] == 32  # of 40, a fifth held out
    assert told["epochs"][0]["classification_loss"] > 0
    assert "contrast_loss" not in told["epochs"][0]
    assert told["held_out"]["relevance"] == "label"
    alone = replace(labelled, labels=np.arange(200))
    told = fit_unified(alone, QUICK).new.training
    assert told["identities"] == 0
    assert told["epochs"][0]["contrast_loss"] > 0
    assert not {"classification_loss", "kl_loss"} & told["epochs"][0].keys()  # what there is none of is not shown as 0
    assert any("hardly any label repeats" in note for note in told["notes"])


@pytest.mark.parametrize("dim", [None, 3, 20])
def test_the_halves_meet_in_one_space_of_their_own(labelled, dim):
    old, new = fit_unified(labelled, replace(QUICK, epochs=1), UnifiedOptions(dim=dim))
    assert old.target == new.target
    assert (old.target.name, old.target.dim, old.target.normalized) == ("unified(old, new)", dim or 12, True)
    assert (old.direction, old.source) == ("old-to-new", labelled.old.space)
    assert (new.direction, new.source) == ("new-to-old", labelled.new.space)
    assert isinstance(old.network, UnifiedMap)
    assert isinstance(new.network, UnifiedMap)
    fingerprint = unified_space(old.source, new.source, old.network, new.network).fingerprint
    assert old.target.fingerprint == fingerprint
    other = fit_unified(labelled, replace(QUICK, epochs=1, seed=1), UnifiedOptions(dim=dim))
    assert other.old.target != old.target
    mapped = new.transform(labelled.take(np.arange(9), "new-to-old")[0])
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-5)
    assert old.familiarity is not None  # which queries are strange: mapped ones here, raw ones there
    assert old.familiarity.dim == (dim or 12)
    assert new.familiarity is not None
    assert new.familiarity.dim == 12


class Stopped(Exception):
    pass


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("stop", [0, 2])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop, labels):
    pairs = bent_pairs(400, np.arange(400) // 4 if labels else None)
    checkpoint = tmp_path / "checkpoint.safetensors"

    def interrupt(record):
        if record["epoch"] == stop + 1:  # trained, not yet saved
            raise Stopped

    with pytest.raises(Stopped):
        fit_unified(pairs, QUICK, checkpoint=checkpoint, on_epoch=interrupt)
    torch.manual_seed(3)  # whatever others do with it
    epochs = []
    resumed = fit_unified(pairs, QUICK, checkpoint=checkpoint, on_epoch=lambda r: epochs.append(r["epoch"]))
    whole = fit_unified(pairs, QUICK)
    assert epochs == list(range(stop + 1, 5))
    assert not whole.old.training["returned_start"]
    for mine, theirs in zip(resumed, whole, strict=True):
        assert mine.digest() == theirs.digest()
        assert mine.training["held_out"] == theirs.training["held_out"]
    with pytest.raises(ValueError, match="other options or pairs"):
        fit_unified(pairs, replace(QUICK, seed=4), checkpoint=checkpoint)


def test_the_user_is_told_where_one_direction_does_as_well():
    world = plant(identities=150, samples=1, old_dim=10, new_dim=14, noise=0.05)
    fitted = fit_unified(Pairs.from_arrays(world.old, world.new), replace(QUICK, epochs=2, learning_rate=3.0))
    notes = fitted.old.training["notes"]
    assert any(note.startswith("a single-direction map is at least as good") for note in notes), notes
    assert any(note.startswith("training added nothing") for note in notes)
    assert any(note.startswith("the pairs have no labels") for note in notes)
    assert fitted.old.training["best_epoch"] == -1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"correction": 0.5}, "correction"),
        ({"interpolation": InterpolationOptions(pairing="linear")}, "interpolation.pairing"),
        ({"loss": LossWeights(cosine_weight=1)}, "loss"),
        ({"schedule": "pretrain"}, "schedule"),
        ({"strength": 1.0}, "strength"),
        ({"precision": "bf16"}, "precision"),
        ({"direction": "old-to-new"}, "direction"),
    ],
)
def test_options_that_do_not_apply_are_refused(labelled, given, named):
    with pytest.raises(ValueError, match=f"unified has no {named};"):
        fit_unified(labelled, replace(QUICK, **given))


@pytest.mark.parametrize(
    ("weights", "labels", "message"),
    [
        (
            {"similarity_weight": 0, "classification_weight": 0, "kl_weight": 0},
            True,
            r"32 identities repeat, so that unified learns from unified.similarity_weight .*, found all of them zero",
        ),
        (
            {"similarity_weight": 0, "contrast_weight": 0},
            False,
            "no labels repeat, so that unified learns from unified.similarity_weight or unified.contrast_weight, found",
        ),
        ({"contrast_weight": 5.0}, True, "unified.contrast_weight 5 does nothing where 32 identities repeat; leave"),
        ({"kl_weight": 0.5}, False, "unified.kl_weight 0.5 does nothing where no labels repeat; leave it out"),
    ],
)
def test_weights_of_terms_that_there_are_not_are_refused(labelled, weights, labels, message):
    pairs = labelled if labels else replace(labelled, labels=None)
    with pytest.raises(ValueError, match=message):
        fit_unified(pairs, QUICK, UnifiedOptions(**weights))


def test_the_recorded_losses_are_the_means_over_the_epochs_pairs(monkeypatch):
    """Pairs that weigh more count for more, and the last batch, which is smaller, for less."""
    seen, loss = [], unified_run.unified_loss

    def watching(old, new, options, *, classifier, codes, pair_weights):
        terms = loss(old, new, options, classifier=classifier, codes=codes, pair_weights=pair_weights)
        seen.append([pair_weights.sum().item(), terms.total.item(), terms.similarity.item(), terms.contrast.item()])
        return terms

    monkeypatch.setattr(unified_run, "unified_loss", watching)
    pairs = replace(bent_pairs(300), weights=np.linspace(0.1, 2, 300))
    record = fit_unified(pairs, replace(QUICK, epochs=1)).old.training["epochs"][0]
    mass, *terms = np.array(seen).T
    assert len(mass) == 4
    for name, values in zip(("loss", "similarity_loss", "contrast_loss"), terms, strict=True):
        assert record[name] == pytest.approx((mass * values).sum() / mass.sum(), rel=1e-5)


def test_single_directions_are_tuned_on_the_pairs_that_judge_them():
    """As the start and the epoch of the two maps are: the figure of each is that of its best setting."""
    world = plant(identities=60, samples=3, old_dim=30, new_dim=40, noise=0.8)
    labelled = Pairs.from_arrays(world.old, world.new, world.labels)
    training = fit_unified(labelled, replace(QUICK, epochs=1)).new.training
    held_out = np.flatnonzero(identity_folds(labelled, 5, seed=0) == 0)
    rest = labelled.select(np.flatnonzero(identity_folds(labelled, 5, seed=0) != 0))
    for direction in ("new-to-old", "old-to-new"):
        judge = HeldOutRetrieval(labelled, held_out, direction, seed=0)
        scores = {}
        for strength in (0.01, 0.03, 0.1, 0.3, 1.0):
            scores[strength] = judge.score(as_map(fit_ridge_on(rest, direction, strength))).mean_reciprocal_rank
        assert len(set(scores.values())) > 1
        told = training["single_direction"][f"ridge {direction}"]
        assert told["mean_reciprocal_rank"] == pytest.approx(max(scores.values()))
        assert scores[told["settings"]["strength"]] == pytest.approx(max(scores.values()))


@pytest.mark.parametrize(("doubt", "told"), [(1.0, True), (0.0, False)])
def test_a_small_lead_is_told_to_be_flattered(doubt, told, monkeypatch):
    monkeypatch.setattr("compat.training.unified.DOUBTFUL_LEAD", doubt)
    notes = fit_unified(bent_pairs(), replace(QUICK, epochs=6, learning_rate=0.01)).old.training["notes"]
    assert not any("at least as good" in note for note in notes)
    assert any("leads the best single-direction map by little" in note for note in notes) == told
    assert any("unified the best of 6 epochs too, which flatters it" in note for note in notes) == told


def test_pairs_that_cannot_be_divided_are_refused(labelled):
    with pytest.raises(ValueError, match="all 5 pairs are of one identity"):
        fit_unified(labelled.select(np.arange(5)), QUICK)
    with pytest.raises(ValueError, match="0 pairs"):
        fit_unified(labelled.select(np.arange(0)), QUICK)


def test_where_one_map_is_wanted_unified_is_refused(labelled):
    with pytest.raises(ValueError, match="unified is two maps, found where one is expected: fit both with"):
        fit_transformer(labelled, QUICK)


@pytest.mark.parametrize("options", [{"dim": 0}, {"kl_weight": -1.0}, {"contrast_weight": math.inf}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=f"unified.{next(iter(options))} must"):
        UnifiedOptions(**options)
    with pytest.raises(ValueError, match="all its weights zero"):
        UnifiedOptions(similarity_weight=0, classification_weight=0, kl_weight=0, contrast_weight=0)


# As a user does it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores of two models of unequal dimensions, and a unified transformer of 120 people made by the command."""
    folder = tmp_path_factory.mktemp("unified")
    world = plant(identities=160, samples=5, old_dim=8, new_dim=12, noise=0.3)
    rows, fitted = np.arange(800), np.arange(800) < 600
    asked = ~fitted & (rows % 5 == 0)
    later = ~fitted & (rows % 5 == 1)  # people enrolled when the new model is there
    for name, model, chosen in [
        ("pairs-old", "old", fitted),
        ("pairs-new", "new", fitted),
        ("gallery", "old", ~fitted & ~asked & ~later),
        ("whole-gallery", "old", ~fitted & ~asked),
        ("new-items", "new", later),
        ("queries", "new", asked),
        ("old-queries", "old", asked),
    ]:
        ids = [f"i{row}" for row in rows[chosen]]
        write_store(folder / name, getattr(world, model)[chosen], name=model, ids=ids, labels=world.labels[chosen])
    trained = run("compat.train_transformer", *pair(folder), "--out", folder / "map", "--epochs", 4)
    assert trained.returncode == 0, trained.stderr
    (folder / "said.json").write_text(json.dumps([trained.stdout, trained.stderr]))
    return folder


def pair(folder):
    return ("--old", folder / "pairs-old", "--new", folder / "pairs-new", "--transformer", "unified")


def succeed(module, *argv):
    """Run a command in this process, which has imported everything already."""
    assert importlib.import_module(f"compat.{module}").main([str(word) for word in argv]) == 0


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_the_command_writes_two_artefacts_that_meet_and_tells_how_good_they_are(folder):
    said, told = json.loads((folder / "said.json").read_text())
    files = sorted(str(path.relative_to(folder / "map")) for path in (folder / "map").rglob("*") if path.is_file())
    each = ("card.json", "familiarity.safetensors", "model.safetensors")
    assert files == sorted(f"{half}/{file}" for half in ("old", "new") for file in each)
    old, new = (load_transformer(folder / "map" / half) for half in ("old", "new"))
    assert old.target == new.target
    assert (old.source.name, new.source.name) == ("old", "new")
    assert old.training["unified"] == {
        "dim": None,
        "similarity_weight": 1.0,
        "classification_weight": 1.0,
        "kl_weight": 1.0,
        "contrast_weight": 1.0,
    }
    for row in ("unified", "unified, as it started", "ridge new-to-old", "whitened old-to-new"):
        assert f"\n  {row}" in said
    assert "maps the gallery" in said.splitlines()[-1]
    assert "\n  (each the best of its settings on these pairs, unified the best of 4 epochs too" in said
    assert [line.split()[1] for line in told.splitlines() if line.startswith("epoch")] == ["1", "2", "3", "4"]
    assert "classification 0." in told or "classification 1." in told
    assert "contrast" not in told


def test_old_and_new_enrolments_share_one_gallery_that_new_queries_search(folder, tmp_path):
    succeed("migrate", "--transformer", folder / "map/old", "--source", folder / "gallery", "--target", tmp_path / "g")
    succeed(
        "migrate", "--transformer", folder / "map/new", "--source", folder / "new-items", "--target", tmp_path / "n"
    )
    succeed("migrate", "--transformer", folder / "map/new", "--source", folder / "queries", "--target", tmp_path / "q")
    with EmbeddingStore.open(tmp_path / "g") as gallery, EmbeddingStore.open(tmp_path / "n") as enrolled:
        assert gallery.space == enrolled.space
        assert enrolled.provenance["source_space"]["name"] == "new"
        gallery.append(enrolled.items, enrolled.take(np.arange(len(enrolled))))
        gallery.commit()
        assert len(gallery) == 160
    succeed("evaluate", "--gallery", tmp_path / "g", "--queries", tmp_path / "q", "--out", tmp_path / "report")
    report = report_of(tmp_path / "report")
    recall = report["settings"]["transformed"]["recall_at_1"]["value"]
    # By hand: each side through its own half, all of them in one pile.
    old, new = (load_transformer(folder / "map" / half) for half in ("old", "new"))
    sides = [("gallery", old), ("new-items", new), ("queries", new)]
    stores = [EmbeddingStore.open(folder / name) for name, _ in sides]
    mapped = [half.transform(s.take(np.arange(len(s)))) for (_, half), s in zip(sides, stores, strict=True)]
    pile, labels = np.concatenate(mapped[:2]), np.concatenate([s.items["label"].to_numpy() for s in stores[:2]])
    first = labels[(mapped[2] @ pile.T).argmax(axis=1)]
    by_hand = (first == stores[2].items["label"].to_numpy()).mean()
    assert recall == pytest.approx(by_hand)
    assert recall > 0.5  # chance is 0.025
    nearest = labels[(mapped[2] @ pile.T).argmax(axis=1)], (mapped[2] @ pile.T).argmax(axis=1)
    assert 0 < (nearest[1] >= len(mapped[0])).mean() < 1  # neighbours come from both models
    # Raw queries search the same gallery through the new half.
    through = ("--gallery", tmp_path / "g", "--queries", folder / "queries", "--transformer", folder / "map/new")
    succeed("evaluate", *through, "--out", tmp_path / "through")
    assert report_of(tmp_path / "through")["settings"]["transformed"]["recall_at_1"]["value"] == pytest.approx(recall)
    bridged = BridgedGallery(EmbeddingStore.open(tmp_path / "g"), new)
    found = bridged.search(stores[2].take(np.arange(9)), k=1, space=stores[2].space)
    ids = [*stores[0].items["item_id"], *stores[1].items["item_id"]]
    assert [row[0] for row in found.item_ids] == [ids[row] for row in nearest[1][:9]]


def test_a_verdict_on_the_unaltered_gallery(folder, tmp_path):
    succeed("migrate", "--transformer", folder / "map/new", "--source", folder / "queries", "--target", tmp_path / "q")
    stores = (
        "--gallery",
        folder / "whole-gallery",
        "--queries",
        tmp_path / "q",
        "--old-queries",
        folder / "old-queries",
    )
    succeed("evaluate", *stores, "--transformer", folder / "map/old", "--out", tmp_path / "report")
    report = report_of(tmp_path / "report")
    assert report["settings"]["old_to_old"]["recall_at_1"]["value"] > 0.5
    assert report["retention"]["value"] > 0.7
    assert report["transformer"]["family"] == "unified"
    assert report["verdict"]["decision"]


def test_transform_maps_queries_in_a_file(folder, tmp_path):
    queries = EmbeddingStore.open(folder / "queries")
    vectors = queries.take(np.arange(len(queries)))
    np.save(tmp_path / "q.npy", vectors)
    files = ("--vectors", tmp_path / "q.npy", "--out", tmp_path / "out.npy")
    succeed("transform", "--transformer", folder / "map/new", *files, "--serve", "queries")
    half = load_transformer(folder / "map/new")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), half.transform(vectors), rtol=1e-5, atol=1e-6)


def test_halves_of_two_trainings_do_not_mix(folder, tmp_path):
    options = TrainTransformerOptions(
        old=folder / "pairs-old",
        new=folder / "pairs-new",
        out=tmp_path / "other",
        transformer="unified",
        epochs=1,
        seed=1,
    )
    other = train_unified(options)
    migrate_gallery(str(folder / "gallery"), other.old, str(tmp_path / "g"))
    gallery = EmbeddingStore.open(tmp_path / "g")
    with pytest.raises(WrongSpace):
        BridgedGallery(gallery, load_transformer(folder / "map/new"))
    with pytest.raises(WrongSpace, match="the transformer's source is new"):
        migrate_gallery(str(folder / "gallery"), other.new, str(tmp_path / "h"))


@pytest.fixture
def options(folder, tmp_path):
    shutil.copytree(folder / "map", tmp_path / "map")
    return TrainTransformerOptions(
        old=folder / "pairs-old", new=folder / "pairs-new", out=tmp_path / "map", transformer="unified", epochs=4
    )


def never(record):
    raise AssertionError("trained although it is there")


def test_an_artefact_that_is_there_is_loaded_and_one_half_is_finished(options):
    first = train_unified(options, on_epoch=never)
    kept = {path: path.read_bytes() for path in options.out.rglob("*") if path.is_file()}
    shutil.rmtree(options.out / "new")
    finished = train_unified(options)
    assert [half.digest() for half in finished] == [half.digest() for half in first]
    assert not (options.out / "checkpoint.safetensors").exists()
    for path, content in kept.items():
        if path.name != "card.json":  # which tells how fast it went
            assert path.read_bytes() == content


def test_other_options_another_map_or_a_foreign_half_in_the_folder_are_refused(options, folder, tmp_path):
    with pytest.raises(FileExistsError, match="holds a transformer of other unified"):
        train_unified(replace(options, unified=UnifiedOptions(dim=5)))
    with pytest.raises(FileExistsError, match="holds a transformer of other options"):
        train_unified(replace(options, seed=7))
    with pytest.raises(FileExistsError, match="holds a unified transformer"):
        train_transformer(replace(options, transformer="ridge"))
    with pytest.raises(ValueError, match=r"--unified\.\* is for --transformer unified, found ridge"):
        replace(options, transformer="ridge", unified=UnifiedOptions(dim=5))
    single = replace(options, transformer="ridge", out=tmp_path / "single")
    train_transformer(single)
    with pytest.raises(FileExistsError, match="holds another transformer"):
        train_unified(replace(single, transformer="unified"))
    pairs = join_pairs(EmbeddingStore.open(options.old), EmbeddingStore.open(options.new))
    other = fit_unified(pairs, FitOptions(transformer="unified", epochs=1))
    half = replace(other.new, training=load_transformer(options.out / "new").training)  # as if from another machine
    half.save(options.out / "new")
    with pytest.raises(FileExistsError, match="do not meet in one space"):
        train_unified(options, on_epoch=never)


# Options that are newer than an artefact


def test_an_artefact_from_before_an_option_existed_is_the_same_at_its_default(folder, tmp_path):
    options = TrainTransformerOptions(
        old=folder / "pairs-old", new=folder / "pairs-new", out=tmp_path / "t", transformer="ridge"
    )
    made = train_transformer(options)
    before = json.loads(json.dumps(made.training))
    for name in ("width", "precision"):
        del before["options"][name]
    del before["options"]["loss"]["compactness_weight"]
    del before["options"]["interpolation"]["weight"]
    del before["options"]["interpolation"]["approximate_from"]
    replace(made, training=before).save(options.out)
    assert train_transformer(options).digest() == made.digest()
    for changed in ({"precision": "fp32"}, {"loss": LossWeights(compactness_weight=1.0)}, {"folds": 4}):
        with pytest.raises(FileExistsError, match="holds a transformer of other options"):
            train_transformer(replace(options, **changed))


def test_the_command_says_what_a_network_was_trained_in_and_on(folder, tmp_path, capsys):
    made_of = ("--old", folder / "pairs-old", "--new", folder / "pairs-new", "--out", tmp_path / "t")
    mixed = ("--interpolation.pairing", "linear", "--interpolation.rate", 0.1)
    succeed("train_transformer", *made_of, "--transformer", "mlp", "--epochs", 1, *mixed)
    synthetic = load_transformer(tmp_path / "t").training["synthetic"]
    line = f"trained in fp32; {synthetic['samples']} synthetic samples, {synthetic['rate']:.3f} for each real one"
    assert line in capsys.readouterr().err.splitlines()
