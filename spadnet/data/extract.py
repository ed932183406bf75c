"""Cut the crop of a plan out of a volume: read only what it needs and resample once.

A crop is made piece by piece, each from a box of its own, so that memory stays near the crop's own
and what is worked on stays in the cache. What is done depends on the kind of crop: voxels are
copied where they lie on those of the image; a scale or a rotation within the plane is bilinear,
with slices as channels, which share their weights; a rotation out of the plane is trilinear.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.data.crop_plan import CropPlan, Size

Padding = Literal["edge", "zero"]
Bounds = tuple[int, int]
Box = tuple[Bounds, Bounds, Bounds]
"""First and last + 1 voxel along z, y, x."""

_EPSILON = 1e-4  # of a voxel; nearer than that counts as on it
_BAND = 8  # slices worked on at once: a block of the store is as deep
_CHUNK = 1 << 16  # points interpolated at once: arrays that fit the cache, few calls


class BoxReader(Protocol):
    """An image that is not in memory and gives boxes of itself."""

    @property
    def shape(self) -> Sequence[int]:
        """Channels and voxels, [C, D, H, W]."""
        ...

    def reader(self) -> Callable[[Box], Tensor]:
        """Open the image; what comes back gives intensities in [0, 1] of a box, [C, d, h, w]."""
        ...


def extract(volume: Tensor | BoxReader, plan: CropPlan, *, padding: Padding = "edge") -> Tensor:
    """Cut one crop.

    Args:
        volume: [C, D, H, W], float in [0, 1] or uint8 that stands for it times 255; or what reads
            boxes of it.
        plan: Which crop. Slices are averaged only where it does not rotate out of the plane.
        padding: What lies beyond the border: the nearest voxel, or 0.

    Returns:
        Crop in [0, 1], [C, *plan.size], float32, contiguous.
    """
    read = _padded(volume, padding)
    if plan.angles[1] == 0 and plan.angles[2] == 0:
        return _upright(read, volume.shape[0], plan)
    return _tilted(read, volume.shape[0], plan)


def _upright(read: Callable[[Box], Tensor], channels: int, plan: CropPlan) -> Tensor:
    """Slices of the crop lie along those of the image."""
    low, count, mix = _slices(plan)
    plane, grid = _plane(plan)
    crop = torch.empty(channels, *plan.size) if mix is None else torch.zeros(channels, *plan.size)
    inner = range((low // _BAND + 1) * _BAND, low + count, _BAND)
    for start, stop in pairwise((low, *inner, low + count)):
        first, last = start - low, stop - low
        box = read(((start, stop), *plane))
        weights = None if mix is None else mix[:, first:last]
        if weights is not None:
            used = weights.any(dim=1).nonzero()
            if len(used) == 0:
                continue
            first, last = int(used[0]), int(used[-1]) + 1
            weights = weights[first:last]
        if weights is not None and plan.slab > 1:
            box = _mixed(weights, box)
        if grid is not None:
            flat = box.flatten(0, 1)[None]
            flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=True)
            box = flat[0].unflatten(0, box.shape[:2])
        elif any(plan.flips[1:]):
            box = box.flip([axis + 1 for axis in (1, 2) if plan.flips[axis]])
        if weights is not None and plan.slab == 1:
            box = _mixed(weights, box)
        if plan.flips[0]:
            box, first, last = box.flip(1), plan.size[0] - last, plan.size[0] - first
        if mix is None:
            crop[:, first:last] = box
        else:
            crop[:, first:last] += box
    return crop


def _mixed(weights: Tensor, slices: Tensor) -> Tensor:
    """Weighted sums of slices, [C, d, H, W] to [C, n, H, W] with weights [n, d]."""
    return torch.matmul(weights, slices.flatten(2)).unflatten(2, slices.shape[2:])


def _slices(plan: CropPlan) -> tuple[int, int, Tensor | None]:
    """Slices of the image that an upright crop needs.

    Returns:
        The first, how many, and the weights that make slices of the crop of them,
        [plan.size[0], count]; None where slices of the crop are slices of the image.
    """
    depth = plan.size[0]
    thin = depth * plan.slab
    first = plan.centre[0] - (thin - 1) / 2 * plan.scale[0]
    low = math.floor(first + _EPSILON)
    if _is_on_voxels(first, plan.scale[0]):
        if plan.slab == 1:
            return low, thin, None
        return low, thin, torch.eye(depth).repeat_interleave(plan.slab, dim=1) / plan.slab
    at = np.maximum(first - low + np.arange(thin) * plan.scale[0], 0)
    below = np.floor(at + _EPSILON).astype(np.int64)
    above = np.maximum(at - below, 0).astype(np.float32)
    weights = np.zeros((thin, int(below[-1]) + 2), dtype=np.float32)
    rows = np.arange(thin)
    weights[rows, below] = 1 - above
    weights[rows, below + 1] = above
    mix = torch.from_numpy(weights).unflatten(0, (depth, plan.slab)).mean(dim=1)
    return low, mix.shape[1], mix


def _plane(plan: CropPlan) -> tuple[tuple[Bounds, Bounds], Tensor | None]:
    """Rows and columns that an upright crop needs, and where in them its pixels lie.

    Returns:
        First and last + 1 row and column, and a grid for ``grid_sample``, [1, H, W, 2]; None where
        pixels of the crop are pixels of the image.
    """
    centre, size = np.array(plan.centre[1:]), np.array(plan.size[1:])
    first = centre - (size - 1) / 2 * np.array(plan.scale[1:])
    if plan.angles[0] == 0 and all(map(_is_on_voxels, first, plan.scale[1:])):
        low = np.floor(first + _EPSILON).astype(int).tolist()
        return ((low[0], low[0] + plan.size[1]), (low[1], low[1] + plan.size[2])), None
    matrix, middle = _affine(plan)[1:, 1:], (size - 1) / 2
    reach = np.abs(matrix) @ middle
    bounds = [
        (math.floor(at - half), math.ceil(at + half) + 1)
        for at, half in zip(centre, reach, strict=True)
    ]
    # Corners at -1 and 1, x first.
    half = np.array([max((high - low - 1) / 2, 0.5) for low, high in bounds])
    offset = centre - [low for low, _ in bounds] - half
    theta = np.concatenate([matrix * middle, offset[:, None]], axis=1) / half[:, None]
    theta = torch.from_numpy(theta[::-1, [1, 0, 2]].copy()).float()
    grid = F.affine_grid(theta[None], [1, 1, *plan.size[1:]], align_corners=True)
    return (bounds[0], bounds[1]), grid


def _tilted(read: Callable[[Box], Tensor], channels: int, plan: CropPlan) -> Tensor:
    """Rotate in space."""
    matrix = _affine(plan)
    middle = (np.array(plan.size) - 1) / 2
    crop = torch.empty(channels, *plan.size)
    for tile in _tiles(matrix, plan.size):
        size = np.array([high - low for low, high in tile])
        inner = np.array([low for low, _ in tile]) + (size - 1) / 2
        centre = np.array(plan.centre) + matrix @ (inner - middle)
        reach = np.abs(matrix) @ ((size - 1) / 2) + _EPSILON
        lows = np.floor(centre - reach).astype(int).tolist()
        highs = (np.floor(centre + reach).astype(int) + 2).tolist()
        box = read(((lows[0], highs[0]), (lows[1], highs[1]), (lows[2], highs[2])))
        corner = centre - lows - matrix @ ((size - 1) / 2)
        cut = tuple(slice(low, high) for low, high in tile)
        for channel in range(channels):
            _trilinear(box[channel], matrix, corner, out=crop[channel][cut])
    return crop


def _tiles(matrix: np.ndarray, size: Size) -> Iterator[Box]:
    """Parts of a crop, small enough that the box of the image that one needs is no larger."""
    tile = np.array(size)
    limit = min(max(math.prod(size) // 4, _CHUNK), 1 << 23)
    while tile.max() > _BAND and np.prod(np.abs(matrix) @ tile + 2) > limit:
        longest = int(tile.argmax())
        tile[longest] = -(-tile[longest] // 2)
    edges = [(*range(0, size[axis], int(tile[axis])), size[axis]) for axis in range(3)]
    return product(pairwise(edges[0]), pairwise(edges[1]), pairwise(edges[2]))


def _trilinear(box: Tensor, matrix: np.ndarray, corner: np.ndarray, *, out: Tensor) -> None:
    """Interpolate between voxels; several times faster than ``grid_sample`` in three dimensions.

    Args:
        box: Voxels around all points, [d, h, w].
        matrix: Voxels of the box per voxel of the crop, [3, 3].
        corner: Where the first voxel of the crop lies in the box, [3].
        out: Filled, [D, H, W].
    """
    voxels, (_, height, width) = box.reshape(-1), box.shape
    depth, rows, columns = out.shape
    steps = torch.from_numpy(matrix)
    step = max(_CHUNK // (rows * columns), 1)
    for start in range(0, depth, step):
        part = out[start : start + step]
        z = torch.arange(start, start + part.shape[0], dtype=torch.float64)
        y, x = (torch.arange(n, dtype=torch.float64) for n in (rows, columns))
        index, above = torch.zeros(()), []
        for axis, stride in enumerate((height * width, width, 1)):
            slow = (z * steps[axis, 0] + corner[axis])[:, None] + y * steps[axis, 1]
            at = slow.float()[:, :, None] + (x * steps[axis, 2]).float()
            whole = at.floor()
            above.append(at.sub_(whole).flatten())
            index = torch.add(index, whole, alpha=stride)
        index = index.flatten().to(torch.int32)  # exact: a box has less than 2**24 voxels
        planes = []
        for plane in (0, height * width):
            lines = []
            for line in (plane, plane + width):
                left = voxels[line:].index_select(0, index)
                right = voxels[line + 1 :].index_select(0, index)
                lines.append(left.lerp_(right, above[2]))
            planes.append(lines[0].lerp_(lines[1], above[1]))
        part.copy_(planes[0].lerp_(planes[1], above[0]).view(part.shape))


def _affine(plan: CropPlan) -> np.ndarray:
    """Image voxels per crop voxel as a matrix, rotation (in mm) and flips included, [3, 3]."""
    thin = np.array(plan.spacing) / np.array(plan.scale)
    thin[0] = 1.0 if plan.spacing.is_planar else thin[0] / plan.slab
    turn = _rotation(plan.angles[0], (1, 2)) @ _rotation(plan.angles[1], (2, 0))
    turn = turn @ _rotation(plan.angles[2], (0, 1))
    signs = np.where(plan.flips, -1.0, 1.0)
    return np.asarray((turn * thin) / thin[:, None] * np.array(plan.scale) * signs)


def _rotation(angle: float, axes: tuple[int, int]) -> np.ndarray:
    matrix = np.eye(3)
    first, second = axes
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def _is_on_voxels(first: float, scale: float) -> bool:
    """Whether voxels of the crop are voxels of the image along one axis."""
    return scale == 1 and abs(first - round(first)) < 2 * _EPSILON


def _padded(volume: Tensor | BoxReader, padding: Padding) -> Callable[[Box], Tensor]:
    """What reads boxes that may reach beyond the volume, as float32 in [0, 1]."""
    read = _slicer(volume) if isinstance(volume, Tensor) else volume.reader()
    shape = volume.shape

    def padded(box: Box) -> Tensor:
        bounds, ends = [], []
        for (low, high), size in zip(box, shape[1:], strict=True):
            before = min(max(-low, 0), high - low - 1)
            after = min(max(high - size, 0), high - low - 1)
            first = min(max(low, 0), size - 1)
            bounds.append((first, first + high - low - before - after))
            ends.append((before, after))
            if padding == "zero" and (high <= 0 or low >= size):
                return torch.zeros(shape[0], *(stop - start for start, stop in box))
        inside = read((bounds[0], bounds[1], bounds[2]))
        if not any(before or after for before, after in ends):
            return inside
        mode = "replicate" if padding == "edge" else "constant"
        return F.pad(inside[None], [n for pair in reversed(ends) for n in pair], mode=mode)[0]

    return padded


def _slicer(volume: Tensor) -> Callable[[Box], Tensor]:
    def read(box: Box) -> Tensor:
        inside = volume[(slice(None), *(slice(first, last) for first, last in box))].float()
        return inside / 255 if volume.dtype == torch.uint8 else inside

    return read
