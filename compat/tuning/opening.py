"""What a command and its workers begin with: the pairs of a study, and the study itself, which is of those alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from compat.pairs import join_pairs
from compat.training.selection import distractors_of
from compat.tuning.options import TuneOptions
from compat.tuning.space import space_for
from compat.tuning.storage import is_server
from compat.tuning.trials import Work
from stores.galleries.zarr_store import open_complete

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

MADE_OF = "made_of"
"""The study's attribute that says of which pairs and options it is."""


@contextmanager
def opened_work(options: TuneOptions, *, worker: int = 0) -> Iterator[Work]:
    """The pairs of a study and what its trials draw.

    Raises:
        FileNotFoundError: If a store is missing.
        ValueError: If the stores do not pair up, or nothing is left to tune.
    """
    with ExitStack() as stores:
        old, new = (stores.enter_context(open_complete(path)) for path in (options.old, options.new))
        pairs = join_pairs(old, new)
        gallery = None
        if options.gallery is not None:
            gallery = distractors_of(stores.enter_context(open_complete(options.gallery)), pairs, seed=options.seed)
        space = space_for(options.space, options.fit, pairs)
        alone = options.storage is None
        shared = is_server(options.storage)
        yield Work(pairs, gallery, options.fit, space, options.trials, worker, shared=shared, alone=alone)


def open_study(storage: BaseStorage, name: str, wanted: dict[str, Any]) -> Study:
    """The study of a storage, begun or gone on with.

    Args:
        storage: Where it is kept.
        name: Its name there.
        wanted: What it has to be made of, see `made_of`.

    Raises:
        ValueError: If one of that name is there and is of other pairs or options.
    """
    import optuna

    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    found = study.user_attrs.get(MADE_OF)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(MADE_OF, wanted)
    else:
        require_same("the storage", {"name": name, MADE_OF: found}, wanted, name)
    return study


def made_of(job: Work) -> dict[str, Any]:
    """What makes trials of one study comparable, as plain values."""
    found = {
        "pairs": job.pairs.fingerprint(),
        "options": asdict(job.fixed),
        "space": job.space.values,
        "gallery": None if job.gallery is None else _digest(job.gallery.vectors),
    }
    return json.loads(json.dumps(found))  # as it comes back from a storage


def require_same(where: str, found: Mapping[str, Any], wanted: dict[str, Any], name: str) -> None:
    """Make sure that what was found, in a folder or a storage, is a study of this name and made of the same.

    Raises:
        ValueError: If it is not.
    """
    known = found.get(MADE_OF) or {}
    other = [part for part, value in wanted.items() if part not in known or known[part] != value]
    other += ["name"] if found.get("name") != name else []
    if other:
        raise ValueError(
            f"{where} holds a study {found.get('name')!r} of other {' and '.join(other)}; give this one another --out, "
            "and in a database another --name"
        )


def _digest(vectors: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(vectors).data, digest_size=16).hexdigest()
