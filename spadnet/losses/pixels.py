"""Loss of masked autoencoding: intensities behind the mask, each patch on its own scale.

Source: MAE, arXiv 2111.06377.
"""

import torch
from torch import Tensor

EPS = 1e-6
"""Added to a patch's variance: intensities in [0, 1] that differ by less than 0.001 are flat."""


def normalised_patches(patches: Tensor, *, eps: float = EPS) -> Tensor:
    """Shift and scale each patch [..., N] to mean 0 and variance 1, in float32; no gradient."""
    patches = patches.detach().to(torch.promote_types(patches.dtype, torch.float32))
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return (patches - mean) * (variance + eps).rsqrt()


def pixel_loss(predicted: Tensor, patches: Tensor) -> Tensor:
    """Mean squared error of normalised patches; a patch counts the same whatever its size.

    Predicting every patch's mean gives 1, a little less where patches are flat.

    Args:
        predicted: Normalised intensities, [B, M, N].
        patches: Intensities of the same patches, as they are, [B, M, N].

    Returns:
        Scalar.

    Raises:
        ValueError: If the shapes differ.
    """
    return pixel_errors(predicted, patches).mean()


def pixel_errors(predicted: Tensor, patches: Tensor) -> Tensor:
    """Squared error of each voxel, [B, M, N], see :func:`pixel_loss`."""
    if predicted.shape != patches.shape:
        raise ValueError(
            f"predictions {tuple(predicted.shape)} and patches {tuple(patches.shape)} differ"
        )
    target = normalised_patches(patches)
    return (predicted.to(target.dtype) - target).square()
