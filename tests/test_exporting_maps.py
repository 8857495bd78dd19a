"""Maps as ONNX graphs and as plain arrays: what they give is what the transformer gives."""

import json
import math
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
from planted import ROOT
from planted_maps import drawn_map

from compat.exporting.array_file import export_arrays
from compat.exporting.arrays import SHAPES, ArrayMap, erf, load_map
from compat.exporting.onnx_file import METADATA_KEY, export_onnx
from compat.exporting.onnx_graph import pooling
from compat.exporting.written import relative_difference

MATRICES = ("identity", "ridge", "mlp", "residual_mlp", "unified")
DIMS = ((12, 8), (8, 12), (24, 24))


def extreme_vectors(dim: int) -> np.ndarray:
    """Directions of every length that a transformer promises to read, single coordinates, equal ones, repeated ones."""
    generator = np.random.default_rng(5)
    directions = generator.normal(size=(9, dim))
    lengths = 10.0 ** np.array([-10, -6, -3, -1, 0, 1, 3, 6, 10])
    rows = [*(directions * lengths[:, None]), np.eye(dim)[0], -np.eye(dim)[1] * 1e-5, np.ones(dim), np.full(dim, -7.0)]
    return np.array(rows, np.float32)


def run_onnx(path, vectors):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"vectors": vectors})[0])


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("family", [*MATRICES, "msresnet"])
def test_onnx_gives_what_the_transformer_gives(tmp_path, family, normalized, dims):
    transformer = drawn_map(family, *dims, normalized=normalized)
    result = export_onnx(transformer, tmp_path / "map.onnx")
    assert result.difference is not None
    assert result.difference < 1e-5
    vectors = extreme_vectors(dims[0])
    expected = transformer.transform(vectors)
    whole = run_onnx(tmp_path / "map.onnx", vectors)
    assert relative_difference(whole, expected) < 1e-4
    single = np.concatenate([run_onnx(tmp_path / "map.onnx", vectors[row : row + 1]) for row in range(len(vectors))])
    assert relative_difference(single, expected) < 1e-4
    if normalized:
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("family", MATRICES)
def test_arrays_give_what_the_transformer_gives(tmp_path, family, normalized, dims):
    transformer = drawn_map(family, *dims, normalized=normalized)
    result = export_arrays(transformer, tmp_path / "map.npz")
    mapped = load_map(tmp_path / "map.npz")
    vectors = extreme_vectors(dims[0])
    assert relative_difference(mapped(vectors), transformer.transform(vectors)) < 1e-4
    single = np.concatenate([mapped(vectors[row : row + 1]) for row in range(len(vectors))])
    assert relative_difference(single, transformer.transform(vectors)) < 1e-4
    many = np.random.default_rng(1).normal(size=(5000, dims[0]))  # more than a block, and of another type
    np.testing.assert_allclose(mapped(many), transformer.transform(many), rtol=1e-4, atol=1e-5)
    spoken = {"np": np, "queries": many[:50].astype(np.float64)}
    exec(result.recipe.replace("'map.npz'", repr(str(tmp_path / "map.npz"))), spoken)
    assert relative_difference(spoken["mapped"], transformer.transform(many[:50])) < 1e-4


@pytest.mark.parametrize("family", ["ridge", "residual_mlp"])
def test_a_zero_vector_and_an_affine_map_without_centre(tmp_path, family):
    transformer = drawn_map(family, 6, 5, centred=False)
    export_onnx(transformer, tmp_path / "map.onnx")
    export_arrays(transformer, tmp_path / "map.npz")
    vectors = np.concatenate([np.zeros((1, 6)), np.random.default_rng(0).normal(size=(3, 6))]).astype(np.float32)
    expected = transformer.transform(vectors)
    np.testing.assert_allclose(run_onnx(tmp_path / "map.onnx", vectors), expected, atol=1e-6)
    mapped = load_map(tmp_path / "map.npz")
    np.testing.assert_allclose(mapped(vectors), expected, atol=1e-6)
    np.testing.assert_allclose(mapped(vectors[:1]), expected[:1], atol=1e-6)
    operators = [node.op_type for node in onnx.load(tmp_path / "map.onnx").graph.node]
    assert operators.count("MatMul") == (1 if family == "ridge" else 3)


@pytest.mark.parametrize("family", ["identity", "ridge", "mlp", "residual_mlp", "msresnet"])
def test_queries_are_served_as_a_corrected_index_takes_them(tmp_path, family):
    transformer = drawn_map(family, 8, 8, corrected=True)
    vectors = extreme_vectors(8)
    expected = transformer.serve_queries(vectors)
    assert export_onnx(transformer, tmp_path / "map.onnx", serve=True).output_dim == 9
    assert relative_difference(run_onnx(tmp_path / "map.onnx", vectors), expected) < 1e-4
    plain = export_onnx(transformer, tmp_path / "plain.onnx")
    assert plain.output_dim == 8
    assert "hubness correction is not part" in plain.notes[0]
    if family == "msresnet":
        return
    result = export_arrays(transformer, tmp_path / "map.npz", serve=True)
    mapped = load_map(tmp_path / "map.npz")
    assert relative_difference(mapped(vectors), expected) < 1e-4
    assert relative_difference(mapped(vectors[3:4]), expected[3:4]) < 1e-4
    assert "1 appended" in result.notes[0]
    spoken = {"np": np, "queries": vectors.astype(np.float64)}
    exec(result.recipe.replace("'map.npz'", repr(str(tmp_path / "map.npz"))), spoken)
    assert relative_difference(spoken["mapped"], expected) < 1e-4


def test_serving_without_a_correction_is_refused(tmp_path):
    for export in (export_onnx, export_arrays):
        with pytest.raises(ValueError, match=r"no hubness correction, so --serve would change nothing; leave it out"):
            export(drawn_map("ridge", 8, 6), tmp_path / "map.bin", serve=True)


@pytest.mark.parametrize("width", [1, 3, 20])
def test_unified_maps_of_any_width_and_both_directions(tmp_path, width):
    for direction in ("new-to-old", "old-to-new"):
        transformer = drawn_map("unified", 12, 8, normalized=True, direction=direction, width=width)
        export_onnx(transformer, tmp_path / f"{direction}.onnx")
        export_arrays(transformer, tmp_path / f"{direction}.npz")
        vectors, expected = extreme_vectors(12), transformer.transform(extreme_vectors(12))
        assert relative_difference(run_onnx(tmp_path / f"{direction}.onnx", vectors), expected) < 1e-5
        assert relative_difference(load_map(tmp_path / f"{direction}.npz")(vectors), expected) < 1e-5


def test_what_is_compared_is_the_file(tmp_path, monkeypatch):
    def torn(path, parts):
        path.write_bytes(b"".join(parts)[:-9])

    monkeypatch.setattr("compat.exporting.written.write_plainly", torn)
    with pytest.raises(Exception, match=r"[Pp]rotobuf|map\.tmp|INVALID|Load"):
        export_onnx(drawn_map("ridge", 8, 6), tmp_path / "map.onnx")
    assert not list(tmp_path.iterdir())


def test_the_gallerys_offsets_fit_no_file(tmp_path):
    transformer = drawn_map("ridge", 8, 6, corrected=True, direction="old-to-new")
    for export in (export_onnx, export_arrays):
        with pytest.raises(ValueError, match=r"a number of each item.*compat\.migrate"):
            export(transformer, tmp_path / "map.bin", serve=True)
    export_onnx(transformer, tmp_path / "map.onnx")
    vectors = extreme_vectors(8)
    assert relative_difference(run_onnx(tmp_path / "map.onnx", vectors), transformer.transform(vectors)) < 1e-4


def test_what_a_file_says_of_itself(tmp_path):
    transformer = drawn_map("ridge", 8, 6)
    export_onnx(transformer, tmp_path / "map.onnx")
    export_arrays(transformer, tmp_path / "map.npz")
    model = onnx.load(tmp_path / "map.onnx")
    card = json.loads({each.key: each.value for each in model.metadata_props}[METADATA_KEY])
    assert card["digest"] == transformer.digest()
    assert (card["family"], card["direction"]) == ("ridge", "new-to-old")
    assert card["target"] == transformer.target.to_dict()
    assert load_map(tmp_path / "map.npz").card == {**card, "kind": "linear"}
    assert [each.version for each in model.opset_import] == [17]
    for side in (model.graph.input, model.graph.output):
        assert side[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert str(ROOT) not in str(model)  # no path of where it was made


def test_the_same_export_again_is_the_same_file_and_another_is_refused(tmp_path):
    for export, name in ((export_onnx, "map.onnx"), (export_arrays, "map.npz")):
        out = tmp_path / name
        export(drawn_map("ridge", 8, 6), out)
        before = out.read_bytes(), out.stat().st_mtime_ns
        export(drawn_map("ridge", 8, 6), out)
        assert (out.read_bytes(), out.stat().st_mtime_ns) == before
        with pytest.raises(FileExistsError, match="exists and is not this export"):
            export(drawn_map("mlp", 8, 6), out)
        assert out.read_bytes() == before[0]
    with pytest.raises(FileNotFoundError, match="the folder"):
        export_arrays(drawn_map("ridge", 8, 6), tmp_path / "no" / "map.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.npz", "map.onnx"]


def test_a_file_that_gives_something_else_is_not_kept(tmp_path):
    transformer = drawn_map("ridge", 8, 6)
    for export, name in ((export_onnx, "map.onnx"), (export_arrays, "map.npz")):
        with pytest.raises(ValueError, match=r"differs from the transformer by .* allowed is 1\.0e-12"):
            export(transformer, tmp_path / name, tolerance=1e-12)
    assert not list(tmp_path.iterdir())


def test_arrays_of_convolutions_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="msresnet is not made of matrices alone; export it with --format onnx"):
        export_arrays(drawn_map("msresnet", 8, 6), tmp_path / "map.npz")


def test_applying_a_file_of_arrays_needs_numpy_alone(tmp_path):
    transformer = drawn_map("residual_mlp", 8, 6)
    export_arrays(transformer, tmp_path / "map.npz")
    vectors = extreme_vectors(8)
    np.save(tmp_path / "queries.npy", vectors)
    code = """
import sys, numpy
before = set(sys.modules)
from compat.exporting.arrays import load_map
numpy.save(sys.argv[3], load_map(sys.argv[1])(numpy.load(sys.argv[2])))
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded - set(sys.stdlib_module_names)))
"""
    paths = [str(tmp_path / name) for name in ("map.npz", "queries.npy", "mapped.npy")]
    ran = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["compat", "numpy"] or ran.stdout.split() == ["compat"]
    assert relative_difference(np.load(paths[2]), transformer.transform(vectors)) < 1e-4


def test_every_bit_of_a_file_of_arrays_counts(tmp_path):
    transformer = drawn_map("ridge", 8, 6)
    path = tmp_path / "map.npz"
    export_arrays(transformer, path)
    content = path.read_bytes()
    vectors = extreme_vectors(8)
    expected, said = load_map(path)(vectors), []
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            found = load_map(path)(vectors)
        except ValueError as error:
            said.append(str(error))
        else:
            np.testing.assert_array_equal(found, expected)  # a bit that says nothing, such as a date
    assert len(said) > 100
    assert all(str(path) in line and "\n" not in line for line in said)
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            load_map(path)


def test_arrays_that_do_not_belong_together_are_refused(tmp_path):
    export_arrays(drawn_map("ridge", 8, 6), tmp_path / "map.npz")
    mapped = load_map(tmp_path / "map.npz")
    tensors, card = mapped.tensors, mapped.card
    for changed, message in (
        ({"weight": tensors["weight"].T}, r"weight is float32 \[6, 8\], expected floats \[8, 6\]"),
        ({"bias": np.full(6, np.nan, np.float32)}, "bias holds NaN"),
        ({"centre": np.zeros(8, np.int64)}, "centre is int64"),
        ({"more": tensors["bias"]}, "has the arrays weight, bias, centre, found"),
    ):
        with pytest.raises(ValueError, match=message):
            ArrayMap(tensors | changed, card)
    with pytest.raises(ValueError, match=f"of kind 'tree', expected one of {', '.join(SHAPES)}"):
        ArrayMap(tensors, card | {"kind": "tree"})
    with pytest.raises(ValueError, match=r"shape \[2, 7\], expected \[n, 8\]"):
        mapped(np.zeros((2, 7)))
    with pytest.raises(FileNotFoundError, match="no map at"):
        load_map(tmp_path / "none.npz")
    later = np.frombuffer(json.dumps(card | {"format_version": 99}).encode(), np.uint8)
    np.savez(tmp_path / "later.npz", card=later, **tensors)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="format version is 99"):
        load_map(tmp_path / "later.npz")
    pickled = np.array([{"a": 1}], object)
    np.savez(tmp_path / "pickled.npz", card=pickled)
    with pytest.raises(ValueError, match="cannot be read"):
        load_map(tmp_path / "pickled.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("card.npy", bytes(1 << 20))
    with pytest.raises(ValueError, match="compressed"):
        load_map(tmp_path / "bomb.npz")


def test_the_error_function():
    values = np.linspace(-6, 6, 4001)
    exact = np.array([math.erf(value) for value in values])
    np.testing.assert_allclose(erf(values), exact, atol=1.6e-7)
    np.testing.assert_allclose(erf(values.astype(np.float32)), exact, atol=5e-7)


@pytest.mark.parametrize("length", [2, 5, 8, 13, 32])
def test_pooling_is_that_of_torch(length):
    import torch

    signal = torch.randn(3, 4, length)
    expected = torch.nn.AdaptiveAvgPool1d(8)(signal).numpy()
    np.testing.assert_allclose(signal.numpy() @ pooling(length, 8), expected, atol=1e-6)
