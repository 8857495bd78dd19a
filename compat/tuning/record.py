"""What a study leaves behind: its trials as a table, its best configuration as YAML, and study.json."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from compat.tuning.contest import Contest
from compat.tuning.finalists import Finalist
from compat.tuning.leases import RETRIED
from compat.tuning.options import TuneOptions
from compat.tuning.pace import START
from compat.tuning.storage import JOURNAL, masked
from compat.tuning.trials import Work
from stores.durable import write_atomically

if TYPE_CHECKING:
    from optuna import Study

RECORD_VERSION = 1
RECORD, TABLE, BEST, PAGE = "study.json", "trials.csv", "best.yaml", "study.html"


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        finalists: The best trials, the best of them first.
        ridge: Strength, recall_at_1 and mean_reciprocal_rank of the plain linear map on the fold of the study.
        contest: The best and ridge on pairs that nothing was chosen by.
        importances: Share of the variance of the value that each parameter explains; empty where it is not known.
        unimportant: Why importances are missing, or what they leave out; empty if nothing.
    """

    finalists: Sequence[Finalist]
    ridge: dict[str, float]
    contest: Contest
    importances: dict[str, float]
    unimportant: str

    @property
    def best(self) -> Finalist:
        """The best finalist."""
        return self.finalists[0]

    def sentence(self, family: str) -> str:
        """What was found and what to do, in words."""
        name = f"the best {family}, trial {self.best.trial}"
        if self.best.start is not None:
            name += f" (which learned nothing in the study: {self.best.value:.4f}, from {self.best.start:.4f})"
        return self.contest.sentence(name)


def read_record(folder: Path) -> dict[str, Any]:
    """study.json of a folder, empty where there is none.

    Raises:
        ValueError: If it is of another version or cannot be read.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        version = found["format_version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} cannot be read as the record of a study; name another --out") from None
    if version != RECORD_VERSION:
        raise ValueError(f"{path} has format_version {version}, expected {RECORD_VERSION}; use the release it is of")
    return found


def importances(study: Study) -> tuple[dict[str, float], str]:
    """How much of the value's variance each parameter explains, and why that is not known, or not of all.

    Functional ANOVA over a random forest: Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing
    hyperparameter importance", ICML 2014. A parameter that some complete trials do not have is left out.
    """
    from importlib.util import find_spec

    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if find_spec("sklearn") is None:
        return {}, "importances need scikit-learn: pip install 'embedding-compat[tune]'"
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}, f"{len(complete)} complete trials tell nothing of importances"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of normalize: sums of 1 would hide what is unexplained
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), normalize=False)
    rest = sorted({name for trial in complete for name in trial.params} - set(found))
    note = f"{' and '.join(rest)}: of some trials only, those with a pairing" if rest else ""
    return {name: float(share) for name, share in found.items()}, note


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """Every trial as a row, in the order of their numbers."""
    rows = []
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    for trial in trials:
        state, attributes = trial.state.name.lower(), trial.user_attrs
        last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
        rows.append(
            {
                "trial": trial.number,
                "state": state,
                "value": trial.value if state == "complete" else None,
                "last_value": last,
                "recall_at_1": attributes.get("recall_at_1"),
                "seconds": attributes.get("seconds"),
                "pairs_per_second": attributes.get("pairs_per_second"),
                "epochs": attributes.get("epochs"),
                "pruned_epoch": attributes.get("epochs") if state == "pruned" else None,
                "diverged": "diverged" in attributes,
                "learned_nothing": START in attributes,
                "retry_of": attributes.get(RETRIED),
                "config": attributes.get("config"),
                **{name: trial.params.get(name) for name in names},
            }
        )
    return rows


def study_record(options: TuneOptions, job: Work, rows: Sequence[dict[str, Any]], outcome: Outcome) -> dict[str, Any]:
    """study.json but for the score on a test split."""
    states = [row["state"] for row in rows]
    best = outcome.best
    return {
        "format_version": RECORD_VERSION,
        "name": options.name,
        "storage": masked(options.storage) if options.storage else JOURNAL,
        "family": options.transformer,
        "direction": options.direction,
        "pairs": {
            "count": len(job.pairs),
            "fingerprint": job.pairs.fingerprint(),
            "old": str(job.pairs.old.space),
            "new": str(job.pairs.new.space),
            "labelled": job.pairs.labels is not None,
        },
        "gallery": None if options.gallery is None else str(options.gallery.absolute()),
        "space": {"values": job.space.values, "left_out": list(job.space.left_out)},
        "trials": {"wanted": options.trials} | {state: states.count(state) for state in sorted(set(states))},
        "best": best.to_dict() | {"options": asdict(best.options)},
        "finalists": [finalist.to_dict() for finalist in outcome.finalists],
        "ridge": outcome.ridge,
        "against_ridge": outcome.contest.to_dict(),
        "sentence": outcome.sentence(options.transformer),
        "importances": {"shares": outcome.importances, "note": outcome.unimportant},
    }


def write_artefacts(folder: Path, record: dict[str, Any], rows: Sequence[dict[str, Any]], page: str) -> None:
    """Write trials.csv, best.yaml, study.html and at last study.json, each whole or not at all."""
    table = pl.DataFrame(list(rows), infer_schema_length=None).write_csv()
    options = dict(record["best"]["options"])
    if record["gallery"] is not None:  # without it, training would stop at another epoch
        options["gallery"] = record["gallery"]
    best = f"# Trial {record['best']['trial']} of {record['name']}.\n{yaml.safe_dump(options, sort_keys=False)}"
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in ((TABLE, table), (BEST, best), (PAGE, page), (RECORD, text)):
        write_atomically(folder / name, [content.encode()])
