import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from backbones.datasets.stored_vectors import open_vectors
from backbones.encoders.preprocessing import Preprocessing
from backbones.losses.distillation import angular_distillation
from backbones.networks.iresnet import IResNet
from backbones.training.teachers import LiveTeacher, StoredTeacher, Teacher
from stores.convert import main as convert
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

NO_IMAGES = torch.empty(0, 3, 8, 8)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Five vectors, exported from a store by the command."""
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    space = EmbeddingSpace(name="teacher", fingerprint=None, dim=4, normalized=False)
    with EmbeddingStore.create(tmp_path / "store", space) as store:
        store.append(pl.DataFrame({"item_id": [f"p{i}/ä b{i}.jpg" for i in range(5)]}), vectors)
        store.commit()
    path = tmp_path / "teacher.npz"
    assert convert([str(tmp_path / "store"), str(path)]) == 0
    return path, vectors


def test_stored_vectors_are_found_by_id_in_any_order(exported: tuple[Path, np.ndarray]) -> None:
    path, vectors = exported
    teacher: Teacher = StoredTeacher(path)
    found = teacher.embeddings(["p3/ä b3.jpg", "p0/ä b0.jpg", "p3/ä b3.jpg"], NO_IMAGES)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), vectors[[3, 0, 3]])
    assert teacher.dim == 4
    assert isinstance(open_vectors(path).vectors, np.memmap)  # not read into memory


def test_unknown_ids_are_named(exported: tuple[Path, np.ndarray]) -> None:
    ids = ["p1/ä b1.jpg", "p9", "p8"]
    teacher = StoredTeacher(exported[0])
    with pytest.raises(ValueError, match=r"no embedding of 'p9' and 1 more of a batch of 3; embed the training images"):
        teacher.embeddings(ids, NO_IMAGES)
    assert teacher.known(ids).tolist() == [True, False, False]


def test_a_compressed_archive_and_integer_ids_will_do(tmp_path: Path, exported: tuple[Path, np.ndarray]) -> None:
    path, vectors = exported
    np.savez_compressed(tmp_path / "c.npz", vectors=vectors.astype(np.float64), item_id=np.arange(5))
    teacher = StoredTeacher(tmp_path / "c.npz")
    np.testing.assert_array_equal(teacher.embeddings(["4"], NO_IMAGES).numpy(), vectors[[4]])
    assert teacher.digest != StoredTeacher(path).digest
    np.savez(tmp_path / "d.npz", vectors=vectors.astype(np.float64), item_id=np.arange(5))
    assert StoredTeacher(tmp_path / "d.npz").digest == teacher.digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": np.ones((2, 3))}, "holds the arrays vectors, expected `vectors` and `item_id`"),
        ({"vectors": np.ones((2, 3)), "item_id": np.arange(3)}, r"vectors float64 \[2, 3\] and 3 item ids"),
        ({"vectors": np.ones((2, 3), int), "item_id": np.arange(2)}, "expected floats"),
        ({"vectors": np.ones((2, 3)), "item_id": np.array(["a", "a"])}, "item id 'a' twice"),
        ({"vectors": np.ones((2, 3)), "item_id": np.array(["a", None])}, "cannot be read as an .npz archive"),
        ({"vectors": np.array([[1.0], [np.nan]]), "item_id": np.array(["a", "b"])}, "not finite, of 'b'"),
        ({"vectors": np.array([[0.0], [1.0]]), "item_id": np.array(["a", "b"])}, "zero or not finite, of 'a'"),
        ({"vectors": np.asfortranarray(np.ones((2, 3))), "item_id": np.arange(2)}, "column by column"),
    ],
)
def test_unusable_archives_are_refused_in_one_line(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        StoredTeacher(tmp_path / "t.npz")
    assert str(caught.value).count("\n") == 0
    assert str(tmp_path) in str(caught.value)


def test_damaged_archives_are_refused(exported: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, vectors = exported
    content = bytearray(path.read_bytes())
    content[bytes(content).index(vectors.tobytes()) + 9] ^= 1  # one bit of one value
    (tmp_path / "flipped.npz").write_bytes(content)
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:200])
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive, zipfile.ZipFile(path) as whole:
        archive.writestr("item_id.npy", whole.read("item_id.npy"))
        archive.writestr("vectors.npy", whole.read("vectors.npy")[:-4])
    for name in ("flipped", "cut", "short"):
        with pytest.raises(ValueError, match=f"{name}.npz"):
            StoredTeacher(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError, match=r"not found, expected an \.npz archive"):
        StoredTeacher(tmp_path / "none.npz")


class Brightness(nn.Module):
    """Embeds an image as the mean of each channel and one fixed number."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.offset = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2:] == (self.size, self.size)
        means = images.mean(dim=(2, 3))
        return torch.cat([means, self.offset.expand(len(images), 1)], dim=1)


@pytest.mark.parametrize("size", [8, 16, 5])
@pytest.mark.parametrize("as_pixels", [lambda x: x, lambda x: x.float() / 127.5 - 1.0], ids=["uint8", "float"])
def test_a_live_teacher_prepares_images_of_any_size_its_own_way(
    size: int, as_pixels: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    preprocessing = Preprocessing(size=size, colour_order="BGR", mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    teacher = LiveTeacher(Brightness(size), preprocessing)
    colours = torch.tensor([[200, 100, 50], [0, 0, 255]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(2, 3, 8, 8)
    found = teacher.embeddings(["a", "b"], as_pixels(images))
    expected = [[(50 - 10) / 2, (100 - 20) / 4, (200 - 30) / 5, 2], [(255 - 10) / 2, -5, -6, 2]]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert teacher.dim == 4


def test_a_live_teacher_is_frozen_and_gives_what_extraction_gives() -> None:
    torch.manual_seed(0)
    network = IResNet((1, 1, 1, 1), channels=(4, 4, 8, 8), embedding_dim=6, input_size=16)
    network(torch.randn(8, 3, 16, 16))
    teacher = LiveTeacher(network, Preprocessing(size=16))
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    found = teacher.embeddings(["a", "b", "c"], images)
    assert network.training  # the caller's network goes on
    with torch.inference_mode():
        torch.testing.assert_close(found, Preprocessing(size=16).embed(network.eval(), images))
    student = torch.randn(3, 6, requires_grad=True)
    angular_distillation(student, found).backward()
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert teacher.known(["a"]).tolist() == [True]
    with pytest.raises(ValueError, match="got 2 item ids and 3 images"):
        teacher.embeddings(["a", "b"], images)
