"""Which process works on a trial, and what becomes of the trial when that process dies.

A lease names the host, the process and when it started, since a process id alone is given away again. Nothing is
renewed: whether a process of this machine lives is asked of the kernel. Trials of other machines are for the heartbeat
of the storage.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

LEASE = "worker"
"""The user attribute of a trial that holds its lease."""
RETRIED = "retries"
"""The user attribute of a trial that holds the number of the trial it is another try of."""
DEATHS = "deaths"
"""The user attribute of a trial that holds how many processes have died at its parameters before."""
MOST_DEATHS = 3
"""Parameters that so many processes died at are not tried again: they need more memory than there is, or the like."""
UNCLAIMED_SECONDS = 60.0
"""A running trial that nobody put a name to for so long was abandoned between two statements."""


def own_lease() -> dict[str, Any]:
    """The lease of this process."""
    return {**_here(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_here(lease: dict[str, Any]) -> bool:
    """Whether a lease is of this machine, since it was booted, and of this namespace of process ids."""
    return {name: lease.get(name) for name in _here()} == _here()


def is_alive(lease: dict[str, Any]) -> bool:
    """Whether the process of a lease of this machine still runs."""
    return lease.get("started") is not None and _started(int(lease["pid"])) == lease["started"]


def _here() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "namespace": Path("/proc/self/ns/pid").readlink().name,
    }


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (field 22 of its stat, proc(5)); None where it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # its name may hold anything
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Abandoned:
    """Finds trials whose process is dead, fails them and puts them in the queue again.

    Args:
        study: The study.
        elsewhere_is_dead: Whether no process of another machine can be at work: so it is for a journal, which one
            command at a time holds locked.
    """

    def __init__(self, study: Study, *, elsewhere_is_dead: bool) -> None:
        self._study, self._elsewhere_is_dead = study, elsewhere_is_dead
        self._unclaimed_since: dict[int, float] = {}

    def recover(self) -> list[int]:
        """Numbers of the trials that were failed and queued; those that are given up are failed alone."""
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        found = [trial for trial in running if self._is_abandoned(trial)]
        return [trial.number for trial in found if fail_and_retry(self._study, trial)]

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        lease = trial.user_attrs.get(LEASE)
        if lease is None:
            since = self._unclaimed_since.setdefault(trial.number, time.monotonic())
            return time.monotonic() - since > UNCLAIMED_SECONDS
        if not is_here(lease):
            return self._elsewhere_is_dead
        return not is_alive(lease)


def fail_and_retry(study: Study, trial: FrozenTrial, *, to_blame: bool = True) -> bool:
    """Fail a running trial and `retry` it; False where somebody else has ended it, or it is given up."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        if not study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
            return False
    except UpdateFinishedTrialError:
        return False
    return retry(study, trial, to_blame=to_blame)


def retry(study: Study, trial: FrozenTrial, *, to_blame: bool = True) -> bool:
    """Queue another trial with the parameters of one that was failed; those that it had not drawn are drawn then.

    Args:
        study: The study.
        trial: The failed trial.
        to_blame: Whether its process died at work; where it was told to stop, nothing is counted against it.

    Returns:
        Whether it was queued; not where `MOST_DEATHS` processes have died at these parameters.
    """
    from optuna.trial import TrialState, create_trial

    deaths = trial.user_attrs.get(DEATHS, 0) + to_blame
    if deaths >= MOST_DEATHS:
        line = f"trial {trial.number}  {deaths} processes have died at its parameters; they are not tried again"
        print(line, file=sys.stderr, flush=True)
        return False
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            # Not the lease: a dead process must not seem to work on this one.
            user_attrs={RETRIED: trial.number, DEATHS: deaths},
        )
    )
    return True
