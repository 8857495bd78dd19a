"""The tables of bench_synthetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from synthetic_answers import answers
from synthetic_cells import CORRECTED, PLAIN, REFERENCES, VOID
from synthetic_plan import AUTO, CAP, CHOSEN_BY, NETWORKS, Epochs, Map, Setting, Sizes, all_maps
from synthetic_results import Record, Results
from synthetic_scores import parse, share
from table import markdown

REPORTED = {
    "identity": 0.002,
    "msresnet": 0.6131,
    "msresnet-linear-12": 0.5997,
    "mlp": 0.7698,
    "mlp-linear-12": 0.6043,
    "mlp-sorted-50": 0.7425,
    "mlp-sorted-50-pretrain": 0.7429,
    "mlp-sorted-25": 0.7710,
    "mlp-sorted-25-pretrain": 0.7914,
}
"""1-NN accuracy in the report's table (faces of MS1M-ArcFace, gallery by a ResNet18, queries by a ResNet50)."""
HEADER = (
    "map",
    "synthetic a real sample",
    "cosine of the paired",
    "epochs",
    "1-NN",
    "less without",
    "1-NN among means",
    "less without, among means",
    "report",
)
MISSING = "not measured"


def report(results: Results, epochs: Mapping[Setting, Epochs], sizes: Sizes, about: str) -> str:
    """Everything as Markdown.

    Args:
        results: The cells that are there.
        epochs: Of the networks, by setting.
        sizes: How much was fitted.
        about: What the pairs are.
    """
    least = ", ".join(f"{minimum} ({counts})" for counts, minimum in sizes.minimum.items())
    text = [
        about,
        f"New to old. Seeds 0 to {sizes.seeds - 1} draw the numbers of identities, the identities of the small size, "
        "the folds and the network's start. Networks train on four fifths of the identities and keep the epoch that "
        f"retrieves the others best; closed forms have all. A pair of identities needs {least} samples in each, and "
        f"gives {CAP} at most; linear has no such limits. 1-NN is by cosine, which is Euclidean distance of unit "
        "vectors; among means, of one mean of each character's gallery items. Cosine of the paired: of the centroids "
        "of the two identities behind a synthetic sample, mean, in the new and in the old space. Void: no two "
        "identities had the samples. `report`: what the report that proposed this found, on faces, in its own setting.",
        "Intervals are 95%, over test characters and over seeds, their variances added: characters are drawn with all "
        "their queries from hits averaged over seeds, and seeds vary as the figure does from one to the next. `less "
        "without` is paired by seed and query with the same family and schedule on real samples alone.",
        _references(results),
        _epochs(epochs, sizes),
        *(_setting(results, setting) for setting in results.settings),
        "## In words",
        answers(results),
    ]
    return "\n\n".join(part for part in text if part)


def _references(results: Results) -> str:
    found = results.load(REFERENCES)
    if found is None:
        return ""
    rows = []
    for name, hits in found["scores"].items():
        rows.append([name, *(str(share({"": {0: parse(hits[g])}}, results.labels)) for g in ("items", "means"))])
    return markdown(["without a map", "1-NN", "1-NN among means"], rows)


def _epochs(epochs: Mapping[Setting, Epochs], sizes: Sizes) -> str:
    tried = [(s, name, found) for s, each in epochs.items() for name, found in each.tried.items()]
    budget = (
        "The epoch that retrieves a held-out fifth of the training identities best is kept. mlp and residual_mlp are "
        f"shown {sizes.mlp_rows:,} real rows at most, msresnet, whose rows are dear, {sizes.msresnet_rows:,}."
    )
    if not tried:
        given = sorted({n for each in epochs.values() for n in each.chosen.values()})
        return f"Networks train for {' or '.join(map(str, given))} epochs at most. {budget}" if given else budget
    numbers = sorted({number for _, _, found in tried for number in found})
    rows = [
        [
            f"{setting}: {', '.join(CHOSEN_BY[name])}",
            *(f"{found[n]:.4f}" if n in found else "" for n in numbers),
            str(epochs[setting].chosen[name]),
        ]
        for setting, name, found in tried
    ]
    words = (
        "Epochs, by retrieval (mean reciprocal rank) of a fifth of the training identities held out, without synthetic "
        f"samples, at a seed of its own; msresnet has a choice of its own. {budget}"
    )
    return f"{words}\n\n{markdown(['', *map(str, numbers), 'chosen'], rows)}"


def _setting(results: Results, setting: Setting) -> str:
    records = [record for of in all_maps() for record in results.records(setting, of).values()]
    if not records:
        return f"## {setting}\n\n{MISSING.capitalize()}."
    usual = [record for record in records if "pairs" in record]
    pairs = sorted({record["pairs"] for record in usual})
    identities = sorted({record["identities"] for record in usual})
    head = f"## {setting}: {_span(pairs)} pairs of {_span(identities)} identities"
    rows = [row for of in all_maps() for row in _rows(results, setting, of)]
    return f"{head}\n\n{markdown(HEADER, rows)}"


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def _rows(results: Results, setting: Setting, of: Map) -> list[list[str]]:
    records = results.records(setting, of)
    blank = [""] * (len(HEADER) - 2)
    if not records:
        return [[of.title, MISSING, *blank]]
    if results.is_void(setting, of):
        return [[of.title, "void", *blank]]
    rows = [_row(results, setting, of, records, PLAIN)]
    return [*rows, _row(results, setting, of, records, CORRECTED)] if of.corrected else rows


def _row(results: Results, setting: Setting, of: Map, records: Mapping[int, Record], search: str) -> list[str]:
    counted = {seed: record for seed, record in records.items() if record["status"] != VOID}
    found = {g: results.hits(of, [setting], search=search, gallery=g) for g in ("items", "means")}
    cells = []
    for gallery, hits in found.items():
        cells.append(str(share(hits, results.labels)))
        without = None
        if of.pairing != "none":
            base = results.hits(of.without, [setting], gallery=gallery)
            without = results.less(hits, base)
        cells.append(without.signed if without else "")
    title = _title(of, counted, search)
    if len(counted) < len(records):
        title += f" ({len(records) - len(counted)} of {len(records)} seeds void)"
    reported = f"{REPORTED[of.name]:.3f}" if of.name in REPORTED and search == PLAIN else ""
    return [title, *_synthetic(counted), _epochs_of(of, counted), *cells, reported]


def _title(of: Map, records: Mapping[int, Record], search: str) -> str:
    families = sorted({record["family"] for record in records.values() if "family" in record})
    title = of.title + (f" ({', '.join(families)})" if of.family == AUTO.family else "")
    if search == PLAIN:
        return title + (", uncorrected" if of.family == AUTO.family else "")
    strengths = sorted({record["correction"] for record in records.values()})
    return f"{title}, hubness correction {', '.join(f'{s:g}' for s in strengths)}"


def _synthetic(records: Mapping[int, Record]) -> list[str]:
    made = [record["synthetic"] for record in records.values() if record.get("synthetic")]
    if not made:
        return ["", ""]
    rate = np.mean([each["rate"] for each in made])
    cosines = [np.mean([each[f"{side}_cosine"] for each in made]) for side in ("source", "target")]
    return [f"{rate:.3f}", " / ".join(f"{cosine:.2f}" for cosine in cosines)]


def _epochs_of(of: Map, records: Mapping[int, Record]) -> str:
    if of.family not in NETWORKS:
        return ""
    best = np.mean([record["best_epoch"] for record in records.values()])
    allowed = sorted({record["epochs"] for record in records.values()})
    return f"{best:.0f} of {_span(allowed)}"
