"""ONNX files of our own encoders: the same embeddings, and nothing else to know."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from backbones.checkpoint import save_model
from backbones.encoders.load import load_backbone
from backbones.encoders.onnx_export import largest_difference
from backbones.encoders.preprocessing import Preprocessing
from backbones.export import ExportOptions, export, main
from backbones.networks.iresnet import ARCHITECTURES, IResNet

SIZE = 16
PREPROCESSING = Preprocessing(size=SIZE, colour_order="BGR", mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An IR-SE network, its ONNX file and what the command said."""
    folder = tmp_path_factory.mktemp("export")
    pytest.MonkeyPatch().setitem(
        ARCHITECTURES, "tiny-se", partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8), squeeze_excitation=True)
    )
    torch.manual_seed(0)
    network = ARCHITECTURES["tiny-se"](embedding_dim=6, input_size=SIZE)
    network(torch.randn(32, 3, SIZE, SIZE))
    card = {"arch": "tiny-se", "embedding_dim": 6, "preprocessing": PREPROCESSING.to_dict(), "data": {"images": 3}}
    weights = save_model(folder / "model", network, card)
    (folder / "faces" / "a").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "faces" / "a" / f"{number}.png")
    (folder / "faces" / "a" / "3.png").write_bytes(b"torn")
    options = ExportOptions(backbone="tiny-se", weights=weights, data=folder / "faces", out=folder / "tiny.onnx")
    return folder, weights, export(options)


def test_the_file_needs_no_options_and_gives_the_same_embeddings(exported):
    folder, weights, result = exported
    assert result.items == 3
    assert result.difference < 1e-5
    original = load_backbone("tiny-se", weights=weights)
    found = load_backbone(f"onnx:{folder / 'tiny.onnx'}")
    images = list(np.random.default_rng(1).integers(256, size=(7, SIZE, SIZE, 3), dtype=np.uint8))
    np.testing.assert_allclose(found.embed(images), original.embed(images), atol=1e-5)
    assert found.preprocessing == PREPROCESSING  # pyright: ignore[reportAttributeAccessIssue]
    assert found.card is not None
    assert found.card["data"] == {"images": 3}
    assert found.fingerprint != original.fingerprint
    model = onnx.load(folder / "tiny.onnx")
    assert [each.version for each in model.opset_import if each.domain == ""] == [20]
    shapes = [each.type.tensor_type.shape.dim for each in (*model.graph.input, *model.graph.output)]
    assert all(shape[0].dim_param for shape in shapes)
    assert json.loads({prop.key: prop.value for prop in model.metadata_props}["preprocessing"])["size"] == SIZE


def test_the_prepared_file_embeds_alike_in_any_company(exported):
    folder = exported[0]
    backbone = load_backbone(f"onnx:{folder / 'tiny.onnx'}")
    images = list(np.random.default_rng(1).integers(256, size=(37, SIZE, SIZE, 3), dtype=np.uint8))
    assert backbone.prepare(images[:5])["engine"] == "onnxruntime"
    whole = backbone.embed(images)
    np.testing.assert_array_equal(np.concatenate([backbone.embed([image]) for image in images]), whole)


def test_openvino_runs_the_file_too(exported):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    folder = exported[0]
    images = list(np.random.default_rng(1).integers(256, size=(5, SIZE, SIZE, 3), dtype=np.uint8))
    reference = load_backbone(f"onnx:{folder / 'tiny.onnx'}").embed(images)
    backbone = load_backbone(f"onnx:{folder / 'tiny.onnx'}", engine="openvino", precision="fp32")
    facts = backbone.prepare(images)
    assert (facts["engine"], facts["precision"]) == ("openvino", "openvino-fp32")
    np.testing.assert_allclose(backbone.embed(images), reference, atol=1e-4)


def test_what_differs_is_seen(exported):
    _, weights, _ = exported
    original = load_backbone("tiny-se", weights=weights)
    other = load_backbone("tiny-se", weights=weights, flip_average=False)
    images = list(np.random.default_rng(1).integers(256, size=(4, SIZE, SIZE, 3), dtype=np.uint8))
    expected = original.embed(images)
    largest = np.abs(other.embed(images) - expected).max(axis=1) / np.linalg.norm(expected, axis=1)
    assert largest_difference(original, other, images) == pytest.approx(largest.max(), rel=1e-4)


def test_a_file_that_differs_is_not_written(exported, tmp_path, capsys):
    folder, weights, _ = exported
    words = ["--backbone", "tiny-se", "--weights", str(weights), "--out", str(tmp_path / "x.onnx")]
    assert main([*words, "--tolerance", "1e-12"]) == 2
    error = capsys.readouterr().err
    assert "embeddings differ from the encoder's by" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main([*words[:-1], str(folder / "tiny.onnx")]) == 2
    assert "never overwritten" in capsys.readouterr().err


def write_array_model(path: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["sound", "weight"], ["embedding"])],
        "linear",
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.arange(10, dtype=np.float32).reshape(5, 2), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_model_of_arrays_reads_npy_files(tmp_path):
    backbone = load_backbone(f"onnx:{write_array_model(tmp_path / 'sound.onnx')}")
    np.save(tmp_path / "a.npy", np.array([1, 0, 0, 2, 0]))
    np.save(tmp_path / "b.npy", np.zeros((2, 5)))
    np.save(tmp_path / "c.npy", np.array([{}] * 5), allow_pickle=True)
    assert backbone.embed([backbone.read(tmp_path / "a.npy")]).tolist() == [[12, 15]]
    with pytest.raises(ValueError, match=r"holds float64 \[2, 5\], expected numbers \[5\]"):
        backbone.read(tmp_path / "b.npy")
    with pytest.raises(ValueError, match=r"c\.npy|pickle|Array"):
        backbone.read(tmp_path / "c.npy")


def test_damaged_arrays_are_bad_items(tmp_path):
    backbone = load_backbone(f"onnx:{write_array_model(tmp_path / 'sound.onnx')}")
    np.save(tmp_path / "good.npy", np.arange(5.0))
    good = (tmp_path / "good.npy").read_bytes()
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, np.arange(5.0))
    damaged = {
        "empty": b"",
        "cut": good[:100],
        "short": good[:-1],
        "garbled": good.replace(b"{'descr'", b"{'(escr(", 1),
        "unclosed": good.replace(b"}", b" ", 1),
        "nested": good[:10] + b"(" * 118 + good[128:],
        "archive": (tmp_path / "archive.npy").read_bytes(),
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
        with pytest.raises(ValueError):  # noqa: PT011  numpy's own words differ from release to release
            backbone.read(tmp_path / f"{name}.npy")
    assert backbone.read(tmp_path / "good.npy").tolist() == [0, 1, 2, 3, 4]
    for options in ({"flip_average": True}, {"preprocessing": {"size": 3}}):
        with pytest.raises(ValueError, match="takes no images, so"):
            load_backbone(f"onnx:{tmp_path / 'sound.onnx'}", **options)  # pyright: ignore[reportArgumentType]


def test_a_missing_folder_is_named_before_the_work(exported, tmp_path):
    _, weights, _ = exported
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere of --out does not exist"):
        export(ExportOptions(backbone="none such", weights=weights, out=tmp_path / "nowhere" / "x.onnx"))
