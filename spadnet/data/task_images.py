"""Read the cases of a task: image as a network takes it, and its target on the same grid."""

import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spadnet.data.image import Image, ImageError, body_axis, file_name, orient, plain_grid
from spadnet.data.io import read_image
from spadnet.data.preprocess import Window, bound_in_plane, cut_to_body, resize, scale, to_channels
from spadnet.data.tasks import Case, warn_of_absent
from spadnet.data.warp import turn_from_z
from spadnet.spacing import MAX_DEGREE, Spacing, depth_stride, turned_axes

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # of spacing and direction, relative; and of origins, in voxels times ten


class Preparation(NamedTuple):
    """What is done to every image of a task; a trained model keeps it for new images.

    Attributes:
        in_chans: Channels of the network.
        crop: Whether to cut to the foreground's bounding box.
        percentiles: Of the foreground; what maps to 0 and to 1.
        window: Intensities (such as HU) that map to 0 and 1 instead.
        size: Voxels (z, y, x) that an isotropic image is stretched to; slices ``2**degree`` times
            thicker are as many times fewer. None leaves sizes alone.
        spacing: Millimetres (z, y, x) that images are resampled to, 0 to leave an axis alone.
        degree: Anisotropy of all images, None where spacing decides.
        max_in_plane: Largest size of the shorter in-plane side; None for no bound.
    """

    in_chans: int = 1
    crop: bool = False
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    size: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    degree: int | None = None
    max_in_plane: int | None = None


class View(NamedTuple):
    """An image as a network takes it.

    Attributes:
        image: Prepared, with float32 voxels in [0, 1].
        degree: Anisotropy that the network is told.
    """

    image: Image
    degree: int


class TaskImage(NamedTuple):
    """A case in memory.

    Attributes:
        key: Names the case.
        image: Intensities in [0, 1], [C, D, H, W], float16.
        target: Class, labels or values, float32 [N]; or classes of voxels, uint8 [D, H, W].
        degree: Anisotropy.
        spacing: Of the prepared image, in mm.
        axis: Of the body that z lies along: 0 for its z, 1 for y, 2 for x.
    """

    key: str
    image: Tensor
    target: Tensor
    degree: int
    spacing: Spacing
    axis: int = 0

    def upright(self) -> "TaskImage":
        """The same volume with z along the body's, as a file of cubic voxels is read."""
        if self.axis == 0:
            return self
        order = turned_axes(self.axis)
        target = self.target
        return self._replace(
            image=turn_from_z(self.image, axis=self.axis),
            target=turn_from_z(target, axis=self.axis) if target.ndim == 3 else target,
            spacing=Spacing(*(self.spacing[order.index(axis)] for axis in range(3))),
            axis=0,
        )


def prepare_view(image: Image, rule: Preparation) -> View:
    """Crop, scale, resample and recolour an image as a preparation says.

    Args:
        image: As read.
        rule: What to do.

    Raises:
        ImageError: If all voxels are equal, or the channels do not fit.
    """
    if rule.window is None:
        cut, window = cut_to_body(image, crop=rule.crop, percentiles=rule.percentiles)
    else:
        cut, window = image, Window(*rule.window)
    view = cut._replace(array=scale(cut.array, window))
    view = bound_in_plane(view, rule.max_in_plane)
    if rule.spacing is not None:
        view = _to_spacing(view, rule.spacing)
    degree = view.spacing.degree() if rule.degree is None else rule.degree
    if rule.size is not None:
        depth, height, width = rule.size
        slices = depth >> degree if degree < MAX_DEGREE else 1
        slices = max(slices, depth_stride(16, degree))
        if view.array.shape[1:] != (slices, height, width):
            view = resize(view, (slices, height, width))
    try:
        channels = to_channels(view.array, rule.in_chans)
    except ValueError as error:
        raise ImageError(f"{image.source}: {error}") from error
    return View(view._replace(array=channels), degree)


def _to_spacing(image: Image, spacing: Sequence[float]) -> Image:
    own = image.array.shape[1:]
    wanted = [
        max(round(n * mm / want), 1)
        if want > 0 and not (axis == 0 and image.spacing.is_planar)
        else n
        for axis, (n, mm, want) in enumerate(zip(own, image.spacing, spacing, strict=True))
    ]
    size = (wanted[0], wanted[1], wanted[2])
    return image if size == own else resize(image, size)


def check_geometry(image: Image, label: Image) -> None:
    """Refuse a label map that does not lie on its image's grid; both are named.

    Raises:
        ImageError: If shape, spacing, direction or origin differ.
    """
    mine, other = image.axes.grid, label.axes.grid

    def differs(what: str, here: object, there: object) -> ImageError:
        return ImageError(f"{label.source}: its {what} {there} is not {here} of {image.source}")

    if mine.size != other.size:
        raise differs("size", mine.size, other.size)
    if not np.allclose(mine.spacing, other.spacing, rtol=_TOLERANCE):
        raise differs("spacing", mine.spacing, other.spacing)
    if not np.allclose(mine.direction, other.direction, atol=10 * _TOLERANCE):
        raise differs("direction", mine.direction, other.direction)
    if not np.allclose(mine.origin, other.origin, atol=100 * _TOLERANCE * min(mine.spacing)):
        raise differs("origin", mine.origin, other.origin)


def read_channels(paths: Sequence[Path], *, spacing: Sequence[float] | None = None) -> Image:
    """Read an image whose channels may lie in several files; its grid is that of the first.

    Args:
        paths: Files, or folders with one DICOM series, in the order of the channels.
        spacing: Instead of what the files say; see ``read_image``.

    Raises:
        ImageError: If one cannot be used or lies on another grid; the message names it.
    """
    parts = [read_image(path, spacing=spacing) for path in paths]
    for part in parts[1:]:
        check_geometry(parts[0], part)
    if len(parts) == 1:
        return parts[0]
    kind = np.result_type(*(part.array.dtype for part in parts))
    return parts[0]._replace(
        array=np.concatenate([part.array.astype(kind, copy=False) for part in parts])
    )


class CaseReader:
    """Reads cases; the arrays of npz tables are opened once."""

    def __init__(self, rule: Preparation, *, num_classes: int) -> None:
        """Configure.

        Args:
            rule: What is done to every image.
            num_classes: Voxel values of label maps are 0 to ``num_classes - 1``.
        """
        self.rule = rule
        self.num_classes = num_classes
        self._tables: dict[tuple[Path, str], np.ndarray] = {}

    def image(self, case: Case) -> Image:
        """A case's image as read, the channels of several files together."""
        if case.row is not None:
            return self._row(case.images[0], *case.row)
        return read_channels(case.images)

    def label(self, case: Case, image: Image) -> np.ndarray:
        """Voxel classes [D, H, W], uint8, on the grid of the case's image as read.

        Raises:
            ImageError: If the label map lies elsewhere or has values beyond the classes.
        """
        assert isinstance(case.target, Path)
        label = read_image(case.target)
        check_geometry(image, label)
        values = label.array[0] if label.axes.order == image.axes.order else None
        if values is None or label.array.shape[0] != 1:
            raise ImageError(f"{label.source}: not a map of one class per voxel")
        found = np.unique(values)
        bad = [value for value in found.tolist() if value not in range(self.num_classes)]
        if bad:
            raise ImageError(
                f"{label.source}: voxel values {bad[:10]} are not among the {self.num_classes} "
                "declared classes"
            )
        return np.ascontiguousarray(values.astype(np.uint8))

    def read(self, case: Case) -> TaskImage:
        """A case as a network takes it."""
        image = self.image(case)
        if case.row is None:
            view = prepare_view(image, self.rule)
        else:  # named by its row: one table has many images
            view = prepare_view(image._replace(source=f"{image.source}[{case.key}]"), self.rule)
        prepared = view.image
        if isinstance(case.target, Path):
            target = torch.from_numpy(label_on(self.label(case, image), image, prepared))
        else:
            target = torch.tensor(case.target)
        pixels = torch.from_numpy(prepared.array).half()
        axis = body_axis(prepared)
        return TaskImage(case.key, pixels, target, view.degree, prepared.spacing, axis)

    def _row(self, path: Path, array: str, index: int) -> Image:
        table = self._tables.get((path, array))
        if table is None:
            try:
                with np.load(path, allow_pickle=False) as content:
                    table = self._tables[path, array] = content[array]
            except (KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                raise ImageError(f"{path}: {array} cannot be read: {error}") from error
        if index >= len(table):
            raise ImageError(f"{path}: {array} has {len(table)} images, but there are more labels")
        row = table[index]
        is_colour = row.ndim > 2 and row.shape[-1] == 3
        row = np.moveaxis(row, -1, 0) if is_colour else row[None]
        is_flat = row.ndim == 3
        row = row[:, None] if is_flat else row
        size = (row.shape[1], row.shape[2], row.shape[3])
        return orient(row, plain_grid(size, num_axes=2 if is_flat else 3), source=file_name(path))


def check_maps(images: Sequence[TaskImage], *, name: str, classes: Sequence[str]) -> None:
    """Refuse training label maps that all hold one class alone; warn of classes in none of them.

    Args:
        images: Training cases with label maps.
        name: Of the data set.
        classes: Names by voxel value.

    Raises:
        ValueError: If there is nothing to learn.
    """
    found: set[int] = set()
    for case in images:
        found |= set(torch.unique(case.target).tolist())
    if len(found) == 1:
        (only,) = found
        raise ValueError(
            f"{name}: all training label maps are {classes[only]!r} alone; "
            "there is nothing to learn"
        )
    warn_of_absent(name, [label for value, label in enumerate(classes) if value not in found])


def label_on(label: np.ndarray, image: Image, prepared: Image) -> np.ndarray:
    """Bring voxel classes from an image's grid to that of the prepared image, nearest voxel.

    Args:
        label: Classes, [D, H, W].
        image: As read.
        prepared: The same, cropped or resampled.
    """
    shift = np.array(prepared.origin) - np.array(image.origin)
    for axis in range(3):
        own, new = label.shape[axis], prepared.array.shape[1 + axis]
        if image.spacing.is_planar and axis == 0:
            continue
        first = shift @ np.array(image.direction[axis]) / image.spacing[axis]
        step = prepared.spacing[axis] / image.spacing[axis]
        # Half a voxel of slack: a place between two voxels belongs to the later one.
        places = np.floor(first + np.arange(new) * step + 0.5).astype(int).clip(0, own - 1)
        if new != own or not np.array_equal(places, np.arange(own)):
            label = np.take(label, places, axis=axis)
    return np.ascontiguousarray(label)


def read_cases(
    cases: Sequence[Case], reader: CaseReader, *, workers: int = 0
) -> Iterator[TaskImage]:
    """Read cases in order; what is wrong with any of them is told at the end, of all of them.

    Args:
        cases: Which.
        reader: How.
        workers: Threads that read ahead; 0 reads one after the other.

    Raises:
        ImageError: If images or labels cannot be used; the message tells of all.
    """
    faults: list[str] = []

    def attempt(case: Case) -> TaskImage | ImageError:
        try:
            return reader.read(case)
        except ImageError as error:
            return error

    found: Iterable[Any]
    pool = ThreadPoolExecutor(max(workers, 1))
    with pool:
        found = pool.map(attempt, cases) if workers > 0 else map(attempt, cases)
        for result in found:
            if isinstance(result, ImageError):
                faults.append(str(result))
            elif not faults:
                yield result
    if faults:
        raise ImageError(
            "; ".join(dict.fromkeys(faults))
        )  # a table's fault is that of all its rows
