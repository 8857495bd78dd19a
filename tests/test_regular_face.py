import math

import numpy as np
import pytest
import torch

from backbones.losses.regular_face import regular_face


def slow_regular_face(weight: np.ndarray) -> float:
    largest = []
    for i, a in enumerate(weight):
        cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for j, b in enumerate(weight) if j != i]
        largest.append(max(cosines))
    return float(np.mean(largest))


def test_it_equals_the_slow_definition_and_its_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.losses.regular_face.BLOCK_ROWS", 3)  # several blocks, the last one short
    values = np.random.default_rng(0).normal(size=(7, 4))
    weight = torch.tensor(values, requires_grad=True)
    term = regular_face(weight)
    assert term.dtype == torch.float64
    assert term.item() == pytest.approx(slow_regular_face(values), abs=1e-12)
    term.backward()
    assert weight.grad is not None
    for index in np.ndindex(7, 4):
        up, down = values.copy(), values.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        slope = (slow_regular_face(up) - slow_regular_face(down)) / 2e-6
        assert weight.grad[index].item() == pytest.approx(slope, abs=1e-7)


def test_extremes() -> None:
    assert regular_face(torch.tensor([[1.0, 2.0]])).item() == 0.0  # one class
    assert regular_face(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).item() == pytest.approx(1.0)
    assert regular_face(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(-1.0)
    assert regular_face(torch.eye(5)).item() == 0.0
    half = torch.randn(6, 3).bfloat16()
    assert regular_face(half).item() == regular_face(half.float()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert regular_face(half).item() == regular_face(half.float()).item()
