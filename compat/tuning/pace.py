"""What a study says of itself while it runs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

START = "start"
"""The user attribute of a trial that learned nothing: the reciprocal rank of the affine map that it started at."""


class Pace:
    """Says how a trial ended and when the study may be done."""

    def __init__(self, study: Study, wanted: int) -> None:
        self._study, self._wanted = study, wanted
        self._began, self._before = time.monotonic(), self._complete()

    def _complete(self) -> int:
        from optuna.trial import TrialState

        return len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def tell(self, trial: FrozenTrial) -> None:
        """Print one line."""
        from optuna.trial import TrialState

        complete = self._complete()
        if "diverged" in trial.user_attrs:
            ended = f"diverged in epoch {trial.last_step}"
        elif trial.state == TrialState.COMPLETE:
            ended = _reached(trial)
        elif trial.state == TrialState.PRUNED:
            ended = f"pruned after epoch {trial.user_attrs.get('epochs', trial.last_step)}"
        else:
            ended = "not needed" if trial.state == TrialState.FAIL else trial.state.name.lower()
        best = "no best yet"
        if complete:
            best = f"best {self._study.best_value:.4f} (trial {self._study.best_trial.number})"
        seconds = trial.user_attrs.get("seconds", 0.0)
        line = f"trial {trial.number}  {ended}  {best}  {seconds:.1f} s  {complete}/{self._wanted} complete"
        if complete > self._before and complete < self._wanted:
            each = (time.monotonic() - self._began) / (complete - self._before)
            line += f", about {_readable(each * (self._wanted - complete))} left"
        say(line)


def _reached(trial: FrozenTrial) -> str:
    start = trial.user_attrs.get(START)
    if start is None:
        return f"{trial.value:.4f}"
    return f"{trial.value:.4f} (learned nothing: the affine map that it starts at reaches {start:.4f})"


def _readable(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(line: str) -> None:
    """Tell people how far things are, on standard error."""
    sys.stderr.write(line + "\n")  # in one write, so that lines of several workers do not mix
    sys.stderr.flush()
