"""Worse images for the study of image quality: noise, blur, thick slices, bias fields."""

import hashlib
from collections.abc import Sequence

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor

from spadnet.near_names import suggest
from spadnet.spacing import Spacing
from spadnet.synthesis.appearance import Appearance, bias_field
from spadnet.synthesis.fields import sample_generators
from spadnet.synthesis.geometry import plan_geometry

KINDS = ("noise", "blur", "thick", "bias")

# What strength 1 does.
_NOISE = 0.3  # standard deviation, of intensities in [0, 1]
_BLUR = 0.06  # standard deviation of the Gaussian, of the shorter in-plane side
_SLAB = 0.12  # thickness of averaged slices, of the depth
_BIAS = 0.8  # standard deviation of the logarithm of the field
_STREAM = 1 << 22  # of random numbers that nothing else uses


def check_kinds(kinds: Sequence[str]) -> list[str]:
    """Refuse an unknown kind of degradation, and a list without any."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown degradation {kind!r}{suggest(str(kind), KINDS)}")
    if not kinds:
        raise ValueError(f"name one degradation at least: {', '.join(KINDS)}")
    return list(kinds)


def degrade(
    image: Tensor, spacing: Spacing, *, key: str, kinds: Sequence[str], strength: float
) -> Tensor:
    """Degrade one image in one of several ways; which and how is decided by its name.

    Args:
        image: Intensities in [0, 1], [C, D, H, W].
        spacing: Of the image, in mm.
        key: Name of the case.
        kinds: Of :data:`KINDS`.
        strength: From 0, none, to 1, severe.

    Returns:
        Intensities in [0, 1], float32, same shape.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")
    kind = kinds[seed % len(kinds)]
    x = image.float()
    (generator,) = sample_generators([seed], stream=_STREAM)
    if kind == "noise":
        x = x + _NOISE * strength * torch.randn(x.shape, generator=generator)
    elif kind == "blur":
        sigma = _BLUR * strength * min(x.shape[2:])
        widths = [0.0 if x.shape[1] == 1 else sigma, sigma, sigma]
        x = GaussianFilter(3, widths, truncated=3.0)(x[None])[0] if sigma > 0 else x
    elif kind == "thick":
        x = coarse(x, dim=2 if x.shape[1] == 1 else 1, share=_SLAB * strength)
    else:
        size = (x.shape[1], x.shape[2], x.shape[3])
        ranges = Appearance(bias=(_BIAS * strength, _BIAS * strength), bias_fwhm=(0.25, 0.5))
        geometry = plan_geometry(size, spacing=spacing, field_of_view=None)
        x = x * bias_field([generator], geometry=geometry, appearance=ranges, device="cpu")
    return x.clamp(0, 1)


def coarse(x: Tensor, *, dim: int, share: float) -> Tensor:
    """Average neighbours along an axis in groups and repeat them: thick slices, or thick rows.

    Args:
        x: Any.
        dim: The axis.
        share: Of its length that a group has; a group has two at least where this is not 0.
    """
    length = x.shape[dim]
    group = max(round(share * length), 2) if share > 0 else 1
    parts = [part.mean(dim, keepdim=True).expand_as(part) for part in x.split(group, dim)]
    return torch.cat(parts, dim)
