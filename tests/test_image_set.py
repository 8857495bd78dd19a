import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import pixels, png, put, write_record_set
from PIL import Image

from backbones.datasets.image_item import ImageItem
from backbones.datasets.image_set import ImageSet, keep_share, require_disjoint


def image_set(data: Path, **changes: object) -> ImageSet:
    return ImageSet(data, 12, **{"max_bad": 0, "memory": 1, "workers": 2, **changes})  # pyright: ignore[reportArgumentType]


def listing(counts: dict[str, int]) -> list[ImageItem]:
    return [
        ImageItem(f"{name}/{n}.png", name, Path(f"{name}/{n}.png"))
        for name, count in counts.items()
        for n in range(count)
    ]


def test_images_in_memory_and_decoded_per_batch_are_the_same(tmp_path: Path) -> None:
    write_record_set(tmp_path, [(label, png(seed)) for seed, label in enumerate([4, 10, 4, 7])])
    batches = [torch.tensor([3, 0]), torch.tensor([1]), torch.tensor([2, 2]), torch.tensor([0])]
    for memory in (1, 0):
        images = image_set(tmp_path, memory=memory)
        assert (images.pixels is None) is (memory == 0)
        assert images.identities == ["10", "4", "7"]
        assert images.labels.tolist() == [1, 0, 1, 2]
        found = list(images.batches(batches))
        for (rows, shown), asked in zip(found, batches, strict=True):
            assert torch.equal(rows, asked)
            np.testing.assert_array_equal(shown.permute(0, 2, 3, 1), [pixels(row) for row in asked.tolist()])


def test_a_container_cut_in_the_middle_has_unreadable_images(tmp_path: Path) -> None:
    write_record_set(tmp_path, [(1, png(1)), (2, b"no image"), (2, png(3))])
    images = image_set(tmp_path, max_bad=1)
    assert images.skipped == ["2/2"]
    assert [item.item_id for item in images.items] == ["1/1", "2/3"]


def test_kept_shares_are_nested_balanced_and_depend_on_seed_and_id_alone() -> None:
    items = listing({"a": 40, "b": 10, "c": 3, "d": 1})
    kept = {share: [item.item_id for item in keep_share(items, share, 7)] for share in (0.01, 0.1, 0.25, 0.5, 1.0)}
    shares = list(kept.values())
    for smaller, larger in itertools.pairwise(shares):
        assert set(smaller) <= set(larger)
    for share, ids in kept.items():
        counts = Counter(item_id[0] for item_id in ids)
        assert counts == {name: max(1, int(share * n + 0.5)) for name, n in zip("abcd", (40, 10, 3, 1), strict=True)}
    shuffled = [items[place] for place in np.random.default_rng(0).permutation(len(items))]
    assert {item.item_id for item in keep_share(shuffled, 0.25, 7)} == set(kept[0.25])
    others = [{item.item_id for item in keep_share(items, 0.25, seed)} for seed in range(8, 12)]
    assert all(other != set(kept[0.25]) for other in others)
    # a new identity changes nothing for the old ones
    more = keep_share([*items, *listing({"e": 9})], 0.25, 7)
    assert [item.item_id for item in more if item.label != "e"] == kept[0.25]


def test_every_image_is_as_likely_to_be_kept() -> None:
    items = listing({"a": 8})
    counts = Counter(item.item_id for seed in range(800) for item in keep_share(items, 0.25, seed))
    expected, spread = 200.0, (800 * 0.25 * 0.75) ** 0.5
    assert len(counts) == 8
    assert max(abs(count - expected) for count in counts.values()) < 4 * spread


def test_a_share_of_a_set_and_impossible_shares(tmp_path: Path) -> None:
    for seed in range(10):
        put(tmp_path / f"{'ab'[seed % 2]}/{seed}.png", png(seed))
    half, same, other = (image_set(tmp_path, keep_fraction=0.4, seed=seed) for seed in (1, 1, 2))
    assert len(half) == 4
    assert (half.digest == same.digest, half.digest == other.digest) == (True, False)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"keep_fraction is .*, expected above 0 and at most 1"):
            image_set(tmp_path, keep_fraction=share)


def test_evaluation_identities_that_were_trained_on_are_refused(tmp_path: Path) -> None:
    for seed in range(12):
        put(tmp_path / f"train/person{seed:02d}/1.png", png(seed))
        put(tmp_path / f"other/stranger{seed:02d}/1.png", png(seed))
        put(tmp_path / f"mixed/{'person' if seed < 7 else 'stranger'}{seed:02d}/1.png", png(seed))
    train, other, mixed = (image_set(tmp_path / name) for name in ("train", "other", "mixed"))
    require_disjoint(train, other)
    with pytest.raises(ValueError, match="identities to evaluate on") as error:
        require_disjoint(train, mixed)
    assert str(error.value).startswith(
        "7 of the 12 identities to evaluate on are in the training set: person00, person01, person02, person03, "
        "person04 and 2 more; remove them"
    )


def test_the_digest_does_not_depend_on_what_is_kept(tmp_path: Path) -> None:
    for seed, name in enumerate(("a/1.png", "a/2.png", "b/1.png")):
        put(tmp_path / name, png(seed))
    kept, decoded = (image_set(tmp_path, memory=memory) for memory in (1, 0))
    assert (kept.pixels is None, decoded.pixels is None) == (False, True)
    assert kept.digest == decoded.digest == image_set(tmp_path, memory=0, workers=1).digest
    changed = pixels(1)
    changed[3, 4, 2] ^= 1  # one bit of one pixel; the names and numbers stay
    Image.fromarray(changed).save(tmp_path / "a/2.png")
    new = [image_set(tmp_path, memory=memory).digest for memory in (1, 0)]
    assert new[0] == new[1] != kept.digest


def test_images_without_identities_are_taken_where_none_are_needed(tmp_path: Path) -> None:
    for seed in range(3):
        put(tmp_path / f"flat/{seed}.png", png(seed))
    same = [True]
    put(tmp_path / "lfw.bin", pickle.dumps(([png(0), png(1)], same)))
    put(tmp_path / "pairs.txt", b"0.png 2.png 1\n")
    for name, root, seeds in (("flat", None, (0, 1, 2)), ("lfw.bin", None, (0, 1)), ("pairs.txt", "flat", (0, 2))):
        given = {"root": None if root is None else tmp_path / root}
        with pytest.raises(ValueError, match=rf"{name} tells no identities, .* expected a folder per identity"):
            image_set(tmp_path / name, **given)
        images = image_set(tmp_path / name, labels_needed=False, **given)
        assert (images.identities, images.labels.tolist()) == ([], [0] * len(seeds))
        ((_, shown),) = images.batches([torch.arange(len(seeds))])
        np.testing.assert_array_equal(shown.permute(0, 2, 3, 1), [pixels(seed) for seed in seeds])
    put(tmp_path / "named/anna/1.png", png(1))  # identities that are told are kept
    assert image_set(tmp_path / "named", labels_needed=False).identities == ["anna"]


def test_a_list_may_lie_apart_from_its_images(tmp_path: Path) -> None:
    put(tmp_path / "images/a/1.png", png(1))
    listed = put(tmp_path / "lists/train.txt", b"a/1.png anna\n")
    assert len(image_set(listed, root=tmp_path / "images")) == 1
    with pytest.raises(ValueError, match="cannot read image"):
        image_set(listed)


def test_the_digest_tells_identities_apart(tmp_path: Path) -> None:
    put(tmp_path / "1.png", png(1))
    digests = set()
    for label in ("anna", "bob"):
        digests.add(image_set(put(tmp_path / "list.txt", f"1.png {label}\n".encode())).digest)
    assert len(digests) == 2
