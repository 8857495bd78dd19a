"""What trainings with teachers, older models and micro-batches minimise, against loops written out."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_faces import draw_identities, faces, one_thread, options, tiny_architecture
from torch.nn import functional as F

from backbones.augmentation.views import augment
from backbones.checkpoint import read_tensors
from backbones.datasets.image_set import ImageSet
from backbones.encoders.images import load_image_backbone
from backbones.options import AugmentOptions
from backbones.train import train
from backbones.training.learner import Learner, NotFinite, _Tally
from backbones.training.objective import load_head
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

__all__ = ["faces", "one_thread", "tiny_architecture"]  # fixtures
STILL = AugmentOptions(
    flip=0, scale=0, shift=0, rotation=0, brightness=0, contrast=0, saturation=0, occlusion=0, blur=0
)


def images_of(folder: Path, size: int = 16) -> ImageSet:
    return ImageSet(folder, size, max_bad=0, memory=64, workers=1)


def test_a_step_in_micro_batches_takes_the_mean_of_their_gradients(tmp_path: Path, faces: Path) -> None:
    images = images_of(faces)
    asked = options(
        faces, tmp_path, accumulate=3, precision="fp32", dropout=0.0, gradient_clip=0, momentum=0.0, weight_decay=0.0,
        label_smoothing=0.1, augmentation=STILL, learning_rate=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    learner = Learner(asked, images)
    learner.set_learning_rate(10_000)
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.5
    network, head = copy.deepcopy(learner.network).train(), copy.deepcopy(learner.objective.head)
    assert head is not None
    parts = list(images.batches(list(torch.arange(0, 36, 3).split(4))))
    learner.network.train()
    loss, norm = learner.train_step(iter(parts), _Tally(learner.device))

    losses = []
    for rows, pixels in parts:
        logits = head(network(augment(pixels, STILL, torch.Generator())), images.labels[rows])
        smooth = torch.full_like(logits, 0.1 / 6)
        smooth[torch.arange(4), images.labels[rows]] += 0.9
        losses.append(-(smooth * logits.log_softmax(dim=1)).sum(dim=1).mean())
        (losses[-1] / 3).backward()
    assert float(loss) == pytest.approx(float(sum(losses).detach()) / 3, rel=1e-5)  # pyright: ignore[reportAttributeAccessIssue]
    gradients = [value.grad for value in (*network.parameters(), *head.parameters())]
    squares = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
    assert float(norm) == pytest.approx(squares**0.5, rel=1e-4)
    for value, gradient, found in zip(
        (*network.parameters(), *head.parameters()), gradients, learner.parameters, strict=True
    ):
        assert gradient is not None
        torch.testing.assert_close(found, value - 0.5 * gradient, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_no_number_changes_no_weight(tmp_path: Path, faces: Path) -> None:
    images = images_of(faces)
    learner = Learner(options(faces, tmp_path), images)
    before = copy.deepcopy(dict(learner.network.named_parameters()))
    learner.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        NotFinite, match=r"^the gradient is (nan|inf) in the batch of p0/0\.png, .* and 7 more; lower .* in a new out$"
    ):
        learner.train_step(images.batches([torch.arange(12)]), _Tally(learner.device))
    for name, value in learner.network.named_parameters():
        assert torch.equal(value, before[name]), name


def test_a_student_without_labels_comes_near_its_teacher(tmp_path: Path, faces: Path) -> None:
    teacher = train(options(faces, tmp_path / "teacher", epochs=12, passes_per_epoch=2)).weights.parent
    asked = options(
        faces, tmp_path / "student", head="none", teacher=teacher, epochs=12, passes_per_epoch=2, seed=3, dropout=0.0
    )
    result = train(asked)
    assert "accuracy" not in result.history[0]
    assert result.history[-1]["distillation"] < 0.3 * result.history[0]["distillation"]
    assert result.card["head"] is None
    assert not (tmp_path / "student" / "head.safetensors").exists()
    images = images_of(faces)
    assert images.pixels is not None
    rows = [image.transpose(1, 2, 0) for image in images.pixels.numpy()]
    vectors = [
        torch.from_numpy(load_image_backbone("tiny", tmp_path / name).embed(rows)) for name in ("teacher", "student")
    ]
    assert F.cosine_similarity(vectors[0], vectors[1]).mean() > 0.8
    # loss and term are the same but for the weight
    assert result.history[-1]["loss"] == pytest.approx(9.0 * result.history[-1]["distillation"], rel=1e-4)


def test_teachers_that_do_not_fit_are_refused_before_training(tmp_path: Path, faces: Path) -> None:
    ids = [f"p{identity}/{image}.png" for identity in range(6) for image in range(6)]
    np.savez(tmp_path / "wide.npz", vectors=np.ones((36, 9), dtype=np.float32), item_id=np.array(ids))
    np.savez(tmp_path / "short.npz", vectors=np.ones((34, 8), dtype=np.float32), item_id=np.array(ids[:-2]))
    with pytest.raises(ValueError, match="has 9 dimensions and the network 8, expected the same"):
        train(options(faces, tmp_path / "out", teacher=tmp_path / "wide.npz"))
    with pytest.raises(ValueError, match=r"no embedding of 2 of 36 training images, the first is 'p5/4\.png'"):
        train(options(faces, tmp_path / "out", teacher=tmp_path / "short.npz"))
    with pytest.raises(FileNotFoundError, match=r"not found, expected the folder or model file of a training, or an"):
        train(options(faces, tmp_path / "out", teacher=tmp_path / "none"))
    space = EmbeddingSpace(name="big", fingerprint=None, dim=8, normalized=False)
    EmbeddingStore.create(tmp_path / "store", space).close()
    with pytest.raises(
        FileNotFoundError, match=r"store has no card\.json, .*`python -m stores\.convert STORE FILE\.npz`"
    ):
        train(options(faces, tmp_path / "out", teacher=tmp_path / "store"))


def test_an_earlier_training_is_named_by_its_folder_or_its_model(tmp_path: Path, faces: Path) -> None:
    model = train(options(faces, tmp_path / "earlier", epochs=1)).weights
    weights = [
        train(
            options(faces, tmp_path / out, epochs=1, teacher=path, finetune_from=path, compatible_with=path)
        ).weights.read_bytes()
        for out, path in (("by folder", model.parent), ("by model", model))
    ]
    assert weights[0] == weights[1]


def test_a_compatible_network_is_understood_by_the_old_head(tmp_path: Path, faces: Path) -> None:
    """Without the influence loss the new embeddings mean nothing to the old head; with it they name their identity."""
    old = train(options(faces, tmp_path / "old", epochs=12, passes_per_epoch=2)).weights.parent
    head, identities = load_head(old)
    assert identities == images_of(faces).identities
    images = images_of(faces)
    assert images.pixels is not None
    rows = [image.transpose(1, 2, 0) for image in images.pixels.numpy()]
    shares = {}
    for name, compatible in (("apart", None), ("compatible", old)):
        asked = options(faces, tmp_path / name, epochs=12, passes_per_epoch=2, seed=9, compatible_with=compatible)
        result = train(asked)
        embeddings = torch.from_numpy(load_image_backbone("tiny", result.weights).embed(rows))
        shares[name] = float((head.scores(embeddings).argmax(dim=1) == images.labels).float().mean())
        assert ("influence" in result.history[-1]) == (compatible is not None)
    assert shares["compatible"] > 0.9
    assert shares["apart"] < 0.5
    with pytest.raises(ValueError, match="has 8 dimensions and this one 12, expected the same; give --embedding-dim 8"):
        train(options(faces, tmp_path / "wide", embedding_dim=12, compatible_with=old))
    others = draw_identities(tmp_path / "others", identities=2, images=2, prefix="x")
    with pytest.raises(ValueError, match="none of the 2 identities is among the 6 of the old head"):
        train(options(others, tmp_path / "unknown", compatible_with=old))


def test_finetuning_starts_from_the_weights_and_mean_features(tmp_path: Path, faces: Path) -> None:
    first = train(options(faces, tmp_path / "first", epochs=6)).weights
    asked = options(faces, tmp_path / "second", finetune_from=first.parent, anchors=True, precision="fp32")
    images = images_of(faces)
    learner = Learner(asked, images)
    for name, value in read_tensors(first)[0].items():
        assert torch.equal(learner.network.state_dict()[name], value), name
    learner.set_anchors()
    assert learner.objective.head is not None
    assert images.pixels is not None
    backbone = load_image_backbone("tiny", first)
    features = backbone.embed([image.transpose(1, 2, 0) for image in images.pixels.numpy()])
    weight = learner.objective.head.weight.detach().numpy()
    for label in range(6):
        mean = np.zeros(8)
        for row in np.flatnonzero(images.labels.numpy() == label):
            mean += features[row] / np.linalg.norm(features[row])
        cosine = mean @ weight[label] / np.linalg.norm(mean) / np.linalg.norm(weight[label])
        assert cosine == pytest.approx(1.0, abs=1e-4)
    # a converged network with anchors knows the identities from its first epoch on; a fresh head does not
    fresh = options(faces, tmp_path / "third", finetune_from=first.parent, precision="fp32")
    assert train(asked).history[0]["accuracy"] > train(fresh).history[0]["accuracy"]
    with pytest.raises(ValueError, match="has embedding_dim 8, expected 9; give --embedding-dim 8"):
        train(options(faces, tmp_path / "wide", embedding_dim=9, finetune_from=first.parent))


def test_a_network_of_low_resolution_goes_on_in_high(tmp_path: Path, faces: Path) -> None:
    low = train(options(faces, tmp_path / "low", epochs=12, passes_per_epoch=2, dropout=0.0)).weights.parent
    asked = {"input_size": 48, "epochs": 1, "dropout": 0.0, "batch_size": 36, "warmup_epochs": 0, "learning_rate": 1e-9}
    high = Learner(options(faces, tmp_path / "high", finetune_from=low, **asked), images_of(faces, 48))
    assert high.network.head.projection.weight.shape == (8, 8 * 3 * 3)
    assert train(options(faces, tmp_path / "high", finetune_from=low, **asked)).card["input_size"] == 48
