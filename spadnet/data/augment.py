"""Intensity augmentation of a batch, on whatever device it is (section 4 of the method)."""

from typing import NamedTuple

import torch
from torch import Tensor


class IntensityAugment(NamedTuple):
    """Chances and ranges.

    Attributes:
        scale: Largest relative change of all intensities.
        scale_prob: Chance of it.
        contrast: Range of the factor on the distance from the image's mean.
        contrast_prob: Chance of it.
        gamma: Range of the exponent.
        gamma_prob: Chance of it.
        inverted_share: Share of gammas that act on the negative, which changes bright parts more.
    """

    scale: float = 0.25
    scale_prob: float = 0.15
    contrast: tuple[float, float] = (0.75, 1.25)
    contrast_prob: float = 0.15
    gamma: tuple[float, float] = (0.7, 1.5)
    gamma_prob: float = 0.3
    inverted_share: float = 0.5


class IntensityDraw(NamedTuple):
    """What happens to each sample; drawn apart so that ranks can share one draw.

    Attributes:
        scale: Factor on intensities, [B]; 1 changes nothing.
        contrast: Factor on the distance from the mean, [B].
        gamma: Exponent, [B].
        inverted: Whether gamma acts on the negative, [B], bool.
    """

    scale: Tensor
    contrast: Tensor
    gamma: Tensor
    inverted: Tensor

    def rows(self, start: int, stop: int) -> "IntensityDraw":
        """Draw of the samples from ``start`` to ``stop - 1``."""
        return IntensityDraw(*(value[start:stop] for value in self))


def draw_intensity(
    batch: int,
    *,
    generator: torch.Generator,
    augment: IntensityAugment = IntensityAugment(),  # noqa: B008
) -> IntensityDraw:
    """Draw what happens to each sample of a batch.

    Args:
        batch: Samples.
        generator: Source of randomness; the draw is on its device.
        augment: Chances and ranges.
    """
    noise = torch.rand(batch, 7, generator=generator, device=generator.device)
    one = torch.ones((), device=generator.device)
    scale = 1 + augment.scale * (2 * noise[:, 1] - 1)
    contrast = torch.lerp(one * augment.contrast[0], one * augment.contrast[1], noise[:, 3])
    gamma = torch.lerp(one * augment.gamma[0], one * augment.gamma[1], noise[:, 5])
    return IntensityDraw(
        scale=torch.where(noise[:, 0] < augment.scale_prob, scale, one),
        contrast=torch.where(noise[:, 2] < augment.contrast_prob, contrast, one),
        gamma=torch.where(noise[:, 4] < augment.gamma_prob, gamma, one),
        inverted=noise[:, 6] < augment.inverted_share,
    )


def apply_intensity(image: Tensor, draw: IntensityDraw) -> Tensor:
    """Change the intensities of each sample as drawn.

    Args:
        image: Intensities in [0, 1], [B, C, D, H, W].
        draw: One row per sample.

    Returns:
        Changed intensities, clamped to [0, 1]; samples with nothing to change are equal to the
        input.
    """
    changed = image
    scale, contrast, gamma, inverted = (
        value.to(image.device).view(-1, 1, 1, 1, 1) for value in draw
    )
    if (scale != 1).any():
        changed = changed * scale
    if (contrast != 1).any():
        mean = changed.mean(dim=(1, 2, 3, 4), keepdim=True)
        changed = torch.where(contrast != 1, mean + (changed - mean) * contrast, changed)
    changed = changed.clamp(0, 1)
    rows = (draw.gamma != 1).nonzero()[:, 0].tolist()
    if rows:
        # A power costs more than all the rest: only where it is wanted.
        part, flip = changed[rows], inverted[rows]
        part = torch.where(flip, 1 - part, part).pow(gamma[rows])
        changed = changed.clone()
        changed[rows] = torch.where(flip, 1 - part, part)
    return changed


def augment_intensity(
    image: Tensor,
    *,
    generator: torch.Generator,
    augment: IntensityAugment = IntensityAugment(),  # noqa: B008
) -> Tensor:
    """Draw and apply in one go.

    Args:
        image: Intensities in [0, 1], [B, C, D, H, W].
        generator: Source of randomness.
        augment: Chances and ranges.

    Returns:
        Intensities in [0, 1], [B, C, D, H, W].
    """
    draw = draw_intensity(image.shape[0], generator=generator, augment=augment)
    return apply_intensity(image, draw)
