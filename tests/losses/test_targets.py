"""Losses and predictions of classes, labels, ordered classes and values."""

import pytest
import torch
import torch.nn.functional as F

from spadnet.losses.targets import (
    OutputKind,
    TargetLoss,
    balanced_weights,
    num_outputs,
    to_prediction,
)


@pytest.mark.parametrize("kind", ["classification", "multi_label", "ordinal", "regression"])
def test_right_outputs_cost_less_and_gradients_lead_there(kind: OutputKind) -> None:
    width = num_outputs(kind, 3)
    targets = {
        "classification": torch.tensor([[0.0], [1.0], [2.0], [1.0]]),
        "ordinal": torch.tensor([[0.0], [1.0], [2.0], [1.0]]),
        "multi_label": torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]]),
        "regression": torch.tensor([[10.0, 200, 3], [20, 100, 4], [30, 0, 5], [0, 300, 2]]),
    }
    target = targets[kind]
    mean, std = target.mean(0), target.std(0)
    loss = TargetLoss(kind, mean=mean, std=std)
    logits = torch.zeros(4, width, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    first = float(loss(logits.detach(), target))
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    assert float(loss(logits.detach(), target)) < 0.1 * first
    found = to_prediction(kind, logits.detach(), mean=mean, std=std)
    if kind in ("classification", "ordinal"):
        assert found.shape == (4, 3)
        torch.testing.assert_close(found.sum(1), torch.ones(4))
        assert torch.equal(found.argmax(1), target[:, 0].long())
    elif kind == "multi_label":
        assert torch.equal((found > 0.5).float(), target)
    else:
        assert ((found - target).abs() < 0.3 * std).all()


def test_ordered_probabilities_are_never_negative() -> None:
    found = to_prediction("ordinal", torch.tensor([[-5.0, 5.0, 0.0]]))
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(1))


def test_balanced_classes_weigh_alike() -> None:
    weights = balanced_weights(torch.tensor([30, 10, 0]))
    assert weights.tolist() == pytest.approx([40 / 60, 2.0, 0.0])
    logits = torch.randn(40, 3)
    target = torch.tensor([0.0] * 30 + [1.0] * 10)[:, None]
    ours = TargetLoss("classification", weight=weights)(logits, target)
    classes = [
        F.cross_entropy(logits[rows], target[rows, 0].long())
        for rows in (slice(0, 30), slice(30, 40))
    ]
    torch.testing.assert_close(ours, torch.stack(classes).mean())
