"""Kernels turned with the image: a U-Net that keeps the directions of the body.

Slices may lie along any axis of the body, and a SPAD network folds its kernels along z: the axis
of the slices is turned to z first. With the kernels turned in the same way, the network computes
what it would have without the turn, its kernels folded along the axis of the slices. What it has
learned of the body's directions from thin slices thus holds for thick ones along any axis.
"""

from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call

from spadnet.models.spad_unet import SpadUNet
from spadnet.spacing import turned_axes

_KERNEL = 5  # dimensions of a kernel, [.., .., k, k, k]


def turned_kernels(model: nn.Module, axis: int) -> dict[str, Tensor]:
    """Permute the model's kernels as :func:`spadnet.data.warp.turn_to_z` permutes images.

    Args:
        model: Of convolutions with isotropic kernels.
        axis: That becomes z, 0, 1 or 2 for z, y or x.

    Returns:
        Views of the kernels by the names of their parameters.
    """
    order = tuple(2 + a for a in turned_axes(axis))
    return {
        name: kernel.permute(0, 1, *order)
        for name, kernel in model.named_parameters()
        if kernel.ndim == _KERNEL
    }


def run_along(
    model: nn.Module, x: Tensor, degree: int, *, axis: int = 0, out_degree: int | None = None
) -> Any:
    """Run a network on volumes whose slices lie along an axis of the body.

    A U-Net has its kernels turned and may decode thinner slices; other models know no axis and take
    the volumes as they are.

    Args:
        model: Takes volumes and their degree.
        x: Volumes as :func:`spadnet.data.warp.turn_to_z` turns them, [B, C, D, H, W].
        degree: Degree of anisotropy.
        axis: Of the body that became z: 0 for its z, 1 for y, 2 for x.
        out_degree: Degree of the logits, see :meth:`spadnet.models.spad_unet.SpadUNet.forward`.

    Returns:
        What the model returns, logits in the place of their voxels.
    """
    if not isinstance(model, SpadUNet):
        return model(x, degree)
    if axis == 0:
        return model(x, degree, out_degree=out_degree)
    # The turn mirrors y to keep left and right. Mirrored kernels would stride from the other end:
    # the volume is mirrored back instead.
    found = functional_call(
        model, turned_kernels(model, axis), (x.flip(-2), degree), {"out_degree": out_degree}
    )
    if isinstance(found, list):
        return [level.flip(-2) for level in found]
    return cast(Tensor, found).flip(-2)
