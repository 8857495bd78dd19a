"""Scoring the best map of a study on items that the study never saw, once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.evaluation.compatibility import evaluate
from compat.options import FitOptions
from compat.pairs import of_one_type
from compat.training.fit import fit_transformer, with_gallery
from compat.tuning.leases import is_alive, is_here, own_lease
from compat.tuning.options import TuneOptions
from compat.tuning.space import digest_of
from compat.tuning.trials import Work
from stores.galleries.zarr_store import open_complete
from stores.store import EmbeddingStore

if TYPE_CHECKING:
    from optuna import Study

SCORED = "test"
"""The attribute, of the study and of study.json, that keeps the score."""
CLAIM = "scoring"
"""The study's attribute that says who began to score, and when."""
LONGEST_SCORING = 3600.0
"""Seconds after which another machine that began to score is given up."""
MEASURES = ("recall_at_1", "recall_at_5", "mean_average_precision", "mean_reciprocal_rank")


@dataclass(frozen=True)
class UnseenSplit:
    """An old gallery and the new model's queries for it.

    Attributes:
        gallery: The gallery's store.
        queries: The queries' store.
    """

    gallery: EmbeddingStore
    queries: EmbeddingStore

    @property
    def digests(self) -> dict[str, str]:
        """What tells this split from another."""
        return {"gallery": self.gallery.digest(), "queries": self.queries.digest()}


@contextmanager
def opened_split(options: TuneOptions, job: Work) -> Iterator[UnseenSplit | None]:
    """The test split of a study, or None where none was given.

    Raises:
        ValueError: If it is of other spaces, or an item of it is among the pairs.
        FileNotFoundError: If a store is missing.
    """
    if options.test_gallery is None or options.test_queries is None:
        yield None
        return
    with ExitStack() as stores:
        gallery, queries = (
            stores.enter_context(open_complete(path)) for path in (options.test_gallery, options.test_queries)
        )
        for name, store, space in (
            ("test gallery", gallery, job.pairs.old.space),
            ("test queries", queries, job.pairs.new.space),
        ):
            if store.space != space:
                raise ValueError(f"the {name} {store.path} are in {store.space}, expected {space}, that of the pairs")
            _require_unseen(name, store, job)
        yield UnseenSplit(gallery, queries)


def _require_unseen(name: str, store: EmbeddingStore, job: Work) -> None:
    if job.pairs.item_ids is None:
        return
    for column in ("item_id", "source_item"):
        if column not in store.items.columns:
            continue
        ids, known = of_one_type(store.items[column], job.pairs.item_ids)
        seen = ids.is_in(known.unique().implode()).fill_null(False)
        if seen.any():
            raise ValueError(
                f"{seen.sum()} of the {len(store)} items of the {name} {store.path} are among the training pairs, for "
                f"example {ids.filter(seen)[0]!r}; a test split holds none of them"
            )


def score_once(
    study: Study, job: Work, split: UnseenSplit, best: FitOptions, recorded: dict[str, Any] | None
) -> dict[str, Any]:
    """The score of the best map on the test split: the recorded one, or a new one where there is none.

    Scoring again after further tuning would make of the test split what it must not be, a part of the search. So one
    score is all that a study gets, of the configuration that was best then; a change of mind afterwards shows as
    another `config` in it.

    Args:
        study: It keeps the score, for workers of other machines.
        job: The pairs.
        split: The test split.
        best: Options of the best configuration.
        recorded: What study.json has, or None.

    Raises:
        ValueError: If the study was scored on another test split.
    """
    found = recorded or study.user_attrs.get(SCORED)
    if found is None and not _claim(study):
        return {"config": digest_of(best), "reason": "another machine scores it; run this command again for the score"}
    if found is None:
        found = _score(job, split, best)
        study.set_user_attr(SCORED, found)
    if found["split"] != split.digests:
        recall = found["measures"]["recall_at_1"]["value"]
        raise ValueError(
            f"the study was scored on another test split (recall@1 {recall:.3f}), and a study is scored once; leave "
            "--test-gallery and --test-queries out, or begin a study in another folder"
        )
    return found


def _claim(study: Study) -> bool:
    """Whether this process may score: nobody else has begun to, or whoever did is dead or long silent."""
    claim = study.user_attrs.get(CLAIM)
    if claim is not None:
        lease, begun = claim
        if (is_here(lease) and is_alive(lease)) or (not is_here(lease) and time.time() - begun < LONGEST_SCORING):
            return False
    study.set_user_attr(CLAIM, [own_lease(), time.time()])
    return study.user_attrs[CLAIM][0] == own_lease()


def _score(job: Work, split: UnseenSplit, best: FitOptions) -> dict[str, Any]:
    transformer = with_gallery(fit_transformer(job.pairs, best, gallery=job.gallery), split.gallery)
    report = evaluate(split.gallery, split.queries, transformer=transformer, seed=best.seed).to_dict()
    settings = report["settings"]
    return {
        "config": digest_of(best),
        "split": split.digests,
        "relevance": report["relevance"],
        "queries": report["queries_evaluated"],
        "measures": {name: settings["transformed"][name] for name in MEASURES},
        "naive": {name: settings["naive"][name] for name in MEASURES} if settings.get("naive") else None,
    }
