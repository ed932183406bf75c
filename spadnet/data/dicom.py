"""DICOM headers: which files make a series, in which order, and whether they make a volume."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom

from spadnet.data.image import Grid, ImageError, Vector, file_name, one_line

GAP_TOLERANCE = 0.05  # of the usual gap between slices
_TAGS = [
    "Modality",
    "SeriesInstanceUID",
    "SeriesDescription",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "Rows",
    "Columns",
]


class Part(NamedTuple):
    """A series of a folder.

    Attributes:
        name: Series instance UID, or the name of the one file; empty where it is all there is.
        path: The folder, or the one file.
        files: Names of the files in the folder; None for all.
    """

    name: str
    path: Path
    files: tuple[str, ...] | None


class Header(NamedTuple):
    """What one DICOM file says about itself.

    Attributes:
        modality: DICOM's code.
        num_frames: Frames in the file.
        is_volume: Whether several frames are the slices of one volume and not a film.
        series: Series that the file belongs to; empty where it does not tell.
        size: Rows and columns.
        orientation: Directions of a row and a column; None where it does not tell.
        position: World position of the first pixel; None where it does not tell.
    """

    modality: str | None
    num_frames: int
    is_volume: bool
    series: str
    size: tuple[int, int]
    orientation: tuple[float, ...] | None
    position: Vector | None


class Series(NamedTuple):
    """Files of one volume, sorted along the slice normal.

    Attributes:
        files: Paths.
        modality: DICOM's code.
    """

    files: list[str]
    modality: str | None


def read_header(path: Path) -> Header:
    """Read what matters of a DICOM header.

    Raises:
        ImageError: If it is no DICOM file or holds no image.
    """
    name = file_name(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of identifiers that break DICOM's rules
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            series = str(data.get("SeriesInstanceUID") or "")
        rows, columns = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
        orientation = data.get("ImageOrientationPatient")
        position = data.get("ImagePositionPatient")
        header = Header(
            modality=str(data.get("Modality") or "") or None,
            num_frames=int(data.get("NumberOfFrames") or 1),
            is_volume="SharedFunctionalGroupsSequence" in data,
            series=series,
            size=(rows, columns),
            orientation=tuple(map(float, orientation)) if orientation else None,
            position=(float(position[0]), float(position[1]), float(position[2]))
            if position
            else None,
        )
    except pydicom.errors.InvalidDicomError as error:
        raise ImageError(f"{name}: not a DICOM file") from error
    except Exception as error:  # pydicom raises many kinds for damaged elements
        raise ImageError(f"{name}: damaged DICOM header ({one_line(error)})") from error
    if 0 in header.size:
        raise ImageError(f"{name}: a DICOM file without an image")
    return header


def split_series(folder: Path) -> list[Part]:
    """Tell the DICOM series of a folder (not of its subfolders) apart, whatever their state.

    Returns:
        The folder itself where it holds one series; else one part per series, sorted by name. A
        file too damaged to tell its series is a part of its own, so that it is heard of.
    """
    series: dict[str, list[str]] = {}
    try:
        paths = _dicom_files(folder)
    except OSError:  # reading the folder will say which
        return [Part("", folder, None)]
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of identifiers that break DICOM's rules
                data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
                uid = str(data.get("SeriesInstanceUID") or "")
        except Exception:  # pydicom raises many kinds; reading the file will say which
            uid = path.name
        series.setdefault(uid, []).append(path.name)
    if len(series) < 2:
        return [Part("", folder, None)]
    parts = [
        Part(files[0], folder / files[0], None)
        if len(files) == 1
        else Part(uid or "unnamed", folder, tuple(files))
        for uid, files in series.items()
    ]
    return sorted(parts, key=lambda part: part.name)


def find_series(folder: Path, files: Sequence[str] | None = None) -> list[Series]:
    """Find the DICOM series of a folder (not of its subfolders) and check that they are volumes.

    Args:
        folder: Where to look.
        files: Names of the files to look at; None for all.

    Raises:
        ImageError: If there is none, or one has slices that do not make a volume.
    """
    name = file_name(folder)
    groups: dict[str, list[tuple[str, Header]]] = {}
    paths = _dicom_files(folder)
    if files is not None:
        wanted = set(files)
        paths = [path for path in paths if path.name in wanted]
    for path in paths:
        header = read_header(path)
        groups.setdefault(header.series, []).append((str(path), header))
    if not groups:
        raise ImageError(f"{name}: the folder holds no DICOM files")
    return [_sorted_series(members, name=name) for _, members in sorted(groups.items())]


def decode(path: Path) -> tuple[np.ndarray, Grid]:
    """Decode by pydicom what SimpleITK cannot.

    Returns:
        Frames [1, C, D, H, W] and their grid.

    Raises:
        ImageError: If pydicom cannot either.
    """
    name = file_name(path)
    try:
        data = pydicom.dcmread(path)
        if "PixelData" not in data:
            raise ImageError(f"{name}: a DICOM file without pixel data, or truncated")
        pixels: Any = data.pixel_array
        samples = int(data.get("SamplesPerPixel", 1))
        if data.get("PhotometricInterpretation") == "MONOCHROME1":
            pixels = np.invert(pixels)  # large values are dark; SimpleITK does the same
        if samples == 1:
            slope = float(data.get("RescaleSlope", 1))
            intercept = float(data.get("RescaleIntercept", 0))
            if (slope, intercept) != (1.0, 0.0):
                pixels = (pixels * slope + intercept).astype(np.float32)
        spacing = [float(value) for value in data.get("PixelSpacing") or (1, 1)]
    except ImageError:
        raise
    except Exception as error:  # any decoder plug-in may raise anything
        raise ImageError(f"{name}: cannot be decoded ({one_line(error)})") from error
    channels_last = pixels if samples > 1 else pixels[..., None]
    frames = channels_last if channels_last.ndim == 4 else channels_last[None]
    array = np.moveaxis(frames, -1, 0)[None]
    grid = Grid(
        size=(array.shape[2], array.shape[3], array.shape[4]),
        spacing=(1.0, spacing[0], spacing[1]),
        direction=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
        origin=(0.0, 0.0, 0.0),
        num_axes=3,
    )
    return array, grid


def _dicom_files(folder: Path) -> list[Path]:
    """DICOM files of a folder, sorted by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    paths = [folder / name for name in sorted(names) if not name.startswith(".")]
    return [path for path in paths if _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _sorted_series(members: list[tuple[str, Header]], *, name: str) -> Series:
    first = members[0][1]
    files = [path for path, _ in members]
    if len(members) > 1:
        files = [files[index] for index in _slice_order([header for _, header in members], name)]
    return Series(files, first.modality)


def _slice_order(headers: list[Header], name: str) -> np.ndarray:
    """Order along the slice normal; raise where the slices are not those of one volume."""
    if any(header.num_frames > 1 for header in headers):
        raise ImageError(f"{name}: several multi-frame files in one series; read them one by one")
    if len({header.size for header in headers}) > 1:
        raise ImageError(f"{name}: slices of different sizes in one series")
    orientations = [header.orientation for header in headers]
    positions = [header.position for header in headers]
    if None in orientations or None in positions:
        raise ImageError(f"{name}: slices without a position; they cannot be put in order")
    directions = np.array(orientations)
    if np.abs(directions - directions[0]).max() > 1e-2:
        raise ImageError(f"{name}: slices of more than one orientation in one series")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    heights = np.array(positions) @ normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-3:
        count = int((gaps <= 1e-3).sum())
        raise ImageError(
            f"{name}: {count} slices lie where another one does (duplicates or a film)"
        )
    if np.abs(gaps - usual).max() > GAP_TOLERANCE * usual:
        raise ImageError(
            f"{name}: uneven slices, {gaps.min():.3g} to {gaps.max():.3g} mm apart"
            f" (usually {usual:.3g}): some are missing"
        )
    return order
