"""The tables of bench_maps: means over seeds with t intervals, and ours less the best peer, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from table import markdown

Record = dict[str, Any]
MEASURES = {
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "mean_reciprocal_rank": "MRR",
    "overlap_at_10": "overlap@10",
    "retention": "retention",
    "update_gain": "update gain",
}


class Estimate(NamedTuple):
    """A mean over seeds and half the width of its 95% t interval; NaN with fewer than two seeds."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and 95% t interval of independent values, one a seed."""
    array = np.array([*values], float)
    if len(array) < 2:
        return Estimate(float(array.mean()) if len(array) else np.nan, np.nan)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Estimate(float(array.mean()), float(half))


class Results:
    """Measured cells by key.

    Args:
        records: Cells of one data set.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._by_seed: dict[tuple[int, str, str], dict[int, Record]] = {}
        for record in records:
            key = (record["pairs"], record["direction"], record["map"])
            self._by_seed.setdefault(key, {})[record["seed"]] = record
        scored = [record for record in records if record["status"] == "ok"]
        self.query_sets = [*dict.fromkeys(name for record in scored for name in record["scores"])]
        self.sizes = sorted({record["pairs"] for record in records} - {0})
        self.directions = sorted({record["direction"] for record in records} - {"-"})

    def cell(self, pairs: int, direction: str, name: str) -> dict[int, Record]:
        """Records of a cell by seed."""
        return self._by_seed.get((pairs, direction, name), {})

    def values(self, pairs: int, direction: str, name: str, query_set: str, measure: str) -> dict[int, float]:
        """A measure by seed, of the seeds that have it."""
        found = {}
        for seed, record in self.cell(pairs, direction, name).items():
            if record["status"] == "ok":
                value = record["scores"][query_set].get(measure)
                if value is not None:
                    found[seed] = value
        return found

    def reference(self, name: str, query_set: str, measure: str) -> Estimate:
        """A measure of searching without a map."""
        return estimate(self.values(0, "-", name, query_set, measure).values())


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Estimate:
    """Ours less theirs over the seeds that both have: paired, so that what a seed's split does to both drops out."""
    return estimate(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


def best_of(
    results: Results, peers: Sequence[str], pairs: int, direction: str, query_set: str, measure: str
) -> tuple[str, dict[int, float]] | None:
    """The peer of highest mean among those measured on the most seeds, and its values by seed."""
    found = {name: results.values(pairs, direction, name, query_set, measure) for name in peers}
    most = max(map(len, found.values()), default=0)
    if not most:
        return None
    full = {name: values for name, values in found.items() if len(values) == most}
    name = max(full, key=lambda peer: float(np.mean([*full[peer].values()])))
    return name, full[name]


def report(records: Sequence[Record], peers: Sequence[str], ours: Sequence[str]) -> str:
    """All tables of these cells as Markdown."""
    parts = [
        "± is half of a 95% t interval over seeds; differences are paired by seed. The best peer of a cell is picked "
        "by the very figures it is compared by, which favours it. 'beyond noise' means that the whole interval of the "
        "difference lies on one side of zero. Peers get unit rows, are ranked by cosine, and none has a correction for "
        "hubs. A map or a size that was measured on fewer seeds than others never counts as best."
    ]
    for data in dict.fromkeys(record["data"] for record in records):
        results = Results([record for record in records if record["data"] == data])
        parts.append(f"## {data}")
        parts.append(_references(results))
        for direction in results.directions:
            for query_set in results.query_sets:
                parts.append(f"### {data}, {direction}, {query_set}")
                parts.append(_verdicts(results, peers, ours, direction, query_set))
                parts += [
                    _every_map(results, [*ours, *peers], direction, query_set, measure)
                    for measure in ("recall_at_1", "overlap_at_10")
                ]
        parts.append(f"### {data}, cost and what was chosen")
        parts += [_cost(results, [*ours, *peers]), _choices(results), _left_out(results, peers)]
    return "\n\n".join(part for part in parts if part)


def _references(results: Results) -> str:
    measures = [m for m in MEASURES if m not in ("retention", "update_gain")]
    rows = []
    for query_set in results.query_sets:
        for name in ("old-to-old", "new-to-new", "naive"):
            found = [results.reference(name, query_set, measure) for measure in measures]
            if not np.isnan(found[0].mean):
                rows.append([query_set, name, *map(str, found)])
    return markdown(["queries", "no map", *(MEASURES[m] for m in measures)], rows)


def _verdicts(results: Results, peers: Sequence[str], ours: Sequence[str], direction: str, query_set: str) -> str:
    measured = [name for name in ours if any(results.cell(pairs, direction, name) for pairs in results.sizes)]
    rows = []
    for measure in ("recall_at_1", "mean_reciprocal_rank", "overlap_at_10"):
        for pairs in results.sizes:
            best = best_of(results, peers, pairs, direction, query_set, measure)
            if best is None:
                continue
            name, theirs = best
            row = [f"{pairs:,}", MEASURES[measure], name, str(estimate(theirs.values()))]
            gaps = {o: difference(results.values(pairs, direction, o, query_set, measure), theirs) for o in measured}
            row += ["" if np.isnan(gap.mean) else _signed(gap) for gap in gaps.values()]
            rows.append([*row, _below(gaps["auto"]) if "auto" in gaps else ""])
    header = ["N", "measure", "best peer", "its mean", *(f"{name} less it" for name in measured)]
    return markdown([*header, "auto below best peer beyond noise?"], rows)


def _signed(gap: Estimate) -> str:
    return (
        f"{gap.mean:+.3f}"
        if np.isnan(gap.half)
        else f"{gap.mean:+.3f} [{gap.mean - gap.half:+.3f}, {gap.mean + gap.half:+.3f}]"
    )


def _below(gap: Estimate) -> str:
    if np.isnan(gap.half):
        return "unknown: fewer than two seeds"
    if gap.mean + gap.half < 0:
        return "**below**"
    return "no, above beyond noise" if gap.mean - gap.half > 0 else "no"


def _every_map(results: Results, names: Sequence[str], direction: str, query_set: str, measure: str) -> str:
    rows = []
    for name in names:
        found = [results.values(pairs, direction, name, query_set, measure) for pairs in results.sizes]
        if any(found):
            rows.append([name, *(str(estimate(values.values())) if values else "" for values in found)])
    if measure == "recall_at_1":  # what a map keeps of the old system, at the largest size it was measured at
        for row in rows:
            sizes = [p for p in results.sizes if results.values(p, direction, row[0], query_set, measure)]
            for extra in ("recall_at_10", "mean_reciprocal_rank", "retention", "update_gain"):
                values = results.values(sizes[-1], direction, row[0], query_set, extra)
                row.append(f"{np.mean([*values.values()]):.3f}" if values else "")
        extras = ["recall@10", "MRR", "retention", "update gain"]
        header = [*(f"N = {pairs:,}" for pairs in results.sizes), *(f"{extra}, largest N" for extra in extras)]
    else:
        header = [f"N = {pairs:,}" for pairs in results.sizes]
    return markdown([MEASURES[measure], *header], rows)


def _cost(results: Results, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        row, speeds = [name], []
        for pairs in results.sizes:
            cells = [
                c for d in results.directions for c in results.cell(pairs, d, name).values() if c["status"] == "ok"
            ]
            seconds = [cell["fit_cpu_seconds"] for cell in cells if "fit_cpu_seconds" in cell]
            row.append(f"{np.median(seconds):.2f}" if seconds else "")
            speeds += [cell["rows_per_second"] for cell in cells]
        if speeds:
            rows.append([*row, f"{np.median(speeds):,.0f}"])
    header = ["median", *(f"fit CPU s, N = {pairs:,}" for pairs in results.sizes), "rows/s"]
    return markdown(header, rows)


def _choices(results: Results) -> str:
    rows = []
    for direction in results.directions:
        for pairs in results.sizes:
            counts: dict[str, int] = {}
            for record in results.cell(pairs, direction, "auto").values():
                chosen = record.get("chosen", {})
                choice = chosen.get("chosen") or f"{chosen.get('family')} strength={chosen.get('strength')}"
                choice += f", correction {chosen['correction']:g}" if chosen.get("correction") else ", no correction"
                counts[choice] = counts.get(choice, 0) + 1
            if counts:
                said = "; ".join(f"{choice} x {count}" for choice, count in sorted(counts.items(), key=lambda c: -c[1]))
                rows.append([direction, f"{pairs:,}", said])
    return markdown(["direction", "N", "auto chose"], rows) if rows else ""


def _left_out(results: Results, peers: Sequence[str]) -> str:
    lines = []
    for name in peers:
        reasons: dict[str, list[int]] = {}
        for pairs in results.sizes:
            for direction in results.directions:
                for record in results.cell(pairs, direction, name).values():
                    if record["status"] != "ok":
                        reasons.setdefault(f"{record['status']}: {record['reason']}", []).append(pairs)
        for reason, sizes in reasons.items():
            lines.append(f"- {name}, {len(sizes)} cells, N from {min(sizes):,} to {max(sizes):,}: {reason}")
    return "Not measured:\n\n" + "\n".join(lines) if lines else ""
