"""Dice plus cross-entropy at every level of a decoder (deep supervision)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn


class SegmentationLoss(nn.Module):
    """MONAI's Dice + cross-entropy, weighed 0.5^i at the i-th level and normalised.

    Coarser levels are compared with the label map at the voxels nearest to theirs. Where the label
    map has finer slices than the finest level, its logits are interpolated between slices: a
    network learns from thick slices where in them a border lies. Source: nnU-Net.
    """

    def __init__(self, *, num_classes: int, include_background: bool = False) -> None:
        """Configure.

        Args:
            num_classes: Channels of the logits, background included.
            include_background: Whether the Dice term counts the background.
        """
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a label map has at least two classes, got {num_classes}")
        self.loss = DiceCELoss(
            include_background=include_background,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
        )

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Mean loss of logits [B, K, D, H, W], or one per level, for classes [B, n * D, H, W]."""
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        if levels[0].shape[2] != target.shape[1]:
            levels[0] = finer_slices(levels[0].float(), target.shape[1])
        weights = [0.5**level for level in range(len(levels))]
        shrink = partial(F.interpolate, target[:, None].float(), mode="nearest-exact")
        losses = [
            weight * self.loss(level.float(), shrink(size=level.shape[2:]))
            for weight, level in zip(weights, levels, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)


def finer_slices(logits: Tensor, depth: int) -> Tensor:
    """Interpolate logits, or logarithms of probabilities, linearly between slices.

    Logits, not probabilities: between sure neighbours these would always meet halfway.

    Args:
        logits: [B, K, D, H, W].
        depth: Number of thin slices; they cover the same extent as the thick ones.

    Returns:
        [B, K, depth, H, W].
    """
    size = (depth, *logits.shape[3:])
    return F.interpolate(logits, size=size, mode="trilinear", align_corners=False)
