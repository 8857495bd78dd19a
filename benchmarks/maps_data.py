"""The data sets of bench_maps: paired embeddings, split by seed into pairs to fit on, a gallery and queries.

Legend: n pairs, g gallery rows, q queries; s and t are the dimensions of a map's source and target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from compat.metrics.relevance import Relevance

GROUPS = 5
SMALL = Path(__file__).parent.parent / "tests" / "data" / "wordnet"
HOW_TO_GET_PAIRS = (
    "no --data: measuring tests/data/wordnet, 800 pairs and a gallery of 400 that the repository carries, too small to "
    "rank maps by; for more, embed one set of texts with two packaged models, say wordllama (l2_supercat, 256-D) and "
    "sentence-transformers (all-MiniLM-L6-v2, 384-D), and lay the arrays out as benchmarks/README.md says"
)


@dataclass(frozen=True)
class QuerySet:
    """Queries embedded by both models, and what each should find.

    Attributes:
        name: What they are.
        old: float32 [q, d_old].
        new: float32 [q, d_new].
        relevance: The right gallery rows; every query has one at least.
    """

    name: str
    old: np.ndarray
    new: np.ndarray
    relevance: Relevance


@dataclass(frozen=True)
class Split:
    """One seed's share of a data set.

    Attributes:
        pairs_old: float32 [n, d_old], in an order drawn by the seed: the first N are the pairs of a cell.
        pairs_new: float32 [n, d_new].
        pairs_labels: int64 [n], or None where every item is its own identity.
        gallery_old: float32 [g, d_old], items that are among no pairs.
        gallery_new: float32 [g, d_new].
        gallery_labels: int64 [g], numbered as the pairs' are, or None.
        query_sets: The first is what maps are compared by.
    """

    pairs_old: np.ndarray
    pairs_new: np.ndarray
    pairs_labels: np.ndarray | None
    gallery_old: np.ndarray
    gallery_new: np.ndarray
    gallery_labels: np.ndarray | None
    query_sets: tuple[QuerySet, ...]


@dataclass(frozen=True)
class DataSet:
    """A data set by name.

    Attributes:
        name: Part of a cell's key.
        sizes: Pairs to fit on.
        split: A seed's share; equal seeds give equal shares.
        about: One sentence for the report.
    """

    name: str
    sizes: tuple[int, ...]
    split: Callable[[int], Split]
    about: str


def data_sets(folder: Path | None) -> list[DataSet]:
    """The data sets under a folder: text_wordnet/, font_identities/ or both; without one, the small one of the tests.

    Raises:
        ValueError: If the folder holds neither.
    """
    if folder is None:
        return [small_wordnet()]
    readers = {"text_wordnet": text_wordnet, "font_identities": font_identities}
    found = [read(folder / name) for name, read in readers.items() if (folder / name).is_dir()]
    if not found:
        raise ValueError(f"{folder} holds none of {', '.join(readers)}; benchmarks/README.md says what is in them")
    return found


def text_wordnet(folder: Path, *, gallery_rows: int = 10_000, same_document: int = 1_500) -> DataSet:
    """Definitions; a seed draws the gallery, the same-document queries out of it, and the order of the others."""
    items = pl.read_parquet(folder / "docs.parquet")["item_id"]
    old, new = _vectors(folder / "docs_old_wordllama256.npy"), _vectors(folder / "docs_new_minilm384.npy")
    real = {}
    for name in ("lemma", "example"):
        targets = pl.read_parquet(folder / f"queries_{name}.parquet")["target_item_id"]
        row_of = dict(zip(items, range(len(items)), strict=True))
        real[name] = (
            np.array([row_of[target] for target in targets]),
            _vectors(folder / f"q{name}_old_wordllama256.npy"),
            _vectors(folder / f"q{name}_new_minilm384.npy"),
        )

    def split(seed: int) -> Split:
        order = np.random.default_rng(seed).permutation(len(items))
        gallery, rest = order[:gallery_rows], order[gallery_rows:]
        place = np.full(len(items), -1)
        place[gallery] = np.arange(len(gallery))
        asked = gallery[:same_document]
        sets = [QuerySet("same document", old[asked], new[asked], Relevance.by_item(np.arange(len(asked))))]
        for name, (targets, real_old, real_new) in real.items():
            here = np.flatnonzero(place[targets] >= 0)
            sets.append(QuerySet(name, real_old[here], real_new[here], Relevance.by_item(place[targets[here]])))
        return Split(old[rest], new[rest], None, old[gallery], new[gallery], None, tuple(sets))

    about = (
        f"a seed draws {gallery_rows:,} definitions as gallery, {min(same_document, gallery_rows):,} of them as "
        "queries (same document), the pairs from the others; lemma and example are real queries whose definition is "
        "in the gallery"
    )
    return DataSet("text_wordnet", (500, 2_000, 10_000), split, about)


def font_identities(folder: Path) -> DataSet:
    """Identities; pairs from train/, gallery and queries from test/, judged by label.

    The gallery is always whole. The query identities fall into five groups, and seed s asks those of group s mod 5:
    five seeds ask every query once, and no two of them the same, so that their spread is that of the identities too.
    """
    train, test = (
        pl.read_parquet(folder / "train" / "items.parquet"),
        pl.read_parquet(folder / "test" / "items.parquet"),
    )
    names = pl.concat([train["label"], test["label"]])
    codes = names.rank("dense").cast(pl.Int64).to_numpy()
    train_labels, test_labels = codes[: len(train)], codes[len(train) :]
    old, new = (_vectors(folder / "train" / f"{name}.npy") for name in ("old_iresnet18", "new_iresnet50"))
    test_old, test_new = (_vectors(folder / "test" / f"{name}.npy") for name in ("old_iresnet18", "new_iresnet50"))
    gallery = np.flatnonzero((test["split"] == "gallery").to_numpy())
    queries = np.flatnonzero((test["split"] == "query").to_numpy())

    def split(seed: int) -> Split:
        order = np.random.default_rng(seed).permutation(len(train))
        asked = queries[_in_group(test_labels[queries], seed)]
        relevance = Relevance.by_label(test_labels[asked], test_labels[gallery], np.full(len(asked), -1))
        return Split(
            old[order],
            new[order],
            train_labels[order],
            test_old[gallery],
            test_new[gallery],
            test_labels[gallery],
            (QuerySet("same identity", test_old[asked], test_new[asked], relevance),),
        )

    about = (
        f"pairs of {len(np.unique(train_labels))} identities, a gallery of {len(gallery):,} rows of "
        f"{len(np.unique(test_labels))} others, judged by label; each of five seeds asks the queries of a fifth of them"
    )
    sizes = (*(size for size in (500, 2_000, 10_000) if size < len(train)), len(train))
    return DataSet("font_identities", sizes, split, about)


def small_wordnet(folder: Path = SMALL) -> DataSet:
    """The tests' data: a fixed gallery; queries fall into five groups as in `font_identities`."""
    arrays = {path.stem: _vectors(path) for path in folder.glob("*.npy")}
    gallery_ids = _text_column(folder / "gallery.csv", "item_id")
    query_ids = _text_column(folder / "queries.csv", "item_id")
    judged = dict(
        zip(*(_text_column(folder / "judgements.csv", name) for name in ("query_id", "item_id")), strict=True)
    )
    row_of = dict(zip(gallery_ids, range(len(gallery_ids)), strict=True))
    targets = np.array([row_of[judged[query]] for query in query_ids])
    old, new = arrays["gallery_old"], arrays["gallery_new"]

    def split(seed: int) -> Split:
        order = np.random.default_rng(seed).permutation(len(arrays["pairs_old"]))
        asked = np.flatnonzero(_in_group(np.arange(len(old)), seed))
        real = np.flatnonzero(_in_group(np.arange(len(targets)), seed))
        return Split(
            arrays["pairs_old"][order],
            arrays["pairs_new"][order],
            None,
            old,
            new,
            None,
            (
                QuerySet("same document", old[asked], new[asked], Relevance.by_item(asked)),
                QuerySet(
                    "lemma",
                    arrays["queries_old"][real],
                    arrays["queries_new"][real],
                    Relevance.by_item(targets[real]),
                ),
            ),
        )

    about = (
        "a gallery of 400 definitions; each of five seeds asks a fifth of them (same document) and of 150 words (lemma)"
    )
    return DataSet("wordnet_small", (200, 600), split, about)


def _in_group(identities: np.ndarray, seed: int) -> np.ndarray:
    """Whether each query's identity [q] is in the seed's group; seeds 0..4 share one partition, 5..9 the next."""
    distinct, codes = np.unique(identities, return_inverse=True)
    order = np.random.default_rng(seed // GROUPS).permutation(len(distinct))
    return (order % GROUPS)[codes] == seed % GROUPS


def _vectors(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False).astype(np.float32)


def _text_column(path: Path, name: str) -> list[str]:
    return pl.read_csv(path, infer_schema_length=0)[name].to_list()
