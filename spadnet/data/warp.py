"""Random rotations, scales, shifts and flips of an image and its label map in one resampling."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.spacing import Spacing, turned_axes


class WarpRange(NamedTuple):
    """Chances and ranges.

    Attributes:
        rotation_prob: Chance of a rotation.
        angle: Largest in-plane rotation in degrees.
        tilt: Largest rotation out of the plane in degrees.
        scale_prob: Chance of another scale.
        scale: Range of the factor on sizes.
        shift: Largest shift along each axis, of the image's length.
        flip: Chance of a flip along z, y, x.
    """

    rotation_prob: float = 0.3
    angle: float = 15.0
    tilt: float = 15.0
    scale_prob: float = 0.3
    scale: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.0
    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Warp(NamedTuple):
    """One draw.

    Attributes:
        angles: Rotation in radians about z (in-plane), y and x.
        scale: Factor on sizes.
        shift: Shift along z, y, x, of the image's length.
        flips: Whether z, y, x are mirrored.
    """

    angles: tuple[float, float, float]
    scale: float
    shift: tuple[float, float, float]
    flips: tuple[bool, bool, bool]

    @classmethod
    def none(cls) -> "Warp":
        """Change nothing."""
        return cls((0.0, 0.0, 0.0), 1.0, (0.0, 0.0, 0.0), (False, False, False))

    def flat(self) -> "Warp":
        """What of it a single slice can follow."""
        return self._replace(
            angles=(self.angles[0], 0.0, 0.0),
            shift=(0.0, *self.shift[1:]),
            flips=(False, *self.flips[1:]),
        )

    def turned(self, axis: int) -> "Warp":
        """The same mirrors of an image whose ``axis`` was turned to z."""
        order = turned_axes(axis)
        flips = self.flips[order[0]], self.flips[order[1]], self.flips[order[2]]
        return self._replace(flips=flips)

    @property
    def is_still(self) -> bool:
        """Whether voxels stay where they are, but for flips."""
        return not any(self.angles) and self.scale == 1 and not any(self.shift)


def draw_warp(rng: np.random.Generator, ranges: WarpRange) -> Warp:
    """Draw what happens to one image.

    Args:
        rng: Source of randomness.
        ranges: Chances and ranges.
    """
    noise = rng.random(12)
    signed = 2 * noise - 1
    turns = noise[0] < ranges.rotation_prob
    limits = (ranges.angle, ranges.tilt, ranges.tilt)
    angles = [math.radians(limits[i] * signed[1 + i]) if turns else 0.0 for i in range(3)]
    low, high = map(math.log, ranges.scale)
    scale = math.exp(low + (high - low) * noise[5]) if noise[4] < ranges.scale_prob else 1.0
    shift = [ranges.shift * signed[6 + i] for i in range(3)]
    flips = [bool(noise[9 + i] < ranges.flip[i]) for i in range(3)]
    return Warp(
        (angles[0], angles[1], angles[2]),
        scale,
        (shift[0], shift[1], shift[2]),
        (flips[0], flips[1], flips[2]),
    )


def sample(
    volume: Tensor,
    size: Sequence[int],
    centre: Sequence[float],
    warp: Warp,
    spacing: Spacing,
    *,
    nearest: bool = False,
    border: bool = False,
) -> Tensor:
    """Cut a crop out of a volume, turned, scaled and mirrored about its own centre.

    Args:
        volume: [C, D, H, W].
        size: Voxels (z, y, x) of the crop.
        centre: Voxel (z, y, x) in its middle; half ones lie between voxels.
        warp: What to do.
        spacing: Of volume and crop in mm: rotations are rigid in millimetres.
        nearest: Whether to take the nearest voxel, for labels, whose type is kept.
        border: Whether the volume goes on beyond its border with the voxels there, as when a
            network is run over it, or is zero.

    Returns:
        [C, *size]; float32 where it is interpolated.
    """
    flips = [1 + axis for axis in range(3) if warp.flips[axis]]
    starts = [c - (n - 1) / 2 for c, n in zip(centre, size, strict=True)]
    if warp.is_still and all(start == round(start) for start in starts):
        cut = _cut_on if border else _cut
        crop = cut(volume, [round(start) for start in starts], size)
        crop = crop.flip(flips) if flips else crop
        return crop.contiguous() if nearest else crop.float().contiguous()
    moved = [c + s * n for c, s, n in zip(centre, warp.shift, volume.shape[1:], strict=True)]
    grid = _grid(volume.shape[1:], size, moved, warp, spacing)
    mode = "nearest" if nearest else "bilinear"
    crop = F.grid_sample(
        volume[None].float(),
        grid[None],
        mode=mode,
        padding_mode="border" if border else "zeros",
        align_corners=False,
    )[0]
    crop = crop.flip(flips) if flips else crop
    return crop.to(volume.dtype) if nearest else crop


def _cut(volume: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    """A box that may reach beyond the volume, where it is zero."""
    pads: list[int] = []
    for axis, (start, length) in enumerate(zip(starts, size, strict=True), start=1):
        own = volume.shape[axis]
        low, high = min(max(start, 0), own), max(min(start + length, own), 0)
        inside = max(high - low, 0)
        volume = volume.narrow(axis, low, inside)
        before = min(max(-start, 0), length)
        pads = [before, length - before - inside, *pads]
    return F.pad(volume, pads) if any(pads) else volume


def _cut_on(volume: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    """A box that may reach beyond the volume, which goes on with the voxels of its border."""
    for axis, (start, length) in enumerate(zip(starts, size, strict=True), start=1):
        own = volume.shape[axis]
        if start >= 0 and start + length <= own:
            volume = volume.narrow(axis, start, length)
        else:
            places = torch.arange(start, start + length).clamp_(0, own - 1)
            volume = volume.index_select(axis, places)
    return volume


def _grid(
    full: Sequence[int], size: Sequence[int], centre: Sequence[float], warp: Warp, spacing: Spacing
) -> Tensor:
    """Where each voxel of the crop lies in the volume, [d, h, w, 3] in grid_sample's x, y, z."""
    millimetres = np.array([1.0 if spacing.is_planar else spacing.z, spacing.y, spacing.x])
    turn = _rotation(warp.angles) / warp.scale
    matrix = turn * millimetres[None] / millimetres[:, None]  # of voxels
    places = torch.zeros(*size, 3)
    offsets = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    shapes = [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]
    for row in range(3):
        total = torch.full((1, 1, 1), float(centre[row]))
        for column in range(3):
            total = total + float(matrix[row, column]) * offsets[column].view(shapes[column])
        places[..., 2 - row] = (2 * total + 1) / full[row] - 1
    return places


def _rotation(angles: Sequence[float]) -> np.ndarray:
    """Rotation matrix in z, y, x from angles about z, y and x."""
    turn, tilt_y, tilt_x = angles
    result = np.eye(3)
    for (first, second), angle in (((1, 2), turn), ((0, 2), tilt_y), ((0, 1), tilt_x)):
        part = np.eye(3)
        part[first, first] = part[second, second] = math.cos(angle)
        part[first, second], part[second, first] = -math.sin(angle), math.sin(angle)
        result = result @ part
    return result


def foreground_centre(
    rng: np.random.Generator, full: Sequence[int], size: Sequence[int], label: Tensor | None
) -> tuple[float, float, float]:
    """Centre of a crop: around a random voxel of a random class, or anywhere.

    Args:
        rng: Source of randomness.
        full: Voxels of the volume (z, y, x).
        size: Voxels of the crop (z, y, x); it stays inside where it fits.
        label: Classes, [D, H, W]; None, or background alone, is anywhere.
    """
    chosen: np.ndarray | None = None
    if label is not None:
        present = [value for value in torch.unique(label).tolist() if value != 0]
        if present:
            value = present[int(rng.integers(len(present)))]
            found = (label == value).flatten().nonzero()[:, 0]
            place = int(found[int(rng.integers(len(found)))])
            chosen = np.array(np.unravel_index(place, tuple(full)))
    centre = []
    for axis in range(3):
        slack = full[axis] - size[axis]
        if slack <= 0:
            start = math.floor(slack / 2)
        elif chosen is None:
            start = int(rng.integers(slack + 1))
        else:
            start = int(np.clip(chosen[axis] - size[axis] // 2, 0, slack))
        centre.append(start + (size[axis] - 1) / 2)
    return centre[0], centre[1], centre[2]


def turn_to_z(
    image: Tensor, label: Tensor | None, spacing: Spacing, *, axis: int
) -> tuple[Tensor, Tensor | None, Spacing]:
    """Turn an axis to z, as in a file whose slices lie along it: y points to where z came from.

    Args:
        image: [C, D, H, W].
        label: Classes, [D, H, W].
        spacing: Of both, in mm.
        axis: 0, 1 or 2 for z, y or x.

    Returns:
        Image, label and spacing with z along ``axis``.
    """
    if axis == 0:
        return image, label, spacing
    order = turned_axes(axis)
    image = image.permute(0, *(1 + a for a in order)).flip(2)
    label = None if label is None else label.permute(order).flip(1)
    return image, label, Spacing(*(spacing[a] for a in order))


def turn_from_z(volume: Tensor, *, axis: int) -> Tensor:
    """Undo the turn of :func:`turn_to_z` of a volume [..., D, H, W] with z along ``axis``."""
    if axis == 0:
        return volume
    order, lead = turned_axes(axis), volume.ndim - 3
    inverse = (lead + order.index(a) for a in range(3))
    return volume.flip(-2).permute(*range(lead), *inverse)


def average_slices(image: Tensor, *, slab: int) -> Tensor:
    """Average each ``slab`` slices of [C, D, H, W], as a scanner with thick slices would.

    The last slice is repeated up to a multiple. Returns [C, D / slab, H, W], float32.
    """
    missing = -image.shape[1] % slab
    if missing:
        image = torch.cat([image, image[:, -1:].expand(-1, missing, -1, -1)], dim=1)
    return image.unflatten(1, (-1, slab)).float().mean(2)
