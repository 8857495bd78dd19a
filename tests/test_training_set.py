"""Trainings on images with identities, without, and with some of both."""

import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_faces import draw_identities, faces, one_thread, options, tiny_architecture
from torch.nn import functional as F

from backbones.datasets.image_set import ImageSet
from backbones.encoders.images import load_image_backbone
from backbones.train import train
from backbones.training.learner import Learner
from backbones.training.objective import Batch
from backbones.training.training_set import UNLABELLED, classes_of, list_training, listing_digest, read_training

__all__ = ["faces", "one_thread", "tiny_architecture"]  # fixtures


@pytest.fixture(scope="module")
def teacher(tiny_architecture: None, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return train(options(faces, folder / "out", epochs=6, passes_per_epoch=2)).weights


@pytest.fixture(scope="module")
def flat(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn images in one folder, which tells no identities."""
    folder = tmp_path_factory.mktemp("flat")
    for path in sorted(faces.rglob("*.png")):
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    return folder


def agreement(teacher: Path, student: Path, faces: Path) -> float:
    images = ImageSet(faces, 16, max_bad=0, memory=64, workers=1)
    assert images.pixels is not None
    rows = [image.transpose(1, 2, 0) for image in images.pixels.numpy()]
    vectors = [torch.from_numpy(load_image_backbone("tiny", path).embed(rows)) for path in (teacher, student)]
    return float(F.cosine_similarity(vectors[0], vectors[1]).mean())


@pytest.mark.parametrize("form", ["folder", "bin", "list"])
def test_a_student_learns_from_images_without_identities(
    tmp_path: Path, faces: Path, flat: Path, teacher: Path, form: str
) -> None:
    paths = sorted(flat.iterdir())
    forms = {"folder": flat, "bin": tmp_path / "set.bin", "list": tmp_path / "pairs.txt"}
    forms["bin"].write_bytes(pickle.dumps(([path.read_bytes() for path in paths], [True] * 18)))
    pairs = [f"{a.name} {b.name} 1" for a, b in pairwise(paths)]
    forms["list"].write_text("\n".join(pairs) + "\n")
    asked = options(
        forms[form], tmp_path / "out", head="none", teacher=teacher, epochs=8, passes_per_epoch=2, dropout=0.0,
        root=flat if form == "list" else None,
    )  # fmt: skip
    result = train(asked)
    assert agreement(teacher, result.weights, faces) > 0.8
    data = result.card["data"]
    assert (data["images"], data["identities"], data["unlabelled"]) == (36, 0, 36)
    assert train(asked).already_finished


def test_the_heads_loss_is_that_of_the_labelled_rows(tmp_path: Path, faces: Path, teacher: Path) -> None:
    more = draw_identities(tmp_path / "more", identities=2, images=3, prefix="x")
    old = teacher.parent
    asked = options(
        faces, tmp_path / "out", teacher=teacher, unlabelled=more, precision="fp32", label_smoothing=0.1,
        compatible_with=old,
    )  # fmt: skip
    items = list_training(asked)
    assert [item.label for item in items[36:]] == [""] * 6
    learner = Learner(asked, read_training(asked, items))
    objective = learner.objective
    assert learner.identities == [f"p{identity}" for identity in range(6)]
    assert objective.head is not None
    assert objective.influence is not None
    assert learner.class_labels.tolist() == [*np.repeat(range(6), 6), *[UNLABELLED] * 6]
    generator = torch.Generator().manual_seed(0)
    embeddings, lessons = torch.randn(2, 5, 8, generator=generator)
    labels = torch.tensor([3, UNLABELLED, 0, 0, UNLABELLED])
    batch = Batch(["a", "b", "c", "d", "e"], labels, torch.zeros(5, 3, 16, 16))
    found = objective(embeddings, batch, lessons)
    expected, influence, distance = 0.0, 0.0, 0.0
    for row, label in enumerate(labels.tolist()):
        unit = [vectors[row] / vectors[row].norm() for vectors in (embeddings, lessons)]
        distance += float((unit[0] - unit[1]).square().sum()) / 5
        if label != UNLABELLED:
            one = embeddings[row : row + 1]
            for head, share in ((objective.head, "own"), (objective.influence.old_head, "old")):
                logs = head(one, torch.tensor([label])).detach().log_softmax(dim=1)[0]
                value = -float(0.9 * logs[label] + 0.1 * logs.mean()) / 3
                expected, influence = (expected + value, influence) if share == "own" else (expected, influence + value)
    assert float(found.loss.detach()) == pytest.approx(expected + 9 * distance + influence, rel=1e-5)
    nobody = Batch(batch.item_ids, torch.full((5,), UNLABELLED), batch.images)
    found = objective(embeddings.requires_grad_(), nobody, lessons)
    assert float(found.loss.detach()) == pytest.approx(9 * distance, rel=1e-5)
    found.loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_further_images_without_identities_are_learnt_from(tmp_path: Path, faces: Path, teacher: Path) -> None:
    """Two identities have labels; the other four teach through the teacher alone."""
    few, rest = tmp_path / "few", tmp_path / "rest"
    for path in sorted(faces.iterdir()):
        shutil.copytree(path, (few if path.name in ("p0", "p1") else rest) / path.name)
    asked = options(
        few, tmp_path / "out", unlabelled=rest, teacher=teacher, epochs=8, passes_per_epoch=2, dropout=0.0,
    )  # fmt: skip
    result = train(asked)
    assert result.history[-1]["accuracy"] > 0.8  # of the labelled ones, a third of all
    data = result.card["data"]
    assert (data["images"], data["identities"], data["unlabelled"]) == (36, 2, 24)
    assert result.card["head"]["identities"] == ["p0", "p1"]
    assert agreement(teacher, result.weights, faces) > 0.8


def test_images_without_identities_are_no_set_for_a_head(tmp_path: Path, faces: Path, flat: Path) -> None:
    with pytest.raises(ValueError, match=r"does not tell the identity of p0-0\.png, which the head arcface needs"):
        train(options(flat, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"both hold p0/0\.png; remove or rename it"):
        train(options(faces, tmp_path / "out", unlabelled=faces, teacher=tmp_path / "none"))
    with pytest.raises(ValueError, match=r"root is .*, which belongs to lists \(\.txt\)"):
        train(options(faces, tmp_path / "out", root=flat))


def test_a_list_may_lie_apart_from_its_images(tmp_path: Path, faces: Path) -> None:
    listed = tmp_path / "list.txt"
    names = sorted(f"{path.parent.name}/{path.name} {path.parent.name}" for path in faces.rglob("*.png"))
    listed.write_text("\n".join(names) + "\n")
    asked = options(listed, tmp_path / "listed", root=faces, epochs=1)
    weights = train(asked).weights
    assert weights.read_bytes() == train(options(faces, tmp_path / "folder", epochs=1)).weights.read_bytes()


def test_the_listing_tells_names_identities_and_sizes_apart(tmp_path: Path, faces: Path) -> None:
    items = list_training(options(faces, tmp_path))
    digest = listing_digest(items)
    assert digest == listing_digest(list_training(options(faces, tmp_path)))
    (tmp_path / "other.png").write_bytes(b"x")
    for changed in ({"item_id": "p0/x.png"}, {"label": "p1"}, {"source": tmp_path / "other.png"}):
        assert listing_digest([items[0]._replace(**changed), *items[1:]]) != digest
    classes = classes_of(read_training(options(faces, tmp_path), items))
    assert classes.labels.tolist() == list(np.repeat(range(6), 6))
