"""The maps that are trained."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compat.transformers import TRANSFORMERS, known_family
from compat.transformers.mlp import MLP
from compat.transformers.msresnet import KERNELS, MSResNet, ResidualBlock

DIMS = [(8, 33), (33, 8), (1, 3), (2, 1), (17, 17), (129, 64), (512, 512)]


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize(("source", "target"), DIMS)
def test_every_family_maps_any_dimension_to_any_other(family, source, target):
    network = TRANSFORMERS[family](source, target).eval()
    for rows in (0, 1, 3):
        with torch.inference_mode():
            found = network(torch.randn(rows, source))
        assert found.shape == (rows, target)
        assert torch.isfinite(found).all()


def test_the_mlp_is_one_linear_layer():
    network = MLP(5, 3)
    assert {name: tuple(p.shape) for name, p in network.named_parameters()} == {
        "layer.weight": (3, 5),
        "layer.bias": (3,),
    }
    x = torch.randn(4, 5)
    torch.testing.assert_close(network(x), x @ network.layer.weight.T + network.layer.bias)


def test_msresnet_has_three_branches_of_kernels_3_5_7_and_one_layer_on_top():
    network = MSResNet(64, 10)
    assert KERNELS == (3, 5, 7)
    for branch, kernel in zip(network.branches, KERNELS, strict=True):
        residual = [m for m in branch.modules() if isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1]
        assert {m.kernel_size[0] for m in residual} == {kernel}
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert linear == [network.output]
    with torch.inference_mode():  # the layer sees all three branches
        x = torch.randn(2, 64)
        network.eval()
        signal = network.stem(x[:, None, :])
        joined = torch.cat([branch(signal) for branch in network.branches], dim=1)
        torch.testing.assert_close(network(x), network.output(joined))
        assert joined.shape[1] == network.output.in_features


def test_a_residual_block_adds_a_shortcut_and_halves_the_signal():
    block = ResidualBlock(4, 6, 5).eval()
    signal = torch.randn(2, 4, 9)
    with torch.inference_mode():
        expected = torch.relu(block.residual(signal) + block.shortcut(signal))
        torch.testing.assert_close(block(signal), expected)
        assert expected.shape == (2, 6, 5)
        for parameter in block.residual.parameters():
            parameter.zero_()
        torch.testing.assert_close(block(signal), torch.relu(block.shortcut(signal)))


@pytest.mark.parametrize("dim", [1, 2, 8, 16, 17, 33])
def test_msresnet_trains_even_on_a_batch_of_one(dim):
    network = MSResNet(dim, 3).train()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    loss = torch.zeros(())
    for _ in range(3):
        loss = (network(torch.randn(1, dim)) - 5).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert not torch.equal(before["output.weight"], network.output.weight)


def test_msresnet_does_not_see_further_rows_when_it_is_applied():
    network = MSResNet(20, 4)
    network.train()
    network(torch.randn(16, 20))
    network.eval()
    x = torch.randn(5, 20)
    with torch.inference_mode():
        one_by_one = torch.cat([network(row[None]) for row in x])
        np.testing.assert_allclose(network(x), one_by_one, atol=1e-5)


def test_an_unknown_family_lists_those_there_are():
    assert [known_family(family) for family in TRANSFORMERS] == list(TRANSFORMERS)
    with pytest.raises(
        ValueError, match="unknown transformer 'mpl'; choose one of identity, procrustes, ridge, shrunk, "
    ):
        known_family("mpl")
