"""A whole study in this process: what it finds, that it goes on, and what it leaves behind."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import optuna
import polars as pl
import pytest
import yaml

from compat.options import FitOptions, InterpolationOptions, LossWeights
from compat.pairs import Pairs, join_pairs
from compat.training.closed_form import as_map, fit_ridge_on
from compat.training.epoch_run import Diverged
from compat.training.fit import fit_transformer
from compat.training.selection import HeldOutRetrieval, identity_folds
from compat.tuning.baseline import STRENGTHS, best_ridge, fit_ridges
from compat.tuning.contest import Contest, parts_of
from compat.tuning.leases import own_lease
from compat.tuning.opening import made_of, open_study, opened_work
from compat.tuning.options import SearchSpace, TuneOptions
from compat.tuning.pace import Pace
from compat.tuning.space import digest_of
from compat.tuning.storage import opened_storage
from compat.tuning.study import tune
from compat.tuning.unseen import CLAIM, _claimed
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
        "reports": 1,
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
    judged = [finalist["judged"] for finalist in record["finalists"]]
    assert judged == sorted(judged, reverse=True)
    assert record["best"]["judged"] == pytest.approx(np.mean(record["best"]["elsewhere"]))
    with opened_work(options(stores, tmp_path)) as job:
        folds = [identity_folds(job.pairs, 5, seed=seed) for seed in (0, 1, 2)]
    assert not (folds[0] == folds[1]).all()
    for finalist in record["finalists"]:
        assert len(finalist["elsewhere"]) == 2


def test_ridge_and_the_best_are_compared_on_pairs_that_nothing_was_chosen_by(stores, tmp_path):
    record = tune(options(stores, tmp_path, judgings=2, finalists=3, reports=2)).record
    pairs = join_pairs(EmbeddingStore.open(stores / "old"), EmbeddingStore.open(stores / "new"))
    contest = record["against_ridge"]
    parts = parts_of(pairs, FitOptions(), (0, 1, 2), 2)
    chosen = np.concatenate([np.flatnonzero(identity_folds(pairs, 5, seed=seed) == 0) for seed in (0, 1, 2)])
    assert len(parts) == len(contest["parts"]) == 2
    assert not set(np.concatenate(parts).tolist()) & set(chosen.tolist())
    assert not set(parts[0].tolist()) & set(parts[1].tolist())
    assert pairs.labels is not None
    best = FitOptions(**_nested(record["best"]["options"]))
    both = []
    for told, held_out in zip(contest["parts"], parts, strict=True):
        assert not set(pairs.labels[held_out]) & set(np.delete(pairs.labels, held_out))
        seen, seed = pairs.select(np.setdiff1d(np.arange(len(pairs)), held_out)), told["seed"]
        judge = HeldOutRetrieval(pairs, held_out, "new-to-old", seed=seed)
        # Within what is seen, the fold that the network stops by chooses the strength, and neither is fitted to it.
        folds = identity_folds(seen, 5, seed=seed)
        inner = HeldOutRetrieval(seen, np.flatnonzero(folds == 0), "new-to-old", seed=seed)
        fitted = seen.select(np.flatnonzero(folds != 0))
        ranks = {s: inner.score(as_map(fit_ridge_on(fitted, "new-to-old", s))).mean_reciprocal_rank for s in STRENGTHS}
        assert ranks[told["strength"]] == pytest.approx(max(ranks.values()), abs=1e-6)
        ridge = judge.rank(as_map(fit_ridge_on(fitted, "new-to-old", told["strength"])))[0].reciprocal_ranks
        network = judge.rank(as_map(fit_transformer(seen, replace(best, seed=seed)).network))[0].reciprocal_ranks
        assert told["ridge"] == pytest.approx(ridge.mean(), abs=1e-6)
        assert told["network"] == pytest.approx(network.mean(), abs=1e-6)
        both.append(network - ridge)
    assert contest["difference"]["value"] == pytest.approx(np.concatenate(both).mean(), abs=1e-6)
    assert contest["difference"]["low"] <= contest["difference"]["value"] <= contest["difference"]["high"]


def _nested(found):
    parts = {"loss": LossWeights, "interpolation": InterpolationOptions}
    return {name: parts[name](**value) if name in parts else value for name, value in found.items()}


def test_parts_are_no_larger_than_folds_and_nothing_is_left_of_few_pairs():
    world = plant(40, 3)
    pairs = Pairs.from_arrays(world.old, world.new, world.labels)
    for folds in (3, 5, 20):
        parts = parts_of(pairs, FitOptions(folds=folds), (0, 1), 2)
        assert 1 <= len(parts) <= 2
        assert max(map(len, parts)) <= len(pairs) / folds + 3
    two = pairs.select(np.flatnonzero(world.labels < 2))
    assert len(np.concatenate([np.empty(0), *parts_of(two, FitOptions(), range(40), 2)])) == 0


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (0.01, 0.03, "better", "0.8200, a plain linear map (ridge) 0.8000: +0.0200 [+0.0100, +0.0300]"),
        (-0.01, 0.05, "not told apart", "not told apart, and ridge is simpler: use --transformer ridge"),
        (-0.05, -0.01, "worse", "ridge wins: use --transformer ridge"),
    ],
)
def test_what_is_within_noise_is_not_told_apart(low, high, verdict, words):
    part = {"kept_start": False}
    contest = Contest(90, 0.82, 0.80, {"value": 0.02, "low": low, "high": high}, [part])
    assert contest.to_dict()["verdict"] == verdict
    assert contest.sentence("the best mlp, trial 1").endswith(words)
    idle = replace(contest, parts=[part, {"kept_start": True}])
    assert "1 of 2 times it learned nothing" in idle.sentence("it")
    assert "too few pairs" in Contest(0, 0.0, 0.0, None, []).sentence("it")


def test_a_trial_that_learned_nothing_is_worth_its_best_epoch_and_says_so(stores, tmp_path, capsys):
    # Steps so long that every epoch does worse than the affine map that a residual_mlp starts at.
    wild = replace(SPACE, learning_rate=[0.3, 0.4], pairing=["none"])
    record = tune(options(stores, tmp_path, space=wild, trials=2, reports=1)).record
    table = pl.read_csv(tmp_path / "trials.csv").filter(pl.col("state") == "complete")
    assert table["learned_nothing"].all()
    best = record["best"]
    assert best["value"] < best["start"]
    assert table["value"].n_unique() == 2  # their starts tie
    assert "learned nothing: the affine map that it starts at reaches" in capsys.readouterr().err
    assert "which learned nothing in the study" in record["sentence"]
    assert "Learned nothing" in (tmp_path / "study.html").read_text()


def test_ridge_is_the_best_of_its_strengths_on_the_held_out_pairs(stores):
    with opened_work(options(stores, stores)) as job:
        best = best_ridge(job.pairs, job.fixed, None)
        ridges = fit_ridges(job.pairs, job.fixed, None)
        scores = {s: score.mean_reciprocal_rank for s, score in ridges.scores.items()}
        folds = identity_folds(job.pairs, 5, seed=0)
        judge = HeldOutRetrieval(job.pairs, np.flatnonzero(folds == 0), "new-to-old", seed=0)
        for strength in (0.01, 1.0):
            alone = fit_ridge_on(job.pairs.select(np.flatnonzero(folds != 0)), "new-to-old", strength)
            assert judge.score(as_map(alone)).mean_reciprocal_rank == pytest.approx(scores[strength], abs=1e-6)
    assert best["mean_reciprocal_rank"] == max(scores.values())


def test_a_worthless_family_is_beaten_by_ridge_and_the_study_says_so(stores, tmp_path):
    slow = replace(SPACE, learning_rate=[1e-7, 2e-7])
    record = tune(options(stores, tmp_path, transformer="mlp", space=slow, trials=2, epochs=2)).record
    assert record["against_ridge"]["verdict"] == "worse"
    assert record["sentence"].endswith("ridge wins: use --transformer ridge")
    assert "A plain linear map does better" in (tmp_path / "study.html").read_text()


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
    world = plant(4, 2, 12, 8)
    other = write_store(
        tmp_path / "other", world.new, name="new", ids=[f"o{i}" for i in range(8)], labels=world.labels + 32
    )
    with pytest.raises(ValueError, match="scored on another test split"):
        tune(options(stores, out, trials=3, test_gallery=stores / "test-old", test_queries=other))


def test_a_score_that_another_command_makes_is_awaited_and_kept_out_of_the_record(stores, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    split = {"test_gallery": stores / "test-old", "test_queries": stores / "test-new", "storage": url}
    wanted = options(stores, tmp_path / "out", trials=1, finalists=1, **split)
    begun = tune(replace(wanted, test_gallery=None, test_queries=None))
    assert not begun.pending
    with (
        opened_work(wanted) as job,
        opened_storage(url, tmp_path) as kept,
        _claimed(open_study(kept, wanted.name, made_of(job)), alone=False) as mine,
    ):
        assert mine
        tuned = tune(wanted)
        assert tuned.pending
        assert tuned.record["test"] is None
        assert json.loads((tmp_path / "out" / "study.json").read_text())["test"] is None
        assert tune(wanted).pending  # and not a KeyError
    tuned = tune(wanted)
    assert not tuned.pending
    assert tuned.record["test"]["measures"]
    with opened_storage(url, tmp_path) as kept:
        assert optuna.get_all_study_names(kept) == ["compat-tune"]


def test_of_commands_that_would_score_at_one_moment_one_does(tmp_path):
    url, count = f"sqlite:///{tmp_path}/study.db", 4
    with opened_storage(url, tmp_path) as kept:
        optuna.create_study(storage=kept, study_name="s")
    at_once, all_tried = Barrier(count), Barrier(count)

    def claims(_):
        with opened_storage(url, tmp_path) as kept:
            study = optuna.load_study(storage=kept, study_name="s")
            at_once.wait(30)
            with _claimed(study, alone=False) as mine:
                all_tried.wait(30)
                return mine

    with ThreadPoolExecutor(count) as pool:
        assert sorted(pool.map(claims, range(count))) == [False] * (count - 1) + [True]


def test_a_claim_of_a_dead_process_or_of_nobody_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("compat.tuning.unseen.CLAIM_SECONDS", 0.0)
    with opened_storage(f"sqlite:///{tmp_path}/study.db", tmp_path) as kept:
        study = optuna.create_study(storage=kept, study_name="s")
        optuna.create_study(storage=kept, study_name="s, scoring 1")
        with _claimed(study, alone=False) as mine:
            assert mine
        monkeypatch.setattr("compat.tuning.unseen.CLAIM_SECONDS", 5.0)
        for lease, alone, free in (
            (own_lease() | {"started": 1}, False, True),
            (own_lease() | {"host": "elsewhere"}, False, False),
            (own_lease() | {"host": "elsewhere"}, True, True),
        ):
            optuna.load_study(storage=kept, study_name="s, scoring 1").set_user_attr(CLAIM, [lease, time.time()])
            with _claimed(study, alone=alone) as mine:
                assert mine == free


def test_a_split_without_labels_is_scored_by_a_table_and_refused_before_any_trial_without(stores, tmp_path):
    world = plant(6, 2, 12, 8, noise=0.5, seed=3)
    old = write_store(tmp_path / "o", world.old, name="old", ids=[f"a{i}" for i in range(12)])
    new = write_store(tmp_path / "n", world.new, name="new", ids=[f"b{i}" for i in range(12)])
    split = {"test_gallery": old, "test_queries": new}
    for relevance, why in (("auto", "no query has a relevant item"), ("label", "needs a column label")):
        with pytest.raises(ValueError, match=why) as error:
            tune(options(stores, tmp_path / "out", test_relevance=relevance, **split))
        assert " --relevance" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"--test-relevance nowhere\.csv is not"):
        tune(options(stores, tmp_path / "out", test_relevance="nowhere.csv", **split))
    with pytest.raises(ValueError, match="--test-relevance is of a test split"):
        options(stores, tmp_path / "out", test_relevance="label")
    assert not (tmp_path / "out").exists()
    table = tmp_path / "right.csv"
    table.write_text("query_id,item_id\n" + "".join(f"b{i},a{i}\n" for i in range(12)))
    wanted = options(stores, tmp_path / "out", trials=1, finalists=1, test_relevance=str(table), **split)
    assert tune(wanted).record["test"]["queries"] == 12
    table.write_text("query_id,item_id\nb0,a1\n")
    with pytest.raises(ValueError, match="scored on another test split"):
        tune(wanted)


def test_a_test_gallery_that_trials_are_judged_among_is_refused(stores, tmp_path):
    split = {"test_gallery": stores / "test-old", "test_queries": stores / "test-new"}
    with pytest.raises(ValueError, match=r"40 of the 40 items of the test gallery .* among those of --gallery"):
        tune(options(stores, tmp_path / "out", gallery=stores / "test-old", **split))
    assert not (tmp_path / "out").exists()


def test_the_best_configuration_names_its_gallery(stores, tmp_path):
    record = tune(options(stores, tmp_path, trials=1, finalists=1, gallery=stores / "test-old")).record
    found = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert found == record["best"]["options"] | {"gallery": str(stores / "test-old")}


def test_a_finalist_that_diverges_from_another_seed_is_the_last(stores, tmp_path, monkeypatch):
    asked = []

    def diverges(pairs, options, **rest):
        asked.append(options)
        if options == asked[0]:  # the best of the study is judged again first
            raise Diverged("the loss became nan")
        return fit_transformer(pairs, options, **rest)

    monkeypatch.setattr("compat.tuning.finalists.fit_transformer", diverges)
    record = tune(options(stores, tmp_path, trials=3, finalists=3)).record
    assert len(asked) == len(record["finalists"]) == 3
    assert record["finalists"][-1]["config"] == digest_of(replace(asked[0], seed=0))
    assert record["finalists"][-1]["elsewhere"] == [0.0]
    assert record["best"]["judged"] > 0


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


def test_a_trial_that_was_not_needed_is_told_of_though_it_has_no_value(capsys):
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=0.5))
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    Pace(study, 2).tell(study.trials[1])
    assert "trial 1  not needed  best 0.5000 (trial 0)" in capsys.readouterr().err
