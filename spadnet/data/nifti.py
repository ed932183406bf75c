"""NIfTI, Analyze and FreeSurfer files: header by nibabel, voxels straight from the bytes.

SimpleITK 2.5 reads a truncated NIfTI as zeros, NaN as zero and a spacing of zero or NaN as 1,
prefers the header's spacing to the affine's and refuses shear; none of it is said aloud.
"""

import errno
import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from spadnet.data.headers import MAX_BYTES, MAX_RATIO
from spadnet.data.image import Axes, Grid, ImageError, NiftiForm, Stored, file_name, one_line

_SLACK = 1 << 20  # bytes after the voxels that are let pass


def read_nifti(path: Path) -> Stored:
    """Read a NIfTI, Analyze or FreeSurfer file, checking that it is whole.

    Args:
        path: File.

    Returns:
        Voxels, scaled as the header says, and the geometry of the affine.

    Raises:
        ImageError: If it is damaged or its geometry is impossible.
    """
    name = file_name(path)
    try:
        with _mute_nibabel():
            proxy: Any = nib.load(path)
            header = proxy.header
            shape = tuple(int(size) for size in header.get_data_shape())[::-1]
            dtype = header.get_data_dtype()
            offset = int(proxy.dataobj.offset)
            slope, intercept = float(proxy.dataobj.slope), float(proxy.dataobj.inter)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"{name}: truncated or damaged ({one_line(error)})") from error
    except Exception as error:  # nibabel raises many kinds for a header that makes no sense
        if _ends_early(path):
            raise ImageError(
                f"{name}: truncated or damaged (the packed data ends early)"
            ) from error
        reason = one_line(error).replace(f' of "{path}"', "")
        if isinstance(error, OSError) and error.errno == errno.EINVAL:
            reason = "its sizes are impossible"
        raise ImageError(f"{name}: not an image of its kind ({reason})") from error
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if min(shape, default=0) < 1:
        raise ImageError(f"{name}: size {' x '.join(map(str, shape))} has an axis without voxels")
    if len(shape) > 5:
        raise ImageError(f"{name}: {len(shape)} axes")
    grid = _grid(proxy, shape=shape, name=name)
    count = int(np.prod(shape, dtype=object))
    data_path = Path(getattr(proxy.dataobj, "file_like", path))
    data = _read_bytes(data_path, num_bytes=offset + count * dtype.itemsize, name=name)
    array = np.frombuffer(data, dtype, count, offset).reshape(shape)
    if dtype.fields:  # colour
        array = np.stack([array[field] for field in dtype.names or ()])
        return Stored(array.reshape(1, -1, *grid.size), grid, None)
    if (slope, intercept) != (1.0, 0.0) and array.dtype.kind in "iuf":
        exact = np.dtype("f8" if dtype.itemsize > 2 else "f4")
        array = array.astype(exact)
        array *= exact.type(slope)
        array += exact.type(intercept)
    channels, frames = (1, 1, *shape[:-3])[-2:] if len(shape) > 3 else (1, 1)
    array = array.reshape(channels, frames, *grid.size)
    return Stored(np.moveaxis(array, 0, 1), grid, None)


def write_nifti(array: np.ndarray, path: Path, *, axes: Axes) -> None:
    """Write values in the file's own order as NIfTI with exactly the geometry of the file.

    Where that was NIfTI, sform, qform, their codes, spacings and units are those of its header.

    Args:
        array: Values, [*axes.grid.size], or [C, *axes.grid.size] as a vector image.
        path: File to write, ``.nii`` or ``.nii.gz``.
        axes: Record of the image whose grid this is.
    """
    grid = axes.grid
    values = np.transpose(array)
    if array.ndim == 4:
        values = values[..., None, :]
    elif grid.num_axes == 2:
        values = values[..., 0]
    affine = np.eye(4)
    for axis in range(3):
        affine[:3, 2 - axis] = np.array(grid.direction[axis]) * grid.spacing[axis]
    affine[:3, 3] = grid.origin
    affine[:2] *= -1  # from L, P, S to NIfTI's R, A, S
    image = nib.Nifti1Image(values, affine)
    if array.ndim == 4:
        image.header.set_intent("vector")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    if grid.nifti is not None:
        _set_form(image.header, grid.nifti)
    nib.save(image, path)


def _grid(proxy: Any, *, shape: tuple[int, ...], name: str) -> Grid:
    header = proxy.header
    num_axes = min(len(shape), 3)
    affine = np.array(proxy.affine, dtype=float)
    if "sform_code" in header and header["sform_code"] == 0:
        raw = _raw_pixdim(proxy)[1 : num_axes + 1]
        if not (np.isfinite(raw).all() and (raw > 0).all()):
            values = " x ".join(f"{value:g}" for value in raw)
            raise ImageError(f"{name}: spacing {values} mm must be positive and finite")
    if not np.isfinite(affine).all():
        raise ImageError(f"{name}: the affine matrix has values that are not finite")
    affine[:2] *= -1
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if num_axes == 2 and not spacing[2] > 0:
        spacing[2], affine[:3, 2] = 1.0, np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) or 1.0
    if not (spacing > 0).all():
        values = " x ".join(f"{value:g}" for value in spacing)
        raise ImageError(f"{name}: spacing {values} mm must be positive and finite")
    rows = (affine[:3, :3] / spacing).T[::-1].tolist()
    size = (1, 1, 1, *shape)[-3:]
    return Grid(
        size=(size[0], size[1], size[2]),
        spacing=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        direction=(tuple(rows[0]), tuple(rows[1]), tuple(rows[2])),
        origin=(float(affine[0, 3]), float(affine[1, 3]), float(affine[2, 3])),
        num_axes=max(num_axes, 2),
        nifti=_form_of(header) if "sform_code" in header else None,
    )


def _form_of(header: Any) -> NiftiForm:
    def numbers(*names: str) -> tuple[float, ...]:
        return tuple(float(value) for name in names for value in np.atleast_1d(header[name]))

    b, c, d = numbers("quatern_b", "quatern_c", "quatern_d")
    x, y, z = numbers("qoffset_x", "qoffset_y", "qoffset_z")
    return NiftiForm(
        codes=(int(header["sform_code"]), int(header["qform_code"])),
        rows=numbers("srow_x", "srow_y", "srow_z"),
        quaternion=(b, c, d),
        offset=(x, y, z),
        pixdim=numbers("pixdim")[:4],
        units=int(header["xyzt_units"]),
    )


def _set_form(header: Any, form: NiftiForm) -> None:
    header["sform_code"], header["qform_code"] = form.codes
    header["srow_x"], header["srow_y"], header["srow_z"] = np.reshape(form.rows, (3, 4))
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = form.quaternion
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = form.offset
    header["pixdim"][:4] = form.pixdim
    header["xyzt_units"] = form.units


def _raw_pixdim(proxy: Any) -> np.ndarray:
    """Spacing as written: nibabel mends zero and negative values when it loads."""
    holder = proxy.file_map["header" if "header" in proxy.file_map else "image"]
    with _mute_nibabel(), holder.get_prepare_fileobj("rb") as stream:
        header = type(proxy.header).from_fileobj(stream, check=False)
    return np.array(header["pixdim"], dtype=float)


@contextmanager
def _mute_nibabel() -> Iterator[None]:
    """Keep nibabel's notes on mended headers out of the log: what matters raises here."""
    logger = nib.imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_bytes(path: Path, *, num_bytes: int, name: str) -> bytes:
    """At least ``num_bytes`` of a file; a gzip stream is checked against its checksum."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    except OSError as error:
        reason = (error.strerror or one_line(error)).lower()
        raise ImageError(f"{name}: its voxels in {path.name!r}: {reason}") from error
    if num_bytes > MAX_RATIO * max(len(data), 1):
        raise ImageError(f"{name}: truncated: the header announces {num_bytes} bytes")
    if num_bytes > MAX_BYTES:
        raise ImageError(f"{name}: {num_bytes >> 30} GiB, more than {MAX_BYTES >> 30} GiB")
    if data.startswith(b"\x1f\x8b"):
        try:
            data = _inflate(data, limit=num_bytes + _SLACK)
        except (EOFError, zlib.error) as error:
            raise ImageError(f"{name}: truncated or damaged ({one_line(error)})") from error
    if len(data) < num_bytes:
        raise ImageError(f"{name}: truncated: {len(data)} of {num_bytes} bytes")
    return data


def _ends_early(path: Path) -> bool:
    """Whether a gzip stream breaks off within the kilobyte by which nibabel knows a file."""
    with open(path, "rb") as stream:
        data = stream.read(1 << 16)
    if not data.startswith(b"\x1f\x8b"):
        return False
    try:
        unpacker = zlib.decompressobj(wbits=31)
        return len(unpacker.decompress(data, 1024)) < 1024 and not unpacker.eof
    except zlib.error:
        return True


def _inflate(data: bytes, *, limit: int) -> bytes:
    """Unpack all members of a gzip stream, at most about ``limit`` bytes."""
    parts: list[bytes] = []
    left = limit
    while data and left > 0:
        stream = zlib.decompressobj(wbits=31)
        parts.append(stream.decompress(data, left))
        left -= len(parts[-1])
        if not stream.eof and left > 0:
            raise EOFError("the packed data ends early")
        data = stream.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)
