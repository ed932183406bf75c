"""Disentanglement by prototypes: voxels of one structure look alike, other structures differ.

Each label of each image has a prototype, the mean of its voxels' features. Prototypes must differ
from one another, and every voxel must be nearest to its own.

Source: RaSD, arXiv 2602.12317. Features and prototypes are scaled to unit length here, which bounds
what the temperature divides. The form for two views takes its prototypes from the other view, so
that features follow the anatomy whatever its appearance; of two equal views it is the form for one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07


def prototype_loss(
    features: Tensor,
    labels: Tensor,
    *,
    num_labels: int,
    other_view: Tensor | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Mean over images of how mixed up their labels' features are.

    Computed in float32. Labels that an image lacks count for nothing; an image of one label gives
    zero. Equal features everywhere give ``2 ln L`` for an image of L labels.

    Args:
        features: Features per position, [B, C, ...].
        labels: Labels of the same positions, integers below ``num_labels``, [B, ...].
        num_labels: Upper bound of labels; more cost time and change nothing.
        other_view: Features of the same anatomies in other images, as ``features``.
        temperature: What similarities are divided by.

    Returns:
        Scalar, nats.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if features.shape[0] != labels.shape[0] or features.shape[2:] != labels.shape[1:]:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit"
        )
    if other_view is not None and other_view.shape != features.shape:
        raise ValueError(
            f"views {tuple(features.shape)} and {tuple(other_view.shape)} differ in shape"
        )
    with torch.autocast(features.device.type, enabled=False):
        index = labels.flatten(1).long()
        members = F.one_hot(index, num_labels).to(_precise(features))  # [B, N, L]
        first = _unit_rows(features)
        own = _prototypes(first, members)
        if other_view is None:
            return _mixed_up(first, own, own, index, members, temperature=temperature)
        second = _unit_rows(other_view)
        others = _prototypes(second, members)
        there = _mixed_up(first, own, others, index, members, temperature=temperature)
        back = _mixed_up(second, others, own, index, members, temperature=temperature)
        return (there + back) / 2


def _precise(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _unit_rows(features: Tensor) -> Tensor:
    """Features [B, N, C] of unit length."""
    return F.normalize(features.to(_precise(features)).flatten(2).transpose(1, 2), dim=-1)


def _prototypes(rows: Tensor, members: Tensor) -> Tensor:
    """Mean direction of each label, [B, L, C]; zero for labels that are not there."""
    # The length of a sum says as little as that of a mean, and needs no division by a count.
    return F.normalize(members.transpose(1, 2) @ rows, dim=-1)


def _mixed_up(
    rows: Tensor,
    own: Tensor,
    prototypes: Tensor,
    index: Tensor,
    members: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Cross-entropies of prototypes and of voxels against the given prototypes."""
    there = members.sum(1) > 0  # [B, L]
    absent = torch.zeros_like(there, dtype=rows.dtype).masked_fill(~there, -torch.inf)[:, None]
    to_each = prototypes.transpose(1, 2) / temperature
    apart = (own @ to_each + absent).log_softmax(-1).diagonal(dim1=1, dim2=2)
    apart = -apart.masked_fill(~there, 0.0).sum(1) / there.sum(1)
    nearest = (rows @ to_each + absent).log_softmax(-1)  # [B, N, L]
    nearest = -nearest.gather(2, index[..., None]).mean((1, 2))
    return (apart + nearest).mean()
