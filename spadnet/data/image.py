"""One medical image in memory: its voxels, where they lie, and how the file stored them.

Voxel axes are z, y, x. World coordinates are DICOM's: millimetres towards the patient's left,
posterior and superior (L, P, S).
"""

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spadnet.spacing import Spacing, depth_axis

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]


SPACING_RANGE = (1e-7, 1e4)
"""Smallest and largest distance in mm between voxels that is believed."""


class ImageError(ValueError):
    """An image that cannot be used. The message is one line: ``<file>: <reason>``."""


class NiftiForm(NamedTuple):
    """What the header of a NIfTI file says of geometry, to be written again as it was.

    Attributes:
        codes: Of the sform and of the qform.
        rows: The sform's, 12 values.
        quaternion: The qform's: b, c, d.
        offset: The qform's.
        pixdim: The first four: handedness, then spacings of the file's axes.
        units: Of space and time.
    """

    codes: tuple[int, int]
    rows: tuple[float, ...]
    quaternion: Vector
    offset: Vector
    pixdim: tuple[float, ...]
    units: int


class Grid(NamedTuple):
    """The voxel grid of a file, unchanged.

    Attributes:
        size: Voxels along the file's own three array axes, slowest first; 1 where there is none.
        spacing: Millimetres between neighbours along each of these axes.
        direction: Unit vector (L, P, S) of each of these axes. A sheared file keeps its shear.
        origin: World position (L, P, S) in mm of the first voxel.
        num_axes: Spatial axes in the file: 2 or 3.
        nifti: Of a NIfTI file, what its header says.
    """

    size: tuple[int, int, int]
    spacing: Vector
    direction: Matrix
    origin: Vector
    num_axes: int
    nifti: NiftiForm | None = None


class Axes(NamedTuple):
    """How the axes of an ``Image`` came from those of its file.

    Attributes:
        order: The file's axis behind each of z, y and x.
        flips: Whether each of z, y and x runs against the file's axis.
        grid: The file's own grid.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    grid: Grid


class Image(NamedTuple):
    """Voxels and geometry of one image; a 2D image is one slice.

    Voxel (k, j, i) lies at ``origin + k * spacing.z * direction[0] + j * spacing.y * direction[1]
    + i * spacing.x * direction[2]``.

    Attributes:
        array: Voxels, [C, D, H, W], in the file's own type.
        spacing: Millimetres along z, y, x; that of a single slice is ``Spacing.planar``.
        direction: Unit vectors (L, P, S) of z, y and x; always orthonormal.
        origin: World position (L, P, S) in mm of the first voxel.
        source: The file it came from.
        modality: DICOM's code, such as CT, MR or US; None where the file does not tell.
        axes: What was done to the file's axes.
    """

    array: np.ndarray
    spacing: Spacing
    direction: Matrix
    origin: Vector
    source: str
    modality: str | None
    axes: Axes


class Stored(NamedTuple):
    """What a file holds, before anything is turned.

    Attributes:
        frames: Voxels in the file's own order, [T, C, *grid.size]; T is 1 but for a series.
        grid: Geometry that the frames share.
        modality: DICOM's code; None where the file does not tell.
    """

    frames: np.ndarray
    grid: Grid
    modality: str | None


def orient(
    array: np.ndarray,
    grid: Grid,
    *,
    source: str,
    modality: str | None = None,
    along: int = 2,
) -> Image:
    """Turn a file's array so that the axis with the odd spacing is z; where none is, axially.

    A single-voxel axis is always z. Of the others, y points down on a display and x right: head
    up, or front up where slices are axial. Slices run towards the head, the back or the left.

    Args:
        array: Voxels in the file's order, [C, *grid.size].
        grid: Geometry of the file.
        source: Named in errors.
        modality: DICOM's code where known.
        along: World axis (0 left, 1 posterior, 2 superior) that z follows where no axis is odd.

    Returns:
        The image; its array is contiguous.

    Raises:
        ImageError: If an in-plane axis has fewer than two voxels or the geometry is impossible.
    """
    _check_grid(grid, source=source)
    if array.shape[1:] != grid.size:
        raise ImageError(
            f"{source}: {array.shape[1:]} voxels do not match the header's {grid.size}"
        )
    single = [axis for axis in range(3) if grid.size[axis] == 1]
    if len(single) > 1:
        raise ImageError(
            f"{source}: size {_times(grid.size)} is not an image: two single-voxel axes"
        )
    direction = nearest_rotation(np.array(grid.direction))
    world = _world_axes(direction)
    odd = single[0] if single else depth_axis(grid.spacing)
    z = world.index(along) if odd is None else odd
    # Down is towards the feet, or towards the back in axial slices; right is what remains.
    y = max((axis for axis in range(3) if axis != z), key=lambda axis: world[axis])
    order = (z, y, 3 - z - y)
    downwards = world[y] == 2
    flips = tuple(
        bool(direction[axis, world[axis]] * (-1 if axis == y and downwards else 1) < 0)
        for axis in order
    )
    turned = np.transpose(array, (0, *(1 + axis for axis in order)))
    turned = np.flip(turned, tuple(1 + axis for axis in range(3) if flips[axis]))
    axes = Axes(order, (flips[0], flips[1], flips[2]), grid)
    rows = [
        _vector(-direction[axis] if flip else direction[axis])
        for axis, flip in zip(order, flips, strict=True)
    ]
    spacing = Spacing(*(float(grid.spacing[axis]) for axis in order))
    return Image(
        array=np.require(turned, requirements=["C", "W"]),
        spacing=Spacing.planar(spacing.y, spacing.x) if single else spacing,
        direction=(rows[0], rows[1], rows[2]),
        origin=first_voxel(axes),
        source=source,
        modality=modality,
        axes=axes,
    )


def body_axis(image: Image) -> int:
    """Axis of the body that an image's z lies along: 0 head to feet, 1 front to back, 2 left.

    As :func:`spadnet.data.warp.turn_to_z` counts them; 0 for a single slice.
    """
    if image.spacing.is_planar:
        return 0
    return 2 - _world_axes(np.array(image.direction))[0]


def first_voxel(axes: Axes) -> Vector:
    """World position (L, P, S) in mm of the first voxel of an image as ``orient`` gives it."""
    grid = axes.grid
    origin = np.array(grid.origin, dtype=float)
    for axis, flip in zip(axes.order, axes.flips, strict=True):
        if flip:
            step = np.array(grid.direction[axis]) * grid.spacing[axis]
            origin = origin + step * (grid.size[axis] - 1)
    return _vector(origin)


def restore_axes(array: np.ndarray, axes: Axes) -> np.ndarray:
    """Undo ``orient``: turn an array on an image's grid back into the file's own order.

    Args:
        array: Values on the image's grid, [..., D, H, W].
        axes: The image's record.

    Returns:
        Values in the file's order, [..., *axes.grid.size].
    """
    lead = array.ndim - 3
    flipped = np.flip(array, tuple(lead + axis for axis in range(3) if axes.flips[axis]))
    back = np.argsort(axes.order)
    return np.transpose(flipped, (*range(lead), *(lead + int(axis) for axis in back)))


def on_own_grid(image: Image) -> Image:
    """Forget the file: make the present voxel grid the one that ``write_like`` writes.

    Args:
        image: Any image, perhaps cropped or resampled.
    """
    _, depth, height, width = image.array.shape
    spacing = (
        1.0 if image.spacing.is_planar else image.spacing.z,
        image.spacing.y,
        image.spacing.x,
    )
    grid = Grid((depth, height, width), spacing, image.direction, image.origin, num_axes=3)
    return image._replace(axes=Axes((0, 1, 2), (False, False, False), grid))


def nearest_rotation(direction: np.ndarray) -> np.ndarray:
    """Orthonormal matrix nearest to a direction matrix (polar decomposition).

    Args:
        direction: Rows are axes, [3, 3].

    Returns:
        Orthonormal matrix, [3, 3]; the input itself where it is orthonormal already.
    """
    if np.allclose(direction @ direction.T, np.eye(3), atol=1e-5):
        return direction
    left, _, right = np.linalg.svd(direction)
    return np.asarray(left @ right)


def shear_angle(direction: np.ndarray) -> float:
    """Largest angle in degrees between an axis and its place in the nearest rotation.

    Args:
        direction: Rows are unit vectors, [3, 3].
    """
    cosine = np.sum(direction * nearest_rotation(direction), axis=1)
    return float(np.degrees(np.arccos(np.clip(cosine.min(), -1, 1))))


def plain_grid(size: tuple[int, int, int], *, num_axes: int) -> Grid:
    """Grid of 1 mm voxels for files that have no geometry: slices upwards, rows down."""
    upright = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Grid(size, (1.0, 1.0, 1.0), upright, (0.0, 0.0, 0.0), num_axes)


def three_spacings(spacing: Sequence[float], *, name: str) -> Vector:
    """Check that a spacing given by the user has three values."""
    if len(spacing) != 3:
        raise ImageError(f"{name}: spacing {tuple(spacing)} must have three values, z y x")
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def one_line(error: BaseException | str) -> str:
    """Message of a foreign error on one line: the last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Without addresses, which differ from run to run.
    return re.sub(r" at 0x[0-9a-f]+", "", lines[-1]) if lines else type(error).__name__


def file_name(path: str | Path) -> str:
    """Name of a file for a message, on one line and printable whatever its bytes."""
    return str(path).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def _check_grid(grid: Grid, *, source: str) -> None:
    if 0 in grid.size:
        raise ImageError(f"{source}: size {_times(grid.size)} has an axis without voxels")
    if not all(0 < spacing < float("inf") for spacing in grid.spacing):
        values = " x ".join(f"{spacing:g}" for spacing in grid.spacing)
        raise ImageError(f"{source}: spacing {values} mm must be positive and finite")
    used = [mm for mm, size in zip(grid.spacing, grid.size, strict=True) if size > 1]
    if not all(SPACING_RANGE[0] <= mm <= SPACING_RANGE[1] for mm in used):
        values = " x ".join(f"{mm:g}" for mm in grid.spacing)
        raise ImageError(f"{source}: spacing {values} mm is not that of a scan or a microscope")
    direction = np.array(grid.direction)
    if not np.isfinite(direction).all() or abs(np.linalg.det(direction)) < 0.1:
        raise ImageError(f"{source}: direction matrix {direction.round(3).tolist()} is degenerate")
    if not np.isfinite(grid.origin).all():
        raise ImageError(f"{source}: origin {grid.origin} is not finite")


def _world_axes(direction: np.ndarray) -> tuple[int, int, int]:
    """World axis (0 left, 1 posterior, 2 superior) that each array axis follows most closely."""
    closeness = np.abs(direction)
    first, second, third = max(
        permutations(range(3)),
        key=lambda world: sum(closeness[axis, world[axis]] for axis in range(3)),
    )
    return first, second, third


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(value) + 0.0 for value in values)
    return x, y, z


def _times(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
