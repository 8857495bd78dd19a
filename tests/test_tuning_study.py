"""A whole study in this process: what it finds, that it goes on, and what it leaves behind."""

import json
from dataclasses import replace

import numpy as np
import optuna
import polars as pl
import pytest
import yaml

from compat.options import FitOptions, InterpolationOptions
from compat.pairs import join_pairs
from compat.training.closed_form import as_map, fit_ridge_on
from compat.training.fit import fit_transformer
from compat.training.selection import HeldOutRetrieval, identity_folds
from compat.tuning.baseline import best_ridge, ridge_scores
from compat.tuning.options import SearchSpace, TuneOptions
from compat.tuning.space import digest_of
from compat.tuning.storage import opened_storage
from compat.tuning.study import opened_work, tune
from stores.store import EmbeddingStore
from tests.planted import plant, write_store

PEOPLE, SAMPLES = 40, 5
SPACE = SearchSpace(batch_size=[32, 64], width=[16, 32], pairing=["none", "linear"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Pairs, and an old gallery and new queries of other people."""
    folder = tmp_path_factory.mktemp("stores")
    world = plant(PEOPLE, SAMPLES, 12, 8, noise=0.5)
    cut = 32 * SAMPLES
    seen, unseen = slice(None, cut), slice(cut, None)
    ids = [f"t{row}" for row in range(PEOPLE * SAMPLES - cut)]
    for name, vectors in (("old", world.old), ("new", world.new)):
        write_store(folder / name, vectors[seen], name=name, labels=world.labels[seen])
        write_store(folder / f"test-{name}", vectors[unseen], name=name, labels=world.labels[unseen], ids=ids)
    return folder


def options(stores, out, **changes):
    given = {
        "trials": 3,
        "transformer": "residual_mlp",
        "epochs": 3,
        "space": SPACE,
        "finalists": 2,
        "judgings": 1,
        "interpolation": InterpolationOptions(minimum=3),
    }
    return TuneOptions(old=stores / "old", new=stores / "new", out=out, **(given | changes))


def trials_of(out):
    """Parameters and values of the complete trials."""
    table = pl.read_csv(out / "trials.csv").filter(pl.col("state") == "complete")
    return table.drop("seconds", "pairs_per_second", "trial", "retry_of").to_dicts()


def test_a_study_leaves_its_trials_its_best_and_its_page(stores, tmp_path, capsys):
    record = tune(options(stores, tmp_path)).record
    trials = pl.read_csv(tmp_path / "trials.csv")
    assert trials["state"].to_list().count("complete") == 3
    assert json.loads((tmp_path / "study.json").read_text()) == record
    best = record["best"]
    assert best["value"] == pytest.approx(trials.filter(trial=best["trial"])["value"].item())
    assert {"seconds", "pairs_per_second", "pruned_epoch", "learning_rate", "width"} <= set(trials.columns)
    page = (tmp_path / "study.html").read_text()
    assert "default-src 'none'" in page
    assert f"trial {best['trial']}" in page
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("trial ") and "3 complete" in line for line in lines) >= 3
    assert any("left" in line for line in lines)
    # best.yaml is the configuration that was judged: trained again it is the same map.
    pairs = join_pairs(EmbeddingStore.open(stores / "old"), EmbeddingStore.open(stores / "new"))
    found = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert found == best["options"]
    changed = FitOptions(**{k: v for k, v in found.items() if k not in ("loss", "interpolation")})
    fitted = fit_transformer(
        pairs,
        replace(
            changed,
            loss=replace(changed.loss, **found["loss"]),
            interpolation=InterpolationOptions(**found["interpolation"]),
        ),
    )
    assert fitted.training["held_out"]["mean_reciprocal_rank"] == best["value"]


def test_a_study_that_was_interrupted_is_the_one_that_was_not(stores, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tune(options(stores, whole, trials=4))
    tune(options(stores, parts, trials=2))
    tune(options(stores, parts, trials=4))
    assert trials_of(whole) == trials_of(parts)
    assert len({trial["learning_rate"] for trial in trials_of(parts)}) == 4
    tune(options(stores, tmp_path / "other", trials=4, seed=1))
    assert trials_of(tmp_path / "other") != trials_of(whole)


def test_the_best_is_named_by_folds_that_it_was_not_chosen_by(stores, tmp_path):
    record = tune(options(stores, tmp_path, judgings=2, finalists=3)).record
    pairs = join_pairs(EmbeddingStore.open(stores / "old"), EmbeddingStore.open(stores / "new"))
    judged = [finalist["judged"] for finalist in record["finalists"]]
    assert judged == sorted(judged, reverse=True)
    assert record["best"]["judged"] == pytest.approx(np.mean(record["best"]["elsewhere"]))
    with opened_work(options(stores, tmp_path)) as job:
        folds = [identity_folds(job.pairs, 5, seed=seed) for seed in (0, 1, 2)]
    assert not (folds[0] == folds[1]).all()
    for place, seed in enumerate((1, 2)):
        strength = record["ridge"]["strength"]
        judge = HeldOutRetrieval(pairs, np.flatnonzero(folds[seed] == 0), "new-to-old", seed=seed)
        ridge = fit_ridge_on(pairs.select(np.flatnonzero(folds[seed] != 0)), "new-to-old", strength)
        # The study centres with its own seed, fit_ridge_on with 0; all the pairs are in both centres.
        expected = judge.score(as_map(ridge)).mean_reciprocal_rank
        assert record["ridge"]["elsewhere"][place] == pytest.approx(expected, abs=1e-6)


def test_ridge_is_the_best_of_its_strengths_on_the_held_out_pairs(stores):
    with opened_work(options(stores, stores)) as job:
        best = best_ridge(job.pairs, job.fixed, None)
        scores = {s: score.mean_reciprocal_rank for s, score in ridge_scores(job.pairs, job.fixed, None).items()}
        folds = identity_folds(job.pairs, 5, seed=0)
        judge = HeldOutRetrieval(job.pairs, np.flatnonzero(folds == 0), "new-to-old", seed=0)
        for strength in (0.01, 1.0):
            alone = fit_ridge_on(job.pairs.select(np.flatnonzero(folds != 0)), "new-to-old", strength)
            assert judge.score(as_map(alone)).mean_reciprocal_rank == pytest.approx(scores[strength], abs=1e-6)
    assert best["mean_reciprocal_rank"] == max(scores.values())


def test_a_worthless_family_is_beaten_by_ridge_and_the_study_says_so(stores, tmp_path):
    slow = replace(SPACE, learning_rate=[1e-7, 2e-7])
    record = tune(options(stores, tmp_path, transformer="mlp", space=slow, trials=2, epochs=2)).record
    assert record["ridge_wins"]
    assert "a plain linear map is at least as good" in record["sentence"]
    assert "A plain linear map does as well" in (tmp_path / "study.html").read_text()


def test_a_configuration_that_cannot_be_trained_is_pruned_and_told(stores, tmp_path, capsys):
    # Half of the range on a logarithmic scale is far beyond what any network survives.
    wild = replace(SPACE, learning_rate=[1e-4, 1e30])
    record = tune(options(stores, tmp_path, transformer="mlp", space=wild, trials=2, seed=3)).record
    table = pl.read_csv(tmp_path / "trials.csv")
    assert table["diverged"].any()
    assert (table.filter("diverged")["state"] == "pruned").all()
    assert record["trials"]["complete"] == 2
    assert "diverged in epoch" in capsys.readouterr().err


def test_the_test_split_is_scored_once(stores, tmp_path, monkeypatch):
    out = tmp_path / "out"
    split = {"test_gallery": stores / "test-old", "test_queries": stores / "test-new"}
    first = tune(options(stores, out, trials=2, **split))
    score = first.record["test"]
    assert not first.scored_before
    assert score["config"] == first.record["best"]["config"]
    assert 0 <= score["measures"]["recall_at_1"]["value"] <= 1
    assert "Test split, scored once" in (out / "study.html").read_text()
    monkeypatch.setattr("compat.tuning.unseen._score", None)  # a second score would fail
    again = tune(options(stores, out, trials=2, **split))
    assert again.scored_before
    assert again.record["test"] == score
    # More trials, the folder's record lost: the study itself remembers.
    (out / "study.json").unlink()
    assert tune(options(stores, out, trials=3, **split)).record["test"] == score
    assert tune(options(stores, out, trials=3)).record["test"] == score
    other = write_store(tmp_path / "other", plant(4, 2, 12, 8).new, name="new", ids=[f"o{i}" for i in range(8)])
    with pytest.raises(ValueError, match="scored on another test split"):
        tune(options(stores, out, trials=3, test_gallery=stores / "test-old", test_queries=other))


def test_a_test_split_that_was_trained_on_is_refused_before_any_trial(stores, tmp_path):
    with pytest.raises(ValueError, match=r"160 of the 160 items of the test gallery .* among the training pairs"):
        tune(options(stores, tmp_path, test_gallery=stores / "old", test_queries=stores / "test-new"))
    with pytest.raises(ValueError, match="expected old"):
        tune(options(stores, tmp_path, test_gallery=stores / "test-new", test_queries=stores / "test-new"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", [None, "sqlite:///{}/study.db"])
def test_studies_of_other_things_are_not_mixed(stores, tmp_path, url):
    storage = {"storage": url and url.format(tmp_path)}
    tune(options(stores, tmp_path / "a", trials=1, finalists=1, **storage))
    for what, change in (
        ("options", {"epochs": 2}),
        ("space", {"space": replace(SPACE, learning_rate=[1e-5, 1e-1])}),
        ("gallery", {"gallery": stores / "test-old"}),
    ):
        with pytest.raises(ValueError, match=f"holds a study 'compat-tune' of other {what};"):
            tune(options(stores, tmp_path / "a", trials=1, **storage, **change))
    if url:
        with pytest.raises(ValueError, match="other options"):
            tune(options(stores, tmp_path / "b", trials=1, epochs=2, **storage))
        tune(options(stores, tmp_path / "b", trials=1, epochs=2, finalists=1, name="another", **storage))


def test_no_more_trials_than_wanted_are_complete_and_surplus_ones_are_dropped(stores, tmp_path):
    from compat.tuning.leases import LEASE, own_lease
    from compat.tuning.trials import Objective, Surplus

    with opened_work(options(stores, tmp_path, trials=1)) as job, opened_storage(None, tmp_path) as kept:
        study = optuna.create_study(storage=kept, direction="maximize")
        first, second = study.ask(), study.ask()
        first.set_user_attr(LEASE, own_lease())
        with pytest.raises(Surplus):
            Objective(study, job, None)(second)
        assert 0 < Objective(study, job, None)(first) <= 1


def test_the_digest_in_the_table_is_that_of_the_best(stores, tmp_path):
    record = tune(options(stores, tmp_path, trials=1, finalists=1)).record
    best = record["best"]
    table = pl.read_csv(tmp_path / "trials.csv")
    assert table.filter(trial=best["trial"])["config"].item() == best["config"]
    with opened_work(options(stores, tmp_path)) as job:
        assert digest_of(job.fixed) != best["config"]
