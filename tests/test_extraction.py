"""What `python -m compat.extract` does with its items before and beside the network, and what it refuses."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from compat.extract import ExtractOptions, extract, main
from compat.extraction import adaptation
from stores.durable import StoreLocked, WriterLock
from stores.store import EmbeddingStore

SIZE = 8
ENCODERS = """
import numpy as np
from backbones.datasets.decoding import IMAGE_SUFFIXES, read_image
from backbones.encoders.encoder import Backbone


class Pixels(Backbone):
    name, fingerprint, dim, normalized, suffixes = "pixels", "ab" * 32, 192, False, IMAGE_SUFFIXES

    def read(self, path):
        return read_image(path, 8)

    def embed(self, items):
        return np.stack(items).astype(np.float32).reshape(len(items), -1)


class Lengths(Backbone):
    name, fingerprint, dim, normalized, suffixes = "lengths", "cd" * 32, 2, False, frozenset({".txt"})

    def read(self, path):
        return self.decode(path.read_bytes())

    def decode(self, content):
        return content.decode()

    def embed(self, items):
        return np.array([[len(each), 1] for each in items], dtype=np.float32).reshape(-1, 2)


def pixels():
    return Pixels()


def lengths():
    return Lengths()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with encoders of its own and four images of two people, which is the working directory."""
    (tmp_path / "pixel_encoders.py").write_text(ENCODERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    generator = np.random.default_rng(0)
    for number in range(4):
        path = tmp_path / "faces" / f"p{number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return tmp_path


def run(capsys, *words: object) -> tuple[int, str]:
    code = main([str(word) for word in words])
    return code, capsys.readouterr().err


def options(**changes) -> ExtractOptions:
    return ExtractOptions(**({"backbone": "pixel_encoders:pixels", "data": Path("faces"), "out": Path("s")} | changes))


def write_mean_model(path: Path) -> Path:
    """The mean of each channel; its metadata tell nothing."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    found = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "mean", [given], [found])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_the_preprocessing_of_an_onnx_file_is_given_by_options_and_part_of_its_space(here, capsys):
    backbone = f"onnx:{write_mean_model(here / 'mean.onnx')}"
    words = ("--backbone", backbone, "--data", "faces", "--out")
    code, error = run(capsys, *words, "none")
    assert code == 2
    assert "give it by --preprocessing.size, --preprocessing.mean, --preprocessing.std" in error
    assert not Path("none").exists()
    given = ("--preprocessing.size", 8, "--preprocessing.std", 2)
    plain = ("--preprocessing.mean", 10)
    other = ("--preprocessing.mean", "[10,20,30]", "--preprocessing.colour-order", "BGR")
    for name, mean in (("a", plain), ("b", other)):
        assert run(capsys, *words, name, *given, *mean) == (0, "")
    a, b = EmbeddingStore.open("a"), EmbeddingStore.open("b")
    pixels = [np.asarray(Image.open(Path("faces") / name)).mean(axis=(0, 1)) for name in a.items["item_id"]]
    np.testing.assert_allclose(a.rows(0, 4), (np.stack(pixels) - 10) / 2, rtol=1e-4)
    np.testing.assert_allclose(b.rows(0, 4), (np.stack(pixels)[:, ::-1] - [10, 20, 30]) / 2, rtol=1e-4)
    assert a.space.fingerprint != b.space.fingerprint
    code, error = run(capsys, *words[:1], "pixel_encoders:pixels", *words[2:], "c", *plain)
    assert (code, error.count("\n")) == (2, 1)
    assert "mean of images can be given for onnx:FILE only" in error


def test_a_failed_beginning_keeps_nobody_from_doing_better(here, capsys):
    words = ("--backbone", "pixel_encoders:pixels", "--out", "s", "--data")
    (here / "bad").mkdir()
    shutil.copytree("faces", "bad/p")
    for path in Path("bad").rglob("*.png"):
        path.write_bytes(b"torn")
    code, error = run(capsys, *words, "bad/p")
    assert code == 2
    assert "none of the 4 items is readable" in error
    lock = WriterLock(here / "s")
    lock.acquire()
    with pytest.raises(StoreLocked):
        extract(options())  # somebody may be filling it right now
    lock.release()
    assert (here / "s" / "store.json").is_file()
    assert run(capsys, *words, "faces") == (0, "")
    assert len(EmbeddingStore.open("s")) == 4
    code, error = run(capsys, *words, "bad/p")
    assert "holds another extraction (it differs in items_sha256)" in error
    assert len(EmbeddingStore.open("s")) == 4


def test_what_is_no_extraction_is_never_replaced(here, capsys):
    store = EmbeddingStore.open(extract(options(out=Path("other"))).store)
    EmbeddingStore.create("empty", store.space).close()
    code, error = run(capsys, "--backbone", "pixel_encoders:pixels", "--out", "empty", "--data", "faces")
    assert code == 2
    assert "empty holds another extraction" in error


def test_other_identities_are_another_extraction(here, capsys):
    lines = [f"faces/p{number // 2}/{number}.png" for number in range(4)]
    words = ("--backbone", "pixel_encoders:pixels", "--out", "s", "--data", "train.txt")
    for labels, code in (("aabb", 0), ("aabb", 0), ("abab", 2)):
        Path("train.txt").write_text("".join(f"{line} {each}\n" for line, each in zip(lines, labels, strict=True)))
        found, error = run(capsys, *words)
        assert found == code, error
    assert "differs in items_sha256" in error
    assert EmbeddingStore.open("s").items["label"].to_list() == list("aabb")


def test_a_list_may_lie_elsewhere(here):
    (here / "lists").mkdir()
    (here / "lists" / "two.txt").write_text("p0/0.png a\np1/2.png b\n")
    found = extract(options(data=Path("lists/two.txt"), root=Path("faces")))
    assert (found.rows, found.skipped) == (2, ())


def test_ids_that_occur_twice_are_told_with_their_file(here, capsys):
    Path("texts.csv").write_text("item_id,text\na,x\nb,y\na,z\n")
    for batch in (1, 64):
        words = ("--backbone", "pixel_encoders:lengths", "--data", "texts.csv", "--out", "s", "--batch-size", batch)
        code, error = run(capsys, *words)
        assert (code, error.count("\n")) == (2, 1)
        assert re.search("texts.csv names items twice: .*'a'.*; give each an id of its own", error)


def test_the_test_in_low_light_darkens_the_images(here, capsys):
    plain, dark = (
        EmbeddingStore.open(extract(options(out=Path(name), test_transform=name)).store)
        for name in ("none", "low-light")
    )
    np.testing.assert_array_equal(dark.rows(0, 4), np.floor(2 * np.sqrt(plain.rows(0, 4))))
    assert dark.space == plain.space  # the images are others, not the network
    words = ("--backbone", "pixel_encoders:pixels", "--data", "faces", "--out", "none")
    code, error = run(capsys, *words, "--test-transform", "low-light")
    assert code == 2
    assert "it differs in test_transform" in error
    Path("t.txt").write_text("a\nb\n")
    words = ("--backbone", "pixel_encoders:lengths", "--data", "t.txt", "--out", "t")
    code, error = run(capsys, *words, "--test-transform", "low-light")
    assert (code, error.count("\n")) == (2, 1)
    assert "--test-transform low-light needs a backbone that reads images" in error


@pytest.mark.parametrize(("count", "taken"), [(7, 7), (7, 1), (10, 4), (100, 33)])
def test_the_images_to_adapt_to_are_evenly_spaced(count, taken):
    class Numbers:
        digest, label_type, files = "", None, True

        def __init__(self) -> None:
            self.count = count

        def since(self, start):
            return iter(range(start, count))

    chosen = list(adaptation._evenly(Numbers(), taken))  # pyright: ignore[reportArgumentType]
    assert len(chosen) == taken
    gaps = np.diff(np.array(chosen, dtype=int))
    assert not len(gaps) or max(gaps) - min(gaps) <= 1
    assert len(chosen) == len({*chosen})


def test_views_of_what_is_no_image_are_refused(here):
    Path("t.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="--views 2 needs a backbone that reads images"):
        extract(options(backbone="pixel_encoders:lengths", data=Path("t.txt"), views=2))


def test_the_store_is_laid_out_as_asked_for_and_gone_on_with_only_so(here):
    assert EmbeddingStore.open(extract(options(chunk_rows=3)).store).chunk_rows == 3
    assert extract(options(chunk_rows=3)).rows_before == 4
    with pytest.raises(FileExistsError, match="it differs in layout"):
        extract(options())
    with pytest.raises(ValueError, match="adabn_images is 5, but no images are named"):
        options(adabn_images=5)
