"""The two terms that a network learns from, against numpy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.options import LossWeights
from compat.training.losses import (
    GradientNorms,
    compatibility_gradient,
    compatibility_loss,
    cosine_loss,
    gradient_norms,
    imbalance,
)


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
    assert compatibility_loss(a, 2 * a, LossWeights()).mse.item() == pytest.approx(25)


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


@pytest.mark.parametrize("weighed", [False, True])
def test_the_gradient_made_beside_the_terms_is_that_of_their_total(weighed):
    a, b = (torch.tensor(side, dtype=torch.float32) for side in draw(11))
    a[2] = 0  # a row that points nowhere has a cosine, and no direction to turn in
    pair_weights = torch.linspace(0, 2, len(a)) if weighed else None
    options = LossWeights(cosine_weight=3.0, mse_weight=0.25)
    x = a.clone().requires_grad_()
    expected = compatibility_loss(x, b, options, pair_weights)
    expected.total.backward()
    terms, gradient = compatibility_gradient(x, b, options, pair_weights)
    assert not gradient.requires_grad
    assert terms.tolist() == [expected.cosine.item(), expected.mse.item()]
    torch.testing.assert_close(gradient, x.grad)
    with pytest.raises(ValueError, match="must both be"):
        compatibility_gradient(x, b[:, :3], options)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(2, 7))
def test_weights_of_pairs_count_as_repetitions_do(seed, rows):
    a, b = draw(seed, rows, scale=3)
    times = 1 + np.random.default_rng(seed).integers(0, 4, size=rows)
    options = LossWeights(cosine_weight=2.0, mse_weight=0.5)
    weighted = compatibility_loss(torch.tensor(a), torch.tensor(b), options, torch.tensor(0.25 * times))
    again = np.repeat(np.arange(rows), times)
    assert weighted.cosine.item() == pytest.approx(slow_cosine(a[again], b[again]))
    assert weighted.mse.item() == pytest.approx(slow_distance(a[again], b[again]))
    assert weighted.total.item() == pytest.approx(2 * weighted.cosine.item() + 0.5 * weighted.mse.item())


def test_pairs_of_weight_zero_have_no_part_and_a_batch_of_them_has_no_gradient():
    a, b = (torch.tensor(side) for side in draw(5))
    weights = torch.tensor([1.0, 0, 2, 0, 0, 1], dtype=torch.float64)
    kept = weights > 0
    torch.testing.assert_close(cosine_loss(a, b, weights), cosine_loss(a[kept], b[kept], weights[kept]))
    whole = compatibility_loss(a, b, LossWeights(), weights)
    for term, expected in zip(whole, compatibility_loss(a[kept], b[kept], LossWeights(), weights[kept]), strict=True):
        torch.testing.assert_close(term, expected)
    x = a.clone().requires_grad_()
    compatibility_loss(x, b, LossWeights(), torch.zeros(6, dtype=torch.float64)).total.backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("shape", [(5,), (6, 1), ()])
def test_weights_of_another_number_of_pairs_are_refused(shape):
    a, b = (torch.tensor(side) for side in draw(6))
    with pytest.raises(ValueError, match=r"pair_weights must be \[6\], one for each pair, found \["):
        compatibility_loss(a, b, LossWeights(), torch.ones(shape))


def test_gradient_norms_are_those_of_finite_differences_over_all_parameters():
    a, b = (torch.tensor(side) for side in draw(7))
    layer = torch.nn.Linear(5, 5, dtype=torch.float64)
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    apart = torch.nn.Parameter(torch.ones(3))  # of no influence
    pairs = torch.arange(1.0, 7, dtype=torch.float64)
    options = LossWeights(cosine_weight=3.0, mse_weight=0.25)
    found = gradient_norms(layer(a), b, options, [*layer.parameters(), frozen, apart], pairs)
    squares = np.zeros(2)
    for parameter in layer.parameters():
        flat = parameter.data.view(-1)
        for place in range(len(flat)):
            ends = []
            for step in (1e-6, -2e-6):
                flat[place] += step
                terms = compatibility_loss(layer(a), b, options, pairs)
                ends.append(np.array([3 * terms.cosine.item(), 0.25 * terms.mse.item()]))
            flat[place] += 1e-6
            squares += ((ends[0] - ends[1]) / 2e-6) ** 2
    assert found == pytest.approx(tuple(np.sqrt(squares)), rel=1e-5)


def test_gradient_norms_leave_the_graph_and_the_gradients_alone():
    a, b = (torch.tensor(side) for side in draw(8))
    x = a.clone().requires_grad_()
    predicted = 2 * x
    options = LossWeights(cosine_weight=0.0, mse_weight=1.0)
    norms = gradient_norms(predicted, b, options, [x])
    assert norms.cosine == 0
    assert x.grad is None
    compatibility_loss(predicted, b, options).total.backward()
    assert x.grad is not None
    assert x.grad.norm().item() == pytest.approx(norms.mse)


@pytest.mark.parametrize("swamping", ["squared distance", "cosine"])
def test_the_weight_that_imbalance_names_balances_the_terms(swamping):
    a, b = (torch.tensor(side) for side in draw(9, scale=25))
    weights = LossWeights(cosine_weight=1.0, mse_weight=1.0 if swamping == "squared distance" else 1e-9)
    x = a.clone().requires_grad_()
    norms = gradient_norms(x, b, weights, [x])
    line = imbalance(norms, weights)
    ratio = max(norms) / min(norms)
    assert line.startswith(f"the {swamping} swamps the ")
    assert f"{ratio:.0f} times" in line
    assert "\n" not in line
    named = float(line.split("set loss.mse_weight to about ")[1].split()[0])
    balanced = gradient_norms(x, b, LossWeights(cosine_weight=1.0, mse_weight=named), [x])
    assert max(balanced) / min(balanced) < 1.5
    assert imbalance(balanced, LossWeights(cosine_weight=1.0, mse_weight=named)) == ""


@pytest.mark.parametrize(
    ("norms", "told"), [((1, 50), False), ((1, 51), True), ((51, 1), True), ((0, 9), False), ((9, 0), False)]
)
def test_imbalance_is_told_from_fifty_times_on(norms, told):
    assert bool(imbalance(GradientNorms(*norms), LossWeights())) == told


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((3,), (3,)), ((2, 3, 1), (2, 3, 1))])
def test_other_shapes_are_refused(shapes):
    a, b = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"predicted and target must both be \[b, d\], found \["):
        compatibility_loss(a, b, LossWeights())


@pytest.mark.parametrize("weights", [(-1, 1), (1, -0.1), (0, 0)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(
        ValueError, match="loss weights must not be negative, nor cosine_weight and mse_weight both zero"
    ):
        LossWeights(cosine_weight=weights[0], mse_weight=weights[1])
