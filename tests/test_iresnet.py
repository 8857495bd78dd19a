import pytest
import torch

from backbones.iresnet import ARCHITECTURES, IResNet, build_architecture


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
