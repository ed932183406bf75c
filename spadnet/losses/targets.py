"""Losses of classes, labels, ordered classes and values, and what a network's outputs mean."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OutputKind = Literal["classification", "multi_label", "ordinal", "regression"]


def num_outputs(kind: OutputKind, num_classes: int) -> int:
    """Width of a head: ordered classes have one output less, a threshold between neighbours."""
    return num_classes - 1 if kind == "ordinal" else num_classes


class TargetLoss(nn.Module):
    """Loss of a kind of target; values are standardised by the training set's mean and std."""

    mean: Tensor
    std: Tensor
    weight: Tensor | None

    def __init__(
        self,
        kind: OutputKind,
        *,
        weight: Tensor | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        """Configure.

        Args:
            kind: What the targets are.
            weight: Of each class; of the positives of each label; None for 1.
            mean: Of the values to be predicted, [N].
            std: Of the values to be predicted, [N].
            label_smoothing: Share of the probability that is spread over all classes.
        """
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        self.kind = kind
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("mean", torch.zeros(1) if mean is None else mean, persistent=False)
        self.register_buffer("std", torch.ones(1) if std is None else std, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of outputs [B, N] for targets [B, N], or classes by number [B, 1]."""
        logits = logits.float()
        if self.kind == "classification":
            return F.cross_entropy(
                logits,
                target[:, 0].long(),
                weight=self.weight,
                label_smoothing=self.label_smoothing,
            )
        if self.kind == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weight)
        if self.kind == "ordinal":
            thresholds = torch.arange(logits.shape[1], device=logits.device)
            return F.binary_cross_entropy_with_logits(logits, (target > thresholds).float())
        return F.smooth_l1_loss(logits, (target - self.mean) / self.std)


def to_prediction(
    kind: OutputKind, logits: Tensor, *, mean: Tensor | None = None, std: Tensor | None = None
) -> Tensor:
    """Turn a network's outputs [B, N] into probabilities, or into values in their own unit.

    Args:
        kind: What the outputs are.
        logits: The outputs.
        mean: Of the values in training, [N].
        std: Of the values in training, [N].

    Returns:
        Probabilities of classes or labels, or values, [B, N].
    """
    logits = logits.float()
    if kind == "classification":
        return logits.softmax(1)
    if kind == "multi_label":
        return logits.sigmoid()
    if kind == "ordinal":
        above = logits.sigmoid().cummin(1).values  # at least k implies at least k - 1
        ends = above.new_ones(len(above), 1), above.new_zeros(len(above), 1)
        return torch.cat([ends[0], above], 1) - torch.cat([above, ends[1]], 1)
    if mean is not None and std is not None:
        return logits * std.to(logits) + mean.to(logits)
    return logits


def balanced_weights(counts: Tensor) -> Tensor:
    """Weights of classes that make each of them count alike, 1 on average over the cases.

    Args:
        counts: Training cases of each class, [K]; a class without any has weight 0.
    """
    counts = counts.float()
    present = counts > 0
    weights = torch.where(present, counts.sum() / counts.clamp_min(1), torch.zeros_like(counts))
    return weights / present.sum()
