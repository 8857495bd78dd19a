"""The two terms that a network learns from, against numpy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.options import LossWeights
from compat.training.losses import compatibility_loss, cosine_loss, squared_distance_loss


def draw(seed, rows=6, dim=5, scale=1.0):
    generator = np.random.default_rng(seed)
    return scale * generator.normal(size=(rows, dim)), scale * generator.normal(size=(rows, dim))


def slow_cosine(a, b):
    return sum(1 - x @ y / np.sqrt(x @ x) / np.sqrt(y @ y) for x, y in zip(a, b, strict=True)) / len(a)


def slow_distance(a, b):
    return sum(sum((i - j) ** 2 for i, j in zip(x, y, strict=True)) for x, y in zip(a, b, strict=True)) / len(a)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 9),
    dim=st.integers(1, 9),
    weights=st.tuples(st.floats(0, 100), st.floats(0.01, 100)),
)
def test_terms_and_total_follow_their_definitions(seed, rows, dim, weights):
    a, b = draw(seed, rows, dim, scale=20)
    options = LossWeights(cosine_weight=weights[0], mse_weight=weights[1])
    total, cosine, mse = compatibility_loss(torch.tensor(a), torch.tensor(b), options)
    assert cosine.item() == pytest.approx(slow_cosine(a, b), abs=1e-9)
    assert mse.item() == pytest.approx(slow_distance(a, b))
    assert total.item() == pytest.approx(weights[0] * slow_cosine(a, b) + weights[1] * slow_distance(a, b))


def test_the_cosine_term_is_between_0_and_2_and_ignores_lengths():
    a = torch.tensor([[3.0, 4.0]])
    assert cosine_loss(a, 7 * a).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(a, -a).item() == pytest.approx(2)
    assert cosine_loss(a, torch.tensor([[-4.0, 3.0]])).item() == pytest.approx(1)
    assert squared_distance_loss(a, 2 * a).item() == pytest.approx(25)


def test_on_unit_vectors_the_squared_distance_is_twice_the_cosine_term():
    a, b = (torch.nn.functional.normalize(torch.tensor(side)) for side in draw(3))
    terms = compatibility_loss(a, b, LossWeights())
    assert terms.mse.item() == pytest.approx(2 * terms.cosine.item())


def test_the_gradient_is_the_weighted_sum_of_the_terms_gradients():
    a, b = (torch.tensor(side) for side in draw(4))
    gradients = []
    for term in ("cosine", "mse", "total"):
        x = a.clone().requires_grad_()
        getattr(compatibility_loss(x, b, LossWeights(cosine_weight=3.0, mse_weight=0.25)), term).backward()
        gradients.append(x.grad)
    cosine, mse, total = gradients
    torch.testing.assert_close(total, 3 * cosine + 0.25 * mse)
    torch.testing.assert_close(mse, 2 * (a - b) / len(a))
    step = 1e-6 * torch.ones_like(a)
    slope = (cosine_loss(a + step, b) - cosine_loss(a - step, b)) / 2e-6
    assert slope.item() == pytest.approx(cosine.sum().item(), rel=1e-4)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((3,), (3,)), ((2, 3, 1), (2, 3, 1))])
def test_other_shapes_are_refused(shapes):
    a, b = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"predicted and target must both be \[b, d\], found \["):
        compatibility_loss(a, b, LossWeights())


@pytest.mark.parametrize("weights", [(-1, 1), (1, -0.1), (0, 0)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="loss weights must not be negative nor all zero"):
        LossWeights(cosine_weight=weights[0], mse_weight=weights[1])
