"""The tables of font_identities, from the results that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from font_plan import COMPATIBLE, DISTILLED, NEW, OLD, Cell, Sizes, compatibility_cells, head_cells, identity_cells
from font_scores import FARS, Scores, difference
from table import markdown

from compat.metrics.intervals import Interval

Load = Callable[[str], dict[str, Any] | None]

SCORES = ("recall@1", *(f"TAR at FAR {far:g}" for far in FARS))
COSTS = ("parameters", "multiply-adds", "epochs", "training accuracy", "images/s", "minutes")
MISSING = "not measured"


def report(load: Load, sizes: Sizes, manifest: dict[str, Any], labels: np.ndarray) -> str:
    """Everything as Markdown.

    Args:
        load: A result by name, or None where it is not there.
        sizes: How much was trained.
        manifest: Of the image set.
        labels: The character of each query, integer codes [q].
    """
    build = sizes.build
    many, few = build.subsets[:2]
    designs, shared = len(manifest["designs"]), manifest["shared_characters"]
    made = ", ".join(f"{name} {version}" for name, version in manifest["made_with"].items())
    dropped = "; ".join(f"{each['name']}: {each['reason']}" for each in manifest["dropped"])
    tar = manifest["tars"]
    text = [
        f"{designs} type designs, each of a family of its own, share {shared:,} kanji: {build.train_designs} designs "
        f"to train on, {designs - build.train_designs} others to test with. An identity is a character. The test asks "
        f"for {tar['queries']['identities']:,} characters, none trained on: {tar['queries']['images']:,} queries in a "
        f"gallery of {tar['gallery']['images']:,}, all in designs never trained on, each image of a character in "
        f"another. Images are {build.side} px, drawn with {made}. Left out: {dropped or 'nothing'}.",
        "Intervals are 95%, over characters. A difference is recall@1 less that of the row named, on the same queries, "
        "paired. One training each, so the luck of its seed is in every difference. Multiply-adds are for one image; "
        f"images/s are of training, {_measured(load)}; minutes are what all epochs take at that speed.",
        f"## {many:,} characters to train on",
        _networks(load, identity_cells(sizes), manifest, labels, "the first row"),
        f"## Heads and terms: {few} characters to train on",
        _networks(load, head_cells(sizes), manifest, labels, "arcface"),
        f"## Distillation and compatibility: {few} characters to train on",
        _compatibility(load, sizes, manifest, labels),
    ]
    return "\n\n".join(text)


def _measured(load: Load) -> str:
    speed = load("speed")
    return f"all networks taking turns on {speed['threads']} threads" if speed else "which are not measured yet"


def _networks(load: Load, cells: Sequence[Cell], manifest: dict[str, Any], labels: np.ndarray, first: str) -> str:
    rows, base, speed = [], None, load("speed")
    for cell in cells:
        result = load(cell.name)
        if result is None:
            rows.append([cell.name, MISSING, *[""] * (len(SCORES) + len(COSTS))])
            continue
        scores = Scores.from_dict(result["scores"])
        over = "" if base is None else _signed(difference(scores.found, base, labels))
        base = base or scores.found
        rows.append([cell.name, *_scores(scores), over, *_costs(cell, result, manifest, speed)])
    return markdown(["network", *SCORES, f"recall@1 less {first}", *COSTS], rows)


def _costs(cell: Cell, result: dict[str, Any], manifest: dict[str, Any], speed: dict[str, Any] | None) -> list[str]:
    rate = speed["images_per_second"][cell.name] if speed else None
    images = cell.epochs * manifest["tars"][cell.data]["images"]
    return [
        f"{result['parameters'] / 1e6:.2f} M",
        f"{result['multiply_adds'] / 1e6:.0f} M",
        str(cell.epochs),
        f"{result['accuracy']:.3f}",
        MISSING if rate is None else f"{rate:.0f}",
        MISSING if rate is None else f"{images / rate / 60:.1f}",
    ]


def _compatibility(load: Load, sizes: Sizes, manifest: dict[str, Any], labels: np.ndarray) -> str:
    across = load("across")
    selves = {cell.name: load(cell.name) for cell in compatibility_cells(sizes)}
    between: dict[str, Any] = across["scores"] if across else {}
    families = across["families"] if across else {}

    def own(name: str) -> dict[str, Any] | None:
        result = selves[name]
        return result["scores"] if result else None

    chosen = f"auto ({families['auto']})" if "auto" in families else "auto"
    lines: list[tuple[str, str, str, dict[str, Any] | None]] = [
        (f"plain {OLD}", "itself", "self", own(OLD)),
        (f"plain {NEW}", "itself", "self", own(NEW)),
        (f"{COMPATIBLE} (influence loss)", "itself", "self", own(COMPATIBLE)),
        (f"{DISTILLED} (angular, stored teacher {NEW})", "itself", "self", own(DISTILLED)),
        (f"plain {NEW}", OLD, "cross, no map", between.get("naive")),
        (f"plain {NEW}", OLD, "cross, ridge", between.get("ridge")),
        (f"plain {NEW}", OLD, f"cross, {chosen}", between.get("auto")),
        (COMPATIBLE, OLD, "cross, no map", between.get("compatible in old")),
        (f"plain {OLD}", NEW, "cross, no map", between.get("old in new")),
        (DISTILLED, NEW, "cross, no map", between.get("distilled in new")),
    ]
    rows, base = [], None
    for queries, gallery, test, found in lines:
        if found is None:
            rows.append([queries, gallery, test, MISSING, *[""] * len(SCORES)])
            continue
        scores = Scores.from_dict(found)
        over = "" if base is None else _signed(difference(scores.found, base, labels))
        base = base or scores.found
        rows.append([queries, gallery, test, *_scores(scores), over])
    text = markdown(["queries of", "gallery of", "test", *SCORES, "recall@1 less old in old"], rows)
    if across:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in across["fit_seconds"].items())
        text += (
            "\n\nMaps are fitted from new to old on the training images of both networks, by character held out; "
            f'fitting took {seconds}. The compatible network meets the criterion of Shen et al., "Towards '
            'Backward-Compatible Representation Learning", CVPR 2020, where its cross-test exceeds old in old.'
        )
    trained = {name: result for name, result in selves.items() if result}
    costs = [
        [name, *_costs(cell, trained[name], manifest, load("speed"))]
        for cell in compatibility_cells(sizes)
        if (name := cell.name) in trained
    ]
    return f"{text}\n\n{markdown(['network', *COSTS], costs)}"


def _scores(scores: Scores) -> list[str]:
    tar = [str(share) if share else "too few pairs" for share in scores.tar_at_far.values()]
    return [str(scores.recall_at_1), *tar]


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
