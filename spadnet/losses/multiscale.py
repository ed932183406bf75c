"""The default perceptual loss: differences in a Laplacian pyramid, seen against local contrast.

It needs no network and no download, works on whole volumes, and treats every modality alike.

What an eye notices of a difference depends on its scale and on the contrast around it: 2 % of the
range is nothing beside bone and everything inside the liver. A plain L1 or L2 sees neither and
rewards blur. Here each image is taken apart into bands of detail one, two, four, ... pixels wide
(Burt and Adelson 1983), each of which counts the same; within a band, two things are compared:

- *structure*: the difference of the bands, divided by the target's local contrast (the divisive
  normalisation of the normalised Laplacian pyramid, Laparra et al. 2016; the unweighted form is
  the Lap1 loss of Bojanowski et al., arXiv 1707.05776);
- *texture*: the difference of the bands' local amplitudes, on the same scale. Where detail cannot
  be rebuilt in place, the right amount of it is still better than none; blur lacks it.

What remains below the last band, the local means, is compared directly. With four bands they are
means over 16 pixels: one token of the tokenizer.

Slices thicker than pixels: a level halves depth only when pixels have become as large as slices
are thick, as every SPAD layer does. So at degree 0 no axis is special, and while slices are thicker
than a level's pixels they are compared one by one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.spacing import depth_stride


def halve(x: Tensor, degree: int) -> Tensor:
    """Average neighbouring pixels in-plane, and slices where they are no thicker than pixels.

    Args:
        x: Volume of any size, [B, C, D, H, W].
        degree: Anisotropy of ``x``.

    Returns:
        Volume, [B, C, ceil(D / depth_stride), ceil(H / 2), ceil(W / 2)].
    """
    strides = (depth_stride(2, degree), 2, 2)
    kernel = [min(step, size) for step, size in zip(strides, x.shape[-3:], strict=True)]
    return F.avg_pool3d(x, kernel, ceil_mode=True, count_include_pad=False)


def enlarge(x: Tensor, size: torch.Size) -> Tensor:
    """Interpolate [B, C, d, h, w] linearly to the given size (D, H, W)."""
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)


def laplacian_pyramid(x: Tensor, degree: int, *, num_bands: int) -> list[Tensor]:
    """Split a volume into bands of detail, fine to coarse, and the smooth rest.

    Args:
        x: Volume, [B, C, D, H, W].
        degree: Anisotropy of ``x``.
        num_bands: Largest number of bands; fewer where the volume is smaller than that.

    Returns:
        Bands, each half as large as the one before, and the rest as last.
    """
    bands = []
    for level in range(num_bands):
        if max(x.shape[-3:]) == 1:
            break
        smaller = halve(x, max(degree - level, 0))
        bands.append(x - enlarge(smaller, x.shape[-3:]))
        x = smaller
    return [*bands, x]


class MultiscalePerceptual(nn.Module):
    """Contrast-weighted difference of two images over the scales; see the module's text.

    Zero for identical images only; of the order of 1 where all detail is lost.

    >>> perceptual = MultiscalePerceptual()
    >>> x = torch.rand(1, 1, 8, 32, 32)
    >>> perceptual(x, x, degree=1).item()
    0.0
    """

    def __init__(
        self, *, num_bands: int = 4, texture_weight: float = 0.5, contrast_floor: float = 0.05
    ) -> None:
        """Build the loss.

        Args:
            num_bands: Number of bands; the last holds detail ``2**(num_bands - 1)`` pixels wide.
            texture_weight: Weight of the amplitudes' difference beside that of the bands.
            contrast_floor: Contrast, as a share of the intensity range, below which differences
                no longer gain weight: the level of noise.
        """
        super().__init__()
        if num_bands < 1 or contrast_floor <= 0:
            raise ValueError(
                "num_bands and contrast_floor must be positive, "
                f"got {num_bands} and {contrast_floor}"
            )
        self.num_bands = num_bands
        self.texture_weight = texture_weight
        self.contrast_floor = contrast_floor

    def forward(
        self, x: Tensor, y: Tensor, *, degree: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compare a reconstruction with its target.

        Args:
            x: Reconstruction, [B, C, D, H, W].
            y: Target in [0, 1], [B, C, D, H, W].
            degree: Degree of anisotropy of both.
            generator: Unused: nothing is drawn, all slices count.

        Returns:
            Scalar in float32.
        """
        with torch.autocast(x.device.type, enabled=False):
            *bands_x, rest_x = laplacian_pyramid(x.float(), degree, num_bands=self.num_bands)
            with torch.no_grad():
                *bands_y, rest_y = laplacian_pyramid(y.float(), degree, num_bands=self.num_bands)
            loss = (rest_x - rest_y).abs().mean()
            for level, (band_x, band_y) in enumerate(zip(bands_x, bands_y, strict=True)):
                difference = self._compare(band_x, band_y, max(degree - level, 0))
                loss = loss + difference / len(bands_x)
        return loss

    def _compare(self, band_x: Tensor, band_y: Tensor, degree: int) -> Tensor:
        """Structure and texture of one band."""
        with torch.no_grad():
            amplitude_y = _local_amplitude(band_y, degree)
            contrast = amplitude_y + self.contrast_floor
            contrast_here = enlarge(contrast, band_y.shape[-3:])
        structure = ((band_x - band_y).abs() / contrast_here).mean()
        if self.texture_weight == 0:
            return structure
        texture = (_local_amplitude(band_x, degree) - amplitude_y).abs() / contrast
        return structure + self.texture_weight * texture.mean()


def _local_amplitude(band: Tensor, degree: int) -> Tensor:
    """Mean magnitude of a band over windows of four pixels."""
    return halve(halve(band.abs(), degree), max(degree - 1, 0))
