import hashlib

import pytest
import torch
from torch import nn

from backbones.encoders.inference import fold_batchnorm
from backbones.networks.iresnet import (
    ARCHITECTURES,
    UNITS,
    IResNet,
    ResidualUnit,
    SqueezeExcitation,
    build_architecture,
)


def count_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_layers(network: torch.nn.Module) -> int:
    """Count convolutions and the projection; shortcuts lie beside the path."""
    named = network.named_modules()
    return sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for name, m in named if "shortcut" not in name)


def test_resnet50_has_the_published_size_and_depth() -> None:
    network = build_architecture("iresnet50")
    assert count_parameters(network) / 1e6 == pytest.approx(43.59, abs=0.005)
    assert count_layers(network) == 50


def test_resnet18_has_18_layers() -> None:
    assert count_layers(build_architecture("iresnet18", input_size=16)) == 18


@pytest.mark.parametrize("size", [16, 36, 40, 56, 112])
def test_any_input_size_gives_embeddings(size: int) -> None:
    network = IResNet((1, 1, 1, 1), channels=(4, 4, 8, 8), embedding_dim=10, input_size=size).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_training_reaches_every_parameter() -> None:
    network = IResNet((2, 1, 1, 1), channels=(4, 4, 8, 8), embedding_dim=10, input_size=20, dropout=0.1)
    network(torch.randn(4, 3, 20, 20)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=f"unknown architecture 'resnet', expected one of {', '.join(ARCHITECTURES)}"):
        build_architecture("resnet")


def test_too_small_an_input_is_refused() -> None:
    with pytest.raises(ValueError, match="input_size is 15 pixels, expected at least 16"):
        build_architecture("iresnet18", input_size=15)


@pytest.mark.parametrize(("depth", "layers"), [(18, 18), (34, 34), (50, 50), (100, 100), (152, 102), (200, 198)])
def test_depths_are_what_the_table_says(depth: int, layers: int) -> None:
    with torch.device("meta"):
        plain, excited = build_architecture(f"iresnet{depth}"), build_architecture(f"irse{depth}")
    assert count_layers(plain) == layers == 2 * sum(UNITS[depth]) + 2
    blocks = [module for module in excited.modules() if isinstance(module, SqueezeExcitation)]
    assert len(blocks) == sum(UNITS[depth])
    expected = sum(2 * c * (c // 16) * n for c, n in zip((64, 128, 256, 512), UNITS[depth], strict=True))
    assert count_parameters(excited) - count_parameters(plain) == expected


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("iresnet18", "da55aafe641a4648"),
        ("iresnet34", "b827458c95ff1644"),
        ("iresnet50", "93adb71fbc9e8622"),
        ("iresnet100", "45897f3e1706896e"),
    ],
)
def test_weights_of_the_first_release_still_fit(name: str, digest: str) -> None:
    with torch.device("meta"):
        state = build_architecture(name, input_size=32).state_dict()
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == digest


def test_squeeze_excitation_scales_each_channel_as_the_paper_writes_it() -> None:
    torch.manual_seed(0)
    block = SqueezeExcitation(32).double()
    features = torch.randn(3, 32, 5, 4, dtype=torch.float64)
    down, up = (m.weight.detach().flatten(1).numpy() for m in block.gate if isinstance(m, nn.Conv2d))
    assert down.shape == (2, 32)
    found = block(features).detach().numpy()
    for image, scaled in zip(features.numpy(), found, strict=True):
        hidden = (down @ image.mean(axis=(1, 2))).clip(min=0)
        gates = 1 / (1 + torch.tensor(-(up @ hidden)).exp().numpy())
        assert abs(scaled - image * gates[:, None, None]).max() < 1e-12


def small(**options: object) -> IResNet:
    torch.manual_seed(0)
    settings: dict = {"channels": (8, 16, 16, 16), "embedding_dim": 10, "input_size": 20} | options
    return IResNet((2, 1, 2, 1), **settings)


def test_folding_an_excited_network_changes_nothing() -> None:
    network = small(squeeze_excitation=True).double()
    network(4 + 3 * torch.randn(16, 3, 20, 20, dtype=torch.float64))  # gives the norms their statistics
    network.eval()
    folded = fold_batchnorm(network)
    units = [module for module in folded.modules() if isinstance(module, ResidualUnit)]
    assert all(isinstance(unit.branch.norm1, nn.Identity) for unit in units)
    assert all(isinstance(unit.branch.norm2, nn.Identity) for unit in units)
    images = torch.randn(3, 3, 20, 20, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-9, atol=1e-9)


def test_stochastic_depth_rises_linearly_to_the_last_unit() -> None:
    drops = [module.drop for module in small(stochastic_depth=0.3).modules() if isinstance(module, ResidualUnit)]
    assert drops == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    with pytest.raises(ValueError, match=r"stochastic_depth is 1\.0, expected 0 to below 1"):
        small(stochastic_depth=1.0)


def test_a_dropped_branch_leaves_the_shortcut_and_a_kept_one_is_enlarged() -> None:
    torch.manual_seed(0)
    unit = ResidualUnit(4, 4, 1, drop=0.4)
    unit.branch.eval()  # norms by their running statistics, so that rows do not mix
    features = torch.randn(4000, 4, 3, 3)
    with torch.no_grad():
        found, branch = unit(features), unit.branch(features)
    dropped = torch.tensor([torch.equal(row, image) for row, image in zip(found, features, strict=True)])
    assert dropped.float().mean() == pytest.approx(0.4, abs=0.03)
    torch.testing.assert_close(found[~dropped], (features + branch / 0.6)[~dropped])
    unit.eval()
    torch.testing.assert_close(unit(features), features + branch)


def test_stochastic_depth_follows_the_default_generator_alone() -> None:
    network = small(stochastic_depth=0.5)
    images = torch.randn(6, 3, 20, 20)
    state = torch.get_rng_state()
    first = network(images)
    other = network(images)
    torch.set_rng_state(state)
    assert torch.equal(network(images), first)
    assert not torch.equal(other, first)


def trained(*, checkpoint: bool) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], int]:
    """Gradients, state and bytes kept for the backward passes of two steps."""
    network = small(squeeze_excitation=True, stochastic_depth=0.4, dropout=0.3, checkpoint_activations=checkpoint)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(2):
        images = torch.randn(8, 3, 20, 20)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = network(images).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return gradients, network.state_dict(), sum(kept.values())


def test_checkpointed_activations_change_no_bit_and_save_memory() -> None:
    gradients, state, kept = trained(checkpoint=False)
    gradients_again, state_again, kept_again = trained(checkpoint=True)
    assert len(gradients) == len(gradients_again) == len(list(small(squeeze_excitation=True).parameters()))
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    assert state.keys() == state_again.keys()  # statistics of norms are among them
    assert all(torch.equal(value, state_again[name]) for name, value in state.items())
    assert kept_again < 0.5 * kept


def test_checkpointing_leaves_evaluation_alone() -> None:
    plain, checkpointed = small(), small(checkpoint_activations=True)
    images = torch.randn(2, 3, 20, 20)
    assert torch.equal(plain.eval()(images), checkpointed.eval()(images))
    with torch.no_grad():
        assert torch.equal(plain.train()(images), checkpointed.train()(images))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), checkpointed.buffers(), strict=True))
