"""Which spaces are equal, and what a space refuses."""

import numpy as np
import pytest

from stores.space import EmbeddingSpace, is_normalized


def space(name="resnet", fingerprint=None, dim=4, normalized=False):
    return EmbeddingSpace(name, fingerprint, dim, normalized)


def test_without_fingerprints_spaces_are_equal_by_name_dim_and_normalized():
    assert space() == space()
    assert hash(space()) == hash(space())
    assert space() != space(name="other")
    assert space() != space(dim=5)
    assert space() != space(normalized=True)


def test_a_fingerprint_settles_the_question_whatever_the_name():
    assert space("a", "f00d") == space("b", "f00d")
    assert hash(space("a", "f00d")) == hash(space("b", "f00d"))
    assert space("a", "f00d") != space("a", "beef")
    assert space("a", "f00d") != space("a", "f00d", dim=5)


def test_a_space_of_known_origin_is_not_one_of_unknown_origin():
    assert space("a", "f00d") != space("a")
    assert space("f00d") != space("a", "f00d")
    assert space() != "resnet"


def test_spaces_compared_in_different_ways_are_different():
    by_product = EmbeddingSpace("resnet", None, 4, False, "inner_product")
    assert by_product != space()
    assert by_product == EmbeddingSpace("resnet", None, 4, False, similarity="inner_product")
    assert EmbeddingSpace("a", "f00d", 4, False, "inner_product") != space("b", "f00d")
    assert str(by_product) == "resnet (4-D, by inner product)"
    assert (space().similarity, str(space())) == ("cosine", "resnet (4-D)")


def test_survives_json():
    assert "similarity" not in space().to_dict()
    assert EmbeddingSpace.from_dict(space().to_dict() | {"similarity": "cosine"}) == space()
    for one in (space(), space("a", "f00d", 512, True), EmbeddingSpace("a", None, 4, False, "inner_product")):
        again = EmbeddingSpace.from_dict(one.to_dict())
        assert again == one
        assert again.to_dict() == one.to_dict()
        assert again.similarity == one.similarity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"dim": 0}, "dim >= 1, found 0"),
        ({"dim": "4"}, "'dim'"),
        ({"normalized": None}, "'normalized'"),
        ({"colour": "red"}, "colour"),
        ({"similarity": "L2"}, "compared by cosine or inner_product, found 'L2'"),
        ({"similarity": ["cosine"]}, "compared by cosine or inner_product"),
    ],
)
def test_refuses_what_is_no_space(change, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingSpace.from_dict(space().to_dict() | change)


def test_normalized_means_every_norm_within_a_thousandth_of_one():
    unit = np.eye(3, dtype=np.float32)
    assert is_normalized(unit)
    assert is_normalized(unit * np.float32(1.0009))
    assert not is_normalized(unit * np.array([[1], [1], [1.002]], np.float32))
    assert is_normalized(np.empty((0, 3), np.float32))
