"""What headers announce, checked before anything is allocated, and voxels in files of their own."""

import re
from pathlib import Path

from spadnet.data.image import ImageError

MAX_BYTES = 1 << 34  # a single image larger than this is refused rather than tried
MAX_RATIO = 1100  # deflate cannot shrink by more than about 1032
_SURELY_FITS = 1 << 26  # bytes
_DATA_FILE = re.compile(
    rb"^(?:data ?file: *|ElementDataFile *=(?! *LOCAL) *)(.*?)\r?$", re.IGNORECASE | re.MULTILINE
)


def check_announced(num_bytes: int, path: Path, *, name: str) -> None:
    """Refuse an image that is too large, or that cannot be in a file so small.

    Args:
        num_bytes: What the header announces.
        path: File.
        name: Named in errors.

    Raises:
        ImageError: If so. Files whose voxels are in other files, and TIFF, which packs blank pages
            better than all others, need only keep to the largest size.
    """
    if num_bytes > MAX_BYTES:
        raise ImageError(
            f"{name}: {num_bytes / 2**30:.0f} GiB of voxels, more than {MAX_BYTES >> 30} GiB"
        )
    if num_bytes <= max(_SURELY_FITS, MAX_RATIO * path.stat().st_size):
        return
    head = _head(path)
    if not head.startswith((b"II", b"MM")) and _DATA_FILE.search(head) is None:
        raise ImageError(f"{name}: truncated: the header announces {num_bytes} bytes")


def missing_data_file(path: Path) -> str | None:
    """Name of the file that holds the voxels of a NRRD or MetaImage header, if it is not there.

    Args:
        path: Header.
    """
    found = _DATA_FILE.search(_head(path))
    file = found[1].strip().decode(errors="replace") if found else ""
    is_name = file and file != "LIST" and "%" not in file
    return file if is_name and not (path.parent / file).exists() else None


def _head(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(1 << 14)
