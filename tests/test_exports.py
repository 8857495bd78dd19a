"""Exports: the numbers of the page in three formats, and names that cannot break out of any of them."""

import csv
import re
from io import StringIO

import pytest
from planted_report import plant_report

from compat.evaluation.exports import write_tables
from compat.evaluation.report import render_html
from compat.evaluation.sheets import operating_point, rate, report_sheets, shown

HOSTILE = [
    '=HYPERLINK("http://x")',
    "+1+cmd|' /C calc'!A0",
    " -2",
    "@SUM(A1)",
    "\t=1",
    "＝1",
    'comma, "quote"\nand line',
    "a|b",
    "`code` <b>bold</b> [text](http://x) *x* ~~y~~",
    r"50% & $x_1^2$ #~{}\input{/etc/passwd}",
    "[1ex] \\\\",
    "*starred",
    "right\u202eto left",
]


@pytest.fixture
def hostile():
    report = plant_report()
    template = report["by_group"]["rows"][1]
    report["by_group"]["rows"] = [template | {"group": name} for name in HOSTILE]
    report["comparisons"][0]["name"] = HOSTILE[0]
    report["comparisons"][1]["name"] = HOSTILE[9]
    return report


def read(report, folder):
    return {path.suffix[1:]: path.read_text() for path in write_tables(report, folder)}


def rows_of(text):
    return list(csv.reader(StringIO(text)))


def test_csv_holds_every_number_of_the_report_in_full(tmp_path):
    report = plant_report()
    header, *rows = rows_of(read(report, tmp_path / "deep" / "er")["csv"])
    assert header == ["table", "row", "measure", "value", "low", "high"]
    assert len({tuple(row[:3]) for row in rows}) == len(rows)
    found = {(row[1], row[2]): [float(cell) if cell else None for cell in row[3:]] for row in reversed(rows)}

    def ends(interval):
        return [interval["value"], interval["low"], interval["high"]]

    for name, readable in (("old_to_old", "old to old"), ("transformed", "transformed: mlp, new-to-old")):
        for measure, interval in report["settings"][name].items():
            assert found[readable, measure] == ends(interval)
    assert found["transformed: mlp, new-to-old", "retention"] == ends(report["retention"])
    assert found["ridge (ridge, new-to-old)", "gain_over_best"] == ends(report["comparisons"][0]["gain_over_best"])
    for row in report["by_group"]["rows"]:
        name = f"light: {row['group']}{' (few)' if row['small'] else ''}"
        assert found[name, "change"] == ends(row["change"])
        assert found[name, "queries"] == [row["queries"], None, None]
    for point in report["verification"]["settings"]["naive"]["tar_at_far"][:3]:
        assert found["naive", f"tar_at_far_{point['far']:g}"] == ends(point["tar"])
    assert found["naive", "tar_at_far_1e-06"] == [None, None, None]
    assert found["old to old", "tpir_at_fpir_0.01"][0] == pytest.approx(0.9 * 0.01**0.16)


def test_all_formats_and_the_page_hold_the_same_cells(tmp_path):
    report = plant_report()
    texts = read(report, tmp_path)
    page = render_html(report)
    sheets = report_sheets(report)
    assert [sheet.title.split(":")[0].split(" by ")[0] for sheet in sheets] == [
        *("All measures", "Bridges against the native systems", "In a gallery of 40 means, one a label", "Recall@1"),
        *("Verification", "The list of 300 genuine and 300 impostor pairs", "Open set"),
        *("With the old threshold", "Backfill", "Re-ranking", "Approximate indexes"),
    ]
    for sheet in sheets:
        for line in sheet.lines:
            for text, between in sheet.cells(line):
                escaped = f"{text} {between}".strip()
                assert escaped in texts["md"]
                assert escaped.replace("%", r"\%") in texts["tex"]
                assert f"<td>{text}{f'<small>{between}</small>' if between else ''}</td>" in page


def test_no_cell_of_the_csv_is_a_formula(hostile, tmp_path):
    rows = rows_of(read(hostile, tmp_path)["csv"])
    assert {len(row) for row in rows} == {6}
    names = {row[1] for row in rows}
    assert '\'=HYPERLINK("http://x") (ridge, new-to-old)' in names
    assert 'light: comma, "quote" and line' in names
    for row in rows[1:]:
        assert not any(re.match(r"\s*[=+\-@＝＋－＠]", cell) for cell in row[:3])
        for cell in row[3:]:
            assert cell == "" or float(cell) is not None  # a negative number stays a number


def test_a_subject_cannot_make_a_formula_either(tmp_path):
    report = plant_report()
    report["by_group"]["column"] = "=cmd"
    names = {row[1] for row in rows_of(read(report, tmp_path)["csv"])}
    assert "'=cmd: dusk" in names


def test_markdown_keeps_its_columns_and_runs_no_markup(hostile, tmp_path):
    for block in read(hostile, tmp_path)["md"].strip().split("\n\n"):
        if block.startswith("###"):
            continue
        lines = block.splitlines()
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in lines}
        assert len(widths) == 1
        assert "<" not in block
        assert not re.search(r"(?<!\\)[`*_]", block)
        assert not re.search(r"(?<!\\)\[[^\]|]*\]\(", block)
        assert "\u202e" not in block


def test_latex_keeps_its_columns_and_runs_no_command(hostile, tmp_path):
    text = read(hostile, tmp_path)["tex"]
    commands = set(re.findall(r"\\([a-zA-Z]+)", text))
    assert commands <= {
        *("begin", "end", "hline", "cdot", "textsuperscript", "textbackslash", "textasciitilde", "textasciicircum"),
        *("textless", "textgreater", "textbar"),
    }
    assert text.isascii() or set(re.findall(r"[^\x00-\x7f]", text)) <= {"＝"}
    for body in re.findall(r"\\begin\{tabular\}\{l(r+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body[1].splitlines():
            if line == r"\hline":
                continue
            assert line.startswith("{}")  # so that \\ of the line before reads neither [ nor * as its own
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(body[0])
            assert not re.search(r"(?<!\\)[%#]", line)
            assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}")
    assert r"TAR at FAR~10\textsuperscript{-3}" in text
    assert r"50\% \& \$x\_1\textasciicircum{}2\$ \#\textasciitilde{}\{\}\textbackslash{}input\{/etc/passwd\}" in text


def test_a_report_with_nothing_but_settings_has_two_tables(tmp_path):
    further = ("by_group", "verification", "open_set", "means", "pair_list", "backfill", "approximate")
    report = {name: value for name, value in plant_report().items() if name not in further}
    texts = read(report, tmp_path)
    assert texts["tex"].count(r"\begin{tabular}") == texts["md"].count("###") == 2
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        write_tables(report, tmp_path / "file")


def test_numbers_are_written_for_people():
    assert [rate(x) for x in (0, 0.5, 0.0446, 1e-3, 9.9e-4, 1e-4, 3.24e-5, 1e-6)] == [
        *("0%", "50%", "4.46%", "0.1%", "0.099%", "0.01%", "3.2·10⁻⁵", "10⁻⁶"),
    ]
    assert [operating_point(x) for x in (0.1, 1e-8, 0.05, 3e-5)] == ["10⁻¹", "10⁻⁸", "5%", "3·10⁻⁵"]
    assert shown(None) == shown(float("nan")) == shown({"value": None}) == ("-", "")
    assert shown({"value": 0.5, "low": None, "high": 0.7}) == ("0.500", "")
    assert shown({"value": 0.97, "low": 0.95, "high": 1.0}, "percent") == ("97.0%", "[95.0, 100.0]")
    assert shown(-0.1, "signed") == ("-0.100", "")
    assert shown("never") == ("never", "")
