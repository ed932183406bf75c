"""NumPy files: voxels without geometry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spadnet.data.headers import MAX_BYTES
from spadnet.data.image import (
    ImageError,
    Stored,
    file_name,
    one_line,
    plain_grid,
    three_spacings,
)
from spadnet.spacing import Spacing


def read_numpy(path: Path, *, spacing: Sequence[float] | None) -> Stored:
    """Read ``.npy``, or ``.npz`` with one array.

    Args:
        path: File with an array [H, W], [D, H, W] or [C, D, H, W]; where the spacing is that of a
            2D image, [H, W, 3] and [H, W, 4] are colour.
        spacing: Millimetres along z, y, x; required.

    Returns:
        Voxels and a grid that has no spacing of its own.

    Raises:
        ImageError: If there is no spacing or the file cannot be used.
    """
    name = file_name(path)
    if spacing is None:
        raise ImageError(f"{name}: a NumPy file has no spacing; give spacing=(z, y, x)")
    planar = Spacing(*three_spacings(spacing, name=name)).is_planar
    try:
        # A memory map finds a header that promises more than the file holds before allocating.
        loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if len(loaded.files) != 1:
                    raise ValueError(f"{len(loaded.files)} arrays in it: {', '.join(loaded.files)}")
                archive: Any = loaded.zip
                num_bytes = archive.infolist()[0].file_size
                if num_bytes > MAX_BYTES:
                    raise ValueError(f"{num_bytes >> 30} GiB, more than {MAX_BYTES >> 30} GiB")
                loaded = loaded[loaded.files[0]]
        array = np.array(loaded)
    except Exception as error:  # zipfile, zlib, tokenizer and NumPy errors alike
        raise ImageError(f"{name}: not a usable NumPy file ({one_line(error)})") from error
    if planar and array.ndim == 3 and array.shape[-1] in (3, 4):
        array = np.moveaxis(array[..., :3], -1, 0)[:, None]
    if not 2 <= array.ndim <= 4:
        raise ImageError(f"{name}: {array.ndim} axes; 2 (H, W), 3 (D, H, W) or 4 (C, D, H, W) fit")
    array = array.reshape(*(1,) * (5 - array.ndim), *array.shape)
    if planar and array.shape[2] != 1:
        raise ImageError(f"{name}: {array.shape[2]} slices, but the spacing is that of a 2D image")
    size = (array.shape[2], array.shape[3], array.shape[4])
    return Stored(array, plain_grid(size, num_axes=3), None)
