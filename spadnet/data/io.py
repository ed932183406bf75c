"""Read any medical image file into an ``Image`` and write results on the file's own grid.

SimpleITK decodes NRRD, MetaImage, DICOM and pictures; ``nifti`` reads NIfTI and FreeSurfer files,
``dicom`` the headers of DICOM and what SimpleITK cannot decode.
"""

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813, the name that its documentation uses

from spadnet.data import dicom, pictures
from spadnet.data.decoder_errors import reason_of
from spadnet.data.headers import check_announced, missing_data_file
from spadnet.data.image import (
    Axes,
    Grid,
    Image,
    ImageError,
    Stored,
    file_name,
    on_own_grid,
    one_line,
    orient,
    restore_axes,
    shear_angle,
    three_spacings,
)
from spadnet.data.nifti import read_nifti, write_nifti
from spadnet.data.numpy_files import read_numpy
from spadnet.data.stderr import quiet_stderr

__all__ = [
    "Axes",
    "Image",
    "ImageError",
    "on_own_grid",
    "read_frames",
    "read_image",
    "restore_axes",
    "write_like",
]

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz")
FREESURFER_SUFFIXES = (".mgz", ".mgh")
NUMPY_SUFFIXES = (".npy", ".npz")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUME_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
SUFFIXES = (*NIFTI_SUFFIXES, *FREESURFER_SUFFIXES, *PICTURE_SUFFIXES, *VOLUME_SUFFIXES)
"""Name endings of files that need no spacing to be given."""
WRITABLE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", *PICTURE_SUFFIXES)

_log = logging.getLogger(__name__)


def read_image(path: str | Path, *, spacing: Sequence[float] | None = None) -> Image:
    """Read one image: NIfTI, NRRD, MHA, MGZ, DICOM file or series folder, PNG, JPEG, TIFF, NumPy.

    Args:
        path: File, or folder with one DICOM series.
        spacing: Millimetres along the file's own axes, slowest first, instead of what the file
            says; NumPy arrays need it.

    Returns:
        The image, turned so that the axis with the odd spacing is z.

    Raises:
        ImageError: If the file cannot be used, or holds a series of several images.
    """
    images = read_frames(path, spacing=spacing)
    if len(images) > 1:
        raise ImageError(
            f"{file_name(path)}: a series of {len(images)} images; read_frames reads each of them"
        )
    return images[0]


def read_frames(
    path: str | Path,
    *,
    spacing: Sequence[float] | None = None,
    files: Sequence[str] | None = None,
) -> list[Image]:
    """Read every image that a file or folder holds: the frames of a 4D file, series of a folder.

    Args:
        path: File, or folder with DICOM series.
        spacing: As in ``read_image``.
        files: Of a folder, names of the DICOM files to read; None for all.

    Returns:
        At least one image.

    Raises:
        ImageError: If the file cannot be used.
    """
    name = file_name(path)
    images = []
    for stored in _read_stored(Path(path), name=name, spacing=spacing, files=files):
        grid = stored.grid
        if spacing is not None:
            grid = grid._replace(spacing=three_spacings(spacing, name=name), nifti=None)
        frames = _checked(stored.frames, name=name)
        for index, frame in enumerate(frames):
            source = name if len(frames) == 1 else f"{name}[{index}]"
            images.append(orient(frame, grid, source=source, modality=stored.modality))
        angle = shear_angle(np.array(grid.direction))
        if angle > 0.5:
            _log.warning("%s: sheared by %.1f degrees; read as the nearest rotation", name, angle)
    return images


def write_like(array: np.ndarray, image: Image, path: str | Path) -> None:
    """Write values that lie on an image's grid back on the grid of the file it was read from.

    Nothing half-written is left behind: the file is written beside its place and then moved there.

    Args:
        array: A mask or volume, [D, H, W] or [C, D, H, W], on the grid of ``image``.
        image: As ``read_image`` gave it, neither cropped nor resampled.
        path: File to write; the ending decides the format.

    Raises:
        ImageError: If the file cannot be written.
        ValueError: If the array does not match the image.
    """
    path, name = Path(path), file_name(path)
    grid = image.axes.grid
    if array.ndim not in (3, 4) or array.shape[-3:] != image.array.shape[1:]:
        raise ValueError(f"array of {array.shape} does not lie on the grid {image.array.shape[1:]}")
    if array.shape[-3:] != tuple(grid.size[axis] for axis in image.axes.order):
        raise ValueError(f"{image.source}: write_like needs the image as read, not a prepared one")
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    values = _writable(restore_axes(array, image.axes))
    suffix = _suffix(path)
    if suffix not in WRITABLE_SUFFIXES:
        raise ImageError(f"{name}: cannot write files that end in '{suffix}'")
    scratch = path.with_name(f".{path.name[: -len(suffix)]}.{os.getpid()}{suffix}")
    try:
        if suffix in (".nii", ".nii.gz"):
            write_nifti(values, scratch, axes=image.axes)
        else:
            with quiet_stderr():
                sitk.WriteImage(_to_sitk(values, grid, name=name), str(scratch), True)
        os.replace(scratch, path)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be written: {reason_of(error)}") from error
    finally:
        scratch.unlink(missing_ok=True)


def _read_stored(
    path: Path, *, name: str, spacing: Sequence[float] | None, files: Sequence[str] | None
) -> list[Stored]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return [_read_series(series, name=name) for series in dicom.find_series(path, files)]
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: not a regular file")
        if status.st_size == 0:
            raise ImageError(f"{name}: the file is empty (0 bytes)")
        with open(path, "rb") as stream:
            head = stream.read(132)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ImageError(f"{name}: {reason.lower()}") from error
    suffix = _suffix(path)
    if suffix in NUMPY_SUFFIXES:
        return [read_numpy(path, spacing=spacing)]
    if suffix in (*NIFTI_SUFFIXES, *FREESURFER_SUFFIXES):
        return [read_nifti(path)]
    if head[128:132] == b"DICM" or suffix == ".dcm":
        return [_read_dicom(path, name=name)]
    if pictures.is_picture(head):
        return [_read_picture(path, name=name, spacing=spacing)]
    image = _decode(path, name=name)
    return [Stored(*_sitk_frames(image, _channels_first(image), name=name), modality=None)]


def _read_picture(path: Path, *, name: str, spacing: Sequence[float] | None) -> Stored:
    pictures.check_whole(path, name=name)
    array = pictures.decode(path, name=name)
    if array is None:
        array = _channels_first(_decode(path, name=name))
    return pictures.as_stored(array, name=name, has_spacing=spacing is not None)


def _read_dicom(path: Path, *, name: str) -> Stored:
    header = dicom.read_header(path)
    try:
        image = _decode(path, name=name)
        array, grid = _sitk_frames(image, _channels_first(image), name=name)
    except ImageError:
        _log.info("%s: SimpleITK cannot decode it; trying pydicom", name)
        array, grid = dicom.decode(path)
    if header.num_frames > 1 and not header.is_volume:
        array = np.moveaxis(array[0], 1, 0)[:, :, None]
        grid = grid._replace(size=(1, *grid.size[1:]))
    return Stored(array, grid, header.modality)


def _read_series(series: dicom.Series, *, name: str) -> Stored:
    if len(series.files) == 1:
        return _read_dicom(Path(series.files[0]), name=name)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(series.files)
    with quiet_stderr():
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise ImageError(f"{name}: {reason_of(error)}") from error
    array, grid = _sitk_frames(image, _channels_first(image), name=name)
    return Stored(array, grid, series.modality)


def _decode(path: Path, *, name: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with quiet_stderr():
        try:
            reader.ReadImageInformation()
            num_voxels = int(np.prod(reader.GetSize(), dtype=object))
            width = 1 if "8-bit" in sitk.GetPixelIDValueAsString(reader.GetPixelID()) else 2
            num_bytes = num_voxels * reader.GetNumberOfComponents() * width
            check_announced(num_bytes, path, name=name)
            return reader.Execute()
        except RuntimeError as error:
            if file := missing_data_file(path):
                raise ImageError(f"{name}: its voxels in {file!r}: no such file") from error
            raise ImageError(f"{name}: {reason_of(error)}") from error


def _sitk_frames(image: Any, array: np.ndarray, *, name: str) -> tuple[np.ndarray, Grid]:
    """Frames [T, C, D, H, W] and grid of a SimpleITK image of two to four axes."""
    num_axes = image.GetDimension()
    if num_axes not in (2, 3, 4):
        raise ImageError(f"{name}: {num_axes} axes")
    columns = np.array(image.GetDirection()).reshape(num_axes, num_axes)
    direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    count = min(num_axes, 3)
    direction[:count, :count] = columns[:count, :count]
    spacing[:count] = image.GetSpacing()[:count]
    origin[:count] = image.GetOrigin()[:count]
    norms = np.linalg.norm(direction, axis=0)
    if not (norms > 0).all():
        raise ImageError(f"{name}: direction matrix {direction.tolist()} is degenerate")
    if np.abs(norms - 1).max() > 1e-3:
        _log.warning("%s: direction vectors are not of length 1; the spacing is used alone", name)
    rows = (direction / norms).T[::-1].tolist()
    if num_axes < 4:
        frames = array.reshape(1, array.shape[0], *(1,) * (3 - num_axes), *array.shape[1:])
    else:
        frames = np.moveaxis(array, 1, 0)
    size = frames.shape[2:]
    grid = Grid(
        size=(size[0], size[1], size[2]),
        spacing=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        direction=(tuple(rows[0]), tuple(rows[1]), tuple(rows[2])),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        num_axes=count,
    )
    return frames, grid


def _writable(values: np.ndarray) -> np.ndarray:
    """Values in a type that every format has."""
    kind = values.dtype
    if kind == np.bool_:
        values = values.astype(np.uint8)
    elif kind == np.float16:
        values = values.astype(np.float32)
    elif kind in (np.int64, np.uint64) and values.size and abs(values).max() < 1 << 31:
        values = values.astype(np.int32)  # labels as argmax gives them
    return np.ascontiguousarray(values)


def _to_sitk(values: np.ndarray, grid: Grid, *, name: str) -> Any:
    is_vector = values.ndim == 4
    if grid.num_axes == 2:
        values = values.reshape(*values.shape[:-3], *values.shape[-2:])
    if is_vector:
        values = np.moveaxis(values, 0, -1)
    image = sitk.GetImageFromArray(values, isVector=is_vector)
    count = grid.num_axes
    columns = np.array(grid.direction).T[:, ::-1][:count, :count]
    if not np.allclose(columns.T @ columns, np.eye(count), atol=1e-4):
        raise ImageError(f"{name}: only NIfTI can hold the sheared grid of the input")
    image.SetDirection(columns.ravel().tolist())
    image.SetSpacing(grid.spacing[::-1][:count])
    image.SetOrigin(grid.origin[:count])
    return image


def _channels_first(image: Any) -> np.ndarray:
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1 and not np.iscomplexobj(array):
        return np.moveaxis(array, -1, 0)
    return np.asarray(array[None])


def _checked(frames: np.ndarray, *, name: str) -> np.ndarray:
    """Voxels in native byte order; raise for complex, NaN and infinite ones."""
    if frames.dtype.kind == "b":
        frames = frames.astype(np.uint8)
    if frames.dtype.kind not in "iuf":
        raise ImageError(f"{name}: voxels of type {frames.dtype} are not intensities")
    if frames.size == 0:
        raise ImageError(f"{name}: size {frames.shape[2:]} has an axis without voxels")
    if frames.dtype.kind == "f" and not np.isfinite([frames.min(), frames.max()]).all():
        bad = frames.size - int(np.count_nonzero(np.isfinite(frames)))
        share = "all" if bad == frames.size else f"{bad} of {frames.size}"
        raise ImageError(f"{name}: {share} voxels are NaN or infinite")
    return frames.astype(frames.dtype.newbyteorder("="), copy=False)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((s for s in (".nii.gz", ".img.gz") if name.endswith(s)), path.suffix.lower())
