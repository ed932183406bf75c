"""Thick slices made of thin ones, and the ways in which networks can take them.

A network for thin slices alone needs them repeated or interpolated back; one that follows the
spacing takes them as they are. All predictions are scored on the thin grid.
"""

from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.data.task_images import TaskImage
from spadnet.data.warp import average_slices, turn_from_z, turn_to_z
from spadnet.evaluate.segmentation_scores import (
    WindowRule,
    class_probabilities,
    dice_of,
    segment_thin,
    segment_view,
)
from spadnet.losses.segmentation import finer_slices
from spadnet.spacing import MAX_DEGREE, Spacing

_LEAST = 1e-6  # of a probability, before its logarithm

Way = Literal["degree", "repeat", "interpolate"]
"""Thick slices as they are with their degree; repeated at degree 0; interpolated at degree 0."""


def thick_from_thin(
    image: Tensor, spacing: Spacing, *, axis: int, slab: int
) -> tuple[Tensor, Spacing]:
    """Average slices along an axis, which becomes z.

    Args:
        image: [C, D, H, W].
        spacing: In mm.
        axis: 0, 1 or 2 for z, y or x.
        slab: Slices in one.

    Returns:
        Image and spacing with z along ``axis``.
    """
    turned, _, mm = turn_to_z(image, None, spacing, axis=axis)
    return average_slices(turned, slab=slab), mm._replace(z=mm.z * slab)


def turned_back(volume: Tensor, *, axis: int, size: Sequence[int]) -> Tensor:
    """Undo the turn of :func:`spadnet.data.warp.turn_to_z`, cut to the size before it.

    Args:
        volume: [..., D, H, W], z along ``axis``, with as many slices as before or more.
        axis: That was averaged, 0, 1 or 2 for z, y or x.
        size: Voxels (z, y, x) before.
    """
    return turn_from_z(volume.narrow(-3, 0, size[axis]), axis=axis).contiguous()


def back_on_thin(thick: Tensor, *, slab: int, axis: int, size: Sequence[int], way: Way) -> Tensor:
    """Bring averaged slices back to the thin grid, repeated or interpolated.

    Args:
        thick: From :func:`thick_from_thin`, [C, D, H, W].
        slab: Thin slices in a thick one.
        axis: That was averaged.
        size: Voxels (z, y, x) before.
        way: ``"repeat"`` or ``"interpolate"``.
    """
    if way == "interpolate":
        shape = (thick.shape[1] * slab, *thick.shape[2:])
        thin = F.interpolate(thick[None], shape, mode="trilinear", align_corners=False)[0]
    else:
        thin = thick.repeat_interleave(slab, dim=1)
    return turned_back(thin, axis=axis, size=size)


@torch.no_grad()
def thick_dice(
    model: nn.Module,
    case: TaskImage,
    *,
    axis: int,
    slab: int,
    way: Way,
    rule: WindowRule,
    num_classes: int,
) -> list[float]:
    """Dice of each class but the background on the thin grid, of a case with averaged slices.

    Args:
        model: In evaluation mode.
        case: Of nearly cubic voxels, with its label map.
        axis: Of the body, to be averaged, 0, 1 or 2 for z, y or x.
        slab: Slices in one; 1 leaves them as they are.
        way: How the network takes them.
        rule: How it is run.
        num_classes: Classes of the label map.
    """
    upright = case.upright()
    size = upright.image.shape[1:]
    thick, spacing = thick_from_thin(upright.image, upright.spacing, axis=axis, slab=slab)
    depth = slab * thick.shape[1]
    if slab == 1 or way != "degree":  # as the case lies in its file
        thin = case.image
        if slab > 1:
            back = back_on_thin(thick, slab=slab, axis=axis, size=size, way=way)
            thin, _, _ = turn_to_z(back, None, upright.spacing, axis=case.axis)
        mask = segment_view(model, thin, case.degree, rule, axis=case.axis)
        return dice_of(mask, case.target, num_classes)
    if rule.thin_logits and spacing.degree() < MAX_DEGREE:
        mask = segment_thin(model, thick, spacing.degree(), rule, axis=axis)
        mask = _as_deep(mask, depth)
    else:
        found = class_probabilities(model, thick, spacing.degree(), rule, axis=axis)
        logits = found.clamp_min(_LEAST).log()[None]
        mask = finer_slices(logits, depth)[0].argmax(0).to(torch.uint8)
    mask = turned_back(mask, axis=axis, size=size)
    return dice_of(mask, upright.target, num_classes)


def _as_deep(mask: Tensor, depth: int) -> Tensor:
    """A mask [D, H, W] with other slices of the same extent: ``2**degree`` is not always a slab."""
    size = (depth, *mask.shape[1:])
    return F.interpolate(mask[None, None], size=size, mode="nearest-exact")[0, 0]


class RepeatedSlices(Sequence[TaskImage]):
    """Training cases of which a share has slices averaged and repeated: a plain network's way.

    The label maps stay thin: the network learns to see through the averaging.
    """

    def __init__(
        self, images: Sequence[TaskImage], *, share: float, slabs: Sequence[int] = (2, 4)
    ) -> None:
        """Configure.

        Args:
            images: Of nearly cubic voxels.
            share: Of what is drawn, in (0, 1), that is averaged along some axis.
            slabs: Slices in one, each as often.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share of averaged cases must lie in (0, 1), got {share}")
        self.images = images
        self.kinds = [(axis, slab) for slab in slabs for axis in range(3)]
        self.plain = max(round(len(self.kinds) * (1 - share) / share), 1)

    def __len__(self) -> int:
        return len(self.images) * (len(self.kinds) + self.plain)

    @overload
    def __getitem__(self, index: int) -> TaskImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskImage]: ...
    def __getitem__(self, index: int | slice) -> TaskImage | list[TaskImage]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        kind, place = divmod(index, len(self.images))
        case = self.images[place]
        if kind >= len(self.kinds):
            return case
        axis, slab = self.kinds[kind]
        thick, _ = thick_from_thin(case.image, case.spacing, axis=axis, slab=slab)
        size = case.image.shape[1:]
        thin = back_on_thin(thick, slab=slab, axis=axis, size=size, way="repeat")
        return case._replace(image=thin.half())
