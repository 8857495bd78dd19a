"""Closed forms against planted maps, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from compat.transformers.linear import IdentityMap, LinearMap, Moments, RidgePath, fit_procrustes, total


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rotation(dim, generator):
    return np.linalg.qr(generator.normal(size=(dim, dim)))[0]


def moments_of(source, target, blocks=1):
    moments = Moments.zero(source.shape[1], target.shape[1])
    for x, y in zip(np.array_split(source, blocks), np.array_split(target, blocks), strict=True):
        moments.add(x.astype(np.float32), y.astype(np.float32))
    return moments


def mapped(linear, vectors):
    return linear(torch.tensor(vectors, dtype=torch.float32)).numpy()


def weight_of(linear):
    return linear.affine.weight.numpy().T.astype(float)


def exact_moments(source, target):
    """Moments of vectors as they are, not scaled to unit length."""
    return Moments(len(source), source.sum(axis=0), target.sum(axis=0), source.T @ source, source.T @ target)


@pytest.mark.parametrize("dim", [2, 7, 16])
def test_procrustes_recovers_a_planted_rotation_scale_and_shift(dim):
    generator = np.random.default_rng(dim)
    x = unit(generator.normal(size=(200, dim)))
    turn, shift = rotation(dim, generator), generator.normal(size=dim)
    linear = fit_procrustes(exact_moments(x, 0.3 * x @ turn + shift))
    np.testing.assert_allclose(weight_of(linear), 0.3 * turn, atol=1e-6)
    np.testing.assert_allclose(linear.affine.bias.numpy(), shift, atol=1e-6)


def test_a_turned_space_is_turned_back_whatever_the_lengths():
    generator = np.random.default_rng(0)
    x, turn = generator.normal(size=(300, 12)), rotation(12, generator)
    y = (x @ turn) * generator.uniform(5, 50, size=(300, 1))
    found = unit(mapped(fit_procrustes(moments_of(x, y)), x))
    assert (found * unit(y)).sum(axis=1).min() > 0.999999


def test_procrustes_is_that_of_scipy_on_centred_data():
    generator = np.random.default_rng(1)
    x = unit(generator.normal(size=(150, 9)) + 0.5)
    y = unit(x @ rotation(9, generator) + 0.3 * generator.normal(size=(150, 9)))
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    turn, summed = orthogonal_procrustes(centred_x, centred_y)
    linear = fit_procrustes(moments_of(x, y))
    np.testing.assert_allclose(weight_of(linear), summed / (centred_x**2).sum() * turn, atol=1e-5)
    np.testing.assert_allclose(mapped(linear, x).mean(axis=0), y.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(12, 5), (5, 12), (6, 6)])
def test_procrustes_between_unequal_dimensions_has_orthonormal_rows_or_columns(source, target):
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(80, source)), generator.normal(size=(80, target))
    y[:, : min(source, target)] += x[:, : min(source, target)]
    weight = weight_of(fit_procrustes(moments_of(x, y)))
    assert weight.shape == (source, target)
    product = weight.T @ weight if source >= target else weight @ weight.T
    np.testing.assert_allclose(product, product[0, 0] * np.eye(min(source, target)), atol=1e-6)
    # No other scale of this rotation comes nearer.
    centred_x, centred_y = (unit(side) - unit(side).mean(axis=0) for side in (x, y))
    errors = [((centred_x @ (factor * weight) - centred_y) ** 2).sum() for factor in (0.99, 1, 1.01)]
    assert errors[1] == min(errors)


@pytest.mark.parametrize(("source", "target"), [(10, 10), (13, 4), (4, 13)])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_ridge_is_that_of_scikit_learn_with_the_same_penalty(source, target, strength):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(120, source)) + 0.4
    y = x @ generator.normal(size=(source, target)) + generator.normal(size=(120, target))
    linear = RidgePath.of(moments_of(x, y, blocks=3)).solve(strength)
    penalty = strength * unit(x).var(axis=0).mean() * len(x)
    expected = Ridge(alpha=penalty).fit(unit(x), unit(y))
    np.testing.assert_allclose(weight_of(linear), expected.coef_.T, atol=2e-4)
    np.testing.assert_allclose(mapped(linear, x), expected.predict(unit(x)), atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 60), blocks=st.integers(1, 9))
def test_moments_stream_and_add_up_to_those_of_one_pass(seed, rows, blocks):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(rows, 6)) * 30, generator.normal(size=(rows, 4))
    expected = exact_moments(unit(x), unit(y))
    parts = [moments_of(a, b) for a, b in zip(np.array_split(x, blocks), np.array_split(y, blocks), strict=True)]
    for found in (moments_of(x, y, blocks), total(parts)):
        assert found.count == rows
        for name in ("x_sum", "y_sum", "xx", "xy"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
            assert getattr(found, name).dtype == np.float64


def degenerate():
    generator = np.random.default_rng(4)
    one = generator.normal(size=(1, 8))
    few = generator.normal(size=(3, 8))
    return {
        "one pair": (one, generator.normal(size=(1, 5))),
        "fewer pairs than dimensions": (few, generator.normal(size=(3, 5))),
        "duplicates": (np.tile(few, (20, 1)), np.tile(generator.normal(size=(3, 5)), (20, 1))),
        "constant source": (np.tile(one, (1000, 1)), generator.normal(size=(1000, 5))),
        "constant target": (generator.normal(size=(1000, 8)), np.tile(generator.normal(size=(1, 5)), (1000, 1))),
        "zero rows": (np.zeros((4, 8)), np.zeros((4, 5))),
    }


@pytest.mark.parametrize("case", degenerate())
@pytest.mark.parametrize("fit", [fit_procrustes, lambda moments: RidgePath.of(moments).solve(1e-3)])
def test_poor_data_give_a_tame_map(case, fit):
    source, target = degenerate()[case]
    linear = fit(moments_of(source, target))
    anything = mapped(linear, np.random.default_rng(5).normal(size=(50, 8)) * 100)
    assert np.isfinite(anything).all()
    assert np.abs(anything).max() < 20  # both sides are unit vectors
    if not case.startswith("fewer"):
        aim = unit(target) if case == "one pair" else target / np.maximum(np.linalg.norm(target, axis=1), 1e-9)[:, None]
        found = mapped(linear, source)
        if case == "duplicates":
            np.testing.assert_allclose((unit(found) * aim).sum(axis=1).min(), 1, atol=0.3)
        else:
            np.testing.assert_allclose(found, np.broadcast_to(aim.mean(axis=0), found.shape), atol=1e-4)


def test_where_only_the_mean_is_known_ridge_maps_everything_to_it():
    for case in ("one pair", "constant source"):
        source, target = degenerate()[case]
        linear = RidgePath.of(moments_of(source, target)).solve(1e-3)
        assert not weight_of(linear).any()


def test_where_only_the_mean_is_known_procrustes_keeps_the_scale():
    for seed in range(5):
        generator = np.random.default_rng(seed)
        source, target = np.tile(generator.normal(size=(1, 8)), (1000, 1)), generator.normal(size=(1000, 8))
        weight = weight_of(fit_procrustes(moments_of(source, target)))
        np.testing.assert_allclose(weight.T @ weight, np.eye(8), atol=1e-5)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="cannot be fitted to 0 pairs"):
        fit_procrustes(Moments.zero(3, 3))


def test_a_linear_map_sees_directions_only():
    generator = np.random.default_rng(6)
    weight, bias, x = generator.normal(size=(4, 3)), generator.normal(size=3), generator.normal(size=(5, 4))
    linear = LinearMap.from_arrays(weight, bias)
    expected = unit(x) @ weight + bias
    np.testing.assert_allclose(mapped(linear, x), expected, atol=1e-5)
    np.testing.assert_allclose(mapped(linear, 1000 * x), expected, atol=1e-5)
    np.testing.assert_allclose(mapped(linear, np.zeros((1, 4)))[0], bias, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in linear.parameters())


def test_the_identity_keeps_cuts_off_or_pads():
    x = torch.arange(6.0).reshape(2, 3)
    assert IdentityMap(3, 3)(x).tolist() == x.tolist()
    assert IdentityMap(3, 2)(x).tolist() == [[0, 1], [3, 4]]
    assert IdentityMap(3, 5)(x).tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]]
