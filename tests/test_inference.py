import sys

import pytest
import torch
from torch import nn

from backbones.encoders.inference import fastest_faithful, fold_batchnorm, multiplies_bf16
from backbones.networks.iresnet import IResNet, ResidualUnit


def seasoned_network(*, squeeze: bool = False) -> IResNet:
    """Random statistics everywhere: fresh norms are the identity and would hide a wrong fold."""
    torch.manual_seed(0)
    network = IResNet(
        (2, 1, 1, 1), channels=(8, 8, 16, 16), embedding_dim=12, input_size=20, squeeze_excitation=squeeze
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network


class Delicate(nn.Module):
    """Its embedding lies in the fourth digit of the input, which bfloat16 does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten())
        convolution, norm = self.layers[0], self.layers[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        norm.running_mean = convolution.weight.detach().sum(dim=(1, 2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.mark.parametrize("squeeze", [False, True])
def test_folding_changes_nothing_also_along_the_border(squeeze: bool) -> None:
    network = seasoned_network(squeeze=squeeze).double()
    images = torch.randn(3, 3, 20, 20, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(fold_batchnorm(network)(images), network(images), rtol=1e-9, atol=1e-9)


def test_folding_leaves_the_network_and_the_norms_before_convolutions_alone() -> None:
    network = seasoned_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_batchnorm(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    units = [module for module in folded.modules() if isinstance(module, ResidualUnit)]
    assert all(isinstance(unit.branch.norm_in, nn.BatchNorm2d) for unit in units)
    left = [module for module in folded.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(left) == len(units) + 1  # and the norm of the head, which a flattening separates from its projection


def test_guard_takes_bf16_for_a_network_that_bears_it() -> None:
    network = seasoned_network()
    images = torch.randn(6, 3, 20, 20)
    engine, facts = fastest_faithful(network, images, minimum_cosine=0.99, precision="bf16")
    assert facts["precision"] == "bf16-folded"
    with torch.inference_mode():
        embeddings, reference = engine(images), network(images)
    assert embeddings.dtype == torch.float32
    lowest = torch.cosine_similarity(embeddings, reference).min()
    assert float(lowest) == pytest.approx(facts["minimum_cosine"], abs=1e-6)


def test_guard_falls_back_to_float32_and_then_to_the_network_itself() -> None:
    delicate = Delicate().eval()
    images = 1.0 + 1e-3 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    _, facts = fastest_faithful(delicate, images, precision="bf16")
    assert facts["precision"] == "fp32-folded"
    engine, facts = fastest_faithful(delicate, images, minimum_cosine=1.1, precision="bf16")
    assert engine is delicate
    assert facts == {"engine": "torch", "precision": "fp32", "minimum_cosine": 1.0}


def test_fp32_leaves_bf16_out() -> None:
    _, facts = fastest_faithful(seasoned_network(), torch.randn(2, 3, 20, 20), precision="fp32")
    assert facts["precision"] == "fp32-folded"


def test_unusable_weights_and_an_empty_sample_are_refused() -> None:
    network = seasoned_network()
    with pytest.raises(ValueError, match="sample is empty"):
        fastest_faithful(network, torch.zeros(0, 3, 20, 20))
    network.head.projection.weight.data.fill_(float("nan"))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="not finite"):
        fastest_faithful(network, torch.randn(2, 3, 20, 20))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_openvino_gives_the_same_embeddings(precision: str) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    network = seasoned_network()
    images = torch.randn(4, 3, 20, 20)
    engine, facts = fastest_faithful(
        network,
        images,
        0.99,
        precision=precision,  # pyright: ignore[reportArgumentType]
        engine="openvino",
    )
    assert facts["engine"] == "openvino"
    native = multiplies_bf16(torch.device("cpu"))
    assert facts["precision"] == ("openvino-bf16" if precision == "bf16" else "openvino-fp32")
    others = torch.randn(4, 3, 20, 20)
    first = engine(images)
    with torch.inference_mode():
        for given in (others, images):
            lowest = torch.cosine_similarity(engine(given), network(given)).min()
            assert lowest > (0.98 if precision == "bf16" and native else 0.99999)
    assert torch.equal(engine(images), first)
    engine(others)
    assert torch.equal(engine(images), first)  # an output handed out is not overwritten by the next


def test_openvino_is_guarded_like_the_others() -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    delicate = Delicate().eval()
    images = 1.0 + 1e-3 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    engine, facts = fastest_faithful(delicate, images, minimum_cosine=1.1, precision="bf16", engine="openvino")
    assert engine is delicate
    assert facts["engine"] == "torch"


def test_without_openvino_auto_takes_torch_and_asking_for_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    images = torch.randn(2, 3, 20, 20)
    assert fastest_faithful(seasoned_network(), images, engine="auto")[1]["engine"] == "torch"
    with pytest.raises(
        ImportError, match=r"openvino is not installed; run `pip install 'embedding-compat\[openvino\]'`"
    ):
        fastest_faithful(seasoned_network(), images, engine="openvino")
