"""Cut the crop of a plan out of a volume: read only the box it needs and resample once."""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.data.crop_plan import CropPlan

Padding = Literal["edge", "zero"]
_EPSILON = 1e-4  # of a voxel; nearer than that counts as on it


class BoxReader(Protocol):
    """An image that is not in memory and gives boxes of itself."""

    @property
    def shape(self) -> Sequence[int]:
        """Channels and voxels, [C, D, H, W]."""
        ...

    def read(self, box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]) -> Tensor:
        """Intensities in [0, 1] of a box, [C, d, h, w], float32."""
        ...


def extract(volume: Tensor | BoxReader, plan: CropPlan, *, padding: Padding = "edge") -> Tensor:
    """Cut one crop.

    Args:
        volume: [C, D, H, W], float in [0, 1] or uint8 that stands for it times 255; or what reads
            boxes of it.
        plan: Which crop.
        padding: What lies beyond the border: the nearest voxel, or 0.

    Returns:
        Crop in [0, 1], [C, *plan.size], float32, contiguous.
    """
    if plan.angles[1] == 0 and plan.angles[2] == 0:
        crop = _axis_aligned_slices(volume, plan, padding)
        crop = _in_plane(crop, plan, padding)
    else:
        crop = _tilted(volume, plan, padding)
    flipped = [1 + axis for axis in range(3) if plan.flips[axis]]
    return (crop.flip(flipped) if flipped else crop).contiguous()


def _axis_aligned_slices(volume: Tensor | BoxReader, plan: CropPlan, padding: Padding) -> Tensor:
    """Slices of the crop with the pixels of the image's box that it needs, [C, D_out, h, w]."""
    depth, plane = plan.size[0], _plane_box(plan)
    count = depth * plan.slab
    low, weights = _positions(plan.centre[0], plan.scale[0], count)
    high = low + (count if weights is None else weights.shape[1])
    box = _read(volume, ((low, high), *plane), padding)
    if weights is not None:
        box = torch.einsum("nd,cdhw->cnhw", weights, box)
    if plan.slab > 1:
        box = box.unflatten(1, (depth, plan.slab)).mean(dim=2)
    return box


def _in_plane(box: Tensor, plan: CropPlan, padding: Padding) -> Tensor:
    """Resample [C, D, h, w] in-plane to [C, D, H_out, W_out]."""
    if plan.angles[0] != 0:
        return _turned(box, plan, padding)
    for axis in (1, 2):
        _, weights = _positions(plan.centre[axis], plan.scale[axis], plan.size[axis])
        if weights is not None:
            box = torch.matmul(weights, box) if axis == 1 else torch.matmul(box, weights.T)
    return box


def _turned(box: Tensor, plan: CropPlan, padding: Padding) -> Tensor:
    """Rotate in-plane; slices ride along as channels."""
    corner = [bounds[0] for bounds in _plane_reach(plan)]
    matrix = _affine(plan)[1:, 1:]
    middle = np.array([(size - 1) / 2 for size in plan.size[1:]])
    shift = np.array(plan.centre[1:]) - corner
    theta = _normalised(matrix, shift, middle, box.shape[2:])
    grid = F.affine_grid(theta[None], [1, 1, *plan.size[1:]], align_corners=True)
    flat = box.flatten(0, 1)[None]
    mode = "border" if padding == "edge" else "zeros"
    turned = F.grid_sample(flat, grid, mode="bilinear", padding_mode=mode, align_corners=True)
    return turned[0].unflatten(0, box.shape[:2])


def _tilted(volume: Tensor | BoxReader, plan: CropPlan, padding: Padding) -> Tensor:
    """Rotate in space."""
    matrix = _affine(plan)
    middle = np.array([(size - 1) / 2 for size in plan.size])
    reach = np.abs(matrix) @ middle
    centre = np.array(plan.centre)
    bounds = [
        (math.floor(centre[axis] - reach[axis]), math.ceil(centre[axis] + reach[axis]) + 1)
        for axis in range(3)
    ]
    box = _read(volume, (bounds[0], bounds[1], bounds[2]), padding)
    shift = centre - [low for low, _ in bounds]
    theta = _normalised(matrix, shift, middle, box.shape[1:])
    grid = F.affine_grid(theta[None], [1, 1, *plan.size], align_corners=True)
    # grid_sample calls trilinear "bilinear" too.
    mode = "border" if padding == "edge" else "zeros"
    return F.grid_sample(box[None], grid, padding_mode=mode, align_corners=True)[0]


def _affine(plan: CropPlan) -> np.ndarray:
    """Image voxels per crop voxel as a matrix, rotation (in mm) included, [3, 3]."""
    thin = np.array(plan.spacing) / np.array(plan.scale)
    thin[0] = 1.0 if plan.spacing.is_planar else thin[0] / plan.slab
    turn = _rotation(plan.angles[0], (1, 2)) @ _rotation(plan.angles[1], (2, 0))
    turn = turn @ _rotation(plan.angles[2], (0, 1))
    return np.asarray((turn * thin) / thin[:, None] * np.array(plan.scale))


def _rotation(angle: float, axes: tuple[int, int]) -> np.ndarray:
    matrix = np.eye(3)
    first, second = axes
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def _normalised(
    matrix: np.ndarray, shift: np.ndarray, middle: np.ndarray, inner: Sequence[int]
) -> Tensor:
    """Matrix for ``affine_grid`` (corners aligned, x first), [n, n + 1]."""
    half_in = np.maximum((np.array(inner) - 1) / 2, 0.5)
    half_out = np.maximum(middle, 0.0)
    linear = matrix * half_out / half_in[:, None]
    offset = (shift - (np.array(inner) - 1) / 2) / half_in
    return torch.from_numpy(
        np.concatenate([linear[::-1, ::-1], offset[::-1, None]], axis=1).copy()
    ).float()


def _plane_box(plan: CropPlan) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last + 1 row and column that the crop needs."""
    if plan.angles[0] != 0:
        return _plane_reach(plan)
    bounds = []
    for axis in (1, 2):
        low, weights = _positions(plan.centre[axis], plan.scale[axis], plan.size[axis])
        bounds.append((low, low + (plan.size[axis] if weights is None else weights.shape[1])))
    return bounds[0], bounds[1]


def _plane_reach(plan: CropPlan) -> tuple[tuple[int, int], tuple[int, int]]:
    matrix = np.abs(_affine(plan)[1:, 1:])
    reach = matrix @ np.array([(size - 1) / 2 for size in plan.size[1:]])
    bounds = [
        (math.floor(centre - half), math.ceil(centre + half) + 1)
        for centre, half in zip(plan.centre[1:], reach, strict=True)
    ]
    return bounds[0], bounds[1]


def _positions(centre: float, scale: float, count: int) -> tuple[int, Tensor | None]:
    """Where crop voxels lie on one axis of the image.

    Returns:
        The first voxel needed, and the linear interpolation from the voxels that follow it,
        [count, voxels]; None where crop voxels are voxels of the image.
    """
    first = centre - (count - 1) / 2 * scale
    low = math.floor(first + _EPSILON)
    if scale == 1 and abs(first - low) < 2 * _EPSILON:
        return low, None
    at = np.maximum(first - low + np.arange(count) * scale, 0)
    below = np.floor(at + _EPSILON).astype(np.int64)
    above = np.maximum(at - below, 0).astype(np.float32)
    weights = np.zeros((count, int(below[-1]) + 2), dtype=np.float32)
    rows = np.arange(count)
    weights[rows, below] = 1 - above
    weights[rows, below + 1] += above
    return low, torch.from_numpy(weights)


def _read(volume: Tensor | BoxReader, box: tuple[tuple[int, int], ...], padding: Padding) -> Tensor:
    """Voxels of a box that may reach beyond the volume, as float in [0, 1]."""
    bounds, missing = [], []
    for (low, high), size in zip(box, volume.shape[1:], strict=True):
        first, last = min(max(low, 0), size - 1), max(min(high, size), 1)
        bounds.append((first, max(last, first + 1)))
        missing.append((first - low, high - max(last, first + 1)))
    if isinstance(volume, Tensor):
        cut = (slice(None), *(slice(first, last) for first, last in bounds))
        inside = volume[cut].float()
        if volume.dtype == torch.uint8:
            inside = inside / 255
    else:
        inside = volume.read((bounds[0], bounds[1], bounds[2]))
    if not any(before or after for before, after in missing):
        return inside
    mode = "replicate" if padding == "edge" else "constant"
    ends = [max(count, 0) for pair in reversed(missing) for count in pair]
    return F.pad(inside[None], ends, mode=mode)[0]
