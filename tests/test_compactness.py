"""Drawing an identity's mapped embeddings together: centres, loss, and what it does to a gallery of means."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import plant, write_store

from compat.pairs import Pairs, Source, join_pairs, merge_pairs
from compat.training.compactness import compactness_loss, identity_centres
from stores.store import EmbeddingStore


def slow_centres(vectors, labels, weights=None):
    """The weighted mean of each row's identity, one identity at a time."""
    weights = np.ones(len(vectors)) if weights is None else weights
    found = np.zeros(vectors.shape)
    for label in set(labels.tolist()):
        mine = labels == label
        found[mine] = (vectors[mine].astype(np.float64) * weights[mine, None]).sum(0) / weights[mine].sum()
    return found


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_centres_are_the_means_of_the_targets_of_an_identity(direction):
    world = plant(identities=7, samples=5, old_dim=6, new_dim=9)
    mixed = np.random.default_rng(3).permutation(len(world.labels))
    labels = 10 * world.labels[mixed] - 5  # codes with gaps, one below zero
    pairs = Pairs.from_arrays(world.old[mixed], world.new[mixed], labels)
    target = pairs.old if direction == "new-to-old" else pairs.new
    centres = identity_centres(pairs, direction)
    assert centres.centres.shape == (7, target.space.dim)
    assert centres.centres.dtype == np.float32
    everyone = centres.take(np.arange(len(pairs)))
    np.testing.assert_allclose(everyone, slow_centres(target.rows(0, len(pairs)), labels), rtol=1e-5, atol=1e-6)
    asked = np.array([3, 3, 20, 0])
    np.testing.assert_array_equal(centres.take(asked), everyone[asked])
    centres.take(asked)[:] = 0
    assert centres.take(asked).any()


def test_centres_of_many_blocks_lose_nothing_to_float32():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 20_000)  # three blocks of pairs
    old = (1000 + generator.normal(size=(20_000, 2))).astype(np.float32)
    centres = identity_centres(Pairs.from_arrays(old, old, labels), "new-to-old")
    for label in range(3):
        exact = old[labels == label].astype(np.float64).mean(0)
        np.testing.assert_allclose(centres.take(np.flatnonzero(labels == label)[:1])[0], exact, rtol=1e-7)


def test_weighted_pairs_have_weighted_centres():
    world = plant(identities=6, samples=4)
    weights = np.random.default_rng(1).uniform(0.1, 3, len(world.labels))
    weights[world.labels == 5] = 0.0
    pairs = replace(Pairs.from_arrays(world.old, world.new, world.labels), weights=weights)
    found = identity_centres(pairs, "new-to-old").take(np.arange(len(pairs)))
    counted = world.labels != 5
    expected = slow_centres(world.old[counted], world.labels[counted], weights[counted])
    np.testing.assert_allclose(found[counted], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[~counted], 0)


def test_centres_are_those_of_pairs_as_they_are_selected_and_merged():
    world = plant(identities=5, samples=6)
    whole = Pairs.from_arrays(world.old, world.new, world.labels)
    kept = np.flatnonzero(np.arange(len(whole)) % 3 != 0)
    found = identity_centres(whole.select(kept), "old-to-new").take(np.arange(len(kept)))
    np.testing.assert_allclose(found, slow_centres(world.new[kept], world.labels[kept]), rtol=1e-5, atol=1e-6)
    merged = merge_pairs([Source(whole.select(kept), 2.0), Source(whole.select(np.arange(0, 30, 3)), 0.5)])
    order = np.concatenate([kept, np.arange(0, 30, 3)])
    weights = np.repeat([2.0, 0.5], [20, 10])
    found = identity_centres(merged, "old-to-new").take(np.arange(30))
    expected = slow_centres(world.new[order], world.labels[order], weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_item_of_a_store_without_a_label_is_its_own_centre(tmp_path):
    world = plant(identities=4, samples=3)
    labels = ["a", "a", "a", "b", "b", "b", None, None, None, "c", "c", None]
    write_store(tmp_path / "old", world.old, labels=labels)
    write_store(tmp_path / "new", world.new, name="new")
    pairs = join_pairs(EmbeddingStore.open(tmp_path / "old"), EmbeddingStore.open(tmp_path / "new"))
    assert pairs.item_ids is not None
    rows = np.array([int(item[1:]) for item in pairs.item_ids.to_list()])
    codes = np.array([0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 5, 6])
    found = identity_centres(pairs, "new-to-old").take(np.arange(12))
    np.testing.assert_allclose(found, slow_centres(world.old[rows], codes[rows]), rtol=1e-5, atol=1e-6)


def test_pairs_without_labels_have_no_centres():
    world = plant()
    with pytest.raises(ValueError, match=r"the pairs have no labels.*give the stores a column label, or set loss"):
        identity_centres(Pairs.from_arrays(world.old, world.new), "new-to-old")


def test_labels_that_never_repeat_have_no_centres_of_their_own():
    world = plant(identities=6, samples=4)
    for labels in (np.arange(24), np.arange(24) * 3 - 5):
        with pytest.raises(ValueError, match=r"all 24 pairs differ in label, .* give labels that repeat"):
            identity_centres(Pairs.from_arrays(world.old, world.new, labels), "new-to-old")
    labels = np.arange(24)
    labels[7] = 3  # one identity of two is enough
    found = identity_centres(Pairs.from_arrays(world.old, world.new, labels), "new-to-old")
    np.testing.assert_allclose(found.take(np.array([3]))[0], (world.old[3] + world.old[7]) / 2, rtol=1e-5, atol=1e-6)


def test_the_loss_is_one_less_the_mean_cosine_to_the_centre():
    generator = np.random.default_rng(0)
    predicted, centres = generator.normal(size=(2, 9, 5)).astype(np.float32)
    weights = generator.uniform(size=9).astype(np.float32)
    cosines = np.array([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(predicted, centres, strict=True)])
    tensors = torch.from_numpy(predicted), torch.from_numpy(centres)
    assert float(compactness_loss(*tensors)) == pytest.approx(1 - cosines.mean(), rel=1e-5)
    found = float(compactness_loss(*tensors, torch.from_numpy(weights)))
    assert found == pytest.approx(1 - (weights * cosines).sum() / weights.sum(), rel=1e-5)
    assert float(compactness_loss(tensors[0], 3 * tensors[0])) == pytest.approx(0, abs=1e-6)
    assert float(compactness_loss(tensors[0], -tensors[0])) == pytest.approx(2, rel=1e-6)


def test_a_centre_of_zeros_pulls_nothing():
    predicted = torch.randn(3, 4, requires_grad=True)
    compactness_loss(predicted, torch.zeros(3, 4)).backward()
    assert predicted.grad is not None
    assert float(predicted.grad.abs().max()) == 0


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"found \[3, 4\] and \[2, 4\]; take the centres by the batch's pair numbers"):
        compactness_loss(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"pair_weights must be \[3\], one for each pair, found \[2\]"):
        compactness_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(2))


def test_the_term_draws_an_identity_together_and_does_not_collapse():
    """A network that may map freely comes to its identity's centre, wherever it starts."""
    world = plant(identities=12, samples=8, noise=0.5, seed=2)
    pairs = Pairs.from_arrays(world.old, world.new, world.labels)
    centres = torch.from_numpy(identity_centres(pairs, "new-to-old").take(np.arange(len(pairs))))
    mapped = torch.from_numpy(world.old.copy()).requires_grad_(True)
    optimizer = torch.optim.Adam([mapped], lr=0.05)

    def spread() -> tuple[float, float]:
        """Mean cosine within identities and between them."""
        unit = torch.nn.functional.normalize(mapped.detach(), dim=1)
        cosines, same = (unit @ unit.T).numpy(), world.labels[:, None] == world.labels
        return float(cosines[same].mean()), float(cosines[~same].mean())

    within, between = spread()
    for _ in range(150):
        optimizer.zero_grad()
        compactness_loss(mapped, centres).backward()
        optimizer.step()
    assert within < 0.9
    assert spread()[0] > 0.99
    assert spread()[1] < between + 0.1
