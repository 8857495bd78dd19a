import math

import numpy as np
import pytest
import torch

from backbones.losses.heads import ArcFace, build_head
from backbones.losses.influence import UNKNOWN, InfluenceLoss, match_classes


def old_head() -> ArcFace:
    torch.manual_seed(0)
    head = ArcFace(5, 3, scale=16.0, margin=0.3)
    torch.nn.init.normal_(head.weight)
    return head


def slow_influence(embeddings: np.ndarray, weight: np.ndarray, classes: list[int], s: float, m: float) -> float:
    losses = []
    for e, y in zip(embeddings, classes, strict=True):
        if y < 0:
            continue
        cosines = [e @ w / math.sqrt((e @ e) * (w @ w)) for w in weight]
        theta = math.acos(cosines[y])
        target = cosines[y] - m * math.sin(m) if theta + m > math.pi else math.cos(theta + m)
        logits = [s * (target if j == y else c) for j, c in enumerate(cosines)]
        losses.append(math.log(sum(math.exp(v - logits[y]) for v in logits)))
    return float(np.mean(losses))


def test_identities_are_matched_by_name() -> None:
    assert match_classes(["d", "a", "x", "b"], ["a", "b", "c", "d"]).tolist() == [3, 0, UNKNOWN, 1]


def test_the_loss_is_the_old_classifiers_over_the_rows_it_knows() -> None:
    head = old_head()
    loss = InfluenceLoss(head, torch.tensor([2, UNKNOWN, 0, UNKNOWN]))
    embeddings, labels = torch.randn(7, 5, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 2, 1])
    found = loss(embeddings, labels)
    weight = head.weight.detach().double().numpy()
    classes = [2, -1, 0, -1, 2, 0, -1]
    expected = slow_influence(embeddings.detach().double().numpy(), weight, classes, 16.0, 0.3)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert embeddings.grad is not None
    unknown = torch.tensor([y < 0 for y in classes])
    assert not embeddings.grad[unknown].any()
    assert embeddings.grad[~unknown].any(dim=1).all()
    at = embeddings.detach().double().numpy()
    for index in [(0, 0), (2, 3), (5, 1)]:
        up, down = at.copy(), at.copy()
        up[index] += 1e-5
        down[index] -= 1e-5
        slope = slow_influence(up, weight, classes, 16.0, 0.3) - slow_influence(down, weight, classes, 16.0, 0.3)
        assert embeddings.grad[index].item() == pytest.approx(slope / 2e-5, rel=1e-3, abs=1e-4)


def test_the_old_weights_never_learn_and_the_callers_head_is_left_alone() -> None:
    head = old_head()
    loss = InfluenceLoss(head, torch.tensor([0, 1]))
    loss(torch.randn(2, 5, requires_grad=True), torch.tensor([0, 1])).backward()
    assert [parameter.requires_grad for parameter in loss.parameters()] == [False]
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert head.weight.requires_grad
    with torch.no_grad():
        head.weight.zero_()
    assert loss.old_head.weight.any()


def test_a_batch_of_strangers_has_no_loss_but_can_be_differentiated() -> None:
    loss = InfluenceLoss(old_head(), torch.tensor([0, UNKNOWN]))
    embeddings = torch.randn(3, 5, requires_grad=True)
    found = loss(embeddings, torch.tensor([1, 1, 1]))
    assert found.item() == 0.0
    found.backward()
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_every_kind_of_old_head_and_half_precision() -> None:
    for name in ("softmax", "cosface", "arcnegface"):
        head = build_head(name, embedding_dim=5, classes=3)
        loss = InfluenceLoss(head, torch.tensor([0, 1, 2]), label_smoothing=0.1)
        embeddings, labels = torch.randn(1, 5).bfloat16(), torch.tensor([1])
        expected = torch.nn.functional.cross_entropy(head(embeddings.float(), labels), labels, label_smoothing=0.1)
        assert loss(embeddings, labels).item() == expected.item()


def test_mistakes_are_named() -> None:
    loss = InfluenceLoss(old_head(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"new embeddings have 4 dimensions and the old head 5.*embedding_dim 5"):
        loss(torch.randn(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"none of the 2 identities is among the 3 of the old head"):
        InfluenceLoss(old_head(), torch.tensor([UNKNOWN, UNKNOWN]))
    with pytest.raises(ValueError, match=r"old_classes lie in 0 to 3, expected -1 to 2"):
        InfluenceLoss(old_head(), torch.tensor([0, 3]))
