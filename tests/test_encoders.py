import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from backbones.checkpoint import save_model
from backbones.datasets.decoding import UnreadableImage
from backbones.encoders.encoder import Backbone
from backbones.encoders.images import ImageBackbone, load_image_backbone
from backbones.encoders.load import load_backbone
from backbones.encoders.onnx import OnnxBackbone
from backbones.encoders.preprocessing import Preprocessing
from backbones.networks.iresnet import ARCHITECTURES, IResNet

SIZE = 16


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def save_tiny(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    torch.manual_seed(seed)
    network = ARCHITECTURES["tiny"](embedding_dim=6, input_size=SIZE)
    network(torch.randn(32, 3, SIZE, SIZE))  # gives the norms their statistics
    card = {"arch": "tiny", "embedding_dim": 6, "preprocessing": Preprocessing(size=SIZE).to_dict()}
    return save_model(folder, network, card | changes)


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    return [*np.random.default_rng(seed).integers(256, size=(count, SIZE, SIZE, 3), dtype=np.uint8)]


def test_embeddings_are_the_mean_over_image_and_mirror_image(model: Path) -> None:
    items = images(3)
    averaged = load_image_backbone("tiny", model).embed(items)
    plain = load_image_backbone("tiny", model, flip_average=False)
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in items]
    assert averaged.shape == (3, 6)
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(averaged, (plain.embed(items) + plain.embed(mirrored)) / 2, atol=1e-5)
    assert not np.allclose(averaged, plain.embed(items), atol=1e-3)


def test_micro_batches_change_nothing(model: Path) -> None:
    items = images(7)
    whole = load_image_backbone("tiny", model).embed(items)
    np.testing.assert_allclose(load_image_backbone("tiny", model, micro_batch=3).embed(items), whole, atol=1e-5)
    assert load_image_backbone("tiny", model).embed([]).shape == (0, 6)


def test_preprocessing_follows_its_definition() -> None:
    settings = Preprocessing(size=2, colour_order="BGR", mean=(10, 20, 30), std=(1, 2, 4))
    pixels = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    expected = np.stack([(pixels[0, 2 - c].double().numpy() - settings.mean[c]) / settings.std[c] for c in range(3)])
    np.testing.assert_allclose(settings.normalize(pixels)[0].numpy(), expected)
    assert Preprocessing.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"colour_order": "GBR"}, {"std": [1, 0, 1]}, {"mean": [1, 2]}, {"gamma": 2}, {"mean": 3}]
)
def test_impossible_preprocessing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="preprocessing"):
        Preprocessing.from_dict(Preprocessing(size=4).to_dict() | change)


def test_fingerprint_covers_weights_and_preprocessing_but_not_precision(tmp_path: Path, model: Path) -> None:
    backbone = load_image_backbone("tiny", model)
    same = load_image_backbone("tiny", model, precision="bf16", micro_batch=2)
    same.prepare(images(4))
    assert backbone.fingerprint == same.fingerprint
    assert len(bytes.fromhex(backbone.fingerprint)) == 32
    assert load_image_backbone("tiny", model, flip_average=False).fingerprint != backbone.fingerprint
    other = save_tiny(tmp_path / "other", seed=1)
    assert load_image_backbone("tiny", other).fingerprint != backbone.fingerprint


def test_prepare_reports_its_choice_and_keeps_the_embeddings(model: Path) -> None:
    items = images(8)
    backbone = load_image_backbone("tiny", model)
    before = backbone.embed(items)
    facts = backbone.prepare(items)
    after = backbone.embed(items)
    assert facts["precision"] in ("bf16-folded", "fp32-folded", "fp32")
    assert facts["minimum_cosine"] >= 0.999
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert cosines.min() > 0.998


def test_files_are_read_at_the_input_size(tmp_path: Path, model: Path) -> None:
    backbone = load_image_backbone("tiny", model.parent)  # the folder does as well
    Image.fromarray(images(1)[0]).resize((50, 40)).save(tmp_path / "a.png")
    assert backbone.read(tmp_path / "a.png").shape == (SIZE, SIZE, 3)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage):
        backbone.read(tmp_path / "a.png")


def test_models_that_do_not_fit_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not found; expected the model.safetensors"):
        load_image_backbone("tiny", tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="holds 'tiny', expected 'iresnet18'; pass --backbone tiny"):
        load_image_backbone("iresnet18", model)
    with pytest.raises(ValueError, match="lacks 'preprocessing'"):
        load_image_backbone("tiny", save_model(tmp_path / "a", torch.nn.Linear(1, 1), {"arch": "tiny"}))
    with pytest.raises(ValueError, match=r"does not fit: found .* for head.embedding_norm.bias"):
        load_image_backbone("tiny", save_tiny(tmp_path / "b", embedding_dim=7))
    damaged = bytearray(model.read_bytes())
    damaged[-5] ^= 4
    model.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        load_image_backbone("tiny", model)


def test_load_backbone_knows_three_forms(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_backbone("tiny", weights=model), ImageBackbone)
    monkeypatch.chdir(tmp_path)
    Path("my_encoder.py").write_text(
        "import numpy as np\n"
        "from backbones.encoders.encoder import Backbone\n"
        "class Words(Backbone):\n"
        "    name, fingerprint, dim, normalized, suffixes = 'words', '00', 2, False, frozenset({'.txt'})\n"
        "    def read(self, path): return path.read_text()\n"
        "    def embed(self, items): return np.array([[len(i), 1] for i in items], dtype=np.float32)\n"
        "def build(): return Words()\n"
        "def broken(): return 3\n"
    )
    backbone = load_backbone("my_encoder:build")
    assert isinstance(backbone, Backbone)
    assert backbone.embed(["abc"]).tolist() == [[3, 1]]
    assert backbone.prepare(["abc"]) == {}
    with pytest.raises(ValueError, match="returned int, expected a subclass of"):
        load_backbone("my_encoder:broken")
    with pytest.raises(ValueError, match="has no function 'missing'"):
        load_backbone("my_encoder:missing")
    with pytest.raises(ValueError, match="backbone module 'no_such_module' not found"):
        load_backbone("no_such_module:build")
    with pytest.raises(
        ValueError, match=r"unknown backbone 'resnet', expected one of iresnet18, .*onnx:FILE, or module"
    ):
        load_backbone("resnet")
    with pytest.raises(ValueError, match="needs weights; pass --weights"):
        load_backbone("tiny")


def write_onnx(path: Path, *, batch: int | str = "n", metadata: dict[str, object] | None = None) -> Path:
    """A model whose embedding is the mean of each normalised channel."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["embedding"]),
        ],
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 3])],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(built, {"preprocessing": json.dumps(metadata)})
    onnx.save(built, path)
    return path


def write_onnx_with_weights_beside(path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.ones((3 * SIZE * SIZE, 4), dtype=np.float32), "weight")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(built, path, save_as_external_data=True, location="weights.bin", size_threshold=0)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_onnx_follows_its_metadata(tmp_path: Path, batch: int | str) -> None:
    metadata: dict[str, object] = {"mean": [10, 20, 30], "std": [1, 2, 3], "colour_order": "BGR"}
    backbone = load_backbone(f"onnx:{write_onnx(tmp_path / 'mean.onnx', batch=batch, metadata=metadata)}")
    items = images(6)
    expected = (np.stack(items).mean(axis=(1, 2))[:, ::-1] - [10, 20, 30]) / [1, 2, 3]
    np.testing.assert_allclose(backbone.embed(items), expected, rtol=1e-5)
    assert (backbone.name, backbone.dim) == ("mean", 3)


def test_onnx_preprocessing_comes_from_options_too_and_is_never_guessed(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "mean.onnx")
    with pytest.raises(ValueError, match="mean, std found neither in its metadata"):
        load_backbone(f"onnx:{path}")
    settings = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    backbone = load_backbone(f"onnx:{path}", preprocessing=settings)
    other = load_backbone(f"onnx:{path}", preprocessing=settings, flip_average=True)
    assert backbone.fingerprint != other.fingerprint
    assert backbone.fingerprint == OnnxBackbone(path, preprocessing=settings).fingerprint


def test_onnx_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"ONNX model .* not found"):
        load_backbone(f"onnx:{tmp_path / 'none.onnx'}")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="onnxruntime cannot load"):
        load_backbone(f"onnx:{tmp_path / 'bad.onnx'}")
    write_onnx_with_weights_beside(tmp_path / "split.onnx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="as one file with its weights inside"):
        load_backbone("onnx:split.onnx", preprocessing={"size": 16, "mean": (0, 0, 0), "std": (1, 1, 1)})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"run `pip install 'embedding-compat\[onnx\]'`"):
        load_backbone(f"onnx:{tmp_path / 'bad.onnx'}")


def test_onnx_metadata_that_nest_too_deeply_are_one_line(tmp_path: Path) -> None:
    from onnx import helper

    path = write_onnx(tmp_path / "deep.onnx")
    built = onnx.load(path)
    helper.set_model_props(built, {"preprocessing": "[" * 200_000})
    onnx.save(built, path)
    with pytest.raises(ValueError, match=r"deep.onnx is '\[+'\.\.\., expected a JSON object") as raised:
        load_backbone(f"onnx:{path}")
    assert len(str(raised.value)) < 400


OWN = """
import numpy as np
from backbones.encoders.encoder import Backbone


class Plain(Backbone):
    name, fingerprint, dim, normalized, suffixes = "plain", "00", 2, False, frozenset({".txt"})

    def read(self, path):
        return path.read_text()

    def embed(self, items):
        return np.array([[len(i), 1] for i in items], dtype=np.float32)


class Choosing(Plain):
    precision, engine_name = "auto", "torch"


def plain():
    return Plain()


def choosing():
    return Choosing()
"""


def test_an_option_reaches_the_backbone_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_encoders.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    chosen = load_backbone("own_encoders:choosing", precision="fp32", engine="openvino")
    assert (chosen.precision, chosen.engine_name) == ("fp32", "openvino")
    assert load_backbone("own_encoders:plain").precision is None
    settings = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    path = write_onnx(tmp_path / "mean.onnx")
    refused: list[tuple[str, dict[str, object], str]] = [
        ("own_encoders:plain", {"precision": "fp32"}, "chooses its precision itself; leave --precision fp32 out"),
        ("own_encoders:plain", {"engine": "openvino"}, "chooses its engine itself; leave --engine openvino out"),
        ("own_encoders:choosing", {"flip_average": True}, "sees to mirror images itself; leave --flip-average out"),
        ("own_encoders:choosing", {"preprocessing": settings}, "mean, std of images can be given for onnx:FILE only"),
        ("tiny", {"preprocessing": settings}, "mean, std of images can be given for onnx:FILE only"),
        (f"onnx:{path}", {"preprocessing": settings, "weights": path}, "has its weights inside; leave --weights"),
    ]
    for spec, options, message in refused:
        with pytest.raises(ValueError, match=message):
            load_backbone(spec, **options)  # pyright: ignore[reportArgumentType]
    backbone = load_backbone(f"onnx:{path}", preprocessing=settings, precision="bf16")
    with pytest.raises(ValueError, match="in float32 only; use --engine openvino with --precision bf16"):
        backbone.prepare(images(4))
