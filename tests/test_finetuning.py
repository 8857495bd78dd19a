import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from backbones.training.finetuning import anchor_weights, resample_projection


def test_anchors_are_the_directions_of_mean_features() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 4)) * rng.uniform(0.1, 50, size=(30, 1)), np.arange(30) % 7
    expected = []
    for label in range(7):
        own = [row / math.sqrt(row @ row) for row, other in zip(features, labels, strict=True) if other == label]
        mean = np.mean(own, axis=0)
        expected.append(mean / math.sqrt(mean @ mean))
    found = anchor_weights(torch.tensor(features).float(), torch.tensor(labels), 7)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    one = anchor_weights(torch.tensor([[0.0, 3.0]]).bfloat16(), torch.tensor([0]), 1)
    assert one.tolist() == [[0.0, 1.0]]


def test_anchors_need_usable_features_of_every_identity() -> None:
    features, labels = torch.eye(3), torch.tensor([0, 2, 2])
    with pytest.raises(ValueError, match=r"2 of 4 identities have no feature, the first is label 1"):
        anchor_weights(features, labels, 4)
    with pytest.raises(ValueError, match=r"labels lie in 0 to 2, expected 0 to 1"):
        anchor_weights(features, labels, 2)
    opposite = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    with pytest.raises(ValueError, match=r"features of 1 of 2 identities cancel out or are not finite, as of label 1"):
        anchor_weights(opposite, torch.tensor([0, 1, 1]), 2)
    with pytest.raises(ValueError, match=r"not finite, as of label 0"):
        anchor_weights(torch.tensor([[torch.nan, 0.0]]), torch.tensor([0]), 1)


@pytest.mark.parametrize("side", [2, 4, 9, 12])
def test_a_resampled_projection_sees_the_old_map(side: int) -> None:
    torch.manual_seed(0)
    weight, maps = torch.randn(5, 3 * 4 * 4), torch.randn(7, 3, side, side)
    resampled = resample_projection(weight, channels=3, positions=side * side)
    old_maps = F.interpolate(maps, (4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(maps.flatten(1) @ resampled.T, old_maps.flatten(1) @ weight.T, rtol=1e-4, atol=1e-5)
