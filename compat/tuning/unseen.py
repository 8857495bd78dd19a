"""Scoring the best map of a study on items that the study never saw, once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from compat.evaluation.compatibility import evaluate
from compat.evaluation.study import Study as Retrieval
from compat.options import FitOptions
from compat.pairs import of_one_type
from compat.training.fit import fit_transformer, with_gallery
from compat.tuning.leases import is_alive, is_here, own_lease
from compat.tuning.options import TuneOptions
from compat.tuning.pace import say
from compat.tuning.space import digest_of
from compat.tuning.trials import Work
from stores.galleries.zarr_store import open_complete
from stores.store import EmbeddingStore

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

SCORED = "test"
"""The attribute, of the study and of study.json, that keeps the score."""
CLAIM = "by"
"""The attribute of a claim that says who began to score, and when."""
CLAIM_SECONDS = 5.0
"""A claim that nobody put a name to for so long was left between two statements."""
LONGEST_SCORING = 3600.0
"""Seconds after which another machine that began to score is given up."""
MEASURES = ("recall_at_1", "recall_at_5", "mean_average_precision", "mean_reciprocal_rank")


@dataclass(frozen=True)
class UnseenSplit:
    """An old gallery and the new model's queries for it.

    Attributes:
        gallery: The gallery's store.
        queries: The queries' store.
        relevance: What is right for them, as `evaluate` takes it.
    """

    gallery: EmbeddingStore
    queries: EmbeddingStore
    relevance: str = "auto"

    @property
    def digests(self) -> dict[str, str]:
        """What tells this split from another."""
        return {
            "gallery": self.gallery.digest(),
            "queries": self.queries.digest(),
            "relevance": _digest(self.relevance),
        }


def _digest(relevance: str) -> str:
    """A relevance that has a name is itself, a table what it holds."""
    if relevance in ("auto", "item", "label"):
        return relevance
    return hashlib.blake2b(Path(relevance).read_bytes(), digest_size=16).hexdigest()


@contextmanager
def opened_split(options: TuneOptions, job: Work) -> Iterator[UnseenSplit | None]:
    """The test split of a study, or None where none was given.

    Raises:
        ValueError: If it is of other spaces, an item of it is among the pairs, one of its gallery among the items that
            trials are judged among, or no query has anything to find.
        FileNotFoundError: If a store or the table of relevance is missing.
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
            if job.pairs.item_ids is not None:
                _require_unseen(name, store, job.pairs.item_ids, "the training pairs")
        if options.gallery is not None:
            distractors = stores.enter_context(open_complete(options.gallery))
            where = f"those of --gallery {options.gallery}, by which trials are chosen"
            _require_unseen("test gallery", gallery, distractors.items["item_id"], where)
        _require_answers(queries, gallery, options.test_relevance)
        yield UnseenSplit(gallery, queries, options.test_relevance)


def _require_unseen(name: str, store: EmbeddingStore, ids_seen: pl.Series, where: str) -> None:
    for column in ("item_id", "source_item"):
        if column not in store.items.columns:
            continue
        ids, known = of_one_type(store.items[column], ids_seen)
        seen = ids.is_in(known.unique().implode()).fill_null(False)
        if seen.any():
            raise ValueError(
                f"{seen.sum()} of the {len(store)} items of the {name} {store.path} are among {where}, for example "
                f"{ids.filter(seen)[0]!r}; a test split holds none of them"
            )


def _require_answers(queries: EmbeddingStore, gallery: EmbeddingStore, relevance: str) -> None:
    """Make sure, before anything is trained, that the split can be scored."""
    try:
        Retrieval(queries, gallery, relevance, lambda _: None)
    except (ValueError, FileNotFoundError) as error:  # it names the option of compat.evaluate
        raise type(error)(str(error).replace("--relevance", "--test-relevance")) from None


def score_once(
    study: Study, job: Work, split: UnseenSplit, best: FitOptions, recorded: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The score of the best map on the test split: the recorded one, or a new one; None while another command scores.

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
    if found is None:
        with _claimed(study, alone=job.alone) as mine:
            found = study.user_attrs.get(SCORED)  # whoever held the claim before may have scored
            if found is None and mine:
                found = _score(job, split, best)
                study.set_user_attr(SCORED, found)
        if found is None:
            return None
    if found["split"] != split.digests:
        recall = found["measures"]["recall_at_1"]["value"]
        raise ValueError(
            f"the study was scored on another test split (recall@1 {recall:.3f}), and a study is scored once; leave "
            "--test-gallery and --test-queries out, or begin a study in another folder"
        )
    return found


@contextmanager
def _claimed(study: Study, *, alone: bool) -> Iterator[bool]:
    """Whether this process may score: it made the claim, and whoever made one before is dead or long silent.

    A claim is an empty study beside this one. The storage gives a name to one study only, so that of several commands
    that claim at one moment one has it; an attribute would be overwritten.
    """
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    storage = study._storage
    for number in count(1):
        name = f"{study.study_name}, scoring {number}"
        try:
            claim = storage.create_new_study([StudyDirection.MAXIMIZE], name)
        except DuplicatedStudyError:
            if _is_at_work(storage, name, alone=alone):
                yield False
                return
            continue
        try:
            storage.set_study_user_attr(claim, CLAIM, [own_lease(), time.time()])
            yield True
        finally:
            storage.delete_study(claim)
        return


def _is_at_work(storage: BaseStorage, name: str, *, alone: bool) -> bool:
    deadline = time.monotonic() + CLAIM_SECONDS
    while time.monotonic() < deadline:
        try:
            claim = storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(CLAIM)
        except KeyError:  # it has scored, and taken its claim away
            return True
        if claim is not None:
            lease, begun = claim
            if is_here(lease):
                return is_alive(lease)
            return not alone and time.time() - begun < LONGEST_SCORING
        time.sleep(0.1)
    return False


def _score(job: Work, split: UnseenSplit, best: FitOptions) -> dict[str, Any]:
    transformer = with_gallery(fit_transformer(job.pairs, best, gallery=job.gallery, on_note=say), split.gallery)
    found = evaluate(split.gallery, split.queries, transformer=transformer, relevance=split.relevance, seed=best.seed)
    report = found.to_dict()
    settings = report["settings"]
    return {
        "config": digest_of(best),
        "split": split.digests,
        "relevance": report["relevance"],
        "queries": report["queries_evaluated"],
        "measures": {name: settings["transformed"][name] for name in MEASURES},
        "naive": {name: settings["naive"][name] for name in MEASURES} if settings.get("naive") else None,
    }
