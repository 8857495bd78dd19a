"""A transformer on disk: what is loaded is what was saved, or nothing."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compat.options import Direction
from compat.transformers import TRANSFORMERS
from compat.transformers.artefact import Transformer, WrongSpace, load_transformer
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
    body = unseal(folder / "card.json", version=1)
    (folder / "card.json").write_bytes(seal(body | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "unified"}, "unknown transformer 'unified'; choose one of identity"),
        ({"family": "msresnet"}, "cannot be read"),
        ({"direction": "sideways"}, "direction 'sideways', expected one of new-to-old, old-to-new"),
        ({"direction": "old-to-new"}, "does not match its digest"),
        ({"family": "procrustes"}, "does not match its digest"),
        ({"target": {**OLD.to_dict(), "name": "other"}}, "does not match its digest"),
        ({"target": {**OLD.to_dict(), "dim": 7}}, "size mismatch"),
        ({"source": {**NEW.to_dict(), "dim": 10**9}, "target": {**OLD.to_dict(), "dim": 10**9}}, "cannot be read"),
        ({"source": 3}, "cannot be read"),
        ({"training": None, "digest": None}, "does not match its digest"),
        ({"format_version": 2}, "has format version 2, this version reads 1"),
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
        *("format_version", "family", "direction", "source", "target", "digest", "training", "sha256")
    }
