"""Tune a family of maps to pairs: `python -m compat.tune --old STORE --new STORE --out DIR --trials N`.

A study over loss weights, synthetic identities and steps, judged by retrieval of pairs held out; bad trials are pruned.
Run again, it goes on until N trials are complete. The same command elsewhere, with the same PostgreSQL as --storage,
joins in. Writes best.yaml (for `python -m compat.train_transformer --config`), trials.csv, study.json and study.html.
A test split (--test-gallery, --test-queries) is scored once, at the end: to tune again and look again would tune to it.
"""

import sys
from collections.abc import Sequence

from compat.tuning.options import TuneOptions
from stores.command_line import run_command


def _tune_and_tell(options: TuneOptions) -> None:
    from compat.tuning.storage import require_optuna

    require_optuna()
    from compat.tuning.study import tune

    tuned = tune(options)
    record = tuned.record
    best, ridge, counts = record["best"], record["ridge"], record["trials"]
    print(
        f"{counts.get('complete', 0)} trials complete, {counts.get('pruned', 0)} pruned; trial {best['trial']} is the "
        f"best: held-out reciprocal rank {best['value']:.4f} (ridge {ridge['mean_reciprocal_rank']:.4f}), on the fold "
        "that they were chosen by"
    )
    print(f"{record['sentence'][:1].upper()}{record['sentence'][1:]}.")
    test = record.get("test")
    if test:
        recall = test["measures"]["recall_at_1"]
        when = "scored before, and not again" if tuned.scored_before else "scored once, now"
        print(
            f"test split ({when}): recall@1 {recall['value']:.3f} [{recall['low']:.3f}, {recall['high']:.3f}], "
            f"reciprocal rank {test['measures']['mean_reciprocal_rank']['value']:.3f}, {test['queries']} queries"
        )
        if test["config"] != best["config"]:
            print(f"that is the score of configuration {test['config']}; the best is {best['config']} now, unscored")
    elif tuned.pending:
        print("test split: another command is scoring it; run this one again for the score")
    print(f"best.yaml, trials.csv, study.json, study.html: {options.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(TuneOptions, _tune_and_tell, argv, prog="python -m compat.tune", description=str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
