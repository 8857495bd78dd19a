"""Settings without what has no label: nobody can say whose it is, so it is neither a mate nor an impostor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from compat.evaluation.searched import Searched
from compat.evaluation.study import Study
from compat.neighbors import Rows


@dataclass(frozen=True)
class SelectedRows:
    """Some rows of a gallery.

    Attributes:
        gallery: [g, d].
        numbers: Which rows, int64 [n] in rising order.
    """

    gallery: Rows
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors of the selected rows start..stop-1, floats [stop - start, d]."""
        numbers = self.numbers[start:stop]
        if not len(numbers):
            return self.gallery.rows(0, 0)
        return self.gallery.rows(int(numbers[0]), int(numbers[-1]) + 1)[numbers - numbers[0]]


class Labelled(NamedTuple):
    """What has a label.

    Attributes:
        settings: By name.
        query_labels: Codes int64 [q].
        gallery_labels: Codes int64 [g] of the common gallery.
        own: The common gallery's row that is the query's own item, or -1, int64 [q].
    """

    settings: Mapping[str, Searched]
    query_labels: np.ndarray
    gallery_labels: np.ndarray
    own: np.ndarray


def labelled(study: Study, settings: Mapping[str, Searched]) -> Labelled | None:
    """The settings among queries and gallery items that have a label; None where a table has none."""
    if study.labels is None:
        return None
    query_labels, gallery_labels = study.labels
    asked, kept = (store.items["label"].is_not_null().to_numpy() for store in (study.queries, study.gallery))
    if asked.all() and kept.all():
        return Labelled(settings, query_labels, gallery_labels, study.own)
    place = np.where(kept, np.cumsum(kept) - 1, -1)
    own = np.where(study.own >= 0, place[np.maximum(study.own, 0)], -1)
    selected = {name: _selected(searched, asked, np.flatnonzero(kept)) for name, searched in settings.items()}
    return Labelled(selected, query_labels[asked], gallery_labels[kept], own[asked])


def _selected(searched: Searched, asked: np.ndarray, kept: np.ndarray) -> Searched:
    here = kept if searched.rows is None else searched.rows[kept]
    numbers = np.sort(here)
    rows = None if searched.rows is None else np.searchsorted(numbers, here)
    return Searched(searched.queries[asked], SelectedRows(searched.gallery, numbers), searched.similarity, rows)
