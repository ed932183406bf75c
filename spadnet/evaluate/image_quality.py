"""PSNR and structural similarity of large volumes, a few slices at a time."""

import math
from typing import NamedTuple

from torch import Tensor

from spadnet.evaluate.tokenizer_figures import ssim

_SMALLEST_MSE = 1e-10  # 100 dB
_SSIM_DEPTH = 11  # slices of the window at degree 0
_MAX_VOXELS = 1 << 22


class Quality(NamedTuple):
    """How like an image its reconstruction is.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB of intensities in [0, 1], at most 100.
        ssim: Structural similarity, see :func:`spadnet.evaluate.tokenizer_figures.ssim`.
    """

    psnr: float
    ssim: float


def image_quality(
    prediction: Tensor, image: Tensor, degree: int, *, max_voxels: int = _MAX_VOXELS
) -> Quality:
    """Compare two volumes; the result is that of the whole, the memory that of some slices.

    Args:
        prediction: Intensities in [0, 1], [C, D, H, W].
        image: Same shape.
        degree: Degree of anisotropy.
        max_voxels: Voxels compared at a time, at least those of the window's slices.
    """
    depth = image.shape[1]
    step = max(max_voxels // (image.numel() // depth), 1)
    error = 0.0
    for start in range(0, depth, step):
        part = slice(start, start + step)
        error += (prediction[:, part].double() - image[:, part].double()).square().sum().item()
    mse = error / image.numel()
    width = (min((_SSIM_DEPTH >> degree) | 1, depth) - 1) | 1
    places = depth - width + 1
    similarity = 0.0
    for start in range(0, places, step):
        stop = min(start + step, places)
        part = slice(start, stop + width - 1)
        similarity += (stop - start) * ssim(prediction[None, :, part], image[None, :, part], degree)
    return Quality(-10 * math.log10(max(mse, _SMALLEST_MSE)), similarity / places)
