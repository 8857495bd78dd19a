import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from backbones.options import TrainOptions
from backbones.training.optimization import build_optimizer, schedule

OPTIONS = TrainOptions(data=Path("data"), out=Path("out"))


def test_cosine_rises_and_falls_to_zero() -> None:
    rates = [schedule(step, warmup=10, total=100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert np.diff(rates[:11]).min() > 0 > np.diff(rates[10:]).max()
    assert 0 < rates[-1] < 0.001
    assert rates[55] == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    assert schedule(0, warmup=0, total=1) == 1.0


def test_multistep_falls_at_each_milestone_and_not_before() -> None:
    rates = [
        schedule(step, warmup=2, total=30, shape="multistep", milestones=[10, 20.5], factor=0.1) for step in range(30)
    ]
    assert rates[:3] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert rates[9:12] == pytest.approx([1.0, 0.1, 0.1])
    assert rates[20:22] == pytest.approx([0.1, 0.01])


def test_polynomial_falls_with_its_power() -> None:
    rates = [schedule(step, warmup=0, total=10, shape="polynomial", power=2.0) for step in range(11)]
    assert rates == pytest.approx([(1 - step / 10) ** 2 for step in range(11)])
    assert schedule(7, warmup=0, total=10, shape="constant") == 1.0
    with pytest.raises(ValueError, match="unknown schedule 'x', expected one of cosine"):
        schedule(7, warmup=0, total=10, shape="x")


def slow_step(
    kind: str, value: np.ndarray, gradient: np.ndarray, state: dict[str, np.ndarray], options: TrainOptions
) -> np.ndarray:
    """One step as the papers have it, in float64; vectors neither decay nor are they scaled."""
    decay = options.weight_decay if value.ndim > 1 else 0.0
    if kind == "lars" and value.ndim > 1:
        trust = options.trust_coefficient * np.linalg.norm(value)
        trust /= np.linalg.norm(gradient) + decay * np.linalg.norm(value)
        direction = trust * (gradient + decay * value)
    else:
        direction = gradient + decay * value
    state["moment"] = options.momentum * state.get("moment", 0.0) + direction
    step = direction + options.momentum * state["moment"] if options.nesterov else state["moment"]
    return value - options.learning_rate * step


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_steps_equal_those_written_out(kind: str, nesterov: bool) -> None:
    options = dataclasses.replace(OPTIONS, optimizer=kind, nesterov=nesterov, learning_rate=0.3, weight_decay=0.01)
    generator = np.random.default_rng(0)
    values = [generator.normal(size=(4, 3)), generator.normal(size=3), generator.normal(size=(2, 3, 1, 1))]
    parameters = [nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]
    optimizer = build_optimizer(options, parameters)
    states: list[dict[str, np.ndarray]] = [{} for _ in values]
    for _ in range(5):
        gradients = [generator.normal(size=value.shape) for value in values]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        values = [slow_step(kind, v, g, s, options) for v, g, s in zip(values, gradients, states, strict=True)]
    for parameter, value in zip(parameters, values, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)  # what an import that fails looks like
    with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[optimizers\]'"):
        build_optimizer(dataclasses.replace(OPTIONS, optimizer="lars"), [])
