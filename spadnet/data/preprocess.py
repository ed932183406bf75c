"""What is done once to every image: crop to the body, scale intensities, bound the size.

Source: section 4 of the method; the released preprocessing behaves so.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from spadnet.data.image import Image, ImageError, Vector
from spadnet.spacing import Spacing

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

_MAX_SAMPLE = 1 << 22  # voxels that percentiles of float images are taken from
_CLIP = (0.23, 99.73)  # percentiles of all voxels


class Window(NamedTuple):
    """Intensities that become 0 and 1.

    Attributes:
        low: Becomes 0, and all below.
        high: Becomes 1, and all above.
    """

    low: float
    high: float


def prepare(
    image: Image,
    *,
    crop: bool = True,
    percentiles: tuple[float, float] = (0.5, 99.5),
    max_in_plane: int | None = 512,
) -> Image:
    """Crop to the foreground, scale intensities to [0, 1] and bound the in-plane size.

    Args:
        image: As read.
        crop: Whether to cut to the foreground's bounding box.
        percentiles: Of the foreground; what maps to 0 and to 1. Colour and 8-bit images are
            divided by 255 instead.
        max_in_plane: Largest size in pixels of the shorter in-plane side; None for no bound.

    Returns:
        Image with float32 voxels in [0, 1] whose spacing and origin are still true.

    Raises:
        ImageError: If all voxels are equal.
    """
    image, window = cut_to_body(image, crop=crop, percentiles=percentiles)
    return bound_in_plane(image._replace(array=scale(image.array, window)), max_in_plane)


def cut_to_body(
    image: Image,
    *,
    crop: bool = True,
    percentiles: tuple[float, float] = (0.5, 99.5),
    clip: bool = False,
) -> tuple[Image, Window]:
    """Crop to the foreground and find the intensities that become 0 and 1.

    Args:
        image: As read.
        crop: As in ``prepare``.
        percentiles: As in ``prepare``.
        clip: For volumes, the rule of some recipes instead: 0 and 1 are the 0.23 and the 99.73
            percentile of all voxels, and the foreground is what lies above the lower one.

    Returns:
        Image with voxels of its own type, and the window for ``scale``.

    Raises:
        ImageError: If all voxels are equal.
    """
    array = image.array
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise ImageError(f"{image.source}: all voxels are {low:g}; there is nothing to see")
    if clip and not image.spacing.is_planar:
        low, high = _percentiles(array.ravel()[:: max(array.size // _MAX_SAMPLE, 1)], _CLIP)
        return _cut(image, _any_channel(array > low), Window(low, high), crop=crop)
    is_picture = array.dtype == np.uint8 or (array.shape[0] == 3 and image.spacing.is_planar)
    threshold = 0.0 if image.spacing.is_planar else low
    mask = _any_channel(array > threshold)
    if not image.spacing.is_planar:
        floor = _percentiles(_inside(array, mask), (0.5,))[0]
        mask = _any_channel(array > floor)
    if is_picture:
        low, high = 0.0, _white(array)
    else:
        low, high = _percentiles(_inside(array, mask), percentiles)
    return _cut(image, mask, Window(low, high), crop=crop)


def scale(array: np.ndarray, window: Window) -> np.ndarray:
    """Map a window of intensities to [0, 1], float32.

    Args:
        array: Voxels of any type and shape.
        window: What maps to 0 and 1; what lies beyond is clipped.
    """
    scaled = np.subtract(array, window.low, dtype=np.float32)
    scaled *= np.float32(1 / (window.high - window.low))
    return np.asarray(np.clip(scaled, 0, 1, out=scaled))


def bound_in_plane(image: Image, max_in_plane: int | None) -> Image:
    """Shrink an image whose shorter in-plane side is too long.

    Args:
        image: With float voxels.
        max_in_plane: Largest size in pixels of the shorter in-plane side; None for no bound.
    """
    shorter = min(image.array.shape[2:])
    if max_in_plane is not None and shorter > max_in_plane:
        factor = max_in_plane / shorter
        _, depth, height, width = image.array.shape
        image = resize(image, (depth, round(height * factor), round(width * factor)))
    return image


def crop_image(image: Image, box: tuple[slice, slice, slice]) -> Image:
    """Cut a box out of an image and move the origin along.

    Args:
        image: Any image.
        box: Slices with bounds along z, y, x.
    """
    start = [bounds.start or 0 for bounds in box]
    return image._replace(
        array=np.ascontiguousarray(image.array[(slice(None), *box)]),
        origin=_moved(image, (start[0], start[1], start[2])),
    )


def resize(image: Image, size: tuple[int, int, int]) -> Image:
    """Resample an image to another number of voxels within the same borders.

    Args:
        image: With float voxels.
        size: Voxels along z, y, x.

    Returns:
        The image; where it shrinks, voxels are averages (antialiasing).
    """
    volume = torch.from_numpy(image.array)[None]
    old = image.array.shape[1:]
    # One linear map per axis: slices first where they change, then the plane, antialiased.
    if size[0] != old[0]:
        flat = volume.flatten(3).flatten(0, 1)[:, None]
        flat = F.interpolate(
            flat, (size[0], flat.shape[-1]), mode="bilinear", antialias=size[0] < old[0]
        )
        volume = flat.reshape(1, -1, size[0], *old[1:])
    if size[1:] != old[1:]:
        plane = volume.flatten(1, 2)
        plane = F.interpolate(plane, size[1:], mode="bilinear", antialias=True)
        volume = plane.reshape(1, -1, *size)
    ratio = [before / after for before, after in zip(old, size, strict=True)]
    spacing = Spacing(*(mm * scale for mm, scale in zip(image.spacing, ratio, strict=True)))
    if image.spacing.is_planar:
        spacing = Spacing.planar(spacing.y, spacing.x)
    shift = ((ratio[0] - 1) / 2, (ratio[1] - 1) / 2, (ratio[2] - 1) / 2)
    return image._replace(array=volume[0].numpy(), spacing=spacing, origin=_moved(image, shift))


def to_channels(array: np.ndarray, in_chans: int) -> np.ndarray:
    """Give an image the number of channels that a model takes.

    Args:
        array: Voxels, [C, D, H, W].
        in_chans: Channels wanted.

    Returns:
        Voxels, [in_chans, D, H, W]: grey from colour by ``LUMA``, colour from grey by repetition.

    Raises:
        ValueError: For any other combination.
    """
    channels = array.shape[0]
    if channels == in_chans:
        return array
    if (channels, in_chans) == (3, 1):
        grey = np.tensordot(np.array(LUMA, dtype=np.float32), array, axes=1)[None]
        if array.dtype.kind in "iu":
            return np.rint(grey).astype(array.dtype)
        return np.asarray(grey.astype(array.dtype, copy=False))
    if channels == 1 and in_chans == 3:
        return np.repeat(array, 3, axis=0)
    raise ValueError(f"the image has {channels} channels and the model takes {in_chans}")


def _cut(image: Image, mask: np.ndarray, window: Window, *, crop: bool) -> tuple[Image, Window]:
    """Cut to a mask's box; a window without width becomes that of all voxels."""
    if not window.high > window.low:
        window = Window(float(image.array.min()), float(image.array.max()))
    box = _bounding_box(mask) if crop else None
    return (image if box is None else crop_image(image, box)), window


def _inside(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask, [N]; every n-th where there are very many of them."""
    step = max(array.size // _MAX_SAMPLE, 1)
    values = np.concatenate([channel[mask][::step] for channel in array])
    return values if values.size else array.ravel()[::step]


def _percentiles(values: np.ndarray, percents: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, percents))


def _any_channel(found: np.ndarray) -> np.ndarray:
    return found[0] if found.shape[0] == 1 else np.asarray(found.any(axis=0))


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Smallest box that holds a mask, at least two pixels wide in-plane; None if it is empty."""
    slices = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if found.size == 0:
            return None
        start, stop = int(found[0]), int(found[-1]) + 1
        if axis > 0 and stop - start < 2:
            start, stop = max(stop - 2, 0), max(stop, 2)
        slices.append(slice(start, stop))
    return slices[0], slices[1], slices[2]


def _white(array: np.ndarray) -> float:
    """Value of white: 255 for 8 bits, and also for floats that hold such values."""
    if array.dtype == np.uint16:
        return 65535.0
    if array.dtype.kind == "f" and array.max() <= 1:
        return 1.0
    return max(255.0, float(array.max()))


def _moved(image: Image, steps: tuple[float, float, float]) -> Vector:
    origin = np.array(image.origin)
    for axis in range(3):
        origin = origin + np.array(image.direction[axis]) * image.spacing[axis] * steps[axis]
    x, y, z = (float(value) for value in origin)
    return x, y, z
