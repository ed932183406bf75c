"""One prepared image per file: compressed in blocks, so that a crop costs a crop.

A blosc2 file (``.b2nd``) holds the voxels in the image's own integers or as float16, and says in
its metadata how they become intensities in [0, 1]. Equal images give equal bytes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np
import torch
from torch import Tensor

from spadnet.data.atomic import write_atomic
from spadnet.data.extract import Box
from spadnet.data.image import ImageError, file_name, one_line
from spadnet.data.preprocess import Window, scale, to_channels
from spadnet.spacing import Spacing

SUFFIX = ".b2nd"

_META = "spadnet"
# Voxels of a chunk and of a block, z y x. A block of 16384 voxels fits the first-level cache, and
# a crop decompresses little beyond its own border; chunks keep the index small.
_CHUNK, _BLOCK = (32, 128, 128), (8, 32, 64)
_FLAT_CHUNK, _FLAT_BLOCK = (1, 512, 512), (1, 128, 128)
# Bytes that vary alike lie together: of 16 bits whole bytes, of 8 bits single ones. Of what is
# quick to read this is the smallest.
_CODEC, _LEVEL = blosc2.Codec.LZ4HC, 5
_FILTERS = {1: blosc2.Filter.BITSHUFFLE, 2: blosc2.Filter.SHUFFLE}

PACKING = [
    *(_CHUNK, _BLOCK, _FLAT_CHUNK, _FLAT_BLOCK),
    *(_CODEC.name, _LEVEL, [kind.name for kind in _FILTERS.values()]),
]
"""All that decides how voxels become bytes; stores that were packed otherwise are made again."""


class StoredImage(NamedTuple):
    """What a file of the store says of itself.

    Attributes:
        key: Name of the image.
        shape: Voxels, [C, D, H, W].
        spacing: In mm along z, y, x.
        window: Stored values that stand for 0 and 1.
        modality: DICOM's code; None where it is not known.
        preprocessing: Hash of what was done to the image.
    """

    key: str
    shape: tuple[int, int, int, int]
    spacing: Spacing
    window: Window
    modality: str | None
    preprocessing: str


class StoredVolume:
    """A prepared image on disk: boxes are read where and when they are needed.

    It holds a path and numbers, so it can be sent to other processes; nothing stays open.
    """

    def __init__(self, path: Path, image: StoredImage, *, in_chans: int | None = None) -> None:
        """Describe a file; ``open_volume`` reads the description from the file itself.

        Args:
            path: File of the store.
            image: What is in it.
            in_chans: Channels wanted, see ``to_channels``; None for those of the image.
        """
        self.path = path
        self.stored = image
        self.in_chans = image.shape[0] if in_chans is None else in_chans
        to_channels(np.empty((image.shape[0], 0, 0, 0), np.float32), self.in_chans)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels that ``read`` gives, and voxels, [C, D, H, W]."""
        return self.in_chans, *self.stored.shape[1:]

    def read(self, box: Box) -> Tensor:
        """Read a box that lies within the image.

        Args:
            box: First and last + 1 voxel along z, y, x.

        Returns:
            Intensities in [0, 1], [C, d, h, w], float32.
        """
        return self.reader()(box)

    def reader(self) -> Callable[[Box], Tensor]:
        """Open the file once for several boxes; what comes back is ``read`` and keeps it open."""
        array, window, shape = _open(self.path), self.stored.window, self.shape
        channels = self.stored.shape[0]

        def read(box: Box) -> Tensor:
            for (low, high), size in zip(box, shape[1:], strict=True):
                if not 0 <= low < high <= size:
                    raise ValueError(f"{self.stored.key}: box {box} leaves the image {shape[1:]}")
            start, stop = zip((0, channels), *box, strict=True)
            lengths = [last - first for first, last in zip(start, stop, strict=True)]
            values = np.empty(lengths, dtype=array.dtype)
            try:
                # What array[...] ends in, without what it asks on the way there.
                array.get_slice_numpy(values, (start, stop))
            except (RuntimeError, ValueError) as error:
                raise ImageError(f"{file_name(self.path)}: damaged: {one_line(error)}") from error
            return torch.from_numpy(to_channels(scale(values, window), self.in_chans))

        return read

    def read_all(self) -> Tensor:
        """Read the whole image, [C, D, H, W]."""
        _, depth, height, width = self.shape
        return self.read(((0, depth), (0, height), (0, width)))


def open_volume(path: str | Path, *, in_chans: int | None = None) -> StoredVolume:
    """Open one file of a store.

    Args:
        path: File.
        in_chans: Channels wanted; None for those of the image.

    Raises:
        ImageError: If it is no such file.
    """
    path = Path(path)
    array = _open(path)
    try:
        meta = json.loads(array.schunk.vlmeta[_META])
        image = StoredImage(
            key=meta["key"],
            shape=tuple(array.shape),
            spacing=Spacing(*meta["spacing"]),
            window=Window(*meta["window"]),
            modality=meta["modality"],
            preprocessing=meta["preprocessing"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ImageError(f"{file_name(path)}: not written by spadnet preprocess") from error
    return StoredVolume(path, image, in_chans=in_chans)


def pack(array: np.ndarray, image: StoredImage) -> bytes:
    """Compress an image into the bytes of its file.

    Args:
        array: Voxels as ``storable`` gives them, [C, D, H, W].
        image: What the file shall say.
    """
    chunks, blocks = _partition(array.shape)
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=blocks,
        cparams={
            "codec": _CODEC,
            "clevel": _LEVEL,
            "filters": [_FILTERS[array.itemsize]],
            "filters_meta": [0],
            "nthreads": 1,
        },
    )
    # As JSON: numbers and names come back as they were, whatever the version of blosc2.
    meta = {
        "key": image.key,
        "spacing": list(image.spacing),
        "window": list(image.window),
        "modality": image.modality,
        "preprocessing": image.preprocessing,
    }
    packed.schunk.vlmeta[_META] = json.dumps(meta, sort_keys=True)
    return bytes(packed.to_cframe())


def write_volume(path: Path, array: np.ndarray, image: StoredImage) -> bytes:
    """Write one file of a store, whole or not at all.

    Args:
        path: File.
        array: Voxels as ``storable`` gives them, [C, D, H, W].
        image: What the file shall say.

    Returns:
        The bytes written.
    """
    content = pack(array, image)
    write_atomic(path, content)
    return content


def storable(array: np.ndarray, window: Window) -> tuple[np.ndarray, Window]:
    """Give voxels the type in which they are stored.

    Args:
        array: Voxels, any integer or float type.
        window: Values that stand for 0 and 1.

    Returns:
        Integers of at most 16 bits as they are, also where a wider type holds them; everything
        else as float16 in [0, 1], with the window that goes with it.
    """
    if array.dtype in (np.uint8, np.int8, np.uint16, np.int16):
        return array, window
    low, high = float(array.min()), float(array.max())
    for kind in (np.uint8, np.int16, np.uint16):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            whole = array.astype(kind)
            if array.dtype.kind in "iu" or np.array_equal(whole, array):
                return whole, window
            break
    return scale(array, window).astype(np.float16), Window(0.0, 1.0)


def _open(path: Path) -> Any:
    try:
        # Not mapped: as fast, and parts of the file do not count as memory of the process.
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except FileNotFoundError as error:
        raise ImageError(f"{file_name(path)}: no such file") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ImageError(f"{file_name(path)}: cannot be read: {one_line(error)}") from error


def _partition(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks of an image, [C, D, H, W]."""
    flat = shape[1] == 1
    limits = (_FLAT_CHUNK, _FLAT_BLOCK) if flat else (_CHUNK, _BLOCK)
    chunks, blocks = (
        (shape[0], *(min(most, size) for most, size in zip(limit, shape[1:], strict=True)))
        for limit in limits
    )
    return chunks, blocks
