"""The examples, run as a user runs them."""

import importlib.util
import json
import subprocess
import sys

import faiss
import numpy as np
import pytest
from planted import ROOT, environment, open_store, plant, run, space
from real_postgres import RealPostgres, postgres, schema

from compat.neighbors import unit_rows
from compat.transformers.artefact import Transformer
from compat.transformers.linear import LinearMap
from stores.convert import ConvertOptions, convert

__all__ = ["postgres", "schema"]

OLD, NEW = space("old", 8), space("new", 12)
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0][:8]
WORLD = plant(identities=60, samples=1)
NAMES = [f"item-{row}" for row in range(60)]
BACK = Transformer("procrustes", "new-to-old", NEW, OLD, LinearMap.from_arrays(TURN.T, np.zeros(8)))
FORTH = Transformer("procrustes", "old-to-new", OLD, NEW, LinearMap.from_arrays(TURN, np.zeros(12)))


@pytest.fixture
def folder(tmp_path):
    open_store(tmp_path / "old", WORLD.old, ids=NAMES)
    BACK.save(tmp_path / "back")
    FORTH.save(tmp_path / "forth")
    np.save(tmp_path / "queries.npy", FORTH.transform(WORLD.old[:10]))
    return tmp_path


def ran(name, *words, variables=None, given=None):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, words)],
        env=environment() | (variables or {}),
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def mistake(name, *words):
    """The last line of an example that ends with a mistake, the lines before it being its usage."""
    done = ran(name, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: {name}")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def example(name, *words, variables=None, given=None):
    """What an example prints."""
    done = ran(name, *words, variables=variables, given=given)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


def expected(names=NAMES):
    cosines = unit_rows(WORLD.old[:10]) @ unit_rows(WORLD.old).T
    return [[str(names[i]) for i in np.argsort(-row)[:5]] for row in cosines]


def test_faiss_gallery(folder):
    index = faiss.IndexFlatIP(8)
    index.add(unit_rows(WORLD.old))
    faiss.write_index(index, str(folder / "old.faiss"))
    words = ("faiss_gallery.py", folder / "back", folder / "old.faiss", folder / "queries.npy")
    assert example(*words) == expected(range(60))
    (folder / "old.faiss").unlink()
    convert(ConvertOptions(str(folder / "old"), f"faiss:{folder}/old.faiss"))
    assert example(*words) == expected()


def test_pgvector_gallery(folder, postgres: RealPostgres, schema):
    uri = postgres.uri(f"{schema}.faces")
    convert(ConvertOptions(str(folder / "old"), uri))
    found = example("pgvector_gallery.py", folder / "back", folder / "queries.npy", variables={"GALLERY": uri})
    assert found == expected()


def test_lance_gallery(folder):
    target = f"lance:{folder}/gallery"
    words = (folder / "old", target, folder / "queries.npy")
    assert example("lance_gallery.py", folder / "forth", *words) == expected()
    other = LinearMap.from_arrays(TURN[:, ::-1], np.zeros(12))
    Transformer("procrustes", "old-to-new", OLD, NEW, other).save(folder / "other")
    assert "gallery" in mistake("lance_gallery.py", folder / "other", *words)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_without_arguments_an_example_says_how_it_is_called(path):
    assert "the following arguments are required: " in mistake(path.name)


def test_without_its_variable_an_example_says_so(monkeypatch):
    monkeypatch.delenv("GALLERY", raising=False)
    assert "GALLERY is not set; set it to" in mistake("pgvector_gallery.py", "map", "queries.npy")


@pytest.mark.skipif(
    importlib.util.find_spec("compat.exporting.arrays") is None, reason="compat.export writes no maps for numpy yet"
)
def test_numpy_service(folder):
    words = ("--transformer", folder / "back", "--format", "numpy", "--out", folder / "map.npz")
    assert run("compat.export", *words).returncode == 0
    queries = np.load(folder / "queries.npy")
    given = "".join(json.dumps(query.tolist()) + "\n" for query in queries)
    found = [json.loads("".join(line)) for line in example("numpy_service.py", folder / "map.npz", given=given)]
    np.testing.assert_allclose(found, BACK.transform(queries), atol=1e-5)
