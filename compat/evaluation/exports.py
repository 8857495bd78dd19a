"""The tables of a report as CSV, Markdown and LaTeX, for a paper, a ticket or a spreadsheet."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from compat.evaluation.rows import is_number
from compat.evaluation.sheets import Sheet, report_sheets
from stores.durable import write_atomically

FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
"""What a spreadsheet would run as a formula: OWASP's list, in full width too, after any blanks."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
"""Characters that end a line, steer a terminal or turn the direction of text."""
SUPERSCRIPT = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\N{NO-BREAK SPACE}": "~",
    "·": r"$\cdot$",
}


def write_tables(report: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the tables of a report in three formats.

    Args:
        report: What report.json holds.
        out: A folder, made where it does not exist; gets tables.csv (tidy: table, row, measure, value, low, high),
            tables.md and tables.tex (plain `tabular`, no package needed).

    Returns:
        The three paths.

    Raises:
        NotADirectoryError: If out is a file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file, expected a folder for tables.csv, .md and .tex; name another")
    out.mkdir(parents=True, exist_ok=True)
    sheets = report_sheets(report)
    paths = []
    for name, written in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        paths.append(out / f"tables.{name}")
        write_atomically(paths[-1], [written(sheets).encode()])
    return paths


def as_csv(sheets: Sequence[Sheet]) -> str:
    """One line a number: table, row, measure, value, low, high; numbers in full, an empty field where there is none.

    A row of another table than that of the settings is named with what it is about, `light: dusk`. Text that a
    spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "row", "measure", "value", "low", "high"))
    for sheet in sheets:
        for line in sheet.lines:
            name = line.name if sheet.subject == "setting" else f"{sheet.subject}: {line.name}"
            for column in sheet.columns:
                if column.key not in line.values:
                    continue
                value = line.values[column.key]
                numbers = value if isinstance(value, Mapping) else {"value": value}
                ends = (numbers.get(end) for end in ("value", "low", "high"))
                cells = (repr(end) if is_number(end) else "" for end in ends)
                writer.writerow((_harmless(sheet.title), _harmless(name), _harmless(column.key), *cells))
    return text.getvalue()


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """GitHub's tables, one a sheet under its title."""
    parts = []
    for sheet in sheets:
        header, *body = _grid(sheet, _markdown)
        ruled = [header, ["---", *["---:"] * len(sheet.columns)], *body]
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
        parts.append(f"### {_markdown(sheet.title)}\n\n{rows}\n")
    return "\n".join(parts)


def as_latex(sheets: Sequence[Sheet]) -> str:
    r"""A plain `tabular` a sheet, its title as a comment above it."""
    parts = []
    for sheet in sheets:
        header, *body = (
            [f"{{}}{cells[0]}", *cells[1:]] for cells in _grid(sheet, _latex)
        )  # [ or * would be read by \\
        rows = [f"{' & '.join(cells)} \\\\" for cells in body]
        lines = [
            f"% {_one_line(sheet.title)}",
            f"\\begin{{tabular}}{{l{'r' * len(sheet.columns)}}}",
            "\\hline",
            f"{' & '.join(header)} \\\\",
            "\\hline",
            *rows,
            "\\hline",
            "\\end{tabular}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _grid(sheet: Sheet, escaped: Callable[[str], str]) -> list[list[str]]:
    body = [[line.name, *(" ".join(cell).strip() for cell in sheet.cells(line))] for line in sheet.lines]
    grid = [[sheet.subject, *(column.title for column in sheet.columns)], *body]
    return [[escaped(cell) for cell in row] for row in grid]


def _harmless(text: str) -> str:
    text = CONTROL.sub(" ", text)
    return f"'{text}" if FORMULA.match(text) else text


def _one_line(text: str) -> str:
    return CONTROL.sub(" ", text)


def _markdown(text: str) -> str:
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~#!]|\[(?=.*\]\())", r"\\\1", text)


def _latex(text: str) -> str:
    text = "".join(LATEX.get(character, character) for character in _one_line(text))
    return SUPERSCRIPT.sub(lambda found: rf"\textsuperscript{{{found[0].translate(RAISED)}}}", text)
