import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from backbones.losses.heads import HEADS, ArcFace, ArcNegFace, CosFace, Head, MarginHead, Softmax, build_head

MARGINS = {"arcface": 0.5, "cosface": 0.4, "arcnegface": 0.5}


def slow_target(cosine: float, m: float) -> float:
    theta = math.acos(min(1.0, max(-1.0, cosine)))
    return cosine - m * math.sin(m) if theta + m > math.pi else math.cos(theta + m)


def slow_logits(
    name: str, cosines: np.ndarray, labels: np.ndarray, s: float, m: float, constant: np.ndarray | None = None
) -> np.ndarray:
    """One logit at a time, by angles, as the papers write it; `constant` takes the place of cosines in t_j."""
    logits = np.zeros_like(cosines)
    constant = cosines if constant is None else constant
    for i, row in enumerate(cosines):
        y = labels[i]
        for j, cosine in enumerate(row):
            if name == "cosface":
                logits[i, j] = s * (cosine - m if j == y else cosine)
            elif j == y:
                logits[i, j] = s * slow_target(cosine, m)
            elif name == "arcface":
                logits[i, j] = s * cosine
            else:
                difference = constant[i, j] - slow_target(constant[i, y], m)
                t = 1.2 * math.exp(-(difference**2) / 2.0)
                logits[i, j] = s * (t * cosine + t - 1.0)
    return logits


def slow_cosines(embeddings: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.array([[e @ w / math.sqrt((e @ e) * (w @ w)) for w in weight] for e in embeddings])


def slow_cross_entropy(logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    losses = []
    for row, label in zip(logits, labels, strict=True):
        log_shares = row - row.max() - math.log(np.exp(row - row.max()).sum())
        losses.append(-(1 - smoothing) * log_shares[label] - smoothing * log_shares.mean())
    return float(np.mean(losses))


def slopes(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central finite differences, one number at a time."""
    found = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up) - function(down)) / (2 * step)
    return found


def planted_head(name: str = "arcface") -> tuple[Head, torch.Tensor, torch.Tensor]:
    """Angles from 0 to pi between embedding and its class, so that both branches are met."""
    generator = torch.Generator().manual_seed(0)
    head = build_head(name, embedding_dim=6, classes=40)
    torch.nn.init.normal_(head.weight, generator=generator)
    labels = torch.arange(40)
    axis = F.normalize(head.weight.detach())
    other = torch.randn(40, 6, generator=generator)
    other = F.normalize(other - (other * axis).sum(1, keepdim=True) * axis)
    angles = torch.linspace(0.001, math.pi - 0.001, 40)[:, None]
    norms = torch.linspace(0.1, 30, 40)[:, None]
    return head, norms * (angles.cos() * axis + angles.sin() * other), labels


@pytest.mark.parametrize("name", MARGINS)
def test_logits_equal_the_slow_definition(name: str) -> None:
    head, embeddings, labels = planted_head(name)
    cosines = slow_cosines(embeddings.double().numpy(), head.weight.detach().double().numpy())
    past_pi = np.arccos(np.diag(cosines)) + 0.5 > math.pi
    assert 3 < past_pi.sum() < 37
    expected = slow_logits(name, cosines, labels.numpy(), 64.0, MARGINS[name])
    np.testing.assert_allclose(head(embeddings, labels).detach().numpy(), expected, atol=2e-3)


def test_softmax_is_a_linear_map_without_scale_or_bias() -> None:
    head, embeddings, labels = planted_head("softmax")
    expected = embeddings.double().numpy() @ head.weight.detach().double().numpy().T
    np.testing.assert_allclose(head(embeddings, labels).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in head.named_parameters()] == ["weight"]


@pytest.mark.parametrize("name", MARGINS)
def test_gradients_of_the_loss_equal_finite_differences(name: str) -> None:
    margin = MARGINS[name]
    rng = np.random.default_rng(1)
    cosines, labels = rng.uniform(-0.99, 0.99, size=(8, 5)), rng.integers(5, size=8)
    cosines[np.arange(8), labels] = np.linspace(-0.99, 0.99, 8)  # on both sides of cos(pi - m)
    head = HEADS[name](3, 5)
    assert isinstance(head, MarginHead)
    head.scale = 8.0  # the exponentials of 64 leave few digits for differences
    scores = torch.tensor(cosines, requires_grad=True)
    F.cross_entropy(head.logits(scores, torch.tensor(labels)), torch.tensor(labels), label_smoothing=0.1).backward()

    def loss(at: np.ndarray) -> float:
        return slow_cross_entropy(slow_logits(name, at, labels, 8.0, margin, cosines), labels, 0.1)

    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.numpy(), slopes(loss, cosines), atol=1e-7)


def test_no_gradient_flows_through_the_weights_of_arcnegface() -> None:
    head = ArcNegFace(3, 2, scale=1.0)
    scores = torch.tensor([[0.3, 0.6]], dtype=torch.float64, requires_grad=True)
    head.logits(scores, torch.tensor([0]))[0, 1].backward()  # would reach the target's score through t_1
    t = 1.2 * math.exp(-((0.6 - slow_target(0.3, 0.5)) ** 2) / 2)
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.numpy(), [[0.0, t]], rtol=1e-12)


def test_gradients_of_the_cosines_equal_the_formula() -> None:
    head, embeddings, labels = planted_head()
    embeddings.requires_grad_()
    head.scores(embeddings)[labels, (labels + 1) % 40].sum().backward()
    weight, e = head.weight.detach().double(), embeddings.detach().double()
    right, lengths = F.normalize(weight)[(labels + 1) % 40], e.norm(dim=1, keepdim=True)
    cosine = (right * e).sum(1, keepdim=True) / lengths
    assert embeddings.grad is not None
    torch.testing.assert_close(embeddings.grad.double(), (right - cosine * e / lengths) / lengths, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MARGINS)
def test_target_logit_falls_as_the_angle_grows(name: str) -> None:
    head, embeddings, labels = planted_head(name)
    target = head(embeddings, labels)[labels, labels]
    assert (target.diff() < 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_finite_even_at_angle_zero_and_pi(name: str) -> None:
    head = build_head(name, embedding_dim=4, classes=2)
    embeddings = torch.cat([head.weight.detach(), -head.weight.detach()]).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    logits = head(embeddings, labels)
    if name in MARGINS:
        cosines = np.array([[c, 0.0] for c in (1.0, 1.0, -1.0, -1.0)])  # the other class has no say in the target
        expected = slow_logits(name, cosines, np.zeros(4, int), 64.0, MARGINS[name])[:, 0]
        np.testing.assert_allclose(logits[torch.arange(4), labels].detach().numpy(), expected, atol=0.05)
    F.cross_entropy(logits, labels).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_embeddings_give_float32_logits_also_under_autocast(name: str) -> None:
    head, embeddings, labels = planted_head(name)
    rounded = embeddings.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(rounded, labels)
    assert logits.dtype == head.scores(rounded).dtype == torch.float32
    torch.testing.assert_close(logits, head(rounded.float(), labels), rtol=0, atol=0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_class_has_no_loss_and_no_gradient(name: str, smoothing: float) -> None:
    head = build_head(name, embedding_dim=4, classes=1)
    embeddings, labels = torch.randn(3, 4, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    loss = F.cross_entropy(head(embeddings, labels), labels, label_smoothing=smoothing)
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_one_is_a_row_of_a_larger_one(name: str) -> None:
    head, embeddings, labels = planted_head(name)
    alone = head(embeddings[7:8], labels[7:8])
    torch.testing.assert_close(alone, head(embeddings, labels)[7:8], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_the_largest_score_predicts(name: str) -> None:
    head, embeddings, _ = planted_head(name)
    cosines = slow_cosines(embeddings.double().numpy(), head.weight.detach().double().numpy())
    lengths = np.linalg.norm(head.weight.detach().numpy(), axis=1)
    nearest = (cosines * lengths if name == "softmax" else cosines).argmax(axis=1)
    assert head.scores(embeddings).argmax(dim=1).tolist() == nearest.tolist()


def test_label_smoothing_is_the_usual_one() -> None:
    head, embeddings, labels = planted_head("cosface")
    logits = head(embeddings, labels)
    expected = slow_cross_entropy(logits.detach().double().numpy(), labels.numpy(), 0.1)
    assert F.cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(expected, rel=1e-5)


def test_every_head_starts_from_its_published_margin() -> None:
    for name, margin in MARGINS.items():
        head = build_head(name, embedding_dim=4, classes=3)
        assert isinstance(head, MarginHead)
        assert (head.margin, head.scale) == (margin, 64.0)
        assert head.weight.shape == (3, 4)
    chosen = build_head("cosface", embedding_dim=4, classes=3, scale=30.0, margin=0.0)
    assert isinstance(chosen, CosFace)
    assert (chosen.scale, chosen.margin) == (30.0, 0.0)
    assert type(build_head("softmax", embedding_dim=4, classes=3, scale=64.0, margin=0.0)) is Softmax


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown head 'arc', expected one of softmax, arcface, cosface, arcnegface"):
        build_head("arc", embedding_dim=4, classes=2)
    with pytest.raises(ValueError, match=r"margin is 2\.0 radians, expected 0 to 1\.571; 0\.5 is usual"):
        ArcFace(4, 2, margin=2.0)
    with pytest.raises(ValueError, match=r"margin is -0\.1 of cosine, expected 0 to 1; 0\.4 is usual"):
        CosFace(4, 2, margin=-0.1)
    with pytest.raises(ValueError, match=r"scale is 0\.0, expected above 0"):
        ArcFace(4, 2, scale=0.0)
    with pytest.raises(ValueError, match=r"margin is 0\.5, and the head softmax has none"):
        build_head("softmax", embedding_dim=4, classes=2, margin=0.5)
