"""The engine that CONTRIBUTING shows as an example keeps the contract of all engines, and is what is shown."""

import re
from pathlib import Path

import json_lines_engine
import numpy as np
import polars as pl
import pytest
from test_galleries import Contract, read, rows, written

from stores.convert import main
from stores.galleries import GALLERIES, open_source

ROOT = Path(__file__).parent.parent
CODE = Path(json_lines_engine.__file__).read_text()


@pytest.fixture(autouse=True)
def _listed(monkeypatch):
    monkeypatch.setitem(GALLERIES, "jsonl", json_lines_engine)


class TestJsonLines(Contract):
    name = "gallery.jsonl"
    scheme = "jsonl"


def test_commands_take_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("old.npy", 20)
    assert main(["old.npy", "jsonl:new.jsonl"]) == 0
    assert pl.read_ndjson("new.jsonl").columns == ["item_id", "label", "vector"]
    assert main(["jsonl:new.jsonl", "back.npy"]) == 0
    np.testing.assert_array_equal(read(open_source("back.npy")).vectors, rows(0, 20).vectors)


def test_it_is_short():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 45
    assert len([line for line in CODE.split("class ", 1)[1].splitlines() if line.strip()]) <= 40


def test_contributing_shows_this_very_code():
    shown = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
        if "JsonLinesSource" in block
    ]
    if not shown:
        pytest.skip("CONTRIBUTING.md shows no engine")
    assert shown == [CODE]
