import math

import numpy as np
import pytest
import torch

from backbones.margins import ArcFace, build_head


def slow_arcface(embeddings: np.ndarray, weight: np.ndarray, labels: np.ndarray, s: float, m: float) -> np.ndarray:
    """One logit at a time, by angles, as the paper writes it."""
    logits = np.zeros((len(embeddings), len(weight)))
    for i, embedding in enumerate(embeddings):
        for j, center in enumerate(weight):
            cosine = embedding @ center / math.sqrt((embedding @ embedding) * (center @ center))
            theta = math.acos(min(1.0, max(-1.0, cosine)))
            if j != labels[i]:
                logits[i, j] = s * cosine
            elif theta + m > math.pi:
                logits[i, j] = s * (cosine - m * math.sin(m))
            else:
                logits[i, j] = s * math.cos(theta + m)
    return logits


def planted_head() -> tuple[ArcFace, torch.Tensor, torch.Tensor]:
    """Angles from 0 to pi between embedding and its class, so that both branches are met."""
    generator = torch.Generator().manual_seed(0)
    head = ArcFace(6, 40, scale=64.0, margin=0.5)
    torch.nn.init.normal_(head.weight, generator=generator)
    labels = torch.arange(40)
    axis = torch.nn.functional.normalize(head.weight.detach())
    other = torch.randn(40, 6, generator=generator)
    other = torch.nn.functional.normalize(other - (other * axis).sum(1, keepdim=True) * axis)
    angles = torch.linspace(0.001, math.pi - 0.001, 40)[:, None]
    norms = torch.linspace(0.1, 30, 40)[:, None]
    return head, norms * (angles.cos() * axis + angles.sin() * other), labels


def test_arcface_equals_the_slow_definition() -> None:
    head, embeddings, labels = planted_head()
    expected = slow_arcface(
        embeddings.double().numpy(), head.weight.detach().double().numpy(), labels.numpy(), 64.0, 0.5
    )
    np.testing.assert_allclose(head(embeddings, labels).detach().numpy(), expected, atol=2e-3)


def test_target_logit_falls_as_the_angle_grows() -> None:
    head, embeddings, labels = planted_head()
    target = head(embeddings, labels)[labels, labels]
    assert (target.diff() < 0).all()


def test_gradients_are_finite_even_at_angle_zero_and_pi() -> None:
    head = ArcFace(4, 2)
    embeddings = torch.cat([head.weight.detach(), -head.weight.detach()]).requires_grad_()
    torch.nn.functional.cross_entropy(
        head(embeddings, torch.tensor([0, 1, 0, 1])), torch.tensor([0, 1, 0, 1])
    ).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()


def test_bfloat16_embeddings_give_float32_logits_also_under_autocast() -> None:
    head, embeddings, labels = planted_head()
    rounded = embeddings.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(rounded, labels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(rounded.float(), labels), rtol=0, atol=0)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown head 'softmax', expected one of arcface"):
        build_head("softmax", embedding_dim=4, classes=2, scale=64.0, margin=0.5)
    with pytest.raises(ValueError, match=r"margin is 2.0 radians"):
        ArcFace(4, 2, margin=2.0)
