"""`python -m compat.export` as people run it: from two stores to files that other programs use."""

import re
import subprocess
import sys

import numpy as np
import pytest
from planted import environment, plant, run, write_store
from planted_maps import drawn_map

from compat.export import ExportOptions, export, main
from compat.transformers.artefact import load_transformer

faiss = pytest.importorskip("faiss")

WITH_NUMPY = """
import sys, numpy as np
from compat.exporting.arrays import load_map
np.save("by_numpy.npy", load_map("map.npz")(np.load("queries.npy")))
assert not {"torch", "polars", "zarr", "faiss"} & set(sys.modules)
"""
WITH_ONNX = """
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("map.onnx", providers=["CPUExecutionProvider"])
np.save("by_onnx.npy", session.run(None, {"vectors": np.load("queries.npy")})[0])
"""
WITH_FAISS = """
import faiss, numpy as np
np.save("by_faiss.npy", faiss.read_index("new.faiss").search(np.load("queries.npy"), 1)[1])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores of two models, an artefact fitted to them by the command, the old gallery as an index, queries."""
    folder = tmp_path_factory.mktemp("export")
    world = plant(identities=40, samples=4, old_dim=8, new_dim=12)
    write_store(folder / "old", world.old)
    write_store(folder / "new", world.new, name="new")
    np.save(folder / "queries.npy", world.new)
    fit = ("--old", folder / "old", "--new", folder / "new", "--out", folder / "map", "--transformer", "ridge")
    for module, *argv in (("compat.train_transformer", *fit), ("stores.convert", folder / "old", folder / "old.faiss")):
        ran = run(module, *argv)
        assert ran.returncode == 0, ran.stderr
    return folder


def test_each_export_is_used_as_a_user_would(folder):
    for form, out, more in (
        ("onnx", "map.onnx", ()),
        ("numpy", "map.npz", ()),
        ("faiss", "new.faiss", ("--index", folder / "old.faiss")),
    ):
        ran = run("compat.export", "--transformer", folder / "map", "--format", form, "--out", folder / out, *more)
        assert ran.returncode == 0, ran.stderr
        assert "differs from the transformer by at most" in ran.stdout
    for script in (WITH_NUMPY, WITH_ONNX, WITH_FAISS):
        subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment(), check=True)
    queries = np.load(folder / "queries.npy")
    mapped = load_transformer(folder / "map").transform(queries)
    np.testing.assert_allclose(np.load(folder / "by_numpy.npy"), mapped, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.load(folder / "by_onnx.npy"), mapped, rtol=1e-4, atol=1e-5)
    found = np.load(folder / "by_faiss.npy").ravel()
    assert (found // 4 == np.arange(160) // 4).mean() > 0.95  # each finds an item of its own identity


def test_the_recipe_is_printed(folder, capsys):
    argv = ["--transformer", str(folder / "map"), "--format", "numpy", "--out", str(folder / "map.npz")]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert 'mapped = x @ map_["weight"] + map_["bias"]' in printed
    assert len(printed.split("without this toolkit:")[1].strip().splitlines()) <= 10


def test_the_api_gives_a_typed_result(folder):
    result = export(ExportOptions(transformer=folder / "map", format="onnx", out=folder / "api.onnx"))
    assert (result.format, result.family, result.source_dim, result.output_dim) == ("onnx", "ridge", 12, 8)
    assert result.digest == load_transformer(folder / "map").digest()
    assert result.to_dict()["path"] == str(folder / "api.onnx")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--format", "onnx", "--out", "map.npz"), r"ends in '\.npz', expected \.onnx for --format onnx"),
        (("--format", "faiss", "--out", "map-none"), r"map-none has no ending, expected \.faiss or \.index"),
        (("--format", "onnx", "--out", "."), r"--out \. is a folder; name a file that ends in \.onnx"),
        (("--format", "faiss", "--out", "map.index"), r"name the old gallery's with --index"),
        (("--format", "numpy", "--out", "a.npz", "--index", "b"), r"--index has no meaning with --format numpy"),
        (("--format", "onnx", "--out", "a.onnx", "--uncorrected"), r"--uncorrected has no meaning"),
        (("--format", "faiss", "--out", "a.index", "--index", "b", "--serve"), r"--serve has no meaning"),
        (("--format", "onnx", "--out", "a.onnx", "--serve"), r"no hubness correction, so --serve would change nothing"),
        (("--format", "faiss", "--out", "a.index", "--index", "b", "--uncorrected"), r"for --uncorrected to leave out"),
        (("--format", "tree", "--out", "a.onnx"), r"format"),
        (("--format", "onnx", "--out", "a.onnx", "--tolerance", "0"), r"tolerance must be above 0"),
        (("--format", "onnx", "--out", "no/such/a.onnx"), r"the folder .* does not exist"),
        (("--format", "onnx", "--out", "taken.onnx"), r"exists and is not this export"),
        (("--format", "faiss", "--out", "a.index", "--index", "none.index"), r"no gallery at"),
        (("--format", "faiss", "--out", "a.index", "--index", "wide.index"), r"of 9 dimensions, expected 8"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(folder)
    (folder / "taken.onnx").write_bytes(b"something else")
    faiss.write_index(faiss.IndexFlatIP(9), str(folder / "wide.index"))
    before = sorted(folder.iterdir())
    assert main(["--transformer", "map", *argv]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said), said
    assert "\n" not in said
    assert sorted(folder.iterdir()) == before


def test_a_missing_transformer_and_an_unsuited_one(folder, tmp_path, capsys):
    out = ("--out", str(tmp_path / "a.npz"))
    assert main(["--transformer", str(tmp_path / "none"), "--format", "numpy", *out]) == 2
    assert "no transformer at" in capsys.readouterr().err
    drawn_map("msresnet", 8, 8).save(tmp_path / "network")
    assert main(["--transformer", str(tmp_path / "network"), "--format", "numpy", *out]) == 2
    assert "export it with --format onnx" in capsys.readouterr().err
    drawn_map("ridge", 8, 8, corrected=True).save(tmp_path / "corrected")
    assert main(["--transformer", str(tmp_path / "corrected"), "--format", "numpy", *out, "--serve"]) == 0
    assert "8 to 9 dimensions" in capsys.readouterr().out
    faiss.write_index(faiss.IndexFlatIP(8), str(tmp_path / "old.index"))
    argv = ["--transformer", str(tmp_path / "corrected"), "--format", "faiss", "--index", str(tmp_path / "old.index")]
    argv += ["--out", str(tmp_path / "new.index")]
    assert main(argv) == 2
    assert "--uncorrected yes" in capsys.readouterr().err
    assert main([*argv, "--uncorrected", "--check", "no"]) == 0
    assert "not checked" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['export', '--help']\n"
        "import compat.export\n"
        "code = compat.export.main()\n"
        "print({'torch', 'numpy', 'onnx', 'faiss', 'polars', 'zarr'} & set(sys.modules), code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set() 0"
    assert "--uncorrected" in ran.stdout
