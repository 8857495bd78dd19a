"""A transformer on disk: what is loaded is what was saved, or nothing."""

import json
import random
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compat.neighbors import unit_rows
from compat.options import Direction
from compat.pairs import Pairs
from compat.training.familiarity import fit_familiarity
from compat.transformers import TRANSFORMERS
from compat.transformers.artefact import FAMILIARITY, HUBNESS, Transformer, WrongSpace, load_transformer
from compat.transformers.hubness import HubnessCorrection, item_hashes
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace

NEW, OLD = EmbeddingSpace("large", "b" * 64, 9, False), EmbeddingSpace("small", None, 6, True)
TRAINING = {"options": {"seed": 3, "learning_rate": 1e-3}, "pairs": 7, "held_out": None, "notes": ["few pairs"]}
FILES = ("card.json", "model.safetensors")


def make(family="ridge", direction: Direction = "new-to-old", source=NEW, target=OLD):
    torch.manual_seed(0)
    network = TRANSFORMERS[family](source.dim, target.dim)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))  # running statistics too
    return Transformer(family, direction, source, target, network, TRAINING)


def make_corrected(direction: Direction = "new-to-old", *, strength=0.5, seed=0, galleries=None, ids=True):
    transformer = make(direction=direction) if direction == "new-to-old" else make("ridge", direction, OLD, NEW)
    generator = np.random.default_rng(seed)

    def bank(dim):
        return unit_rows(generator.normal(size=(25, dim))).astype(np.float16).astype(np.float32)

    hashes = item_hashes(range(25)) if ids else np.empty(0, np.uint64)
    banks = bank(transformer.target.dim), bank(OLD.dim)
    return replace(transformer, correction=HubnessCorrection(strength, *banks, hashes, galleries=galleries or {}))


def make_familiar(seed=0):
    generator = np.random.default_rng(seed)
    new = generator.normal(size=(800, 9))
    new[:, 0] = generator.uniform(0, 4, 800)  # how much the old model's vector is disturbed
    old = new[:, :6] + np.exp(new[:, :1] - 3) * generator.normal(size=(800, 6))
    familiarity = fit_familiarity(Pairs.from_arrays(old, new), "new-to-old")
    assert familiarity is not None
    return replace(make(), familiarity=familiarity)


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_every_family_comes_back_as_it_was(tmp_path, vectors, family, direction):
    saved = make(family, direction)
    saved.save(tmp_path / "t")
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted(FILES)
    loaded = load_transformer(tmp_path / "t")
    assert (loaded.family, loaded.direction, loaded.training) == (family, direction, TRAINING)
    assert (loaded.source.to_dict(), loaded.target.to_dict()) == (NEW.to_dict(), OLD.to_dict())
    assert loaded.digest() == saved.digest()
    np.testing.assert_array_equal(loaded.transform(vectors), saved.transform(vectors))
    loaded.save(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "t" / name).read_bytes()


def test_blocks_types_and_read_only_arrays_change_nothing(monkeypatch, vectors):
    transformer = make("mlp")
    whole = transformer.transform(vectors)
    assert (whole.dtype, whole.shape) == (np.float32, (40, 6))
    monkeypatch.setattr("compat.transformers.artefact.APPLY_ROWS", 7)
    vectors.flags.writeable = False
    np.testing.assert_allclose(transformer.transform(vectors), whole, atol=1e-5)
    np.testing.assert_allclose(transformer.transform(vectors.astype(np.float64)), whole, atol=1e-5)
    np.testing.assert_allclose(transformer.transform(vectors[::-1, ::-1][:, ::-1]), whole[::-1], atol=1e-5)
    assert transformer.transform(vectors[:0]).shape == (0, 6)


def test_60_flipped_bits_are_all_noticed(tmp_path):
    make("mlp").save(tmp_path / "whole")
    choices = random.Random(0)
    kept, messages = [], []
    for _ in range(60):
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "whole", folder)
        name = choices.choice(FILES)
        content = bytearray((folder / name).read_bytes())
        place, bit = choices.randrange(len(content)), choices.randrange(8)
        content[place] ^= 1 << bit
        (folder / name).write_bytes(content)
        try:
            loaded = load_transformer(folder)
        except ValueError as error:
            messages.append(str(error))
        else:  # white space of the JSON between values is all that may change
            assert (loaded.training, loaded.digest()) == (TRAINING, make("mlp").digest())
            kept.append((name, chr((tmp_path / "whole" / name).read_bytes()[place])))
        shutil.rmtree(folder)
    assert all("\n" not in message and re.search("restore|train", message) for message in messages), messages
    assert len(kept) <= 6
    assert all(name == "card.json" and character.isspace() for name, character in kept), kept


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_file_cut_short_is_noticed(tmp_path, name, share):
    make("mlp").save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cannot be read|does not match"):
        load_transformer(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    make().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no transformer at .*: {name} is missing; run compat.train_transf"):
        load_transformer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"card\.json is missing"):
        load_transformer(tmp_path / "nowhere")


def edit(folder, **changes):
    body = unseal(folder / "card.json", version=2)
    (folder / "card.json").write_bytes(seal(body | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "oracle"}, "unknown transformer 'oracle'; choose one of identity"),
        ({"family": "msresnet"}, "cannot be read"),
        ({"direction": "sideways"}, "direction 'sideways', expected one of new-to-old, old-to-new"),
        ({"direction": "old-to-new"}, "does not match its digest"),
        ({"family": "procrustes"}, "does not match its digest"),
        ({"target": {**OLD.to_dict(), "name": "other"}}, "does not match its digest"),
        ({"target": {**OLD.to_dict(), "dim": 7}}, "size mismatch"),
        ({"source": {**NEW.to_dict(), "dim": 10**9}, "target": {**OLD.to_dict(), "dim": 10**9}}, "cannot be read"),
        ({"source": 3}, "cannot be read"),
        ({"training": None, "digest": None}, "does not match its digest"),
        ({"format_version": 3}, "has format version 3, this version reads 1 to 2"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path, changes, message):
    make().save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_transformer(tmp_path)


def test_weights_of_another_transformer_are_refused(tmp_path):
    make().save(tmp_path / "a")
    other = make()
    other.network.state_dict()["affine.bias"].add_(1)
    other.save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a")
    with pytest.raises(ValueError, match="does not match its digest"):
        load_transformer(tmp_path / "a")
    save_file(load_file(tmp_path / "b" / "model.safetensors"), tmp_path / "b" / "model.safetensors")
    with pytest.raises(ValueError, match="carries no digest"):
        load_transformer(tmp_path / "b")


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
@pytest.mark.parametrize("ids", [True, False])
def test_a_correction_comes_back_as_it_was(tmp_path, vectors, direction, ids):
    galleries = {"f00d": np.linspace(-1, 0, 40, dtype=np.float32)}
    saved = make_corrected(direction, galleries=galleries, ids=ids)
    saved.save(tmp_path / "t")
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted([*FILES, HUBNESS])
    loaded = load_transformer(tmp_path / "t")
    assert loaded.correction is not None
    assert (loaded.digest(), loaded.served_space) == (saved.digest(), saved.served_space)
    assert loaded.served_space.dim == loaded.target.dim + 1
    assert loaded.served_space.similarity == "inner_product"
    np.testing.assert_array_equal(loaded.serve_queries(vectors), saved.serve_queries(vectors))
    old = np.random.default_rng(1).normal(size=(40, 6)) * 5
    np.testing.assert_array_equal(loaded.serve_gallery(old, range(40)), saved.serve_gallery(old, range(40)))
    same = np.array_equal(loaded.serve_gallery(old, range(40)), loaded.serve_gallery(old))
    assert same == (not ids)
    known = loaded.known_offsets("f00d", 40)
    np.testing.assert_array_equal(loaded.serve_gallery(old, offsets=known)[:, -1], galleries["f00d"])
    assert loaded.known_offsets("beef", 40) is None
    loaded.save(tmp_path / "again")
    for name in (*FILES, HUBNESS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "t" / name).read_bytes()
    saved.without_correction().save(tmp_path / "t")  # an old correction does not outlive its transformer
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted(FILES)
    assert load_transformer(tmp_path / "t").correction is None


def test_the_digest_covers_the_correction(vectors):
    given = [
        make_corrected(),
        make_corrected(strength=0.4),
        make_corrected(seed=1),
        make_corrected(ids=False),
        make_corrected(galleries={"f00d": np.zeros(3, np.float32)}),
        make_corrected().without_correction(),
        make(),
    ]
    assert len({t.digest() for t in given}) == 5  # offsets of a gallery follow from the bank
    assert given[-1].digest() == given[-2].digest() == make_corrected(seed=1).without_correction().digest()
    assert len({t.served_space for t in given}) == 5
    assert given[-1].served_space == OLD
    np.testing.assert_array_equal(given[-1].serve_queries(vectors), given[-1].transform(vectors))


def test_a_damaged_correction_is_refused(tmp_path):
    make_corrected().save(tmp_path / "a")
    whole = (tmp_path / "a" / HUBNESS).read_bytes()
    choices = random.Random(0)
    for _ in range(30):
        content = bytearray(whole)
        content[choices.randrange(len(content))] ^= 1 << choices.randrange(8)
        (tmp_path / "a" / HUBNESS).write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read|does not match") as raised:
            load_transformer(tmp_path / "a")
        assert "\n" not in str(raised.value)
    (tmp_path / "a" / HUBNESS).write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="cannot be read"):
        load_transformer(tmp_path / "a")
    make_corrected(seed=1).save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / HUBNESS, tmp_path / "a")
    with pytest.raises(ValueError, match="does not match its digest"):
        load_transformer(tmp_path / "a")
    (tmp_path / "a" / HUBNESS).unlink()
    with pytest.raises(ValueError, match=r"cannot be read: .*hubness\.safetensors"):
        load_transformer(tmp_path / "a")
    (tmp_path / "b" / HUBNESS).write_bytes(whole)
    edit(tmp_path / "b", correction={"strength": 0.9, "neighbours": 10, "bank": 25})
    with pytest.raises(ValueError, match="does not match its digest"):
        load_transformer(tmp_path / "b")
    for broken in ({"strength": 0.5}, {"strength": "much", "neighbours": 10, "bank": 25}, 7):
        edit(tmp_path / "b", correction=broken)
        with pytest.raises(ValueError, match="cannot be read"):
            load_transformer(tmp_path / "b")


def test_a_correction_of_other_dimensions_or_the_wrong_way_is_refused(vectors):
    forth, back = make_corrected(), make_corrected("old-to-new")
    for mine, other in ((forth, back), (back, forth)):
        with pytest.raises(ValueError, match=r"holds vectors of \d and 6 .* belongs to another transformer"):
            replace(mine, correction=other.correction)
        with pytest.raises(WrongSpace, match=f"direction is {mine.direction} .*expected {other.direction}"):
            mine.require(other.direction, other.source, other.target)
    for transformer in (forth, back):  # queries are the new model's and the gallery the old one's, either way
        assert (transformer.query_space, transformer.gallery_space) == (NEW, OLD)
        assert transformer.serve_queries(vectors).shape == (40, transformer.target.dim + 1)
        assert transformer.serve_gallery(vectors[:, :6]).shape == (40, transformer.target.dim + 1)
        with pytest.raises(ValueError, match=r"expected \[n, 9\]"):
            transformer.serve_queries(vectors[:, :6])
        with pytest.raises(ValueError, match=r"expected \[n, 6\]"):
            transformer.serve_gallery(vectors)


def test_familiarity_comes_back_and_a_card_without_it_still_loads(tmp_path, vectors):
    saved = make_familiar()
    saved.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, FAMILIARITY])
    loaded = load_transformer(tmp_path)
    assert loaded.digest() == saved.digest() == make().digest()  # it changes no vector
    np.testing.assert_array_equal(loaded.strangeness(vectors), saved.strangeness(vectors))
    body = unseal(tmp_path / "card.json", version=2)
    assert body["familiarity"]["score"] == "predicted failure"
    del body["familiarity"]  # as an earlier release wrote it
    (tmp_path / "card.json").write_bytes(seal(body))
    earlier = load_transformer(tmp_path)
    assert earlier.familiarity is None
    with pytest.raises(ValueError, match=r"does not know which queries are strange to it: .* fit it again"):
        earlier.strangeness(vectors)
    make().save(tmp_path)  # an old familiarity does not outlive its transformer
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_damaged_or_foreign_familiarity_is_refused(tmp_path):
    make_familiar().save(tmp_path / "a")
    make_familiar(seed=1).save(tmp_path / "b")
    whole = (tmp_path / "a" / FAMILIARITY).read_bytes()
    choices = random.Random(0)
    for _ in range(30):
        content = bytearray(whole)
        content[choices.randrange(len(content))] ^= 1 << choices.randrange(8)
        (tmp_path / "a" / FAMILIARITY).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read") as raised:
            load_transformer(tmp_path / "a")
        assert "\n" not in str(raised.value)
    (tmp_path / "b" / FAMILIARITY).write_bytes(whole)
    with pytest.raises(ValueError, match="belongs to another transformer"):
        load_transformer(tmp_path / "b")
    (tmp_path / "b" / FAMILIARITY).unlink()
    with pytest.raises(ValueError, match=r"cannot be read: .*familiarity\.safetensors"):
        load_transformer(tmp_path / "b")
    with pytest.raises(ValueError, match="familiarity is of 9 dimensions, expected 8"):
        replace(make(source=EmbeddingSpace("large", None, 8, False)), familiarity=make_familiar().familiarity)


def test_saving_again_replaces_and_dying_in_between_leaves_no_mixture(tmp_path, monkeypatch):
    make().save(tmp_path)
    make("mlp").save(tmp_path)
    assert load_transformer(tmp_path).family == "mlp"

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("compat.transformers.artefact.write_atomically", die)
    with pytest.raises(KeyboardInterrupt):
        make("procrustes").save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"card\.json is missing"):
        load_transformer(tmp_path)


def test_the_digest_covers_weights_spaces_and_direction_but_not_the_training():
    same = make()
    assert make().digest() == same.digest()
    other = make()
    other.network.state_dict()["affine.weight"][0, 0] += 1e-4
    turned = make("ridge", "old-to-new")
    renamed = make(target=EmbeddingSpace("tiny", None, 6, True))
    assert len({t.digest() for t in (same, other, turned, renamed, make("procrustes"))}) == 5
    assert Transformer("ridge", "new-to-old", NEW, OLD, same.network).digest() == same.digest()


def test_the_wrong_direction_space_and_dimension_are_refused(vectors):
    transformer = make()
    transformer.require("new-to-old", NEW, OLD)
    transformer.require("new-to-old", NEW)
    with pytest.raises(WrongSpace, match=r"direction is new-to-old \(it maps queries .*expected old-to-new; train one"):
        transformer.require("old-to-new", OLD, NEW)
    with pytest.raises(WrongSpace, match=r"direction is old-to-new \(it maps the gallery\), expected new-to-old"):
        make("ridge", "old-to-new").require("new-to-old", NEW, OLD)
    with pytest.raises(
        WrongSpace, match=r"the transformer's source is large bbbbbbbb \(9-D\), .* in small \(6-D, norm"
    ):
        transformer.require("new-to-old", OLD)
    with pytest.raises(WrongSpace, match=r"the transformer's target is small"):
        transformer.require("new-to-old", NEW, EmbeddingSpace("small", None, 6, False))
    for wrong in (vectors[:, :8], vectors[0]):
        with pytest.raises(ValueError, match=r"expected \[n, 9\]: this transformer maps large"):
            transformer.transform(wrong)


def test_the_card_is_plain_json_for_people(tmp_path):
    make().save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card.keys() == {
        *("format_version", "family", "direction", "source", "target", "digest", "training", "correction"),
        *("familiarity", "sha256", "width"),
    }


@pytest.mark.parametrize("make_one", [make_corrected, make_familiar])
def test_printing_a_transformer_shows_no_embedding(make_one):
    printed = repr(make_one())
    assert "ridge" in printed
    assert "array" not in printed
    assert len(printed) < 2000
