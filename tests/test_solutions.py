"""Closed forms against planted maps, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from compat.training.candidates import solve
from compat.training.moments import Moments, Preparation, directions, total
from compat.training.solutions import Solutions


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rotation(dim, generator):
    return np.linalg.qr(generator.normal(size=(dim, dim)))[0]


def moments_of(source, target, blocks=1, weights=None, preparation=None):
    preparation = preparation or Preparation(np.zeros(source.shape[1], np.float32))
    moments = Moments.zero(source.shape[1], target.shape[1], target=True)
    weights = np.array_split(weights, blocks) if weights is not None else [None] * blocks
    for x, y, w in zip(np.array_split(source, blocks), np.array_split(target, blocks), weights, strict=True):
        moments.add(preparation(x), directions(y), w)
    return moments


def solutions_of(moments, *, intercept=True):
    return Solutions(moments, Preparation(np.zeros(len(moments.x_sum), np.float32), intercept=intercept))


def mapped(linear, vectors):
    return linear(torch.tensor(vectors, dtype=torch.float32)).numpy()


def weight_of(linear):
    return linear.affine.weight.numpy().T.astype(float)


def exact_moments(x, y):
    """Moments of vectors as they are, not scaled to unit length."""
    return Moments(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y, y.T @ y)


@pytest.mark.parametrize("dim", [2, 7, 16])
def test_procrustes_recovers_a_planted_rotation_scale_and_shift(dim):
    generator = np.random.default_rng(dim)
    x = unit(generator.normal(size=(200, dim)))
    turn, shift = rotation(dim, generator), generator.normal(size=dim)
    linear = solutions_of(exact_moments(x, 0.3 * x @ turn + shift)).procrustes()
    np.testing.assert_allclose(weight_of(linear), 0.3 * turn, atol=1e-6)
    np.testing.assert_allclose(linear.affine.bias.numpy(), shift, atol=1e-6)


def test_a_turned_space_is_turned_back_whatever_the_lengths():
    generator = np.random.default_rng(0)
    x, turn = generator.normal(size=(300, 12)), rotation(12, generator)
    y = (x @ turn) * generator.uniform(5, 50, size=(300, 1))
    found = unit(mapped(solutions_of(moments_of(x, y)).procrustes(), x))
    assert (found * unit(y)).sum(axis=1).min() > 0.999999


def test_procrustes_is_that_of_scipy_on_centred_data():
    generator = np.random.default_rng(1)
    x = unit(generator.normal(size=(150, 9)) + 0.5)
    y = unit(x @ rotation(9, generator) + 0.3 * generator.normal(size=(150, 9)))
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    turn, summed = orthogonal_procrustes(centred_x, centred_y)
    linear = solutions_of(moments_of(x, y)).procrustes()
    np.testing.assert_allclose(weight_of(linear), summed / (centred_x**2).sum() * turn, atol=1e-5)
    np.testing.assert_allclose(mapped(linear, x).mean(axis=0), y.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(12, 5), (5, 12), (6, 6)])
def test_procrustes_between_unequal_dimensions_has_orthonormal_rows_or_columns(source, target):
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(80, source)), generator.normal(size=(80, target))
    y[:, : min(source, target)] += x[:, : min(source, target)]
    weight = weight_of(solutions_of(moments_of(x, y)).procrustes())
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
    linear = solutions_of(moments_of(x, y, blocks=3)).ridge(strength)
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
        assert found.weight == rows
        for name in ("x_sum", "y_sum", "xx", "xy", "yy"):
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
@pytest.mark.parametrize("family", ["procrustes", "ridge", "shrunk"])
def test_poor_data_give_a_tame_map(case, family):
    source, target = degenerate()[case]
    linear = solve(family, solutions_of(moments_of(source, target)), strength=1e-3)
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
        linear = solutions_of(moments_of(source, target)).ridge(1e-3)
        assert not weight_of(linear).any()


def test_where_only_the_mean_is_known_procrustes_keeps_the_scale():
    for seed in range(5):
        generator = np.random.default_rng(seed)
        source, target = np.tile(generator.normal(size=(1, 8)), (1000, 1)), generator.normal(size=(1000, 8))
        weight = weight_of(solutions_of(moments_of(source, target)).procrustes())
        np.testing.assert_allclose(weight.T @ weight, np.eye(8), atol=1e-5)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="cannot be fitted to 0 pairs"):
        solutions_of(Moments.zero(3, 3))


@pytest.mark.parametrize("case", degenerate())
@pytest.mark.parametrize("family", ["blend", "reduced_rank", "whitened"])
def test_poor_data_leave_every_family_finite(case, family):
    source, target = degenerate()[case]
    linear = solve(family, solutions_of(moments_of(source, target)), strength=0.1, rank=2)
    assert np.isfinite(mapped(linear, np.random.default_rng(5).normal(size=(50, 8)))).all()


def world(rows=400, source=9, target=6, seed=8, noise=0.5):
    generator = np.random.default_rng(seed)
    x = unit(generator.normal(size=(rows, source)) + 0.4)
    return x, unit(x @ generator.normal(size=(source, target)) + noise * generator.normal(size=(rows, target)))


def test_without_an_intercept_ridge_is_that_of_scikit_learn_through_the_origin():
    x, y = world()
    linear = solutions_of(moments_of(x, y), intercept=False).ridge(0.1)
    penalty = 0.1 * (x**2).mean(axis=0).mean() * len(x)
    np.testing.assert_allclose(
        weight_of(linear), Ridge(alpha=penalty, fit_intercept=False).fit(x, y).coef_.T, atol=1e-4
    )
    assert not linear.affine.bias.numpy().any()


def test_weights_count_as_repetition_does():
    x, y = world(rows=60)
    counts = np.random.default_rng(9).integers(1, 5, size=60)
    weighted = solutions_of(moments_of(x, y, blocks=4, weights=counts.astype(float)))
    repeated = solutions_of(moments_of(np.repeat(x, counts, axis=0), np.repeat(y, counts, axis=0)))
    for family in ("procrustes", "ridge", "whitened"):
        found, expected = (solve(family, solutions, strength=0.1) for solutions in (weighted, repeated))
        np.testing.assert_allclose(weight_of(found), weight_of(expected), atol=2e-4)


def test_the_shrunk_map_lies_between_least_squares_and_procrustes():
    x, y = world()
    solutions = solutions_of(moments_of(x, y))
    ridge, procrustes = weight_of(solutions.ridge(1e-7)), weight_of(solutions.procrustes())
    np.testing.assert_allclose(weight_of(solutions.shrunk(1e-7)), ridge, atol=1e-4)
    np.testing.assert_allclose(weight_of(solutions.shrunk(1e6)), procrustes, atol=1e-4)


def test_the_shrunk_map_minimises_what_it_says():
    x, y = world(rows=50)
    solutions = solutions_of(moments_of(x, y))
    rotation_, strength = weight_of(solutions.procrustes()), 0.7
    x_, y_ = x - x.mean(axis=0), y - y.mean(axis=0)
    penalty = strength * x_.var(axis=0).mean() * len(x)
    # The same problem as least squares with rows that pull each weight towards the rotation's.
    stacked_x = np.concatenate([x_, np.sqrt(penalty) * np.eye(9)])
    stacked_y = np.concatenate([y_, np.sqrt(penalty) * rotation_])
    expected = np.linalg.lstsq(stacked_x, stacked_y, rcond=None)[0]
    np.testing.assert_allclose(weight_of(solutions.shrunk(strength)), expected, atol=1e-4)


def test_a_blend_is_the_weighted_mean_of_its_two_maps():
    x, y = world()
    solutions = solutions_of(moments_of(x, y))
    expected = 0.25 * mapped(solutions.procrustes(), x) + 0.75 * mapped(solutions.ridge(0.3), x)
    np.testing.assert_allclose(mapped(solutions.blend(0.25, 0.3), x), expected, atol=1e-5)


def test_a_reduced_rank_map_loses_least_among_maps_of_its_rank():
    x, y = world(rows=900, noise=0.05)
    solutions = solutions_of(moments_of(x, y))
    full = solutions.reduced_rank(6, 1e-6)
    np.testing.assert_allclose(weight_of(full), weight_of(solutions.ridge(1e-6)), atol=1e-5)
    weight = weight_of(solutions.reduced_rank(2, 1e-6))
    assert np.linalg.matrix_rank(weight, tol=1e-5) == 2
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    error = ((centred_x @ weight - centred_y) ** 2).sum()
    least = weight_of(solutions.ridge(1e-6))
    # What any projection of the fitted values to two axes must lose: their smaller singular values.
    lost = (np.linalg.svd(centred_x @ least, compute_uv=False)[2:] ** 2).sum()
    assert error == pytest.approx(((centred_x @ least - centred_y) ** 2).sum() + lost, rel=1e-4)


def test_a_whitened_map_is_the_canonical_correlations_bilinear_score():
    x, y = world()
    linear = solutions_of(moments_of(x, y)).whitened(1e-6, 1e-6)
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)

    def root(side):
        values, vectors = np.linalg.eigh(side.T @ side / len(side))
        return vectors / np.sqrt(values) @ vectors.T

    left, correlations, right = np.linalg.svd(root(centred_x) @ (centred_x.T @ centred_y / len(x)) @ root(centred_y))
    expected = root(centred_x) @ left[:, :6] * correlations @ right @ root(centred_y)
    found = weight_of(linear)
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-4)
    out = mapped(linear, x)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-5)
    assert (out**2).sum(axis=1).mean() == pytest.approx(1, abs=1e-4)


def test_a_whitened_map_finds_what_a_predicted_vector_does_not():
    """Each axis tells as much about which item it is, but the target spends its length on the first few."""
    generator = np.random.default_rng(10)
    items = generator.normal(size=(2000, 64))
    x = items @ rotation(64, generator) + generator.normal(size=items.shape)
    y = (items + 0.3 * generator.normal(size=items.shape)) * np.geomspace(10, 1, 64)
    solutions = solutions_of(moments_of(x[:1500], y[:1500]))

    def recall(linear):
        scores = unit(mapped(linear, x[1500:])) @ unit(y[1500:]).T
        return (scores.argmax(axis=1) == np.arange(500)).mean()

    assert recall(solutions.whitened(0.01, 0.1)) > recall(solutions.ridge(0.01)) + 0.05


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_directions_from_a_centre_are_those_of_the_vectors_written_out(weighted):
    generator = np.random.default_rng(11)
    x, y = 20 * (generator.normal(size=(70, 6)) + 0.5), generator.normal(size=(70, 4))
    centre = unit(x).mean(axis=0).astype(np.float32)
    weights = generator.uniform(0.5, 2, size=70) if weighted else None
    found = moments_of(x, y, blocks=3, weights=weights, preparation=Preparation(centre))
    z, w = unit(unit(x) - centre), np.ones(70) if weights is None else weights
    np.testing.assert_allclose(Preparation(centre)(x).written_out(), z, atol=1e-6)
    np.testing.assert_allclose(found.x_sum, w @ z, atol=1e-4)
    np.testing.assert_allclose(found.xx, z.T @ (z * w[:, None]), atol=1e-4)
    np.testing.assert_allclose(found.xy, z.T @ (unit(y) * w[:, None]), atol=1e-4)
    assert found.yy is not None
    np.testing.assert_allclose(found.yy, unit(y).T @ (unit(y) * w[:, None]), atol=1e-4)
    assert found.weight == pytest.approx(w.sum())
