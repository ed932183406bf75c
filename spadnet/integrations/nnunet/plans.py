"""nnU-Net's plans with a SPAD-UNet, or a SPAD-ViT that segments, for each plain U-Net.

Spacing, widths and numbers of convolutions remain as planned. Kernels and strides follow from the
degree, which differs from a plan in two places: an axis is never left out because it is short, so
that a patch may have to grow a little or a level to go; and the kernel that halves pixels for the
last time before depth is halved, too, is flat.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from spadnet.models.segmentor import STRIDE
from spadnet.spacing import MAX_DEGREE, Spacing, depth_stride, required_multiple

NETWORK = "spadnet.integrations.nnunet.network.PlannedUNet"
VIT_NETWORK = "spadnet.integrations.nnunet.network.PlannedVitSegmentor"
ENCODER_ENTRY = "spadnet_encoder"
"""Entry of the plans that names a pretrained SPAD-UNet."""

MAX_GROWTH = 1.25
"""How many times as many voxels a patch may have before a level goes instead."""

_PLAIN = "PlainConvUNet"
_BLOCKS = {"norm_op": "InstanceNorm", "nonlin": "LeakyReLU", "dropout_op": None}


def spad_plans(
    plans: Mapping[str, Any],
    *,
    encoder: str | None = None,
    vit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a spacing-aware network into every configuration of nnU-Net's plans.

    Args:
        plans: Contents of a plans file of nnU-Net v2; one that was changed before stays as it is.
        encoder: Pretrained SPAD-UNet to note in the plans, None to leave the entry alone.
        vit: Constructor arguments of the SPAD-ViT that shall segment, None for a SPAD-UNet.

    Raises:
        ValueError: If a configuration plans something else than nnU-Net's plain U-Net.
    """
    changed = copy.deepcopy(dict(plans))
    for name, configuration in changed["configurations"].items():
        if "UNet_class_name" in configuration:
            raise ValueError(f"configuration {name}: made by an old nnU-Net; plan again")
        if "architecture" not in configuration:  # it inherits another one's
            continue
        try:
            architecture, patch_size = spad_architecture(
                configuration["architecture"],
                spacing=configuration["spacing"],
                patch_size=configuration["patch_size"],
                vit=vit,
            )
        except ValueError as error:
            raise ValueError(f"configuration {name}: {error}") from error
        configuration |= {"architecture": architecture, "patch_size": patch_size}
    if encoder is not None:
        changed[ENCODER_ENTRY] = encoder
    return changed


def spad_architecture(
    architecture: Mapping[str, Any],
    *,
    spacing: Sequence[float],
    patch_size: Sequence[int],
    vit: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[int]]:
    """Turn one plan of a plain U-Net into that of a spacing-aware network.

    Args:
        architecture: The entry ``architecture`` of a configuration.
        spacing: Spacing in mm, (z, y, x) or (y, x) for 2D.
        patch_size: Size of a patch in voxels, in the same order.
        vit: Constructor arguments of the SPAD-ViT that shall segment, None for a SPAD-UNet.

    Returns:
        The new entry, and the size of a patch that its strides divide.

    Raises:
        ValueError: If no SPAD-UNet can take the place of this network.
    """
    if architecture["network_class_name"] == (NETWORK if vit is None else VIT_NETWORK):
        return dict(architecture), list(patch_size)
    kind = architecture["network_class_name"].rsplit(".", 1)[-1]
    if kind != _PLAIN:
        raise ValueError(f"a SPAD-UNet takes the place of a {_PLAIN}, not of a {kind}")
    if vit is not None:
        return _vit_architecture(vit, spacing=spacing, patch_size=patch_size)
    planned = architecture["arch_kwargs"]
    for key, wanted in _BLOCKS.items():
        given = planned.get(key)
        if given is not wanted and not (given and wanted and wanted in given):
            raise ValueError(f"a SPAD-UNet has {key} {wanted}, the plan {given}")
    most = planned["n_stages"]
    degree = None if len(spacing) == 2 else Spacing(*spacing).degree(max(most, MAX_DEGREE))
    num_stages, patch = _fitting_levels(patch_size, most=most, degree=degree)
    arguments = {
        "n_stages": num_stages,
        "features_per_stage": list(planned["features_per_stage"][:num_stages]),
        "strides": spad_strides(num_stages, degree),
        "n_conv_per_stage": _counts(planned["n_conv_per_stage"], num_stages),
        "n_conv_per_stage_decoder": _counts(planned["n_conv_per_stage_decoder"], num_stages - 1),
        "degree": degree,
    }
    changed = {"network_class_name": NETWORK, "arch_kwargs": arguments, "_kw_requires_import": []}
    return changed, patch


def _vit_architecture(
    vit: Mapping[str, Any], *, spacing: Sequence[float], patch_size: Sequence[int]
) -> tuple[dict[str, Any], list[int]]:
    """Plan a SPAD-ViT that segments; its six levels are given, so that the patch has to fit."""
    degree = None if len(spacing) == 2 else Spacing(*spacing).degree()
    patch = _multiple(patch_size, stride=STRIDE, degree=degree)
    strides = spad_strides(STRIDE.bit_length(), degree)
    arguments = {"vit": dict(vit), "strides": strides, "degree": degree}
    changed = {
        "network_class_name": VIT_NETWORK,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }
    return changed, patch


def spad_strides(num_stages: int, degree: int | None) -> list[list[int]]:
    """Strides before each level as nnU-Net writes them.

    >>> spad_strides(4, 2)
    [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]

    Args:
        num_stages: Number of levels.
        degree: Degree of anisotropy, None for 2D.
    """
    if degree is None:
        return [[1, 1]] + [[2, 2]] * (num_stages - 1)
    halvings = range(num_stages - 1)
    return [[1, 1, 1]] + [[depth_stride(2, max(degree - i, 0)), 2, 2] for i in halvings]


def _fitting_levels(
    patch_size: Sequence[int], *, most: int, degree: int | None
) -> tuple[int, list[int]]:
    """Number of levels, and the patch made a multiple of their strides."""
    for num_stages in range(most, 1, -1):
        patch = _multiple(patch_size, stride=2 ** (num_stages - 1), degree=degree)
        if math.prod(patch) <= MAX_GROWTH * math.prod(patch_size):
            return num_stages, patch
    raise ValueError(f"patches of {tuple(patch_size)} voxels cannot be halved")


def _multiple(size: Sequence[int], *, stride: int, degree: int | None) -> list[int]:
    """Round a size up to what a network of this total stride takes."""
    steps = (stride, stride) if degree is None else required_multiple(degree, stride=stride)
    return [math.ceil(n / step) * step for n, step in zip(size, steps, strict=True)]


def _counts(planned: int | Sequence[int], num_levels: int) -> list[int]:
    return [planned] * num_levels if isinstance(planned, int) else list(planned[:num_levels])
