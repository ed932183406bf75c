"""Losses of masked image modelling (stage 2) and the baselines that put them into perspective.

The target is the frozen tokenizer's distribution over codes; only masked positions count.
Source: the SPAD-ViT of arXiv 2312.07630.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def gather_positions(x: Tensor, index: Tensor) -> Tensor:
    """Pick positions of each sequence.

    Args:
        x: Sequences, [B, L, K].
        index: Positions to pick, [B, M].

    Returns:
        Picked rows, [B, M, K].
    """
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    masked_index: Tensor | None = None,
    from_logits: bool = False,
) -> Tensor:
    """Cross-entropy ``-sum(q log p)`` with a distribution as target, mean over positions.

    Computed in float32; no gradient reaches the target. Never less than the target's mean entropy.

    Args:
        logits: Predictions, [..., K]; [B, L, K] where ``masked_index`` is given.
        target: Distribution over codes or its logits, same shape.
        masked_index: Positions that count, [B, M]; None: every position given counts.
        from_logits: Whether ``target`` holds logits instead of probabilities.

    Returns:
        Scalar, nats.
    """
    if masked_index is not None and logits.shape == target.shape:
        logits = gather_positions(logits, masked_index)
        target = gather_positions(target, masked_index)
    return position_cross_entropy(logits, target, from_logits=from_logits).mean()


def position_cross_entropy(logits: Tensor, target: Tensor, *, from_logits: bool = False) -> Tensor:
    """Cross-entropy ``-sum(q log p)`` of each position, see :func:`soft_cross_entropy`.

    Args:
        logits: Predictions, [..., K].
        target: Distribution over codes or its logits, same shape.
        from_logits: Whether ``target`` holds logits instead of probabilities.

    Returns:
        [...], nats.
    """
    if logits.shape != target.shape:
        raise ValueError(
            f"predictions {tuple(logits.shape)} and targets {tuple(target.shape)} differ in shape"
        )
    target = target.detach().float()
    if from_logits:
        target = target.softmax(-1)
    return -(target * logits.float().log_softmax(-1)).sum(-1)


def constant_baseline(targets: Tensor | Sequence[Tensor]) -> Tensor:
    """Cross-entropy of the best constant prediction: the entropy of the mean target.

    Args:
        targets: Target distributions, [..., K], or several such tensors of any lengths.

    Returns:
        Scalar in float64, nats.
    """
    parts = [targets] if isinstance(targets, Tensor) else list(targets)
    return _entropy_of_mean(torch.cat([part.flatten(0, -2) for part in parts]))


def own_mean_baseline(targets: Tensor | Sequence[Tensor]) -> Tensor:
    """Cross-entropy of predicting each image's own mean target at all of its positions.

    What a predictor reaches that knows the image's overall look and nothing of its layout. Images
    count by their number of positions, as in a mean over all positions.

    Args:
        targets: Target distributions, [B, L, K], or one [L, K] per image.

    Returns:
        Scalar in float64, nats.
    """
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for image in targets:
        rows = image.flatten(0, -2)
        total = total + rows.shape[0] * _entropy_of_mean(rows).to(total.device)
        count += rows.shape[0]
    if count == 0:
        raise ValueError("own_mean_baseline got no image")
    return total / count


def _entropy_of_mean(rows: Tensor) -> Tensor:
    """Entropy of the mean of [N, K]."""
    return torch.special.entr(rows.mean(0, dtype=torch.float64)).sum()
