"""The report: numbers in it are those measured, nothing from outside becomes markup, and a real browser shows it."""

import json
import os
import re
import shutil
import subprocess
from copy import deepcopy
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from PIL import Image
from planted import open_store
from planted_hubs import ASKED, HELD, IDS, corrected_map, plant_hubs
from planted_report import plant_report

from compat.evaluation.compatibility import evaluate
from compat.evaluation.page.axes import Axis
from compat.evaluation.page.figures import curve, interval_chart
from compat.evaluation.report import format_table, print_table, render_html, write_report
from compat.evaluation.rows import report_rows, row_reasons
from compat.options import FitOptions
from compat.pairs import join_pairs
from compat.training.fit import fit_transformer
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A report of 12 people, 6 pictures each, seen by two models: one space is the other one turned, plus noise."""
    folder = tmp_path_factory.mktemp("stores")
    generator = np.random.default_rng(0)
    people = np.repeat(generator.normal(size=(12, 8)), 6, axis=0)
    old = (people + 0.5 * generator.normal(size=people.shape)).astype(np.float32)
    turn = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    new = ((people + 0.3 * generator.normal(size=people.shape)) @ turn).astype(np.float32)

    def store(name, space, vectors, rows):
        items = pl.DataFrame({"item_id": [f"i{row}" for row in rows], "label": [f"p{row // 6}" for row in rows]})
        with EmbeddingStore.create(folder / name, space) as made:
            made.append(items, vectors[rows])
            made.commit()
        return EmbeddingStore.open(folder / name)

    before, after = EmbeddingSpace("small", "a" * 64, 8, False), EmbeddingSpace("large", "b" * 64, 8, False)
    asked, kept = np.arange(0, 72, 6), np.setdiff1d(np.arange(72), np.arange(0, 72, 6))
    gallery, new_gallery = store("gallery", before, old, kept), store("new_gallery", after, new, kept)
    pairs = join_pairs(gallery, new_gallery)
    back = FitOptions(transformer="ridge", direction="old-to-new")
    found = evaluate(
        gallery,
        store("queries", after, new, asked),
        transformer=fit_transformer(pairs, FitOptions(transformer="procrustes")),
        old_queries=store("old_queries", before, old, asked),
        new_gallery=new_gallery,
        comparisons={"ridge back": fit_transformer(pairs, back)},
    )
    return found.to_dict()


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """A report of a gallery with hubs and of two maps that set them back."""
    folder, world = tmp_path_factory.mktemp("hubs"), plant_hubs(10, 10)

    def store(name, model, rows):
        details = {"ids": [IDS[row] for row in rows], "labels": world.labels[rows]}
        return open_store(folder / name, getattr(world, model)[rows], name=model, **details)

    back = corrected_map(world, "old-to-new")
    found = evaluate(
        store("gallery", "old", HELD),
        store("queries", "new", ASKED),
        transformer=corrected_map(world, "new-to-old"),
        old_queries=store("old_queries", "old", ASKED),
        new_gallery=store("new_gallery", "new", HELD),
        comparisons={"back": back, "plain": back.without_correction()},
    )
    return found.to_dict()


@pytest.fixture
def full(measured):
    """The measured report with every optional key, and hostile text wherever text comes from outside."""
    report = deepcopy(measured)
    neighbours = [
        {"id": HOSTILE, "label": HOSTILE, "image": PIXEL, "score": 0.9, "correct": True},
        {"id": "i2", "label": None, "image": "https://example.com/x.png", "score": None, "correct": False},
        {"id": "i3", "label": 7, "image": None, "score": float("nan"), "correct": None},
    ]
    report |= {
        "title": f"Title {HOSTILE}",
        "subtitle": f"Subtitle {HOSTILE}",
        "training_curves": [
            {
                "name": HOSTILE,
                "x_label": "epoch",
                "series": [
                    {"name": "loss", "x": [1, 2, 3], "y": [3.0, float("nan"), 1.5]},
                    {"name": "accuracy", "x": [1], "y": [0.5]},
                    {"name": "never measured", "x": [1, 2], "y": [None, None]},
                ],
            }
        ],
        "examples": [
            {
                "query": {"id": HOSTILE, "label": "p0", "image": PIXEL},
                "results": [{"name": HOSTILE, "neighbours": neighbours}],
            }
        ],
        "data_note": f"Synthetic people {HOSTILE}",
        "wall_time_s": 192.0,
        "steps": [{"name": HOSTILE, "seconds": 1.25}],
        "split": {HOSTILE: HOSTILE, "identities": {"train": 6, "test": 6}, "people": ["p0", "p1"]},
        "notes": [*report["notes"], HOSTILE],
    }
    report["gallery"]["path"] = HOSTILE
    report["comparisons"][0]["name"] = HOSTILE
    report["comparisons"][0]["notes"] = [HOSTILE]
    return report


class Page(HTMLParser):
    """The tags, attributes and visible text of a page, and whether every tag is closed in order."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def shown(interval):
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def test_every_measure_is_on_the_page_and_in_the_table(measured):
    words, table = Page(render_html(measured)).words, format_table(measured)
    settings = [values for values in measured["settings"].values() if values]
    assert len(settings) == 4
    for measures in [*settings, measured["comparisons"][0]["measures"]]:
        for interval in measures.values():
            assert shown(interval) in words
        for name in ("recall_at_1", "recall_at_5", "mean_average_precision"):
            assert shown(measures[name]) in table
    assert f"{measured['retention']['value']:.1%}" in words
    assert f"{measured['retention']['value']:.1%}" in table
    for text in (words, " ".join(table.split())):
        assert measured["verdict"]["reason"] in text
        assert "transformed: procrustes, new-to-old" in text
        assert "ridge back (ridge, old-to-new)" in text
    assert "intervals rest on 12 identities only" in words
    assert "a" * 64 in words
    assert "bootstrap over 12 whole identities, 2,000 draws" in words


def test_a_correction_is_named_in_every_row_it_is_in_and_explained_once(corrected, measured):
    page, table = Page(render_html(corrected)).words, format_table(corrected)
    rows = [row.name for row in report_rows(corrected)]
    assert rows[:6] == [
        *("old to old", "old to old, corrected", "new to new", "naive"),
        *("transformed: ridge, new-to-old, corrected", "transformed, uncorrected"),
    ]
    assert set(rows[6:]) == {"back (ridge, old-to-new), corrected", "plain (ridge, old-to-new)"}
    for name in ("old_to_old_corrected", "transformed", "transformed_uncorrected"):
        for measure, interval in corrected["settings"][name].items():
            assert shown(interval) in page
            if measure in ("recall_at_1", "recall_at_5", "mean_average_precision"):
                assert shown(interval) in table
    sentence = "this is in the figure of transformed because it is served, in one more dimension of the index"
    assert page.count(sentence) == " ".join(table.split()).count(sentence) == 1
    assert "with a hubness correction of strength 0.50 found from 172 queries" in page
    assert "old to old, corrected The old system with a correction of the same kind" in page
    for text in (Page(render_html(measured)).words, format_table(measured)):
        assert "correct" not in text
    migrated = deepcopy(corrected) | {"transformer": None}
    assert "transformed: migrated gallery, corrected" in Page(render_html(migrated)).words
    older = deepcopy(corrected)
    del older["settings"]["old_to_old_corrected"]  # of a release that did not measure it
    assert "old to old, corrected" not in [row.name for row in report_rows(older)]


def test_a_missing_old_to_old_is_not_said_twice(corrected):
    report = deepcopy(corrected)
    report["settings"] |= {"old_to_old": None, "old_to_old_corrected": None}
    report["reasons"] |= {"old_to_old": "needs --old-queries", "old_to_old_corrected": "needs --old-queries"}
    report |= {"retention": None, "retention_reason": "needs old_to_old"}
    assert row_reasons(report)[:2] == ["old to old: needs --old-queries", "retention: needs old to old"]


def test_table_fits_the_width_without_colour(measured, capsys):
    print_table(measured)
    printed = capsys.readouterr().out
    assert printed == format_table(measured)
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 120
    measured = deepcopy(measured)
    measured["comparisons"][0]["name"] = "[bold]a very long name " * 5
    wrapped = format_table(measured)
    assert "[bold]" in wrapped
    assert max(map(len, wrapped.splitlines())) <= 120


def test_what_could_not_be_formed_is_a_dash_with_its_reason(measured):
    report = deepcopy(measured)
    report["settings"] |= {"new_to_new": None, "naive": None, "transformed": None}
    report["reasons"] |= {"new_to_new": "needs --new-gallery", "naive": "8-D queries", "transformed": "none was given"}
    report |= {"retention": None, "retention_reason": "needs transformed", "transformer": None, "comparisons": []}
    report |= {"update_gain": None, "update_gain_reason": "needs transformed and new_to_new"}
    for text in (format_table(report), Page(render_html(report)).words):
        for reason in (
            "new to new: needs --new-gallery",
            "naive: 8-D queries",
            "transformed: none was given",
            "retention: needs transformed",
            "update gain: needs transformed and new to new",
        ):
            assert reason in text
    assert re.search(r"^naive +- +- +-$", format_table(report), re.MULTILINE)


def test_a_report_without_any_number_still_renders(measured):
    report = deepcopy(measured)
    report["settings"] = dict.fromkeys(report["settings"])
    report |= {"retention": None, "update_gain": None, "transformer": None, "comparisons": []}
    report |= dict.fromkeys(("cmc", "flips", "verification", "open_set", "backfill", "confidence"))
    page = Page(render_html(report))
    assert "svg" not in page.tags
    assert interval_chart(report_rows(report)) is None
    assert "nan" not in page.words.lower()


def test_text_from_outside_never_becomes_markup(full, tmp_path):
    page = Page(write_report(full, tmp_path).read_text())
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("img") == 2  # the query and one neighbour, whose pictures lie in the report
    assert page.words.count("<script>alert(1)</script>") >= 10


def poisoned(value, key=""):
    """The value with hostile text in every string, and in every name that somebody may choose."""
    if isinstance(value, dict):
        chosen = key in ("settings", "orders", "versions", "options", "limits")
        return {f"{name}{HOSTILE}" if chosen else name: poisoned(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


SECTIONS = ("by_group", "flips", "cmc", "verification", "open_set", "backfill", "confidence", "drift", "approximate")
SECTIONS += ("reproduce", "verdict", "notes")


def test_every_section_is_drawn_and_none_of_its_text_becomes_markup():
    report = plant_report()
    plain = Page(render_html(report))
    hostile = Page(render_html(report | {key: poisoned(report[key]) for key in SECTIONS}))
    assert "script" not in hostile.tags
    assert "img" not in hostile.tags
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]
    assert hostile.words.count("<script>alert(1)</script>") > 150
    anchors = [value for name, value in plain.attributes if name == "href" and value.startswith("#")]
    ids = [value for name, value in plain.attributes if name == "id"]
    assert anchors == [f"#{name}" for name in ids]
    order = ("chart", "measures", "groups", "curves", "open_set", "backfill", "confidence", "drift", "approximate")
    assert ids == [*order, "notes", "sources", "reproduce", "words"]
    for fact in (
        *("To settle it: about 2,400 queries", "dusk 210 0.740 [0.710, 0.770] 0.650 [0.620, 0.680]", "room 3 (few)"),
        *("131 queries turn from right to wrong (6.6% [5.5, 7.5] of all), 93 from wrong", "TAR at FAR 10⁻⁴"),
        *("FAR 1e-06 needs 1,000,000 impostor pairs.", "transformed 0.42% 71% 0.431 0.099% 86.2%", "TPIR at FPIR 10⁻²"),
        *("uncertainty 0.828 5.0% 89.0% never", "bridged queries, 50 candidates 0.851 [0.831, 0.871]"),
        *("Leaving out the strangest 20% raises recall@1 from 0.752 to 0.817.", "0.171, 0.248 at random"),
        *("Drifted. 12.8% of today's queries", "12.8% [11.9, 13.7] , where 5.0% are expected", "p = 3e-09"),
        *("transformed, HNSW32 0.751 [0.731, 0.771] 99.3%", "--transformer maps/faces", "torch 2.9.1"),
        *("precision@10", "nDCG@10", "recall@1 against transformed", "-0.011 [-0.019, -0.003]", "9f9f9f"),
    ):
        assert fact in plain.words
    assert "99% of new_to_new" not in plain.words


def test_sections_without_numbers_are_left_out_or_empty():
    report = plant_report()
    for key in SECTIONS[:-2]:
        assert render_html({name: value for name, value in report.items() if name != key})
        assert render_html(report | {key: None})
    reason = "needs labels"
    bare = report | {
        "verification": {"settings": {}, "old_threshold": None, "reason": reason},
        "backfill": {"gallery_rows": 0, "targets": [], "orders": {}, "calibrated": False, "reranked": [], "reason": ""},
        "by_group": {"column": "light", "rows": [], "worst": None, "left_out": 0},
        "flips": None,
        "open_set": {"unknown_probes": 0, "mated_probes": 0, "withheld": False, "settings": {}},
        "confidence": {"abstained": [], "recall_at_1": [], "area": None, "random_area": None, "reason": reason},
    }
    page = Page(render_html(json.loads(json.dumps(bare))))
    assert "Needs labels." in page.words
    assert "groups" not in [value for name, value in page.attributes if name == "id"]
    assert "nan" not in page.words.lower()


def test_the_terminal_names_the_worst_group_and_says_the_rest_in_a_line_each():
    lines = format_table(plant_report()).splitlines()
    for start in (
        "Worst group: light dusk (210 queries), recall@1 0.740 before, 0.650 after, change -0.090",
        "Flips, old to old to transformed: 131 turn wrong (6.6%",
        "Confidence: leaving out the strangest 20% raises recall@1 from 0.752 to 0.817",
        "Drift: drifted. 12.8%",
    ):
        assert sum(line.startswith(start) for line in lines) == 1
    assert lines[-1] == "To settle it: about 2,400 queries would tell whether the loss is below 1%."
    assert max(map(len, lines)) <= 120
    calm = plant_report()
    calm["by_group"]["worst"] = None
    assert "Worst group: no light has queries enough" in format_table(calm)


def test_the_page_stays_small_with_curves_of_many_points(tmp_path):
    report = plant_report()
    far = np.geomspace(1e-8, 1, 20_000)
    for setting in report["verification"]["settings"].values():
        setting["roc"] = {"far": far.tolist(), "tar": (far**0.1).tolist()}
    report["flips"]["items"] = [f"people/{i:06d}.jpg" for i in range(2000)]
    assert write_report(report, tmp_path).stat().st_size < 400_000


def test_the_page_loads_nothing(full, tmp_path):
    text = write_report(full, tmp_path).read_text()
    for name, value in Page(text).attributes:
        if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}:
            assert value.startswith(("data:", "#"))
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text
    assert len(text) < 150_000


def test_json_round_trips_and_draws_the_same_page(measured, full, tmp_path):
    written = write_report(measured, tmp_path / "deep" / "folder")
    assert written == tmp_path / "deep" / "folder" / "report.html"
    assert json.loads(written.with_name("report.json").read_text()) == measured
    written = write_report(full | {"extra": (np.float32(0.5), np.int64(3), float("inf"))}, tmp_path)
    saved = json.loads(written.with_name("report.json").read_text(), parse_constant=pytest.fail)
    assert saved["training_curves"][0]["series"][0]["y"] == [3.0, None, 1.5]
    assert saved["extra"] == [0.5, 3, None]
    assert render_html(saved) == written.read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["report.html", "report.json"]


def test_errors_say_what_to_do(measured, tmp_path):
    with pytest.raises(ValueError, match="lacks verdict, settings"):
        render_html({"format_version": 1, "gallery": {}, "queries": {}})
    with pytest.raises(ValueError, match="format_version 99, expected 1"):
        write_report(measured | {"format_version": 99}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        write_report(measured, tmp_path / "file")


@pytest.mark.parametrize(
    "values", [[0.0], [1.0], [0.7, 0.8], [0.021, 0.969], [-3, 1e4], [1e-7, 2e-7], [5.0, 5.0 + 1e-15]]
)
@pytest.mark.parametrize("tight", [False, True])
def test_axis_holds_its_values_with_few_ticks(values, tight):
    axis = Axis.over(values, tight=tight)
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    assert 2 <= len(axis.ticks) <= 8
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    for share, label in axis.ticks:
        assert float(label) == pytest.approx(axis.low + share * (axis.high - axis.low), abs=axis.step / 2)


def test_marks_lie_where_the_numbers_say(measured):
    chart = interval_chart(report_rows(measured))
    assert chart
    (left, first), (right, last) = chart.ticks[0], chart.ticks[-1]
    for dot in chart.dots:
        expected = left + (float(dot.number) - float(first)) / (float(last) - float(first)) * (right - left)
        assert dot.value == pytest.approx(expected, abs=0.2)
        assert dot.ends
        assert dot.ends[0] <= dot.value <= dot.ends[1]
    assert [kind for _, kind in chart.references] == ["old", "new"]


def test_a_curve_passes_over_what_was_not_measured():
    drawn = curve({"name": "loss", "x": [0, 5, 10], "y": [1.0, None, 0.0]}, "epoch")
    assert drawn
    assert [line.path for line in drawn.lines] == ["M48.0 8.0L48.0 8.0L288.0 132.0"]
    assert drawn.note == "0 at epoch 10"
    assert curve({"name": "loss", "x": [1], "y": [None]}, "epoch") is None


def browse(page, folder, *options):
    """What headless Chromium prints about a file."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH; install one to see the page drawn")
def test_a_browser_draws_the_page_without_complaint(full, measured, corrected, tmp_path):
    # The full page holds a hostile picture address and scripts; a blocked one would be a console line, as below.
    page = write_report(full, tmp_path)
    done = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('<circle class="dot"') == 5
    loud = tmp_path / "loud.html"
    loud.write_text(page.read_text().replace("<footer>", '<img src="http://127.0.0.1:9/x.png"><footer>'))
    assert "CONSOLE" in browse(loud, tmp_path, "--dump-dom").stderr

    picture = tmp_path / "page.png"
    page = write_report(measured, tmp_path)
    browse(page, tmp_path, f"--screenshot={picture}", "--window-size=1200,1600", "--hide-scrollbars")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    for colour in ((0x00, 0x72, 0xB2), (0x00, 0x79, 0x5A), (0xD5, 0x5E, 0x00)):  # old, new, bridge
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert len(rows) > 40
        assert columns.min() > 100

    page = write_report(plant_report(), tmp_path)
    done = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('<figure class="lines"') == 4 + 4 + 1 + 1 + 1

    page = write_report(corrected, tmp_path)
    done = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('<circle class="dot"') == 8
    assert done.stdout.count('<line class="reference old"') == 1 + 8  # in the key and behind each dot; one, not two
