"""What an anatomy looks like in a random scanner: contrast, texture, bias field, noise, blur.

Source: RaSD, arXiv 2602.12317; the Gaussian mixture is that of SynthSeg, arXiv 2107.09559.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.synthesis.fields import (
    gaussian_basis,
    node_grid,
    normal,
    separable_rows,
    spline_basis,
    uniform,
)
from spadnet.synthesis.geometry import Geometry, blocks

Range = tuple[float, float]

GRAIN = 2.5  # distance in pixels of the nodes of the texture
BLUR_RADIUS = 2  # taps on either side; sigma is at most 1 pixel
MIN_SIGMA = 0.25  # a narrower blur changes nothing


class Appearance(NamedTuple):
    """Ranges from which every sample draws uniformly; ``Appearance()`` is a mild scanner.

    Attributes:
        mean: Intensity of a label, within [0, 1].
        texture: Standard deviation of intensity inside a label.
        bias: Standard deviation of the logarithm of the bias field.
        bias_fwhm: Its full width at half maximum, as part of the field of view.
        noise: Standard deviation of the noise, as part of the image's maximum.
        blur: Standard deviation of the blur in pixels, at most 1.
        gamma: Power applied to the image in [0, 1].
    """

    mean: Range = (0.0, 1.0)
    texture: Range = (0.0, 0.06)
    bias: Range = (0.01, 0.1)
    bias_fwhm: Range = (1 / 8, 1 / 4)
    noise: Range = (0.0, 0.06)
    blur: Range = (0.0, 1.0)
    gamma: Range = (0.5, 1.5)

    @classmethod
    def at(cls, severity: float) -> "Appearance":
        """Ranges between a perfect scanner (0) and a very poor one (1)."""
        if not 0 <= severity <= 1:
            raise ValueError(f"severity must be 0 to 1, got {severity}")
        return cls(
            bias=(0.0, 0.3 * severity),
            noise=(0.05 * severity, 0.4 * severity),
            blur=(0.0, min(2 * severity, 1.0)),
            gamma=(1 - 0.5 * severity, 1 + 0.5 * severity),
        )


PUBLISHED = Appearance(texture=(0.0, 0.0), noise=(0.05, 0.4))
"""The ranges of RaSD."""


class Rendering(NamedTuple):
    """An image in [0, 1] and the bias field in it, each [B, D, H, W]."""

    image: Tensor
    bias: Tensor


def draw_clean(
    generators: Sequence[torch.Generator],
    labels: Tensor,
    *,
    geometry: Geometry,
    num_labels: int,
    background: Tensor,
    appearance: Appearance,
) -> Tensor:
    """Give every label an intensity and a texture, and average thin slices to thick ones.

    Args:
        generators: One per sample.
        labels: Thin slices, [B, D * slabs, H, W], uint8.
        geometry: Shared by the samples.
        num_labels: Labels are below it.
        background: Whether label 0 is air and nearly black, bool, [B].
        appearance: Ranges to draw from.

    Returns:
        Intensities in [0, 1], [B, D, H, W].
    """
    device = labels.device
    mean = uniform(generators, num_labels, between=appearance.mean, device=device)
    std = uniform(generators, num_labels, between=appearance.texture, device=device)
    air = background.to(device)
    mean[:, 0] *= torch.where(air, 0.05, 1.0)
    std[:, 0] *= torch.where(air, 0.1, 1.0)

    # Offsets make one table of all samples' labels; index_select takes it at memory speed.
    offset = torch.arange(len(generators), dtype=torch.int32, device=device) * num_labels
    grain, bases = _texture(generators, geometry=geometry, device=device)
    clean = torch.empty(len(generators), *geometry.size, device=device)
    slabs = geometry.slabs
    for rows in blocks(geometry.thin_size, device=device, multiple=slabs):
        index = labels[:, rows].int()
        if len(generators) > 1:
            index += _per_sample(offset)
        shape, index = index.shape, index.flatten()
        thin = mean.flatten().index_select(0, index).view(shape)
        if appearance.texture[1] > 0:
            amount = std.flatten().index_select(0, index).view(shape)
            thin += amount.mul_(separable_rows(grain, bases, rows=rows))
            thin.clamp_(0, 1)
        if slabs > 1:
            thin = thin.unflatten(1, (-1, slabs)).mean(2)
        clean[:, rows.start // slabs : rows.stop // slabs] = thin
    return clean


def render(
    generators: Sequence[torch.Generator],
    clean: Tensor,
    *,
    geometry: Geometry,
    appearance: Appearance,
) -> Rendering:
    """Put bias field, noise, blur and gamma on clean images.

    Args:
        generators: One per sample.
        clean: Intensities in [0, 1], [B, D, H, W].
        geometry: Shared by the samples.
        appearance: Ranges to draw from.
    """
    device = clean.device
    parts = blocks(geometry.size, device=device)
    bias = bias_field(generators, geometry=geometry, appearance=appearance, device=device)
    image, spare = torch.empty_like(clean), None
    for rows in parts:
        torch.mul(clean[:, rows], bias[:, rows], out=image[:, rows])
    if appearance.noise[1] > 0:
        std = uniform(generators, between=appearance.noise, device=device)
        std = _per_sample(std * image.amax((1, 2, 3)))
        spare = normal(generators, *clean.shape[1:], device=device)
        for rows in parts:
            image[:, rows].addcmul_(spare[:, rows], std).abs_()  # scanners show magnitudes
    if appearance.blur[1] > 0:
        sigma = uniform(generators, between=appearance.blur, device=device)
        image = blur(image, sigma=sigma, geometry=geometry, out=spare)
    gamma = uniform(generators, between=appearance.gamma, device=device)
    return Rendering(rescale(image, gamma=gamma), bias)


def bias_field(
    generators: Sequence[torch.Generator],
    *,
    geometry: Geometry,
    appearance: Appearance,
    device: torch.device | str,
) -> Tensor:
    """Draw a smooth factor around 1, [B, D, H, W]."""
    view = geometry.field_of_view
    low, high = appearance.bias_fwhm
    fwhm = uniform(generators, between=(low * view, high * view), device="cpu")
    std = uniform(generators, between=appearance.bias, device=device)
    nodes = [node_grid(span, low * view / 2) for span in geometry.spans()]
    noise = normal(generators, *(grid.num for grid in nodes), device=device)
    bases = [
        None if node.num == 1 else gaussian_basis(grid, nodes=node, fwhm=fwhm, device=device)
        for grid, node in zip(geometry.voxels(thin=False), nodes, strict=True)
    ]
    noise *= _per_sample(std)
    bias = torch.empty(len(generators), *geometry.size, device=device)
    for rows in blocks(geometry.size, device=device):
        torch.exp(separable_rows(noise, bases, rows=rows), out=bias[:, rows])
    return bias


def blur(image: Tensor, *, sigma: Tensor, geometry: Geometry, out: Tensor | None = None) -> Tensor:
    """Blur with a Gaussian that is as wide in mm on every axis.

    Args:
        image: Volumes, [B, D, H, W].
        sigma: Standard deviation in pixels, at most 1, [B].
        geometry: Shared by the samples.
        out: Memory for the result, which is new by default.

    Returns:
        Blurred volumes, [B, D, H, W].
    """
    ratios = [geometry.pixel / step for step in geometry.spacing]
    taps = [_taps(sigma * ratio) if ratio > MIN_SIGMA else None for ratio in ratios]
    depth = image.shape[1]
    out = torch.empty_like(image) if out is None else out
    for rows in blocks(geometry.size, device=image.device):
        # Neighbours on both sides come along, and what they lack is cut off with them.
        first, last = max(rows.start - BLUR_RADIUS, 0), min(rows.stop + BLUR_RADIUS, depth)
        block = _blur_axis(image[:, first:last], taps[0], dim=1)
        block = block[:, rows.start - first : rows.stop - first]
        out[:, rows] = _blur_axis(_blur_axis(block, taps[1], dim=2), taps[2], dim=3)
    return out


def _taps(sigma: Tensor) -> Tensor:
    """Weights of the middle voxel and of those on one side of it, [B, BLUR_RADIUS + 1]."""
    distance = torch.arange(BLUR_RADIUS + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (distance / sigma.clamp_min(1e-3)[:, None]) ** 2)
    return taps / (2 * taps.sum(1, keepdim=True) - 1)


def _blur_axis(image: Tensor, taps: Tensor | None, *, dim: int) -> Tensor:
    """Blur along one dim by a few shifted sums, which beat a convolution on a CPU."""
    size = image.shape[dim]
    if taps is None or size == 1:
        return image
    out = image * _per_sample(taps[:, 0])
    weight = taps[:, :1].repeat(1, size)
    for shift in range(1, min(BLUR_RADIUS + 1, size)):
        tap = _per_sample(taps[:, shift])
        for into, source in ((0, shift), (shift, 0)):
            out.narrow(dim, into, size - shift).addcmul_(
                image.narrow(dim, source, size - shift), tap
            )
            weight[:, into : into + size - shift] += taps[:, shift, None]
    # Near the border some taps fall outside: the others share their weight.
    shape = [len(image), 1, 1, 1]
    for start, stop in ((0, BLUR_RADIUS), (max(size - BLUR_RADIUS, BLUR_RADIUS), size)):
        edge = weight[:, start:stop]
        shape[dim] = edge.shape[1]
        out.narrow(dim, start, edge.shape[1]).div_(edge.reshape(shape))
    return out


def rescale(image: Tensor, *, gamma: Tensor) -> Tensor:
    """Bring every sample to [0, 1] and raise it to a power; a constant one becomes 0.

    Args:
        image: Volumes, [B, D, H, W].
        gamma: Power, [B].

    Returns:
        The same volumes, changed in place.
    """
    # Ten times faster on a CPU than aminmax.
    low, high = (_per_sample(bound) for bound in (image.amin((1, 2, 3)), image.amax((1, 2, 3))))
    span = (high - low).clamp_min(1e-6)
    power = _per_sample(gamma)
    depth, height, width = image.shape[1:]
    for rows in blocks((depth, height, width), device=image.device):
        # exp(g log x) is three times faster than pow on a CPU; the clamp keeps log finite.
        block = image[:, rows].sub_(low).div_(span).clamp_(1e-12, 1)
        block.log_().mul_(power).exp_()
    return image


def _texture(
    generators: Sequence[torch.Generator], *, geometry: Geometry, device: torch.device | str
) -> tuple[Tensor, list[Tensor | None]]:
    """Noise whose product with the returned matrices is a grain of unit variance."""
    cell = GRAIN * math.sqrt(geometry.spacing.y * geometry.spacing.x)
    nodes = [node_grid(span, cell) for span in geometry.spans()]
    noise = normal(generators, *(grid.num for grid in nodes), device=device)
    bases = [
        None if node.num == 1 else spline_basis(grid, nodes=node, device=device)
        for grid, node in zip(geometry.voxels(thin=True), nodes, strict=True)
    ]
    return noise, bases


def _per_sample(values: Tensor) -> Tensor:
    """Shape [B] so that it broadcasts over [B, D, H, W]."""
    return values[:, None, None, None]
