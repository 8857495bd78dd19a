"""What the cells of bench_synthetic say in words; every sentence is made from the figures, whichever way they fall."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from synthetic_cells import REFERENCES
from synthetic_plan import (
    AUTO,
    CORRECTION,
    MLP,
    MSRESNET,
    MSRESNET_PERMUTED,
    RATES,
    RIDGE,
    RIDGE_FOLD_OUT,
    SCHEDULES,
    Map,
    Setting,
    mlp_maps,
    residual_maps,
)
from synthetic_results import CORRECTED, PLAIN, Results
from synthetic_scores import Estimate, Hits, parse

NOTHING = "not measured"
NEGLIGIBLE = 0.005
"""A difference that nobody would pay for, of the share of queries answered rightly."""


def answers(results: Results) -> str:
    """All of them, as Markdown."""
    questions = {
        "Does pairing near identities beat pairing them by size?": _proximity(results),
        "Does pre-training on synthetic identities beat training with them to the end?": _pretrain(results),
        "Do synthetic identities help the mlp?": _helps(results, [m for m in mlp_maps() if m.pairing != "none"], "mlp"),
        "Do they help a map that starts at the affine solution?": _helps(
            results, [m for m in residual_maps() if m.pairing != "none"], "residual_mlp"
        )
        + _unmoved(results),
        "Does msresnet lose because neighbouring dimensions mean nothing?": _neighbours(results),
        "What beats the table, and which ingredient did it?": _beats(results),
    }
    return "\n\n".join(f"**{question}** {text}" for question, text in questions.items())


def _verb(found: Estimate, more: str, less: str, open_: str) -> str:
    return {1: more, -1: less, 0: open_}[found.sign]


def _open(found: Estimate) -> str:
    """What to say where neither is surely more: that it is open, or that it is closed and not worth asking."""
    small = max(abs(found.low), abs(found.high)) <= NEGLIGIBLE
    return "neither, to within half a point" if small else "undecided"


def _by_setting(results: Results, pairs: Sequence[tuple[Map, Map]]) -> str:
    """The mean difference of pairs of maps in each setting."""
    parts = []
    for setting in results.settings:
        found = _mean_difference(results, pairs, [setting])
        parts.append(f"{setting} {NOTHING if found is None else found.signed}")
    return "; ".join(parts)


def _mean_difference(
    results: Results, pairs: Sequence[tuple[Map, Map]], settings: Sequence[Setting], *, comparisons: int = 1
) -> Estimate | None:
    """One map less the other, mean over the pairs whose cells both count, which a seed's void ones may make fewer."""
    sides: list[dict[str, dict[int, np.ndarray]]] = [{}, {}]
    for setting in settings:
        name = str(setting)
        both = [
            (results.hits(one, [setting]).get(name, {}), results.hits(other, [setting]).get(name, {}))
            for one, other in pairs
        ]
        for seed in sorted({seed for one, other in both for seed in one if seed in other}):
            here = [pair for pair in both if all(seed in hits for hits in pair)]
            for i, side in enumerate(sides):
                side.setdefault(name, {})[seed] = np.mean([pair[i][seed] for pair in here], axis=0)
    return results.less(*sides, comparisons=comparisons)


def _voids(results: Results, maps: Sequence[Map]) -> str:
    void = [(setting, of) for setting in results.settings for of in maps if results.is_void(setting, of)]
    if not void:
        return ""
    settings = ", ".join(dict.fromkeys(str(setting) for setting, _ in void))
    return f" Void for want of samples and left out: {len(void)} of the maps, in {settings}."


def _proximity(results: Results) -> str:
    pairs = [(Map("mlp", "proximity", r, s), Map("mlp", "sorted", r, s)) for r in RATES for s in SCHEDULES]
    found = _mean_difference(results, pairs, results.settings)
    void = _voids(results, [of for pair in pairs for of in pair])
    if found is None:
        return NOTHING.capitalize() + "." + void
    said = _verb(
        found,
        "Yes: proximity finds more than sorted",
        "No: proximity finds less than sorted",
        f"{_open(found).capitalize()}: proximity and sorted are not told apart",
    )
    return f"{said}, {found.signed} over rates and schedules ({_by_setting(results, pairs)}).{void}"


def _pretrain(results: Results) -> str:
    full = [each for each in mlp_maps() if each.pairing != "none" and each.schedule == "full"]
    pairs = [(Map("mlp", each.pairing, each.rate, "pretrain"), each) for each in full]
    found = _mean_difference(results, pairs, results.settings)
    void = _voids(results, [of for pair in pairs for of in pair])
    if found is None:
        return NOTHING.capitalize() + "." + void
    said = _verb(
        found,
        "Yes: dropping synthetic samples half way finds more",
        "No: dropping synthetic samples half way finds less",
        f"{_open(found).capitalize()}: the two schedules are not told apart",
    )
    control = _mean_difference(results, [(Map("mlp", schedule="pretrain"), MLP)], results.settings)
    alone = f" The schedule alone, without any synthetic sample: {control.signed}." if control else ""
    return f"{said}, {found.signed} ({_by_setting(results, pairs)}).{alone}{void}"


def _helps(results: Results, maps: Sequence[Map], family: str) -> str:
    """Over all variants, then the best one, whose interval allows for its being the best of so many."""
    pairs = [(each, each.without) for each in maps]
    mean = _mean_difference(results, pairs, results.settings)
    each = {
        of: found
        for of, without in pairs
        if (found := _mean_difference(results, [(of, without)], results.settings, comparisons=len(pairs))) is not None
    }
    void = _voids(results, maps)
    if mean is None or not each:
        return NOTHING.capitalize() + "." + void
    said = _verb(
        mean,
        f"On the whole they do: {family} with them finds more than without",
        f"On the whole they harm: {family} with them finds less than without",
        f"On the whole {_open(mean)}: {family} with and without them are not told apart",
    )
    best = max(each, key=lambda of: each[of].value)
    proven = sum(1 for found in each.values() if found.sign > 0)
    harmful = sum(1 for found in each.values() if found.sign < 0)
    counted = f"of {len(each)} variants {_count(proven)} surely better and {_count(harmful)} surely worse than none"
    return (
        f"{said}, {mean.signed} over variants ({_by_setting(results, pairs)}); {counted}, at intervals that hold for "
        f"all of them at once. The best, {best.title}: {each[best].signed}.{void}"
    )


def _unmoved(results: Results) -> str:
    """How often no epoch retrieved held-out identities better than the start: synthetic samples changed nothing."""
    maps = [each for each in residual_maps() if each.pairing != "none"]
    best = [
        record["best_epoch"]
        for setting in results.settings
        for each in maps
        for record in results.records(setting, each).values()
        if "scores" in record
    ]
    if not best:
        return ""
    return f" In {best.count(0)} of {len(best)} of these fits no epoch beat the affine start, which was kept."


def _count(number: int) -> str:
    return {0: "none is", 1: "1 is"}.get(number, f"{number} are")


def _neighbours(results: Results) -> str:
    settings = results.settings
    behind = _mean_difference(results, [(MSRESNET, MLP)], settings)
    order = _mean_difference(results, [(MSRESNET, MSRESNET_PERMUTED)], settings)
    if behind is None or order is None:
        return NOTHING.capitalize() + "."
    said = _verb(
        behind,
        "It does not lose: msresnet finds more than the mlp",
        "It loses to the mlp",
        "It is not told apart from the mlp",
    )
    why = _verb(
        order,
        "With its dimensions permuted it finds less, so their order tells it something",
        "With its dimensions permuted it finds more: their order is worse than chance for it",
        "With its dimensions permuted it is not told apart, as if neighbouring dimensions meant nothing",
    )
    if order.sign == 0 and behind.sign < 0:
        most = f", and what the order can be worth, at most {max(order.high, 0.0):.3f}, is "
        why += most + (
            "far less than it loses" if max(order.high, 0.0) < -behind.high / 2 else "not surely less than it loses"
        )
    pairs = _by_setting(results, [(MSRESNET, MSRESNET_PERMUTED)])
    return f"{said}, {behind.signed}. {why}: original less permuted {order.signed} ({pairs})."


def _beats(results: Results) -> str:
    table = {of: results.hits(of) for of in mlp_maps()}
    whole = [str(setting) for setting in results.settings]
    scores = {of: _score(hits) for of, hits in table.items() if [*hits] == whole}
    auto = results.hits(AUTO, search=CORRECTED)
    if not scores or not auto:
        return NOTHING.capitalize() + "."
    best = max(scores, key=lambda of: scores[of])
    found = results.less(auto, table[best])
    assert found is not None  # both have every setting
    said = _verb(
        found,
        f"auto beats every mlp of the table, the best of which is {best.title}",
        f"nothing that was measured here: auto loses to the best mlp of the table, {best.title}",
        f"{_open(found)}: auto is not told apart from the best mlp of the table, {best.title}",
    )
    first = (
        f"{said[0].upper()}{said[1:]}, auto less it {found.signed}; the figures that it is judged by picked that mlp."
    )
    ridge, plain = results.hits(RIDGE), results.hits(MLP)
    ingredients: list[tuple[str, Hits, Hits]] = [
        ("closed form (ridge less mlp, which holds a fifth of the pairs out)", ridge, plain),
        ("closed form on the four fifths that the mlp trains on", results.hits(RIDGE_FOLD_OUT), plain),
        ("choosing among closed forms (auto uncorrected less ridge)", results.hits(AUTO), ridge),
        ("hubness correction, of auto", auto, results.hits(AUTO)),
        (f"hubness correction {CORRECTION}, of ridge", results.hits(RIDGE, search=CORRECTED), ridge),
        (f"hubness correction {CORRECTION}, of mlp", results.hits(MLP, search=CORRECTED), plain),
        (f"auto uncorrected less {best.title}", results.hits(AUTO, search=PLAIN), table[best]),
    ]
    lines, sure = [], []
    for words, one, other in ingredients:
        change = results.less(one, other)
        if change is None:
            continue
        lines.append(f"- {words}: {change.signed}")
        if change.sign > 0:
            sure.append(words)
    helped = f"Surely above zero: {'; '.join(sure)}." if sure else "No ingredient is surely above zero."
    return f"{first}{_bound(results, scores[best])} {helped}\n\n" + "\n".join(lines)


def _bound(results: Results, best: float) -> str:
    found = results.load(REFERENCES)
    if found is None:
        return ""
    own = parse(found["scores"]["old to old"]["items"]).mean()
    return f" It finds {best:.3f} of all; the old model's own queries find {own:.3f} in the old gallery."


def _score(hits: Hits) -> float:
    return float(np.mean([np.mean([v.mean() for v in of.values()]) for of in hits.values()]))
