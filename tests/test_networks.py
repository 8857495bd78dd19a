"""The maps that are trained."""

import copy

import numpy as np
import pytest
import torch
from planted import plant
from torch import nn

from compat.transformers import TRANSFORMERS, known_family
from compat.transformers.mlp import MLP
from compat.transformers.msresnet import CACHED_ROWS, KERNELS, MSResNet, ResidualBlock

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


def branch_by_branch(network, vectors):
    """What `MSResNet` computes, module by module as they stand."""
    missing = max(0, 17 - vectors.shape[1])
    signal = network.stem(nn.functional.pad(vectors, (0, missing))[:, None, :])
    return network.output(torch.cat([branch(signal) for branch in network.branches], dim=1))


def unlike_new(network):
    """The network with norms and their statistics as training leaves them, unlike ones and zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                values.add_(0.3 * torch.randn(values.shape, generator=generator))
            elif name.endswith("running_var") or (name.endswith("weight") and values.ndim == 1):
                values.mul_(0.5 + torch.rand(values.shape, generator=generator))
    return network


@pytest.mark.parametrize("dim", [3, 19, 64, 101])
def test_the_joined_branches_map_as_the_modules_do_one_by_one(dim):
    network = unlike_new(MSResNet(dim, 6)).eval()
    x = 0.4 + torch.randn(9, dim)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), branch_by_branch(network, x), rtol=0, atol=1e-5)


def test_rows_beyond_a_batch_of_the_cache_are_mapped_as_the_others():
    network = unlike_new(MSResNet(8, 3)).eval()
    x = torch.randn(2 * CACHED_ROWS + 5, 8)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), branch_by_branch(network, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [3, 40])
def test_the_joined_branches_train_as_the_modules_do_one_by_one(dim):
    # In float64: in float32 a signal near zero falls on either side of a ReLU with the order of a sum.
    joined = unlike_new(MSResNet(dim, 6)).double().train()
    single = copy.deepcopy(joined)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, dim, generator=generator, dtype=torch.float64)
    wanted = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(True) for _ in range(2)]
    for _ in range(2):  # the second step sees the statistics that the first one left
        found, expected = joined(inputs[0]), branch_by_branch(single, inputs[1])
        torch.testing.assert_close(found, expected)
        for outputs in (found, expected):
            (outputs - wanted).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for (name, parameter), expected in zip(joined.named_parameters(), single.parameters(), strict=True):
        assert parameter.grad is not None
        assert expected.grad is not None
        assert float(expected.grad.abs().max()) > 0
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda m, n=name: f"{n}: {m}")
    for (name, found), expected in zip(joined.named_buffers(), single.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda m, n=name: f"{n}: {m}")


def test_msresnets_tensors_keep_their_names_and_shapes():
    shapes = {name: tuple(tensor.shape) for name, tensor in MSResNet(512, 10).state_dict().items()}
    assert len(shapes) == 28 + 29 * 5 + 2  # convolutions, norms, the layer on top
    assert {name: shape for name, shape in shapes.items() if name.startswith(("stem.1", "branches.2.1", "output"))} == {
        "stem.1.weight": (16, 1, 7),
        "branches.2.1.residual.0.weight": (32, 16, 7),
        **{f"branches.2.1.residual.1.{name}": (32,) for name in ("weight", "bias", "running_mean", "running_var")},
        "branches.2.1.residual.1.num_batches_tracked": (),
        "branches.2.1.residual.3.weight": (32, 32, 7),
        **{f"branches.2.1.residual.4.{name}": (32,) for name in ("weight", "bias", "running_mean", "running_var")},
        "branches.2.1.residual.4.num_batches_tracked": (),
        "branches.2.1.shortcut.0.weight": (32, 16, 1),
        **{f"branches.2.1.shortcut.1.{name}": (32,) for name in ("weight", "bias", "running_mean", "running_var")},
        "branches.2.1.shortcut.1.num_batches_tracked": (),
        "output.weight": (10, 1536),
        "output.bias": (10,),
    }


def test_msresnet_learns_in_bf16_what_it_learns_in_fp32():
    world = plant(identities=40, samples=8, old_dim=16, new_dim=16, noise=0.1, seed=4)
    source, wanted = torch.from_numpy(world.new), torch.from_numpy(world.old)
    curves = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = MSResNet(16, 16).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        losses = []
        for step in range(60):
            rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(step))[:32]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                mapped = network(source[rows])
            loss = 1 - nn.functional.cosine_similarity(mapped.float(), wanted[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
        curves[precision] = np.array(losses)
    assert curves["fp32"][0] > 0.8
    assert curves["fp32"][-20:].mean() < 0.1
    assert curves["bf16"][-20:].mean() == pytest.approx(curves["fp32"][-20:].mean(), rel=0.15)


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
