"""report.json, and the page drawn from it: one file that needs no network, no script and no server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compat.evaluation import sheets
from compat.evaluation.page import charts
from compat.evaluation.page.figures import interval_chart
from compat.evaluation.record import REPORT_VERSION
from compat.evaluation.rows import CORRECTION, is_corrected, is_number, readable_setting, report_rows, row_reasons
from compat.evaluation.table import format_table, print_table
from compat.metrics.intervals import LEVEL, RESAMPLES
from stores.durable import write_atomically

__all__ = ["format_table", "print_table", "render_html", "write_report"]

REQUIRED = ("format_version", "verdict", "settings", "gallery", "queries")
DECISIONS = {
    "keep_old": ("Keep the old model", "neutral"),
    "bridge_queries": ("Serve the bridge", "good"),
    "migrate_gallery": ("Switch to the migrated gallery", "good"),
    "bridge_and_backfill": ("Serve the bridge, re-embed behind it", "mixed"),
    "re_embed": ("Re-embed", "bad"),
    "not_enough_evidence": ("Not enough evidence", "neutral"),
}
RELEVANCE = {
    "label": "a gallery item with the query's label; the query's own item is left out of the ranking",
    "item": "the gallery item with the query's item id",
}
EMBEDDED_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")


def write_report(report: dict[str, Any], out: Path) -> Path:
    """Write out/report.json, and out/report.html drawn from it, each whole or not at all.

    Args:
        report: `CompatibilityReport.to_dict()`, with any of the optional keys that `render_html` draws.
        out: A folder, made where it does not exist.

    Returns:
        The path of report.html.

    Raises:
        NotADirectoryError: If out is a file.
        ValueError: If the report lacks something; nothing is written then.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file, expected a folder for report.json and report.html; name another")
    text = json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page = render_html(json.loads(text))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "report.json", [text.encode()])
    write_atomically(out / "report.html", [page.encode()])
    return out / "report.html"


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report as read from report.json.

    Optional keys that are drawn where present: `title`, `subtitle`, `data_note`, `split` (a flat mapping),
    `wall_time_s`, `steps` ([{name, seconds}]), `training_curves` ([{name, x_label, series: [{name, x, y}]}]),
    `examples` ([{query: {id, label, image}, results: [{name, neighbours: [{id, label, image, score, correct}]}]}]),
    whose images are data: URIs, and the sections `by_group`, `flips`, `cmc`, `verification`, `open_set`, `backfill`,
    `confidence`, `drift`, `approximate` and `reproduce`. Any other image is not loaded: the page never asks a network
    for anything.

    Raises:
        ValueError: If this is no report, or one of another format version.
    """
    from jinja2 import Environment, FileSystemLoader

    _require_report(report)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "duration": _duration, "brief": _brief, "setting": readable_setting}
    environment.filters |= {"shown": sheets.shown, "rate": sheets.operating_point, "sentence": _sentence}
    environment.tests |= {"embedded_image": _is_embedded_image, "number_like": is_number}
    decision = str(report["verdict"]["decision"])
    decided, tone = DECISIONS.get(decision, (decision.replace("_", " "), "neutral"))
    gallery, queries, notes = report["gallery"], report["queries"], _notes(report)
    return environment.get_template("report.html.jinja").render(
        report=report,
        title=report.get("title") or "Compatibility report",
        subtitle=report.get("subtitle") or f"{queries['space']['name']} queries, {gallery['space']['name']} gallery",
        decided=decided,
        tone=tone,
        chart=interval_chart(report_rows(report)),
        sheets=sheets,
        charts=charts,
        correction=CORRECTION if is_corrected(report) else None,
        notes=notes,
        contents=_contents(report, notes),
        sources={"gallery": gallery, "queries": queries},
        relevant=RELEVANCE.get(report.get("relevance", ""), f"as judged in {report.get('relevance')}"),
        unit="identities" if report.get("grouped_by") == "label" else "queries",
        level=f"{LEVEL:.0%}",
        resamples=RESAMPLES,
    )


def _require_report(report: Mapping[str, Any]) -> None:
    missing = [key for key in REQUIRED if key not in report]
    if missing:
        raise ValueError(f"this is no compatibility report: it lacks {', '.join(missing)}; pass what evaluate returned")
    if report["format_version"] != REPORT_VERSION:
        raise ValueError(
            f"the report has format_version {report['format_version']}, expected {REPORT_VERSION}; "
            "evaluate again, or use the release that wrote it"
        )


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null says that there is no number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _notes(report: Mapping[str, Any]) -> list[str]:
    notes = [*row_reasons(report), *(report.get("notes") or [])]
    for bridge in report.get("comparisons") or []:
        notes += [f"{bridge['name']}: {note}" for note in bridge.get("notes") or []]
    return list(dict.fromkeys(notes))


def _contents(report: Mapping[str, Any], notes: list[str]) -> list[tuple[str, str]]:
    """Name and heading of the sections that have something to say, in reading order; each is page/sections/NAME."""
    sections = (
        ("chart", "How often the first neighbour is right", interval_chart(report_rows(report))),
        ("measures", "All measures", True),
        ("groups", "Groups and flips", sheets.groups_sheet(report) or report.get("flips")),
        (
            "curves",
            "CMC and verification",
            charts.cmc_chart(report) or report.get("verification") or report.get("pair_list"),
        ),
        ("open_set", "Open set", report.get("open_set")),
        ("backfill", "Backfill", report.get("backfill")),
        ("confidence", "Confidence", report.get("confidence")),
        ("drift", "Drift", report.get("drift")),
        ("approximate", "Approximate search", report.get("approximate")),
        ("notes", "Notes", notes),
        ("examples", "Nearest neighbours of some queries", report.get("examples")),
        ("training", "Training", charts.training_charts(report)),
        ("sources", "Where the numbers come from", True),
        ("reproduce", "How to reproduce", report.get("reproduce")),
        ("words", "What the words mean", True),
    )
    return [(name, heading) for name, heading, present in sections if present]


def _brief(value: Any) -> str:
    """A fact in a few words; a list is counted, not printed."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_brief(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return f"{len(value)} values"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def _is_embedded_image(value: Any) -> bool:
    return isinstance(value, str) and EMBEDDED_IMAGE.fullmatch(value) is not None


def _number(value: Any, places: int = 3) -> str:
    return f"{value:,.{places}f}" if is_number(value) else "-"


def _sentence(text: Any) -> str:
    text = str(text or "").strip()
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".!?" else ".")


def _duration(seconds: Any) -> str:
    if not is_number(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
