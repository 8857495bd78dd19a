"""Where a study is kept, and what becomes of a trial whose process is gone."""

import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState

from compat.tuning import leases, storage
from compat.tuning.leases import (
    DEATHS,
    LEASE,
    MOST_DEATHS,
    RETRIED,
    Abandoned,
    fail_and_retry,
    is_alive,
    is_here,
    own_lease,
)
from compat.tuning.storage import JOURNAL, checked_url, is_server, masked, opened_storage, sole_command


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:secret@host/base", "postgresql://ada:***@host/base"),
        ("postgresql://ada:p%40ss:w/rd@host:5432/base", "postgresql://ada:***@host:5432/base"),
        ("postgresql://ada@host/base?password=secret&x=1", "postgresql://ada@host/base?password=***&x=1"),
        ("postgresql://post:post@post/post", "postgresql://post:***@post/post"),
        ("postgresql://ada@host/base", "postgresql://ada@host/base"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_passwords_are_masked(url, shown):
    assert masked(url) == shown


def test_urls_are_read_as_people_write_them():
    assert checked_url("postgresql://ada@host/base") == "postgresql+psycopg://ada@host/base"
    assert checked_url("sqlite:///study.db") == "sqlite:///study.db"
    assert is_server("postgresql://host/base")
    assert not is_server("sqlite:///a")
    for wrong in ("mysql://ada:secret@host/base", "study.db", "sqlite://", "postgresql://"):
        with pytest.raises(ValueError, match="expected sqlite:///FILE") as error:
            checked_url(wrong)
        assert "secret" not in str(error.value)


def test_a_url_that_cannot_be_read_shows_nothing_of_the_password():
    with pytest.raises(ValueError, match="cannot be read as a URL") as error:
        checked_url("postgresql://ada:secret@host:se#cret/base")
    assert "ada:***@host" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_storage_that_cannot_be_reached_is_one_line_without_the_password(tmp_path):
    url = "postgresql://ada:s3cret%21@127.0.0.1:1/base?connect_timeout=1"
    with pytest.raises(ValueError, match="failed") as error, opened_storage(url, tmp_path):
        pass
    assert "s3cret" not in str(error.value)
    assert "ada:***@127.0.0.1" in str(error.value)


def test_tables_that_another_command_makes_at_this_moment_are_waited_for(tmp_path, monkeypatch):
    from sqlalchemy.exc import IntegrityError

    begin, refused = optuna.storages.RDBStorage.__init__, iter([IntegrityError("CREATE TABLE", None, Exception())])

    def begun_twice(*arguments, **options):
        if error := next(refused, None):
            raise error
        begin(*arguments, **options)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", begun_twice)
    with opened_storage(f"sqlite:///{tmp_path}/study.db", tmp_path) as kept:
        assert optuna.create_study(storage=kept).trials == []


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setattr(storage, "find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[postgres\]'"):
        checked_url("postgresql://host/base")
    with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[tune\]'"):
        storage.require_optuna()


def test_one_command_at_a_time_holds_a_folder(tmp_path):
    with sole_command(tmp_path), pytest.raises(ValueError, match="another"), sole_command(tmp_path):
        pass
    with sole_command(tmp_path):
        pass


def test_a_torn_journal_ends_at_its_last_whole_line(tmp_path):
    with opened_storage(None, tmp_path) as kept:
        optuna.create_study(storage=kept, study_name="s").set_user_attr("a", 1)
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + b'{"op_code": 2, "half')
    with sole_command(tmp_path), opened_storage(None, tmp_path) as kept:
        study = optuna.load_study(storage=kept, study_name="s")
        study.set_user_attr("b", 2)
    with opened_storage(None, tmp_path) as kept:
        assert optuna.load_study(storage=kept, study_name="s").user_attrs == {"a": 1, "b": 2}
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())


def a_dead_lease():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lease = own_lease() | {"pid": process.pid, "started": leases._started(process.pid)}
    assert is_alive(lease)
    process.send_signal(signal.SIGKILL)
    while is_alive(lease):  # a zombie, which is dead enough
        time.sleep(0.01)
    process.communicate()
    return lease


def test_a_lease_tells_the_living_from_the_dead_and_from_later_processes_of_that_number():
    mine = own_lease()
    assert is_here(mine)
    assert is_alive(mine)
    assert not is_alive(mine | {"started": mine["started"] - 1})
    assert not is_here(mine | {"host": "elsewhere"})
    assert not is_here(mine | {"boot": "an earlier one"})
    assert not is_alive(a_dead_lease())


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("url", [None, "sqlite:///{}/study.db"])
def test_trials_of_dead_processes_are_failed_and_queued_once(tmp_path, url):
    with opened_storage(url and url.format(tmp_path), tmp_path) as kept:
        study = optuna.create_study(storage=kept, study_name="s")
        mine, dead, remote, _unclaimed = (study.ask() for _ in range(4))
        mine.set_user_attr(LEASE, own_lease())
        dead.suggest_float("x", 0, 1)
        dead.set_user_attr(LEASE, a_dead_lease())
        remote.set_user_attr(LEASE, own_lease() | {"host": "elsewhere"})
        assert Abandoned(study, elsewhere_is_dead=False).recover() == [1]
        assert Abandoned(study, elsewhere_is_dead=False).recover() == []
        assert Abandoned(study, elsewhere_is_dead=True).recover() == [2]
        states = [trial.state for trial in study.trials]
        assert states[:4] == [TrialState.RUNNING, TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
        assert states[4:] == [TrialState.WAITING] * 2
        again = study.ask()
        assert again.suggest_float("x", 0, 1) == dead.params["x"]
        assert study.trials[again.number].user_attrs == {RETRIED: 1, DEATHS: 1}


def test_parameters_that_process_after_process_dies_at_are_given_up(tmp_path, capsys):
    with opened_storage(None, tmp_path) as kept:
        study = optuna.create_study(storage=kept, study_name="s")
        dead = a_dead_lease()
        found = []
        for _ in range(MOST_DEATHS + 2):
            trial = study.ask()  # the one in the queue, or one of new parameters
            trial.suggest_float("x", 0, 1)
            trial.set_user_attr(LEASE, dead)
            found.append((trial.params["x"], Abandoned(study, elsewhere_is_dead=False).recover()))
        deadly = found[0][0]
        assert [x == deadly for x, _ in found] == [True] * MOST_DEATHS + [False] * 2
        assert [numbers for _, numbers in found] == [[0], [1], [], [3], [4]]
        assert "trial 2  3 processes have died at its parameters; they are not tried again" in capsys.readouterr().err


def test_a_trial_whose_command_was_told_to_stop_is_tried_again_as_often_as_need_be(tmp_path):
    with opened_storage(None, tmp_path) as kept:
        study = optuna.create_study(storage=kept, study_name="s")
        drawn = set()
        for _ in range(MOST_DEATHS + 2):
            trial = study.ask()
            drawn.add(trial.suggest_float("x", 0, 1))
            assert fail_and_retry(study, study.trials[trial.number], to_blame=False)
        assert len(drawn) == 1


def test_a_trial_that_nobody_claimed_for_long_is_recovered(tmp_path, monkeypatch):
    with opened_storage(None, tmp_path) as kept:
        study = optuna.create_study(storage=kept, study_name="s")
        study.ask()
        abandoned = Abandoned(study, elsewhere_is_dead=True)
        assert abandoned.recover() == []
        monkeypatch.setattr(leases, "UNCLAIMED_SECONDS", 0.0)
        assert abandoned.recover() == [0]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_silent_worker_of_another_machine_is_found_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "SILENT_SECONDS", 1)
    with opened_storage(f"sqlite:///{tmp_path}/study.db", tmp_path) as kept:
        study = optuna.create_study(storage=kept, study_name="s")
        trial = study.ask()
        trial.set_user_attr(LEASE, own_lease() | {"host": "elsewhere", "pid": os.getpid()})
        kept.record_heartbeat(trial._trial_id)  # pyright: ignore[reportAttributeAccessIssue]
        from compat.tuning.trials import _fail_silent

        deadline = time.monotonic() + 10
        while study.trials[0].state == TrialState.RUNNING and time.monotonic() < deadline:
            _fail_silent(study)
            time.sleep(0.3)
        assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
