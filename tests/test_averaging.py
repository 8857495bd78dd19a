import copy
from pathlib import Path

import torch
from drawn_faces import faces, one_thread, options, tiny_architecture
from torch import Tensor, nn

from backbones.encoders.images import load_image_backbone
from backbones.options import TrainOptions
from backbones.train import train
from backbones.training.averaging import WeightAverage

__all__ = ["faces", "one_thread", "tiny_architecture"]  # fixtures


def walk(average: WeightAverage, network: nn.Module, steps: int) -> list[Tensor]:
    """Change the weights step by step as a training would; return what the first layer's were after each."""
    seen = []
    for step in range(steps):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape))
        average.after_step()
        average.after_epoch(step + 1)
        seen.append(copy.deepcopy(network.get_parameter("0.weight").detach()))
    return seen


def build(**changes: object) -> tuple[WeightAverage, nn.Sequential]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))
    options = TrainOptions(data=Path("data"), out=Path("out"), epochs=8, **changes)  # pyright: ignore[reportArgumentType]
    return WeightAverage(options, {"network": network}), network


def test_ema_equals_the_recurrence_written_out() -> None:
    average, network = build(average="ema", average_decay=0.6)
    expected = torch.zeros(4, 3)
    for n, weights in enumerate(walk(average, network, 20)):
        kept = 0.0 if n == 0 else min(0.6, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * weights
    torch.testing.assert_close(average.module("network").get_parameter("0.weight"), expected)
    assert average.count == 20


def test_swa_is_the_mean_of_the_epochs_from_its_start_on() -> None:
    average, network = build(average="swa")  # the last quarter: epochs 7 and 8
    weights = walk(average, network, 8)
    torch.testing.assert_close(average.module("network").get_parameter("0.weight"), (weights[6] + weights[7]) / 2)
    early, network = build(average="swa", average_start=2.0)
    weights = walk(early, network, 8)
    torch.testing.assert_close(early.module("network").get_parameter("0.weight"), torch.stack(weights[2:]).mean(dim=0))


def test_norms_are_measured_under_the_averaged_weights() -> None:
    average, network = build(average="ema")
    walk(average, network, 5)
    batches = [torch.randn(6, 3) for _ in range(4)]
    before = torch.get_rng_state()
    average.estimate_norms(lambda: batches, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    linear, norm = average.module("network")[0], average.module("network")[1]  # pyright: ignore[reportIndexIssue]
    features = [(batch @ linear.weight.T + linear.bias).detach() for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([f.mean(dim=0) for f in features]).mean(dim=0))
    torch.testing.assert_close(norm.running_var, torch.stack([f.var(dim=0) for f in features]).mean(dim=0))
    kept = norm.running_mean.clone()
    average.estimate_norms(lambda: [torch.full((6, 3), 9.0)], seed=1)  # the same average is not measured twice
    assert torch.equal(norm.running_mean, kept)
    walk(average, network, 1)
    average.estimate_norms(lambda: [torch.full((6, 3), 9.0)], seed=1)
    assert not torch.allclose(norm.running_mean, kept)


def test_the_average_is_what_a_training_leaves_behind(tmp_path: Path, faces: Path) -> None:
    plain = train(options(faces, tmp_path / "plain"))
    averaged = train(options(faces, tmp_path / "ema", average="ema", average_decay=0.9))
    trainings = [[record["loss"] for record in result.history] for result in (plain, averaged)]
    assert trainings[0] == trainings[1]
    networks = [load_image_backbone("tiny", result.weights).network.state_dict() for result in (plain, averaged)]
    assert not torch.equal(networks[0]["stem.convolution.weight"], networks[1]["stem.convolution.weight"])
    for name in networks[0]:
        if name.endswith("num_batches_tracked"):
            assert networks[1][name] == 3  # 36 images in batches of 12
    assert averaged.card["made_with"]["averaged_weights"] == 12
