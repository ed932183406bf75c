"""Put values that lie on a prepared image's grid back on the grid of the image as it was read."""

from typing import Literal

import numpy as np

from spadnet.data.image import Image, first_voxel

_SLACK = 1e-3  # of a voxel; origins have gone through floating point


def paste_back(
    values: np.ndarray,
    image: Image,
    *,
    interpolation: Literal["nearest", "linear"] = "nearest",
    fill: float = 0,
) -> np.ndarray:
    """Undo the cropping and the change of size of ``prepare``; ``write_like`` does the rest.

    Args:
        values: Mask, scores or features on the grid of ``image``, [..., D, H, W].
        image: The prepared image: turned, cropped and perhaps shrunk, but not turned again.
        interpolation: How values come from a coarser grid: "nearest" for labels.
        fill: Value of what was cut off.

    Returns:
        Values on the grid that ``read_image`` gave, [..., D, H, W]; of the same type, but for
        integers that are interpolated.

    Raises:
        ValueError: If the values do not lie on the image's grid.
    """
    if values.ndim < 3 or values.shape[-3:] != image.array.shape[1:]:
        raise ValueError(f"values of {values.shape} do not lie on {image.array.shape[1:]}")
    if interpolation not in ("nearest", "linear"):
        raise ValueError(f"interpolation must be 'nearest' or 'linear', got {interpolation!r}")
    grid = image.axes.grid
    shift = np.array(first_voxel(image.axes)) - np.array(image.origin)
    outside = []
    for axis in range(3):
        source = image.axes.order[axis]
        steps = np.arange(grid.size[source]) * grid.spacing[source]
        # Where each voxel of the image as read lies on the prepared grid, in its voxels.
        places = (steps + shift @ np.array(image.direction[axis])) / image.spacing[axis]
        last = values.shape[axis - 3] - 1
        outside.append((places < -0.5 - _SLACK) | (places > last + 0.5 + _SLACK))
        values = _sample(values, places.clip(0, last), axis - 3, interpolation)
    for axis, beyond in zip((-3, -2, -1), outside, strict=True):
        np.moveaxis(values, axis, 0)[beyond] = fill
    return values


def _sample(values: np.ndarray, places: np.ndarray, axis: int, interpolation: str) -> np.ndarray:
    """A new array of the values at places along an axis, in voxels and within it."""
    nearest = np.rint(places)
    if interpolation == "nearest" or np.abs(places - nearest).max() < _SLACK:
        return np.take(values, nearest.astype(int), axis=axis)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    kind = np.result_type(values.dtype, np.float32)
    share = (places - low).astype(kind).reshape(-1, *(1,) * (-axis - 1))
    return np.asarray(
        np.take(values, low, axis=axis) * (1 - share) + np.take(values, high, axis=axis) * share
    )
