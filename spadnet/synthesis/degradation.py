"""Worse scanners for given images, synthetic or real: thick slices, corrupted views, mix-up.

Sources: anatomix, arXiv 2411.02372 (two views of one anatomy); Brain-ID, arXiv 2311.16914 (mild to
severe corruption, mixing of real and synthetic images).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from spadnet.spacing import Spacing
from spadnet.synthesis.appearance import Appearance, render
from spadnet.synthesis.fields import sample_generators, separable, uniform
from spadnet.synthesis.geometry import plan_geometry

VIEW_STREAM = 1 << 20  # streams of random numbers that no synthesis of images uses
MIX_STREAM = 1 << 30
MAX_RESOLUTION_LOSS = 2.5  # standard deviation in pixels of the severest loss of resolution


def thick_slices(volume: Tensor, *, spacing: Spacing, slabs: int) -> tuple[Tensor, Spacing]:
    """Average every ``slabs`` slices into one, as a scanner with thicker slices would.

    Args:
        volume: Intensities, [..., D, H, W], D a multiple of ``slabs``.
        spacing: Spacing of the volume in mm.
        slabs: Slices to average.

    Returns:
        Volume, [..., D / slabs, H, W], and its spacing.
    """
    depth = volume.shape[-3]
    if slabs < 1 or depth % slabs:
        raise ValueError(f"slabs must divide the {depth} slices, got {slabs}")
    if slabs == 1:
        return volume, spacing
    thick = volume.unflatten(-3, (-1, slabs)).mean(-3)
    return thick, spacing._replace(z=spacing.z * slabs)


def thick_labels(thin: Tensor, *, slabs: int) -> Tensor:
    """Take the label in the middle of each thick slice.

    Args:
        thin: Labels of thin slices, [..., D, H, W].
        slabs: Thin slices in a thick one.

    Returns:
        Labels, [..., D / slabs, H, W].
    """
    return thin if slabs == 1 else thin[..., slabs // 2 :: slabs, :, :].contiguous()


def corrupted_views(
    seeds: Sequence[int], image: Tensor, *, spacing: Spacing, severities: Sequence[float]
) -> list[Tensor]:
    """Show the same images through several scanners, one per severity.

    Loss of resolution, bias field, noise, blur and gamma grow with severity. For views that differ
    in contrast too, call ``synthesize`` with several values of ``view``.

    Args:
        seeds: One per sample; a sample's views depend on its own seed only.
        image: Intensities in [0, 1], [B, 1, D, H, W].
        spacing: Spacing of the images in mm.
        severities: From 0, nearly unchanged, to 1.

    Returns:
        One batch in [0, 1] per severity, each [B, 1, D, H, W].
    """
    if image.dim() != 5 or image.shape[:2] != (len(seeds), 1):
        raise ValueError(
            f"image must be [{len(seeds)}, 1, D, H, W], one per seed, got {list(image.shape)}"
        )
    depth, height, width = image.shape[2:]
    geometry = plan_geometry((depth, height, width), spacing=spacing, field_of_view=None)
    views = []
    for index, severity in enumerate(severities):
        generators = sample_generators(seeds, stream=VIEW_STREAM + index)
        appearance = Appearance.at(severity)
        sigma = uniform(generators, 2, between=(0.0, MAX_RESOLUTION_LOSS * severity), device="cpu")
        # Real scanners are coarse through the slices or within them, not alike in both.
        bases = [
            None if count == 1 else _smoothing(count, sigma=sigma[:, number]).to(image.device)
            for count, number in ((depth, 0), (height, 1), (width, 1))
        ]
        coarse = separable(image[:, 0].float(), bases)
        rendering = render(generators, coarse, geometry=geometry, appearance=appearance)
        views.append(rendering.image[:, None])
    return views


def mix_up(
    seeds: Sequence[int],
    real: Tensor,
    synthetic: Tensor,
    *,
    between: tuple[float, float] = (0.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Blend real with synthetic images.

    Args:
        seeds: One per sample.
        real: Intensities in [0, 1], [B, C, D, H, W].
        synthetic: As many synthetic images, same shape.
        between: Range of the real image's share.

    Returns:
        Blended images, [B, C, D, H, W], and the share of the real one, [B].
    """
    if real.shape != synthetic.shape or len(real) != len(seeds):
        raise ValueError(
            f"need {len(seeds)} images of one shape, got {list(real.shape)} and "
            f"{list(synthetic.shape)}"
        )
    share = uniform(
        sample_generators(seeds, stream=MIX_STREAM), between=between, device=real.device
    )
    return torch.lerp(synthetic, real, share.view(-1, 1, 1, 1, 1)), share


def _smoothing(count: int, *, sigma: Tensor) -> Tensor:
    """Gaussian smoothing along an axis of ``count`` voxels as a matrix, [B, count, count]."""
    place = torch.arange(count, dtype=torch.float32)
    distance = (place[:, None] - place) / sigma.clamp_min(1e-3)[:, None, None]
    weight = torch.exp(-0.5 * distance**2)
    return weight / weight.sum(2, keepdim=True)
