import math

import numpy as np
import pytest
import torch

from backbones.losses.distillation import angular_distillation

NO_IMAGES = torch.empty(0, 3, 8, 8)


def slow_distillation(student: np.ndarray, teacher: np.ndarray) -> float:
    distances = []
    for s, t in zip(student, teacher, strict=True):
        difference = t / math.sqrt(t @ t) - s / math.sqrt(s @ s)
        distances.append(difference @ difference)
    return float(np.mean(distances))


def test_the_term_and_its_slopes_equal_the_slow_definition() -> None:
    rng = np.random.default_rng(0)
    values, wanted = rng.normal(size=(5, 4)) * 7, rng.normal(size=(5, 4))
    student = torch.tensor(values, requires_grad=True)
    teacher = torch.tensor(wanted, requires_grad=True)
    term = angular_distillation(student, teacher)
    assert term.item() == pytest.approx(slow_distillation(values, wanted), abs=1e-12)
    term.backward()
    assert teacher.grad is None
    assert student.grad is not None
    for index in np.ndindex(5, 4):
        up, down = values.copy(), values.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        slope = (slow_distillation(up, wanted) - slow_distillation(down, wanted)) / 2e-6
        assert student.grad[index].item() == pytest.approx(slope, abs=1e-8)


def test_extremes_of_the_term() -> None:
    rows = torch.randn(3, 6)
    assert angular_distillation(4 * rows, rows).item() == pytest.approx(0.0, abs=1e-12)
    assert angular_distillation(-rows, rows).item() == pytest.approx(4.0)
    one = torch.randn(1, 6).bfloat16()
    assert angular_distillation(one, rows[:1]).dtype == torch.float32
    assert angular_distillation(one, rows[:1]).item() == angular_distillation(one.float(), rows[:1]).item()


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"student embeddings are \[2, 3\] and the teacher's \[2, 5\].*embedding_dim 5"
    ):
        angular_distillation(torch.randn(2, 3), torch.randn(2, 5))
