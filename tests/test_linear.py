"""Affine maps of directions."""

import numpy as np
import pytest
import torch

from compat.transformers.linear import IdentityMap, LinearMap


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def mapped(linear, vectors):
    return linear(torch.tensor(vectors, dtype=torch.float32)).numpy()


def arrays(seed=6, rows=5):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(4, 3)),
        generator.normal(size=3),
        0.3 * generator.normal(size=4),
        generator.normal(size=(rows, 4)),
    )


@pytest.mark.parametrize("scale", [1, 1000, 1e-18, 1e18])
def test_a_linear_map_sees_directions_only(scale):
    weight, bias, centre, x = arrays()
    for linear, seen in (
        (LinearMap.from_arrays(weight, bias), unit(x)),
        (LinearMap.from_arrays(weight, bias, centre), unit(unit(x) - centre)),
    ):
        np.testing.assert_allclose(linear.folded()((x * scale).astype(np.float32)), seen @ weight + bias, atol=1e-5)
        if scale < 1e10:
            np.testing.assert_allclose(mapped(linear, x * scale), seen @ weight + bias, atol=1e-5)
        assert not any(parameter.requires_grad for parameter in linear.parameters())


def test_a_zero_vector_is_mapped_alike_by_both_forms_and_stays_finite():
    weight, bias, centre, _ = arrays()
    zero = np.zeros((1, 4), np.float32)
    np.testing.assert_allclose(mapped(LinearMap.from_arrays(weight, bias), zero)[0], bias, atol=1e-6)
    linear = LinearMap.from_arrays(weight, bias, centre)
    assert np.isfinite(mapped(linear, zero)).all()
    np.testing.assert_allclose(linear.folded()(zero), mapped(linear, zero), atol=1e-6)


def test_on_the_meta_device_a_map_takes_no_memory():
    with torch.device("meta"):
        linear = LinearMap(10**7, 10**7)
    assert {tensor.device.type for tensor in linear.state_dict().values()} == {"meta"}


def test_scaling_scales_the_outputs():
    weight, bias, centre, x = arrays()
    linear = LinearMap.from_arrays(weight, bias, centre)
    np.testing.assert_allclose(mapped(linear.scaled(25.0), x), 25 * mapped(linear, x), rtol=1e-5)


def test_the_folded_map_leaves_its_input_alone():
    weight, bias, centre, x = arrays()
    kept = x.astype(np.float32)
    LinearMap.from_arrays(weight, bias, centre).folded()(kept)
    np.testing.assert_array_equal(kept, x.astype(np.float32))


def test_no_vectors_map_to_none():
    weight, bias, centre, _ = arrays()
    assert LinearMap.from_arrays(weight, bias, centre).folded()(np.empty((0, 4), np.float32)).shape == (0, 3)


def test_the_identity_keeps_cuts_off_or_pads():
    x = torch.arange(6.0).reshape(2, 3)
    assert IdentityMap(3, 3)(x).tolist() == x.tolist()
    assert IdentityMap(3, 2)(x).tolist() == [[0, 1], [3, 4]]
    assert IdentityMap(3, 5)(x).tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]]
