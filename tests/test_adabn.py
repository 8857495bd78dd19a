"""Norms adapted to other images, against one pass of all of them in training mode."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.encoders import adabn
from backbones.encoders.adabn import NormStatistics, adapt_norms, require_space
from backbones.encoders.images import ImageBackbone
from backbones.encoders.preprocessing import Preprocessing
from backbones.networks.iresnet import IResNet

SIZE = 16


def network(**changes: bool) -> IResNet:
    torch.manual_seed(0)
    built = IResNet((1, 2, 1, 1), channels=(8, 8, 16, 16), embedding_dim=6, input_size=SIZE, **changes)
    built(torch.randn(32, 3, SIZE, SIZE))
    return built.eval()


def adapt(model: IResNet, images: Tensor, size: int) -> NormStatistics:
    units = (unit for stage in model.stages.children() for unit in stage.children())
    return adapt_norms([model.stem, *units, model.head], images.split(size))


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if "running_" in name}


@pytest.mark.parametrize("squeeze", [False, True])
def test_statistics_are_those_of_the_whole_set_as_one_batch(squeeze: bool) -> None:
    model, reference = (network(squeeze_excitation=squeeze) for _ in range(2))
    images = 0.3 * torch.randn(40, 3, SIZE, SIZE) + torch.linspace(-0.5, 0.8, 40)[:, None, None, None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    facts = adapt(model, images, 7)
    for norm in reference.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.momentum = 1.0  # the statistics of the next batch alone
    counts: dict[str, int] = {}
    for name, module in reference.named_modules():
        module.register_forward_pre_hook(
            lambda _, x, name=name: counts.__setitem__(name, x[0].numel() // x[0].shape[1])
        )
    reference.train()(images)
    for name, value in statistics(reference).items():
        count = counts[name.rpartition(".")[0]]
        # torch keeps the unbiased variance, ours is that of the set itself
        expected = value * (count - 1) / count if "var" in name else value
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-4, atol=1e-4)
    others = model.state_dict().keys() - statistics(model).keys()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)  # nothing else changed
    assert (facts.images, facts.norms) == (40, sum(1 for name in before if name.endswith("running_mean")))
    assert not model.training


def test_neither_batches_nor_the_old_statistics_matter() -> None:
    images = torch.randn(30, 3, SIZE, SIZE)
    one, other, again = network(), network(), network()
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean += 0.5
    adapt(one, images, 30)
    adapt(other, images, 4)
    adapt(again, images, 30)
    for name, value in statistics(one).items():
        torch.testing.assert_close(statistics(other)[name], value, rtol=1e-4, atol=1e-4)
        assert torch.equal(statistics(again)[name], value)


def test_an_adapted_network_is_another_space_and_sees_mirror_images() -> None:
    generator = np.random.default_rng(0)
    images = list(generator.integers(100, size=(20, SIZE, SIZE, 3), dtype=np.uint8))
    backbone = ImageBackbone("tiny", network(), Preprocessing(size=SIZE))
    before = backbone.fingerprint
    facts = backbone.adapt_norms([images])
    assert backbone.fingerprint != before
    assert facts.images == 40
    mean = backbone.network.stem.norm.running_mean  # pyright: ignore[reportAttributeAccessIssue]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    both = torch.cat([pixels, pixels.flip(3)])
    with torch.no_grad():
        convolution = backbone.network.stem.convolution  # pyright: ignore[reportAttributeAccessIssue]
        expected = convolution((both.float() - 127.5) / 127.5).mean(dim=(0, 2, 3))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    embeddings = backbone.embed([*images, *(image[:, ::-1] for image in images)])
    np.testing.assert_allclose(embeddings.mean(axis=0), 0, atol=0.05)  # what the last norm now does


def test_what_cannot_be_adapted_is_named() -> None:
    with pytest.raises(ValueError, match="no batch normalisation"):
        adapt_norms([nn.Flatten()], [torch.zeros(1, 3, SIZE, SIZE)])
    with pytest.raises(ValueError, match="no images to adapt to"):
        adapt_norms([network()], [])
    with pytest.raises(ValueError, match="not finite"):
        adapt_norms([network()], [torch.full((2, 3, SIZE, SIZE), float("nan"))])


@pytest.mark.parametrize("flip", [False, True])
def test_the_temporary_files_are_as_large_as_announced(flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[int, int] = {}
    largest = 0

    class Counted(adabn._Spool):
        def write(self, features: Tensor) -> None:
            nonlocal largest
            super().write(features)
            held[id(self)] = self.file.tell()
            largest = max(largest, sum(held.values()))

        def close(self) -> None:
            super().close()
            held.pop(id(self))

    monkeypatch.setattr(adabn, "_Spool", Counted)
    images = list(np.random.default_rng(0).integers(256, size=(5, SIZE, SIZE, 3), dtype=np.uint8))
    model = network()
    backbone = ImageBackbone("tiny", model, Preprocessing(size=SIZE, flip_average=flip))
    backbone.adapt_norms([images[:3], images[3:]])
    assert largest == 5 * backbone.adaptation_bytes() > 0
    assert not held
    stem = 4 * model.stem(torch.zeros(1, 3, SIZE, SIZE)).numel() * (2 if flip else 1)
    assert backbone.adaptation_bytes() < stem  # the widest maps are never among them


def test_too_small_a_disk_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(0)
    with pytest.raises(OSError, match=r"takes .* GB in .* left; take fewer images \(--adabn-images\)"):
        require_space(10**18)
