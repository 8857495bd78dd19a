"""The residual network: it starts at its affine map exactly, and its formula is the one written down."""

import math

import numpy as np
import pytest
import torch

from compat.transformers.linear import LinearMap
from compat.transformers.residual_mlp import ResidualMLP


def affine(source_dim, target_dim, seed=0):
    generator = np.random.default_rng(seed)
    return LinearMap.from_arrays(generator.normal(size=(source_dim, target_dim)), generator.normal(size=target_dim))


def draw(rows, dim, seed=1):
    return torch.tensor(np.random.default_rng(seed).normal(size=(rows, dim)), dtype=torch.float32)


@pytest.mark.parametrize(("source_dim", "target_dim"), [(5, 5), (3, 8), (8, 3), (1, 2)])
def test_it_starts_at_the_affine_map_bit_for_bit(source_dim, target_dim):
    linear = affine(source_dim, target_dim)
    vectors = 30 * draw(50, source_dim)
    vectors[3] = 0
    network = ResidualMLP.starting_at(linear)
    assert torch.equal(network(vectors), linear(vectors))


def test_training_it_leaves_the_map_it_started_at_alone():
    linear = affine(4, 3)
    kept = {name: value.clone() for name, value in linear.state_dict().items()}
    network = ResidualMLP.starting_at(linear)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves W2 alone away from zero, W1 follows
        network(draw(9, 4)).square().sum().backward()
        optimizer.step()
    fresh = ResidualMLP.starting_at(linear)
    moved = {name for name, value in network.affine.state_dict().items() if not torch.equal(value, kept[name])}
    assert moved == {"affine.weight", "affine.bias"}
    for name, value in linear.state_dict().items():
        assert torch.equal(value, kept[name])
    assert not any(parameter.requires_grad for parameter in linear.parameters())
    assert network.output.weight.any()
    assert not fresh.output.weight.any()


def test_it_computes_the_formula():
    torch.manual_seed(0)
    network = ResidualMLP.starting_at(affine(6, 4))
    torch.nn.init.normal_(network.output.weight)
    vectors = 20 * draw(7, 6)
    state = {name: value.numpy().astype(float) for name, value in network.state_dict().items()}
    for found, x in zip(network(vectors).detach().numpy(), vectors.numpy().astype(float), strict=True):
        direction = x / math.sqrt(x @ x)
        hidden = state["hidden.weight"] @ (math.sqrt(6) * direction) + state["hidden.bias"]
        active = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        expected = state["affine.affine.weight"] @ direction + state["affine.affine.bias"]
        np.testing.assert_allclose(found, expected + state["output.weight"] @ active, rtol=1e-4, atol=1e-4)


def test_hidden_units_see_values_of_order_one_whatever_the_length():
    network = ResidualMLP(64, 3)
    seen = []
    network.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for length in (1e-3, 1.0, 1e3):
        network(length * draw(40, 64))
    for inputs in seen:
        assert inputs.square().mean().item() == pytest.approx(1, rel=1e-4)
        torch.testing.assert_close(inputs, seen[0])


def test_a_state_dict_loads_into_a_network_made_on_the_meta_device():
    trained = ResidualMLP.starting_at(affine(6, 9))
    torch.nn.init.normal_(trained.output.weight)
    with torch.device("meta"):
        empty = ResidualMLP(6, 9)
    empty.load_state_dict(trained.state_dict(), assign=True)
    vectors = draw(5, 6)
    assert torch.equal(empty(vectors), trained(vectors))
    assert {name for name, _ in trained.named_parameters()} == {
        "affine.affine.weight",
        "affine.affine.bias",
        "hidden.weight",
        "hidden.bias",
        "output.weight",
    }


def test_the_hidden_width_follows_from_the_dimensions_up_to_a_limit():
    assert ResidualMLP(10, 30).hidden.out_features == 30
    assert ResidualMLP(2000, 3).hidden.out_features == 1024
