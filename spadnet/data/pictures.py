"""PNG, JPEG, TIFF and BMP: pictures without geometry, at times with transparency."""

import logging
import struct
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

from spadnet.data.image import ImageError, Stored, one_line, plain_grid

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_PILLOW_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "LA": "LA", "La": "LA", "CMYK": "RGB"}
_log = logging.getLogger(__name__)


def is_picture(head: bytes) -> bool:
    """Whether a file starts like a picture.

    Args:
        head: Its first bytes.
    """
    return head.startswith(_MAGIC)


def check_whole(path: Path, *, name: str) -> None:
    """Raise for what decoders do not: a JPEG that lacks its end, a TIFF with pages in a circle.

    The rest of a JPEG would be grey, and pages would be read for ever.
    """
    data = path.read_bytes() if path.stat().st_size < 1 << 28 else b""
    if data.startswith(b"\xff\xd8\xff") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ImageError(f"{name}: truncated: the end of the JPEG is missing")
    if data.startswith((b"II", b"MM")):
        _check_pages(data, name=name)


def _check_pages(data: bytes, *, name: str) -> None:
    """Follow a TIFF from page to page; raise if one comes twice."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    at, count, entry, link = (8, "Q", 20, "Q") if is_big else (4, "H", 12, "I")
    seen: set[int] = set()
    try:
        (page,) = struct.unpack_from(order + link, data, at)
        while page:
            if page in seen:
                raise ImageError(f"{name}: damaged: the pages of the TIFF run in a circle")
            seen.add(page)
            (entries,) = struct.unpack_from(order + count, data, page)
            after = page + struct.calcsize(order + count) + entry * entries
            (page,) = struct.unpack_from(order + link, data, after)
    except struct.error as error:
        raise ImageError(f"{name}: truncated: a page of the TIFF is missing") from error


def decode(path: Path, *, name: str) -> np.ndarray | None:
    """Decode by Pillow what SimpleITK reads wrongly: palettes, grey with transparency, CMYK.

    Returns:
        Pixels, [C, H, W]; None for all other pictures.

    Raises:
        ImageError: If the picture is damaged or has too many pixels to be one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(path)
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels for a picture ({one_line(error)})") from error
    except Exception:  # not one of Pillow's kinds, or damaged: SimpleITK will tell
        return None
    with picture:
        if picture.mode not in _PILLOW_MODES or getattr(picture, "n_frames", 1) > 1:
            return None
        try:
            pixels = np.array(picture.convert(_PILLOW_MODES[picture.mode]))
        except Exception as error:  # Pillow's plug-ins raise many kinds
            raise ImageError(f"{name}: truncated or damaged ({one_line(error)})") from error
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def as_stored(array: np.ndarray, *, name: str, has_spacing: bool) -> Stored:
    """Drop transparency and give pixels a size of 1: dots per inch say nothing about a body.

    Args:
        array: Pixels, [C, H, W], or the pages of a TIFF, [C, D, H, W].
        name: Named in errors.
        has_spacing: Whether the user gave a spacing, without which pages are no volume.

    Returns:
        The picture.

    Raises:
        ImageError: If there are several pages and no spacing.
    """
    if array.shape[0] in (2, 4):
        if (array[-1] != np.iinfo(array.dtype).max).any():
            _log.warning("%s: transparency is ignored", name)
        array = array[:-1]
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] > 1 and not has_spacing:
        raise ImageError(
            f"{name}: {array.shape[1]} pages without a spacing; give spacing=(z, y, x)"
        )
    size = (array.shape[1], array.shape[2], array.shape[3])
    return Stored(array[None], plain_grid(size, num_axes=2 if size[0] == 1 else 3), None)
