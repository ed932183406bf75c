"""Read every image below a user's folder."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from spadnet.data.dicom import Part, split_series
from spadnet.data.image import ImageError, file_name, one_line
from spadnet.data.io import NUMPY_SUFFIXES, SUFFIXES, read_frames
from spadnet.data.preprocess import prepare
from spadnet.data.volume import Volume, to_volume

_log = logging.getLogger(__name__)


def find_images(folder: str | Path) -> list[Path]:
    """Image files below a folder, sorted; a folder with DICOM files counts as one.

    Args:
        folder: Where to look, subfolders included. Links to folders are not followed.

    Raises:
        ImageError: If there is no such folder or no image in it.
    """
    folder, name = Path(folder), file_name(folder)
    if not folder.is_dir():
        raise ImageError(f"{name}: {'not a folder' if folder.exists() else 'no such folder'}")
    found = sorted(_walk(folder))
    if not found:
        raise ImageError(f"{name}: no images in this folder (looked for {', '.join(SUFFIXES)})")
    return found


def load_folder(
    folder: str | Path,
    *,
    in_chans: int = 1,
    on_error: Literal["raise", "skip"] = "raise",
    dtype: torch.dtype = torch.float16,
) -> list[Volume]:
    """Read and prepare every image below a folder.

    Args:
        folder: Where to look, subfolders included.
        in_chans: Channels of the models that will see the images.
        on_error: Whether an image that cannot be used ends it all or is left out with a warning.
        dtype: How to keep voxels in memory; see ``to_volume``.

    Returns:
        Images; each of the n frames of a 4D series weighs (2n - 1) / n^2.

    Raises:
        ImageError: If an image cannot be used, or none can.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    volumes = []
    paths = find_images(folder)
    parts = [
        part
        for path in paths
        for part in (split_series(path) if path.is_dir() else [Part("", path, None)])
    ]
    for part in parts:
        try:
            frames = read_frames(part.path, files=part.files)
            weight = (2 * len(frames) - 1) / len(frames) ** 2
            for frame in frames:
                prepared = prepare(frame)
                try:
                    volumes.append(
                        to_volume(
                            prepared,
                            in_chans=in_chans,
                            weight=weight,
                            dtype=dtype,
                            dataset=file_name(Path(folder).resolve().name),
                        )
                    )
                except ValueError as error:
                    raise ImageError(f"{frame.source}: {error}") from error
        except ImageError as error:
            if on_error == "raise":
                raise
            _log.warning("left out: %s", error)
    if not volumes:
        raise ImageError(f"{file_name(folder)}: none of its {len(parts)} images can be used")
    return volumes


def _walk(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder, onerror=_warn):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        if count := sum(name.lower().endswith(NUMPY_SUFFIXES) for name in names):
            _log.warning(
                "%s: %d NumPy files left out: they have no spacing, which a table can give",
                file_name(here),
                count,
            )
        images = [name for name in names if name.lower().endswith(SUFFIXES)]
        if any(_is_dicom(Path(here, name)) for name in names):
            yield Path(here)
            images = [name for name in images if not _is_dicom(Path(here, name))]
        # The voxels of a .hdr are in the .img beside it: once is enough.
        headers = {name[:-4] for name in images if name.lower().endswith(".hdr")}
        for name in images:
            stem, ending = os.path.splitext(name.removesuffix(".gz"))
            if not (ending.lower() == ".img" and stem in headers):
                yield Path(here, name)


def _warn(error: OSError) -> None:
    reason = (error.strerror or one_line(error)).lower()
    _log.warning("%s: %s; left out", file_name(error.filename), reason)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() not in ("", ".dcm", ".ima", ".img") and not path.stem.isdigit():
        return False
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return False
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
