"""Laws of the masked-image-modelling loss and its baselines."""

import math

import pytest
import torch
from torch import Tensor

from spadnet.losses.mim import (
    constant_baseline,
    gather_positions,
    own_mean_baseline,
    soft_cross_entropy,
)


def entropy(probs: Tensor) -> Tensor:
    """Mean entropy of [..., K] in nats."""
    return torch.special.entr(probs).sum(-1).mean()


def test_loss_is_at_least_the_entropy_of_the_target_and_equal_at_equality() -> None:
    target_logits = torch.randn(2, 7, 16)
    target = target_logits.softmax(-1)
    shifted = target_logits + torch.randn(2, 7, 1)  # the same distribution
    assert soft_cross_entropy(shifted, target).item() == pytest.approx(
        entropy(target).item(), abs=1e-5
    )
    for scale in (0.1, 1.0, 5.0):
        other = target_logits + scale * torch.randn(2, 7, 16)
        assert soft_cross_entropy(other, target) > entropy(target)


def test_targets_as_logits_or_probabilities_agree() -> None:
    logits, target = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    assert torch.allclose(
        soft_cross_entropy(logits, target, from_logits=True),
        soft_cross_entropy(logits, target.softmax(-1)),
    )


def test_one_hot_targets_give_the_usual_cross_entropy() -> None:
    logits, label = torch.randn(6, 8), torch.randint(8, (6,))
    assert torch.allclose(
        soft_cross_entropy(logits, torch.eye(8)[label]),
        torch.nn.functional.cross_entropy(logits, label),
    )


def test_loss_ignores_visible_positions() -> None:
    logits = torch.randn(2, 10, 8, requires_grad=True)
    target = torch.randn(2, 10, 8).softmax(-1)
    masked = torch.stack([torch.randperm(10)[:4] for _ in range(2)])
    loss = soft_cross_entropy(logits, target, masked_index=masked)
    loss.backward()
    is_masked = torch.zeros(2, 10, dtype=torch.bool).scatter(1, masked, True)
    assert logits.grad is not None
    assert (logits.grad[~is_masked] == 0).all()
    assert (logits.grad[is_masked].abs().sum(-1) > 0).all()

    changed = torch.where(is_masked[..., None], logits, torch.nan).detach()
    assert torch.equal(loss, soft_cross_entropy(changed, target, masked_index=masked))
    picked = soft_cross_entropy(gather_positions(logits, masked), gather_positions(target, masked))
    assert torch.equal(loss, picked)


def test_gradient_is_predicted_minus_target_and_spares_the_target() -> None:
    logits = torch.randn(5, 8, requires_grad=True)
    target = torch.randn(5, 8, requires_grad=True)
    soft_cross_entropy(logits, target, from_logits=True).backward()
    assert target.grad is None
    assert logits.grad is not None
    expected = (logits.softmax(-1) - target.softmax(-1)) / 5
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_half_precision_logits_are_compared_in_float32() -> None:
    logits, target = torch.randn(4, 1024).bfloat16(), torch.randn(4, 1024).bfloat16()
    loss = soft_cross_entropy(logits, target, from_logits=True)
    assert loss.dtype == torch.float32
    exact = soft_cross_entropy(logits.float(), target.float(), from_logits=True)
    assert torch.equal(loss, exact)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        soft_cross_entropy(torch.randn(1, 4, 8), torch.randn(1, 6, 8))


def test_constant_baseline_is_the_loss_of_the_best_constant() -> None:
    targets = (2 * torch.randn(3, 9, 8)).softmax(-1)
    best = constant_baseline(targets).item()
    mean = targets.mean((0, 1))
    as_prediction = soft_cross_entropy(mean.log().expand_as(targets), targets)
    assert best == pytest.approx(as_prediction.item(), rel=1e-5)
    for _ in range(20):
        other = (mean.log() + 0.1 * torch.randn(8)).expand_as(targets)
        assert soft_cross_entropy(other, targets).item() >= best - 1e-6


def test_own_mean_baseline_is_the_loss_of_each_images_mean() -> None:
    targets = (2 * torch.randn(3, 9, 8)).softmax(-1)
    own = targets.mean(1, keepdim=True).log().expand_as(targets)
    baseline = own_mean_baseline(targets).item()
    assert baseline == pytest.approx(soft_cross_entropy(own, targets).item(), rel=1e-5)
    assert entropy(targets).item() <= baseline <= constant_baseline(targets).item()


def test_baselines_weigh_images_of_different_lengths_by_positions() -> None:
    first, second = torch.eye(4)[[0, 1]], torch.eye(4)[[2] * 6]
    assert own_mean_baseline([first, second]).item() == pytest.approx(2 / 8 * math.log(2))
    mean = torch.tensor([1 / 8, 1 / 8, 6 / 8])
    assert constant_baseline([first, second]).item() == pytest.approx(entropy(mean).item())
    with pytest.raises(ValueError, match="no image"):
        own_mean_baseline([])
