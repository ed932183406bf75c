"""Dice plus cross-entropy over the levels of a decoder."""

import pytest
import torch
import torch.nn.functional as F

from spadnet.losses.segmentation import SegmentationLoss, finer_slices


def test_right_logits_cost_nothing_and_levels_count_half_each() -> None:
    label = torch.zeros(2, 4, 8, 8, dtype=torch.uint8)
    label[:, :, 2:6, 2:6] = 1
    logits = 50 * (F.one_hot(label.long(), 3).permute(0, 4, 1, 2, 3).float() - 0.5)
    loss = SegmentationLoss(num_classes=3)
    right = loss(logits, label)
    # The third class is nowhere: its Dice term is neither rewarded nor punished.
    assert float(right) < 0.01
    wrong = loss(-logits, label)
    assert float(wrong) > 5
    coarse = logits[..., ::2, ::2]
    both = loss([logits, -coarse], label)
    alone = loss(-coarse, label[..., ::2, ::2])
    torch.testing.assert_close(both, (right + 0.5 * alone) / 1.5, rtol=1e-3, atol=1e-3)


def test_flat_levels_and_gradients() -> None:
    label = torch.randint(0, 2, (1, 1, 16, 16), dtype=torch.uint8)
    levels = [torch.randn(1, 2, 1, 16 >> i, 16 >> i, requires_grad=True) for i in range(3)]
    SegmentationLoss(num_classes=2)(levels, label).backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)
    with pytest.raises(ValueError, match="at least two classes"):
        SegmentationLoss(num_classes=1)


def test_a_finer_label_map_is_learnt_between_thick_slices() -> None:
    label = torch.zeros(1, 8, 4, 4, dtype=torch.uint8)
    label[:, 3:] = 1  # the border lies within the first of two thick slices
    loss = SegmentationLoss(num_classes=2)
    logits = torch.zeros(1, 2, 2, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss(logits, label).backward()
        optimizer.step()
    assert torch.equal(finer_slices(logits, 8).argmax(1).to(torch.uint8), label)
    # Logarithms of probabilities serve as well.
    assert torch.equal(finer_slices(logits.log_softmax(1), 8).argmax(1).to(torch.uint8), label)
