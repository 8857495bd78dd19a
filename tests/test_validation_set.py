"""What a training may be scored on, and in which folds."""

import pickle
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from drawn_faces import draw_identities, faces, one_thread, options, tiny_architecture

from backbones.datasets.image_set import ImageSet
from backbones.train import train
from backbones.training.validation_set import PairSet, PairValidation, open_validation

__all__ = ["faces", "one_thread", "tiny_architecture"]  # fixtures


@pytest.fixture(scope="module")
def lfw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people of four images in the layout of LFW."""
    root = draw_identities(tmp_path_factory.mktemp("lfw"), identities=12, images=4, prefix="P")
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{int(path.stem) + 1:04d}.png"))
    return root


def lfw_list(path: Path, people: list[int], folds: int) -> Path:
    """Three pairs of each kind in each fold."""
    lines = [f"{folds}\t3"]
    for fold in range(folds):
        names = [f"P{people[(fold + step) % len(people)]}" for step in range(4)]
        lines += [f"{name}\t1\t{place + 2}" for place, name in enumerate(names[:3])]
        lines += [f"{names[place]}\t1\t{names[place + 1]}\t{place + 2}" for place in range(3)]
    path.write_text("\n".join(lines) + "\n")
    return path


def images_of(folder: Path) -> ImageSet:
    return ImageSet(folder, 16, max_bad=0, memory=64, workers=1)


def test_people_that_an_lfw_list_names_are_not_trained_on(tmp_path: Path, lfw: Path) -> None:
    training = tmp_path / "training"
    for person in range(6):
        shutil.copytree(lfw / f"P{person}", training / f"P{person}")
    other = lfw_list(lfw / "other.txt", [6, 7, 8, 9, 10, 11], folds=3)
    same = lfw_list(lfw / "same.txt", [4, 5, 6, 7, 8, 9], folds=3)
    with pytest.raises(ValueError, match="2 of the 6 identities to evaluate on are in the training set: P4, P5; "):
        train(options(training, tmp_path / "out", epochs=1, validation=same))
    result = train(options(training, tmp_path / "out", epochs=1, validation=other))
    assert (result.card["validation"]["pairs"], result.card["validation"]["folds"]) == (18, 3)


def named_twice(folder: Path, faces: Path) -> Iterator[Path]:
    """Sets without names that show images of the training: as files, as copies of them, and in a pickle."""
    others = draw_identities(folder / "others", identities=3, images=4, prefix="x")
    for path in others.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")  # other bytes of the same length as one another
    shutil.copy(faces / "p2" / "3.png", others / "x0" / "copy.png")
    lines = "x0/0.png x0/1.png 1\nx0/0.png x1/1.png 0\nx1/0.png x1/2.png 1\n"
    copied = others / "copied.txt"
    copied.write_text(f"{lines}x0/copy.png x2/1.png 0\n")
    yield copied
    link = others / "faces"
    link.symlink_to(faces)
    linked = others / "linked.txt"
    linked.write_text(f"{lines}faces/p2/3.png x2/1.png 0\n")
    yield linked
    contents = [(others / "x0" / f"{place}.png").read_bytes() for place in (0, 1, 2, 3)]
    contents += [contents[0], (faces / "p2" / "3.png").read_bytes()]
    held = others / "held.bin"
    held.write_bytes(pickle.dumps((contents, [True, True, False])))
    yield held


def test_images_of_the_training_are_found_in_sets_without_names(tmp_path: Path, faces: Path) -> None:
    training = images_of(faces)
    for path in named_twice(tmp_path, faces):
        with pytest.raises(ValueError, match=r"1 of the 36 training images are among .* to evaluate on: p2/3\.png; "):
            open_validation(path, options(faces, tmp_path / "out", validation=path), training)
    clean = tmp_path / "others" / "clean.txt"
    clean.write_text("x0/0.png x0/1.png 1\nx0/0.png x1/1.png 0\n")
    assert len(open_validation(clean, options(faces, tmp_path / "out", validation=clean), training).images) == 3


def test_images_trained_on_without_names_are_no_validation(tmp_path: Path, faces: Path) -> None:
    flat = shutil.copytree(faces / "p0", tmp_path / "flat")
    training = ImageSet(flat, 16, max_bad=0, memory=64, workers=1, labels_needed=False)
    with pytest.raises(ValueError, match="6 of the 6 training images are among the 36 to evaluate on"):
        open_validation(faces, options(flat, tmp_path / "out", validation=faces), training)


def test_folds_are_those_of_the_whole_list(tmp_path: Path, lfw: Path) -> None:
    """An unreadable image takes its pairs away and moves no other into another fold."""
    listed = lfw_list(lfw / "folds.txt", list(range(12)), folds=4)
    whole = PairSet(listed, 16, max_bad=0, memory=64, workers=1)
    assert np.bincount(whole.fold.numpy()).tolist() == [6] * 4
    broken = shutil.copytree(lfw, tmp_path / "broken")
    (broken / "P1" / "P1_0001.png").write_bytes(b"broken")
    part = PairSet(broken / "folds.txt", 16, max_bad=1, memory=64, workers=1)
    lines = listed.read_text().splitlines()[1:]
    kept = [
        place
        for place, line in enumerate(lines)
        if "P1_0001" not in {f"{name}_{int(number):04d}" for name, number in images_in(line.split("\t"))}
    ]
    assert 0 < len(kept) < 24
    assert part.fold.tolist() == [place // 6 for place in kept]
    # the score is that of the folds written out
    embeddings = np.random.default_rng(0).normal(size=(len(part.images), 5))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = [float(unit[a] @ unit[b]) for a, b in part.pairs.tolist()]
    same, right = part.same.tolist(), 0
    for fold in range(4):
        others = [row for row, place in enumerate(kept) if place // 6 != fold]
        tried = sorted(scores[row] for row in others)
        middles = [tried[0] - 1, *[(a + b) / 2 for a, b in pairwise(tried)], tried[-1] + 1]
        counts = [sum((scores[row] >= middle) == same[row] for row in others) for middle in middles]
        threshold = middles[int(np.argmax(counts))]
        right += sum((scores[row] >= threshold) == same[row] for row, place in enumerate(kept) if place // 6 == fold)
    assert PairValidation(part).score(embeddings)["pair_accuracy"] == pytest.approx(right / len(kept))


def images_in(fields: list[str]) -> list[tuple[str, str]]:
    if len(fields) == 3:
        return [(fields[0], fields[1]), (fields[0], fields[2])]
    return [(fields[0], fields[1]), (fields[2], fields[3])]


def test_pairs_of_one_fold_cannot_be_judged(tmp_path: Path, faces: Path) -> None:
    listed = faces / "one.txt"
    try:
        listed.write_text("p0/0.png p0/1.png 1\n")
        with pytest.raises(ValueError, match=r"one\.txt has 1 pairs of readable images, all in one of its folds"):
            PairSet(listed, 16, max_bad=0, memory=64, workers=1)
    finally:
        listed.unlink()


def test_a_list_of_pairs_may_lie_apart_from_its_images(tmp_path: Path, faces: Path, lfw: Path) -> None:
    listed = lfw_list(tmp_path / "pairs.txt", list(range(12)), folds=2)
    asked = options(faces, tmp_path / "out", epochs=1, validation=listed, validation_root=lfw)
    assert train(asked).card["validation"]["pairs"] == 12
    with pytest.raises(ValueError, match=r"validation_root is .*, which belongs to lists \(\.txt\)"):
        train(options(faces, tmp_path / "other", validation=lfw, validation_root=lfw))
