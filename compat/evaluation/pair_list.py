"""Lists of pairs to verify, as published test sets have them: a table of two items, same or not, perhaps a fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from compat.evaluation.judgements import rows_of
from compat.evaluation.searched import Searched
from compat.metrics.protocols import FoldAccuracy, fold_accuracy, pair_scores
from compat.metrics.verification import ErrorCurve
from compat.neighbors import take_rows
from stores.space import Similarity

COLUMNS = ("item_id_a", "item_id_b", "same")


@dataclass(frozen=True, eq=False)
class PairList:
    """Pairs by row number.

    Attributes:
        rows: Of the first of each pair, int64 [p].
        others: Of the second, int64 [p].
        same: Whether they are of one identity, bool [p].
        folds: The fold of each pair [p]; None where the list has none, and its order decides.
    """

    rows: np.ndarray
    others: np.ndarray
    same: np.ndarray
    folds: np.ndarray | None = None

    @classmethod
    def of_table(cls, table: pl.DataFrame, item_ids: pl.Series, other_ids: pl.Series | None = None) -> PairList:
        """The pairs of a table with the columns item_id_a, item_id_b, same (0 and 1, or a truth value), perhaps fold.

        Args:
            table: One row a pair.
            item_ids: Ids of the vectors that are the first of each pair.
            other_ids: Ids of the second's; None where both are of one set.

        Raises:
            ValueError: If a column is missing, `same` says neither, or an item is unknown.
        """
        if missing := [name for name in COLUMNS if name not in table.columns]:
            raise ValueError(f"a list of pairs needs {', '.join(COLUMNS)}; found no {', '.join(missing)}")
        same = table["same"].cast(pl.Float64, strict=False)
        if not same.is_in([0.0, 1.0]).fill_null(False).all():
            wrong = table["same"].filter(~same.is_in([0.0, 1.0]).fill_null(False))[0]
            raise ValueError(f"same is 1 or 0, true or false, found {wrong!r}; repair the list of pairs")
        found = []
        for name, ids in (("item_id_a", item_ids), ("item_id_b", item_ids if other_ids is None else other_ids)):
            rows = rows_of(table[name], ids)
            if (rows < 0).any():
                unknown = table[name][int(np.argmax(rows < 0))]
                raise ValueError(f"{int((rows < 0).sum())} of {len(rows)} {name} are unknown, for example {unknown!r}")
            found.append(rows)
        if "fold" in table.columns and table["fold"].null_count():
            raise ValueError(f"{table['fold'].null_count()} pairs have no fold; give each one, or leave the column out")
        folds = table["fold"].to_numpy() if "fold" in table.columns else None
        return cls(found[0], found[1], same.to_numpy().astype(bool), folds)

    def scores(
        self, vectors: np.ndarray, others: np.ndarray | None = None, *, similarity: Similarity = "cosine"
    ) -> np.ndarray:
        """Similarity of each pair, float32 [p], from vectors [n, d] in the order of the ids given."""
        return pair_scores(
            vectors, vectors if others is None else others, self.rows, self.others, similarity=similarity
        )


@dataclass(frozen=True)
class PairListSection:
    """Verification of the pairs of a list, by setting.

    Attributes:
        genuine_pairs: Pairs of one identity.
        impostor_pairs: Pairs of two.
        accuracies: Accuracy over folds, each judged by the threshold best on the others.
        equal_error_rates: Where false accepts and false rejects are equally many.
    """

    genuine_pairs: int
    impostor_pairs: int
    accuracies: Mapping[str, FoldAccuracy]
    equal_error_rates: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "genuine_pairs": self.genuine_pairs,
            "impostor_pairs": self.impostor_pairs,
            "settings": {
                name: {"accuracy": accuracy.to_dict(), "equal_error_rate": self.equal_error_rates[name]}
                for name, accuracy in self.accuracies.items()
            },
        }


def pair_list_section(pairs: PairList, settings: Mapping[str, Searched]) -> PairListSection:
    """Verify the pairs in each setting: the first of a pair is a query, the second a gallery item.

    Args:
        pairs: By row of the queries and of the common gallery.
        settings: By name.

    Raises:
        ValueError: If there are too few pairs for folds.
    """
    accuracies: dict[str, FoldAccuracy] = {}
    errors: dict[str, float] = {}
    for name, searched in settings.items():
        others = pairs.others if searched.rows is None else searched.rows[pairs.others]
        gallery = take_rows(searched.gallery, others)
        scores = pair_scores(
            searched.queries, gallery, pairs.rows, np.arange(len(others)), similarity=searched.similarity
        )
        accuracies[name] = fold_accuracy(scores, pairs.same, pairs.folds)
        errors[name] = ErrorCurve.of_scores(scores, pairs.same).equal_error_rate()
    return PairListSection(int(pairs.same.sum()), int((~pairs.same).sum()), accuracies, errors)
